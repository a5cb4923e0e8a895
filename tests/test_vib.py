"""VIB masks: closed forms, the rule of the paper, and the rooms that know masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust as tr
from tests import bank
from tests.bank_masks import randomize
from tfrobust.layers import VIBMask


def built(mu, log_var):
    mask = VIBMask(seed=0)
    mask.build((None, 4, 4, len(mu)))
    mask.mu.assign(np.asarray(mu, "float32"))
    mask.log_var.assign(np.asarray(log_var, "float32"))
    return mask


_masks = []


def at(mu, log_var):
    """One mask for many parameters."""
    mask = _masks[0] if _masks else _masks.append(built([mu], [log_var])) or _masks[0]
    mask.mu.assign([mu])
    mask.log_var.assign([log_var])
    return mask


def test_kl_by_hand():
    assert float(built([1.0], [-9.0]).kl()) == pytest.approx(0.5 * np.log1p(np.exp(9)), rel=1e-5)
    assert float(built([1.0], [-9.0]).kl()) == pytest.approx(4.50006, abs=1e-4)  # at the start
    got = float(built([2.0, -1.0], [0.0, 0.0]).kl())
    assert got == pytest.approx(0.5 * (np.log(5) + np.log(2)), rel=1e-6)
    assert float(built([0.0], [0.0]).kl()) == 0.0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(mu=st.floats(-5, 5), log_var=st.floats(-9, 9), activation=st.floats(0.05, 20))
def test_kl_is_that_of_the_channel_to_its_best_marginal(mu, log_var, activation):
    """KL of N(f mu, f^2 sigma^2) to N(0, f^2 (mu^2 + sigma^2)), the same whatever f is."""
    deviation = np.exp(log_var / 2)
    loc, scales = activation * mu, activation * np.array([deviation, np.hypot(mu, deviation)])
    tfd = tr.layers.distributions()
    q, p = (tfd.Normal(np.float64(m), s) for m, s in zip((loc, 0.0), scales, strict=True))
    assert float(at(mu, log_var).kl()) == pytest.approx(
        float(tfd.kl_divergence(q, p)), rel=1e-4, abs=1e-4
    )
    wider, narrower = (tfd.Normal(np.float64(0), s * scales[1]) for s in (1.1, 0.9))
    best = float(tfd.kl_divergence(q, p))  # xi is the best variance of a marginal at 0
    assert min(float(tfd.kl_divergence(q, other)) for other in (wider, narrower)) > best


@settings(max_examples=40, deadline=None, derandomize=True)
@given(mu=st.floats(-1e3, 1e3, width=32), log_var=st.floats(-60, 60))
def test_kl_is_never_negative(mu, log_var):
    value = float(at(mu, log_var).kl())
    assert np.isfinite(value) and value >= 0
    assert float(at(0.0, log_var).kl()) == 0
    assert float(at(-mu, log_var).kl()) == value


def test_start_of_the_paper():
    mask = VIBMask(seed=1)
    mask.build((None, 2000))
    assert float(np.mean(mask.mu)) == pytest.approx(1.0, abs=1e-3)
    assert float(np.std(mask.log_var)) == pytest.approx(0.01, rel=0.1)
    assert float(mask.kl()) / 2000 == pytest.approx(4.5, abs=1e-2)
    again = VIBMask(seed=1)
    again.build((None, 2000))
    np.testing.assert_array_equal(mask.mu, again.mu)
    assert abs(np.corrcoef(mask.mu, mask.log_var)[0, 1]) < 0.1  # draws of their own


def test_pruned_where_the_noise_is_as_large_as_the_signal():
    mask = built([1.0, 1.0, -2.0, -2.0, 0.0], [-0.01, 0.01, 1.38, 1.39, -12.0])
    np.testing.assert_array_equal(mask.expected(), np.float32([1.0, 0.0, -2.0, 0.0, 0.0]))
    assert mask.keep().tolist() == [True, False, True, False, False]


def test_gates_have_mean_mu_and_variance_sigma():
    mask = built([0.5, -1.0], [0.0, -2.0])
    gates = mask.sample(40_000).numpy()
    np.testing.assert_allclose(gates.mean(0), [0.5, -1.0], atol=0.02)
    np.testing.assert_allclose(gates.var(0), np.exp([0.0, -2.0]), rtol=0.03)


def test_gradients_reach_both():
    mask = built([0.7, 1.2], [-3.0, -1.0])
    with tf.GradientTape() as tape:
        value = mask.kl() + tf.reduce_sum(mask.sample(3))
    got = tape.gradient(value, [mask.mu.value, mask.log_var.value])
    assert all(np.isfinite(g).all() and np.abs(g).min() > 0 for g in got)


@pytest.mark.parametrize("slot", ["before_activation", "after_activation"])
def test_a_negative_gate_is_folded_exactly(slot):
    """A ReLU does not pass a negative factor: the fold must not move it across."""
    plain = randomize(bank.classifier())
    net = tr.layers.insert_masks(plain, VIBMask, slot)
    rng = np.random.default_rng(0)
    for mask in tr.layers.masks(net):
        mask.mu.assign(rng.normal(0, 1, mask.mu.shape[0]))
        mask.log_var.assign(rng.uniform(-6, 1, mask.mu.shape[0]))
    small, x = tr.shrink.compact(net), bank.images(64)
    wanted = tr.attacks.forward(net, x)
    assert small.count_params() < plain.count_params() and not tr.layers.masks(small)
    np.testing.assert_allclose(
        tr.attacks.forward(small, x), wanted, atol=1e-5 * max(1, np.abs(wanted).max())
    )
    assert tr.footprint.measure(net).flops == tr.footprint.measure(small).flops


def test_anp_learns_a_bottleneck():
    """With a KL that outweighs the loss, channels drown in noise; with none they stay."""
    kept = {}
    for beta in (0.0, 1e5):
        net = bank.classifier(mask=lambda name: VIBMask(seed=0, name=name))
        attack = tr.attacks.FGSM(tr.threats.Linf(0.05))
        game = tr.training.ANP(net, attack, beta=beta, train_size=64, seed=0)
        game.compile({"weights": keras.optimizers.Adam(1e-3), "masks": keras.optimizers.Adam(0.3)})
        game.fit(bank.images(64), np.arange(64) % 4, batch_size=16, epochs=12, verbose=0)
        kept[beta] = sum(k for _, k, _ in tr.layers.kept(net))
    assert kept[1e5] == 0 < kept[0.0]


@pytest.mark.parametrize(
    "bad", [{"initial_mu": np.nan}, {"initial_log_var": "x"}, {"jitter": -1}], ids=str
)
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        VIBMask(**bad)
