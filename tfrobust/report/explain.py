"""Pictures of what explains a model: how far features move, where, and the loss around images.

Every function takes plain values as they stand in a card, {model: values}, and gives
`(size, paint)`: inches, and what fills a matplotlib figure. `plots.inline` makes them part of a
page, `figures` writes them into files.
"""

import itertools
import math
import textwrap

import numpy as np

from tfrobust.diagnostics import Histogram, on_same_axes
from tfrobust.regularizers import Vulnerability
from tfrobust.report.plots import plain

HEAT, SURFACE = "magma", "viridis"  # even steps of lightness, also for colour-blind eyes
LABELS = {"white": "white box (coloured)", "black": "transfer"}
PICTURES = 2  # images of one map in a card


def grid(count, height):
    """(rows, columns, inches) of so many panels side by side."""
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = math.ceil(count / columns)
    return rows, columns, (7.2 if columns > 1 else 4.6, 0.5 + height * rows)


def panels(figure, rows, columns, names, **options):
    """An axes for each name, titled with it; the rest of the grid is hidden."""
    found = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in found[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(found, names, strict=False):
        axes.set_title(plain(name))
    return found[: len(names)]


def layers(parts, palette, colours):
    """v_l of every layer as bars.

    Args:
        parts: {model: {"white": {layer: v}, "black": {layer: v} or None}}; a model may have one.
    """
    longest = max(len(p["white"] or p["black"]) for p in parts.values())
    both = any(p["black"] for p in parts.values())
    rows, columns, size = grid(len(parts), 0.9 + (0.42 if both else 0.3) * longest)

    def paint(figure):
        every = panels(figure, rows, columns, parts, sharex=True)
        for axes, (name, part) in zip(every, parts.items(), strict=True):
            names = list(part["white"] or part["black"])
            places = np.arange(len(names))
            thick = 0.36 if both else 0.62
            for way, side in (("white", -0.5), ("black", 0.5)):
                if part[way]:
                    values = [part[way][layer] for layer in names]
                    places_of = places + (side * thick if both else 0)
                    colour = colours[name] if way == "white" else palette.quiet
                    axes.barh(places_of, values, thick, color=colour,
                              alpha=1 if way == "white" else 0.55, label=LABELS[way])  # fmt: skip
                    for place, value in zip(places_of, values, strict=True):
                        axes.annotate(f"{value:.2g}", (value, place), (3, 0),
                                      textcoords="offset points", va="center", size=8,
                                      color=palette.ink)  # fmt: skip
            axes.set_yticks(places, [plain(layer) for layer in names])
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.set_xlim(left=0)
            axes.tick_params(axis="y", length=0, labelbottom=True)
            axes.grid(axis="x")
        if both:
            figure.legend(*every[0].get_legend_handles_labels(), loc="outside upper right",
                          ncols=2, fontsize=9)  # fmt: skip
        figure.supxlabel("mean |change| of a unit under attack", size=10, color=palette.ink)

    return size, paint


def histograms(parts, palette, colours):
    """Units of one layer by their v, on the same axes; exact zeros apart in orange.

    Args:
        parts: {model: Histogram as a dictionary}.
    """
    rows, columns, size = grid(len(parts), 2.4)
    bars = dict(
        zip(parts, on_same_axes([Histogram.from_dict(p) for p in parts.values()]), strict=True)
    )

    def paint(figure):
        from matplotlib import ticker

        every = panels(figure, rows, columns, parts, sharex=True, sharey=True)
        for axes, (name, found) in zip(every, bars.items(), strict=True):
            reach = found.edges[-1]
            axes.bar(found.edges[:-1] + found.width / 2, found.counts, 0.9 * found.width,
                     color=colours[name])  # fmt: skip
            axes.bar(-0.18 * reach, found.zeros, 0.09 * reach, color=palette.zero)
            axes.axvline(-0.07 * reach, color=palette.quiet, linewidth=0.8, linestyle=":")
            axes.set_yscale("log")
            axes.set_ylim(0.7, 25 * max(h.units for h in bars.values()))
            text = (
                f"{found.zeros:,} of {found.units:,} units\nnever move "
                f"({100 * found.zeros / max(found.units, 1):.0f} %, orange)\n"
                f"mean of all {found.value:.3g}"
            )
            axes.text(0.97, 0.96, text, transform=axes.transAxes, va="top", ha="right", size=9,
                      color=palette.ink)  # fmt: skip
            ticks = ticker.MaxNLocator(3).tick_values(0, reach)
            ticks = [t for t in ticks if 0 <= t <= reach]
            axes.set_xticks([-0.18 * reach, *ticks], ["zero", *(f"{t:g}" for t in ticks)])
            axes.set_xlim(-0.25 * reach, 1.02 * reach)
            axes.grid(axis="y")
            axes.tick_params(labelbottom=True)
        for axes in every[::columns]:
            axes.set_ylabel("units (log scale)")
        where = " / ".join(dict.fromkeys(plain(h.layer) for h in bars.values()))
        label = f"mean |change| of a unit of {where} under attack"
        figure.supxlabel(label, size=10, color=palette.ink)

    return size, paint


def landscapes(parts, palette, colours):
    """Mean loss over gradient and random direction on one scale of colours, and its cut.

    Args:
        parts: {model: Landscape as a dictionary}.
    """
    rows, columns, size = grid(len(parts) + 1, 2.5)
    highest = max(np.max(p["values"]) for p in parts.values())

    def paint(figure):
        from matplotlib import ticker

        levels = ticker.MaxNLocator(12).tick_values(0, max(highest, 1e-6))
        cut = "cut along the gradient ($t = 0$)"
        *maps, last = panels(figure, rows, columns, [*parts, ""])
        last.set_title(cut)
        lines = itertools.cycle(["-", "--", "-.", ":"])
        for axes, (name, part) in zip(maps, parts.items(), strict=True):
            steps, values = np.array(part["steps"]), np.array(part["values"])
            epsilon = part["epsilon"]
            filled = axes.contourf(steps, steps, values.T, levels, cmap=SURFACE)
            _ball(axes, part["norm"], epsilon)
            axes.plot(0, 0, marker="o", color="white", markeredgecolor="black", markersize=5)
            axes.set_aspect("equal")
            for axis in (axes.xaxis, axes.yaxis):
                ticks = [t for t in (-2, -1, 0, 1, 2) if abs(t * epsilon) <= steps[-1] * 1.001]
                axis.set_ticks([t * epsilon for t in ticks], [_times(t) for t in ticks])
            axes.set(xlabel="$s$, along the gradient", ylabel="$t$, random")
            label = f"{plain(name)}{', ' if name else ''}mean of {part['images']}"
            last.plot(steps / epsilon, values[:, len(steps) // 2], color=colours[name],
                      linewidth=2, linestyle=next(lines), label=label)  # fmt: skip
        figure.colorbar(filled, ax=maps, label="cross-entropy, nats", shrink=0.9)
        last.axvspan(-1, 1, color=palette.grid, alpha=0.6, linewidth=0)
        last.axvline(0, color=palette.quiet, linewidth=0.8, linestyle=":")
        last.set(xlabel=r"$s / \epsilon$ (grey: the attacker's ball)", ylabel="cross-entropy, nats")
        last.set_ylim(0, 1.05 * levels[-1])
        last.grid(axis="y")
        last.legend(loc="upper left", fontsize=8)

    return size, paint


def _ball(axes, norm, epsilon):
    """The part of the plane that lies in the attacker's ball: |s| + |t|, or s^2 + t^2, bounded."""
    if norm == "linf":
        corners = [(0, 1), (1, 0), (0, -1), (-1, 0), (0, 1)]
        line = epsilon * np.array(corners).T
    elif norm == "l2":
        angle = np.linspace(0, 2 * np.pi, 90)
        line = epsilon * np.array([np.cos(angle), np.sin(angle)])
    else:
        return
    axes.plot(*line, color="white", linewidth=1.4, linestyle="--")


def _times(number):
    sign = "" if number >= 0 else "-"
    return "0" if not number else rf"${sign}{'' if abs(number) == 1 else abs(number)}\epsilon$"


def surfaces(parts, palette, colours):
    """The same as `landscapes` in three dimensions, as in the paper's Fig. 5."""
    rows, columns, size = grid(len(parts), 2.6)
    highest = max(np.max(p["values"]) for p in parts.values())

    def paint(figure):
        options = {"subplot_kw": {"projection": "3d"}}
        for axes, (_, part) in zip(
            panels(figure, rows, columns, parts, **options), parts.items(), strict=True
        ):
            steps = np.array(part["steps"]) / part["epsilon"]
            s, t = np.meshgrid(steps, steps, indexing="ij")
            axes.plot_surface(s, t, np.array(part["values"]), cmap=SURFACE, vmin=0, vmax=highest,
                              rcount=41, ccount=41, linewidth=0)  # fmt: skip
            axes.set_zlim(0, highest)
            axes.set(xlabel=r"$s / \epsilon$, gradient", ylabel=r"$t / \epsilon$, random")
            axes.tick_params(labelsize=8)
            axes.set_box_aspect((4, 4, 3), zoom=0.9)
        figure.suptitle("upwards: cross-entropy in nats", size=10)

    return size, paint


def maps(parts, palette, colours):
    """Images, what the attacker made of them, and where the features moved, on one colour scale.

    Args:
        parts: {model: VulnerabilityMap as a dictionary}.
    """
    shown = min(max(len(p["maps"]) for p in parts.values()), PICTURES)
    highest = max(np.max(p["maps"]) for p in parts.values())

    def paint(figure):
        every = figure.subplots(len(parts), 3 * shown, squeeze=False)
        for line, (name, part) in zip(every, parts.items(), strict=True):
            line[0].set_ylabel(textwrap.fill(plain(name), 16), color=palette.ink, fontsize=9)
            for axes in line:
                bare(axes)
            for i in range(min(shown, len(part["maps"]))):
                images = zip(line[3 * i :], ("image", "attacked"), ("x", "x_adv"), strict=False)
                for axes, title, key in images:
                    axes.imshow(rgb(part[key][i]), cmap="gray", vmin=0, vmax=1,
                                interpolation="none")  # fmt: skip
                    axes.set_title(title)
                axes, value = line[3 * i + 2], f"{part['values'][i]:.2g}"
                drawn = axes.imshow(part["maps"][i], cmap=HEAT, vmin=0, vmax=max(highest, 1e-12),
                                    interpolation="none")  # fmt: skip
                axes.set_title(f"({'v' if part['layer'] else 'V'} = {value})")
        pixel = all(p["layer"] is None for p in parts.values())
        where = " / ".join(dict.fromkeys(plain(p["layer"] or "pixels") for p in parts.values()))
        label = "share of the largest" if pixel else f"mean |change| in {where}"
        figure.colorbar(drawn, ax=every, label=label)

    return (1.2 + 3.9 * shown, 0.4 + (1.25 if shown > 1 else 1.45) * len(parts)), paint


def features(parts, palette, colours):
    """The most and the least vulnerable channels: clean, attacked, difference, on one scale.

    Args:
        parts: {model: FeatureMaps as a dictionary}; the first image is shown.
    """
    rows = [(name, k) for name, p in parts.items() for k in range(len(p["shown"]))]

    def paint(figure):
        every = figure.subplots(len(rows), 4, squeeze=False)
        first = None
        for line, (name, k) in zip(every, rows, strict=True):
            part = parts[name]
            clean, moved = (np.array(part[side][0]) for side in ("clean", "adversarial"))
            low, high = min(0.0, clean.min(), moved.min()), max(clean.max(), moved.max())
            image = part["x"][0] if k % 2 == 0 else part["x_adv"][0]
            line[0].imshow(rgb(image), cmap="gray", vmin=0, vmax=1, interpolation="none")
            line[0].set_title("image" if k % 2 == 0 else "attacked image")
            half = len(part["shown"]) // 2
            end = "most vulnerable" if k < half else "least vulnerable"
            line[0].set_ylabel(f"{end}\nchannel {part['shown'][k]}\nv = {part['v'][k]:.2g}",
                               color=palette.ink)  # fmt: skip
            titles = ("clean map", "attacked map", "|difference|")
            fields = (clean[k], moved[k], np.abs(clean[k] - moved[k]))
            for axes, title, field in zip(line[1:], titles, fields, strict=True):
                shown = axes.imshow(field, cmap=HEAT, vmin=low, vmax=high, interpolation="none")
                axes.set_title(title)
            for axes in line:
                bare(axes)
            if name != first:
                own = [i for i, row in enumerate(rows) if row[0] == name]
                figure.colorbar(
                    shown,
                    ax=every[own, 1:],
                    label=", ".join(
                        filter(None, [f"value of {plain(part['layer'])}", plain(name)])
                    ),
                )
                first = name

    return (7.2, 0.3 + 1.75 * len(rows)), paint


def sparsity(parts, palette, colours):
    """V, and V over the mean activation, against the share of units removed.

    Args:
        parts: {series: {"sparsity", "values", "relative", "names"}}, lists of equal length.
    """
    known = any(v is not None and np.isfinite(v) for p in parts.values() for v in p["relative"])

    def paint(figure):
        axes = np.ravel(figure.subplots(1, 1 + known, sharex=True))
        marks = itertools.cycle("osD^vP")
        for name, part in parts.items():
            mark = next(marks)
            for panel, key in zip(axes, ("values", "relative"), strict=False):
                values = [math.nan if v is None else v for v in part[key]]
                panel.plot(part["sparsity"], values, color=colours[name], marker=mark, linewidth=2,
                           label=plain(name))  # fmt: skip
            for place, value, text in zip(
                part["sparsity"], part["values"], part["names"], strict=True
            ):
                axes[0].annotate(plain(text), (place, value), (4, 5), textcoords="offset points",
                                 size=8, color=palette.ink)  # fmt: skip
        for panel, text in zip(axes, ("V", "V / E|z|, free of scale"), strict=False):
            panel.set(xlabel="units removed, %", title=text)
            panel.set_ylim(bottom=0)
            panel.set_xlim(-4, 108)
            panel.set_xticks([0, 25, 50, 75, 100])
            panel.margins(y=0.15)
            panel.grid(axis="y")
        if len(parts) > 1:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                          ncols=min(len(parts), 3), fontsize=9)  # fmt: skip

    return (7.2 if known else 4.6, 3.0 + 0.25 * math.ceil(len(parts) / 3)), paint


def points_of(models):
    """{model: (sparsity, V)} of the models of a card that have both."""
    points = {}
    for name, part in models.items():
        share, found = part.get("gain", {}).get("sparsity"), part["vulnerability"]
        if share is not None and found:
            v = Vulnerability({}, found["network"], found["relative"], found["units"])
            points[name] = max(float(share), 0.0), v
    return points


def curve_values(curve):
    """A `Curve` as plain lists."""
    numbers = {name: getattr(curve, name).tolist() for name in ("sparsity", "values", "relative")}
    return {**numbers, "names": list(curve.names)}


def rgb(image):
    """An image as matplotlib wants it: one channel without its axis, or three."""
    image = np.asarray(image, float)
    return image if image.shape[-1] == 3 else image.mean(-1)


def bare(axes):
    """No ticks and no frame around a picture."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
