"""The walk over a classifier's graph that turns rules into a footprint."""

import dataclasses
import math
import warnings

import keras
import numpy as np

from tfrobust import contract, graph
from tfrobust.footprint.result import Cost, Footprint, Row
from tfrobust.footprint.rules import MIXERS, Flow, cost, demand, flow, weights
from tfrobust.layers.mask import Mask


def measure(model):
    """Footprint of a functional classifier; a masked one is measured by its live units.

    Args:
        model: Functional Keras classifier that returns logits, channels last.

    Returns:
        `Footprint`.

    Raises:
        TypeError, ValueError: not a classifier in our contract, or a layer with channels first.

    Warns when a layer has weights and no rule: its FLOPs are missing and `uncounted` names it.
    """
    contract.image_shape(contract.classifier(model, "model"))
    walked = graph.walk(model)
    if any(None in t.shape[1:] for node in walked.nodes for t in node.outputs):
        walked = graph.walk(graph.rebuild(model))  # a nested model with sizes of its own
    flows, answers = _live(walked)
    return _rows(model.name, walked, flows, answers)


def unit_costs(model):
    """What closing one more unit of each mask would save: {mask: FLOPs}, 0 where none is open.

    A channel that a later mask counts again (the places of a map after Flatten) takes these along.

    Args:
        model: Functional classifier with `tr.layers.Mask` layers, channels last.

    Example: of LeNet-5-Caffe's units a map of the first convolution costs most.

    >>> from tfrobust import layers, models
    >>> unit_costs(models.lenet5_caffe(mask=layers.BetaBernoulliMask))
    {'mask_conv1': 189952, 'mask_conv2': 80128, 'mask_flatten': 1000, 'mask_dense3': 1621}
    """
    contract.image_shape(contract.classifier(model, "model"))
    walked = graph.walk(model)
    total = _rows(model.name, walked, *_live(walked)).flops
    names = [node.name for node in walked.nodes if isinstance(node.layer, Mask)]
    return {name: total - _rows(model.name, walked, *_live(walked, name)).flops for name in names}


def _live(walked, closed=None):
    """Live channels of every tensor, and the tensors that reach the logits without a kernel.

    Args:
        closed: Name of a mask that shuts one channel more than it does.
    """
    alive = {id(t): np.ones(t.shape[-1], bool) for t in walked.inputs}
    for node in walked.nodes:
        if getattr(node.layer, "data_format", "channels_last") not in (None, "channels_last"):
            raise ValueError(
                f"`model` must be channels last. Received: layer '{node.name}' with "
                f"data_format='{node.layer.data_format}'"
            )
        inputs = [alive[id(t)] for t in node.inputs]
        for tensor in node.outputs:
            alive[id(tensor)] = np.asarray(flow(node.layer, inputs, tensor.shape), bool)
            if node.name == closed:
                alive[id(tensor)] &= np.cumsum(alive[id(tensor)]) != 1
    wanted = {id(t): np.ones(t.shape[-1], bool) for t in walked.outputs}
    answers, tensors = set(wanted), list(walked.inputs)
    for node in reversed(walked.nodes):
        tensor = node.outputs[0]
        if id(tensor) in answers and not isinstance(node.layer, MIXERS):
            answers.update(id(t) for t in node.inputs)
        need = alive[id(tensor)] & wanted.get(id(tensor), False)
        asked = demand(node.layer, need, [alive[id(t)] for t in node.inputs])
        for source, part in zip(node.inputs, asked, strict=True):
            wanted[id(source)] = wanted.get(id(source), False) | part
        tensors += node.outputs
    flows = {
        id(t): Flow(math.prod(t.shape[1:-1]), alive[id(t)] & wanted.get(id(t), True))
        for t in tensors
    }
    return flows, answers


def _rows(name, walked, flows, answers):
    rows, uncounted, hidden, flat = [], [], set(), {}
    for node in walked.nodes:
        layer, sources, tensor = node.layer, [id(t) for t in node.inputs], id(node.outputs[0])
        inputs, output = [flows[t] for t in sources], flows[tensor]
        spent = cost(layer, inputs, output)
        if spent is None:
            uncounted.append(node.name)
            spent = Cost()
        mixer = isinstance(layer, MIXERS)
        counts = mixer and tensor not in answers
        arrays = weights(layer, inputs, output)
        if mixer or any(t in hidden for t in sources):
            hidden.add(tensor)
        rows.append(
            Row(
                name=node.name,
                kind=type(layer).__name__,
                units=output.channels if counts else 0,
                units_total=len(output.live) if counts else 0,
                parameters=sum(array.size for array in arrays),
                nonzero=sum(int(np.count_nonzero(array)) for array in arrays),
                flops=spent.flops,
                macs=spent.macs,
                memory=spent.memory,
                activations=output.size if mixer else 0,
            )
        )
        # The units of a Flatten are the values that the next dense layer reads.
        origin = next((flat[t] for t in sources if t in flat), None)
        if isinstance(layer, keras.layers.Flatten) and sources[0] in hidden:
            flat[tensor] = len(rows) - 1
        elif origin is not None and isinstance(layer, keras.layers.Dense):
            read = inputs[0]
            rows[origin] = dataclasses.replace(
                rows[origin], units=read.channels, units_total=len(read.live)
            )
        elif origin is not None and not mixer:
            flat[tensor] = origin
    if uncounted:
        warnings.warn(
            f"No cost rule for {', '.join(uncounted)}: their FLOPs are missing from the footprint. "
            "Register one with tr.footprint.cost.register.",
            stacklevel=3,
        )
    return Footprint(rows, name, uncounted)
