"""Rules for elementwise layers: activations, normalization, masks, what is idle in inference."""

import dataclasses
import math
import typing

import keras
import tensorflow as tf
from keras import layers
from keras.src import activations as source_activations
from keras.src.ops import nn, numpy

from tfrobust import graph
from tfrobust.bounds.rule import Diagonal, Pointwise, rule, rules_of

# Where a function by this name turns. None of the first ever does; a slope or a scale below 0 makes
# the second turn at 0; gelu has two minima, the exact and the approximate one.
TURNS = {
    **dict.fromkeys(
        """exponential hard_shrink hard_sigmoid hard_tanh log_sigmoid relu relu6 selu sigmoid
        soft_shrink softplus softsign sparse_plus sparse_sigmoid squareplus tanh
        tanh_shrink""".split(),
        (),
    ),
    **dict.fromkeys("celu elu leaky_relu".split(), (0.0,)),
    "gelu": (-0.75246142, -0.75179152),
    "hard_silu": (-1.5,),
    "mish": (-1.19240613,),
    "silu": (-1.27846454,),
}

# Where a function by this name turns from convex to concave (see `lines`). Those that are missing
# have another shape, or a jump, and are bounded by constants.
BENDS = {
    **dict.fromkeys("exponential relu softplus sparse_plus squareplus".split(), math.inf),
    **dict.fromkeys(
        "hard_sigmoid hard_tanh selu sigmoid softsign sparse_sigmoid tanh".split(), 0.0
    ),
    "log_sigmoid": -math.inf,
    "relu6": 3.0,
}


def _bend(name, layer):
    """Of a function by its name; the slopes of some are settings of the layer or operation."""
    if name == "leaky_relu":
        return math.inf if 0 <= getattr(layer, "negative_slope", 0.2) <= 1 else None
    if name in ("elu", "celu"):
        return math.inf if 0 < getattr(layer, "alpha", 1.0) <= 1 else None
    return BENDS.get(name)


def fused(layer, node):
    """The rules for the activation inside of a layer, steps of their own."""
    function = graph.fused_activation(layer)
    if function is None:
        return []
    function = layers.Activation(function, name=node.name, dtype=layer.dtype_policy)
    return rules_of(dataclasses.replace(node, layer=function, args=node.outputs, kwargs={}))


@rule.register(layers.Activation)
def _(layer, node):
    function = layer.activation
    if function is keras.activations.linear:
        return []
    if isinstance(function, layers.Layer):
        return rules_of(dataclasses.replace(node, layer=function))
    name = getattr(function, "__name__", type(function).__name__)
    if name not in TURNS or getattr(keras.activations, name, None) is not function:
        raise TypeError(
            f"No rule bounds the activation {name} of layer '{node.name}'. Make it a layer of its "
            "own and register that: tr.bounds.register(MyActivation, tr.bounds.Monotone)."
        )
    return Pointwise(layer, node, TURNS[name], _bend(name, None))


def _pointwise(kind, name, *turns):
    rule.register(kind, lambda layer, node: Pointwise(layer, node, turns, _bend(name, layer)))


@rule.register(layers.ReLU)
def _(layer, node):
    bend = None
    if layer.threshold == 0 and layer.max_value is None and layer.negative_slope <= 1:
        bend = math.inf
    elif layer.threshold == 0 and layer.negative_slope == 0:
        bend = float(layer.max_value) / 2
    return Pointwise(layer, node, (), bend)


class Slopes(Pointwise):
    """PReLU: convex where its slope is at most 1, else concave."""

    def __init__(self, layer, node):
        super().__init__(layer, node, (0.0,), self.sides)

    def sides(self):
        return tf.where(tf.convert_to_tensor(self.layer.alpha) <= 1.0, math.inf, -math.inf)

    def slope(self, x):
        return tf.where(x > 0, 1.0, tf.convert_to_tensor(self.layer.alpha))


rule.register(layers.PReLU, Slopes)
_pointwise(layers.LeakyReLU, "leaky_relu")
_pointwise(layers.ELU, "elu", 0.0)
for _name, _turns in TURNS.items():
    _camel = "".join(part.capitalize() for part in _name.split("_"))
    for _kind in graph.operations(nn, _camel):
        _pointwise(_kind, _name, *_turns)
for _name in ("Tanh", "Exp"):
    for _kind in graph.operations(numpy, _name):
        _pointwise(_kind, {"Tanh": "tanh", "Exp": "exponential"}[_name])
for _kind in graph.operations(numpy, "Clip"):
    rule.register(_kind, Pointwise)
for _kind in graph.operations(numpy, "Abs Absolute Square"):
    rule.register(_kind, lambda layer, node: Pointwise(layer, node, (0.0,), math.inf))


@rule.register(source_activations.activations.ReLU)
def _(layer, node):
    # Below 0 (the layer ReLU refuses that) either of them makes it fall somewhere.
    rises = layer.negative_slope >= 0 and layer.threshold >= 0
    if not rises:
        return rule.registry[object](layer, node)
    plain = layer.threshold == 0 and layer.max_value is None and layer.negative_slope <= 1
    return Pointwise(layer, node, (), math.inf if plain else None)


@typing.runtime_checkable
class Gate(typing.Protocol):
    """A `tr.layers.Mask`, known by what it offers: in inference it multiplies by `expected()`."""

    def expected(self): ...

    def keep(self): ...


for _kind in (
    Gate,
    layers.BatchNormalization,
    layers.Normalization,
    layers.Rescaling,
    *graph.operations(numpy, "Negative"),
):
    rule.register(_kind, Diagonal)

for _kind in graph.operations(
    layers,
    """Identity InputLayer ActivityRegularization Dropout AlphaDropout SpatialDropout1D
    SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise RandomBrightness RandomContrast
    RandomFlip RandomRotation RandomShear RandomTranslation RandomZoom""",
):
    rule.register(_kind, lambda layer, node: [])
