"""Numbers that grow with the iteration: the radius in certified training, MixTrain's weight.

They are Keras schedules of the iteration, so they go wherever a game takes a schedule, and a
resumed training goes on where it was.
"""

import keras
import tensorflow as tf

from tfrobust.contract import nonnegative, whole
from tfrobust.training.numbers import Schedule


@keras.saving.register_keras_serializable(package="tfrobust")
class Ramp(Schedule):
    """From `initial` to `final` in `length` iterations, after `begin` of them; then it stays.

    Linear, or with `smooth` a quartic in the first quarter and linear from there, value and slope
    continuous where they meet: with d = length / 4 and a = (final - initial) / (4 d^3 (3 d) + d^4),
    initial + a t^4 for t < d, then initial + a d^4 + 4 a d^3 (t - d).

    Args:
        final: Float >= 0.
        length: Integer >= 1, iterations of the ramp.
        begin: Integer >= 0, iterations at `initial` before it.
        initial: Float >= 0.
        smooth: Bool.
        every: Integer >= 1; the value moves at multiples of it only (steps per epoch: a staircase
            of epochs).

    Reference: the smoothed schedule of Xu et al. (2020), https://arxiv.org/abs/2002.12920.

    Example: the radius of interval bound propagation on MNIST (Gowal et al., 2018).

    >>> epsilon = Ramp(0.33, length=10_000, begin=2_000)
    >>> [round(float(epsilon(step)), 4) for step in (0, 2_000, 7_000, 12_000, 60_000)]
    [0.0, 0.0, 0.165, 0.33, 0.33]
    """

    def __init__(self, final, length, begin=0, initial=0.0, smooth=False, every=1):
        self.final, self.initial = nonnegative("final", final), nonnegative("initial", initial)
        self.length, self.begin = whole("length", length, 1), whole("begin", begin, 0)
        self.smooth, self.every = bool(smooth), whole("every", every, 1)

    def __call__(self, step):
        step = tf.cast(step, tf.int64) // self.every * self.every
        t = tf.cast(step - self.begin, tf.float32) / self.length
        t = tf.clip_by_value(t, 0.0, 1.0)
        if self.smooth:
            a, d = 1.0 / (0.75 * 4 * 0.25**3 + 0.25**4), 0.25
            t = tf.where(t < d, a * t**4, a * d**4 + 4 * a * d**3 * (t - d))
        return self.initial + (self.final - self.initial) * t

    def get_config(self):
        return {
            "final": self.final, "length": self.length, "begin": self.begin,
            "initial": self.initial, "smooth": self.smooth, "every": self.every,
        }  # fmt: skip


@keras.saving.register_keras_serializable(package="tfrobust")
class Growth(Schedule):
    """min(limit, initial * factor^floor(max(step - begin, 0) / every)).

    MixTrain's weight of the verified loss grows by 2.5 every five epochs once the radius is full.

    Args:
        initial: Float >= 0.
        factor: Float >= 0.
        every: Integer >= 1, iterations between two steps of growth.
        begin: Integer >= 0, iterations at `initial` before the first interval.
        limit: Float >= 0.

    Example:

    >>> weight = Growth(0.1, 2.5, every=5, begin=10, limit=0.5)
    >>> [round(float(weight(step)), 3) for step in (0, 14, 15, 20)]
    [0.1, 0.1, 0.25, 0.5]
    """

    def __init__(self, initial, factor, every, begin=0, limit=50.0):
        self.initial, self.factor = nonnegative("initial", initial), nonnegative("factor", factor)
        self.limit = nonnegative("limit", limit)
        self.every, self.begin = whole("every", every, 1), whole("begin", begin, 0)

    def __call__(self, step):
        turns = tf.maximum(tf.cast(step, tf.int64) - self.begin, 0) // self.every
        return tf.minimum(self.initial * self.factor ** tf.cast(turns, tf.float32), self.limit)

    def get_config(self):
        return {
            "initial": self.initial, "factor": self.factor, "every": self.every,
            "begin": self.begin, "limit": self.limit,
        }  # fmt: skip
