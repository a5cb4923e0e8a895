"""Cuts gated and pruned channels: a masked model in, a smaller model of stock Keras layers out.

    small = tr.shrink.compact(net)          # the same logits, fewer channels
    small.save("small.keras")               # loads where tfrobust is not installed

Four steps, each exact. Gates of masks are folded into the kernels around them (`gates`), so that a
closed gate is a kernel column, or row, of zeros, just as structured pruning leaves it. One pass
forward finds the channels that are the same for every image; one pass backward finds the channels
that anything still needs; then every layer is built again with these alone. What a dead channel
still says (the constant behind a BatchNormalization) goes into the bias of its readers, or, where a
SAME border sees it, into one constant channel with the dead kernels summed.

What a layer does to channels is a rule (`rule`, dispatched on its class); register one for a layer
of your own.
"""

import math

import keras
import numpy as np

from tfrobust import contract, graph
from tfrobust.shrink import joins, linear  # noqa: F401  (they register their rules)
from tfrobust.shrink.channelwise import PerChannel, Pointwise
from tfrobust.shrink.gates import settle
from tfrobust.shrink.rule import Channels, Rule, Whole, rule

__all__ = ["Channels", "PerChannel", "Pointwise", "Rule", "Whole", "compact", "rule"]

# Copying a number out of a map costs about as much as this many multiplications: a gather runs
# outside XNNPACK in TFLite (a half-shut ResNet50V2 at 224 x 224 took 79 ms with all its gathers and
# 48 ms without; the dead rows of a 1x1 convolution cost less).
_COPY = 1024


def compact(model):
    """Returns the same classifier without its masks and without the channels they shut.

    Channels go whose gate is exactly 0, or whose weights are exactly 0 (structured pruning), or
    that nothing reads any more; rows of a flattened map go one by one. Gates of surviving channels
    are folded into weights. Logits differ by rounding only, at most 1e-5 * max(1, max |logit|).
    Channels joined by a sum go together; a layer without an exact cut keeps its channels. Channels
    of a map that one reader ignores and another needs stay for both (with rows of zeros) unless
    taking them out of the map saves time.

    Args:
        model: Functional classifier with or without masks; it is not changed.

    Returns:
        A functional `keras.Model` of stock layers (and `keras.ops.take`), not compiled.

    Raises:
        TypeError, ValueError: not a functional classifier, a shared layer, or a layer without a
            rule; the message names the layer.

    Example: eight filters, four of them pruned.

    >>> net = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(8, 3, name="conv"),
    ...     keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(2, name="logits")])
    >>> net = graph.rebuild(keras.Model(net.inputs, net.outputs))
    >>> kernel, bias = net.get_layer("conv").get_weights()
    >>> kernel[..., 4:] = 0
    >>> net.get_layer("conv").set_weights([kernel, bias])
    >>> [w.shape for w in compact(net).get_weights()]
    [(3, 3, 1, 4), (4,), (64, 2), (2,)]
    """
    contract.classifier(model, "model")
    if any(isinstance(layer, keras.Model) for layer in model.layers):
        model = graph.rebuild(model)  # flat, so that every tensor has its true shape
    plan = Plan(graph.walk(model))
    settle(plan)
    plan.analyse()
    return graph.rebuild(model, plan.visit, plan.edge)


class Plan:
    """The rules of all calls of a model, and what becomes of their channels.

    Attributes:
        graph: The `graph.Graph`.
        rules: dict from node to its `Rule`.
    """

    def __init__(self, walked):
        self.graph = walked
        self.rules = {
            node: graph.dispatch(rule, node.layer)(node.layer, node) for node in walked.nodes
        }
        self._by_name = {node.name: node for node in walked.nodes}
        self._outputs = {id(t) for t in walked.outputs}
        self._need = {}  # id of a tensor -> bool (channels,)
        self._wide = {}  # name of a join -> bool (channels,) it keeps beyond its need
        self._demand = {}  # (node, index of its input) -> indices, None: not needed
        self._given = {}  # (node, index of its input) -> indices it gets
        self._kept = {}  # id of a tensor -> indices of the channels it has in the new model
        self._taken = {}  # (id of a tensor, channels) -> what `take` makes of it
        self._names = dict.fromkeys(self._by_name, 0)

    def is_output(self, tensor):
        return id(tensor) in self._outputs

    def analyse(self):
        """Constants forward, needs backward."""
        states = {id(t): Channels.unknown(t.shape[-1]) for t in self.graph.inputs}
        for node in self.graph.nodes:
            inputs = [states[id(t)] for t in node.inputs]
            states[id(node.outputs[0])] = self.rules[node].forward(inputs)
        while self._backward(states):
            pass

    def _backward(self, states):
        """One pass of needs; True if a join must keep more than it needs, and it has to run again.

        Operands of a join go with the same channels. Where one of them has a map with more (other
        readers need them), the others follow: that costs less than taking them out of the map.
        """
        self._need = {id(t): np.ones(t.shape[-1], bool) for t in self.graph.outputs}
        for node in reversed(self.graph.nodes):
            need = self._needed(node.outputs[0]) | self._wide.get(node.name, False)
            inputs = [states[id(t)] for t in node.inputs]
            wanted = self.rules[node].demand(need, inputs) if need.any() else [None] * len(inputs)
            self._need[id(node.outputs[0])] = need
            for index, (tensor, mask) in enumerate(zip(node.inputs, wanted, strict=True)):
                self._demand[node.name, index] = None if mask is None else np.flatnonzero(mask)
                if mask is not None:
                    self._need[id(tensor)] = self._needed(tensor) | mask
        again = False
        for node in self.graph.nodes:
            need = self._need[id(node.outputs[0])]
            if not self.rules[node].exact or not need.any() or _positions(node.outputs[0]) == 1:
                continue
            for index, tensor in enumerate(node.inputs):
                given = self._needed(tensor)
                joined = self._demand[node.name, index] is not None and len(given) == len(need)
                if joined and (given & ~need).any():
                    self._wide[node.name] = self._wide.get(node.name, False) | given
                    again = True
        return again

    def _needed(self, tensor):
        return self._need.get(id(tensor), np.zeros(tensor.shape[-1], bool))

    def visit(self, node, *args, **kwargs):
        """For `graph.rebuild`: the layer of this node with the channels that are left."""
        node = self._by_name[node.name]
        need = np.flatnonzero(self._needed(node.outputs[0]))
        if not len(need):
            return None
        kept = [self._given.get((node.name, index)) for index in range(len(node.inputs))]
        result, channels = self.rules[node].cut(args, kwargs, kept, need)
        self._kept[id(node.outputs[0])] = np.asarray(channels)
        return result

    def edge(self, value, node, index):
        """For `graph.rebuild`: hands a reader the channels that it demanded."""
        if node is None:
            tensor, wanted = self.graph.outputs[index], np.arange(value.shape[-1])
        else:
            node = self._by_name[node.name]
            tensor, wanted = node.inputs[index], self._demand[node.name, index]
        if wanted is None or value is None:
            return None
        have = self._kept.get(id(tensor), np.arange(tensor.shape[-1]))
        if np.array_equal(have, wanted) or (node and not self._pays(node, tensor, have, wanted)):
            self._given[node and node.name, index] = have
            return value
        self._given[node and node.name, index] = wanted
        key = (id(tensor), wanted.tobytes())
        if key not in self._taken:
            taken = keras.ops.take(value, np.searchsorted(have, wanted), axis=-1)
            # The automatic name counts the calls of this process: name it by its source instead.
            taken._keras_history.operation.name = self._name_of_take(tensor)
            self._taken[key] = taken
        return self._taken[key]

    def _pays(self, node, tensor, have, wanted):
        """Whether to take the wanted channels out of a tensor that other readers want more of."""
        if self.rules[node].exact or _positions(tensor) == 1:
            return True
        saved = (len(have) - len(wanted)) * self._work(node)
        return saved >= _COPY * len(wanted)

    def _work(self, node):
        """Multiplications per position that one channel costs from `node` on."""
        need = self._needed(node.outputs[0])
        if not need.any():
            return 0
        own = self.rules[node].work(np.flatnonzero(need))
        if own is not None:
            return own
        if self.rules[node].exact or _positions(node.outputs[0]) == 1:
            return 1
        return sum(self._work(reader) for reader in self.graph.consumers(node.outputs[0]))

    def _name_of_take(self, tensor):
        base = name = f"take_{tensor._keras_history.operation.name}"
        while name in self._names:
            self._names[base] += 1
            name = f"{base}_{self._names[base]}"
        self._names[name] = 0
        return name


def _positions(tensor):
    """Positions of a map, 1 for a vector; an unknown size counts as many."""
    return math.prod(size or 1024 for size in tensor.shape[1:-1])
