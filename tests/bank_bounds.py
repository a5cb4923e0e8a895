"""Random models to bound, legal points around images, and the check that none leaves its box."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests import bank
from tests.bank_masks import SHAPE, randomize
from tfrobust import losses
from tfrobust.bounds import Box, Program, Region, backward, forward
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


def assert_contained(model, epsilon=0.05, count=250, images=4, mode=None, found=None):
    """Every value of every layer lies in its box, for 1,000 points; with a mode in CROWN's.

    Args:
        found: Legal points in place of random ones, `(count * images, ...)`, image by image.
    """
    count = count if found is None else len(found) // images
    program, x = Program(model), bank.images(images, model.input_shape[1:])
    region = box_of(x, epsilon)
    boxes = program.boxes(region, [program.output])
    if mode:
        boxes = backward.tightened(program, region, mode)
    values = {0: tf.constant(points(x, epsilon, count) if found is None else found)}
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


def relaxed(program, region, y, method):
    """Margins `(batch, classes)` of one relaxation alone: "zero", "full adaptive", "symbolic"."""
    if method == "ibp":
        return program.margins(region, y).numpy()
    if method == "symbolic":
        return forward.margins(program, region, y).numpy()
    full, _, mode = method.rpartition(" ")
    boxes = backward.tightened(program, region, mode) if full else None
    return backward.margins(program, region, y, mode, boxes).numpy()


def mlp(seed, widths=(4, 8, 8, 3), activation="relu"):
    """A dense net with normal weights, two images each of some labels."""
    rng = np.random.default_rng(seed)
    inputs = x = keras.Input(widths[:1])
    for width in widths[1:-1]:
        x = layers.Dense(width, activation)(x)
    net = keras.Model(inputs, layers.Dense(widths[-1])(x))
    net.set_weights([rng.normal(size=w.shape) for w in net.get_weights()])
    x = rng.uniform(size=(6, widths[0])).astype("float32")
    return net, x, np.arange(6) % widths[-1]


def assert_margins_hold(model, methods, threat=None, count=250, images=4, found=None):
    """No point of the ball has a smaller margin than a bound says, for 1,000 points."""
    count = count if found is None else len(found) // images
    threat = threat or Linf(0.05)
    program, x = Program(model), bank.images(images, model.input_shape[1:])
    y = np.arange(images) % program.classes
    many = points(x, threat.epsilon, count) if found is None else found
    many = threat.project(many, np.tile(x, (count, *[1] * (x.ndim - 1))))
    logits = losses.as_logits(model(many, training=False)).numpy()
    logits = logits.reshape(count, images, program.classes)
    least = (logits[:, np.arange(images), y][..., None] - logits).min(0)
    region = Region.around(threat, tf.constant(x))
    for method in methods:
        bound = relaxed(program, region, y, method)
        slack = 1e-5 * max(1.0, np.abs(logits).max(), np.abs(bound).max())
        assert (bound <= least + slack).all(), (method, np.max(bound - least))
        assert np.isfinite(bound).all(), method
