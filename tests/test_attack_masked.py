"""Attacks on nets with masks, which know the digits: budgets, noise, and the mean over masks."""

import functools

import keras
import numpy as np
import pytest

import tfrobust as tr
from tests import bank
from tfrobust import attacks, losses
from tfrobust.threats import Linf

every_mask = pytest.mark.parametrize("kind", bank.MASKS, ids=lambda kind: kind.__name__)
pytestmark = pytest.mark.usefixtures("eagerly")


@functools.cache
def trained(kind, lively=True):
    """(net, x, y): random features, half-shut masks, logits by least squares; 64 test images."""
    data, width, rng = tr.data.load("digits"), 96, np.random.default_rng(0)
    inputs, mask = keras.Input((8, 8, 1)), kind(seed=0, name="mask")
    h = keras.layers.Dense(width, "relu", name="features")(keras.layers.Flatten()(inputs))
    net = keras.Model(inputs, keras.layers.Dense(10, name="logits")(mask(h)))
    features = net.get_layer("features")
    features.set_weights([rng.normal(0, 0.25, (64, width)), rng.normal(0, 0.5, width)])
    if kind is tr.layers.VIBMask:
        mask.mu.assign(np.ones(width))
        mask.log_var.assign(np.linspace(3, -6, width) if lively else np.full(width, -40.0))
    else:
        mask.a_.assign(np.linspace(-9, 4, width))
    assert (0 < mask.keep().sum() < width) == lively
    known = keras.Model(inputs, net.get_layer("mask").output)(data.x_train)
    known = np.append(known, np.ones((len(known), 1)), axis=1)
    wanted = 10 * np.eye(10)[data.y_train] - 5
    weights = np.linalg.solve(known.T @ known + 0.1 * np.eye(width + 1), known.T @ wanted)
    net.get_layer("logits").set_weights([weights[:-1], weights[-1]])
    x, y = data.x_test[:64], data.y_test[:64]
    assert np.mean(attacks.correct(net, x, y)) > 0.95
    return net, x, y


class Drawn(keras.layers.Layer):
    """The net with its masks sampled, as in training."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, x):
        return self.net(x, training=True)


def drawn(net):
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, Drawn(net)(inputs))


@every_mask
def test_more_steps_never_lower_the_loss_of_an_example(kind):
    """From one random start at one step size: a longer way passes all points of a shorter one."""
    net, x, y = trained(kind)
    place, found = (net, x, y, np.arange(len(x)), 0.1, 0, None), []
    for steps in (0, 1, 2, 5, 10):
        attack = attacks.PGD(Linf(0.1), steps=steps, step_size=0.02, loss="margin")
        points, _ = attack.attempt(*place, eager_stop=False)
        found.append(losses.margin(attacks.forward(net, points), y).numpy())
    assert (np.diff(found, axis=0) >= -1e-5).all()
    assert (np.diff(np.mean(found, axis=1)) > 0.1).all()
    assert (found[-1] > found[0] + 0.1).all()


@every_mask
def test_noise_is_far_weaker_and_the_whole_range_breaks_everything(kind):
    net, x, y = trained(kind)
    pgd, noise = attacks.PGD(Linf(0.1), steps=10), attacks.Noise(Linf(0.1), tries=1)
    broken = [attack.result(net, x, y).fooled.mean() for attack in (pgd, noise)]
    assert broken[0] > 0.8 and broken[1] < 0.15
    assert attacks.PGD(Linf(1.0), steps=10).result(net, x, y).fooled.all()


def test_noise_does_not_reach_what_is_just_beyond_the_smallest_distance():
    """On a linear net whose distances are known, beside what reaches all of them."""
    net, x, y = bank.linear(30.0)
    radii = 1.05 * bank.LINEAR_DISTANCE["linf"]
    assert bank.fooled_at(attacks.PGD(Linf(0.1), steps=10), net, x, y, radii) == len(x)
    assert bank.fooled_at(attacks.Noise(Linf(0.1), tries=5), net, x, y, radii) == 0
    assert attacks.PGD(Linf(1.0), steps=10).result(net, x, y).fooled.all()


@every_mask
def test_the_mean_over_sampled_masks_breaks_no_more_than_the_net_that_ships(kind):
    """The gate of inference hides no gradient: an attack through it is the stronger one.

    One draw a step is misled by lucky masks; ten come nearer.
    """
    net, x, y = trained(kind)
    random, budget = drawn(net), {"steps": 3, "random_start": False, "last_iterate": True}
    images = [attacks.PGD(Linf(0.06), **budget)(net, x, y)]
    images += [attacks.PGD(Linf(0.06), **budget, eot=n)(random, x, y) for n in (1, 10)]
    through, single, mean = (attacks.verdicts(net, found, y).mean() for found in images)
    assert through >= mean > single and mean > 0.5 * through > 0.15
    through, single, mean = (attacks.verdicts(random, f, y, draws=20).mean() for f in images)
    assert through >= mean - 0.05 and mean > single


def test_the_mean_over_masks_without_noise_is_the_plain_attack():
    net, x, y = trained(tr.layers.VIBMask, lively=False)
    budget = {"steps": 3, "random_start": False, "last_iterate": True}
    plain = attacks.PGD(Linf(0.06), **budget)(net, x, y)
    mean = attacks.PGD(Linf(0.06), **budget, eot=3)(drawn(net), x, y)
    differ = np.abs(mean - plain).reshape(len(x), -1).max(-1) > 1e-5  # a sign of a gradient of 0
    assert differ.sum() <= 1
