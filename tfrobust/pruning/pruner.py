"""What does the pruning: places, masks and constraints of one model, moved by counts.

The callback decides when and how much, `select` which, and this file carries it out.
"""

import contextlib
import warnings

import numpy as np

from tfrobust.pruning import select
from tfrobust.pruning.constraint import attach, constraint_of, numpy, retrace, slots
from tfrobust.pruning.figures import Report, row
from tfrobust.pruning.places import follow, input_axis, kernels, prunable


class Pruner:
    """Masks on one classifier.

    Args:
        model: Built classifier.
        settings: `Settings`, or None to hold all kernels without choosing any.
    """

    def __init__(self, model, settings=None):
        self.model, self.settings = model, settings
        if settings is None:
            self.places, self.left = _everything(model), []
        else:
            self.places, self.left = prunable(
                model, settings.exclude, settings.filters, settings.shared, settings.run
            )
        self._groups = _grouped(self.places)
        self._sources = {}  # id of a vector -> [(number of the place, source)]
        self.variables = [place.kernel for place in self.places]
        for number, place in enumerate(self.places):
            for variable, source in place.silenced:
                if id(variable) not in self._sources:
                    self.variables.append(variable)
                self._sources.setdefault(id(variable), []).append((number, source))
        self._constraints = [None] * len(self.variables)
        self._warned = False

    def attach(self, model, strategy=None):
        """Puts the constraints on, and lets `fit` of `model` and of the classifier know of them."""
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            for number, variable in enumerate(self.variables):
                own = self._constraints[number]
                if own is None or constraint_of(variable) is not own:
                    self._constraints[number] = attach(variable)
        retrace({id(m): m for m in (model, self.model)}.values(), self._constraints)
        self._measure()

    # --- masks --------------------------------------------------------------------------------

    @property
    def masks(self):
        """Bool arrays, one for each of `variables`, the kernels first."""
        return [numpy(constraint.mask) for constraint in self._constraints]

    @masks.setter
    def masks(self, masks):
        for constraint, mask in zip(self._constraints, masks, strict=True):
            constraint.mask.assign(np.asarray(mask, bool))
        self._measure()

    def update(self, count):
        """Prunes to what `count(total)` says, never less than before.

        Args:
            count: Callable `(total, kernel=None)` that returns how many of `total` entries are
                pruned.

        Warns, once, where `min_filters` kept filters that would have gone.
        """
        masks = self.masks[: len(self.places)]
        values = [numpy(place.kernel) for place in self.places]
        masks, bound = self.chosen(values, masks, count)
        self.masks = masks + self._silenced(masks)
        if bound and self.settings.filters and not self._warned:
            self._warned = True
            names = [_said([self.places[n].name for n in self._groups[g][0]]) for g in bound]
            warnings.warn(
                f"`min_filters`={self.settings.min_filters} keeps filters in {names} that would "
                f"have gone: other layers give more, if they can ({100 * self.sparsity:.1f} % of "
                "the weights are pruned).",
                stacklevel=2,
            )

    def chosen(self, values, masks, count):
        """What stays of `values`, which stand for the kernels.

        Args:
            values: List of arrays of the shapes of the kernels.
            masks: List of bool arrays, what stayed so far; nothing returns.
            count: As for `update`.

        Returns:
            `(masks, bound)`: bool arrays, and the indices of layers (filters: groups) that kept
            more than the count left them.
        """
        scores = [self._scores(*part) for part in zip(self.places, values, masks, strict=True)]
        bound = []
        if self.settings.structured == "runs":
            most, size = self.settings.run
            count = min(most, count(size))
            gone = [
                select.in_runs(s, count, size, input_axis(p))
                for p, s in zip(self.places, scores, strict=True)
            ]
        elif self.settings.filters:
            gone, bound = self._filters(scores, count)
        else:
            gone, bound = self._entries(values, scores, count)
        return [m & ~g for m, g in zip(masks, gone, strict=True)], bound

    def _scores(self, place, value, mask):
        kernel = np.asarray(value).astype(np.float32)
        if not np.isfinite(kernel).all():
            raise ValueError(
                "`model` must have finite weights: NaN and infinity have no rank. "
                f"Received: layer '{place.name}' with weights that are not"
            )
        scores = np.asarray(self.settings.rule(kernel, place.layer))
        if scores.shape != kernel.shape or not (scores >= 0).all():
            raise ValueError(
                f"`rule` must return scores >= 0 of the kernel's shape {kernel.shape}. Received: "
                f"shape {scores.shape}, smallest {scores.min()} in layer '{place.name}'"
            )
        if not self.settings.filters:
            return np.where(mask, scores, select.DEAD)
        axes = tuple(range(kernel.ndim - 1))
        totals = scores.sum(axis=axes, dtype=np.float64)
        return np.where(mask.any(axis=axes), totals, select.DEAD)

    def _entries(self, values, scores, count):
        """For each place bool of its kernel's shape: the entries that go."""
        flat = [s.reshape(-1) for s in scores]
        if self.settings.scope == "layer":
            counts = [count(len(s), value) for s, value in zip(flat, values, strict=True)]
            chosen, bound = select.by_layer(flat, counts)
        else:
            chosen, bound = select.together(flat, [1] * len(flat), count(sum(map(len, flat))))
        return [c.reshape(s.shape) for c, s in zip(chosen, scores, strict=True)], bound

    def _filters(self, scores, count):
        """For each place bool `(filters,)`: those that go, each with its whole unit.

        A unit weighs what its filters weigh together, and every layer of a group keeps its best
        `min_filters` filters, by the weight of their units.
        """
        weighed = [self._weighed(scores, *group) for group in self._groups]
        ranked, sizes, safe = (list(part) for part in zip(*weighed, strict=True))
        if self.settings.scope == "layer":
            chosen, bound = [np.zeros(len(score), bool) for score in ranked], set()
            for number, (_, units, total) in enumerate(self._groups):
                # Units that stand in the same layers: then the fraction holds in each layer.
                for part in _alike(units, total):
                    gone, over = select.by_layer(
                        [ranked[number][part]], [count(len(part))], safe=[safe[number][part]]
                    )
                    chosen[number][part] = gone[0]
                    bound |= {number} if over else set()
        else:
            need = count(sum(place.size for place in self.places))
            chosen, bound = select.together(ranked, sizes, need, safe=safe)
        result = [None] * len(self.places)
        for (numbers, units, _), gone in zip(self._groups, chosen, strict=True):
            for number, unit in zip(numbers, units, strict=True):
                result[number] = gone[unit]
        return result, sorted(bound)

    def _weighed(self, scores, numbers, units, total):
        """Score, weights and safety of each unit of a group."""
        score, size, alive = np.zeros(total), np.zeros(total, int), np.zeros(total, bool)
        for number, unit in zip(numbers, units, strict=True):
            place = self.places[number]
            np.add.at(score, unit, np.maximum(scores[number], 0.0))
            np.add.at(size, unit, place.size // place.filters)
            np.logical_or.at(alive, unit, scores[number] != select.DEAD)
        if self.settings.normalise == "fan_in":
            score /= size
        score = np.where(alive, score, select.DEAD)
        safe = np.zeros(total, bool)
        for unit in units:
            own = np.unique(unit)
            low = select.smallest(score[own], len(own) - self.settings.min_filters)
            safe[own[~low]] = True
        return score, size, safe & alive

    def _silenced(self, masks):
        """Masks of the vectors that go with whole filters."""
        alive = [m.reshape(-1, m.shape[-1]).any(axis=0) for m in masks]
        for numbers, units, total in self._groups:
            some = np.zeros(total, bool)  # a summed channel lives as long as one of its filters
            for number, unit in zip(numbers, units, strict=True):
                np.logical_or.at(some, unit, alive[number])
            for number, unit in zip(numbers, units, strict=True):
                alive[number] = some[unit]
        result = []
        for variable in self.variables[len(self.places) :]:
            mask = np.ones(variable.shape, bool)
            for number, source in self._sources[id(variable)]:
                mask &= np.where(source < 0, True, alive[number][source])
            result.append(mask)
        return result

    def keep_zeros(self):
        """Masks what is exactly zero now; a kernel of zeros only was made so, not pruned."""
        masks = [numpy(place.kernel) != 0 for place in self.places]
        masks = [mask if mask.any() else np.ones_like(mask) for mask in masks]
        values = [numpy(variable) != 0 for variable in self.variables[len(self.places) :]]
        vectors = zip(self._silenced(masks), values, strict=True)
        self.masks = masks + [mask | value for mask, value in vectors]

    # --- weights ------------------------------------------------------------------------------

    def project(self, optimizers=(), averages_only=False):
        """Sets pruned entries to zero in the weights and in what optimizers keep for them."""
        for variable, constraint in zip(self.variables, self._constraints, strict=True):
            constraint.masked(variable)
            for optimizer in optimizers:
                if averages_only and not optimizer.use_ema:
                    continue
                for slot in slots(optimizer, variable):
                    constraint.masked(slot)

    # --- numbers ------------------------------------------------------------------------------

    def report(self):
        """`Report` of what is pruned and zero; warns where something wrote weights over zeros."""
        masks = self.masks[: len(self.places)]
        zero = [numpy(place.kernel) == 0 for place in self.places]
        back = sum(int((~m & ~z).sum()) for m, z in zip(masks, zero, strict=True))
        if back:
            warnings.warn(
                f"{back:,} pruned weights are not zero: something restored weights from before the "
                "last update (EarlyStopping, load_weights). They are not counted as pruned; the "
                "next training step sets them to zero again.",
                stacklevel=3,
            )
        return self._counted([m | ~z for m, z in zip(masks, zero, strict=True)])

    def _counted(self, masks):
        rows = [row(p.name, m) for p, m in zip(self.places, masks, strict=False)]
        left = tuple((p.name, p.stays) for p in self.left)
        groups = [tuple(self.places[n].name for n in numbers) for numbers, *_ in self._groups]
        return Report(tuple(rows), left, tuple(group for group in groups if len(group) > 1))

    def _measure(self):
        self.sparsity = self._counted(self.masks).sparsity


def _everything(model):
    """All kernels, with the vectors that would go with their filters."""
    found, walked = kernels(model)
    if not found:
        raise ValueError(
            "`model` must have kernels to prune. "
            f"Received: model '{getattr(model, 'name', model)}' (no Conv or Dense layer)"
        )
    if walked is not None:
        follow(found, walked, shared=True)
    return found


def _grouped(places):
    """`(numbers of places, for each the units of its filters, number of units)` of each group."""
    members = {}
    for number, place in enumerate(places):
        key = ("alone", number) if place.units is None else place.group
        members.setdefault(key, []).append(number)
    found = []
    for numbers in members.values():
        units = [places[n].units for n in numbers]
        if units[0] is None:
            units = [np.arange(places[numbers[0]].filters)]
        found.append((numbers, units, int(max(unit.max() for unit in units)) + 1))
    return found


def _alike(units, total):
    """Indices of units with filters in the same places, for each such set of places."""
    member = np.stack([np.isin(np.arange(total), unit) for unit in units], axis=1)
    kinds = np.unique(member, axis=0, return_inverse=True)[1].reshape(-1)
    return [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]


def _said(names):
    more = len(names) - 1
    return f"{names[0]} and {more} that share its channels" if more else names[0]
