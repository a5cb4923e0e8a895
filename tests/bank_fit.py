"""Games of a tiny dense net, and the weights that their `fit` ends with."""

import keras
import numpy as np

import tfrobust as tr
from tests import bank

CLASSES = 4
STEP = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2, random_start=False)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SGD = keras.optimizers.SGD


def net(classes=CLASSES, mask=None, normalized=False, seed=0):
    """Dense net without noise, unless masked."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((4, 4, 1))
    x = keras.layers.Dense(6)(keras.layers.Flatten()(x))
    if normalized:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    if mask is not None:
        x = mask(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x))


def at_vs(classifier=None, attack=STEP, mix=(1, 2), **kwargs):
    return tr.training.AdversarialTraining(
        classifier or net(),
        attack,
        mix=mix,
        regularizers=[tr.regularizers.VulnerabilitySuppression(2.0)],
        weight_decay=0.01,
        **kwargs,
    )


def anp_vs(attack=STEP, dtype=None, **kwargs):
    mask = tr.layers.BetaBernoulliMask(initial_a=2.0, seed=3, dtype=dtype)
    return tr.training.ANP(
        net(mask=mask),
        attack,
        train_size=50,
        regularizers=[tr.regularizers.VulnerabilitySuppression(2.0)],
        **kwargs,
    )


def data(count=20, classes=CLASSES, seed=1):
    return bank.images(count, (4, 4, 1), seed), np.arange(count) % classes


def weights_after(game, x, y, epochs=2, batch_size=20, optimizer=None, loss=None, **fit):
    # Eager steps cost milliseconds, a trace seconds; one test below compares the two.
    game.compile(optimizer or SGD(0.1), loss, run_eagerly=True)
    game.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **fit)
    return game.classifier.get_weights()


def assert_close(ours, theirs, atol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
