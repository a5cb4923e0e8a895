"""The pictures of a card as inline SVG with CSS variables for colours: they suit light and dark.

matplotlib draws with stand-in colours; `_svg` puts variables of the page in their place.
"""

import dataclasses
import io
import math
import re

import numpy as np

INK, QUIET, GRID, ZERO = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0501{i:02x}" for i in range(1, 7))
VARIABLES = {
    **{INK: "--ink", QUIET: "--quiet", GRID: "--line", ZERO: "--zero"},
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES, 1)},
}


@dataclasses.dataclass(frozen=True)
class Palette:
    """Colours of a picture; all of them differ for colour-blind eyes too (after Okabe and Ito)."""

    ink: str
    quiet: str
    grid: str
    zero: str
    series: tuple


PAGE = Palette(INK, QUIET, GRID, ZERO, SERIES)
PAPER = Palette(
    *("#1d2126", "#5d6670", "#e3e1dc", "#e69f00"),
    ("#0072b2", "#009e73", "#b0418e", "#6b4fbb", "#8a6d00", "#5d6670"),
)


def style(palette):
    """matplotlib's settings for a picture in these colours."""
    return {
        "svg.fonttype": "none",  # text stays text: the page's font, selectable
        "svg.hashsalt": "tfrobust",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": palette.ink,
        "axes.edgecolor": palette.quiet,
        "axes.labelcolor": palette.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "xtick.color": palette.quiet,
        "ytick.color": palette.quiet,
        "grid.color": palette.grid,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
    }


def inline(name, size, paint):
    """SVG text, for a page, of a figure that `paint(figure)` fills in the colours of `PAGE`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(PAGE)):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        paint(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _svg(name, buffer.getvalue())


def _svg(name, text):
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', text, count=1)
    # Several figures share one page: their ids must differ.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)


def rounded(svg):
    """The same picture with hundredths in its paths: half the bytes.

    >>> rounded('<path d="M 1.23456 7"/><text>0.12345</text>')
    '<path d="M 1.23 7"/><text>0.12345</text>'
    """

    def short(path):
        return re.sub(r"(\d\.\d\d)\d+", r"\1", path[0])

    return re.sub(r' d="[^"]*"', short, svg)


def curves(values):
    """Accuracy against epsilon, one line with its 95 % band for each model; None without curves."""
    found = {k: p["curve"] for k, p in values["models"].items() if p["curve"]}
    if not found:
        return None

    colours = colours_of(values)

    def paint(figure):
        axes = figure.subplots()
        for name, curve in found.items():
            eps, rates, colour = curve["epsilons"], curve["rates"], colours[name]
            low, high = ([100 * r[side] for r in rates] for side in ("low", "high"))
            line = [100 * rate["accuracy"] for rate in rates]
            label = f"{plain(name)}, mean {100 * curve['auc']:.1f}"
            axes.fill_between(eps, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(eps, line, color=colour, marker="o", markersize=4, linewidth=2, label=label)
        classes = {s["classes"] for p in values["models"].values() for s in p["scores"]}
        if len(classes) == 1:
            chance = 100 / classes.pop()
            axes.axhline(chance, color=QUIET, linewidth=1, linestyle=":")
            axes.annotate(
                "chance",
                (0, chance),
                (4, 3),
                axes.get_yaxis_transform(),
                "offset points",
                color=QUIET,
                size=9,
            )
        threat = values["threat"]
        norms = {curve["norm"] for curve in found.values()}
        if threat and norms == {threat["norm"]}:
            axes.axvline(threat["epsilon"], color=QUIET, linewidth=1, linestyle="--")
            axes.annotate(
                "this card's threat",
                (threat["epsilon"], 1),
                (4, -9),
                axes.get_xaxis_transform(),
                "offset points",
                color=QUIET,
                size=9,
            )
        axes.set(ylim=(0, 102), ylabel="accuracy, %")
        axes.set_xlabel(f"epsilon ({', '.join(sorted(norms)).capitalize()})")
        axes.set_xlim(left=0)
        axes.grid(axis="y")
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 1.06 + 0.07 * math.ceil(len(found) / 2)),
            ncols=min(len(found), 2),
        )

    return inline("curves", (7.2, 3.9), paint)


def vulnerabilities(values):
    """Histogram of per-unit vulnerability, a panel a model, exact zeros apart in orange."""
    found = {k: p["vulnerability"] for k, p in values["models"].items() if p["vulnerability"]}
    grids = [v["histogram"] for v in found.values() if v["histogram"]["counts"]]
    if not found:
        return None
    first = min((g["first"] for g in grids), default=-12)
    last = max((g["first"] + len(g["counts"]) for g in grids), default=0)
    gap = max(3, (last - first) // 10)
    columns = 2 if len(found) in (2, 4) else min(len(found), 3)
    rows = math.ceil(len(found) / columns)
    colours = colours_of(values)

    def paint(figure):
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (name, part) in zip(panels.flat, found.items(), strict=False):
            bars, grid = part["histogram"], np.array(part["histogram"]["counts"])
            places = bars["first"] + np.arange(len(grid)) + 0.5
            axes.bar(places, grid, width=0.9, color=colours[name])
            zeros, share = part["zeros"], 100 * part["zeros"] / max(part["units"], 1)
            axes.bar(first - gap, zeros, width=2, color=ZERO)
            axes.set_yscale("log")
            axes.set_title(plain(name))
            axes.text(
                0.03,
                0.97,
                f"{zeros:,} zeros ({share:.0f} %)\nV = {part['network']:.2g}",
                transform=axes.transAxes,
                va="top",
                color=INK,
                size=9,
            )
            near = first - gap + (last - first) / 7  # a label here would touch that of 0
            decades = [d for d in range(last // 6, -99, -1) if 6 * d > near]
            decades = decades[:: math.ceil(len(decades) / 4) or 1]
            axes.set_xticks(
                [first - gap, *(6 * d for d in decades)], ["0", *(f"$10^{{{d}}}$" for d in decades)]
            )
            axes.set_ylim(0.7, 30 * max([1, *(v["zeros"] for v in found.values()), *grid]))
            axes.grid(axis="y")
            axes.tick_params(labelbottom=True)
        for axes in list(panels.flat)[len(found) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("units")
        figure.supxlabel("mean |change| of the unit under attack", size=10, color=INK)

    return inline("vulnerability", (7.2, 0.4 + 2.4 * rows), paint)


def units(values):
    """Units kept per layer beside the reference's, a panel for each smaller model."""
    models, reference = values["models"], values["reference"]
    full = _layers(models[reference]) if reference is not None else {}
    small = {}
    for name, part in models.items():
        if part["footprint"] and name != reference:
            kept = {k: v for k, v in _layers(part).items()}
            share = {k: (v[0], full[k][0] if k in full else v[1]) for k, v in kept.items()}
            if any(live < total for live, total in share.values()):
                small[name] = share
    if not small:
        return None
    longest, colours = max(map(len, small.values())), colours_of(values)
    columns = 2 if len(small) in (2, 4) else min(len(small), 3)
    rows = math.ceil(len(small) / columns)

    def paint(figure):
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axes in list(panels.flat)[len(small) :]:
            axes.set_visible(False)
        for axes, (name, share) in zip(panels.flat, small.items(), strict=False):
            places = np.arange(len(share))
            kept = [100 * live / max(total, 1) for live, total in share.values()]
            axes.barh(places, [100] * len(share), color=GRID, height=0.62)
            axes.barh(places, kept, color=colours[name], height=0.62)
            for place, (live, total) in zip(places, share.values(), strict=True):
                axes.text(102, place, f"{live:,} / {total:,}", va="center", color=INK, size=9)
            axes.set_yticks(places, [plain(layer) for layer in share])
            axes.invert_yaxis()
            axes.set(xlim=(0, 135), xlabel="units kept, %", title=plain(name))
            axes.set_xticks([0, 50, 100])
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)

    return inline("units", (7.2, (1.1 + 0.28 * longest) * rows), paint)


def _layers(part):
    rows = part["footprint"]["rows"]
    return {row["name"]: (row["units"], row["units_total"]) for row in rows if row["units_total"]}


def colours_of(values, series=SERIES):
    """One colour for each model of the card, the same in every picture and table."""
    return {name: series[i % len(series)] for i, name in enumerate(values["models"])}


def plain(name):
    """A name that matplotlib neither reads as mathematics nor hides."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
