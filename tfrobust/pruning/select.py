"""Which entries go: exact, deterministic choices by (score, index), on the host.

Comparing scores with a threshold, as tfmot does, keeps too many on ties (a constant kernel stays
dense for ever). Here the number that goes is fixed first, and among equal scores the lower index
goes. What is masked already has score -1, below every score, so masks only ever lose entries.

>>> smallest(np.array([0.5, 0.2, 0.2, 0.9]), 2)
array([False,  True,  True, False])
"""

import math

import numpy as np

DEAD = -1.0


def amount(fraction, count):
    """min(ceil(fraction * count - 1e-9), count - 1): at least the fraction, never everything.

    >>> amount(0.5, 5), amount(0.3, 10), amount(0.99, 10)
    (3, 3, 9)
    """
    return max(0, min(math.ceil(fraction * count - 1e-9), count - 1))


def smallest(scores, count):
    """Bool `(n,)`: the `count` smallest by (score, index), as a stable sort would have them."""
    chosen = np.zeros(len(scores), bool)
    if count <= 0:
        return chosen
    if count >= len(scores):
        return ~chosen
    # A partition finds in linear time where a sort would cut.
    edge = np.partition(scores, count - 1)[count - 1]
    chosen = scores < edge
    chosen[np.flatnonzero(scores == edge)[: count - chosen.sum()]] = True
    return chosen


def by_layer(scores, counts, spare=1, safe=None):
    """Each layer by itself: `counts[l]` units of layer l, all but `spare` of them at most.

    Args:
        scores: List of float arrays `(units,)`, -1 where a unit is masked already.
        counts: List of integers.
        spare: Integer, units that every layer keeps.
        safe: Which units these are, a list of bool arrays; None: the best of each layer.

    Returns:
        `(chosen, bound)`: a list of bool arrays, and the indices of layers where `spare` kept a
        unit that the count would have taken.
    """
    chosen, bound = [], []
    for number, (score, count) in enumerate(zip(scores, counts, strict=True)):
        dead = int((score == DEAD).sum())
        most = len(score) - spare if safe is None else int((~safe[number]).sum())
        allowed = max(dead, min(count, most))
        ranked = score if safe is None else np.where(safe[number], np.inf, score)
        chosen.append(smallest(ranked, allowed))
        if allowed < count:
            bound.append(number)
    return chosen, bound


def together(scores, sizes, need, spare=1, safe=None):
    """All layers in one ranking, until `need` weights go; results as those of `by_layer`.

    Args:
        scores: List of float arrays `(units,)`, -1 where a unit is masked already.
        sizes: For each layer, weights of one unit: an integer, or integers `(units,)`.
        need: Integer, weights to go in total.
        spare, safe: As for `by_layer`.
    """
    flat, counts = np.concatenate(scores), [len(s) for s in scores]
    one = all(np.ndim(size) == 0 and size == sizes[0] for size in sizes)
    if not one:
        sizes = [np.broadcast_to(size, n) for size, n in zip(sizes, counts, strict=True)]
    sizes = sizes[0] if one else np.concatenate(sizes)
    gone = flat == DEAD
    need = max(need, int((gone * sizes).sum()))

    def split(values):
        return np.split(values, np.cumsum(counts)[:-1])

    chosen = split(_first(flat, sizes, need))
    if safe is None:
        dead = [int(g.sum()) for g in split(gone)]
        bound = [n for n, c in enumerate(chosen) if c.sum() > max(counts[n] - spare, dead[n])]
    else:
        bound = [n for n, c in enumerate(chosen) if (c & safe[n]).any()]
    if bound:
        if safe is None:
            safe = [~smallest(s, len(s) - spare) & (s != DEAD) for s in scores]
        safe = np.concatenate(safe)
        most = int((~safe * sizes).sum())
        chosen = split(_first(np.where(safe, np.inf, flat), sizes, min(need, most)) & ~safe)
    return chosen, bound


def _first(scores, sizes, need):
    """The first units by (score, index) whose sizes (one for all, or each) add up to `need`."""
    if np.ndim(sizes) == 0:
        return smallest(scores, math.ceil(need / int(sizes)))
    order = np.argsort(scores, kind="stable")
    chosen = np.zeros(len(scores), bool)
    if need > 0:
        chosen[order[: int(np.searchsorted(np.cumsum(sizes[order]), need)) + 1]] = True
    return chosen


def in_runs(scores, count, run, axis=-2):
    """At least `count` of each `run` consecutive entries along `axis`; the rest of a run counts.

    An axis that is no multiple of `run` is filled up with zeros, as TFLite stores it: those count
    as pruned, so three channels in a run of four lose one entry for `count` two.

    Args:
        scores: Float array of any shape, -1 where an entry is masked already.
        count, run: Integers, 0 <= count < run.
        axis: The axis of runs.

    Returns:
        Bool array of the same shape.

    >>> in_runs(np.array([[4.0], [1.0], [2.0], [3.0]]), 2, 4)[:, 0]
    array([False,  True,  True, False])
    """
    moved = np.moveaxis(scores, axis, -1)
    size = moved.shape[-1]
    padded = np.full((*moved.shape[:-1], -(-size // run) * run), 2 * DEAD)
    padded[..., :size] = moved
    groups = padded.reshape(-1, run)
    order = np.argsort(groups, axis=1, kind="stable")
    chosen = np.zeros(groups.shape, bool)
    np.put_along_axis(chosen, order[:, :count], True, axis=1)
    return np.moveaxis(chosen.reshape(padded.shape)[..., :size], -1, axis)
