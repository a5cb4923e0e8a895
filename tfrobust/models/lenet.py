"""LeNet-5-Caffe as in the ANP-VS release, and a smaller net for scikit-learn's 8 x 8 digits."""

import keras
from keras import layers

from tfrobust.models import blocks


def lenet5_caffe(
    classes=10,
    input_shape=(28, 28, 1),
    mask=None,
    widths=(20, 50, 500),
    width=1.0,
    conv_activation="relu",
    flatten_mask=True,
    name="lenet5_caffe",
):
    """Builds LeNet-5-Caffe: 431,080 parameters at full width, logits out.

    conv 5x5 -> [mask] -> ReLU -> pool -> conv 5x5 -> [mask] -> ReLU -> pool -> flatten -> [mask]
    -> dense -> ReLU -> [mask] -> logits; the mask slots are those of Madaan et al. (2020).

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels), at least 16 x 16.
        mask: None or a factory `mask(name=...)` such as `tr.layers.BetaBernoulliMask`.
        widths: Filters of the two convolutions and units of the dense layer.
        width: Float > 0 that scales `widths`.
        conv_activation: Activation after the convolutions ("linear" as in the original Caffe net).
        flatten_mask: Put the third mask on the flattened map (the paper's 800 units).

    Example:

    >>> lenet5_caffe().count_params()
    431080
    """
    classes = blocks.classes_of(classes, input_shape, mask, least=16)
    first, second, dense = blocks.units(blocks.counts("widths", widths, 3), width)
    inputs = x = keras.Input(input_shape, name="image")
    for number, filters in enumerate((first, second), 1):
        x = layers.Conv2D(filters, 5, name=f"conv{number}")(x)
        x = blocks.activated(x, mask, f"conv{number}", conv_activation)
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
    x = layers.Flatten(name="flatten")(x)
    if flatten_mask:
        x = blocks.masked(x, mask, "mask_flatten")
    x = layers.Dense(dense, name="dense3")(x)
    x = layers.Activation("relu", name="relu_dense3")(x)
    x = blocks.masked(x, mask, "mask_dense3")
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def digits_net(
    classes=10, input_shape=(8, 8, 1), mask=None, widths=(16, 32, 64), width=1.0, name="digits_net"
):
    """Builds a small convolutional net for 8 x 8 images, logits out.

    conv 3x3 -> [mask] -> ReLU -> conv 3x3 -> [mask] -> ReLU -> pool -> flatten -> dense -> ReLU ->
    [mask] -> logits.

    Args:
        classes, input_shape, mask, widths, width: as for `lenet5_caffe`.

    Example:

    >>> digits_net().output_shape
    (None, 10)
    """
    classes = blocks.classes_of(classes, input_shape, mask, least=2)
    first, second, dense = blocks.units(blocks.counts("widths", widths, 3), width)
    inputs = x = keras.Input(input_shape, name="image")
    for number, filters in enumerate((first, second), 1):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{number}")(x)
        x = blocks.activated(x, mask, f"conv{number}")
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(dense, name="dense3")(x)
    x = layers.Activation("relu", name="relu_dense3")(x)
    x = blocks.masked(x, mask, "mask_dense3")
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)
