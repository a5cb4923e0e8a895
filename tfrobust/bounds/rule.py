"""What bounds must know about a layer: the rule interface, its dispatch and the common kinds.

A rule turns boxes around the inputs of one call into a box around its result. Every rule is a pure
TensorFlow function of the layer's variables, read when it runs, so bounds follow the weights and
can be differentiated.
"""

import functools
import itertools
import typing

import keras
import tensorflow as tf

from tfrobust import graph


class Box(typing.NamedTuple):
    """All tensors between `lower` and `upper`, elementwise."""

    lower: tf.Tensor
    upper: tf.Tensor

    @property
    def centre(self):
        return 0.5 * (self.lower + self.upper)

    @property
    def radius(self):
        return 0.5 * (self.upper - self.lower)


class Rule:
    """How one call of a layer maps its inputs, and boxes around them. Write `interval`.

    Attributes:
        affine: True if the call is an affine map of its inputs together (its rows then follow from
            its gradient). Only such layers may stand behind the last box of a margin.

    Args:
        layer: The layer (or `keras.ops` operation).
        node: Its `graph.Node`.
    """

    affine = False

    def __init__(self, layer, node):
        self.layer, self.node = layer, node

    def __call__(self, *values):
        """The result of the call in inference mode, from values in place of `node.inputs`."""
        values = iter(values)

        def given(x):
            return next(values) if isinstance(x, keras.KerasTensor) else x

        args, kwargs = keras.tree.map_structure(given, (self.node.args, self.node.kwargs))
        if getattr(self.layer, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": False}
        return self.layer.call(*args, **kwargs)

    def interval(self, *boxes):
        """A `Box` that holds the result for all inputs in `boxes`."""
        raise TypeError(f"{type(self).__name__} must define interval()")


class Monotone(Rule):
    """A layer whose result never decreases when an input grows: pools, maxima."""

    def interval(self, *boxes):
        return Box(self(*(b.lower for b in boxes)), self(*(b.upper for b in boxes)))


class Positive(Monotone):
    """Affine with weights >= 0: averages, sums, whatever moves or copies values."""

    affine = True


class Pointwise(Rule):
    """An elementwise function of one tensor, monotone up to the numbers `turns`, and between them.

    Args:
        turns: Where the function turns from falling to rising, or back.
    """

    def __init__(self, layer, node, turns=()):
        super().__init__(layer, node)
        self.turns = turns

    def interval(self, box):
        ends = [self(box.lower), self(box.upper)]
        ends += [self(tf.minimum(tf.maximum(t, box.lower), box.upper)) for t in self.turns]
        return hull(ends)


class Diagonal(Pointwise):
    """Affine and elementwise, the factor of any sign: BatchNormalization, Rescaling, a mask."""

    affine = True


class Difference(Rule):
    """The first input minus the second."""

    affine = True

    def interval(self, first, second):
        return Box(self(first.lower, second.upper), self(first.upper, second.lower))


class Product(Rule):
    """A product of inputs: its extremes lie in corners of the box."""

    def interval(self, *boxes):
        return hull([self(*corner) for corner in itertools.product(*boxes)])


def hull(values):
    """The smallest `Box` that holds some tensors of one shape."""
    return Box(functools.reduce(tf.minimum, values), functools.reduce(tf.maximum, values))


@functools.singledispatch
def rule(layer, node):
    """The `Rule` for a call of `layer`, or a list of them to run in turn (empty: the identity).

    `functools.singledispatch` on the class of the layer. A layer of your own needs one line where
    one of the kinds above fits:

        tr.bounds.register(MyActivation, tr.bounds.Monotone)

    Raises:
        TypeError: no rule is registered for the class.
    """
    kind = type(layer).__name__
    raise TypeError(
        f"No rule bounds layer '{node.name}' ({kind}). Register one: "
        f"tr.bounds.register({kind}, tr.bounds.Monotone) if its result never decreases when its "
        "input grows, else a subclass of tr.bounds.Rule with an interval() of its own."
    )


register = rule.register


def rules_of(node):
    """The rules that a node runs in turn.

    Raises:
        TypeError: no rule is known for the layer.
        ValueError: the call has no bound, since it has several results or half precision.
    """
    layer, what = node.layer, f"layer '{node.name}' ({type(node.layer).__name__})"
    if len(node.outputs) != 1:
        raise ValueError(f"`model` must have layers of one result. Received: {what}")
    if "16" in getattr(layer, "compute_dtype", "float32"):
        raise ValueError(
            f"Bounds are computed in float32, but {what} computes in {layer.compute_dtype}: "
            "build the model with dtype float32."
        )
    found = graph.dispatch(rule, layer)(layer, node)
    return found if isinstance(found, list) else [found]
