"""Convolutional networks without batch normalization: those of verification, and ALL-CNN."""

import keras
from keras import layers

from tfrobust.models import blocks


def cifar_large(
    classes=10,
    input_shape=(32, 32, 3),
    mask=None,
    width=1.0,
    normalization=None,
    name="cifar_large",
):
    """Builds the large network of verifiable training: 2,466,858 parameters, logits out.

    conv 3x3-32, 4x4-32 / 2, 3x3-64, 4x4-64 / 2 -> flatten -> dense 512 -> dense 512 -> logits,
    ReLU -> [mask] behind each. No normalization and no pooling, so bounds stay tight. With
    `input_shape=(28, 28, 1)` it is the large network for MNIST, 1,974,762 parameters.

    Convolutions start from N(0, 2 / (k^2 filters)) as in Wong and Kolter's code; dense layers as
    Keras has them (Glorot uniform); biases are 0.

    Args:
        classes: Integer, number of logits.
        input_shape: Tuple (height, width, channels).
        mask: None or a factory `mask(name=...)` such as `tr.layers.BetaBernoulliMask`.
        width: Float > 0 that scales all filters and units.
        normalization: None (the network sees pixels in [0, 1] as they are), or (mean, deviation)
            of a fixed normalization in pixel units, one value a channel: a layer in the model.

    Raises:
        ValueError: `width` is not a number > 0, or a `normalization` that cannot be.

    Reference: Wong et al., Scaling provable adversarial defenses (2018),
    https://arxiv.org/abs/1805.12514.

    Example:

    >>> cifar_large().count_params(), cifar_large(input_shape=(28, 28, 1)).count_params()
    (2466858, 1974762)
    """
    classes = blocks.classes_of(classes, input_shape, mask)
    narrow, wide, dense = blocks.units((32, 64, 512), width)
    inputs, x = blocks.image(input_shape, normalization)
    sizes = ((narrow, 3, 1), (narrow, 4, 2), (wide, 3, 1), (wide, 4, 2))
    for number, (filters, size, strides) in enumerate(sizes, 1):
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            kernel_initializer=keras.initializers.VarianceScaling(**blocks.HE_OUT),
            name=f"conv{number}",
        )(x)
        x = blocks.gated(x, mask, f"conv{number}")
    x = layers.Flatten(name="flatten")(x)
    for number in (5, 6):
        x = layers.Dense(dense, name=f"dense{number}")(x)
        x = blocks.gated(x, mask, f"dense{number}")
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def cnn_small(
    classes=10, input_shape=(28, 28, 1), mask=None, width=1.0, normalization=None, name="cnn_small"
):
    """Builds the small network of verifiable training: 166,406 parameters, logits out.

    conv 4x4-16 / 2, 4x4-32 / 2 -> flatten -> dense 100 -> logits, ReLU -> [mask] behind each.

    Args:
        classes, input_shape, mask, width, normalization: as for `cifar_large`.

    Reference: Wong and Kolter, Provable defenses against adversarial examples via the convex outer
    adversarial polytope (2018), https://arxiv.org/abs/1711.00851.

    Example:

    >>> cnn_small().count_params(), cnn_small(input_shape=(32, 32, 3)).count_params()
    (166406, 214918)
    """
    classes = blocks.classes_of(classes, input_shape, mask)
    first, second, dense = blocks.units((16, 32, 100), width)
    inputs, x = blocks.image(input_shape, normalization)
    for number, filters in enumerate((first, second), 1):
        x = layers.Conv2D(
            filters,
            4,
            2,
            padding="same",
            kernel_initializer=keras.initializers.VarianceScaling(**blocks.HE_OUT),
            name=f"conv{number}",
        )(x)
        x = blocks.gated(x, mask, f"conv{number}")
    x = layers.Dense(dense, name="dense3")(layers.Flatten(name="flatten")(x))
    x = blocks.gated(x, mask, "dense3")
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def all_cnn(
    classes=10, input_shape=(32, 32, 3), mask=None, width=1.0, normalization=None, name="all_cnn"
):
    """Builds ALL-CNN-C: 1,369,738 parameters, convolutions only, logits out.

    conv 3x3: 96, 96, 96 / 2, 192, 192, 192 / 2, 192 (valid) -> conv 1x1: 192, `classes` -> global
    average; ReLU behind each convolution, the last one too, so that logits are >= 0. [mask] behind
    each ReLU but the last. The paper's dropout is left out: bounds and pruning want none.

    Convolutions start from N(0, 2 / (k^2 filters)), biases at 0; the paper does not say how.

    Args:
        classes, input_shape, mask, width, normalization: as for `cifar_large`; images of 9 x 9 at
            the least.

    Reference: Springenberg et al., Striving for simplicity (2014), https://arxiv.org/abs/1412.6806.

    Example:

    >>> all_cnn().count_params()
    1369738
    """
    classes = blocks.classes_of(classes, input_shape, mask, least=9)
    narrow, wide = blocks.units((96, 192), width)
    inputs, x = blocks.image(input_shape, normalization)
    sizes = [(narrow, 3, 1, "same"), (narrow, 3, 1, "same"), (narrow, 3, 2, "same")]
    sizes += [(wide, 3, 1, "same"), (wide, 3, 1, "same"), (wide, 3, 2, "same")]
    sizes += [(wide, 3, 1, "valid"), (wide, 1, 1, "valid"), (classes, 1, 1, "valid")]
    for number, (filters, size, strides, padding) in enumerate(sizes, 1):
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding=padding,
            kernel_initializer=keras.initializers.VarianceScaling(**blocks.HE_OUT),
            name=f"conv{number}",
        )(x)
        x = blocks.gated(x, mask if number < len(sizes) else None, f"conv{number}")
    return keras.Model(inputs, layers.GlobalAveragePooling2D(name="logits")(x), name=name)
