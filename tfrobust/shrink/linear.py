"""Rules for layers that mix channels with a kernel: Dense, convolutions, depthwise convolutions."""

import math

import numpy as np
from keras import layers

from tfrobust import graph
from tfrobust.shrink.channelwise import homogeneous, pointwise
from tfrobust.shrink.rule import Channels, Rule, Whole, evaluate, rule


class Kernel(Rule):
    """A layer with `kernel` and an optional bias, and maybe a fused activation."""

    def __init__(self, layer, node):
        super().__init__(layer, node)
        weights = [np.asarray(w, np.float64) for w in layer.get_weights()]
        if len(weights) != 1 + layer.use_bias:
            raise ValueError(
                f"Layer '{node.name}' must hold a kernel and a bias only (no LoRA, not quantized) "
                f"to be cut. Received: {len(weights)} weights"
            )
        self.kernel = weights[0]
        self.bias = weights[1] if layer.use_bias else np.zeros(self.channels)
        self.activation = graph.fused_activation(layer)

    @property
    def same_everywhere(self):
        """True if a uniform map gives a uniform map: no border is filled with zeros."""
        spatial = self.kernel.shape[:-2]
        return getattr(self.layer, "padding", "valid") == "valid" or set(spatial) == {1}

    def absorb_output(self, gate):
        kind = "linear" if self.activation is None else homogeneous(self.activation)
        if kind != "linear" and (kind != "positive" or (gate < 0).any()):
            return None
        return lambda: self.scale_output(gate)

    def absorb_input(self, index, gate):
        return lambda: self.scale_input(gate)

    def activated(self, values, known):
        """Constants behind the fused activation; an unknown function knows none."""
        result = np.full(values.shape, np.nan)
        if self.activation is None:
            result[known] = values[known]
        elif pointwise(self.activation):
            result[known] = evaluate(self.activation, values[known])
        return Channels(result)


class Matrix(Kernel):
    """Dense, or an ungrouped convolution: kernel (..., inputs, outputs)."""

    def scale_output(self, gate):
        self.kernel, self.bias = self.kernel * gate, self.bias * gate

    def scale_input(self, gate):
        self.kernel = self.kernel * gate[:, None]

    def _folds(self, state):
        return state.uniform and self.same_everywhere

    def _links(self):
        """Which input (rows) touches which output (columns)."""
        if self.trains:
            return np.ones(self.kernel.shape[-2:], bool)
        return (self.kernel != 0).any(axis=tuple(range(self.kernel.ndim - 2)))

    def _from_constants(self, state):
        """What the constant inputs add to every position: (outputs,)."""
        constant = np.where(state.alive, 0.0, state.constant)
        return constant @ self.kernel.sum(axis=tuple(range(self.kernel.ndim - 2)))

    def forward(self, states):
        (state,) = states
        self.state = state
        folds = self._folds(state)
        self.extra = self._from_constants(state) if folds else np.zeros(self.channels)
        moving = state.alive | (state.nonzero & (not folds))
        # A layer that reads nothing any more stays one while it is trained: it could learn.
        known = ~self._links()[moving].any(axis=0) & (not self.trains)
        return self.activated(self.bias + self.extra, known)

    def demand(self, need, states):
        if self.activation is not None and not pointwise(self.activation):
            need = np.ones_like(need)  # softmax and the like: the columns belong together
        if not need.any():
            return [None]
        (state,) = states
        used = self._links()[:, need].any(axis=1)
        rows = used & state.alive
        if not self._folds(state) and (used & state.nonzero).any():
            rows[self._representative()] = True
        if not rows.any():
            rows[0] = True  # a kernel needs one row, all zeros if nothing is left to read
        return [rows]

    def work(self, need):
        strides = math.prod(np.atleast_1d(getattr(self.layer, "strides", 1)).tolist())
        return math.prod(self.kernel.shape[:-2]) * len(need) / strides

    def _representative(self):
        """The constant channel that stands for all of them: the largest divides most safely."""
        return int(np.nanargmax(np.where(self.state.nonzero, np.abs(self.state.constant), np.nan)))

    def cut(self, args, kwargs, kept, need):
        if self.activation is not None and not pointwise(self.activation):
            need = np.arange(self.channels)
        state, kernel = self.state, self.kernel
        rows = kernel[..., kept[0], :].copy()
        for position, channel in enumerate(kept[0]):
            if not state.alive[channel]:
                rows[..., position, :] = 0.0
        if not self._folds(state) and state.nonzero.any():
            channel = self._representative()
            position = np.flatnonzero(kept[0] == channel)
            if len(position):
                share = np.where(state.nonzero, state.constant, 0.0) / state.constant[channel]
                rows[..., position[0], :] = np.einsum("i,...io->...o", share, kernel)
        bias = (self.bias + self.extra)[need]
        return self._built(args, kwargs, rows[..., need], bias, need)

    def slices(self, kept, channels):
        return [{-2: kept[0], -1: channels}, {-1: channels}][: 1 + self.layer.use_bias]

    def _built(self, args, kwargs, kernel, bias, need):
        use_bias = self.layer.use_bias or bool(bias.any())
        size = "units" if isinstance(self.layer, layers.Dense) else "filters"
        changes = {size: len(need), "use_bias": use_bias}
        return self.build(args, kwargs, [kernel] + [bias] * use_bias, **changes), need


class Depthwise(Kernel):
    """DepthwiseConv: kernel (..., channels, multiplier), one or more results from each channel."""

    @property
    def multiplier(self):
        return self.kernel.shape[-1]

    def scale_output(self, gate):
        self.kernel = self.kernel * gate.reshape(-1, self.multiplier)
        self.bias = self.bias * gate

    def scale_input(self, gate):
        self.kernel = self.kernel * gate[:, None]

    def forward(self, states):
        (state,) = states
        space = tuple(range(self.kernel.ndim - 2))
        sums = self.kernel.sum(axis=space).reshape(-1)
        empty = ~(self.kernel != 0).any(axis=space).reshape(-1) & (not self.trains)
        constant, alive, zero = (
            np.repeat(v, self.multiplier) for v in (state.constant, state.alive, state.zero)
        )
        known = empty | zero | (~alive & (state.uniform and self.same_everywhere))
        inside = np.where(empty | zero | alive, 0.0, constant)
        return self.activated(self.bias + inside * sums, known)

    def demand(self, need, states):
        groups = need.reshape(-1, self.multiplier).any(axis=1)
        return [groups if groups.any() else None]

    def cut(self, args, kwargs, kept, need):
        wide = (kept[0][:, None] * self.multiplier + np.arange(self.multiplier)).reshape(-1)
        weights = [self.kernel[..., kept[0], :]]
        use_bias = self.layer.use_bias
        return self.build(args, kwargs, weights + [self.bias[wide]] * use_bias), wide

    def slices(self, kept, channels):
        return [{-2: kept[0]}, {-1: channels}][: 1 + self.layer.use_bias]


rule.register(layers.Dense, Matrix)
for _kind in (layers.DepthwiseConv1D, layers.DepthwiseConv2D):
    rule.register(_kind, Depthwise)


@rule.register(layers.Conv1D)
@rule.register(layers.Conv2D)
@rule.register(layers.Conv3D)
def _(layer, node):
    return (Matrix if layer.groups == 1 else Whole)(layer, node)


class UnitLength(Whole):
    """x / ||x|| over the channels: those that are always zero do not count and may leave."""

    def forward(self, states):
        return Channels(np.where(states[0].zero, 0.0, np.nan))

    def demand(self, need, states):
        wanted = np.asarray(need) | ~states[0].zero
        return [wanted if wanted.any() else np.ones_like(wanted)]

    def cut(self, args, kwargs, kept, need):
        return graph.copy(self.node, *args, **kwargs), kept[0]


@rule.register(layers.UnitNormalization)
def _(layer, node):
    axes = np.atleast_1d(layer.axis) % len(node.outputs[0].shape)
    last = axes.tolist() == [len(node.outputs[0].shape) - 1]
    return (UnitLength if last else Whole)(layer, node)


for _kind in (
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.Normalization,
    layers.Softmax,
    layers.MultiHeadAttention,
    *graph.operations(
        layers,
        """RandomFlip RandomRotation RandomTranslation RandomZoom RandomCrop RandomContrast
        RandomBrightness RandomShear CenterCrop Resizing""",
    ),
):
    rule.register(_kind, Whole)
