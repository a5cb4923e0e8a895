"""How much of a model is pruned: numbers for people."""

import dataclasses

from tfrobust.contract import built
from tfrobust.pruning.constraint import numpy
from tfrobust.pruning.places import kernels


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel: `pruned` of `total` entries are zero, and `filters` of `filters_total` whole
    filters."""

    name: str
    pruned: int
    total: int
    filters: int
    filters_total: int

    @property
    def sparsity(self):
        """Fraction of zeros in [0, 1]."""
        return self.pruned / self.total if self.total else 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows of one model and their totals; `rich.print(report)` shows a table.

    Attributes:
        rows: Tuple of `Row`, the kernels that can be pruned.
        left: Tuple of (name, reason): kernels that stay as they are.
        groups: Tuple of tuples of names: layers whose filters are summed and go together
            (`residual="shared"`).
    """

    rows: tuple
    left: tuple = ()
    groups: tuple = ()

    @property
    def pruned(self):
        return sum(row.pruned for row in self.rows)

    @property
    def total(self):
        return sum(row.total for row in self.rows)

    @property
    def sparsity(self):
        """Fraction of zeros in all kernels that can be pruned, in [0, 1]."""
        return self.pruned / self.total if self.total else 0.0

    def to_dict(self):
        """Plain numbers and strings."""
        rows = [{**dataclasses.asdict(row), "sparsity": row.sparsity} for row in self.rows]
        left = [list(pair) for pair in self.left]
        totals = {"pruned": self.pruned, "total": self.total, "sparsity": self.sparsity}
        groups = [list(names) for names in self.groups]
        return {**totals, "rows": rows, "left": left, "groups": groups}

    def __str__(self):
        parts = [f"{row.name} {100 * row.sparsity:.1f} %" for row in self.rows]
        total = f"{100 * self.sparsity:.2f} % of {self.total:,} weights pruned"
        return f"{total} ({', '.join(parts)})"

    def __rich__(self):
        from rich.table import Table

        table = Table(title="Pruned weights", show_footer=True)
        table.add_column("layer", footer="total")
        titles = ("pruned", "weights", "sparsity", "filters pruned")
        sums = (f"{self.pruned:,}", f"{self.total:,}", f"{100 * self.sparsity:.2f} %", "")
        for title, footer in zip(titles, sums, strict=True):
            table.add_column(title, footer=footer, justify="right")
        for row in self.rows:
            filters = f"{row.filters} / {row.filters_total}" if row.filters else ""
            numbers = (f"{row.pruned:,}", f"{row.total:,}", f"{100 * row.sparsity:.2f} %")
            table.add_row(row.name, *numbers, filters)
        for name, reason in self.left:
            table.add_row(name, "", "", "", reason)
        return table


def row(name, mask):
    """A `Row` from the mask of a kernel, bool, True where an entry lives."""
    whole = int((~mask).reshape(-1, mask.shape[-1]).all(axis=0).sum())
    return Row(name, int(mask.size - mask.sum()), int(mask.size), whole, int(mask.shape[-1]))


def masks_of(model):
    """Where the kernels of a model are not exactly zero.

    It looks at the weights alone, so it works on any model, after saving and loading too.

    Args:
        model: Built Keras model, or a game (its classifier is meant).

    Returns:
        {name of a layer: NumPy bool array of the shape of its kernel, False where it is 0}.

    Example:

    >>> import keras, numpy as np
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="logits")])
    >>> net.set_weights([np.array([[0.0, 1.0], [2.0, 0.0]]), np.zeros(2)])
    >>> masks_of(net)["logits"].tolist(), sparsity(net)
    ([[False, True], [True, False]], 0.5)
    """
    found, _ = kernels(built(classifier_of(model)))
    return {place.name: numpy(place.kernel) != 0 for place in found}


def sparsity(model):
    """Fraction in [0, 1] of exact zeros in all kernels that can be pruned (see `masks_of`)."""
    return report(model).sparsity


def report(model):
    """`Report` of the exact zeros in a model (see `masks_of`)."""
    return Report(tuple(row(name, mask) for name, mask in masks_of(model).items()))


def classifier_of(model):
    """The classifier that a game trains, or the model itself."""
    return getattr(model, "classifier", model)
