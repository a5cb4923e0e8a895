"""Fast adaptive boundary attack: alternately to the boundary and back to the image.

>>> from tfrobust import threats
>>> FAB(threats.Linf(0.3), targets=9).name
'FAB-T'
"""

import math

import keras
import tensorflow as tf

from tfrobust.attacks import hyperplane
from tfrobust.attacks.call import per_row
from tfrobust.attacks.descent import Walk, lies


@keras.saving.register_keras_serializable(package="tfrobust")
class FAB(Walk):
    """FAB (Croce and Hein, 2020); with `targets=9` FAB-T, as in AutoAttack.

    A step linearises the nearest boundary at the point x', finds the smallest moves d' of x' and
    d of the image x onto that plane within the box, and goes to

        (1 - a) (x' + eta d') + a (x + eta d),   a = min(||d'|| / (||d'|| + ||d||), alpha_max),

    clipped to the box. Where that fools, it goes back to x + beta (x' - x). Every point that the
    model sees is judged. FAB takes a gradient for each wrong class in every step, FAB-T one, for
    the class that was r-th likeliest on the image in the r-th run.

    Args:
        threat: `tr.threats.Linf`, `L2` or `L1`.
        steps: Integer >= 1.
        restarts, targets: see `Attack`; later restarts start at half epsilon from the image.
        alpha_max: Float in [0, 1], largest pull to the image.
        eta: Float >= 1, how far beyond the plane.
        beta: Float in [0, 1], share of the change that is kept going back.
        **shared: see `Attack` (seed, eot, on_failure).

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> found = FAB(threats.L1(0.5)).minimum(net, np.array([[0.6, 0.4]]), np.array([0]))
    >>> bool(0.2 < found.distance[0] < 0.202)
    True
    """

    def __init__(
        self,
        threat,
        steps=100,
        restarts=1,
        targets=0,
        alpha_max=0.1,
        eta=1.05,
        beta=0.9,
        **shared,
    ):
        super().__init__(threat, steps, restarts=restarts, targets=targets, **shared)
        self.alpha_max = lies("alpha_max", alpha_max, "[0, 1]")
        self.eta, self.beta = lies("eta", eta, "[1, inf)"), lies("beta", beta, "[0, 1]")

    @property
    def name(self):
        return "FAB-T" if self.targets else "FAB"

    def step(self, call, i, state):
        del i
        x, norm = state["x"], self.threat.norm
        fooled, f, w = hyperplane.nearest(call, x, norm)
        state = self.closer(call, state, x, fooled)
        here, image, w = (tf.reshape(v, (-1, math.prod(x.shape[1:]))) for v in (x, call.x, w))
        gap = tf.concat([-f, tf.reduce_sum(w * (here - image), -1) - f], 0)
        both, twice = tf.concat([here, image], 0), tf.concat([w, w], 0)
        move = hyperplane.to_plane(norm, both, twice, gap)
        far = tf.maximum(self.threat.distance(move, 0.0), 1e-8)[:, None]
        beyond, (near, far) = both + self.eta * move, tf.split(far, 2)
        pull = tf.minimum(near / (near + far), self.alpha_max)
        from_here, from_image = tf.split(beyond, 2)
        mixed = tf.clip_by_value((1.0 - pull) * from_here + pull * from_image, 0.0, 1.0)
        moved = tf.reshape(mixed, tf.shape(x))
        fooled = call.fooled(call.logits(moved))
        back = call.x + self.beta * (moved - call.x)
        state = self.closer(call, state, moved, fooled)
        return {**state, "x": tf.where(per_row(fooled, x), back, moved)}

    def get_config(self):
        return {
            **super().get_config(),
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
        }
