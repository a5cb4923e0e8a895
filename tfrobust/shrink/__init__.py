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

import keras
import numpy as np

from tfrobust import contract, graph
from tfrobust.shrink import joins, linear  # noqa: F401  (they register their rules)
from tfrobust.shrink.channelwise import PerChannel, Pointwise
from tfrobust.shrink.gates import settle
from tfrobust.shrink.rule import Channels, Rule, Whole, rule, rule_of

__all__ = ["Channels", "PerChannel", "Pointwise", "Rule", "Whole", "compact", "rule"]


def compact(model):
    """Returns the same classifier without its masks and without the channels they shut.

    Channels go whose gate is exactly 0, or whose weights are exactly 0 (structured pruning), or
    that nothing reads any more; rows of a flattened map go one by one. Gates of surviving channels
    are folded into weights. Logits differ by rounding only, at most 1e-5 * max(1, max |logit|).
    Channels joined by a sum go together; a layer without an exact cut keeps its channels.

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
        self.rules = {node: rule_of(node) for node in walked.nodes}
        self._by_name = {node.name: node for node in walked.nodes}
        self._outputs = {id(t) for t in walked.outputs}
        self._need = {}  # id of a tensor -> bool (channels,)
        self._demand = {}  # (node, index of its input) -> indices, None: not needed
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
        for tensor in self.graph.outputs:
            self._need[id(tensor)] = np.ones(tensor.shape[-1], bool)
        for node in reversed(self.graph.nodes):
            need = self._needed(node.outputs[0])
            inputs = [states[id(t)] for t in node.inputs]
            wanted = self.rules[node].demand(need, inputs) if need.any() else [None] * len(inputs)
            for index, (tensor, mask) in enumerate(zip(node.inputs, wanted, strict=True)):
                self._demand[node.name, index] = None if mask is None else np.flatnonzero(mask)
                if mask is not None:
                    self._need[id(tensor)] = self._needed(tensor) | mask

    def _needed(self, tensor):
        return self._need.get(id(tensor), np.zeros(tensor.shape[-1], bool))

    def visit(self, node, *args, **kwargs):
        """For `graph.rebuild`: the layer of this node with the channels that are left."""
        node = self._by_name[node.name]
        need = np.flatnonzero(self._needed(node.outputs[0]))
        if not len(need):
            return None
        kept = [self._demand[node.name, index] for index in range(len(node.inputs))]
        result, channels = self.rules[node].cut(args, kwargs, kept, need)
        self._kept[id(node.outputs[0])] = np.asarray(channels)
        return result

    def edge(self, value, node, index):
        """For `graph.rebuild`: hands a reader exactly the channels that it demanded."""
        if node is None:
            tensor, wanted = self.graph.outputs[index], np.arange(value.shape[-1])
        else:
            tensor = self._by_name[node.name].inputs[index]
            wanted = self._demand[node.name, index]
        if wanted is None or value is None:
            return None
        have = self._kept.get(id(tensor), np.arange(tensor.shape[-1]))
        if np.array_equal(have, wanted):
            return value
        key = (id(tensor), wanted.tobytes())
        if key not in self._taken:
            taken = keras.ops.take(value, np.searchsorted(have, wanted), axis=-1)
            # The automatic name counts the calls of this process: name it by its source instead.
            taken._keras_history.operation.name = self._name_of_take(tensor)
            self._taken[key] = taken
        return self._taken[key]

    def _name_of_take(self, tensor):
        base = name = f"take_{tensor._keras_history.operation.name}"
        while name in self._names:
            self._names[base] += 1
            name = f"{base}_{self._names[base]}"
        self._names[name] = 0
        return name
