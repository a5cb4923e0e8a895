"""Linear relaxations taken backward: CROWN, and CROWN-IBP.

    region = Region.around(threat, x)
    lower = backward.margins(program, region, y, "adaptive")                     # CROWN-IBP
    boxes = backward.tightened(program, region, "adaptive")
    lower = backward.margins(program, region, y, "adaptive", boxes)              # full CROWN

A linear function of the logits is replaced, layer by layer, by one of the layer's inputs that is
nowhere above it, down to the image, where its least value on the region is known. Bent layers need
boxes around their inputs: intervals (CROWN-IBP), or bounds of the same kind for each neuron (full
CROWN). Everything is a tensor function, so that it can be differentiated and compiled.

References: Zhang et al. (2018), https://arxiv.org/abs/1811.00866; Zhang et al. (2020), Towards
stable and efficient training of verifiably robust neural networks (CROWN-IBP),
https://arxiv.org/abs/1906.06316.
"""

import math

import tensorflow as tf

from tfrobust import losses
from tfrobust.bounds.region import Region
from tfrobust.bounds.rows import dot
from tfrobust.bounds.rule import Box, largest

MEMORY = 2**24  # floats that the coefficients of one layer may take: 64 MiB


def pull(program, boxes, rows, number, mode):
    """Takes linear functions of one value back to the image.

    Args:
        program: `Program`.
        boxes: {number: `Box`} of what the steps up to `number` read.
        rows: `(batch, functions, ...)`, coefficients of value `number`.
        number: Number of the value.
        mode: One of `lines.SLOPES`.

    Returns:
        `(rows, offset)`: coefficients of the image and constants `(batch, functions)` of functions
        that are nowhere above the given ones.
    """
    return _pulled(program, boxes, rows, number, mode)[:2]


def _pulled(program, boxes, rows, number, mode):
    """`pull`, and the sum of the absolute constants `(batch, functions)`."""
    waiting, offset = {number: rows}, tf.zeros(tf.shape(rows)[:2])
    size = offset
    for place in range(number, 0, -1):
        if place in waiting:
            rule, sources = program.steps[place - 1]
            parts, constant = rule.back(waiting.pop(place), [boxes[s] for s in sources], mode)
            offset, size = offset + constant, size + tf.abs(constant)
            for source, part in zip(sources, parts, strict=True):
                if part is not None:
                    waiting[source] = waiting[source] + part if source in waiting else part
    shape = tf.concat([tf.shape(rows)[:2], tf.shape(boxes[0].lower)[1:]], 0)
    return waiting.get(0, tf.zeros(shape)), offset, size


def _least(program, region, boxes, rows, number, mode):
    """The least values on the region, and how much was added up: both `(batch, functions)`."""
    rows, offset, size = _pulled(program, boxes, rows, number, mode)
    return region.least(rows) + offset, size + dot(tf.abs(rows), region.box.size)


def margins(program, region, y, mode, boxes=None, memory=None):
    """Lower bounds of z_y - z_k for all images in `region`: `(batch, classes)`, 0 at k = y.

    The cost is that of classes - 1 gradients; their comparison of logits is part of the function,
    so whatever is affine behind the last box is folded.

    Args:
        program: `Program`.
        region: `Region`.
        y: Labels, integers or one-hot rows.
        mode: One of `lines.SLOPES`.
        boxes: {number: `Box`} of `program.bent`, default intervals.
        memory: Floats that one layer's coefficients may take; classes are then taken in turn where
            a batch of all of them takes more. None: all at once (what training wants).
    """
    return sized(program, region, y, mode, boxes, memory)[0]


def sized(program, region, y, mode, boxes=None, memory=None):
    """`margins`, and the largest |row| |x| + sum |constant| of their functions, `(batch,)`.

    These terms may cancel; `Program.rounding` allows for what float32 loses then.
    """
    region = Region.of(region)
    if boxes is None:
        boxes = program.boxes(region, [program.output])
    y, classes = losses.as_labels(y, program.classes), program.classes
    pair = tf.eye(classes)[:, classes - program.outputs :]  # a single logit z is the pair (0, z)
    others = (y[:, None] + 1 + tf.range(classes - 1)) % classes

    def least(chosen):
        rows = tf.gather(pair, y)[:, None] - tf.gather(pair, chosen)
        return _least(program, region, boxes, rows, program.output, mode)

    if memory is None:  # apart, so that a graph of `margins` alone leaves the sizes out
        lower, size = least(others)
    else:
        count = _functions(program, y, memory)
        both = _in_turn(lambda some: tf.stack(least(some), -1), others, count, like=(2,))
        lower, size = tf.unstack(both, axis=-1)
    lower = tf.concat([lower, tf.zeros_like(lower[:, :1])], 1)
    lower = tf.gather(lower, (tf.range(classes) - y[:, None] - 1) % classes, batch_dims=1)
    return lower, largest(size)


def tightened(program, region, mode, memory=MEMORY, sizes=None):
    """Boxes of all values, those of `program.bent` by a backward pass for each loose neuron.

    Neurons whose relaxation no tighter box would change (a ReLU that is always on or off) are left
    out; the others are taken a few at a time.

    Args:
        program, region, mode: as for `margins`.
        memory: Floats that one layer's coefficients may take.
        sizes: Optional list to add the tensors `(batch,)` of `sized` to, one for each value.

    Returns:
        {number: `Box`}, nowhere wider than the intervals.
    """
    region = Region.of(region)
    readers = {
        number: [
            (rule, sources)
            for rule, sources in program.steps
            if number in sources and not rule.affine
        ]
        for number in program.bent
    }

    def tighten(number, boxes):
        box = boxes[number]
        if number in program.exact or number == 0:
            return box
        loose = tf.zeros(tf.shape(box.lower), bool)
        for rule, sources in readers[number]:
            if all(s in boxes for s in sources):
                parts = rule.loose(*(boxes[s] for s in sources))
                loose |= parts[sources.index(number)]
            else:  # the other input is yet to come
                loose |= box.lower < box.upper
        tight, size = _neurons(program, region, boxes, number, loose, mode, memory)
        if sizes is not None:
            sizes.append(size)
        return tight

    return program.boxes(region, [program.output], tighten)


def _neurons(program, region, boxes, number, loose, mode, memory):
    """The box of one value, tightened where `loose`, and the size of what it was made of."""
    box = boxes[number]
    shape = tf.shape(box.lower)
    size = tf.reduce_prod(shape[1:])
    loose = tf.reshape(loose, (shape[0], size))
    most = tf.maximum(1, tf.reduce_max(tf.reduce_sum(tf.cast(loose, tf.int32), -1)))
    # The loose ones first, in their order.
    order = tf.argsort(tf.cast(loose, tf.int32), direction="DESCENDING", stable=True)[:, :most]

    def least(chosen):
        one = tf.one_hot(chosen, size)
        one = tf.ensure_shape(
            tf.reshape(one, tf.concat([tf.shape(chosen), shape[1:]], 0)),
            (None, None, *box.lower.shape[1:]),
        )
        found = []
        for sign in (1.0, -1.0):
            end, added = _least(program, region, boxes, sign * one, number, mode)
            found += [sign * end, added]
        return tf.stack(found, -1)

    count = _functions(program, box.lower, memory)
    found = _in_turn(least, order, count, like=(4,))
    batch = tf.repeat(tf.range(shape[0])[:, None], tf.shape(order)[1], 1)
    where = tf.stack([batch, order], -1)
    flat = (tf.reshape(bound, (shape[0], size)) for bound in box)
    ends = [
        tf.reshape(tf.tensor_scatter_nd_update(bound, where, found[..., 2 * end]), shape)
        for end, bound in enumerate(flat)
    ]
    box = Box(*(tf.ensure_shape(end, box.lower.shape) for end in ends))
    return box, largest(found[..., 1::2])


def _functions(program, batch, memory):
    """How many functions of each image fit into `memory` floats."""
    size = program.size or 2**16
    return tf.maximum(1, tf.cast(memory, tf.int32) // (size * tf.shape(batch)[0]))


def _in_turn(function, chosen, count, like=()):
    """`function(chosen)`, `count` columns of `(batch, functions)` at a time."""
    total, batch = tf.shape(chosen)[1], tf.shape(chosen)[0]
    count = tf.maximum(1, tf.minimum(count, total))
    turns = -(-total // count)
    fill = turns * count - total
    padded = tf.concat([chosen, tf.repeat(chosen[:, :1], fill, 1)], 1)
    parts = tf.transpose(tf.reshape(padded, (batch, turns, count)), (1, 0, 2))
    spec = tf.TensorSpec((None, None, *like), tf.float32)
    found = tf.map_fn(function, parts, fn_output_signature=spec, parallel_iterations=1)
    order = (1, 0, 2, *range(3, 3 + len(like)))
    found = tf.reshape(tf.transpose(found, order), (batch, turns * count, *like))
    return found[:, :total]


def cost(program):
    """Gradients of one image that full CROWN may take: two for each neuron that is not exact.

    None where the size of images is not known.
    """
    if program.size is None:
        return None
    bent = [n for n in program.bent if n and n not in program.exact]
    return 2 * sum(math.prod(program.shapes[n]) for n in bent)
