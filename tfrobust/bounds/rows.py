"""Linear functions of a layer's values, one row of coefficients each: `(batch, functions, ...)`.

>>> rows = tf.constant([[[1.0, -2.0]]])                     # x1 - 2 x2
>>> float(dot(rows, tf.constant([[3.0, 1.0]]))[0, 0])
1.0
>>> float(between(rows, tf.constant([[0.0, 0.0]]), tf.constant([[3.0, 1.0]]))[0, 0])
-2.0
"""

import tensorflow as tf


def dot(rows, values):
    """Linear functions `(batch, functions, ...)` of values `(batch or 1, ...)`, for each image."""
    shape = tf.shape(rows)
    rows = tf.reshape(rows, (shape[0], shape[1], -1))
    return tf.matmul(rows, tf.reshape(values, (tf.shape(values)[0], -1, 1)))[..., 0]


def between(rows, lower, upper):
    """The least value of linear functions of what lies between `lower` and `upper`."""
    return dot(tf.nn.relu(rows), lower) + dot(tf.minimum(rows, 0.0), upper)


def pulled(rule, rows, like, at=None):
    """What linear functions of an affine rule's result are as functions of its inputs.

    The map that takes coefficients backward is the gradient of the call, exact for whatever stride,
    padding or broadcasting it has.

    Args:
        rule: An affine `Rule`, or another one that is linearised `at` some values.
        rows: `(batch, functions, ...)`, coefficients of the result.
        like: Tensors `(batch, ...)` of the shapes of the inputs.
        at: Values of the inputs `(batch, ...)`; default 0, and then the constants are true ones.

    Returns:
        `(parts, offset)` as `Rule.back` does; the offset is that of the call at 0.
    """
    shape = tf.shape(rows)
    count = shape[0] * shape[1]
    flat = tf.reshape(rows, tf.concat([[count], shape[2:]], 0))
    if at is None:
        points = [tf.zeros(tf.concat([[count], tf.shape(x)[1:]], 0)) for x in like]
    else:
        points = [tf.repeat(x, shape[1], 0) for x in at]
    points = [tf.ensure_shape(p, (None, *x.shape[1:])) for p, x in zip(points, like, strict=True)]
    with tf.GradientTape() as tape:
        tape.watch(points)
        result = rule(*points)
    parts = tape.gradient(result, points, flat, unconnected_gradients="zero")
    parts = [
        tf.ensure_shape(
            tf.reshape(part, tf.concat([shape[:2], tf.shape(x)[1:]], 0)), (None, None, *x.shape[1:])
        )
        for part, x in zip(parts, like, strict=True)
    ]
    offset = 0.0 if at is not None else dot(rows, rule(*(tf.zeros_like(x[:1]) for x in like)))
    return parts, offset


def summed(rows, value):
    """Sums coefficients over the axes along which a factor was repeated."""
    axes = [
        axis + 1
        for axis, (n, m) in enumerate(zip(value.shape, rows.shape[1:], strict=False))
        if axis and n == 1 and m != 1
    ]
    return tf.reduce_sum(rows, axes, keepdims=True) if axes else rows
