"""PGD and APGD find the boundaries of models with exact distances."""

import numpy as np
import pytest

from tests import bank
from tfrobust import attacks, losses, threats
from tfrobust.attacks import autopgd

PLAIN = {"linf": threats.Linf(0.1), "l2": threats.L2(0.1), "l1": threats.L1(0.1)}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_pgd_finds_the_boundary_of_linear_models(norm, loss):
    attack = attacks.PGD(PLAIN[norm], steps=100, step_size=0.01, loss=loss, restarts=3)
    (net, x, y), exact = bank.linear(), bank.LINEAR_DISTANCE[norm]
    for scale in (1.0, 30.0):
        bank.rescale(net, scale)
        assert bank.fooled_at(attack, net, x, y, 1.02 * exact) == 6
        assert bank.fooled_at(attack, net, x, y, 0.98 * exact) == 0


def test_pgd_l1_finds_the_boundary():
    net, x, y = bank.linear(30.0)
    attack = attacks.PGD(threats.L1(1.0), steps=100, step_size=0.1, loss="margin")
    exact = bank.LINEAR_DISTANCE["l1"]
    assert bank.fooled_at(attack, net, x, y, 1.05 * exact) == 6
    assert bank.fooled_at(attack, net, x, y, 0.98 * exact) == 0


def test_cross_entropy_is_weak_where_probabilities_are_flat():
    attack = attacks.PGD(PLAIN["linf"], steps=100, step_size=0.01)
    exact = bank.LINEAR_DISTANCE["linf"]
    net, x, y = bank.linear(1.0)
    assert bank.fooled_at(attack, net, x, y, 1.05 * exact) <= 2
    bank.rescale(net, 30.0)
    assert bank.fooled_at(attack, net, x, y, 1.05 * exact) == 6


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_apgd_t_finds_the_boundary(norm):
    attack = attacks.APGD(PLAIN[norm], steps=100, loss="dlr_targeted", targets=9)
    (net, x, y), exact = bank.linear(), bank.LINEAR_DISTANCE[norm]
    for scale in (1.0, 30.0):
        bank.rescale(net, scale)
        assert bank.fooled_at(attack, net, x, y, 1.02 * exact) == 6
        assert bank.fooled_at(attack, net, x, y, 0.98 * exact) == 0
    net, x, y = bank.curve()
    three = attacks.APGD(PLAIN[norm], steps=100, loss="dlr_targeted", targets=3)
    assert bank.fooled_at(three, net, x, y, 1.02 * bank.CURVE_DISTANCE[norm]) == 6
    assert bank.fooled_at(three, net, x, y, 0.98 * bank.CURVE_DISTANCE[norm]) == 0


def test_apgd_ce_finds_the_boundary_where_ce_can():
    attack = attacks.APGD(PLAIN["linf"], steps=100, restarts=5)
    net, x, y = bank.linear(30.0)
    assert bank.fooled_at(attack, net, x, y, 1.02 * bank.LINEAR_DISTANCE["linf"]) == 6
    net, x, y = bank.curve()
    assert bank.fooled_at(attack, net, x, y, 1.05 * bank.CURVE_DISTANCE["linf"]) == 6
    assert bank.fooled_at(attack, net, x, y, 0.98 * bank.CURVE_DISTANCE["linf"]) == 0


def test_fixture_margins():
    net, x, y = bank.linear(1.0)
    want = [-0.08378, -0.08889, -0.33488, -1.20187, -0.37822, -0.05983]
    np.testing.assert_allclose(bank.margins(net, x, y), want, atol=2e-5)
    ce = losses.cross_entropy(attacks.forward(net, x), y)
    want = [2.03085, 2.02613, 1.85431, 1.21861, 1.87220, 2.08266]
    np.testing.assert_allclose(ce, want, atol=2e-5)
    for scale in (1.0, 30.0):
        net, x, y = bank.linear(scale)
        dlr = losses.dlr(attacks.forward(net, x), y)
        want = [-0.50088, -0.47664, -0.85158, -0.97917, -0.93490, -0.51400]
        np.testing.assert_allclose(dlr, want, atol=2e-4)


def test_apgd_checkpoints():
    windows = autopgd.checkpoints(100)
    assert [i + 1 for i, k in enumerate(windows) if k] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [k for k in windows if k] == [22, 19, 16, 13, 10, 7, 6, 6]
