"""The card's main figures as a table in a terminal, and the short forms of numbers."""

from tfrobust.evaluate import FAMILIES
from tfrobust.report import certified

WIDE = 145  # columns that one table needs


def number(count):
    """A count in three digits.

    >>> number(4615940), number(697242), number(46)
    ('4.62 M', '697 k', '46')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {letter}"
    return f"{count:,}"


def size(count):
    """Bytes in three digits.

    >>> size(1724320), size(812)
    ('1.72 MB', '812 B')
    """
    return f"{number(count)}B" if count >= 1000 else f"{count} B"


def latency(milliseconds):
    """A short time in three digits.

    >>> latency(0.00448), latency(1.2345)
    ('4.48 µs', '1.23 ms')
    """
    if milliseconds < 0.1:
        return f"{1000 * milliseconds:.3g} µs"
    return f"{milliseconds:.3g} ms"


def kind(file):
    """What a file is called in a table: "tflite int8 sparse", "keras".

    >>> kind({"path": "m.tflite", "format": "tflite", "quantize": None, "input": {}})
    'tflite float32'
    """
    if file["format"] != "tflite" or file["input"] is None:
        return file["format"] or file["path"]
    return f"tflite {file['quantize'] or 'float32'}{' sparse' if file.get('sparse') else ''}"


def sparse(footprint):
    """Whether at least one parameter in a hundred is exactly 0: fresh biases alone are fewer.

    >>> sparse({"parameters": 1000, "nonzero": 990}), sparse({"parameters": 1000, "nonzero": 991})
    (True, False)
    """
    return footprint["nonzero"] <= 0.99 * footprint["parameters"]


def grouped(models):
    """Doubts by code, so that the same advice for several models is given once.

    Returns:
        List of (flag, [(list of models' names, sentence), ...]), doubts before notes.
    """
    found = {}
    for name, part in models.items():
        for flag in part["flags"]:
            _, cases = found.setdefault((flag["code"], flag["advice"]), (flag, {}))
            cases.setdefault(flag["sentence"], []).append(name)
    groups = [
        (flag, [(names, sentence) for sentence, names in cases.items()])
        for flag, cases in found.values()
    ]
    return sorted(groups, key=lambda group: group[0]["severity"] != "doubt")


def others(part):
    """`(family, rate)` of the lowest accuracy under families without a column of their own."""
    found = {k: rate for k, rate in part["families"].items() if k not in FAMILIES and rate}
    name = min(found, key=lambda key: found[key]["accuracy"], default=None)
    return name, found.get(name)


def _short(name):
    """Without "tflite": every file but the Keras one is one."""
    return name.removeprefix("tflite ").removeprefix("TFLite ")


class Table:
    """Prints itself as one table, or as two where the terminal is narrow."""

    def __init__(self, values):
        self.values = values

    def __rich_console__(self, console, options):
        from rich.text import Text

        robust, costs = self._robust(), self._costs()
        if options.max_width >= WIDE:
            yield self._table([*robust, *costs[1:]])
        else:
            yield self._table(robust, narrow=True)
            yield self._table(costs, narrow=True)
        proofs = self._proofs()
        if proofs:
            yield self._table(proofs, narrow=options.max_width < WIDE, title="certificates")
        for text in self._notes():
            yield Text(text, style="dim")

    def _table(self, columns, narrow=False, title=None):
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=title or self.values["name"], show_lines=True)
        if narrow:  # 80 columns must do
            table.box, table.pad_edge, table.padding = box.SIMPLE, False, (0, 1, 0, 0)
        for place, (title, _) in enumerate(columns):
            if place:
                table.add_column(title, justify="right", no_wrap=True)
            else:
                table.add_column(title, min_width=12, overflow="fold")
        for row in zip(*(cells for _, cells in columns), strict=True):
            # Text, not strings: names of models may hold brackets, rich's markup.
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        return table

    def _robust(self):
        parts = self.values["models"]
        columns = [("model", list(parts))]
        columns.append(("clean", [self._rate(part["clean"]) for part in parts.values()]))
        for family in FAMILIES:
            cells = [self._rate(part["families"].get(family)) for part in parts.values()]
            columns.append((family, cells))
        if any(others(part)[0] for part in parts.values()):
            columns.append(("others", [self._rate(*others(p)[::-1]) for p in parts.values()]))
        return columns

    def _proofs(self):
        """Columns of a table with a row for each certificate, None without any."""
        from rich.text import Text

        rows = certified.rows(self.values["models"])
        if not rows:
            return None
        names = [Text(row["model"]).append(f"\n{row['threat']}", style="dim") for row in rows]
        columns = [("model and threat", names)]
        for title, key in (("clean", "clean"), ("attacked", "attacked"), ("verified", "verified")):
            columns.append((title, [self._rate(row["proof"][key]) for row in rows]))
        kinds = ("verified", "undecided", "broken")
        counts = ["\n".join(f"{row[kind]:,} {kind}" for kind in kinds) for row in rows]
        return [*columns, ("images", counts)]

    def _usual(self):
        """Number of images behind most figures."""
        parts = self.values["models"].values()
        return max((part["clean"]["n"] for part in parts if part["clean"]), default=0)

    def _rate(self, rate, name=None):
        """A rate, its interval below, its n where it is not the usual one, and whose it is."""
        from rich.text import Text

        if rate is None:
            return Text("not run", style="dim")
        text = Text(f"{100 * rate['accuracy']:.1f}")
        text.append(f"\n{100 * rate['low']:.1f}-{100 * rate['high']:.1f}", style="dim")
        if rate["n"] != self._usual():
            text.append(f"\nn {rate['n']:,}", style="dim")
        if name is not None:
            text.append(f"\n{name}", style="dim")
        return text

    def _costs(self):
        parts = self.values["models"]
        units, weights, flops, sizes, times = [], [], [], [], []
        for part in parts.values():
            found, gain = part["footprint"], part.get("gain", {}).get("xflops")
            units.append(f"{found['units']:,}" if found else "-")
            weights.append(number(found["parameters"]) if found else "-")
            flops.append(number(found["flops"]) if found else "-")
            if found and sparse(found):
                weights[-1] += f"\n{number(found['nonzero'])} not 0"
            if gain and gain > 1.005:
                flops[-1] += f"\n{gain:.2f} x less"
            disk = [f"{_short(kind(file))} {size(file['bytes'])}" for file in part["files"]]
            sizes.append("\n".join(disk) or "-")
            each = [f"{_short(name)} {latency(ms)}" for name, ms in part["latency_ms"].items()]
            times.append("\n".join(each) or "-")
        titles = ("model", "units", "weights", "FLOPs", "on disk", "latency")
        return list(zip(titles, (list(parts), units, weights, flops, sizes, times), strict=True))

    def _notes(self):
        if self._usual():
            yield f"Percent right of n = {self._usual():,} images, 95 % intervals below."
        yield from self._proved()
        for flag, cases in grouped(self.values["models"]):
            seen = " ".join(f"{'; '.join(names)}: {sentence}" for names, sentence in cases)
            yield f"{flag['severity']} ({flag['code']}) {seen} {flag['advice']}"

    def _proved(self):
        rows = certified.rows(self.values["models"])
        for row in rows:
            stages = "; ".join(map(certified.told, row["stages"]))
            yield f"{row['model']}, {row['threat']}, decided by {stages}."
        if rows:
            yield (
                "Verified: proved that no attack within the threat changes the answer, for the "
                "float32 Keras model, not for its int8 TFLite export. Undecided: neither proved "
                "nor broken."
            )
