"""Random models to bound, legal points around images, and the check that none leaves its box."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests import bank
from tests.bank_masks import SHAPE, randomize
from tfrobust.bounds import Box, Program
from tfrobust.threats import Linf


def model_of(function, shape=SHAPE):
    """A functional model with random weights, biases and statistics."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input(shape)
    model = randomize(keras.Model(inputs, function(inputs)))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.scale:
            layer.gamma.assign(layer.gamma * np.resize([-1.0, 1.0], layer.gamma.shape))
    return model


def box_of(x, epsilon):
    return Box(*Linf(epsilon).box(tf.constant(x)))


def points(x, epsilon, count):
    """`count` legal points for each image: half of them corners of its box."""
    rng = np.random.default_rng(7)
    noise = rng.uniform(-1, 1, (count, *x.shape))
    noise[::2] = np.sign(noise[::2])
    return np.clip(x + epsilon * noise, 0, 1).astype("float32").reshape(-1, *x.shape[1:])


def assert_contained(model, epsilon=0.05, count=250, images=4):
    """Every value of every layer lies in its box, for 1,000 points."""
    program, x = Program(model), bank.images(images, model.input_shape[1:])
    boxes = program.boxes(box_of(x, epsilon), [program.output])
    values = {0: tf.constant(points(x, epsilon, count))}
    for number, (step, sources) in enumerate(program.steps, 1):
        values[number] = step(*(values[s] for s in sources))
    np.testing.assert_allclose(
        values[program.output], model(values[0], training=False), rtol=1e-4, atol=1e-5
    )
    for number, box in boxes.items():
        lower, upper = (bound.numpy() for bound in box)
        value = values[number].numpy().reshape(count, *lower.shape)
        slack = 1e-5 * max(1.0, np.abs(value).max())
        assert (value >= lower - slack).all() and (value <= upper + slack).all(), number
        assert (lower <= upper).all()
