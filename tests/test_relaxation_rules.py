"""Single rules of the relaxations, mutants that must be noticed, and bad input."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank, bank_graphs
from tests.bank_bounds import assert_margins_hold, model_of
from tfrobust import bounds
from tfrobust.bounds import Program, Region, elementwise, rows
from tfrobust.bounds.lines import Line
from tfrobust.bounds.rule import Box, Extreme, Pointwise, Product
from tfrobust.threats import Linf

# --- single rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(elementwise.TURNS))
def test_lines_lie_on_their_sides(name):
    rng = np.random.default_rng(0)
    low = rng.uniform(-4, 3, (1, 300)).astype("float32")
    high = low + rng.choice([0, 1e-4, 1.0], (1, 300)) * rng.uniform(0, 3, (1, 300))
    low[0, :3], high[0, :3] = [0, -1, -1], [1, 0, 1]
    inputs = keras.Input((300,))
    net = keras.Model(inputs, layers.Activation(name)(inputs))
    (step, _), *_ = Program(net).steps
    box = Box(tf.constant(low), tf.constant(high.astype("float32")))
    grid = np.linspace(*map(np.asarray, box), 301)
    values = np.asarray(step(tf.constant(grid)))
    ends = Box(*map(np.asarray, step.interval(box)))
    slack = 1e-5 * np.maximum(1.0, np.abs(values).max(0))
    for mode in ("zero", "adaptive", "parallel"):
        below, above = (Line(*map(np.asarray, line)) for line in step.lines(box, mode))
        low, high = (line.slope * grid + line.offset for line in (below, above))
        assert (low <= values + slack).all() and (high >= values - slack).all(), mode
        if mode == "parallel":
            np.testing.assert_array_equal(below.slope, above.slope)
        if mode == "zero":
            assert (low.min(0) >= ends.lower - slack).all()
            assert (high.max(0) <= ends.upper + slack).all()


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(max_value=1.0),
        layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.5),
        layers.LeakyReLU(negative_slope=0.3),
        layers.LeakyReLU(negative_slope=2.0),
        layers.ELU(alpha=-0.5),
        layers.PReLU(alpha_initializer=keras.initializers.RandomUniform(-2, 2, seed=0)),
        layers.MaxPooling2D(3, strides=2, padding="same"),
        layers.MaxPooling2D(2),
        layers.GlobalMaxPooling2D(),
        lambda x: layers.Maximum()([x, 1.0 - x, x[:, ::-1]]),
        lambda x: layers.Minimum()([x, 0.3 * x]),
        lambda x: keras.ops.min(keras.ops.maximum(x, 0.1), axis=1),
        lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]),
        lambda x: layers.Multiply()([x, x, 0.5 - x]),
        lambda x: keras.ops.square(keras.ops.abs(x) - 1.0),
        lambda x: keras.ops.clip(x, -0.3, 0.4),
    ],
)
def test_bent_layers_hold(layer):
    """Alone behind a mixing layer, where the relaxation is all that is between bound and truth."""

    def net(x):
        x = bank_graphs.conv(layers.Rescaling(4.0, -2.0)(x), 3)
        x = layers.Rescaling(0.5)(layer(x))
        return layers.Dense(3)(layers.Flatten()(x))

    model = model_of(net)
    for epsilon in (0.003, 0.1):
        assert_margins_hold(model, ["zero", "adaptive"], Linf(epsilon), count=60)


# --- the tests above would notice ----------------------------------------------------------------


BENT = {
    "relu": layers.ReLU(),
    "tanh": layers.Activation("tanh"),
    "pool": lambda x: layers.Flatten()(layers.MaxPooling1D(2)(layers.Reshape((4, 1))(x))),
    "product": lambda x: layers.Multiply()([x[:, :2], x[:, 2:]]),
}


def assert_plain_nets_hold():
    """One bent layer between two dense ones and two pixels: bounds that are nearly reached."""
    for name, bent in BENT.items():
        keras.utils.set_random_seed(len(name))
        inputs = keras.Input((2,))
        x = layers.Dense(4, kernel_initializer="random_normal")(
            layers.Rescaling(40.0, -20.0)(inputs)
        )
        net = keras.Model(inputs, layers.Dense(2)(bent(x)))
        net.set_weights(
            [w + 0.3 * np.cos(np.arange(w.size)).reshape(w.shape) for w in net.get_weights()]
        )
        threat = Linf(0.2 if name == "pool" else 0.1)
        assert_margins_hold(net, ["zero", "adaptive"], threat, images=8)


def _no_offset(line):
    return Line(line.slope, tf.zeros_like(line.offset))


_lines, _pulled, _back = Pointwise.lines, rows.pulled, Pointwise.back


def _swapped(self, rows_, boxes, mode):
    parts, offset = _back(self, -rows_, boxes, mode)
    return ([-parts[0]], -offset) if not self.affine else _back(self, rows_, boxes, mode)


def _greedy_pool(self, rows_, boxes, mode):
    """As if the value with the greatest lower bound were the greatest for certain."""
    parts, _ = _pulled(self, rows_, [b.lower for b in boxes], at=[b.lower for b in boxes])
    return parts, 0.0


MUTANTS = {
    "upper line without its offset": (
        Pointwise,
        "lines",
        lambda *a: (_lines(*a)[0], _no_offset(_lines(*a)[1])),
    ),
    "A+ and A- swapped": (Pointwise, "back", _swapped),
    "no bias": (
        importlib.import_module("tfrobust.bounds.rule"),
        "pulled",
        lambda *a, **k: (_pulled(*a, **k)[0], 0.0),
    ),
    "pool of one value": (Extreme, "back", _greedy_pool),
    "product by one corner": (
        Product,
        "_plane",
        lambda s, b, *_: (b[1].lower, b[0].lower, -b[0].lower * b[1].lower),
    ),
    "no radius": (Box, "radius", property(lambda box: 0.0 * box.lower)),
    "centre forgotten": (Region, "least", lambda s, r: -rows.dot(tf.abs(r), s.box.radius)),
}  # fmt: skip


def test_the_nets_for_mutants_hold():
    assert_plain_nets_hold()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_relaxation_is_noticed(mutant, monkeypatch):
    owner, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        assert_plain_nets_hold()


# --- what is refused -----------------------------------------------------------------------------


def test_bad_input():
    net, x, y = bank.linear()
    with pytest.raises(ValueError, match="`method` must be one of ibp, crown-ibp"):
        bounds.margins(net, x, y, Linf(0.1), method="crown_ibp")
    wide = model_of(lambda x: bank_graphs.head(bank_graphs.normed(bank_graphs.conv(x, 64))))
    with pytest.raises(ValueError, match="'symbolic' must get a small net"):
        bounds.margins(wide, bank.images(2, (8, 8, 2)), [0, 1], Linf(0.1), method="symbolic")
