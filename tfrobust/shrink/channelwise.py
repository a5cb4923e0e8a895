"""Rules for layers that treat every channel alone: activations, pools, paddings, scales, norms."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src import activations as source_activations
from keras.src.ops import nn, numpy

from tfrobust import graph
from tfrobust.layers.mask import Mask
from tfrobust.shrink.rule import Channels, Rule, Whole, evaluate, rule

_POINTWISE = """celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh
leaky_relu linear log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign
sparse_plus squareplus swish tanh tanh_shrink threshold""".split()


class PerChannel(Rule):
    """Pools, paddings, dropout: they move, average or compare values of one channel.

    layer(x * gate) = layer(x) * gate for gates >= 0, and a constant stays one.
    """

    linear = True  # gates of any sign pass

    def _passes(self, gate):
        return gate if self.linear or (gate >= 0).all() else None

    def through(self, index, gate):
        return self._passes(gate)

    def before(self, gate):
        return None if self._passes(gate) is None else [gate]

    def forward(self, states):
        return states[0]


class Drop(PerChannel):
    """Dropout: nothing in inference; a noise shape that names the channels follows the cut."""

    def cut(self, args, kwargs, kept, need):
        shape = getattr(self.layer, "noise_shape", None)
        if shape is None or shape[-1] != self.channels:
            return super().cut(args, kwargs, kept, need)
        layer = graph.fresh(self.node, noise_shape=(*shape[:-1], len(kept[0])))
        return layer(*args, **kwargs), kept[0]


class MaxPool(PerChannel):
    """Maximum over positions: only gates >= 0 pass."""

    linear = False

    def forward(self, states):
        (state,) = states
        if state.uniform:
            return state
        # max(c * pattern) = c * max(pattern) needs c >= 0.
        return Channels(np.where(state.constant < 0, np.nan, state.constant), uniform=False)


class GlobalPool(PerChannel):
    """Average over all positions."""

    def forward(self, states):
        (state,) = states
        return state.map(lambda c: c)


class GlobalMaxPool(GlobalPool):
    linear = False


class Padding(PerChannel):
    """Zeros around the map: a constant that is not zero keeps its value only inside."""

    def forward(self, states):
        (state,) = states
        return Channels(state.constant, uniform=not state.nonzero.any())


class Pointwise(PerChannel):
    """An elementwise function: Activation, ReLU, `keras.ops.sigmoid`, or a layer of your own."""

    def _passes(self, gate):
        kind = homogeneous(self.layer)
        if kind == "linear" or (kind == "positive" and (gate >= 0).all()):
            return gate
        return None

    def forward(self, states):
        # The pattern behind a padding is >= 0, so f(c * pattern) = f(c) * pattern for ReLU's kind.
        return states[0].map(
            lambda values: evaluate(self.layer, values), bool(homogeneous(self.layer))
        )


class PReLU(PerChannel):
    """Slopes per channel, and per position unless they are shared."""

    linear = False

    def _slopes(self):
        alpha = np.asarray(self.layer.get_weights()[0], np.float64)
        return alpha.reshape(-1, alpha.shape[-1])

    def forward(self, states):
        (state,) = states
        slopes, values = self._slopes(), state.constant
        moves = (values < 0) & (slopes != slopes[0]).any(0)
        values = np.where(values < 0, values * slopes[0], values)
        return Channels(np.where(moves, np.nan, values), state.uniform)

    def cut(self, args, kwargs, kept, need):
        alpha = self.layer.get_weights()[0]
        if alpha.shape[-1] > 1:  # else all channels share one slope
            alpha = alpha[..., kept[0]]
        return self.build(args, kwargs, [alpha]), kept[0]

    def slices(self, kept, channels):
        return [{-1: kept[0]} if self.layer.alpha.shape[-1] > 1 else {}]


class Affine(Rule):
    """x * scale + offset with one value a channel, settled by gates before it is built."""

    def __init__(self, layer, node, scale, offset):
        super().__init__(layer, node)
        self.scale = np.broadcast_to(np.asarray(scale, np.float64), (self.channels,)).copy()
        self.offset = np.broadcast_to(np.asarray(offset, np.float64), (self.channels,)).copy()

    @property
    def identity(self):
        return (self.scale == 1).all() and not self.offset.any()

    @property
    def closed(self):
        """Channels that say the same whatever comes in."""
        return self.scale == 0

    def through(self, index, gate):
        return gate if self.identity else None

    def before(self, gate):
        return [gate] if self.identity else None

    def absorb_input(self, index, gate):
        def fold():
            self.scale = self.scale * gate

        return None if self.identity else fold

    def absorb_output(self, gate):
        def fold():
            self.scale, self.offset = self.scale * gate, self.offset * gate

        return None if self.identity else fold

    def forward(self, states):
        (state,) = states
        fixed = ~state.alive & (state.uniform | state.zero) | self.closed
        inside = np.where(state.alive | self.closed, 0.0, state.constant)
        value = np.where(fixed, inside * self.scale + self.offset, np.nan)
        if not state.uniform and not self.offset.any():
            return Channels(np.where(self.closed, 0.0, state.constant * self.scale), False)
        return Channels(value)


class Scale(Affine):
    """A stock Rescaling, or a mask whose gate no neighbour could take (it becomes a Rescaling)."""

    def cut(self, args, kwargs, kept, need):
        (x,) = [a for a in keras.tree.flatten((args, kwargs)) if isinstance(a, keras.KerasTensor)]
        scale, offset = self.scale[kept[0]], self.offset[kept[0]]
        if self.identity:
            return x, kept[0]
        offset = offset.tolist() if offset.any() else 0.0
        layer = layers.Rescaling(
            scale.tolist(), offset=offset, name=self.node.name, dtype=self.layer.dtype_policy
        )
        return layer(x), kept[0]


class Gate(Scale):
    """A mask: in inference x * expected()."""

    def __init__(self, layer, node):
        expected = np.asarray(keras.ops.convert_to_numpy(layer.expected()), np.float64)
        super().__init__(layer, node, expected, 0.0)

    @property
    def gate(self):
        return self.scale

    def open(self):
        """The gate has gone into other weights: this mask is nothing now."""
        self.scale = np.ones(self.channels)

    def cut(self, args, kwargs, kept, need):
        if not self.trains:
            return super().cut(args, kwargs, kept, need)
        try:
            layer = graph.fresh(self.node)
            result = layer(*args, **kwargs)
            pairs = zip(self.layer.get_weights(), self.slices(kept, kept[0]), strict=True)
            layer.set_weights([taken(weight, indices) for weight, indices in pairs])
            left = np.asarray(keras.ops.convert_to_numpy(layer.expected()))
            same = np.array_equal(left, np.float32(self.scale[kept[0]]))
        except (ValueError, tf.errors.InvalidArgumentError):
            same = False
        if not same:
            raise ValueError(
                f"Mask '{self.node.name}' must get its gate from weights with one value a channel "
                f"to be cut while it is trained. Received: {type(self.layer).__name__}"
            )
        return result, kept[0]

    def slices(self, kept, channels):
        return [
            {-1: kept[0]} if weight.shape[-1:] == (self.channels,) else {}
            for weight in self.layer.weights
        ]


class BatchNorm(Affine):
    """Batch normalization in inference: gamma (x - mean) / sqrt(variance + epsilon) + beta."""

    def __init__(self, layer, node):
        rank = len(node.outputs[0].shape)
        if layer.axis not in (-1, rank - 1):
            raise ValueError(
                f"BatchNormalization '{node.name}' must work on the last axis. "
                f"Received: axis={layer.axis}"
            )
        mean, variance = _array(layer.moving_mean), _array(layer.moving_variance)
        self.gamma = _array(layer.gamma) if layer.scale else np.ones_like(mean)
        self.beta = _array(layer.beta) if layer.center else np.zeros_like(mean)
        self.mean, self.variance = mean, variance
        scale = self.gamma / np.sqrt(variance + layer.epsilon)
        super().__init__(layer, node, scale, self.beta - mean * scale)

    @property
    def identity(self):
        return False

    @property
    def closed(self):
        return super().closed & (not self.trains)

    def slices(self, kept, channels):
        return [{-1: kept[0]} for _ in self.layer.weights]

    def absorb_input(self, index, gate):
        def fold():
            some = gate != 0
            # A closed gate leaves beta - gamma mean / sd, written with gamma = 0 and mean = 0.
            self.beta = np.where(some, self.beta, self.offset)
            self.mean = np.where(some, self.mean / np.where(some, gate, 1.0), 0.0)
            self.gamma, self.scale = self.gamma * gate, self.scale * gate

        return fold

    def absorb_output(self, gate):
        def fold():
            self.gamma, self.beta = self.gamma * gate, self.beta * gate
            self.scale, self.offset = self.scale * gate, self.offset * gate

        return fold

    def cut(self, args, kwargs, kept, need):
        left = kept[0]
        gamma, beta = self.gamma[left], self.beta[left]
        scale = self.layer.scale or bool((gamma != 1).any())
        center = self.layer.center or bool(beta.any())
        weights = [gamma] * scale + [beta] * center + [self.mean[left], self.variance[left]]
        return self.build(args, kwargs, weights, scale=scale, center=center), left


def homogeneous(layer):
    """ "linear" if f(g x) = g f(x), "positive" if only for g >= 0, None otherwise.

    >>> homogeneous(layers.ReLU()), homogeneous(layers.ReLU(6.0)), homogeneous(layers.Dropout(0.5))
    ('positive', None, None)
    """
    if isinstance(layer, layers.Activation):
        layer = layer.activation
    if layer is keras.activations.linear or isinstance(layer, layers.Identity):
        return "linear"
    if layer in (keras.activations.relu, keras.activations.leaky_relu):
        return "positive"
    if isinstance(layer, layers.LeakyReLU | layers.PReLU | nn.Relu | nn.LeakyRelu):
        return "positive"
    if isinstance(layer, layers.ReLU | source_activations.activations.ReLU):
        return "positive" if layer.max_value is None and layer.threshold == 0 else None
    return None


def pointwise(function):
    """Whether an activation function is known to treat every number alone.

    >>> pointwise(keras.activations.tanh), pointwise(keras.activations.softmax)
    (True, False)
    """
    if isinstance(function, layers.Layer):
        return isinstance(function, layers.ReLU | layers.LeakyReLU | layers.ELU)
    name = getattr(function, "__name__", "")
    return name in _POINTWISE and getattr(keras.activations, name, None) is function


def taken(value, indices):
    """`value` with only these {axis: indices} left.

    >>> taken(np.arange(6).reshape(2, 3), {-1: [0, 2], 0: [1]}).tolist()
    [[3, 5]]
    """
    for axis, left in indices.items():
        value = np.take(value, left, axis)
    return value


def _array(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


rule.register(Mask, Gate)
for _kind in (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity):
    rule.register(_kind, Pointwise)
for _kind in graph.operations(
    nn,
    """Relu Relu6 Sigmoid Softplus Softsign SoftShrink Silu Squareplus LogSigmoid LeakyRelu
    HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink Threshold""",
) + graph.operations(numpy, "Tanh Clip Abs Absolute Exp Negative Square Sqrt"):
    rule.register(_kind, Pointwise)
for _kind in graph.operations(source_activations.activations, "ReLU Mish"):
    rule.register(_kind, Pointwise)
rule.register(layers.PReLU, PReLU)
for _rank in "123":
    for _name, _rule in {
        "MaxPooling{}D": MaxPool,
        "AveragePooling{}D": PerChannel,
        "GlobalMaxPooling{}D": GlobalMaxPool,
        "GlobalAveragePooling{}D": GlobalPool,
        "ZeroPadding{}D": Padding,
        "Cropping{}D": PerChannel,
        "UpSampling{}D": PerChannel,
        "SpatialDropout{}D": PerChannel,
    }.items():
        rule.register(getattr(layers, _name.format(_rank)), _rule)
for _kind in (layers.Dropout, layers.AlphaDropout):
    rule.register(_kind, Drop)
for _kind in (layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization):
    rule.register(_kind, PerChannel)


@rule.register(layers.Activation)
def _(layer, node):
    return (Pointwise if pointwise(layer.activation) else Whole)(layer, node)


@rule.register(layers.BatchNormalization)
def _(layer, node):
    return (Whole if getattr(layer, "renorm", False) else BatchNorm)(layer, node)


@rule.register(layers.Rescaling)
def _(layer, node):
    if max(np.ndim(layer.scale), np.ndim(layer.offset)) > 1:
        return Whole(layer, node)
    return Scale(layer, node, layer.scale, layer.offset)
