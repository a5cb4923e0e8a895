"""Threats: projections, starts and steps against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tests import bank
from tfrobust import noise, threats


@pytest.mark.parametrize("threat", bank.THREATS, ids=repr)
def test_projection_lands_inside_and_stays(threat):
    x, far = bank.images(seed=0), bank.images(seed=1) * 3 - 1
    near = threat.project(far, x)
    assert tf.reduce_max(threat.distance(near, x)) <= threat.epsilon * (1 + 1e-6) + 1e-7
    assert tf.reduce_min(near) >= 0 and tf.reduce_max(near) <= 1
    np.testing.assert_allclose(threat.project(near, x), near, atol=1e-6)


@pytest.mark.parametrize("threat", bank.THREATS, ids=repr)
def test_zero_radius_gives_x_back(threat):
    x = bank.images()
    np.testing.assert_array_equal(threat.project(bank.images(seed=1), x, epsilon=0.0), x)


@pytest.mark.parametrize("threat", bank.THREATS, ids=repr)
def test_random_start_is_legal_and_per_example(threat):
    x = np.repeat(bank.images(1), 200, 0) * 0.2 + 0.4
    start = threat.random_start(x, noise.keys(0, "start", tf.range(200)))
    size = threat.distance(start, x).numpy()
    assert size.max() <= threat.epsilon * (1 + 1e-6) + 1e-7
    assert size.min() > 0.8 * threat.epsilon  # almost all volume lies near the surface
    assert np.abs(start.numpy()[0] - start.numpy()[1]).max() > 0


@pytest.mark.parametrize("threat", bank.THREATS, ids=repr)
def test_ascent_is_the_best_unit_step(threat):
    gradient = tf.constant(bank.images(seed=3) - 0.5)
    x = tf.fill(gradient.shape, 0.5)
    step = threat.ascent(gradient, x)
    length = threat.distance(x + step, x).numpy()
    assert (length <= 1 + 1e-5).all()
    if threat.norm != "l1":  # L1 spreads the step over the largest 5 % on purpose
        gain = tf.reduce_sum(step * gradient, (1, 2, 3))
        dual = {"linf": tf.reduce_sum(tf.abs(gradient), (1, 2, 3)),
                "l2": tf.sqrt(tf.reduce_sum(gradient**2, (1, 2, 3)))}[threat.norm]  # fmt: skip
        np.testing.assert_allclose(gain, dual, rtol=1e-4)
    np.testing.assert_array_equal(threat.ascent(tf.zeros_like(x), x), tf.zeros_like(x))


def test_l1_step_leaves_blocked_pixels_alone():
    x = tf.constant([[0.0, 1.0, 0.5, 0.5]])
    gradient = tf.constant([[-9.0, 9.0, 1.0, -2.0]])
    step = threats.L1(1.0, quantile=0.75).ascent(gradient, x)
    np.testing.assert_array_equal(step, [[0.0, 0.0, 0.0, -1.0]])


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10_000), st.floats(0.05, 2.0))
def test_l1_projection_equals_a_quadratic_program(size, seed, epsilon):
    rng = np.random.default_rng(seed)
    x, z = rng.uniform(0, 1, size), rng.normal(0, 1, size)
    got = threats.L1(epsilon).project(tf.constant((x + z)[None], tf.float32), x[None].astype("f"))
    got = got.numpy()[0] - x
    # Split the change into positive and negative parts: a smooth problem with linear constraints.
    solved = minimize(
        lambda d: np.sum((d[:size] - d[size:] - z) ** 2),
        np.zeros(2 * size),
        bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
        constraints={"type": "ineq", "fun": lambda d: epsilon - d.sum()},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 300},
    )
    want = solved.x[:size] - solved.x[size:]
    assert np.abs(got).sum() <= epsilon * (1 + 1e-5) + 1e-6
    assert np.sum((got - z) ** 2) <= np.sum((want - z) ** 2) + 1e-4
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("threat", bank.THREATS, ids=repr)
def test_config_round_trip(threat):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(threat))
    assert again == threat and hash(again) == hash(threat)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: threats.Linf(8), ValueError, "write 8/255"),
        (lambda: threats.L2(-1), ValueError, "`epsilon` must be finite and >= 0"),
        (lambda: threats.L1(float("nan")), ValueError, "`epsilon`"),
        (lambda: threats.Linf("8/255"), TypeError, "`epsilon` must be a number"),
        (lambda: threats.L1(1, quantile=1.0), ValueError, "`quantile`"),
    ],
)
def test_bad_radius(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_noise_is_uniform_and_a_function_of_the_example():
    keys = noise.keys(3, "stream", np.arange(2000))
    u = noise.uniform(keys, (50,)).numpy()
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.std() - 12**-0.5) < 0.005
    assert 0 <= u.min() and u.max() < 1
    np.testing.assert_array_equal(noise.uniform(keys[5:7], (50,)), u[5:7])
    n = noise.normal(keys, (50,)).numpy()
    assert abs(n.mean()) < 0.01 and abs(n.std() - 1) < 0.01
    other = noise.uniform(noise.keys(3, "other", np.arange(2000)), (50,)).numpy()
    assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.01
