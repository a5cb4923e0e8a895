"""Every attack of the bank on models with exact distances, and on images of other shapes."""

import functools

import keras
import numpy as np
import pytest

from tests import bank
from tfrobust import attacks, threats

every_attack = pytest.mark.parametrize("attack", bank.ATTACKS, ids=bank.attack_id)


@functools.cache
def straight():
    return bank.linear(1.0)


def linear(scale, shift=0.0):
    """`bank.linear`, its logits shifted: one net, so that each attack needs one graph of it."""
    bank.rescale(straight()[0], scale, shift)
    return straight()


@bank.some_attacks(0)
def test_scores_that_are_shifted_change_nothing(attack):
    """Adding one number to all logits leaves every loss, margin and probability as it was."""
    near = 1.5 * np.median(bank.LINEAR_DISTANCE[attack.threat.norm])
    one, two = (attack.result(*linear(30.0, s), epsilon=near).fooled for s in (0.0, 2.0))
    assert np.abs(one.astype(int) - two.astype(int)).sum() <= 1


@every_attack
@pytest.mark.parametrize("shape", [(6, 10, 3), (5,)], ids=str)
def test_shapes(attack, shape):
    inputs = keras.Input(shape)
    keras.utils.set_random_seed(0)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    net = keras.Model(inputs, outputs)
    x = bank.images(1, shape=shape)
    y = attacks.forward(net, x).argmax(-1)
    try:
        with bank.eagerly():
            x_adv = attack(net, x, y)
    except ValueError as error:
        assert "shape" in str(error) and "\n" not in str(error)  # refused with a reason
        return
    assert x_adv.shape == x.shape and np.isfinite(x_adv).all()
    assert attack.threat.distance(x_adv, x).numpy().max() <= bank.tolerance(attack.threat.epsilon)


@every_attack
def test_exact_on_linear_models_within_98_percent(attack):
    """Nothing can succeed closer than the exact distance."""
    for scale in (1.0, 30.0):
        net, x, y = linear(scale)
        radii = 0.98 * bank.LINEAR_DISTANCE[attack.threat.norm]
        assert bank.fooled_at(attack, net, x, y, radii) == 0


@bank.some_attacks(1)
def test_curved_model_within_98_percent(attack):
    net, x, y = bank.curve()
    try:
        attack.checked(net, x, y)
        fooled = bank.fooled_at(attack, net, x, y, 0.98 * bank.CURVE_DISTANCE[attack.threat.norm])
    except ValueError as error:
        assert "shape" in str(error)
        return
    assert fooled == 0


def test_momentum_direction_does_not_see_the_scale_of_gradients():
    net, x, y = bank.linear(1.0)
    big = lambda z: 8.0 * net(z, training=False)  # noqa: E731
    attack = attacks.MIM(threats.Linf(0.3), loss="margin", last_iterate=True)
    np.testing.assert_allclose(attack(net, x, y), attack(big, x, y), atol=1e-6)


def test_autopgd_of_l1_finds_the_boundary_of_linear_models():
    for scale in (1.0, 30.0):
        net, x, y = bank.linear(scale)
        exact = bank.LINEAR_DISTANCE["l1"]
        attack = attacks.APGD(
            threats.L1(1.0), loss="dlr_targeted", targets=9, restarts=2, large_radius=True
        )
        assert bank.fooled_at(attack, net, x, y, 1.05 * exact) == 6
