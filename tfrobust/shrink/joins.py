"""Rules for layers that join tensors or move their axes: Add, Multiply, Concatenate, Flatten."""

import math

import keras
import numpy as np
from keras import layers
from keras.src.ops import numpy

from tfrobust import graph
from tfrobust.shrink.rule import Channels, Rule, Whole, rule


class Join(Rule):
    """An elementwise function of a list of operands: channels joined here go together.

    A channel leaves only if it is not needed behind the join; an operand that is zero in all needed
    channels leaves a sum as a whole (a residual branch with all its gates shut).
    """

    exact = True

    def __init__(self, layer, node, function):
        super().__init__(layer, node)
        self.function = function
        flat = keras.tree.flatten((node.args, node.kwargs))
        self.operands = [x for x in flat if x is not None and not isinstance(x, bool | str)]

    def _values(self, states):
        """Constant of every operand, numbers and arrays in the call included."""
        states = iter(states)
        values = []
        for x in self.operands:
            if isinstance(x, keras.KerasTensor):
                state = next(states)
                value = state.map(lambda c: c).constant
            else:
                value = np.asarray(x, np.float64)
                if value.ndim and max(value.shape[:-1], default=1) > 1:
                    value = np.full(value.shape[-1:], np.nan)  # differs from place to place
                value = value.reshape(-1)
            values.append(np.broadcast_to(value, (self.channels,)))
        return values

    def forward(self, states):
        self.values = self._values(states)
        return Channels(self.function(self.values))

    def demand(self, need, states):
        return [need if len(s.constant) == len(need) else need.any()[None] for s in states]

    def cut(self, args, kwargs, kept, need):
        def narrow(x):
            array = x is not None and not isinstance(x, keras.KerasTensor | bool | str)
            if array and np.ndim(x) and np.shape(x)[-1] == self.channels:
                return np.asarray(x)[..., need]
            return x

        args, kwargs = keras.tree.map_structure(narrow, (args, kwargs))
        return graph.copy(self.node, *args, **kwargs), need


class Mean(Join):
    """Add, Subtract, Average: a gate on the result is the same gate on every operand."""

    def before(self, gate):
        shapes = [getattr(x, "shape", (1,)) for x in self.operands]
        fits = all(len(s) > 1 and s[-1] == self.channels for s in shapes)
        return [gate] * len(self.operands) if fits else None


class Sum(Mean):
    """Add: an operand whose needed channels are all zero is left out."""

    def __init__(self, layer, node):
        super().__init__(layer, node, sum)
        self.left_out = set()

    def demand(self, need, states):
        wanted = super().demand(need, states)
        if len(states) != len(self.operands):
            return wanted
        shape = self.node.outputs[0].shape
        full = [i for i, x in enumerate(self.operands) if x.shape == shape]
        self.left_out = {
            i for i, s in enumerate(states) if len(s.zero) == len(need) and s.zero[need].all()
        }
        if not full:  # the operands give the result its shape together
            self.left_out = set()
        elif not set(full) - self.left_out:
            self.left_out.discard(full[0])
        return [None if i in self.left_out else w for i, w in enumerate(wanted)]

    def cut(self, args, kwargs, kept, need):
        if not self.left_out:
            return super().cut(args, kwargs, kept, need)
        new = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        if len(new) == 1:
            return new[0], need
        return graph.copy(self.node, new), need


class Product(Join):
    """Multiply, as in squeeze and excite: a gate on one operand is that gate on the result."""

    def __init__(self, layer, node):
        super().__init__(layer, node, math.prod)

    def through(self, index, gate):
        return np.broadcast_to(gate, (self.channels,))

    def before(self, gate):
        tensors = [x for x in self.operands if isinstance(x, keras.KerasTensor)]
        fits = [x.shape[-1] == self.channels for x in tensors]
        if True not in fits:
            return None
        return [gate if i == fits.index(True) else None for i in range(len(tensors))]

    def forward(self, states):
        super().forward(states)
        zero = np.any([v == 0 for v in self.values], axis=0)
        return Channels(np.where(zero, 0.0, math.prod(self.values)))


class Quotient(Join):
    """Divide: only the numerator passes a gate."""

    def __init__(self, layer, node):
        super().__init__(layer, node, lambda values: values[0] / values[1])

    def through(self, index, gate):
        first = isinstance(self.operands[0], keras.KerasTensor) and index == 0
        return np.broadcast_to(gate, (self.channels,)) if first else None


class Concatenate(Rule):
    """Channels side by side; along another axis all inputs keep the same channels."""

    def __init__(self, layer, node):
        super().__init__(layer, node)
        self.sizes = [x.shape[-1] for x in node.inputs]
        rank = len(node.outputs[0].shape)
        self.on_channels = layer.axis in (-1, rank - 1)
        self.splits = np.cumsum(self.sizes)[:-1]
        self.exact = not self.on_channels

    def through(self, index, gate):
        if not self.on_channels:
            return None
        parts = [np.ones(size) for size in self.sizes]
        parts[index] = gate
        return np.concatenate(parts)

    def before(self, gate):
        return np.split(gate, self.splits) if self.on_channels else [gate] * len(self.sizes)

    def forward(self, states):
        patterns = sum(not s.uniform for s in states)
        plain = any(s.uniform and s.nonzero.any() for s in states)
        if self.on_channels and patterns == 1 and not plain:
            return Channels(np.concatenate([s.constant for s in states]), uniform=False)
        values = [s.map(lambda c: c).constant for s in states]
        if self.on_channels:
            return Channels(np.concatenate(values))
        agree = np.all([v == values[0] for v in values], axis=0)
        return Channels(np.where(agree, values[0], np.nan))

    def demand(self, need, states):
        if not self.on_channels:
            return [need] * len(states)
        return [part if part.any() else None for part in np.split(need, self.splits)]

    def cut(self, args, kwargs, kept, need):
        new = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        result = new[0] if len(new) == 1 else graph.copy(self.node, new)
        if not self.on_channels:
            return result, need
        starts = [0, *self.splits]
        parts = [k + start for k, start in zip(kept, starts, strict=True) if k is not None]
        return result, np.concatenate(parts)


class Rearrange(Rule):
    """Flatten, Reshape, Permute: channels of the result are copies of channels of the input.

    `source[k]` is the input channel that fills channel k; None if a channel is filled from several,
    then everything is kept.
    """

    def __init__(self, layer, node):
        super().__init__(layer, node)
        self.source = self._sources(layer, np.arange(node.inputs[0].shape[-1]))

    def _sources(self, layer, labels):
        shape = [size or 2 for size in self.node.inputs[0].shape[1:-1]]
        grid = np.broadcast_to(labels.astype("float32"), (1, *shape, len(labels)))
        moved = np.asarray(layer(keras.ops.convert_to_tensor(grid)))
        moved = moved.reshape(-1, moved.shape[-1]).astype(int)
        return moved[0] if (moved == moved[0]).all() else None

    def through(self, index, gate):
        return None if self.source is None else gate[self.source]

    def before(self, gate):
        if self.source is None:
            return None
        back = np.ones(self.node.inputs[0].shape[-1])
        back[self.source] = gate
        return [back] if (back[self.source] == gate).all() else None

    def forward(self, states):
        if self.source is None:
            return super().forward(states)
        return Channels(states[0].map(lambda c: c).constant[self.source])

    def demand(self, need, states):
        if self.source is None:
            return [np.ones(len(s.constant), bool) for s in states]
        wanted = np.zeros(len(states[0].constant), bool)
        wanted[self.source[need]] = True
        return [wanted]

    def cut(self, args, kwargs, kept, need):
        if self.source is None:
            return graph.copy(self.node, *args, **kwargs), np.arange(self.channels)
        left = np.flatnonzero(np.isin(self.source, kept[0]))
        layer = graph.fresh(self.node, **self._changes(len(left)))
        result = layer(*args, **kwargs)
        return result, left

    def _changes(self, count):
        return {}


class Reshape(Rearrange):
    def _changes(self, count):
        return {"target_shape": (*self.layer.target_shape[:-1], count)}


class Take(Rearrange):
    """`keras.ops.take` of fixed channels, as `compact` itself leaves them behind."""

    def __init__(self, layer, node):
        indices = [x for x in keras.tree.flatten((node.args, node.kwargs)) if x is not None]
        indices = [x for x in indices if not isinstance(x, keras.KerasTensor)]
        rank = len(node.inputs[0].shape)
        self.fixed = layer.axis in (-1, rank - 1) and len(node.inputs) == 1
        self.indices = np.asarray(indices, int).reshape(-1) if self.fixed else None
        super().__init__(layer, node)

    def _sources(self, layer, labels):
        return labels[self.indices] if self.fixed else None

    def cut(self, args, kwargs, kept, need):
        if not self.fixed:
            return graph.copy(self.node, *args, **kwargs), np.arange(self.channels)
        (x,) = [a for a in keras.tree.flatten((args, kwargs)) if isinstance(a, keras.KerasTensor)]
        positions = np.searchsorted(kept[0], self.source[need])
        if np.array_equal(positions, np.arange(len(kept[0]))):
            return x, need
        return graph.fresh(self.node)(x, positions), need


class Pad(Rule):
    """Zeros around the map, and zero channels beside its own (a shortcut without parameters)."""

    def __init__(self, layer, node):
        super().__init__(layer, node)
        self.borders, (start, _) = layer.pad_width[:-1], layer.pad_width[-1]
        self.own = slice(start, start + node.inputs[0].shape[-1])

    def through(self, index, gate):
        wide = np.ones(self.channels)
        wide[self.own] = gate
        return wide

    def before(self, gate):
        return [gate[self.own]]

    def forward(self, states):
        (state,) = states
        constant = np.zeros(self.channels)
        constant[self.own] = state.constant
        bordered = np.any(self.borders) and state.nonzero.any()
        return Channels(constant, state.uniform and not bordered)

    def demand(self, need, states):
        own = need[self.own].copy()
        if not own.any():
            own[0] = True  # what is padded must have a channel
        return [own]

    def cut(self, args, kwargs, kept, need):
        before, after = need[need < self.own.start], need[need >= self.own.stop]
        widths = [*map(list, self.borders), [len(before), len(after)]]
        channels = np.concatenate([before, kept[0] + self.own.start, after])
        if not np.any(widths):
            return args[0], channels
        return graph.fresh(self.node, pad_width=widths)(*args, **kwargs), channels


def _joined(make, function):
    return lambda layer, node: make(layer, node, function)


for _names, _rule in {
    "Add": Sum,
    "Subtract": _joined(Mean, lambda values: values[0] - values[1]),
    "Average": _joined(Mean, lambda values: sum(values) / len(values)),
    "Multiply": Product,
    "Divide TrueDivide": Quotient,
    "Maximum": _joined(Join, lambda values: np.max(values, axis=0)),
    "Minimum": _joined(Join, lambda values: np.min(values, axis=0)),
    "Concatenate": Concatenate,
    "Flatten Permute": Rearrange,
    "Reshape": Reshape,
    "Take": Take,
}.items():
    for _module in [layers] if _names == "Reshape" else [layers, numpy]:
        for _kind in graph.operations(_module, _names):
            rule.register(_kind, _rule)


for _kind in graph.operations(numpy, "Pad"):

    @rule.register(_kind)
    def _(layer, node):
        values = keras.tree.flatten((node.args[1:], node.kwargs))
        zeros = layer.mode == "constant" and not any(v is not None and np.any(v) for v in values)
        fits = len(layer.pad_width) == len(node.outputs[0].shape) and not any(layer.pad_width[0])
        return (Pad if zeros and fits else Whole)(layer, node)
