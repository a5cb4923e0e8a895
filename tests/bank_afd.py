"""A tiny feature game for the tests of AFD."""

import keras
import numpy as np

import tfrobust as tr
from tests import bank

GROUPS = ("weights", "discriminator", "encoder")
ATTACK = tr.attacks.PGD(tr.threats.Linf(0.1), steps=1, random_start=False)
NOTHING = tr.attacks.PGD(tr.threats.Linf(0.0), steps=1, random_start=False)


def net(classes=4, seed=0, dropout=0.0, mask=None, normalized=True):
    """Dense 6 -> normalization -> ReLU "h" -> logits, on 8 x 8 images."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(6, name="first")(keras.layers.Flatten()(inputs))
    if normalized:
        x = keras.layers.BatchNormalization(name="norm", momentum=0.9)(x)
    x = keras.layers.Activation("relu", name="h")(x)
    x = x if mask is None else mask(name="mask")(x)
    x = keras.layers.Dropout(dropout, seed=3)(x) if dropout else x
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name="net")


def data(count=12, classes=4):
    return bank.images(count, seed=5), np.arange(count) % classes


def game(rates=(0.1, 0.2, 0.05), attack=ATTACK, classifier=None, eager=True, loss=None, **options):
    """AFD with plain SGD; steps run eagerly, since nets this small are slower to trace."""
    made = tr.training.AFD(net() if classifier is None else classifier, attack, **options)
    optimizers = {g: keras.optimizers.SGD(r, 0.9) for g, r in zip(GROUPS, rates, strict=True)}
    if "masks" in made.groups:
        optimizers["masks"] = keras.optimizers.SGD(0.1)
    made.compile(optimizers, loss=loss, metrics=["accuracy"], run_eagerly=eager)
    return made


def values(variables):
    return [v.numpy() for v in variables]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
