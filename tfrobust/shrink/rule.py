"""What `compact` must know about a layer to cut its channels: the rule interface and its dispatch.

A channel is an entry of the last axis. A rule tells, for one call of one layer, how a gate on the
channels moves through it, which channels of its result are constant, which channels of its inputs
are needed, and how to build the layer with fewer of them.
"""

import functools

import keras
import numpy as np

from tfrobust import graph


class Channels:
    """What is known about the channels of a tensor before any image is seen.

    Attributes:
        constant: float64 `(channels,)`: the value of a channel that is the same for every image,
            NaN where it depends on the image.
        uniform: True if a constant channel has its value at every position. False if, behind a
            zero padding, it is its value times one pattern >= 0 that all of them share.
    """

    def __init__(self, constant, uniform=True):
        self.constant = np.asarray(constant, np.float64)
        self.uniform = bool(uniform or not np.nan_to_num(self.constant).any())

    @classmethod
    def unknown(cls, count):
        return cls(np.full(count, np.nan))

    @property
    def alive(self):
        return np.isnan(self.constant)

    @property
    def zero(self):
        return self.constant == 0

    @property
    def nonzero(self):
        """Constant, but not zero."""
        return ~self.alive & ~self.zero

    def map(self, function, keeps_pattern=False):
        """Constants after an elementwise `function`; a pattern survives only if `keeps_pattern`."""
        lost = self.nonzero & (not (self.uniform or keeps_pattern))
        known = ~self.alive & ~lost
        value = np.full(self.constant.shape, np.nan)
        value[known] = function(self.constant[known])
        return Channels(value, self.uniform or not keeps_pattern)


class Rule:
    """How the channels of one call behave. Subclass it, or take `Pointwise` or `Whole` as it is.

    The defaults describe a layer of one input and one result with the same channels.

    Attributes:
        exact: True if `cut` must be handed the demanded channels only.
        trains: True if the net is trained on: a closed gate makes a channel constant, a weight that
            happens to be 0 does not, gates stay gates, and constraints stay where they are.

    Args:
        layer: The layer (or `keras.ops` operation).
        node: Its `graph.Node`.
    """

    exact = False
    trains = False

    def __init__(self, layer, node):
        self.layer, self.node = layer, node
        if len(node.outputs) != 1:
            raise ValueError(
                f"`compact` cannot cut around layer '{node.name}' ({type(layer).__name__}): "
                f"it returns {len(node.outputs)} tensors, expected one."
            )
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            raise ValueError(
                f"Layer '{node.name}' has data_format='channels_first': `compact` works on the "
                "last axis, build the model with channels_last."
            )

    @property
    def channels(self):
        """Number of channels of the result."""
        return self.node.outputs[0].shape[-1]

    def through(self, index, gate):
        """The gate on the result that equals `gate` on input number `index`; None if there is none.

        Only where layer(x * gate) = layer(x) * result for every x.
        """
        return None

    def before(self, gate):
        """Gates on the inputs (None: leave that one alone) that equal `gate` on the result."""
        return None

    def absorb_input(self, index, gate):
        """A callable that folds `gate` on input `index` into the weights, or None if it cannot."""
        return None

    def absorb_output(self, gate):
        """A callable that folds `gate` on the result into the weights, or None if it cannot."""
        return None

    def forward(self, states):
        """`Channels` of the result from those of the inputs."""
        return Channels.unknown(self.channels)

    def demand(self, need, states):
        """For each input the channels (bool) it must deliver for `need`; None: leave it out."""
        return [np.asarray(need)] * len(states)

    def cut(self, args, kwargs, kept, need):
        """Calls the layer built for the channels that are left.

        Args:
            args, kwargs: Arguments of the call, with the new tensors; an input that is not
                needed is None.
            kept: For each input the original indices of the channels it still has, ascending:
                those demanded, and more where taking them out would cost more than it saves
                (never more if `exact`).
            need: Original indices of the channels wanted from the result.

        Returns:
            `(tensor, indices)`: the result and the original indices of its channels, a superset
            of `need` in ascending order.
        """
        return graph.copy(self.node, *args, **kwargs), kept[0]

    def work(self, need):
        """Multiplications that one input channel costs at each position of the input, roughly.

        None: as many as in the layers behind this one, which passes channels on.
        """
        return None

    def slices(self, kept, channels):
        """For each weight of the layer {axis: indices} of what `cut` leaves of it.

        Args:
            kept: As for `cut`.
            channels: The indices that `cut` returned.
        """
        return [{} for _ in getattr(self.layer, "weights", ())]

    def build(self, args, kwargs, weights, **changes):
        """Calls a fresh layer with `changes` to its config and these weights."""
        dropped = {} if self.trains else own_parts_dropped(self.layer)
        layer = graph.fresh(self.node, **{**dropped, **changes})
        result = layer(*args, **kwargs)
        layer.set_weights([np.asarray(w, np.float32) for w in weights])
        return result


class Whole(Rule):
    """A layer that is kept as it is: it needs every channel and delivers every channel.

    Exact for any layer; nothing is cut at it, and a gate in front of it stays as a Rescaling.
    """

    def demand(self, need, states):
        return [np.ones(len(s.constant), bool) for s in states]

    def cut(self, args, kwargs, kept, need):
        return graph.copy(self.node, *args, **kwargs), np.arange(self.channels)


@functools.singledispatch
def rule(layer, node):
    """The `Rule` for a call of `layer`: `functools.singledispatch` on the class of the layer.

    A layer of your own needs one line; `Pointwise` suits elementwise functions and `Whole` is right
    for every layer whose result has its channels on the last axis:

        tr.shrink.rule.register(MyActivation, tr.shrink.Pointwise)

    Raises:
        ValueError: no rule is registered for the class.
    """
    raise ValueError(
        f"`compact` has no rule for layer '{node.name}' ({type(layer).__name__}). Register one: "
        f"tr.shrink.rule.register({type(layer).__name__}, tr.shrink.Whole) keeps it as it is."
    )


def own_parts_dropped(layer):
    """Config changes that remove constraints and regularizers which are not Keras's own."""
    changes = {}
    for key, value in layer.get_config().items():
        own = isinstance(value, dict) and value.get("registered_name")
        if own and key.endswith(("_constraint", "_regularizer")):
            changes[key] = None
    return changes


def evaluate(layer, values):
    """An elementwise layer or operation on a vector of constants, as the model computes it."""
    if not len(values):
        return values
    result = layer(keras.ops.convert_to_tensor(values[None], "float32"))
    return np.asarray(keras.ops.convert_to_numpy(result), np.float64)[0]
