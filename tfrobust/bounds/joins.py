"""Rules for layers that move, pool or join values: Flatten, MaxPooling2D, Add, Multiply."""

from keras import layers
from keras.src.ops import nn, numpy

from tfrobust import graph
from tfrobust.bounds.rule import Diagonal, Difference, Monotone, Positive, Product, rule


def _only(known, kind):
    """The rule `kind` where `known(layer, node)`, else none."""
    return lambda layer, node: (kind if known(layer, node) else rule.registry[object])(layer, node)


def _joins(kind):
    """The rule `kind` for two tensors; with a constant in place of one the map is diagonal."""
    return lambda layer, node: (kind if len(node.inputs) > 1 else Diagonal)(layer, node)


def _divided_by_constant(layer, node):
    return len(node.inputs) == 1 and bool(node.args) and node.inputs[0] is node.args[0]


def _ranks(names):
    return " ".join(f"{name}{rank}D" for name in names.split() for rank in (1, 2, 3))


for _module, _rules in {
    layers: {
        Positive: "Add Average CenterCrop Concatenate Flatten Permute RepeatVector Reshape "
        + _ranks("AdaptiveAveragePooling AveragePooling Cropping GlobalAveragePooling")
        + _ranks(" UpSampling ZeroPadding"),
        Monotone: "Maximum Minimum " + _ranks("AdaptiveMaxPooling GlobalMaxPooling MaxPooling"),
        Difference: "Subtract",
        Product: "Multiply",
    },
    numpy: {
        Positive: """Add Concatenate ExpandDims Flip GetItem Mean Moveaxis Pad Ravel Repeat Reshape
        Roll Squeeze Stack Sum Swapaxes Tile Transpose""",
        Monotone: "Amax Amin Max Maximum Min Minimum",
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
