"""The whole way on keras.applications: prepare, insert, one fit step, shrink, reload, export."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.bank_masks import images
from tests.test_shrink import assert_same_logits
from tfrobust import attacks, export, graph, shrink, threats, training
from tfrobust.layers import BetaBernoulliMask, insert_masks, masks
from tfrobust.models import prepare

SHAPE = (32, 32, 3)
NETS = {"MobileNetV3Small": (0, 255), "ResNet50V2": (-1, 1)}
# Least variance of a gated random net: with less, fifty layers of ResNet50V2 amplify the float32
# rounding of either net (against float64) to more than the tolerance.
FLOOR = {"MobileNetV3Small": 0.0, "ResNet50V2": 0.1}


def _norms(net):
    return [layer for layer in net.layers if isinstance(layer, layers.BatchNormalization)]


def _fit_statistics(net, x, floor=0.0):
    """Normalization that fits the data: images matter to the logits however deep the net is."""
    momenta = [norm.momentum for norm in _norms(net)]
    for norm in _norms(net):
        norm.momentum = 0.0
    net(x, training=True)
    for norm, momentum in zip(_norms(net), momenta, strict=True):
        norm.momentum = momentum
        norm.moving_variance.assign(keras.ops.maximum(norm.moving_variance, floor))


def _random(name):
    net = getattr(keras.applications, name)(weights=None, input_shape=SHAPE, classes=6)
    rng = np.random.default_rng(0)
    for norm in _norms(net):
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0.2, 0.3, norm.beta.shape))
    low, high = NETS[name]
    _fit_statistics(net, images(32, SHAPE) * (high - low) + low)
    return net


def _shut_half(model, floor):
    rng = np.random.default_rng(0)
    for mask in masks(model):
        size = mask.a_.shape[0]
        mask.a_.assign(np.where(rng.permutation(size) < size // 2, -20.0, 3.0))
        assert mask.keep().sum() == size - size // 2
        mask.trainable = False  # the expected gate from here on
    _fit_statistics(model, images(32, SHAPE), floor)


@pytest.mark.slow
@pytest.mark.parametrize("slot", ["after_activation", "before_activation"])
@pytest.mark.parametrize("name", NETS)
def test_prepare_insert_fit_shrink_export(name, slot, tmp_path):
    low, high = NETS[name]
    source, x = _random(name), images(256, SHAPE, seed=1)
    net = prepare(source, NETS[name])
    probabilities = source(x[:32] * (high - low) + low, training=False)
    np.testing.assert_allclose(
        keras.ops.softmax(net(x[:32], training=False)), probabilities, rtol=0, atol=1e-5
    )

    masked = insert_masks(net, BetaBernoulliMask, slot)
    assert len(masks(masked)) > 30
    game = training.AdversarialTraining(masked, attacks.FGSM(threats.Linf(4 / 255)))
    game.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = masked.get_weights()
    game.fit(x[:16], np.arange(16) % 6, batch_size=16, verbose=0)
    assert sum((a != b).any() for a, b in zip(before, masked.get_weights(), strict=True)) > 100

    _shut_half(masked, FLOOR[name])
    small = shrink.compact(masked)
    logits = np.asarray(masked(x, training=False))
    assert logits.std(axis=0).max() > 0.1
    assert_same_logits(masked, small, x)
    assert small.count_params() < 0.55 * net.count_params()
    assert all(type(node.layer).__module__.startswith("keras.") for node in graph.walk(small).nodes)

    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(again(x[:32]), small(x[:32]), rtol=0, atol=1e-6)
    exported = export.tflite(small, tmp_path / "small.tflite")
    assert exported.parity <= 1e-4
