"""Fixed batch sizes: compiled functions see 16, 32, 64 or up to 256 rows and nothing else.

One graph per size is enough for any number of rows, and a row's result has the same bits in
whichever company it comes (within one size: another one may change a convolution's last bits).

>>> import tensorflow as tf
>>> apply(lambda x, real: 2 * x, np.arange(5.0)).tolist()
[0.0, 2.0, 4.0, 6.0, 8.0]
"""

import contextlib

import numpy as np
import tensorflow as tf

SIZES = (16, 32, 64, 96, 128, 160, 192, 224, 256)


def size(count):
    """The smallest fixed batch size that holds `count` rows, at most 256.

    >>> size(3), size(17), size(999)
    (16, 32, 256)
    """
    return next((s for s in SIZES if s >= count), SIZES[-1])


def apply(function, *arrays, most=None):
    """Calls `function(*rows, real)` on padded chunks and joins the rows of its results.

    Args:
        function: Takes tensors of equal first axis and a bool tensor that is False for padding,
            which repeats the first row; returns one tensor with that first axis.
        arrays: Arrays of equal first axis n >= 1.
        most: Rows that one call may see, where 256 take too much memory (never fewer than 16).

    Returns:
        NumPy array with first axis n.
    """
    parts = []
    with expected():
        step = max(s for s in SIZES if s <= max(most or SIZES[-1], SIZES[0]))
        for start in range(0, len(arrays[0]), step):
            count = min(step, len(arrays[0]) - start)
            place = np.arange(size(count))
            real = place < count
            rows = start + np.where(real, place, 0)
            out = function(*(tf.constant(a[rows]) for a in arrays), tf.constant(real))
            parts.append(out.numpy()[:count])
    return np.concatenate(parts)


@contextlib.contextmanager
def expected():
    """Keeps TensorFlow's advice about retracing away: one trace for each fixed size is meant."""

    def wanted(record):
        return "triggered tf.function retracing" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
