"""The gradient by the image: the faster way back through a convolution is the usual gradient."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tfrobust import attacks, losses, threats
from tfrobust.attacks import backward

KERNELS = [(1, 1), (2, 4), (3, 3), (5, 5)]
PADS = ["VALID", "SAME", [[0, 0], [1, 0], [0, 2], [0, 0]], [[0, 0], [0, 0], [5, 6], [0, 0]]]
MOVES = [(1, 1), (2, 1), (1, 2)]  # strides, dilations


def both(shape, *answers):
    """For each answer (gradient of `answer(x)` by the image, what a tape says); one graph."""
    x = tf.random.stateless_normal(shape, (1, 2))

    def ours(x, answer):
        with backward.Passes(x) as passes:
            y = answer(x)
        return passes.gradient(y)

    def taped(answer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = answer(x)
        return tape.gradient(y, x).numpy()

    graph = tf.function(lambda x: [ours(x, answer) for answer in answers], autograph=False)
    return [(found.numpy(), taped(a)) for found, a in zip(graph(x), answers, strict=True)]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("pad", PADS, ids=["valid", "same", "explicit", "wide"])
def test_convolutions(channels, pad):
    # TensorFlow has no gradient of a dilated convolution with explicit padding on processors.
    moves = MOVES if isinstance(pad, str) else [move for move in MOVES if move[1] == 1]
    answers = []
    for kernel, (stride, dilation) in itertools.product(KERNELS, moves):
        weights = tf.random.stateless_normal((*kernel, channels, 6), (3, 4))

        def answer(x, weights=weights, stride=stride, dilation=dilation):
            z = tf.nn.conv2d(x, weights, stride, pad, dilations=dilation)
            return tf.reduce_sum(tf.sin(z), [1, 2, 3])

        answers.append(answer)
    for ours, tape in both((3, 9, 10, channels), *answers):
        np.testing.assert_allclose(ours, tape, atol=2e-5)


@pytest.mark.parametrize(
    "channels, kernel, moves, fast",
    [
        (1, (5, 5), (1, 1), True),
        (3, (3, 3), (1, 1), True),
        (8, (3, 3), (1, 1), False),
        (3, (3, 3), (2, 1), False),
        (1, (3, 3), (1, 2), False),
    ],
)
def test_which_convolutions_are_turned_around(channels, kernel, moves, fast):
    x, weights = tf.zeros((2, 12, 12, channels)), tf.zeros((*kernel, channels, 4))
    y = tf.nn.conv2d(x, weights, moves[0], "SAME", dilations=moves[1])
    settings = {
        "strides": [1, moves[0], moves[0], 1],
        "dilations": [1, moves[1], moves[1], 1],
        "padding": "SAME",
        "explicit_paddings": [],
        "data_format": "NHWC",
    }
    found = backward.by_blocks(x.shape, weights, y, settings)
    assert (found is not None) == fast


def test_through_a_kernel_that_depends_on_the_image():
    def answer(x):
        kernel = tf.reshape(x[0, :3, :3, 0], (3, 3, 1, 1))
        return tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME") ** 2)

    ((ours, tape),) = both((2, 8, 8, 1), answer)
    np.testing.assert_allclose(ours, tape, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_models_with_colours(dtype):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        keras.utils.set_random_seed(0)
        net = keras.Sequential(
            [
                keras.Input((10, 12, 3)),
                keras.layers.Rescaling(2.0, -1.0),
                keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Conv2D(8, 3, activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(4, dtype="float32"),
            ]
        )
    finally:
        keras.config.set_dtype_policy(before)
    y = tf.constant([0, 1, 2])
    ((ours, tape),) = both(
        (3, 10, 12, 3), lambda x: losses.cross_entropy(attacks.logits_of(net, x), y)
    )
    np.testing.assert_allclose(ours, tape, atol=1e-5 if dtype == "float32" else 1e-3)


def test_gradients_in_the_body_of_a_loop_and_of_what_does_not_depend():
    x = tf.random.stateless_normal((2, 4), (1, 2))

    @tf.function(autograph=False)
    def ours(x):
        with backward.Passes(x) as passes:
            y = x**2
        inside = tf.while_loop(
            lambda i, _: i < 3,
            lambda i, total: (i + 1, total + passes.gradient(y, tf.ones_like(y))),
            (0, tf.zeros_like(x)),
        )[1]
        return inside, passes.gradient(tf.constant(1.0)), passes.gradient(y, 2 * tf.ones_like(y))

    inside, none, twice = ours(x)
    np.testing.assert_allclose(inside, 6 * x, rtol=1e-6)
    np.testing.assert_allclose(twice, 4 * x, rtol=1e-6)
    assert not none.numpy().any()


def test_an_attack_finds_what_it_finds_by_the_usual_gradient(monkeypatch):
    net, x = bank.classifier(), bank.images(16)
    y = attacks.forward(net, x).argmax(-1)
    found = attacks.PGD(threats.Linf(0.1), steps=5, loss="margin").result(net, x, y)
    monkeypatch.setattr(backward, "BLOCKS", {})
    usual = attacks.PGD(threats.Linf(0.1), steps=5, loss="margin").result(net, x, y)
    assert (found.fooled == usual.fooled).all() and found.fooled.any()
    loss = [
        losses.margin(tf.constant(attacks.forward(net, r.x_adv)), tf.constant(y))
        for r in (found, usual)
    ]
    np.testing.assert_allclose(*loss, atol=1e-3)
