"""Layers of spectral norm 1: the norm, the gradient through it, what stays as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import layers


def top(layer):
    return np.linalg.svd(np.asarray(layer.effective()), compute_uv=False)[0]


def dense(rows=7, units=5, **options):
    layer = layers.SNDense(units, **options)
    layer.build((None, rows))
    return layer


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_largest_singular_value_becomes_one(scale):
    """Also of a matrix that is small: it is scaled up."""
    wide, rows = dense(), layers.SNEmbedding(4, 6)
    rows.build()
    for layer in (wide, rows):
        layer.kernel.assign(scale * np.asarray(layer.kernel))
        kernel = layer.kernel.numpy()
        for _ in range(50):
            layer.effective(training=True)
        assert abs(top(layer) - 1) < 1e-3
        np.testing.assert_array_equal(layer.kernel.numpy(), kernel)
    assert np.linalg.norm(rows(np.arange(4)), axis=1).max() <= 1 + 1e-3


def test_bounds_its_change():
    layer, rng = dense(use_bias=True), np.random.default_rng(0)
    for _ in range(50):
        layer(np.zeros((2, 7), "float32"), training=True)
    a, b = rng.normal(size=(2, 200, 7)).astype("float32")
    moved = np.linalg.norm(layer(a) - layer(b), axis=1)
    assert (moved <= 1.001 * np.linalg.norm(a - b, axis=1)).all()


def test_gradient_passes_through_sigma():
    """L(W / sigma(W)) does not know the scale of W: <W, dL/dW> = 0; and a difference quotient."""
    layer = dense(use_bias=False)
    for _ in range(200):
        layer.effective(training=True)
    x = tf.constant(np.random.default_rng(1).normal(size=(3, 7)), tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(layer(x)))
    (gradient,) = tape.gradient(loss, layer.trainable_variables)
    kernel, gradient = layer.kernel.numpy(), gradient.numpy()
    assert np.abs(np.sum(kernel * gradient)) < 1e-4 * np.abs(gradient).max()

    def exact(w):
        w = w / np.linalg.svd(w, compute_uv=False)[0]
        return np.sum(np.sin(x.numpy().astype("float64") @ w))

    step = np.zeros(kernel.shape)
    step[2, 3] = 1e-5
    quotient = (exact(kernel.astype("float64") + step) - exact(kernel - step)) / 2e-5
    assert gradient[2, 3] == pytest.approx(quotient, abs=1e-3)


def test_u_moves_in_training_only():
    layer, x = dense(), np.ones((2, 7), "float32")
    u = layer.u.numpy()
    np.testing.assert_array_equal(layer(x), layer(x))
    np.testing.assert_array_equal(layer.u.numpy(), u)
    layer(x, training=True)
    assert np.abs(layer.u.numpy() - u).max() > 0
    assert [v.name for v in layer.trainable_variables] == ["kernel", "bias"]


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_rows_of_any_labels(dtype):
    layer, y = layers.SNEmbedding(3, 4), np.array([0, 2, 2, 1], dtype)
    with tf.GradientTape() as tape:
        rows = layer(tf.constant(y), training=True)
        loss = tf.reduce_sum(tf.sin(rows))
    assert rows.dtype == tf.float32 and np.abs(tape.gradient(loss, layer.kernel.value)).min() > 0
    np.testing.assert_array_equal(rows[1], rows[2])
    assert layer(tf.constant(y[:1])).shape == (1, 4)  # a smaller last batch


def test_round_trip_in_a_functional_model(tmp_path):
    h, y = keras.Input((6,)), keras.Input((), dtype="int64")
    mixed = {"dtype": "mixed_float16"}
    product = keras.layers.Dot(1)([layers.SNEmbedding(3, 5)(y), layers.SNDense(5)(h)])
    model = keras.Model([h, y], [product, layers.SNDense(2, **mixed)(h)])
    given = [np.random.default_rng(0).normal(size=(4, 6)).astype("float32"), np.array([0, 1, 2, 2])]
    model(given, training=True)
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    for one, two in zip(model(given), again(given), strict=True):
        np.testing.assert_array_equal(one, two)
    assert one.dtype == tf.float16


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.SNDense(0), "`units` must be an integer >= 1"),
        (lambda: layers.SNEmbedding(0, 3), "`classes` must be an integer >= 1"),
        (lambda: layers.SNDense(3, iterations=0), "`iterations` must be an integer >= 1"),
        (lambda: layers.SNDense(3)(keras.Input((None,))), "must know its features"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
