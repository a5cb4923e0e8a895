"""Residual networks for CIFAR-10: ResNet-32 with shortcuts without parameters, Wide ResNet-28."""

import keras
from keras import layers
from keras.src.ops.numpy import Pad

from tfrobust.contract import is_number, whole
from tfrobust.models import blocks


def resnet32(
    classes=10,
    input_shape=(32, 32, 3),
    mask=None,
    blocks_per_stage=5,
    width=1.0,
    normalization=None,
    name="resnet32",
):
    """Builds ResNet-32: 464,154 trainable parameters, 31 convolutions and a dense layer, logits
    out.

    conv 3x3-16, then three stages of five blocks with 16, 32 and 64 filters, the second and third
    from stride 2, then global average -> logits. A block: conv -> normalization -> ReLU -> [mask]
    -> conv -> normalization, + shortcut, ReLU. No convolution has a bias. Where the shape changes
    the shortcut has no parameters: every second pixel (an average pool of size 1), zeros for the
    new channels behind the old ones. Masks stand inside of blocks; the residual stream has none.
    `count_params` also counts 2,272 moving statistics.

    SAME strided convolutions of Keras look half a step further right and down than the reference's
    padding of 1; add your own ZeroPadding2D to load its weights.

    Convolutions start from N(0, 2 / (k^2 filters)), the dense layer as Keras has it.

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels).
        mask: None or a factory `mask(name=...)` such as `tr.layers.BetaBernoulliMask`.
        blocks_per_stage: Integer >= 1; n gives depth 6 n + 2.
        width: Float > 0 that scales all filters.
        normalization: None (the network sees pixels in [0, 1] as they are), or (mean, deviation)
            of a fixed normalization in pixel units, one value a channel: a layer in the model.

    Raises:
        ValueError: `width` is not a number > 0, `blocks_per_stage` below 1, or a `normalization`
            that cannot be.

    Reference: He et al., Deep residual learning for image recognition (2015), section 4.2, option
    A, https://arxiv.org/abs/1512.03385.

    Example:

    >>> sum(v.shape.num_elements() for v in resnet32().trainable_variables)
    464154
    """
    classes = blocks.classes_of(classes, input_shape, mask)
    blocks_per_stage = whole("blocks_per_stage", blocks_per_stage, 1)
    widths = blocks.units((16, 32, 64), width)
    inputs, x = blocks.image(input_shape, normalization)
    x = blocks.normalized(blocks.convolution(x, widths[0], "stem"), "norm_stem")
    x = blocks.gated(x, None, "stem")
    for stage, filters in enumerate(widths, 1):
        for number in range(1, blocks_per_stage + 1):
            block, strides = f"{stage}_{number}", 2 if stage > 1 and number == 1 else 1
            y = blocks.convolution(x, filters, f"conv{block}a", strides=strides)
            y = blocks.gated(blocks.normalized(y, f"norm{block}a"), mask, f"conv{block}a")
            y = blocks.convolution(y, filters, f"conv{block}b")
            y = blocks.normalized(y, f"norm{block}b")
            x = layers.Add(name=f"add{block}")([_shortcut(x, filters, strides, block), y])
            x = blocks.gated(x, None, f"add{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def _shortcut(x, filters, strides, block):
    """Every second pixel, and zeros behind the channels that are there."""
    if strides > 1:
        x = layers.AveragePooling2D(1, strides, name=f"subsample{block}")(x)
    more = filters - x.shape[-1]
    if more > 0:
        # The operation of keras.ops.pad, with a name of its own.
        x = Pad([[0, 0], [0, 0], [0, 0], [0, more]], name=f"zeros{block}")(x)
    return x


def wide_resnet28(
    classes=10,
    input_shape=(32, 32, 3),
    mask=None,
    widen=5,
    blocks_per_stage=4,
    width=1.0,
    normalization=None,
    name="wide_resnet28",
):
    """Builds a Wide ResNet of depth 28: 9,132,634 trainable parameters at `widen=5`, logits out.

    conv 3x3-16, then three stages of four blocks with 16, 32 and 64 times `widen` filters, the
    second and third from stride 2, then normalization -> ReLU -> [mask] -> average -> logits. A
    block: normalization -> ReLU -> [mask] -> conv -> normalization -> ReLU -> [mask] -> conv,
    + shortcut. Where the shape changes the shortcut is a 1x1 convolution that starts behind the
    block's first ReLU (and mask), else the block's input itself. No convolution has a bias, and
    there is no dropout.

    Convolutions start from N(0, 2 / (k^2 filters)), the dense layer as Keras has it.

    Args:
        classes, input_shape, mask, normalization: as for `resnet32`.
        widen: Number > 0, the widening factor.
        blocks_per_stage: Integer >= 1; n gives depth 6 n + 4.
        width: Float > 0 that scales all filters, those of the first convolution too.

    Raises:
        ValueError: `widen` or `width` is not a number > 0, `blocks_per_stage` below 1, or a
            `normalization` that cannot be.

    Reference: Zagoruyko and Komodakis, Wide residual networks (2016),
    https://arxiv.org/abs/1605.07146; WRN-28-5 of Sehwag et al. (2019),
    https://arxiv.org/abs/1906.06110.

    Example:

    >>> wide_resnet28(width=1 / 16).get_layer("conv3_4b").filters
    20
    """
    classes = blocks.classes_of(classes, input_shape, mask)
    blocks_per_stage = whole("blocks_per_stage", blocks_per_stage, 1)
    if not is_number(widen) or widen <= 0:
        raise ValueError(f"`widen` must be a number > 0. Received: widen={widen!r}")
    first, *widths = blocks.units((16, 16 * widen, 32 * widen, 64 * widen), width)
    inputs, x = blocks.image(input_shape, normalization)
    x = blocks.convolution(x, first, "stem")
    for stage, filters in enumerate(widths, 1):
        for number in range(1, blocks_per_stage + 1):
            block, strides = f"{stage}_{number}", 2 if stage > 1 and number == 1 else 1
            y = blocks.gated(blocks.normalized(x, f"norm{block}a"), mask, f"norm{block}a")
            if number == 1 and (strides > 1 or x.shape[-1] != filters):
                x = blocks.convolution(y, filters, f"shortcut{block}", 1, strides)
            y = blocks.convolution(y, filters, f"conv{block}a", strides=strides)
            y = blocks.gated(blocks.normalized(y, f"norm{block}b"), mask, f"norm{block}b")
            y = blocks.convolution(y, filters, f"conv{block}b")
            x = layers.Add(name=f"add{block}")([x, y])
    x = blocks.gated(blocks.normalized(x, "norm_last"), mask, "norm_last")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)
