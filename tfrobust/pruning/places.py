"""What can be pruned: the kernels of a model, and what else falls silent with a filter."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np
from keras import layers

from tfrobust import graph
from tfrobust.pruning.follow import Stays, followers
from tfrobust.pruning.streams import tie


@dataclasses.dataclass(eq=False)
class Place:
    """A kernel that may be pruned.

    Attributes:
        name: Name of its layer.
        layer: The layer.
        kernel: The `keras.Variable`; filters are its last axis, input channels the one before.
        silenced: Pairs (variable, source): a vector that belongs to the filters, and for each of
            its entries the filter that it goes with (-1: none).
        stays: Why its filters cannot be pruned, or "".
        group: Number of the group of places whose filters go together (`streams`).
        units: For each filter the unit of its group that it belongs to; None: each by itself.
    """

    name: str
    layer: Any
    kernel: Any
    silenced: tuple = ()
    stays: str = ""
    group: int = -1
    units: Any = None

    @property
    def filters(self):
        return int(self.kernel.shape[-1])

    @property
    def size(self):
        return int(np.prod(self.kernel.shape))


@functools.singledispatch
def kernel_of(layer):
    """The prunable kernel of a layer, None where there is none; register a layer of your own.

    Its last axis must be the filters, the one before them the input channels:

        tr.pruning.kernel_of.register(MyConv, lambda layer: layer.kernel)

    Depthwise kernels, biases and normalization are never pruned by themselves.
    """
    return None


for _kind in (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D):
    kernel_of.register(_kind, lambda layer: layer._kernel)
for _kind in (layers.SeparableConv1D, layers.SeparableConv2D):
    kernel_of.register(_kind, lambda layer: layer.pointwise_kernel)
for _kind in (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose):
    kernel_of.register(_kind, lambda layer: layer.kernel)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def input_axis(place):
    """The axis of input channels of its kernel."""
    return -1 if isinstance(place.layer, _TRANSPOSED) else -2


def kernels(model):
    """Every place of a model, in the order of the forward pass where it has a graph.

    Args:
        model: Built Keras model (a game: its classifier).

    Returns:
        `(places, walked)`: a list of `Place`, and the `graph.Graph` or None.
    """
    try:
        walked = graph.walk(model)
        calls = [(node.name, node.layer) for node in walked.nodes]
    except (TypeError, ValueError):  # subclassed, or with shared layers: pruned entry by entry
        walked, calls = None, [("", model)]
    found, seen = [], set()
    for name, layer in calls:
        for part in layer._flatten_layers() if hasattr(layer, "_flatten_layers") else ():
            kernel = kernel_of(part) if getattr(part, "built", False) else None
            if not isinstance(kernel, keras.Variable) or id(kernel) in seen:
                continue
            seen.add(id(kernel))
            own = name if part is layer else "/".join(filter(None, (name, part.name)))
            found.append(Place(own, part, kernel))
    return found, walked


def prunable(model, exclude=(), filters=False, shared=False, run=None):
    """The places of a model that a callback prunes.

    Args:
        model: As for `kernels`.
        exclude: Names of layers, "first", "last", a predicate of a layer, or a list of these.
        filters: Whether whole filters go: then only layers whose filters can go as a whole, with
            what goes with them in `silenced`.
        shared: Whether filters whose channels are summed go together, instead of staying.
        run: None, or (m, n) for m zeros in each run of n input channels.

    Returns:
        `(places, left)`: two lists of `Place`; `left` were kernels too, each with its reason.

    Raises:
        ValueError: an unknown name, or nothing is left to prune.
    """
    found, walked = kernels(model)
    if filters and walked is None:
        graph.walk(model)  # says why there is no graph to follow
    for place in found:
        if not place.kernel.trainable:
            place.stays = "it is frozen"
        channels = place.kernel.shape[input_axis(place)]
        if run and channels <= run[1] - run[0]:
            ones = f"{channels} input channel{'s' if channels > 1 else ''}"
            place.stays = place.stays or f"it has {ones}, and a run of {run[1]} keeps as many"
    _exclude(found, exclude)
    if filters:
        follow(found, walked, shared)
    chosen = [place for place in found if not place.stays]
    if not chosen:
        reasons = "; ".join(f"'{p.name}': {p.stays}" for p in found) or "no Conv or Dense layer"
        raise ValueError(
            f"`model` must have kernels to prune. Received: model '{model.name}' ({reasons})"
        )
    return chosen, [place for place in found if place.stays]


def follow(found, walked, shared):
    """Fills in what goes with the filters of places, and which of them stay, and why."""
    nodes, fit = {id(node.layer): node for node in walked.nodes}, {}
    for place in found:
        node = nodes.get(id(place.layer))
        if node is None:
            place.stays = place.stays or "it is part of another layer"
        elif isinstance(place.layer, _TRANSPOSED):
            place.stays = place.stays or "it is a transposed convolution"
        else:
            fit[id(place)] = node
    if shared:
        tie(found, walked, fit)
        return
    for place in found:
        if not place.stays:
            try:
                place.silenced = followers(walked, fit[id(place)])
            except Stays as reason:
                place.stays = str(reason)


def exclusions(exclude, *kinds):
    """`exclude` as a tuple of names and predicates (and of `kinds`), or a TypeError."""
    single = isinstance(exclude, (str, *kinds)) or callable(exclude) or not np.iterable(exclude)
    items = (exclude,) if single else tuple(exclude)
    for item in items:
        if not isinstance(item, (str, *kinds)) and not callable(item):
            raise TypeError(
                '`exclude` must be a name, "first", "last", a predicate of a layer, or a list of '
                f"these. Received: exclude={exclude!r}"
            )
    return items


def _exclude(found, exclude):
    names = {place.name: place for place in found}
    ends = {"first": found[:1], "last": found[-1:]}
    for item in exclusions(exclude):
        if callable(item):
            out = [place for place in found if item(place.layer)]
        elif item in names:
            out = [names[item]]
        elif item in ends:
            out = ends[item]
        else:
            raise ValueError(
                f'`exclude` must name layers with a kernel, "first" or "last": {sorted(names)}. '
                f"Received: {item!r}"
            )
        for place in out:
            place.stays = place.stays or "it is excluded"
