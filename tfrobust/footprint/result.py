"""What the footprint room hands back: costs of layers, rows, totals and gains."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs, MACs and memory of one layer for one example."""

    flops: int = 0
    macs: int = 0
    memory: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer. `units` of `units_total` live; `parameters` counts the live weights, `nonzero`
    those of them that are not exactly 0."""

    name: str
    kind: str
    units: int = 0
    units_total: int = 0
    parameters: int = 0
    nonzero: int = 0
    flops: int = 0
    macs: int = 0
    memory: int = 0
    activations: int = 0


class Footprint:
    """Rows of one model and their totals, which are attributes: `units`, `units_total`,
    `parameters`, `nonzero`, `flops`, `macs`, `memory`, `activations`, `bytes`.

    Attributes:
        rows: Tuple of `Row`, in the order of the forward pass.
        uncounted: Names of layers with weights but without a rule; their FLOPs are missing.
    """

    def __init__(self, rows, name="model", uncounted=()):
        self.rows, self.name, self.uncounted = tuple(rows), name, tuple(uncounted)
        for field in dataclasses.fields(Row)[2:]:
            setattr(self, field.name, sum(getattr(row, field.name) for row in self.rows))
        self.bytes = 4 * self.parameters

    def __repr__(self):
        return (
            f"Footprint({self.name}: {self.units} units, {self.parameters} parameters "
            f"({self.nonzero} not 0), {self.flops} FLOPs, {self.bytes} bytes)"
        )

    def to_dict(self):
        """Plain numbers and strings; `from_dict` brings them back."""
        totals = [field.name for field in dataclasses.fields(Row)[2:]] + ["bytes"]
        return {
            "name": self.name,
            **{total: getattr(self, total) for total in totals},
            "uncounted": list(self.uncounted),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values):
        return cls([Row(**row) for row in values["rows"]], values["name"], values["uncounted"])

    def __rich__(self):
        from rich.table import Table

        table = Table(title=f"Footprint of {self.name}", show_footer=True)
        table.add_column("layer", footer="total")
        table.add_column("type")
        for title, total in (
            ("units", self._live(self)),
            ("parameters", f"{self.parameters:,}"),
            ("not 0", f"{self.nonzero:,}"),
            ("FLOPs", f"{self.flops:,}"),
            ("MACs", f"{self.macs:,}"),
            ("memory", f"{self.memory:,}"),
        ):
            table.add_column(title, footer=total, justify="right")
        for row in self.rows:
            if row.flops or row.parameters or row.units_total:
                table.add_row(
                    *(row.name, row.kind, self._live(row), f"{row.parameters:,}"),
                    *(f"{row.nonzero:,}", f"{row.flops:,}", f"{row.macs:,}", f"{row.memory:,}"),
                )
        return table

    @staticmethod
    def _live(row):
        if row.units == row.units_total:
            return f"{row.units:,}" if row.units else ""
        return f"{row.units:,} / {row.units_total:,}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How much smaller one model is: `x...` are gains (2 = half the cost), the rest percentages.

    Attributes:
        sparsity: Units removed, in percent of the full model's units.
        memory: Memory left, in percent, by the accounting code's formula.
    """

    xflops: float
    xmacs: float
    xparameters: float
    xbytes: float
    sparsity: float
    memory: float

    def to_dict(self):
        return dataclasses.asdict(self)


def compare(full, small):
    """Gains of `small` over `full`, both `Footprint`s; a total of zero gives an infinite gain."""

    def gain(total):
        over, under = getattr(full, total), getattr(small, total)
        return over / under if under else math.inf

    return Comparison(
        xflops=gain("flops"),
        xmacs=gain("macs"),
        xparameters=gain("parameters"),
        xbytes=gain("bytes"),
        sparsity=100 * (1 - small.units / full.units) if full.units else 0.0,
        memory=100 * small.memory / full.memory if full.memory else 100.0,
    )
