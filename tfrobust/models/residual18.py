"""ResNet-18 as adversarial feature desensitization uses it, for CIFAR and for MNIST."""

import keras
from keras import layers

from tfrobust.models import blocks

# input shape, filters of the stem, its stride, filters and strides of the four stages
VERSIONS = {
    "cifar": ((32, 32, 3), 64, 1, (64, 128, 256, 512), (1, 2, 2, 2)),
    "mnist": ((28, 28, 1), 16, 2, (16, 32, 48, 64), (2, 2, 2, 2)),
}


def resnet18(
    classes=10,
    input_shape=None,
    mask=None,
    version="cifar",
    width=1.0,
    normalization=None,
    name="resnet18",
):
    """Builds ResNet-18 with a small stem: 11,173,962 trainable parameters, 17 convolutions (and
    those of the shortcuts) and a dense layer, logits out.

    conv 3x3, then four stages of two blocks, then global average ("pool") -> logits. A block: conv
    -> normalization -> ReLU -> [mask] -> conv -> normalization, + shortcut, ReLU. Where the shape
    changes the shortcut is a 1x1 convolution with a normalization. No convolution has a bias.
    Masks stand inside of blocks; the residual stream has none.

    version="cifar": 64, 128, 256 and 512 filters from a map of 32 x 32 that is halved by the last
    three stages. version="mnist": a stem of 16 filters with stride 2, 16, 32, 48 and 64 filters,
    stride 2 in every stage, 263,546 parameters.

    SAME strided convolutions of Keras look half a step further right and down than the reference's
    padding of 1. Convolutions start from N(0, 2 / (k^2 filters)), the dense layer as Keras has it.

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels), default that of the version.
        mask: None or a factory `mask(name=...)` such as `tr.layers.BetaBernoulliMask`.
        version: "cifar" or "mnist".
        width: Float > 0 that scales all filters.
        normalization: None, or (mean, deviation) in pixel units: a layer in the model.

    Raises:
        ValueError: an unknown `version`, `width` not a number > 0, a `normalization` that cannot
            be.

    Reference: He et al., Deep residual learning for image recognition (2015),
    https://arxiv.org/abs/1512.03385; Bashivan et al., Adversarial feature desensitization (2021),
    https://arxiv.org/abs/2006.04621.

    Example:

    >>> net = resnet18(version="mnist")
    >>> net.get_layer("pool").output.shape, net.output_shape
    ((None, 64), (None, 10))
    """
    if version not in VERSIONS:
        raise ValueError(
            f"`version` must be one of {list(VERSIONS)}. Received: version={version!r}"
        )
    shape, stem, stride, stages, steps = VERSIONS[version]
    input_shape = shape if input_shape is None else input_shape
    classes = blocks.classes_of(classes, input_shape, mask)
    stem, *widths = blocks.units((stem, *stages), width)
    inputs, x = blocks.image(input_shape, normalization)
    x = blocks.normalized(blocks.convolution(x, stem, "stem", strides=stride), "norm_stem")
    x = blocks.gated(x, None, "stem")
    for stage, (filters, step) in enumerate(zip(widths, steps, strict=True), 1):
        for number in (1, 2):
            block, strides = f"{stage}_{number}", step if number == 1 else 1
            y = blocks.convolution(x, filters, f"conv{block}a", strides=strides)
            y = blocks.gated(blocks.normalized(y, f"norm{block}a"), mask, f"conv{block}a")
            y = blocks.convolution(y, filters, f"conv{block}b")
            y = blocks.normalized(y, f"norm{block}b")
            if strides > 1 or x.shape[-1] != filters:
                x = blocks.convolution(x, filters, f"shortcut{block}", 1, strides)
                x = blocks.normalized(x, f"norm_shortcut{block}")
            x = layers.Add(name=f"add{block}")([x, y])
            x = blocks.gated(x, None, f"add{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)
