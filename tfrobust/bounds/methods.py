"""The kinds of bounds by name, from cheap to dear, and what they ask for.

A `Method` maps `(program, region, y)` to `(batch, classes + 1)`: lower bounds of z_y - z_k with 0
at k = y (-inf where anything overflowed) and, in the last column, what rounding may have added.

Each is the best of what it can make: "crown" takes the larger of interval bounds and of CROWN with
zero and adaptive slopes, since adaptive slopes alone may be looser than intervals.
"""

import dataclasses
import typing

import tensorflow as tf

from tfrobust import losses
from tfrobust.bounds import backward, forward

FLOATS = 2**24  # what the coefficients of a batch may take in the widest layer, 64 MiB


@dataclasses.dataclass(frozen=True)
class Method:
    """One kind of bounds.

    Attributes:
        name: As users write it.
        bound: `(program, region, y) -> (margins, boxes, sizes)`, as for `Program.rounding`.
        each: `program -> floats` of coefficients that one image takes in the widest layer.
        limit: The most floats for one image, or None.
    """

    name: str
    bound: typing.Callable
    each: typing.Callable
    limit: int | None = None

    def __call__(self, program, region, y):
        margins, boxes, sizes = self.bound(program, region, y)
        rounding = program.rounding(boxes, sizes)
        finite = tf.reduce_all(tf.math.is_finite(margins), -1) & tf.math.is_finite(rounding)
        other = tf.one_hot(losses.as_labels(y, program.classes), program.classes) == 0
        margins = tf.where(other & ~finite[:, None], -float("inf"), margins)
        return tf.concat([margins, rounding[:, None]], -1)

    def rows(self, program):
        """Images that a batch may hold."""
        each = self.each(program)
        return 16 if each is None else max(1, FLOATS // max(1, each))

    def check(self, program):
        """Refuses a net that is too large.

        Raises:
            ValueError: with the method to take instead.
        """
        if self.limit is None:
            return
        each = self.each(program)
        if each is None or each > self.limit:
            size = "images of no fixed size" if each is None else f"{each:,} coefficients an image"
            raise ValueError(
                f"`method` {self.name!r} must get a small net (at most {self.limit:,} "
                f"coefficients an image): take 'crown' or 'crown-ibp'. Received: {size}"
            )

    def fits(self, program):
        """Whether `check` lets the net pass."""
        each = self.each(program)
        return self.limit is None or (each is not None and each <= self.limit)


def _ibp(program, region, y):
    boxes = program.boxes(region, [program.output])
    return program.margins_of(boxes, y), boxes, []


def _crown_ibp(program, region, y):
    margins, boxes, sizes = _ibp(program, region, y)
    for mode in ("zero", "adaptive"):
        found, size = backward.sized(program, region, y, mode, boxes, backward.MEMORY)
        margins, sizes = tf.maximum(margins, found), [*sizes, size]
    return margins, boxes, sizes


def _crown(program, region, y):
    margins, wide, sizes = _ibp(program, region, y)
    for mode in ("zero", "adaptive"):
        boxes = backward.tightened(program, region, mode, sizes=sizes)
        found, size = backward.sized(program, region, y, mode, boxes, backward.MEMORY)
        margins, sizes = tf.maximum(margins, found), [*sizes, size]
    return margins, wide, sizes


def _symbolic(program, region, y):
    margins, boxes, sizes = _ibp(program, region, y)
    return tf.maximum(margins, forward.margins(program, region, y)), boxes, sizes


def _classes(program):
    return program.size and program.size * (program.classes - 1)


METHODS = {
    method.name: method
    for method in (
        Method("ibp", _ibp, lambda program: program.size and 4 * program.size),
        Method("crown-ibp", _crown_ibp, _classes),
        Method("symbolic", _symbolic, forward.width, forward.LIMIT),
        Method("crown", _crown, _classes),
    )
}
