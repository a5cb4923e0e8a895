"""What is pruned: the options of `tr.pruning.MagnitudePruning` and `prune`, checked."""

import functools
import hashlib
import types
import warnings

import numpy as np

from tfrobust.contract import whole
from tfrobust.pruning.places import exclusions

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
        if structured is not None and not (isinstance(structured, str) and structured == "filters"):
            try:
                count, size = (whole("structured", v, 1) for v in structured)
                legal = count < size
            except (TypeError, ValueError):
                legal = False
            if not legal:
                raise ValueError(
                    '`structured` must be None, "filters" or (m, n), m zeros in each n input '
                    f"channels with 0 < m < n. Received: structured={structured!r}"
                )
            self.structured = structured = "runs"
            self.run = (count, size)
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
        self.scope, self.exclude, self.normalise = scope, exclusions(exclude), normalise
        self.shared = residual == "shared"
        self.min_filters = whole("min_filters", min_filters, 1)
        self.rule = rule or magnitude

    @property
    def filters(self):
        return self.structured == "filters"

    def within_reach(self, final):
        """Warns where m:n sparsity cannot give the fraction `final`."""
        if self.run and final is not None and final > self.run[0] / self.run[1] + 1e-6:
            warnings.warn(
                f"{self.run[0]}:{self.run[1]} sparsity ends at {self.run[0]} / {self.run[1]} at "
                f"most, not at {final:g}: take larger runs of zeros, or structured=None.",
                stacklevel=3,
            )

    def to_dict(self):
        return {
            "structured": list(self.run) if self.run else self.structured,
            "scope": self.scope,
            "exclude": [e if isinstance(e, str) else identity(e) for e in self.exclude],
            "normalise": self.normalise,
            "min_filters": self.min_filters,
            "rule": identity(self.rule),
            "residual": "shared" if self.shared else "inside",
        }


def identity(function):
    """Text that tells a function from others, the same in every process: name, code and numbers.

    >>> one, two = (lambda kernel, layer: kernel * 1), (lambda kernel, layer: kernel * 2)
    >>> identity(one) == identity(two), identity(magnitude) == identity(magnitude)
    (False, True)
    """
    if isinstance(function, functools.partial):
        inside = [function.func, *function.args, *sorted(function.keywords.items())]
        return f"partial{[_said(part) for part in inside]}"
    code = getattr(function, "__code__", None)
    if code is None:
        kind = function if isinstance(function, type) else type(function)
        config = getattr(function, "get_config", dict)() if kind is not function else {}
        return f"{kind.__module__}.{kind.__qualname__}{config or ''}"
    free = [cell.cell_contents for cell in function.__closure__ or ()]
    kept = [_said(value) for value in (*(function.__defaults__ or ()), *free)]
    digest = hashlib.blake2b(f"{_written(code)}{kept}".encode(), digest_size=8).hexdigest()
    return f"{function.__module__}.{function.__qualname__} {digest}"


def _said(value):
    if callable(value):
        return identity(value)
    plain = isinstance(value, str | bytes | int | float | tuple | list | np.generic)
    return repr(value) if plain else type(value).__name__


def _written(code):
    constants = [_written(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, code.co_names]
