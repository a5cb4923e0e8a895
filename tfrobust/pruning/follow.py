"""What must be zero with a filter so that it can be cut out exactly: bias, and gamma and beta of
the BatchNormalization behind it.

A filter of zeros whose normalization lives on is a constant, not nothing. `followers` walks from a
layer to the layers that read it, through everything that treats channels alone. Where channels of
several layers are summed, no single filter can go: such a layer keeps its filters, and says why,
unless the caller collects what meets in sums (`streams` does, to prune these filters together).

How a layer hands channels on is `passes`, dispatched on its class; register one of your own:

    tr.pruning.passes.register(MyActivation, tr.pruning.passes.dispatch(keras.layers.ReLU))
"""

import functools
import typing

import keras
import numpy as np
from keras import layers
from keras.src import activations as source_activations
from keras.src.ops import nn, numpy

from tfrobust import graph
from tfrobust.layers.mask import Mask


class Stays(Exception):
    """Why the filters of a layer cannot be pruned as a whole."""


class Meeting(typing.NamedTuple):
    """Channels of a layer that arrive at a sum: operand, filters, and whether they can be zero."""

    node: graph.Node
    tensor: keras.KerasTensor
    source: np.ndarray
    zero: bool


class Trail:
    """Channels of one tensor on the way from a filter to its readers.

    Attributes:
        source: Integers `(channels,)`: the filter that a channel comes from, -1 for none.
        zero: Whether a pruned filter is exactly zero here, not just a constant.
        silenced: List of pairs (variable, source) met on the way; None: nothing may be silenced,
            and the next sum is the end.
        met: List of `Meeting`s so far; None: channels that are summed must stay.
    """

    def __init__(self, source, zero, silenced, met=None):
        self.source, self.zero, self.silenced, self.met = source, zero, silenced, met

    def on(self, source=None, zero=None):
        """The same with another source; `zero=False` where a zero does not stay one."""
        source = self.source if source is None else source
        return Trail(source, self.zero if zero is None else zero, self.silenced, self.met)

    def silence(self, *variables):
        if self.silenced is None:
            raise Stays("there is no filter to silence with")
        self.silenced += [(v, self.source) for v in variables if isinstance(v, keras.Variable)]


def followers(walked, node, met=None):
    """The vectors that go with the filters of a layer.

    Args:
        walked: `graph.Graph`.
        node: The `graph.Node` of a layer with a kernel.
        met: A list to add a `Meeting` to at every sum on the way; without it no sum is passed.

    Returns:
        Tuple of pairs (variable, source).

    Raises:
        Stays: the filters of this layer cannot go; the text is the reason.
    """
    trail = Trail(np.arange(node.outputs[0].shape[-1]), True, [], met)
    trail.silence(getattr(node.layer, "bias", None))
    function = graph.fused_activation(node.layer)
    if function is not None:
        trail = _activated(trail, function, node)
    trace(walked, node.outputs[0], trail)
    return tuple(trail.silenced)


def trace(walked, tensor, trail):
    """Follows the channels of a tensor to everything that reads them; raises `Stays`."""
    if any(tensor is output for output in walked.outputs):
        raise Stays("it makes the logits")
    for node in walked.consumers(tensor):
        if sum(t is tensor for t in node.inputs) > 1:
            raise Stays(f"'{node.name}' takes it twice")
        following = graph.dispatch(passes, node.layer)(node.layer, node, tensor, trail)
        if following is not None:
            trace(walked, node.outputs[0], following)


@functools.singledispatch
def passes(layer, node, tensor, trail):
    """The `Trail` behind a call of `layer`; None where a kernel reads the channels.

    Raises:
        Stays: the channels do not go on one by one.
    """
    raise Stays(f"'{node.name}' ({type(layer).__name__}) joins its channels with others")


_JOINS = passes.dispatch(object)


def _summed(layer, node, tensor, trail):
    """What is zero in all operands is zero behind: Add, Subtract, Average, extremes."""
    operands = [t for t in node.inputs if t.shape[-1] == node.outputs[0].shape[-1]]
    if trail.met is None or len(operands) < 2 or len(operands) < len(node.inputs):
        _JOINS(layer, node, tensor, trail)
    known = any(m.node is node and np.array_equal(m.source, trail.source) for m in trail.met)
    trail.met.append(Meeting(node, tensor, trail.source, trail.zero))
    return None if known or trail.silenced is None else trail


def _register(kinds, function):
    for kind in kinds:
        passes.register(kind, function)


def _reads(layer, node, tensor, trail):
    return None


def _alone(layer, node, tensor, trail):
    return trail


def _pointwise(layer, node, tensor, trail):
    return _activated(trail, layer, node)


def _activated(trail, function, node):
    if isinstance(function, layers.Activation):
        function = function.activation
    if function in (keras.activations.softmax, keras.activations.log_softmax):
        raise Stays(f"'{node.name}' applies a softmax")
    at_zero = function(keras.ops.zeros((1, 1)))
    return (
        trail if not np.asarray(keras.ops.convert_to_numpy(at_zero)).any() else trail.on(zero=False)
    )


def _flat(layer, node, tensor, trail):
    channels, count = tensor.shape[-1], node.outputs[0].shape[-1]
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        raise Stays(f"'{node.name}' has channels first")
    if count is None or count % channels:
        raise Stays(f"'{node.name}' mixes channels with positions")
    return trail.on(np.tile(trail.source, count // channels))


def _multiply(layer, node, tensor, trail):
    if not trail.zero or node.outputs[0].shape[-1] != tensor.shape[-1]:
        raise Stays(f"'{node.name}' multiplies its channels with others")
    return trail  # zero times anything


def _concatenate(layer, node, tensor, trail):
    rank = len(node.outputs[0].shape)
    if getattr(layer, "axis", -1) not in (-1, rank - 1):
        raise Stays(f"'{node.name}' joins its channels with others")
    parts = [trail.source if t is tensor else np.full(t.shape[-1], -1) for t in node.inputs]
    return trail.on(np.concatenate(parts))


_register((layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D), _reads)
_register((layers.SeparableConv1D, layers.SeparableConv2D), _reads)
_register((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _reads)
_register((Mask, layers.Identity, layers.Dropout, layers.AlphaDropout), _alone)
_register((layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization), _alone)
_register((layers.LeakyReLU, layers.PReLU), _alone)
_register((layers.Activation, layers.ReLU, layers.ELU), _pointwise)
_register(
    graph.operations(
        nn,
        """Relu Relu6 Sigmoid Softplus Softsign SoftShrink Silu LogSigmoid LeakyRelu HardSigmoid
        HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink""",
    )
    + graph.operations(source_activations.activations, "ReLU Mish")
    + graph.operations(numpy, "Tanh Abs Absolute Negative Square Sqrt Exp"),
    _pointwise,
)
for _rank in "123":
    for _name in """MaxPooling{}D AveragePooling{}D GlobalMaxPooling{}D GlobalAveragePooling{}D
        ZeroPadding{}D Cropping{}D UpSampling{}D SpatialDropout{}D""".split():
        passes.register(getattr(layers, _name.format(_rank)), _alone)
_SUMS = "Add Subtract Average Maximum Minimum"
_register(graph.operations(layers, _SUMS) + graph.operations(numpy, _SUMS), _summed)
_register((layers.Multiply, *graph.operations(numpy, "Multiply")), _multiply)
_register((layers.Concatenate, *graph.operations(numpy, "Concatenate")), _concatenate)
_register((layers.Flatten,), _flat)


@passes.register
def _(layer: layers.Reshape, node, tensor, trail):
    if node.outputs[0].shape[-1] == tensor.shape[-1]:
        return trail
    if len(node.outputs[0].shape) == 2:
        return _flat(layer, node, tensor, trail)
    raise Stays(f"'{node.name}' mixes channels with positions")


def _padded(layer, node, tensor, trail):
    channels = node.outputs[0].shape[-1]
    if layer.mode != "constant":
        raise Stays(f"'{node.name}' mirrors its channels")
    if channels == tensor.shape[-1]:
        return trail
    before, after = layer.pad_width[-1]
    return trail.on(np.pad(trail.source, (before, after), constant_values=-1))


_register(graph.operations(numpy, "Pad"), _padded)


@passes.register
def _(layer: layers.Rescaling, node, tensor, trail):
    return trail.on(zero=False) if np.any(layer.offset) else trail


@passes.register
def _(layer: layers.BatchNormalization, node, tensor, trail):
    if layer.axis not in (-1, len(tensor.shape) - 1):
        raise Stays(f"'{node.name}' does not normalize the last axis")
    trail.silence(layer.gamma, layer.beta)
    if layer.gamma is None and trail.zero:
        trail.silence(layer.moving_mean)  # nothing else shuts it; fed with zeros, it stays
    return trail.on(zero=trail.zero or layer.gamma is not None)


@passes.register(layers.DepthwiseConv1D)
@passes.register(layers.DepthwiseConv2D)
def _(layer, node, tensor, trail):
    wide = trail.on(np.repeat(trail.source, layer.depth_multiplier))
    wide.silence(layer.bias)
    function = graph.fused_activation(layer)
    return wide if function is None else _activated(wide, function, node)
