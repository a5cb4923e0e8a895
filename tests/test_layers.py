"""Masks: closed forms, gradients and semantics of the beta-Bernoulli gate."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import bank
from tfrobust import layers, models

every_mask = pytest.mark.parametrize("make", bank.MASKS, ids=lambda m: m.__name__)


def built(channels=3, **kwargs):
    mask = layers.BetaBernoulliMask(seed=0, **kwargs)
    mask.build((None, 4, 4, channels))
    return mask


def unsoft(value):
    """The raw parameter whose softplus is `value`."""
    return float(np.log(np.expm1(value)))


def with_ab(a, b):
    return built(1, initial_a=unsoft(a), initial_b=unsoft(b))


_masks = []


def with_raw(a_, b_):
    """One mask for many parameters: a layer costs more than what is asked of it."""
    mask = _masks[0] if _masks else _masks.append(built(1)) or _masks[0]
    mask.a_.assign([a_])
    mask.b_.assign([b_])
    return mask


@pytest.mark.parametrize(
    ("a", "b", "kl"), [(1, 1, 8.210440), (0.5, 2, 7.210640), (2, 0.5, 9.596665), (1e-4, 1, 0.0)]
)
def test_kl_closed_form(a, b, kl):
    assert float(with_ab(a, b).kl()) == pytest.approx(kl, abs=2e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(a_=st.floats(-20, 20), b_=st.floats(-20, 60))
def test_kl_is_never_negative(a_, b_):
    """In the float32 of training, down to the clips of both parameters and beyond."""
    mask = with_raw(a_, b_)
    exact = layers.distributions().kl_divergence(
        mask.posterior(tf.float64), layers.distributions().Beta(tf.constant(1e-4, tf.float64), 1.0)
    )
    assert float(exact[0]) >= -1e-9
    assert float(mask.kl()) >= -1e-5
    assert float(mask.kl()) == pytest.approx(float(exact[0]), rel=1e-4, abs=1e-4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(log=st.floats(-7, 3))
def test_kl_where_the_posterior_is_a_beta(log):
    """Kumaraswamy(a, 1) is Beta(a, 1) and Kumaraswamy(1, b) is Beta(1, b), whose KL is known.

    In the first case -log pi is exponential, and KL = r - 1 - log r with r = alpha / a.
    """
    tfd, one = layers.distributions(), np.float64(1)
    prior, value = tfd.Beta(np.float64(1e-4), one), np.exp(log)
    for a, b in ((value, one), (one, value)):
        mask = with_raw(unsoft(a), unsoft(b))
        exact = float(tfd.kl_divergence(tfd.Beta(a, b), prior))
        assert float(mask.kl()) == pytest.approx(exact, rel=1e-4, abs=1e-4)
    ratio = 1e-4 / value
    mask = with_raw(unsoft(value), unsoft(1.0))
    assert float(mask.kl()) == pytest.approx(ratio - 1 - np.log(ratio), rel=1e-4, abs=1e-4)


def test_kl_vanishes_at_the_prior_alone():
    """It falls towards a = alpha, b = 1 from all sides."""
    at = [float(with_raw(unsoft(1e-4 * r), unsoft(1.0)).kl()) for r in (0.5, 0.8, 1, 1.5, 4)]
    assert at[0] > at[1] > at[2] < at[3] < at[4] and at[2] == pytest.approx(0, abs=1e-5)
    at = [float(with_raw(unsoft(1e-4), unsoft(b)).kl()) for b in (0.25, 0.6, 1, 1.8, 4)]
    assert at[0] > at[1] > at[2] < at[3] < at[4]


@pytest.mark.parametrize(
    ("a", "b", "mean"), [(0.5, 2, 1 / 6), (2, 0.5, np.pi / 4), (3, 1, 0.75), (1, 4, 0.2)]
)
def test_expected_gate_closed_form(a, b, mean):
    assert float(with_ab(a, b).expected()[0]) == pytest.approx(mean, abs=1e-6)


def test_initial_values_of_the_paper():
    assert float(built(initial_a=2.0).expected()[0]) == pytest.approx(0.6802, abs=1e-4)
    assert float(built().expected()[0]) == pytest.approx(0.2385, abs=1e-4)
    net = models.lenet5_caffe(mask=layers.BetaBernoulliMask)
    total = sum(float(mask.kl()) for mask in layers.masks(net))
    assert total == pytest.approx(9658.4, abs=0.2)
    assert [k for _, k, _ in layers.kept(net)] == [20, 50, 800, 500]


def test_kl_and_mean_against_monte_carlo():
    tfd = layers.distributions()
    q, p = tfd.Kumaraswamy(0.8, 1.7), tfd.Beta(0.3, 1.0)
    pi = tf.clip_by_value(q.sample(200_000, seed=1), 1e-30, 1 - 1e-7)
    ratio = (q.log_prob(pi) - p.log_prob(pi)).numpy()
    error = ratio.std() / np.sqrt(len(ratio))
    assert abs(float(tfd.kl_divergence(q, p)) - ratio.mean()) < 4 * error
    assert abs(float(q.mean()) - pi.numpy().mean()) < 4 * pi.numpy().std() / np.sqrt(len(ratio))


def test_kl_refuses_other_betas():
    tfd = layers.distributions()
    with pytest.raises(ValueError, match="concentration0"):
        tfd.kl_divergence(tfd.Kumaraswamy(1.0, 1.0), tfd.Beta(1.0, 2.0))


def test_log_pi_is_the_inverse_distribution_function():
    mask = with_ab(0.7, 1.9)
    u = np.array([0.1, 0.5, 0.9], "float32")
    want = (1 - u ** (1 / 1.9)) ** (1 / 0.7)
    np.testing.assert_allclose(np.exp(mask.log_pi(tf.constant(u))), want, rtol=1e-5)


def test_relaxed_gate_by_hand():
    mask = with_ab(1.0, 1.0)  # pi = 1 - u
    gate = mask.gate(tf.constant([0.25]), tf.constant([[0.5], [0.2]]))
    logit = np.log(0.75 / 0.25) + np.log([1.0, 0.25])
    np.testing.assert_allclose(gate[:, 0], 1 / (1 + np.exp(-logit / 0.1)), rtol=1e-4)


def test_gradients_against_central_differences():
    mask = with_ab(0.9, 1.4)
    u, u_example = tf.constant([0.37]), tf.constant([[0.62], [0.41]])

    def objective():
        mean = tf.reduce_sum(mask.posterior(tf.float64).mean())
        gate = tf.reduce_sum(mask.gate(u, u_example) * [[1.0], [2.0]])
        return mask.kl() + tf.cast(mean, tf.float32) + gate

    for variable in (mask.a_, mask.b_):
        with tf.GradientTape() as tape:
            value = objective()
        gradient = float(tape.gradient(value, variable.value)[0])
        start, step = variable.numpy(), 1e-2
        ends = []
        for sign in (1, -1):
            variable.assign(start + sign * step)
            ends.append(float(objective()))
        variable.assign(start)
        assert gradient == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-3)


def test_no_nan_at_the_ends_of_the_parameters():
    for a_ in np.linspace(-20, 20, 9):
        for b_ in np.linspace(-20, 60, 9):
            mask = built(1, initial_a=float(a_), initial_b=float(b_))
            for u in (0.0, 1e-7, 0.5, 1 - 1e-7, 1.0):
                with tf.GradientTape() as tape:
                    gate = mask.gate(tf.constant([u]), tf.constant([[u]]))
                    value = tf.reduce_sum(gate) + mask.kl()
                got = tape.gradient(value, [mask.a_.value, mask.b_.value])
                assert np.isfinite(value) and all(np.isfinite(g).all() for g in got), (a_, b_, u)
            assert np.isfinite(mask.expected()).all()


def test_a_unit_below_minus_ten_cannot_come_back():
    mask = built(1, initial_a=-12.0)
    with tf.GradientTape() as tape:
        value = mask.kl()
    assert float(tape.gradient(value, mask.a_.value)[0]) == 0.0


def test_threshold_is_strict():
    mask = with_ab(1.0, 1.0)
    mask.threshold = 0.5  # E[pi] is exactly one half
    assert not mask.keep().any()
    mask.threshold = 0.499
    assert mask.keep().all()


@every_mask
def test_training_gates_differ_by_example_and_inference_does_not(make):
    mask = make(seed=1)
    x = np.ones((6, 4, 4, 5), "float32")
    trained = mask(x, training=True).numpy()
    assert np.ptp(trained, axis=(1, 2)).max() == 0  # one value for a channel of an example
    assert np.ptp(trained, axis=0).max() > 0
    alone, whole = mask(x[:1]).numpy(), mask(x).numpy()
    np.testing.assert_array_equal(whole[:1], alone)
    np.testing.assert_allclose(whole[0, 0, 0], mask.expected(), rtol=1e-6)


def test_one_pi_for_the_batch_and_another_for_the_next():
    """a = b = 1: pi is uniform. Halves of a batch open a channel alike, two batches do not."""
    mask = built(100, initial_a=unsoft(1.0), initial_b=unsoft(1.0))
    first, second = (mask.sample(4000).numpy() for _ in range(2))
    share = 4.5 * np.sqrt(2 * 0.25 / 2000)  # of the difference of two means
    assert np.abs(first[:2000].mean(0) - first[2000:].mean(0)).max() < share
    assert (np.abs(first.mean(0) - second.mean(0)) > share).mean() > 0.7
    assert first.mean(0).std() == pytest.approx(np.sqrt(1 / 12), abs=0.06)  # not E[pi] everywhere
    lively = first[:, np.abs(first.mean(0) - 0.5) < 0.3]
    assert (lively.std(0) > 0.25).all()  # gates of a channel differ between examples
    assert np.abs(np.corrcoef(lively[:, :6].T) - np.eye(6)).max() < 0.1  # and between channels


@every_mask
def test_frozen_mask_is_deterministic_in_training(make):
    mask = make(seed=1)
    x = np.ones((2, 3), "float32")
    mask(x)
    mask.trainable = False
    np.testing.assert_array_equal(mask(x, training=True), mask(x))


def test_relaxed_gate_has_mean_near_pi():
    mask = with_ab(1.0, 1.0)
    u_example = tf.random.stateless_uniform((20_000, 1), (1, 2))
    for u in (0.2, 0.5, 0.8):
        mean = float(tf.reduce_mean(mask.gate(tf.constant([u]), u_example)))
        assert mean == pytest.approx(1 - u, abs=0.02)


@every_mask
def test_keras_round_trip(make, tmp_path):
    net = bank.classifier(mask=make)
    for mask in layers.masks(net):
        bank.half_shut(mask)
    net.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    x = bank.images()
    np.testing.assert_array_equal(again(x, training=False), net(x, training=False))
    assert layers.kept(again) == layers.kept(net)
    assert 0 < layers.kept(net)[0][1] < layers.kept(net)[0][2]


@pytest.mark.parametrize(
    "bad", [{"alpha": 0}, {"temperature": -1}, {"threshold": 1.0}], ids=lambda d: next(iter(d))
)
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        layers.BetaBernoulliMask(**bad)


def test_keep_before_build():
    with pytest.raises(ValueError, match="has no channels yet"):
        layers.BetaBernoulliMask().keep()


def test_parameter_counts_of_the_sheet():
    assert models.lenet5_caffe().count_params() == 431_080
    masked = models.lenet5_caffe(mask=layers.BetaBernoulliMask)
    assert sum(int(np.prod(v.shape)) for v in masked.trainable_variables) == 431_080 + 2_740
