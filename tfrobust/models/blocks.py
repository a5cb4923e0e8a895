"""What the networks are put together from: widths, the image, mask slots, normalized convolutions.

Every activation is a layer of its own, so that a mask fits before or behind it, and every layer
has a name.
"""

import keras
import numpy as np
from keras import layers

from tfrobust.contract import is_number, whole

# N(0, 2 / (k^2 filters)): He's variance over the outputs of a convolution.
HE_OUT = {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"}


def counts(name, values, length=None):
    """`values` as a list of integers >= 1, of that length if one is given, or a ValueError."""
    try:
        found = [whole(name, value, 1) for value in values]
        legal = length is None or len(found) == length
    except (TypeError, ValueError):
        legal = False
    if not legal:
        many = "" if length is None else f"{length} "
        raise ValueError(f"`{name}` must hold {many}integers >= 1. Received: {name}={values!r}")
    return found


def classes_of(classes, input_shape, mask, least=1):
    """`classes` as an int, after the arguments that all networks have were checked.

    Raises:
        TypeError: a `mask` that cannot make masks.
        ValueError: `classes` below 1; an `input_shape` that is no shape, or whose images are
            smaller than `least` pixels a side.
    """
    if mask is not None and not callable(mask):
        raise TypeError(
            "`mask` must be None or a factory mask(name=...) such as tr.layers.BetaBernoulliMask. "
            f"Received: mask={mask!r}"
        )
    try:
        shape = [size if size is None else whole("input_shape", size, 1) for size in input_shape]
    except (TypeError, ValueError):
        shape = []
    if not shape or (least > 1 and len(shape) != 3):
        raise ValueError(
            "`input_shape` must be (height, width, channels). "
            f"Received: input_shape={input_shape!r}"
        )
    if any(size is not None and size < least for size in shape[:2]):
        raise ValueError(
            f"`input_shape` must be {least} x {least} pixels at the least, or nothing is left "
            f"behind the pools. Received: input_shape={input_shape!r}"
        )
    return whole("classes", classes, 1)


def units(widths, width):
    """`widths` scaled by `width`, at least 1 each.

    >>> units((20, 50, 500), 0.1)
    [2, 5, 50]
    """
    if not is_number(width) or width <= 0:
        raise ValueError(f"`width` must be a number > 0. Received: width={width!r}")
    return [max(1, round(u * width)) for u in widths]


def image(input_shape, normalization=None):
    """`(inputs, x)`: the input layer, and the image behind a fixed normalization, if one is asked.

    Args:
        input_shape: Tuple (height, width, channels).
        normalization: None, or a pair (mean, standard deviation) in pixel units, one value or one
            a channel each.
    """
    inputs = keras.Input(input_shape, name="image")
    if normalization is None:
        return inputs, inputs
    try:
        mean, deviation = (
            np.broadcast_to(np.asarray(values, float), input_shape[-1:]) for values in normalization
        )
        legal = np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()
    except (TypeError, ValueError):
        legal = False
    if not legal:
        raise ValueError(
            "`normalization` must be None or (mean, deviation > 0), one value or one a channel "
            f"each. Received: normalization={normalization!r}"
        )
    scale, offset = (1 / deviation).tolist(), (-mean / deviation).tolist()
    return inputs, layers.Rescaling(scale, offset=offset, name="normalization")(inputs)


def masked(x, mask, name):
    """`mask(name=...)` on `x`, nothing where `mask` is None."""
    return x if mask is None else mask(name=name)(x)


def activated(x, mask, name, activation="relu"):
    """[mask] -> activation: the slot of the ANP-VS paper, before the nonlinearity."""
    x = masked(x, mask, f"mask_{name}")
    return layers.Activation(activation, name=f"{activation}_{name}")(x)


def gated(x, mask, name):
    """ReLU -> [mask]: in front of the next reader, so that a closed gate is a channel to cut."""
    return masked(layers.Activation("relu", name=f"relu_{name}")(x), mask, f"mask_{name}")


def normalized(x, name):
    """Batch normalization with a momentum of 0.9 and an epsilon of 1e-5."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def convolution(x, filters, name, size=3, strides=1, initializer=None):
    """A SAME convolution without bias, for a normalization behind or in front of it."""
    initializer = keras.initializers.VarianceScaling(**(initializer or HE_OUT))
    return layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer,
        name=name,
    )(x)
