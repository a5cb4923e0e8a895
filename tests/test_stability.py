"""Penalties on boxes and the IBP initialisation, on nets small enough to work by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tfrobust.bounds import Box, Program
from tfrobust.training.stability import kinks

THREAT = tr.threats.Linf(0.1)


def two():
    """relu(x1 - x2), relu(x1 + x2 - 3): boxes by hand for x = (0.5, 0.5), radius 0.1."""
    inputs = keras.Input((2,))
    x = keras.layers.Dense(2, activation="relu", name="hidden")(inputs)
    net = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    net.layers[1].set_weights([np.array([[1.0, 1.0], [-1.0, 1.0]]), np.array([0.0, -3.0])])
    return net


def value(regularizer, game, x):
    batch = tr.training.Batch(tf.constant(x), tf.constant([0]), None, tf.constant(x), 1)
    return regularizer.penalty(game, batch).numpy()


X = np.array([[0.5, 0.5]], "float32")


def test_stability_by_hand():
    game = tr.training.CertifiedTraining(two(), THREAT)
    found = value(tr.training.ReLUStability(2.0), game, X)
    want = -2.0 * (np.tanh(1 - 0.2 * 0.2) + np.tanh(1 + 1.8 * 2.2))
    np.testing.assert_allclose(found, [want], rtol=1e-5)
    # Elsewhere it bounds the ball of the attack itself.
    adversarial = tr.training.AdversarialTraining(two(), tr.attacks.FGSM(THREAT))
    np.testing.assert_allclose(value(tr.training.ReLUStability(2.0), adversarial, X), found)


def test_tightness_by_hand_and_its_fading():
    ramp = tr.training.Ramp(0.1, length=4)
    game = tr.training.CertifiedTraining(two(), THREAT, epsilon=ramp)
    game.step.assign(1)
    # Radius 0.025 becomes 0.05: ratio 1/2, short of 0.8 by 0.3; three quarters of the weight.
    found = value(tr.training.BoxTightness(1.0, 0.8), game, X)
    np.testing.assert_allclose(found, [0.75 * 0.3 / 0.8], rtol=1e-4)
    game.step.assign(4)
    assert value(tr.training.BoxTightness(1.0, 0.8), game, X) == 0
    game.step.assign(0)
    assert value(tr.training.BoxTightness(1.0, 0.8), game, X) == 0  # nothing has a width yet


def test_balance_by_hand():
    """Centres on: 1, 3 (mean 2, variance 1); off: -8, -8.2 (mean -8.1, variance 0.01)."""
    centre = tf.constant([[1.0, 3.0, -8.0, -8.2, 0.0]])
    box = Box(centre - 0.5, centre + 0.5)
    image = Box(tf.zeros((1, 2)), tf.ones((1, 2)))
    found = tr.training.ReLUBalance(1.0, 0.5).of([box], image).numpy()
    np.testing.assert_allclose(found, [(0.5 - 2 / 8.1) / 0.5 + (0.5 - 0.01) / 0.5], rtol=1e-4)
    on = Box(centre + 10, centre + 11)
    assert tr.training.ReLUBalance(1.0, 0.5).of([on], image).numpy() == 0


def test_kinks_are_told_by_what_they_do():
    inputs = x = keras.Input((4,))
    for number, activation in enumerate(("relu", "tanh", "leaky_relu", "elu", "linear", "relu6")):
        x = keras.layers.Dense(3, activation=activation, name=f"{activation}{number}")(x)
    net = keras.Model(inputs, keras.layers.Dense(2)(x))
    program = Program(net)
    assert len(kinks(program)) == 3  # relu, leaky_relu, relu6
    assert tf.function(lambda: tf.constant(kinks(program)))().shape == (3,)


def test_initialisation_keeps_the_width_of_boxes():
    net = tr.models.cifar_large(input_shape=(28, 28, 1), width=0.5)
    first = [v.numpy() for v in net.trainable_variables]
    names = tr.training.ibp_initialization(net, seed=1)
    assert names == ["conv1", "conv2", "conv3", "conv4", "dense5", "dense6"]
    for v, before in zip(net.trainable_variables, first, strict=True):
        kept = v.path.startswith("logits") or v.path.endswith("bias")
        assert kept == (v.numpy() == before).all(), v.path
    kernel = net.get_layer("dense5").get_weights()[0]
    assert kernel.std() * kernel.shape[0] == pytest.approx(np.sqrt(2 * np.pi), rel=0.02)
    program, x = Program(net), tf.constant(bank.images(4, (28, 28, 1)))
    region = tr.bounds.Region.around(tr.threats.Linf(0.01), x)
    boxes = program.boxes(region, [program.output])
    widths = [float(tf.reduce_mean(boxes[number].radius)) for number in kinks(program)]
    assert max(widths) < 3 * min(widths)
    again = tr.models.cifar_large(input_shape=(28, 28, 1), width=0.5)
    tr.training.ibp_initialization(again, seed=1)
    np.testing.assert_array_equal(kernel, again.get_layer("dense5").get_weights()[0])


def test_kernels_behind_a_sum_are_halved():
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, name="a")(inputs)
    x = keras.layers.ReLU()(keras.layers.Add()([inputs, x]))
    x = keras.layers.ReLU()(keras.layers.Dense(64, name="b")(x))
    net = keras.Model(inputs, keras.layers.Dense(2)(x))
    assert tr.training.ibp_initialization(net) == ["a", "b"]
    scales = [net.get_layer(name).get_weights()[0].std() * 64 for name in "ab"]
    np.testing.assert_allclose(scales, np.sqrt(2 * np.pi) * np.array([1, 0.5]), rtol=0.05)


@pytest.mark.parametrize("kind", ["ReLUStability", "BoxTightness", "ReLUBalance"])
def test_what_is_refused(kind):
    make = getattr(tr.training, kind)
    with pytest.raises(ValueError, match="`weight` must be"):
        make(-1.0)
    inputs = keras.Input((2,))
    net = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="must have ReLUs"):
        value(make(1.0), tr.training.CertifiedTraining(net, THREAT), X)
    with pytest.raises(ValueError, match="`attack` must be given"):
        value(make(1.0), tr.training.AdversarialTraining(two(), None), X)
