"""The table of everything that conformance tests walk through, with tiny models and data."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import attacks, layers, losses, models, threats

THREATS = [threats.Linf(0.1), threats.L2(0.7), threats.L1(3.0)]

ATTACKS = [
    attacks.FGSM(threats.Linf(0.1)),
    attacks.FGSM(threats.L2(0.7)),
    attacks.PGD(threats.Linf(0.1), steps=5),
    attacks.PGD(threats.Linf(0.1), steps=5, last_iterate=True, loss="margin"),
    attacks.PGD(threats.L2(0.7), steps=5, loss="dlr"),
    attacks.PGD(threats.L1(3.0), steps=5, restarts=2),
    attacks.APGD(threats.Linf(0.1), steps=10),
    attacks.APGD(threats.L2(0.7), steps=10, loss="dlr"),
    attacks.APGD(threats.Linf(0.1), steps=10, loss="dlr_targeted", targets=3),
    attacks.APGD(threats.L1(3.0), steps=10, large_radius=True),
    attacks.FGSM(threats.Linf(0.1), random_start=True),
    attacks.RFGSM(threats.Linf(0.1)),
    attacks.BIM(threats.Linf(0.1), steps=5),
    attacks.MIM(threats.Linf(0.1), steps=5),
    attacks.MIM(threats.L2(0.7), steps=5, on_failure="clean"),
    attacks.DDN(threats.L2(0.7), steps=10),
    attacks.DeepFool(threats.L2(0.7), steps=5),
    attacks.DeepFool(threats.Linf(0.1), steps=5, candidates=3),
    attacks.CarliniWagner(threats.L2(0.7), search_steps=3, steps=10, initial_const=0.1),
    attacks.FAB(threats.Linf(0.1), steps=5, restarts=2),
    attacks.FAB(threats.L2(0.7), steps=5, targets=3),
    attacks.FAB(threats.L1(3.0), steps=5, targets=3),
    attacks.Square(threats.Linf(0.1), queries=30),
    attacks.Square(threats.L2(0.7), queries=30),
    attacks.Square(threats.L1(3.0), queries=30, rescale=True),
    attacks.Noise(threats.Linf(0.1), tries=30),
    attacks.Boundary(threats.L2(0.7), steps=20, starts=1),
    attacks.HopSkipJump(threats.Linf(0.1), steps=2, starts=2, samples=10),
]

MASKS = [layers.BetaBernoulliMask, layers.VIBMask]


def half_shut(mask):
    """Shuts about half of the channels by the mask's own parameters."""
    if isinstance(mask, layers.VIBMask):
        mask.log_var.assign(np.linspace(4, -9, mask.log_var.shape[0]))
    else:
        mask.a_.assign(np.linspace(-9, 2, mask.a_.shape[0]))


def attack_id(attack):
    return f"{attack.name}-{attack.threat.norm}-{attack.loss}"


def thinned(rows, first=0, step=2):
    """Parameters of which the fast suite takes each `step`-th row from `first`, the slow all."""
    return [
        row if (number - first) % step == 0 else pytest.param(row, marks=pytest.mark.slow)
        for number, row in enumerate(rows)
    ]


def some_attacks(first=0, step=2):
    """Parametrizes `attack`; tests that take turns with `first` have all attacks fast somewhere."""
    return pytest.mark.parametrize("attack", thinned(ATTACKS, first, step), ids=attack_id)


def fitting(attack, classes):
    """Whether the attack can be run on a model with so many classes."""
    try:
        attack.check_classes(classes)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def eagerly():
    """Runs attacks without graphs: some steps of a tiny net cost less than tracing one of them.

    tests/test_attacks.py holds that both ways find the same.
    """
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def images(count=8, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (count, *shape)).astype("float32")


def classifier(classes=4, shape=(8, 8, 1), mask=None, seed=0):
    """A small random convolutional classifier."""
    keras.utils.set_random_seed(seed)
    return models.digits_net(classes=classes, input_shape=shape, widths=(4, 6, 8), mask=mask)


def rescale(net, scale, shift=0.0):
    """Makes a LIN10 that of another scale, its logits shifted; its graphs go on to serve."""
    i, k = np.arange(1, 65)[:, None], np.arange(1, 11)[None, :]
    weights = scale * np.cos(0.37 * i * k + 0.2 * k) / 8
    net.get_layer("logits").set_weights([weights, scale * 0.02 * np.arange(10) + shift])


def linear(scale=1.0):
    """LIN10(s): ten classes on 8 x 8 images, with known minimal distances."""
    net = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, name="logits")]
    )
    net = keras.Model(net.inputs, net.outputs)
    rescale(net, scale)
    x = 0.5 + 0.5 * np.sin(0.7 * np.arange(1, 65)[None, :] + 1.1 * np.arange(6)[:, None])
    return net, x.reshape(6, 8, 8, 1).astype("float32"), np.array([9, 9, 1, 1, 1, 9])


# Smallest norms that fool LIN10 inside the box, found by an exact solver.
LINEAR_DISTANCE = {
    "linf": np.array([0.01350, 0.01487, 0.05477, 0.19305, 0.06144, 0.00966]),
    "l2": np.array([0.08312, 0.09105, 0.33946, 1.20144, 0.38099, 0.05968]),
    "l1": np.array([0.33975, 0.36048, 1.47594, 5.25530, 1.64640, 0.24313]),
}


def curve():
    """CURVE4: a smooth two-dimensional four-class model with known minimal distances."""
    i, h = np.arange(1, 3)[:, None], np.arange(1, 9)[None, :]
    first = 3 * np.sin(1.7 * i * h + 0.3 * h)
    bias = 0.8 * np.cos(1.1 * np.arange(1, 9)) - 0.5 * first.sum(0)
    hh, k = np.arange(1, 9)[:, None], np.arange(1, 5)[None, :]
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    net = keras.Model(inputs, keras.layers.Dense(4, name="logits")(hidden))
    net.get_layer("hidden").set_weights([first, bias])
    net.get_layer("logits").set_weights(
        [1.5 * np.cos(0.9 * hh * k + 0.5 * k), np.array([0.3, -0.1, 0.0, 0.1])]
    )
    x = [(0.30, 0.60), (0.75, 0.30), (0.50, 0.85), (0.15, 0.20), (0.85, 0.75), (0.45, 0.40)]
    return net, np.array(x, "float32"), np.array([0, 0, 2, 3, 0, 0])


CURVE_DISTANCE = {
    "linf": np.array([0.12464, 0.07662, 0.10168, 0.15479, 0.01862, 0.06370]),
    "l2": np.array([0.13355, 0.10243, 0.10816, 0.17605, 0.01980, 0.07877]),
    "l1": np.array([0.13371, 0.11418, 0.10830, 0.17727, 0.01984, 0.08266]),
}


def fooled_at(attack, net, x, y, radii):
    """How many examples `attack` fools when each has a radius of its own."""
    hits = 0
    for n, radius in enumerate(radii):
        x_adv = attack(net, x[n : n + 1], y[n : n + 1], index=[n], epsilon=float(radius))
        hits += int(attacks.verdicts(net, x_adv, y[n : n + 1])[0])
    return hits


def tolerance(epsilon):
    """What a distance may be at most in float32."""
    return epsilon * (1 + 1e-6) + 1e-7


def margins(net, x, y):
    return losses.margin(attacks.forward(net, x), y).numpy()
