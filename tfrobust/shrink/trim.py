"""Cuts a masked net while it trains: dead channels go, living ones keep their masks.

`compact` ends a training; `trim` is for its middle. What is cut is exact in inference: the logits
stay as they were. In training a shut channel still speaks: a beta-Bernoulli one softly, now and
then, a VIB one in noise that is louder than its signal. Cut, it is silent and cannot come back.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from tfrobust import contract, graph
from tfrobust.layers.mask import Mask
from tfrobust.shrink.channelwise import taken
from tfrobust.shrink.plan import Plan


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a variable of a trimmed model comes from.

    Attributes:
        new: `keras.Variable` of the smaller model.
        old: The variable of the model it was cut from, None for a bias that was not there before.
        indices: {axis: indices} that are left of the old one.
    """

    new: Any
    old: Any
    indices: dict

    def take(self, value):
        """What is left of an array of the old variable's shape (its momentum, for one).

        >>> Origin(None, None, {-1: [0, 2]}).take(np.arange(3)).tolist()
        [0, 2]
        """
        return taken(np.asarray(value), self.indices)


def trim(model):
    """Returns the same masked classifier without the channels that its masks shut.

    Masks stay, with the parameters of the channels that are left, and so do dropout, constraints
    and the states of random generators: the smaller model trains on. Logits in inference differ by
    rounding only, as for `compact`. Only a closed gate cuts: weights that happen to be 0 may learn.
    Where a mask stands before a normalization, what its shut channels say goes into the bias of
    their reader, or, where a SAME border sees it, into one shut channel that stays with its mask; a
    layer whose units are all shut keeps one of them.

    Args:
        model: Functional classifier with masks, without models inside; it is not changed.

    Returns:
        `(smaller, origins)`: a functional `keras.Model`, not compiled, and a list with an `Origin`
        for each of its variables, which tells how to cut an optimizer's state.

    Raises:
        TypeError, ValueError: not such a classifier, a shared layer, a layer without a rule, or a
            mask that does not follow its channels; the message names it.

    Example: eight filters, four of them shut.

    >>> from tfrobust.layers import BetaBernoulliMask, masks
    >>> x = keras.Input((6, 6, 1))
    >>> h = BetaBernoulliMask(name="mask")(keras.layers.Conv2D(8, 3, name="conv")(x))
    >>> h = keras.layers.Flatten()(keras.layers.ReLU()(h))
    >>> net = keras.Model(x, keras.layers.Dense(2, name="logits")(h))
    >>> net.get_layer("mask").a_.assign([2, -9, 2, -9, 2, -9, 2, -9]) is None
    False
    >>> smaller, origins = trim(net)
    >>> smaller.get_layer("conv").filters, masks(smaller)[0].keep().tolist()
    (4, [True, True, True, True])
    """
    check(model)
    plan = Plan(graph.walk(model), trains=True)
    plan.analyse()
    smaller = graph.rebuild(model, plan.visit, plan.edge)
    return smaller, _origins(plan, smaller)


def check(model):
    """Refuses at once what `trim` would refuse later."""
    contract.classifier(model, "model")
    nested = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        raise ValueError(
            "`model` must have no models inside to be cut while it trains: tr.models.prepare "
            f"flattens it. Received: model '{model.name}' with '{nested[0]}'"
        )
    if not any(isinstance(layer, Mask) for layer in model.layers):
        raise ValueError(
            "`model` must have masks: call tr.layers.insert_masks(model, "
            f"tr.layers.BetaBernoulliMask). Received: model '{model.name}' without masks"
        )
    Plan(graph.walk(model), trains=True)


def _origins(plan, smaller):
    origins = []
    for node in plan.graph.nodes:
        if node.name not in plan.cuts or not getattr(node.layer, "variables", ()):
            continue
        old, new = node.layer, smaller.get_layer(node.name)
        slices = plan.rules[node].slices(*plan.cuts[node.name])
        found = list(zip(old.weights, slices, strict=True))
        if len(new.weights) != len(found):  # a bias was added, or gamma or beta
            names = {variable.name: (variable, indices) for variable, indices in found}
            found = [names.get(variable.name, (None, {})) for variable in new.weights]
        for variable, (source, indices) in zip(new.weights, found, strict=True):
            origins.append(Origin(variable, source, indices))
            if source is not None and _shape(source, indices) != tuple(variable.shape):
                raise ValueError(
                    f"The rule of layer '{node.name}' ({type(old).__name__}) must tell in "
                    "slices() what its cut() leaves of the weights to be cut while it trains. "
                    f"Received: {_shape(source, indices)} for a weight of {tuple(variable.shape)}"
                )
        for variable, source in zip(_states(new), _states(old), strict=True):
            variable.assign(source.value)
            origins.append(Origin(variable, source, {}))
    return origins


def _shape(variable, indices):
    shape = list(variable.shape)
    for axis, left in indices.items():
        shape[axis] = len(left)
    return tuple(shape)


def _states(layer):
    """Variables beside the weights: states of random generators."""
    weights = {id(weight) for weight in layer.weights}
    return [variable for variable in layer.variables if id(variable) not in weights]
