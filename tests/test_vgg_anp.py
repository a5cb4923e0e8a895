"""VGG-16 of ANP-VS: block by block as the release has it, and cut exactly in both mask slots."""

import keras
import numpy as np
import pytest
from keras import layers

import tfrobust as tr
from tests import bank
from tests.bank_masks import images, randomize

# filters, map in, and what follows: a share of dropout, or a pool
BLOCKS = [
    (64, 32, 0.3), (64, 32, "pool"), (128, 16, 0.4), (128, 16, "pool"), (256, 8, 0.4),
    (256, 8, 0.4), (256, 8, "pool"), (512, 4, 0.4), (512, 4, 0.4), (512, 4, "pool"),
    (512, 2, 0.4), (512, 2, 0.4), (512, 2, "pool"),
]  # fmt: skip
SLOTS = ("paper", "after_activation")
QUICK = (tr.layers.VIBMask, "paper")


def kinds(slot, masked):
    """The layers that the release has, in order, as (class, what tells it apart)."""
    yield from (("InputLayer", None),)
    for filters, size, behind in BLOCKS:
        yield "Conv2D", (filters, size)
        if masked and slot == "paper":
            yield "VIBMask", filters
        yield "BatchNormalization", filters
        yield "Activation", "relu"
        if masked and slot == "after_activation":
            yield "VIBMask", filters
        yield ("MaxPooling2D", (2, 2)) if behind == "pool" else ("Dropout", behind)
    yield "Flatten", 512
    yield ("VIBMask", 512) if masked else ("Dropout", 0.5)
    yield "Dense", 512
    yield "BatchNormalization", 512
    yield "Activation", "relu"
    yield ("VIBMask", 512) if masked else ("Dropout", 0.5)
    yield "Dense", 10


def told(layer):
    name = type(layer).__name__
    if isinstance(layer, layers.Conv2D):
        assert (layer.kernel_size, layer.strides, layer.padding) == ((3, 3), (1, 1), "same")
        assert layer.use_bias
        return name, (layer.filters, layer.input.shape[1])
    return name, {
        "InputLayer": lambda: None,
        "BatchNormalization": lambda: layer.output.shape[-1],
        "Activation": lambda: layer.activation.__name__,
        "MaxPooling2D": lambda: layer.pool_size,
        "Dropout": lambda: layer.rate,
    }.get(name, lambda: layer.output.shape[-1])()


@pytest.mark.parametrize("slot, masked", [("paper", False), *((slot, True) for slot in SLOTS)])
def test_blocks_are_those_of_the_release(slot, masked):
    net = tr.models.vgg16(mask=tr.layers.VIBMask if masked else None, slot=slot)
    assert [told(layer) for layer in net.layers] == list(kinds(slot, masked))
    norm = net.get_layer("norm1")
    assert (norm.momentum, norm.epsilon) == (0.99, 1e-3)


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("mask", [None, tr.layers.VIBMask])
def test_dropout_is_scaled_or_left_out(share, mask):
    def of(dropout):
        net = tr.models.vgg16(mask=mask, width=0.1, dropout=dropout)
        return [a.rate for a in net.layers if isinstance(a, layers.Dropout)], net.count_params()

    (rates, size), (fewer, same) = of(1), of(share)
    assert len(rates) == (8 if mask else 10)
    assert fewer == [share * rate for rate in rates if share]
    assert size == same


@pytest.mark.parametrize("wrong", [-0.1, 1.5, True, "1", None, float("nan")])
def test_wrong_dropout(wrong):
    with pytest.raises(ValueError, match=r"`dropout` must be a number in \[0, 1\]"):
        tr.models.vgg16(width=0.1, dropout=wrong)


def lively(mask, slot):
    """A narrow masked net with random statistics, whose masks shut every second unit."""
    keras.utils.set_random_seed(0)
    net = randomize(tr.models.vgg16(mask=mask, slot=slot, width=0.1))
    rng = np.random.default_rng(1)
    for gate in tr.layers.masks(net):
        units = int(gate.weights[0].shape[0])
        shut = rng.permutation(units) < units // 2
        if isinstance(gate, tr.layers.VIBMask):
            gate.mu.assign(rng.normal(1, 0.3, units))
            gate.log_var.assign(np.where(shut, 9.0, -9.0))
        else:
            gate.a_.assign(np.where(shut, -9.0, rng.uniform(1, 4, units)))
    settle(net, framed(32))
    return net


def settle(net, x):
    """Moving statistics as training leaves them, behind the gates of inference."""
    for layer in net.layers:
        layer.trainable, layer.momentum = not isinstance(layer, tr.layers.Mask), 0.0
    net(x, training=True)


def framed(count):
    """Images of which every second one has a frame of its own and nothing inside."""
    x = images(count, (32, 32, 3))
    x[::2, 1:-1, 1:-1] = 0.5
    return x


def assert_same(net, small, x):
    """DESIGN's tolerance, on logits that the images, and their borders, tell apart."""
    a, b = (np.asarray(tr.attacks.forward(m, x), np.float64) for m in (net, small))
    scale = max(1, np.abs(a).max())
    assert np.ptp(a[::2], axis=0).max() > 1e-3 * scale
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(b.argmax(-1), a.argmax(-1))


@pytest.mark.parametrize(
    "mask, slot",
    [
        pytest.param(mask, slot, marks=() if (mask, slot) == QUICK else pytest.mark.slow)
        for mask in bank.MASKS
        for slot in SLOTS
    ],
)
def test_masked_networks_are_cut_exactly(mask, slot):
    net = lively(mask, slot)
    small = tr.shrink.compact(net)
    assert_same(net, small, framed(16))
    left = [kept for _, kept, _ in tr.layers.kept(net)]
    filters = [small.get_layer(f"conv{number}").filters for number in range(1, 14)]
    more = [f - k for f, k in zip(filters, left, strict=False)]
    if slot == "paper":  # one constant channel a reader, and none where nothing reads a border
        assert set(more[:12]) <= {0, 1} and sum(more[:12]) > 6
    else:
        assert set(more[:12]) == {0}
    # The two masks around conv13 meet: a closed map is no input of dense14, and the reverse.
    assert filters[12] == small.get_layer("dense14").kernel.shape[0] < left[12]
    assert small.get_layer("logits").kernel.shape[0] == left[14]
