"""Symbolic intervals: linear functions of the image carried forward, for small nets.

Every value is a centre plus a sum of generators, each times a number in [-1, 1]: one for each
pixel (the numbers of an L2 or L1 ball are in the ball and in its box) and one for each bent neuron,
whose result lies between two parallel lines. The bounds are those of full CROWN with parallel
slopes (Fast-Lin), computed another way: tests compare the two.

Reference: Wang et al. (2018), Efficient formal safety analysis of neural networks,
https://arxiv.org/abs/1809.08098.
"""

import math

import tensorflow as tf

from tfrobust import losses
from tfrobust.bounds.region import DUALS, Region
from tfrobust.bounds.rule import Box

LIMIT = 2**22  # floats of one layer's generators, for one image


def width(program):
    """Floats that the generators of one image take in the widest layer, None if not known."""
    if program.size is None:
        return None
    errors = sum(
        math.prod(program.shapes[n])
        for n, (rule, _) in enumerate(program.steps, 1)
        if not rule.affine
    )
    return (math.prod(program.shapes[0]) + errors) * program.size


def margins(program, region, y):
    """Lower bounds of z_y - z_k by symbolic intervals: `(batch, classes)`, 0 at k = y.

    Args:
        program: `Program` of a small net: `width(program)` at most `LIMIT`.
        region: `Region`.
        y: Labels, integers or one-hot rows.
    """
    region = Region.of(region)
    values, pixels = _start(region)
    boxes, total = {0: region.box}, pixels
    needed = program.needed([program.output])
    for number, (rule, sources) in enumerate(program.steps, 1):
        if number not in needed:
            continue
        parts = [values[s] for s in sources]
        boxes[number] = rule.interval(*(boxes[s] for s in sources))
        if rule.affine:
            values[number] = _affine(rule, parts)
        else:
            # Each bent step has numbers of its own, also where branches run side by side.
            values[number] = _bent(rule, parts, [boxes[s] for s in sources], total)
            total = values[number][1].shape[1]
        if number in program.bent:
            boxes[number] = boxes[number].meet(_box(values[number], pixels, region))
    centre, generators = values[program.output]
    if program.outputs == 1:
        centre = tf.concat([tf.zeros_like(centre), centre], -1)
        generators = tf.concat([tf.zeros_like(generators), generators], -1)
    y = losses.as_labels(y, program.classes)
    own = tf.gather(centre, y, batch_dims=1)[:, None]
    mine = tf.gather(generators, y, axis=2, batch_dims=1)[..., None]
    return _least(own - centre, mine - generators, pixels, region)


def _start(region):
    """({0: (centre, generators)}, number of pixels)."""
    box = region.box
    pixels = math.prod(box.lower.shape[1:])
    batch = tf.shape(box.lower)[0]
    if region.norm is None:
        centre, scale = box.centre, tf.reshape(box.radius, (batch, pixels))
    else:
        centre, scale = region.image, tf.ones((batch, pixels))
    generators = tf.reshape(tf.linalg.diag(scale), (batch, pixels, *box.lower.shape[1:]))
    return {0: (centre, generators)}, pixels


def _level(parts, count=None):
    """Generators of several values, the shorter ones with zeros for neurons that came later."""
    most = count or max(g.shape[1] for _, g in parts)
    return [
        tf.pad(g, [[0, 0], [0, most - g.shape[1]]] + [[0, 0]] * (g.shape.rank - 2))
        for _, g in parts
    ]


def _affine(rule, parts):
    generators = _level(parts)
    count = generators[0].shape[1]
    flat = [tf.reshape(g, (-1, *g.shape[2:])) for g in generators]
    moved = rule(*flat) - rule(*(tf.zeros_like(g[:1]) for g in flat))
    return rule(*(c for c, _ in parts)), tf.reshape(moved, (-1, count, *moved.shape[1:]))


def _bent(rule, parts, boxes, count):
    slope, lower, upper = rule.parallel(*boxes)
    centre, error = 0.5 * (lower + upper), 0.5 * (upper - lower)
    shape, size = error.shape[1:], math.prod(error.shape[1:])
    own = tf.reshape(tf.linalg.diag(tf.reshape(error, (-1, size))), (-1, size, *shape))
    if slope is None:
        generators = tf.zeros((tf.shape(error)[0], count, *shape))
    else:
        ((middle, _),), (generators,) = parts, _level(parts, count)
        centre, generators = slope * middle + centre, slope[:, None] * generators
    return centre, tf.concat([generators, own], 1)


def _least(centre, generators, pixels, region):
    """The least value of centre + generators times what they may be multiplied by."""
    first = generators[:, :pixels]
    errors = tf.reduce_sum(tf.abs(generators[:, pixels:]), 1)
    if region.norm is None:
        return centre - tf.reduce_sum(tf.abs(first), 1) - errors
    order = (0, *range(2, first.shape.rank), 1)
    ball = region.epsilon * DUALS[region.norm](tf.transpose(first, order))
    shape = (-1, pixels, *[1] * (first.shape.rank - 2))
    shift, reach = (
        tf.reshape(v, shape) for v in (region.box.centre - region.image, region.box.radius)
    )
    box = tf.reduce_sum(first * shift - tf.abs(first) * reach, 1)
    return centre + tf.maximum(-ball, box) - errors


def _box(value, pixels, region):
    centre, generators = value
    upper = -_least(-centre, -generators, pixels, region)
    return Box(_least(centre, generators, pixels, region), upper)
