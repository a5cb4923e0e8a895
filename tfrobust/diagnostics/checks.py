"""What this room refuses before any work is lost, beyond what `tr.contract` refuses."""

import math
import numbers

import numpy as np

from tfrobust import attacks, contract, graph

NORMS = ("l1", "l2", "linf")


def number(name, value, most=math.inf):
    """A finite float in [0, most].

    >>> number("epsilon", np.float32(0.5))
    0.5
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (math.isfinite(value) and 0 <= value <= most):
        bounds = "be finite and >= 0" if most == math.inf else f"lie in [0, {most:g}]"
        raise ValueError(f"`{name}` must {bounds}. Received: {name}={value!r}")
    return float(value)


def norm(value):
    """The name of a norm."""
    if not isinstance(value, str):
        raise TypeError(f"`norm` must be one of {list(NORMS)}. Received: norm={value!r}")
    if value not in NORMS:
        raise ValueError(f"`norm` must be one of {list(NORMS)}. Received: norm={value!r}")
    return value


def attack(value):
    """An attack: an object, not its class."""
    if not isinstance(value, attacks.Attack):
        raise TypeError(f"`attack` must be a tr.attacks.Attack. Received: {value!r}")
    return value


def finite(values, what):
    """`values` if all are finite; `what` of the model they are."""
    if not np.isfinite(values).all():
        raise ValueError(f"`model` must have finite {what}. Received: NaN or infinity")
    return values


def weights(model):
    """Refuses a model that diverged: a ReLU makes zeros of NaN, and no figure would show it."""
    for variable in model.weights:
        finite(np.asarray(variable), f"weights in '{variable.path}'")


def classifier(model):
    """A functional classifier with finite weights."""
    contract.classifier(model, "model")
    weights(model)


def chain(model):
    """The layers of a model that is one chain of them, nested models flattened; logits at the end.

    Raises:
        TypeError, ValueError: as `graph.walk`, which refuses layers that are used twice; also a
            branch, an end that is not `(batch, classes)`, and weights that are not finite.
    """
    found = graph.walk(model)
    ends = found.inputs[:1]
    for node in found.nodes:
        if node.inputs != ends:
            raise ValueError(
                "`model` must be one chain of layers. "
                f"Received: a branch at {type(node.layer).__name__} '{node.name}'"
            )
        ends = node.outputs
    if (
        not found.nodes
        or len(found.inputs) != 1
        or found.outputs != ends
        or len(ends[0].shape) != 2
    ):
        shapes = [tuple(end.shape) for end in found.outputs]
        raise ValueError(
            "`model` must be one chain of layers from one input to logits (batch, classes). "
            f"Received: {len(found.inputs)} inputs, outputs {shapes}"
        )
    weights(model)
    return [node.layer for node in found.nodes]
