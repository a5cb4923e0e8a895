"""Which channels of a model are left, and the model built again with these alone."""

import math

import keras
import numpy as np

from tfrobust import graph
from tfrobust.shrink.rule import Channels, rule

# Copying a number out of a map costs about as much as this many multiplications: a gather runs
# outside XNNPACK in TFLite (a half-shut ResNet50V2 at 224 x 224 took 79 ms with all its gathers and
# 48 ms without; the dead rows of a 1x1 convolution cost less).
_COPY = 1024


def flattened(model):
    """`model` without models inside, so that every tensor has its true shape."""
    nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    return graph.rebuild(model) if nested else model


class Plan:
    """The rules of all calls of a model, and what becomes of their channels.

    Attributes:
        graph: The `graph.Graph`.
        rules: dict from node to its `Rule`.
        cuts: dict from the name of a node that was built again to the indices of the channels that
            its inputs and its result have left.

    Args:
        walked: The `graph.Graph`.
        trains: True if the new model is to be trained on (see `Rule.trains`).
    """

    def __init__(self, walked, trains=False):
        self.graph, self.cuts = walked, {}
        self.rules = {
            node: graph.dispatch(rule, node.layer)(node.layer, node) for node in walked.nodes
        }
        for made in self.rules.values():
            made.trains = trains
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
        self.cuts[node.name] = kept, np.asarray(channels)
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
