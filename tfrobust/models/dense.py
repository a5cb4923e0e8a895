"""Networks of dense layers: the linear classifier, and LeNet-300-100."""

import keras
from keras import layers

from tfrobust.models import blocks


def _dense(classes, input_shape, mask, widths, name):
    classes = blocks.classes_of(classes, input_shape, mask)
    inputs, x = blocks.image(input_shape)
    x = layers.Flatten(name="flatten")(x)
    for number, count in enumerate(widths, 1):
        x = layers.Dense(count, name=f"dense{number}")(x)
        x = blocks.gated(x, mask, f"dense{number}")
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def linear(classes=10, input_shape=(28, 28, 1), name="linear"):
    """Builds a linear classifier, flatten -> logits: 7,850 parameters on MNIST.

    There is no hidden unit to mask or to scale. With `classes=1` it is binary: the sign of one
    logit decides. Weights start as Keras's Dense has them (Glorot uniform, bias 0).

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels).

    Example:

    >>> linear().count_params()
    7850
    """
    return _dense(classes, input_shape, None, (), name)


def lenet300_100(
    classes=10,
    input_shape=(28, 28, 1),
    mask=None,
    widths=(300, 100),
    width=1.0,
    name="lenet300_100",
):
    """Builds LeNet-300-100: 266,610 parameters at full width, logits out.

    flatten -> dense 300 -> ReLU -> [mask] -> dense 100 -> ReLU -> [mask] -> logits. Weights start
    as Keras's Dense has them (Glorot uniform, bias 0).

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels).
        mask: None or a factory `mask(name=...)` such as `tr.layers.BetaBernoulliMask`.
        widths: Units of the hidden layers.
        width: Float > 0 that scales `widths`.

    Raises:
        ValueError: `width` is not a number > 0, or `widths` are no integers >= 1.

    Reference: LeCun et al., Gradient-based learning applied to document recognition (1998), with
    ReLU; the net of Guo et al., Sparse DNNs with improved adversarial robustness (2018),
    https://arxiv.org/abs/1810.09619.

    Example:

    >>> lenet300_100().count_params()
    266610
    """
    units = blocks.units(blocks.counts("widths", widths), width)
    return _dense(classes, input_shape, mask, units, name)
