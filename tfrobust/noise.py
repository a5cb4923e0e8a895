"""Counter-based random numbers: every draw is a pure function of (seed, stream, example, position).

Attacks and games take their randomness from here, so a result does not depend on the batch size,
on the order of the examples or on which of them were dropped. An integer hash costs a fifth of
`tf.vectorized_map` over `tf.random.stateless_uniform`.

>>> k = keys(seed=0, stream="pgd", index=[5, 7])
>>> a = uniform(k, (3,))
>>> b = uniform(keys(seed=0, stream="pgd", index=[7]), (3,))
>>> bool((a[1] == b[0]).numpy().all())
True
"""

import contextlib
import math
import zlib

import numpy as np
import tensorflow as tf

_GOLDEN = 0x9E3779B9


def _mix(h):
    """Integer finaliser "lowbias32" (C. Wellons, 2018), bijective on 32 bits."""
    shift = tf.bitwise.right_shift
    h = tf.bitwise.bitwise_xor(h, shift(h, tf.constant(16, tf.uint32)))
    h = h * tf.constant(0x7FEB352D, tf.uint32)
    h = tf.bitwise.bitwise_xor(h, shift(h, tf.constant(15, tf.uint32)))
    h = h * tf.constant(0x846CA68B, tf.uint32)
    return tf.bitwise.bitwise_xor(h, shift(h, tf.constant(16, tf.uint32)))


def stream_id(stream):
    """A 32-bit integer for the name of a stream (an attack, a layer)."""
    return zlib.crc32(str(stream).encode()) if not isinstance(stream, int) else stream


def fold(key, value):
    """Mixes an integer (tensor or Python) into a key, elementwise."""
    value = tf.cast(value, tf.uint32)
    return _mix(tf.bitwise.bitwise_xor(key, value * tf.constant(_GOLDEN, tf.uint32)) + 1)


def keys(seed, stream, index, run=0):
    """One uint32 key for each example: shape `(batch,)`.

    Args:
        seed: Integer or scalar tensor.
        stream: Name or integer that tells users of the same seed apart.
        index: Integers `(batch,)`, the example's global index.
        run: Integer or scalar tensor, the restart.
    """
    index = tf.convert_to_tensor(index)
    base = fold(tf.constant(stream_id(stream) & 0xFFFFFFFF, tf.uint32), seed)
    return fold(fold(base, run), index)


def uniform(key, shape, low=0.0, high=1.0):
    """Uniform float32 in [low, high): `(batch, *shape)` from keys `(batch,)`."""
    shape = tuple(int(s) for s in shape)
    counter = tf.constant(np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(_GOLDEN))
    bits = _mix(_mix(counter[None, :] + key[:, None]) + key[:, None])
    unit = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24
    unit = tf.reshape(unit, (-1,) + shape)
    return low + unit * (high - low)


def normal(key, shape):
    """Standard normal float32 `(batch, *shape)` (Box and Muller)."""
    radius = tf.sqrt(-2.0 * tf.math.log(1.0 - uniform(fold(key, 1), shape)))
    return radius * tf.cos(2.0 * math.pi * uniform(fold(key, 2), shape))


@contextlib.contextmanager
def apart(model):
    """Lets the layers of `model` draw other numbers on every replica, Keras's Dropout too.

    The states of Keras's seed generators are mirrored, so equal layers would draw equal noise.
    Within this context they differ; before and after it they are the same on all replicas.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        yield
        return
    states = [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
    replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
    shift = tf.stack([tf.zeros_like(replica), replica * 2**20])  # the second number counts draws
    for state in states:
        state.assign(state.value + tf.cast(shift, state.dtype))
    yield
    for state in states:
        state.assign(state.value - tf.cast(shift, state.dtype))
