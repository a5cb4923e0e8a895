"""Filters that can only go together: those whose channels are summed, as in residual streams.

A channel of a sum is zero, and can be cut, if that channel is zero in everything that is summed. So
the filters that meet there are one unit: ranked, pruned and silenced together. Where a shortcut
adds zero channels to a stream, its own channels are one with as many of the next stream, and the
others of the next stream are units by themselves.
"""

import contextlib

import numpy as np
from keras.src.ops import numpy

from tfrobust import graph
from tfrobust.pruning.follow import Stays, Trail, followers, passes, trace


def tie(places, walked, nodes):
    """Finds out which filters of a model go together, through all its sums.

    Fills in `silenced`, `stays`, `group` and `units` of the places. A place that stays, for a
    reason given before or found here, keeps everything that it is summed with.

    Args:
        places: List of all `Place`s of the model.
        walked: Its `graph.Graph`.
        nodes: dict from the id of a place to its node, of those whose filters can be followed.
    """
    meetings = {}  # node of a sum -> [(operand, place or None for zeros, filter or -1)]
    for place in places:
        place.silenced, met = (), []
        if id(place) not in nodes:
            continue
        try:
            place.silenced = followers(walked, nodes[id(place)], met)
        except Stays as reason:
            place.stays = place.stays or str(reason)
        for sum_ in met:
            if not sum_.zero and not place.stays:
                place.stays = f"a filter of zeros is no zero in front of '{sum_.node.name}'"
            meetings.setdefault(sum_.node, []).append((sum_.tensor, place, sum_.source))
    for sum_ in _zero_channels(walked):
        meetings.setdefault(sum_.node, []).append((sum_.tensor, None, sum_.source))
    counts = [place.filters for place in places]
    first = dict(zip(map(id, places), np.cumsum([0, *counts]), strict=False))
    pairs = [_pairs(node, met, first) for node, met in meetings.items()]
    a, b = np.concatenate([np.zeros((2, 0), int), *pairs], axis=1)
    units = np.split(_united(sum(counts), a, b), np.cumsum(counts)[:-1])
    owner = np.repeat(np.arange(len(places)), counts)
    owners = _united(len(places), owner[a], owner[b])
    for number in np.unique(owners):
        members = np.flatnonzero(owners == number)
        together = [places[n] for n in members]
        if _stay(together):
            continue
        numbered = np.unique(np.concatenate([units[n] for n in members]), return_inverse=True)[1]
        ends = np.cumsum([place.filters for place in together])[:-1]
        for place, part in zip(together, np.split(numbered, ends), strict=True):
            place.group, place.units = int(number), part


def _pairs(node, met, first):
    """Filters that are one unit because they meet in a sum, as two rows of numbers."""
    covered = {id(tensor): np.zeros(tensor.shape[-1], bool) for tensor in node.inputs}
    numbers = np.full((len(met), node.outputs[0].shape[-1]), -1)
    for row, (tensor, place, source) in zip(numbers, met, strict=True):
        covered[id(tensor)] |= source >= 0
        if place is not None:
            row[:] = np.where(source < 0, -1, source + first[id(place)])
    for tensor in node.inputs:
        if not covered[id(tensor)].all():
            other = tensor._keras_history.operation.name
            for _, place, _ in met:
                if place is not None:
                    text = f"'{node.name}' sums it with '{other}', whose channels stay"
                    place.stays = place.stays or text
    one = numbers.max(axis=0)
    return np.concatenate([np.stack([one, row])[:, row >= 0] for row in numbers], axis=1)


def _zero_channels(walked):
    """What sums meet of channels that a padding adds: they are zero without any pruning."""
    met = []
    for node in walked.nodes:
        if isinstance(node.layer, tuple(graph.operations(numpy, "Pad"))):
            with contextlib.suppress(Stays):
                inside = Trail(np.zeros(node.inputs[0].shape[-1], int), True, None, met)
                trail = passes(node.layer, node, node.inputs[0], inside)
                trace(walked, node.outputs[0], trail.on(np.where(trail.source < 0, 0, -1)))
    return [meeting for meeting in met if meeting.zero]


def _united(count, a, b):
    """The least number of all that a number is paired with, directly or through others.

    >>> _united(5, np.array([0, 3]), np.array([2, 2]))
    array([0, 1, 0, 0, 4])
    """
    least = np.arange(count)
    while (least[a] != least[b]).any():
        both = np.minimum(least[a], least[b])
        np.minimum.at(least, a, both)
        np.minimum.at(least, b, both)
    return least


def _stay(together):
    """If one of the places stays, all of them do: says so, and why."""
    one = next((place for place in together if place.stays), None)
    for place in together if one is not None else ():
        place.silenced = ()
        place.stays = place.stays or f"it shares channels with '{one.name}': {one.stays}"
    return one is not None
