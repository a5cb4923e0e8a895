"""Rules for layers that move, pool or join values: Flatten, MaxPooling2D, Add, Multiply."""

from keras import layers
from keras.src.ops import nn, numpy

from tfrobust import graph
from tfrobust.bounds.rule import (
    Diagonal,
    Difference,
    Extreme,
    Monotone,
    Move,
    Positive,
    Product,
    rule,
)


def _only(known, kind):
    """The rule `kind` where `known(layer, node)`, else none."""
    return lambda layer, node: (kind if known(layer, node) else rule.registry[object])(layer, node)


def _joins(kind):
    """The rule `kind` for two tensors; with a constant in place of one the map is diagonal."""
    return lambda layer, node: (kind if len(node.inputs) > 1 else Diagonal)(layer, node)


def _largest(layer, node):
    """The `Extreme` of a pool, of several tensors or along axes."""
    apart = True
    if hasattr(layer, "pool_size"):
        apart = all(s >= p for s, p in zip(layer.strides, layer.pool_size, strict=True))
    elif len(node.inputs) > 1:
        apart = len({tensor.shape for tensor in node.inputs}) == 1
        apart &= len(set(map(id, node.inputs))) == len(node.inputs)
    elif type(layer) in _BOTH:
        return Monotone(layer, node)  # a tensor and a constant
    return Extreme(layer, node, -1 if type(layer).__name__ in _LEAST else 1, apart)


_LEAST = ("Amin", "Min", "Minimum")
_BOTH = (*graph.operations(layers, "Maximum Minimum"), *graph.operations(numpy, "Maximum Minimum"))


def _divided_by_constant(layer, node):
    return len(node.inputs) == 1 and bool(node.args) and node.inputs[0] is node.args[0]


def _ranks(names):
    return " ".join(f"{name}{rank}D" for name in names.split() for rank in (1, 2, 3))


for _module, _rules in {
    layers: {
        Move: "Flatten Permute Reshape",
        Positive: "Add Average CenterCrop Concatenate RepeatVector "
        + _ranks("AdaptiveAveragePooling AveragePooling Cropping GlobalAveragePooling")
        + _ranks(" UpSampling ZeroPadding"),
        _largest: "Maximum Minimum " + _ranks("GlobalMaxPooling MaxPooling"),
        Monotone: _ranks("AdaptiveMaxPooling"),
        Difference: "Subtract",
        Product: "Multiply",
    },
    numpy: {
        Move: "ExpandDims Moveaxis Ravel Reshape Squeeze Swapaxes Transpose",
        Positive: """Add Concatenate Flip GetItem Mean Pad Repeat Roll Stack Sum Tile""",
        _largest: "Amax Amin Max Maximum Min Minimum",
        _joins(Difference): "Subtract",
        _joins(Product): "Multiply",
        _only(_divided_by_constant, Diagonal): "Divide TrueDivide",
        _only(lambda layer, node: len(node.inputs) == 1, Positive): "Take",
    },
    nn: {Positive: "AveragePool", Monotone: "MaxPool"},
}.items():
    for _rule, _names in _rules.items():
        for _kind in graph.operations(_module, _names):
            rule.register(_kind, _rule)

# Bicubic and lanczos have weights below 0.
for _kind in (layers.UpSampling2D, layers.Resizing):
    rule.register(
        _kind,
        _only(lambda layer, node: layer.interpolation in ("nearest", "bilinear"), Positive),
    )
