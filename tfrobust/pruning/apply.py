"""Pruning without training, and holding what is zero: in place, on any built model."""

from tfrobust.contract import built
from tfrobust.pruning.constraint import detach, optimizers_of
from tfrobust.pruning.figures import classifier_of
from tfrobust.pruning.pruner import Pruner
from tfrobust.pruning.schedule import fraction as checked_fraction
from tfrobust.pruning.select import amount
from tfrobust.pruning.settings import Settings


def _hold(model, settings):
    built(classifier_of(model))
    pruner = Pruner(classifier_of(model), settings)
    pruner.attach(model)
    return pruner


def prune(model, fraction, **options):
    """Prunes a model at once, in place, without training ("None" fine-tuning).

    Args:
        model: Built classifier, or a game.
        fraction: Float in [0, 1).
        **options: As for `tr.pruning.MagnitudePruning`, from `structured` on.

    Returns:
        `tr.pruning.Report`.

    Example:

    >>> import keras
    >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10, name="logits")])
    >>> prune(net, 0.5).pruned
    40
    """
    fraction = checked_fraction("fraction", fraction)
    settings = Settings(**options)
    settings.within_reach(fraction)
    pruner = _hold(model, settings)
    pruner.update(lambda total, kernel=None: amount(fraction, total))
    pruner.project(optimizers_of(model))
    return pruner.report()


def freeze(model):
    """Holds every exact zero of the kernels at zero in all training from now on.

    For fine-tuning after `keras.saving.load_model`, which keeps zeros but not constraints. Biases
    and normalization of filters that are zero as a whole are held as well, and so are averages of
    weights (`use_ema`) when this model itself, or a game of it, is fitted. Where it is fitted as a
    part of another plain model that averages, put `MagnitudePruning(tr.pruning.Keep())` among the
    callbacks.

    Args:
        model: Built classifier, or a game.

    Returns:
        `tr.pruning.Report` of what is held.

    Example:

    >>> import keras, numpy as np
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="logits")])
    >>> net.set_weights([np.array([[0.0, 1.0], [2.0, 3.0]]), np.zeros(2)])
    >>> freeze(net).pruned
    1
    """
    pruner = _hold(model, None)
    pruner.keep_zeros()
    pruner.project(optimizers_of(model))
    return pruner.report()


def release(model):
    """Takes the constraints of this room off: pruned entries may move again.

    Args:
        model: Built classifier, or a game.
    """
    classifier = built(classifier_of(model))
    for variable in classifier.variables:
        detach(variable)
    for traced in {id(m): m for m in (model, classifier)}.values():
        if traced.train_function is not None:
            traced.make_train_function(force=True)
