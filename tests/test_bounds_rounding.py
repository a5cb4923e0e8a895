"""Rounding: what float32 may lose in sums whose terms cancel is not certified."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.test_bounds import by_hand
from tfrobust import bounds
from tfrobust.bounds import Program, Region
from tfrobust.threats import Linf


def test_certified_leaves_room_for_rounding():
    """A margin of 0.2 behind bounds of 8e4, which float32 rounds to 8e-3 (allowed for: 0.8)."""
    net, x = by_hand()
    first, bias, second, zero = net.get_weights()
    net.set_weights([1e5 * first, 1e5 * bias, second / 1e5, zero])
    np.testing.assert_allclose(bounds.margins(net, x, [0], Linf(0.1)), [0.2], atol=1e-4)
    assert not bounds.certified(net, x, [0], Linf(0.1)).any()


def sums(net, x, method, epsilon=0.0):
    """(least margin of label 1, what rounding may have added) of one image."""
    region = Region.around(Linf(epsilon), tf.constant(x))
    found = bounds.METHODS[method](Program(net), region, tf.constant([1]))[0]
    return float(found[0]), float(found[-1])


@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "DepthwiseConv2D", "BatchNormalization"])
def test_certified_leaves_room_for_what_cancels(kind):
    """Terms of 1e4 x that leave 0.1: float32 answers 0 or 1 by the size of the batch."""
    rng, count = np.random.default_rng(0), 500
    x = rng.uniform(size=(1, 1, count, 1)).astype("float32")
    kernel = 1e4 * rng.normal(size=(count, 2)).astype("float32")
    kernel[:, 0] = 0.0
    bias = 0.1 - x[0, 0, :, 0].astype(float) @ kernel.astype(float)
    bias[0] = 0.0
    inputs = h = keras.Input((1, count, 1))
    if kind in ("Conv2D", "DepthwiseConv2D"):
        more = {"depth_multiplier" if kind == "DepthwiseConv2D" else "filters": 2}
        layer = getattr(layers, kind)(kernel_size=(1, count), **more)
        net = keras.Model(inputs, layers.Flatten()(layer(h)))
        layer.set_weights([kernel.reshape(layer.kernel.shape), bias])
        largest = x.ravel() if kind == "DepthwiseConv2D" else np.ones(count)  # of each channel
        largest = (largest @ np.abs(kernel) + np.abs(bias)).max()
    elif kind == "Dense":
        net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
        net.layers[-1].set_weights([kernel, bias])
        largest = (x.ravel() @ np.abs(kernel) + np.abs(bias)).max()
    else:  # 1e4 (x - mean), where the mean is the image
        h = layers.BatchNormalization(epsilon=1e-3)(layers.Flatten()(h))
        net = keras.Model(inputs, layers.Dense(2)(h))
        one = np.ones(count)
        net.layers[-2].set_weights([1e4 * one, 0 * one, x.ravel(), one - 1e-3])
        net.layers[-1].set_weights([kernel / 1e6, np.array([0.0, 0.1])])
        largest = 2e4 * x.max()
    for method in ("ibp", "crown-ibp"):
        margin, rounding = sums(net, x, method)
        assert margin < rounding, method
        assert 0.98e-5 * largest <= rounding <= 1.1e-5 * largest


def test_crown_allows_for_what_cancels_in_its_functions():
    """h = relu(1e3 (x1 - x2) + 0.05), z = (0, 1e3 h): a function of 1e6 x1 - 1e6 x2."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(1, activation="relu")(inputs)
    net = keras.Model(inputs, layers.Dense(2)(hidden))
    weights = [[[1e3], [-1e3]], [0.05], [[0.0, 1e3]], [0.0, 0.0]]
    net.set_weights([np.array(w) for w in weights])
    x = np.array([[0.5, 0.5]], "float32")
    np.testing.assert_allclose(sums(net, x, "ibp", 1e-5), [30.0, 0.01], rtol=0.01)
    for method in ("crown-ibp", "crown"):
        np.testing.assert_allclose(sums(net, x, method, 1e-5), [30.0, 10.0], rtol=0.01)
