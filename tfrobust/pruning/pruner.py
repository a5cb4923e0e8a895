"""What does the pruning: places, masks and constraints of one model, moved by counts.

The callback decides when and how much, `select` which, and this file carries it out.
"""

import contextlib
import warnings

import numpy as np

from tfrobust.pruning import select
from tfrobust.pruning.constraint import attach, constraint_of, numpy, retrace, slots
from tfrobust.pruning.figures import Report, row
from tfrobust.pruning.follow import Stays, followers
from tfrobust.pruning.places import input_axis, kernels, prunable
from tfrobust.pruning.schedule import whole_number

SCOPES, NORMALISE = ("layer", "global"), ("none", "fan_in")


def magnitude(kernel, layer):
    """The default rule: |w|. A filter weighs the sum of its entries, its l1 norm."""
    return np.abs(kernel)


class Settings:
    """What is pruned, checked: see `tr.pruning.MagnitudePruning` for the arguments."""

    def __init__(
        self, structured=None, scope=None, exclude=(), normalise="none", min_filters=1, rule=None
    ):
        self.structured, self.run = structured, None
        if structured not in (None, "filters"):
            try:
                count, size = (whole_number("structured", v, 1) for v in structured)
                legal = count < size
            except (TypeError, ValueError):
                legal = False
            if not legal:
                raise ValueError(
                    '`structured` must be None, "filters" or (m, n), m zeros in each n input '
                    f"channels with 0 < m < n. Received: structured={structured!r}"
                )
            self.structured, self.run = "runs", (count, size)
        if scope is None:
            scope = "global" if structured == "filters" else "layer"
        if scope not in SCOPES:
            raise ValueError(f"`scope` must be one of {SCOPES}. Received: scope={scope!r}")
        if self.run and scope != "layer":
            raise ValueError(
                f'`scope` must be "layer" for m:n sparsity, which ranks within each run. '
                f"Received: scope={scope!r}"
            )
        if normalise not in NORMALISE or (normalise != "none" and structured != "filters"):
            raise ValueError(
                f'`normalise` must be one of {NORMALISE}, and is for structured="filters" only. '
                f"Received: normalise={normalise!r}"
            )
        if rule is not None and not callable(rule):
            raise TypeError(f"`rule` must be a callable (kernel, layer). Received: {rule!r}")
        self.scope, self.exclude, self.normalise = scope, exclude, normalise
        self.min_filters = whole_number("min_filters", min_filters, 1)
        self.rule = rule or magnitude

    @property
    def filters(self):
        return self.structured == "filters"

    def to_dict(self):
        exclude = [self.exclude] if callable(self.exclude) else list(self.exclude)
        return {
            "structured": list(self.run) if self.run else self.structured,
            "scope": self.scope,
            "exclude": [getattr(e, "__name__", str(e)) for e in exclude],
            "normalise": self.normalise,
            "min_filters": self.min_filters,
            "rule": getattr(self.rule, "__name__", type(self.rule).__name__),
        }


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
            self.places, self.left = prunable(model, settings.exclude, settings.filters)
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
        scores = [self._scores(p, m) for p, m in zip(self.places, masks, strict=True)]
        bound = []
        if self.settings.structured == "runs":
            most, size = self.settings.run
            count = min(most, count(size))
            chosen = [
                select.in_runs(s, count, size, input_axis(p))
                for p, s in zip(self.places, scores, strict=True)
            ]
            masks = [m & ~c for m, c in zip(masks, chosen, strict=True)]
        else:
            chosen, bound = self._ranked(scores, count)
            masks = [
                m & ~(c if self.settings.filters else c.reshape(m.shape))
                for m, c in zip(masks, chosen, strict=True)
            ]
        self.masks = masks + self._silenced(masks)
        if bound and self.settings.filters and not self._warned:
            self._warned = True
            names = [self.places[number].name for number in bound]
            warnings.warn(
                f"`min_filters`={self.settings.min_filters} keeps filters in {names} that would "
                f"have gone: other layers give more, if they can ({100 * self.sparsity:.1f} % of "
                "the weights are pruned).",
                stacklevel=2,
            )

    def _scores(self, place, mask):
        kernel = numpy(place.kernel).astype(np.float32)
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
        if self.settings.normalise == "fan_in":
            totals /= kernel.size / kernel.shape[-1]
        return np.where(mask.any(axis=axes), totals, select.DEAD)

    def _ranked(self, scores, count):
        flat = [s.reshape(-1) for s in scores]
        spare = self.settings.min_filters if self.settings.filters else 1
        if self.settings.scope == "layer":
            kernels = [numpy(place.kernel) for place in self.places]
            counts = [count(len(s), k) for s, k in zip(flat, kernels, strict=True)]
            return select.by_layer(flat, counts, spare)
        sizes = [p.size // len(s) for p, s in zip(self.places, flat, strict=True)]
        need = count(sum(place.size for place in self.places))
        return select.together(flat, sizes, need, spare)

    def _silenced(self, masks):
        """Masks of the vectors that go with whole filters."""
        alive = [m.reshape(-1, m.shape[-1]).any(axis=0) for m in masks]
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
        masks = self.masks
        rows = [row(p.name, m) for p, m in zip(self.places, masks, strict=False)]
        return Report(tuple(rows), tuple((p.name, p.stays) for p in self.left))

    def _measure(self):
        self.sparsity = self.report().sparsity


def _everything(model):
    """All kernels, with the vectors that would go with their filters."""
    found, walked = kernels(model)
    nodes = {id(node.layer): node for node in walked.nodes} if walked else {}
    for place in found:
        with contextlib.suppress(Stays, KeyError):
            place.silenced = followers(walked, nodes[id(place.layer)])
    if not found:
        raise ValueError(
            "`model` must have kernels to prune. "
            f"Received: model '{getattr(model, 'name', model)}' (no Conv or Dense layer)"
        )
    return found
