"""What is pruned: the options of `tr.pruning.MagnitudePruning` and `prune`, checked."""

import numpy as np

from tfrobust.pruning.schedule import whole_number

SCOPES, NORMALISE = ("layer", "global"), ("none", "fan_in")
RESIDUAL = ("inside", "shared")


def magnitude(kernel, layer):
    """The default rule: |w|. A filter weighs the sum of its entries, its l1 norm."""
    return np.abs(kernel)


class Settings:
    """What is pruned, checked: see `tr.pruning.MagnitudePruning` for the arguments."""

    def __init__(
        self,
        structured=None,
        scope=None,
        exclude=(),
        normalise="none",
        min_filters=1,
        rule=None,
        residual="inside",
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
        if residual not in RESIDUAL or (residual != "inside" and structured != "filters"):
            raise ValueError(
                f'`residual` must be one of {RESIDUAL}, and "shared" is for structured="filters" '
                f"only. Received: residual={residual!r}, structured={structured!r}"
            )
        self.scope, self.exclude, self.normalise = scope, exclude, normalise
        self.shared = residual == "shared"
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
            "residual": "shared" if self.shared else "inside",
        }
