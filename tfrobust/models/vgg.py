"""VGG networks for CIFAR-10 with batch normalization: of the robust pruning papers."""

import keras
from keras import layers

from tfrobust.models import blocks


def vgg16_bn(
    classes=10, input_shape=(32, 32, 3), mask=None, width=1.0, normalization=None, name="vgg16_bn"
):
    """Builds VGG-16 with batch normalization: 15,311,818 trainable parameters, logits out.

    conv 3x3: 64 x 2, 128 x 2, 256 x 3, 512 x 3, 512 x 3, a 2x2 max pool behind each of the first
    four groups (there is no fifth) -> flatten -> dense 256 -> dense 256 -> logits; each convolution
    without bias -> normalization -> ReLU -> [mask], each dense layer -> ReLU -> [mask]. At 32 x 32
    the reference's adaptive pool to 2 x 2 is the identity, so it is left out. `count_params` also
    counts 8,448 moving statistics.

    Convolutions start from N(0, 2 / (k^2 filters)), dense layers from N(0, 0.01^2), biases at 0, as
    in the reference's code.

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels), at least 16 x 16.
        mask: None or a factory `mask(name=...)` such as `tr.layers.BetaBernoulliMask`.
        width: Float > 0 that scales all filters and units.
        normalization: None (the network sees pixels in [0, 1] as they are), or (mean, deviation)
            of a fixed normalization in pixel units, one value a channel: a layer in the model.

    Raises:
        ValueError: `width` is not a number > 0, or a `normalization` that cannot be.

    Reference: the code of Sehwag et al., HYDRA (2020), https://arxiv.org/abs/2002.10509; Towards
    compact and robust deep neural networks (2019), https://arxiv.org/abs/1906.06110, says VGG16.

    Example:

    >>> net = vgg16_bn(width=1 / 16)
    >>> net.get_layer("conv13").filters, net.get_layer("flatten").output.shape
    (32, (None, 128))
    """
    classes = blocks.classes_of(classes, input_shape, mask, least=16)
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    inputs, x = blocks.image(input_shape, normalization)
    x, number = _stages(x, stages, mask, width, pools=4)
    x = layers.Flatten(name="flatten")(x)
    (dense,) = blocks.units((256,), width)
    small = keras.initializers.RandomNormal(stddev=0.01)
    for place in (number + 1, number + 2):
        x = layers.Dense(dense, kernel_initializer=small.clone(), name=f"dense{place}")(x)
        x = blocks.gated(x, mask, f"dense{place}")
    logits = layers.Dense(classes, kernel_initializer=small.clone(), name="logits")(x)
    return keras.Model(inputs, logits, name=name)


def vgg_like(
    classes=10,
    input_shape=(32, 32, 3),
    mask=None,
    stages=((64, 2), (128, 2), (256, 3), (512, 3), (512, 2)),
    width=1.0,
    normalization=None,
    name="vgg_like",
):
    """Builds the VGG-like net with 12 convolutions: 12,626,378 trainable parameters, logits out.

    conv 3x3: 64 x 2, 128 x 2, 256 x 3, 512 x 3, 512 x 2, a 2x2 max pool behind each group ->
    flatten -> dense 512 -> logits; each convolution without bias -> normalization -> ReLU ->
    [mask], dense -> ReLU -> [mask].

    Guo et al. say 12 convolutions and 2 dense layers, no more. The usual VGG-like net has 13; which
    one is missing is our choice: the last. `stages=((64, 2), (128, 2), (256, 3), (512, 3),
    (512, 3))` builds all 13, with 14,986,698. `count_params` also counts moving statistics.

    Convolutions start from N(0, 2 / (k^2 filters)), dense layers as Keras has them (Glorot uniform,
    bias 0); the paper does not say how.

    Args:
        classes, input_shape, mask, width, normalization: as for `vgg16_bn`; images of 32 x 32 at
            the least with five stages.
        stages: Pairs (filters, convolutions).

    Reference: Guo et al., Sparse DNNs with improved adversarial robustness (2018),
    https://arxiv.org/abs/1810.09619.

    Example:

    >>> vgg_like(width=1 / 16).get_layer("conv12").filters
    32
    """
    try:
        stages = [blocks.counts("stages", pair, 2) for pair in stages]
    except (TypeError, ValueError):
        raise ValueError(
            f"`stages` must be pairs (filters, convolutions) >= 1. Received: stages={stages!r}"
        ) from None
    classes = blocks.classes_of(classes, input_shape, mask, least=2 ** len(stages))
    inputs, x = blocks.image(input_shape, normalization)
    x, number = _stages(x, stages, mask, width, pools=len(stages))
    x = layers.Flatten(name="flatten")(x)
    (units,) = blocks.units((512,), width)
    x = blocks.gated(layers.Dense(units, name=f"dense{number + 1}")(x), mask, f"dense{number + 1}")
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def _stages(x, stages, mask, width, pools):
    """Groups of normalized convolutions, a pool behind each of the first `pools`."""
    number = 0
    for stage, (filters, count) in enumerate(stages, 1):
        (filters,) = blocks.units((filters,), width)
        for _ in range(count):
            number += 1
            x = blocks.convolution(x, filters, f"conv{number}")
            x = blocks.gated(blocks.normalized(x, f"norm{number}"), mask, f"conv{number}")
        if stage <= pools:
            x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    return x, number
