"""VGG-16 as ANP-VS has it: masks before the normalization, dropout between convolutions."""

import keras
from keras import layers

from tfrobust import contract
from tfrobust.layers import BetaBernoulliMask
from tfrobust.models import blocks

# Filters of the 13 convolutions, and what follows each: a pool (None) or dropout of this share.
FILTERS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
BEHIND = (0.3, None, 0.4, None, 0.4, 0.4, None, 0.4, 0.4, None, 0.4, 0.4, None)
SLOTS = ("paper", "after_activation")


def vgg16(
    classes=10,
    input_shape=(32, 32, 3),
    mask=None,
    width=1.0,
    slot="paper",
    normalization=None,
    dropout=1.0,
    name="vgg16",
):
    """Builds VGG-16 of the ANP-VS release: 14,991,946 trainable parameters, logits out.

    Thirteen times conv 3x3 -> [mask] -> normalization -> ReLU -> dropout (0.3 or 0.4) or a 2x2 max
    pool, then flatten -> [mask] -> dense 512 -> normalization -> ReLU -> [mask] -> logits. Without
    masks a dropout of 0.5 stands at the two places behind the flatten. The 15 masks have 5,248
    units. Kernels start as Keras has them (Glorot uniform), biases at 0. `count_params` also counts
    9,472 moving statistics.

    Args:
        classes: Integer, number of logits (100: 15,038,116 trainable parameters).
        input_shape: Tuple (height, width, channels), at least 32 x 32.
        mask: None or a factory `mask(name=...)` such as `tr.models.vgg16_mask`.
        width: Float > 0 that scales all filters and units.
        slot: "paper" (before the normalization: a closed gate leaves a constant, see
            `tr.shrink.compact`) or "after_activation" (behind the ReLU: it leaves nothing).
        normalization: None (the network sees pixels in [0, 1] as they are), or (mean, deviation)
            of a fixed normalization in pixel units, one value a channel: a layer in the model. The
            release normalizes each image before it is attacked, which is another threat.
        dropout: Float in [0, 1] that scales all rates of dropout; 0 leaves dropout out. A narrow
            net that trains for a few epochs does not get off the ground with the paper's.

    Raises:
        ValueError: `width` is not a number > 0, `dropout` not in [0, 1], an unknown `slot`, images
            that are too small, or a `normalization` that cannot be.

    Reference: Madaan et al., Adversarial neural pruning with latent vulnerability suppression
    (2020), https://arxiv.org/abs/1908.04355, and its released code.

    Example:

    >>> net = vgg16(width=1 / 16)
    >>> net.get_layer("conv13").filters, net.get_layer("flatten").output.shape
    (32, (None, 32))
    """
    if slot not in SLOTS:
        raise ValueError(f"`slot` must be one of {SLOTS}. Received: slot={slot!r}")
    if not contract.is_number(dropout) or not 0 <= dropout <= 1:
        raise ValueError(f"`dropout` must be a number in [0, 1]. Received: dropout={dropout!r}")
    classes = blocks.classes_of(classes, input_shape, mask, least=32)
    inputs, x = blocks.image(input_shape, normalization)
    early, late = (mask, None) if slot == "paper" else (None, mask)
    pool = 0
    for number, (filters, share) in enumerate(
        zip(blocks.units(FILTERS, width), BEHIND, strict=True), 1
    ):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{number}")(x)
        x = blocks.masked(x, early, f"mask_conv{number}")
        x = layers.BatchNormalization(name=f"norm{number}")(x)
        x = layers.Activation("relu", name=f"relu_conv{number}")(x)
        x = blocks.masked(x, late, f"mask_conv{number}")
        if share is None:
            pool += 1
            x = layers.MaxPooling2D(2, name=f"pool{pool}")(x)
        else:
            x = _dropped(x, share * dropout, number)
    x = layers.Flatten(name="flatten")(x)
    x = _gate(x, mask, "flatten", 14, dropout)
    x = layers.Dense(blocks.units((512,), width)[0], name="dense14")(x)
    x = layers.BatchNormalization(name="norm14")(x)
    x = layers.Activation("relu", name="relu_dense14")(x)
    x = _gate(x, mask, "dense14", 15, dropout)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def vgg16_mask(name=None, **options):
    """A beta-Bernoulli mask with the release's start: a_ = 2 at a convolution, -1 elsewhere.

    Convolutions begin with E[pi] = 0.68, the two masks around the dense layer with 0.24; the KL of
    all 15 masks is 45,087.6 nats.

    Args:
        name: The mask's name, as `vgg16` gives it.
        **options: Of `tr.layers.BetaBernoulliMask`.

    >>> [m.initial_a for m in vgg16(mask=vgg16_mask, width=1 / 16).layers if "mask" in m.name][-3:]
    [2.0, -1.0, -1.0]
    """
    start = 2.0 if "conv" in (name or "") else -1.0
    return BetaBernoulliMask(**{"initial_a": start, "name": name, **options})


def _gate(x, mask, name, number, dropout):
    """A mask, or half of the units dropped where there are none."""
    if mask is None:
        return _dropped(x, 0.5 * dropout, number)
    return mask(name=f"mask_{name}")(x)


def _dropped(x, share, number):
    return layers.Dropout(share, name=f"dropout{number}")(x) if share else x
