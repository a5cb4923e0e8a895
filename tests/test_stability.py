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
    """Centres 1, 3 on; -8, -12 off; 0 open: 4 / 20, and about the mean -3.2 of all of them."""
    centre = tf.constant([[1.0, 3.0], [-8.0, -12.0], [0.0, -3.2]])
    box = Box(centre - 0.5, centre + [[0.5, 0.5], [0.5, 0.5], [0.5, 4.0]])
    centre = box.centre.numpy()
    mean = centre.mean()
    means = 4 / 20
    spreads = ((1 - mean) ** 2 + (3 - mean) ** 2) / ((-8 - mean) ** 2 + (-12 - mean) ** 2)
    assert mean == pytest.approx(-2.9083, abs=1e-3) and 0.4 < spreads < 0.5
    image, balance = Box(tf.zeros((3, 2)), tf.ones((3, 2))), tr.training.ReLUBalance(1.0, 0.5)
    want = (0.5 - means) / 0.5 + (0.5 - spreads) / 0.5
    np.testing.assert_allclose(balance.of([box], image), 3 * [want], rtol=1e-4)
    # Which kind has more does not matter, nor who is open; a layer of one kind costs the most.
    turned = Box(-box.upper, -box.lower)
    np.testing.assert_allclose(balance.of([turned], image), 3 * [want], rtol=1e-4)
    for shift, cost in ((20, 2), (-20, 2)):
        assert balance.of([Box(box.lower + shift, box.upper + shift)], image).numpy()[0] == cost
    assert balance.of([Box(box.lower - 20, box.upper + 20)], image).numpy()[0] == 0


def test_kinks_are_told_by_what_they_do():
    inputs = x = keras.Input((4,))
    for number, activation in enumerate(("relu", "tanh", "leaky_relu", "elu", "linear", "relu6")):
        x = keras.layers.Dense(3, activation=activation, name=f"{activation}{number}")(x)
    net = keras.Model(inputs, keras.layers.Dense(2)(x))
    program = Program(net)
    assert len(kinks(program)) == 3  # relu, leaky_relu, relu6
    assert tf.function(lambda: tf.constant(kinks(program)))().shape == (3,)


@pytest.mark.parametrize("shared", [None, [1, 2]])
def test_a_prelu_has_a_kink(shared):
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.PReLU(shared_axes=shared)(keras.layers.Conv2D(4, 3)(inputs))
    net = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    program = Program(net)
    assert kinks(program) == [1] == program.bent
    found = value(tr.training.ReLUStability(1.0), tr.training.CertifiedTraining(net, THREAT),
                  np.full((1, 6, 6, 1), 0.5, "float32"))  # fmt: skip
    assert -64 < found[0] < 0  # of 4 x 4 x 4 tanh


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


JOINS = {
    "Add": 0.5,
    "Subtract": 0.5,
    "Average": 1.0,
    "Concatenate": 1.0,
    "Multiply": 1.0,
    "Maximum": 1.0,
}


@pytest.mark.parametrize("join", JOINS)
def test_kernels_behind_other_joins_are_not(join):
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, name="a")(inputs)
    x = keras.layers.ReLU()(getattr(keras.layers, join)()([inputs, x]))
    x = keras.layers.ReLU()(keras.layers.Dense(64, name="b")(x))
    net = keras.Model(inputs, keras.layers.Dense(2)(x))
    tr.training.ibp_initialization(net)
    kernel = net.get_layer("b").get_weights()[0]
    want = JOINS[join] * np.sqrt(2 * np.pi)
    assert kernel.std() * len(kernel) == pytest.approx(want, rel=0.05)


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
