"""Optimizers, tiny nets and a watch for zeros: what the pruning tests walk through."""

import keras
import numpy as np
from keras import layers, optimizers

import tfrobust as tr
from tests import bank

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# Everything Keras has, with what moves entries by other ways than the gradient.
OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda: optimizers.Adam(0.01, amsgrad=True, clipnorm=1.0),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "adam-ema": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5),
    "adam-ema-back": lambda: optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "adamax": lambda: optimizers.Adamax(0.01),
    "nadam": lambda: optimizers.Nadam(0.01),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "adafactor": lambda: optimizers.Adafactor(0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "ftrl": lambda: optimizers.Ftrl(0.1),
    "lion": lambda: optimizers.Lion(0.01, weight_decay=0.1),
    "lamb": lambda: optimizers.Lamb(0.01),
    "muon": lambda: optimizers.Muon(0.01),
    "loss-scale": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01)),
}
if hasattr(optimizers, "ScheduleFreeAdamW"):
    OPTIMIZERS["schedule-free"] = lambda: optimizers.ScheduleFreeAdamW(0.01)


def data(count=24, shape=(4, 4, 1)):
    return bank.images(count, shape), np.arange(count) % 4


def dense(constraint=None, seed=0):
    """16 -> 8 -> 4 with normalization between: 160 prunable weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4, 4, 1))
    x = layers.Dense(8, name="hidden", kernel_constraint=constraint)(layers.Flatten()(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name="net")


def compiled(net, optimizer=None, **kwargs):
    net.compile(optimizer or optimizers.SGD(0.1, momentum=0.9), LOGITS, **kwargs)
    return net


def adversarial(net, optimizer=None, **kwargs):
    game = tr.training.AdversarialTraining(net, tr.attacks.FGSM(tr.threats.Linf(0.1)))
    game.compile(optimizer or optimizers.SGD(0.1, momentum=0.9), **kwargs)
    return game


def fit(model, *callbacks, epochs=2, batch_size=8, **kwargs):
    """`fit` on 24 images: three steps an epoch."""
    x, y = data()
    return model.fit(
        x, y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=list(callbacks), **kwargs
    )


class Watch(keras.callbacks.Callback):
    """Checks after every step that pruned entries are exactly zero and never come back.

    Attributes:
        pruned: Number of masked kernel entries before each step and after the last.
    """

    def __init__(self, prune):
        super().__init__()
        self.prune, self.pruned, self.before = prune, [], None

    def check(self):
        pruner = self.prune._pruner
        masks = pruner.masks
        for variable, mask in zip(pruner.variables, masks, strict=True):
            value = np.asarray(variable.numpy())
            assert np.isfinite(value).all(), variable.path
            assert (value[~mask] == 0).all(), variable.path
        if self.before is not None:
            assert all((m <= b).all() for m, b in zip(masks, self.before, strict=True))
        self.before = masks
        return sum(int((~m).sum()) for m in masks[: len(pruner.places)])

    def on_train_batch_begin(self, batch, logs=None):
        self.pruned.append(self.check())

    def on_train_batch_end(self, batch, logs=None):
        self.check()

    def on_test_begin(self, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def on_train_end(self, logs=None):
        self.pruned.append(self.check())
