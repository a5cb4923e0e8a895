"""Rules for elementwise layers: activations, normalization, masks, what is idle in inference."""

import dataclasses
import typing

import keras
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
    return Pointwise(layer, node, TURNS[name])


def _pointwise(kind, *turns):
    rule.register(kind, lambda layer, node: Pointwise(layer, node, turns))


for _kind in (layers.ReLU, layers.LeakyReLU):
    _pointwise(_kind)
for _kind in (layers.PReLU, layers.ELU):
    _pointwise(_kind, 0.0)
for _name, _turns in TURNS.items():
    _camel = "".join(part.capitalize() for part in _name.split("_"))
    for _kind in graph.operations(nn, _camel):
        _pointwise(_kind, *_turns)
for _kind in graph.operations(numpy, "Tanh Clip Exp"):
    _pointwise(_kind)
for _kind in graph.operations(numpy, "Abs Absolute Square"):
    _pointwise(_kind, 0.0)


@rule.register(source_activations.activations.ReLU)
def _(layer, node):
    # Below 0 (the layer ReLU refuses that) either of them makes it fall somewhere.
    rises = layer.negative_slope >= 0 and layer.threshold >= 0
    return (Pointwise if rises else rule.registry[object])(layer, node)


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
