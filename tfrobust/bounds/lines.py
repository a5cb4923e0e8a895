"""Straight lines below and above a bent function on an interval.

A function that is convex below some point and concave above it (`bend`: infinite for a convex one,
0 for tanh) lies under its chord where it is convex and over its tangents; where it is concave the
other way round; and where it changes, between the two lines of its least slope through the ends.

How the tangent is chosen has a name:

- "zero": where the function is lowest (for a ReLU the slope 0). The lines are never looser than the
  interval of the function, so that bounds made of them are never looser than interval bounds.
- "adaptive": in the middle (for a ReLU the slope 1 if u > -l, else 0): the least area, usually the
  tightest, but not always.
- "parallel": no tangent but a parallel to the chord (Fast-Lin's lines), which forward bounds need.

References: Zhang et al. (2018), Efficient neural network robustness certification with general
activation functions (CROWN), https://arxiv.org/abs/1811.00866; Weng et al. (2018), Towards fast
computation of certified robustness for ReLU networks (Fast-Lin), https://arxiv.org/abs/1804.09699.
"""

import functools
import math
import typing

import tensorflow as tf

SLOPES = ("zero", "adaptive", "parallel")


class Line(typing.NamedTuple):
    """slope * x + offset, elementwise."""

    slope: tf.Tensor
    offset: tf.Tensor

    def choose(self, condition, other):
        return Line(*(tf.where(condition, a, b) for a, b in zip(self, other, strict=True)))


def constants(lower, upper):
    """A pair of lines of slope 0."""
    return Line(tf.zeros_like(lower), lower), Line(tf.zeros_like(upper), upper)


def lines(function, slope, box, mode, bend, turns=()):
    """The lines `(below, above)` of a function on `box`.

    Args:
        function, slope: Elementwise, the function and its slope (at a kink any between the slopes
            of both sides).
        box: `Box`.
        mode: One of `SLOPES`.
        bend: Where the function turns from convex to concave, a float or a tensor.
        turns: Where it turns from falling to rising or back, if it does.
    """
    lower, upper = box
    values = function(lower), function(upper)
    slopes = slope(lower), slope(upper)
    # Where the slope jumps down at the bend itself, its box is of neither kind.
    convex, concave = (upper < bend) | (bend == math.inf), lower >= bend
    sign = tf.where(convex, 1.0, -1.0)
    flipped = _of_convex(
        lambda x: sign * function(x),
        lambda x: sign * slope(x),
        box,
        [sign * v for v in values],
        [sign * s for s in slopes],
        mode,
        turns,
    )
    below = flipped[0].choose(convex, _negative(flipped[1]))
    above = flipped[1].choose(convex, _negative(flipped[0]))
    least = tf.minimum(*slopes)
    through = [Line(least, v - least * x) for v, x in zip(values, box, strict=True)]
    known = convex | concave
    return below.choose(known, through[0]), above.choose(known, through[1])


def _of_convex(function, slope, box, values, slopes, mode, turns):
    lower, upper = box
    chord = (values[1] - values[0]) / tf.maximum(upper - lower, 1e-8)
    chord = tf.maximum(tf.minimum(chord, tf.maximum(*slopes)), tf.minimum(*slopes))
    # Whatever the slope, a convex function minus a line is largest at an end.
    ends = [v - chord * x for v, x in zip(values, box, strict=True)]
    above = Line(chord, tf.maximum(*ends))
    if mode == "parallel":
        # On each side of any point the tangent of that side's end is a bound.
        apart = slopes[0] - slopes[1]
        meet = values[1] - values[0] + slopes[0] * lower - slopes[1] * upper
        bent = tf.abs(apart) > 1e-12
        meet = tf.where(bent, meet / tf.where(bent, apart, 1.0), lower)
        meet = tf.minimum(tf.maximum(meet, lower), upper)
        least = tf.minimum(
            *(v + s * (meet - x) for v, s, x in zip(values, slopes, box, strict=True))
        )
        return Line(chord, least - chord * meet), above
    if mode == "adaptive":
        point = 0.5 * (lower + upper)
        steepness = slope(point)
    else:
        inner = [tf.minimum(tf.maximum(t, lower), upper) for t in turns]
        point = functools.reduce(
            lambda a, b: tf.where(function(b) < function(a), b, a), [lower, upper, *inner]
        )
        # Level at a minimum inside, never falling from one at the lower end.
        steepness = slope(point)
        steepness = tf.where(point < upper, tf.maximum(steepness, 0.0), steepness)
        steepness = tf.where(point > lower, tf.minimum(steepness, 0.0), steepness)
    return Line(steepness, function(point) - steepness * point), above


def _negative(line):
    return Line(-line.slope, -line.offset)
