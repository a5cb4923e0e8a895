"""The set of legal images around a batch: its box, and the ball where that is known more exactly.

>>> from tfrobust.threats import L2
>>> region = Region.around(L2(0.1), tf.constant([[0.5, 0.5]]))
>>> rows = tf.constant([[[3.0, 4.0]]])              # 3 x1 + 4 x2: at least 3.5 - 0.1 * 5
>>> round(float(region.least(rows)[0, 0]), 6)
3.0
"""

import typing

import tensorflow as tf

from tfrobust.bounds.rows import dot
from tfrobust.bounds.rule import Box

# Norm of a threat -> function of a vector's entries (its last axis) that gives the dual norm.
DUALS = {
    # Zeros have a gradient too (the root's own is infinite there): 0.
    "l2": lambda rows: tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(rows), -1), 1e-30)),
    "l1": lambda rows: tf.reduce_max(tf.abs(rows), -1),
}


class Region(typing.NamedTuple):
    """All images of `box`; with a norm, those of them within `epsilon` of `image`.

    Attributes:
        box: `Box` of images, clipped to [0, 1].
        image: Tensor in the middle of the ball.
        epsilon: Tensor, the radius.
        norm: "l2", "l1", or None where the box says all.
    """

    box: Box
    image: tf.Tensor | None = None
    epsilon: tf.Tensor | None = None
    norm: str | None = None

    @classmethod
    def around(cls, threat, x, epsilon=None):
        """The legal images of a threat around each row of x; `epsilon` may be a tensor."""
        box = Box(*threat.box(x, epsilon))
        if threat.norm not in DUALS:
            return cls(box)
        return cls(box, x, threat.radius(epsilon), threat.norm)

    @classmethod
    def of(cls, box):
        """`box` itself if it is a region."""
        return box if isinstance(box, cls) else cls(box)

    def least(self, rows):
        """The least value of linear functions on the region, from below.

        The greater of the exact minimum on the box and, by the dual norm (1/p + 1/q = 1), on the
        ball: row . x - epsilon |row|_q.

        Args:
            rows: `(batch, functions, ...)`.

        Returns:
            `(batch, functions)`.
        """
        least = dot(rows, self.box.centre) - dot(tf.abs(rows), self.box.radius)
        if self.norm is None:
            return least
        flat = tf.reshape(rows, (*_lead(rows), -1))
        ball = dot(rows, self.image) - self.epsilon * DUALS[self.norm](flat)
        return tf.maximum(least, ball)


def _lead(rows):
    shape = tf.shape(rows)
    return shape[0], shape[1]
