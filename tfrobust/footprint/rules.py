"""Per-layer knowledge of the footprint: cost, live channels, live weights.

Each is a `functools.singledispatch` on the layer's class, so a user registers a rule from outside
and every `Mask` subclass inherits one through `keep()`.
"""

import dataclasses
import functools
import math

import keras
import numpy as np
from keras.src.ops import numpy

from tfrobust import graph
from tfrobust.footprint.result import Cost
from tfrobust.layers.mask import Mask

_L = keras.layers

MIXERS = (_L.Conv1D, _L.Conv2D, _L.Conv3D, _L.SeparableConv1D, _L.SeparableConv2D, _L.Dense)


@dataclasses.dataclass(frozen=True)
class Flow:
    """One tensor: `positions` (height x width) places of `live` channels, bool (C,)."""

    positions: int
    live: np.ndarray

    @property
    def channels(self):
        return int(self.live.sum())

    @property
    def size(self):
        return self.positions * self.channels


def convolution(positions, kernel, c_in, c_out, extra):
    """`kernel` = k^2; `extra` = 1 for a bias + 1 for a fused activation."""
    macs = c_out * positions * kernel * c_in
    flops = c_out * positions * (2 * kernel * c_in - 1 + extra) if c_in else 0
    return Cost(flops, macs, kernel * c_in * (positions + c_out))


def dense(positions, c_in, c_out, extra):
    flops = positions * c_out * (2 * c_in - 1 + extra) if c_in else 0
    return Cost(flops, positions * c_in * c_out, c_in * c_out + c_out)


def _extra(layer):
    """1 for a bias + 1 for a fused activation."""
    return int(layer.use_bias) + int(_active(layer))


def _active(layer):
    return getattr(layer, "activation", None) not in (None, keras.activations.linear)


# ---- what a layer costs -------------------------------------------------------------------------


@functools.singledispatch
def cost(layer, inputs, output):
    """Cost of `layer` between its live inputs and output; register a rule for a class of yours.

    Args:
        layer: The Keras layer or operation.
        inputs: List of `Flow`.
        output: `Flow`.
    Returns:
        `Cost`, or None where no rule is known (a layer with weights is then reported uncounted).
    """
    return None if getattr(layer, "weights", ()) else Cost()


@cost.register(_L.InputLayer)
@cost.register(_L.BatchNormalization)
@cost.register(_L.Normalization)
@cost.register(Mask)
def _(layer, inputs, output):
    normalizes = isinstance(layer, _L.BatchNormalization)
    return Cost(memory=2 * output.channels if normalizes else 0)


@cost.register(_L.Conv1D)
@cost.register(_L.Conv2D)
@cost.register(_L.Conv3D)
def _(layer, inputs, output):
    kernel, c_in = math.prod(layer.kernel_size), inputs[0].channels // layer.groups
    return convolution(output.positions, kernel, c_in, output.channels, _extra(layer))


@cost.register(_L.DepthwiseConv1D)
@cost.register(_L.DepthwiseConv2D)
def _(layer, inputs, output):
    kernel = math.prod(layer.kernel_size)
    return convolution(output.positions, kernel, 1, output.channels, _extra(layer))


@cost.register(_L.SeparableConv1D)
@cost.register(_L.SeparableConv2D)
def _(layer, inputs, output):
    kernel, middle = math.prod(layer.kernel_size), inputs[0].channels * layer.depth_multiplier
    parts = (
        convolution(output.positions, kernel, 1, middle, 0),
        convolution(output.positions, 1, middle, output.channels, _extra(layer)),
    )
    return Cost(*(sum(values) for values in zip(*map(dataclasses.astuple, parts), strict=True)))


@cost.register(_L.Dense)
def _(layer, inputs, output):
    return dense(output.positions, inputs[0].channels, output.channels, _extra(layer))


@cost.register(_L.Activation)
@cost.register(_L.ReLU)
@cost.register(_L.LeakyReLU)
@cost.register(_L.PReLU)
@cost.register(_L.ELU)
@cost.register(_L.Softmax)
def _(layer, inputs, output):
    idle = isinstance(layer, _L.Activation) and not _active(layer)
    return Cost(flops=0 if idle else output.size)


@cost.register(_L.MaxPooling1D)
@cost.register(_L.MaxPooling2D)
@cost.register(_L.AveragePooling1D)
@cost.register(_L.AveragePooling2D)
def _(layer, inputs, output):
    return Cost(flops=output.size * math.prod(layer.pool_size))


@cost.register(_L.GlobalAveragePooling1D)
@cost.register(_L.GlobalAveragePooling2D)
@cost.register(_L.GlobalMaxPooling1D)
@cost.register(_L.GlobalMaxPooling2D)
def _(layer, inputs, output):
    return Cost(flops=inputs[0].size)


_MERGES = (_L.Add, _L.Subtract, _L.Multiply, _L.Average, _L.Maximum, _L.Minimum)


def _merge_cost(layer, inputs, output):
    return Cost(flops=(len(inputs) - 1) * output.size)


for _merge in _MERGES:
    cost.register(_merge, _merge_cost)

# ---- which channels are alive -------------------------------------------------------------------


@functools.singledispatch
def flow(layer, inputs, shape):
    """Bool (C,) of output channels that carry information, given the inputs' (list of bool arrays).

    Unknown layers mix channels: all of theirs are alive.
    """
    return np.ones(shape[-1], bool)


@functools.singledispatch
def demand(layer, wanted, inputs):
    """For each input, bool (C,) of the channels that wanted outputs (bool (C,)) need."""
    return [np.ones_like(live) for live in inputs]


_CHANNELWISE = (
    *(_L.BatchNormalization, _L.Normalization, _L.Rescaling, _L.Activation, _L.ReLU, _L.LeakyReLU),
    *(_L.PReLU, _L.ELU, _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.GaussianNoise),
    *(_L.MaxPooling1D, _L.MaxPooling2D, _L.AveragePooling1D, _L.AveragePooling2D),
    *(_L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalMaxPooling1D),
    *(_L.GlobalMaxPooling2D, _L.ZeroPadding2D, _L.Cropping2D, _L.UpSampling2D),
)
for _class in _CHANNELWISE:
    flow.register(_class, lambda layer, inputs, shape: inputs[0])
    demand.register(_class, lambda layer, wanted, inputs: [wanted])


@flow.register(Mask)
def _(layer, inputs, shape):
    return inputs[0] & np.asarray(layer.keep(), bool)


@demand.register(Mask)
def _(layer, wanted, inputs):
    return [wanted & np.asarray(layer.keep(), bool)]


@flow.register(_L.Flatten)
@flow.register(_L.Reshape)
def _(layer, inputs, shape):
    if shape[-1] % len(inputs[0]):
        return np.ones(shape[-1], bool)
    return np.tile(inputs[0], shape[-1] // len(inputs[0]))


@demand.register(_L.Flatten)
@demand.register(_L.Reshape)
def _(layer, wanted, inputs):
    if len(wanted) % len(inputs[0]):
        return [np.ones_like(inputs[0])]
    return [wanted.reshape(-1, len(inputs[0])).any(0)]


@flow.register(_L.DepthwiseConv1D)
@flow.register(_L.DepthwiseConv2D)
def _(layer, inputs, shape):
    return np.repeat(inputs[0], layer.depth_multiplier)


@demand.register(_L.DepthwiseConv1D)
@demand.register(_L.DepthwiseConv2D)
def _(layer, wanted, inputs):
    return [wanted.reshape(-1, layer.depth_multiplier).any(1)]


@flow.register(_L.Concatenate)
def _(layer, inputs, shape):
    whole = sum(len(live) for live in inputs) == shape[-1]
    return np.concatenate(inputs) if whole else np.logical_or.reduce(inputs)


@demand.register(_L.Concatenate)
def _(layer, wanted, inputs):
    if sum(len(live) for live in inputs) != len(wanted):
        return [wanted] * len(inputs)
    return np.split(wanted, np.cumsum([len(live) for live in inputs])[:-1])


for _pad in graph.operations(numpy, "Pad"):

    @flow.register(_pad)
    def _(layer, inputs, shape):
        if layer.mode != "constant":
            return np.ones(shape[-1], bool)
        return np.pad(inputs[0], layer.pad_width[-1])  # zeros carry nothing

    @demand.register(_pad)
    def _(layer, wanted, inputs):
        start = layer.pad_width[-1][0]
        return [wanted[start : start + len(inputs[0])]]


def _merge_demand(layer, wanted, inputs):
    return [wanted if len(live) == len(wanted) else np.ones_like(live) for live in inputs]


for _merge in _MERGES:
    _join = np.logical_and if _merge is _L.Multiply else np.logical_or
    flow.register(
        _merge,
        lambda layer, inputs, shape, _join=_join: np.broadcast_to(_join.reduce(inputs), shape[-1:]),
    )
    demand.register(_merge, _merge_demand)


# ---- which weights stay -------------------------------------------------------------------------


@functools.singledispatch
def weights(layer, inputs, output):
    """List of numpy arrays: the layer's weights without those of dead channels."""
    return [np.asarray(weight) for weight in getattr(layer, "weights", ())]


@weights.register(Mask)
def _(layer, inputs, output):
    return []


@weights.register(_L.BatchNormalization)
@weights.register(_L.PReLU)
def _(layer, inputs, output):
    return [np.asarray(weight)[..., output.live] for weight in layer.weights]


def _without_dead(layer, inputs, output):
    kernel, *bias = (np.asarray(weight) for weight in layer.weights[:2])
    if getattr(layer, "groups", 1) == 1:
        kernel = kernel[..., inputs[0].live, :]
    return [kernel[..., output.live], *(vector[output.live] for vector in bias)]


for _class in (_L.Conv1D, _L.Conv2D, _L.Conv3D, _L.Dense):
    weights.register(_class, _without_dead)


@weights.register(_L.DepthwiseConv1D)
@weights.register(_L.DepthwiseConv2D)
def _(layer, inputs, output):
    kernel, *bias = (np.asarray(weight) for weight in layer.weights)
    return [kernel[..., inputs[0].live, :], *(vector[output.live] for vector in bias)]
