"""Pictures of the representation under attack and of the game that desensitizes it.

As in `explain`, every painter takes plain values as they stand in a card, {model: values}, and
gives `(size, paint)`. `FIELDS` tells which results an `Entry` has for them, and `plain` how they
become plain values; results that belong to several attacks, radii or classes come as {key: result}.
"""

import math

import numpy as np

from tfrobust.diagnostics import (
    Angles,
    ClassGradients,
    Dimensions,
    DiscriminatorTrace,
    Planes,
    Sensitivity,
    Visualised,
)
from tfrobust.evaluate import Curve
from tfrobust.report.explain import bare, grid, panels, rgb
from tfrobust.report.plots import plain as text

DIVERGING, EVEN = "RdBu_r", "viridis"
POINTS = {"clean": ("o", 5), "attacked": ("x", 9)}
TRACED = {  # title: {figure: style of the line}
    "discriminator accuracy": {"discriminator_accuracy": "-"},
    "loss of discriminator (solid), encoder (dashed)": {
        "discriminator_loss": "-",
        "encoder_loss": "--",
    },
    "relative shift of the features": {"feature_shift": "-"},
    "gradient of the encoder, L2 norm": {"encoder_gradient": "-"},
}


def areas(parts, palette, colours):
    """A panel for each attack: accuracy over epsilon, areas in the legend.

    Args:
        parts: {model: {attack: `Curve` as a dictionary}}.
    """
    attacks = list(dict.fromkeys(attack for part in parts.values() for attack in part))
    rows, columns, size = grid(len(attacks), 2.2)

    def paint(figure):
        for axes, attack in zip(panels(figure, rows, columns, attacks), attacks, strict=True):
            norms = set()
            for name, part in parts.items():
                if attack in part:
                    curve = part[attack]
                    line = [100 * rate["accuracy"] for rate in curve["rates"]]
                    label = f"{curve['auc']:.2f} {text(name)}"
                    norms.add(str(curve["norm"]).capitalize())
                    axes.plot(curve["epsilons"], line, color=colours[name], marker="o",
                              markersize=3, linewidth=1.6, label=label)  # fmt: skip
            axes.set(ylim=(0, 102), xlabel=f"epsilon ({', '.join(sorted(norms))})")
            axes.set_xlim(left=0)
            axes.grid(axis="y")
            axes.legend(fontsize=7, loc="upper right", handlelength=1)
        figure.supylabel("accuracy, %", size=10, color=palette.ink)

    return size, paint


def sensitivity(parts, palette, colours):
    """Median of ||E(x') - E(x)|| / ||E(x)|| over epsilon, one standard deviation as a band.

    Args:
        parts: {model: {epsilon: `Sensitivity` as a dictionary}}.
    """

    def paint(figure):
        axes = figure.subplots()
        for name, part in parts.items():
            rows = sorted((float(epsilon), found) for epsilon, found in part.items())
            x, middle, wide = (
                np.array([0.0, *values], float)
                for values in (
                    [epsilon for epsilon, _ in rows],
                    [found["median"] for _, found in rows],
                    [found["deviation"] for _, found in rows],
                )
            )
            low, high = np.maximum(middle - wide, 0), middle + wide
            axes.fill_between(x, low, high, color=colours[name], alpha=0.15, linewidth=0)
            axes.plot(x, middle, color=colours[name], marker="o", markersize=4, linewidth=2,
                      label=text(name))  # fmt: skip
        axes.set(xlabel="epsilon", ylabel="relative shift of the representation")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(axis="y")
        if any(parts):
            axes.legend(loc="upper left", fontsize=9)

    return (6.0, 3.4), paint


def angles(parts, palette, colours):
    """Mean angle to the reference attack's perturbation, a group of bars for each attack.

    Args:
        parts: {model: {attack: `Angles` as a dictionary}}.
    """
    attacks = list(dict.fromkeys(attack for part in parts.values() for attack in part))
    thick = 0.8 / len(parts)

    def paint(figure):
        axes = figure.subplots()
        for number, (name, part) in enumerate(parts.items()):
            for place, attack in enumerate(attacks):
                found = part.get(attack)
                mean = found and found["mean"]
                if mean is None or not math.isfinite(mean):
                    continue
                where = place + (number - (len(parts) - 1) / 2) * thick
                axes.barh(where, mean, 0.9 * thick, xerr=found["deviation"], color=colours[name],
                          ecolor=palette.quiet, label=text(name))  # fmt: skip
        labels = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        if any(parts) and labels:
            figure.legend(labels.values(), labels.keys(), loc="outside upper right", ncols=3,
                          fontsize=9)  # fmt: skip
        axes.axvline(math.pi / 2, color=palette.quiet, linewidth=1, linestyle=":")
        axes.set_xlim(0, math.pi)
        quarters = ["0", r"$\pi/4$", r"$\pi/2$: unrelated", r"$3\pi/4$", r"$\pi$"]
        axes.set_xticks(np.linspace(0, math.pi, 5), quarters)
        axes.set_yticks(range(len(attacks)), [text(attack) for attack in attacks])
        axes.invert_yaxis()
        axes.grid(axis="x")

    return (6.4, 1.2 + 0.22 * len(attacks) * (1 + len(parts))), paint


def dimensions(parts, palette, colours):
    """Share of the variance that the first components explain, and how many are enough.

    Args:
        parts: {model: `Dimensions` as a dictionary, with `explained` `(1, features)`}.
    """

    def paint(figure):
        axes = figure.subplots()
        for name, part in parts.items():
            told = 100 * np.cumsum(np.ravel(part["explained"]))
            enough = part["dimensions"]
            label = (
                f"{text(name)}{': ' if name else ''}{part['units']} of {part['features']} units, "
                f"{enough} components"
            )
            axes.plot(np.arange(1, len(told) + 1), told, color=colours[name], linewidth=2,
                      label=label)  # fmt: skip
            if enough:
                axes.plot(enough, told[enough - 1], "o", color=colours[name], markersize=7)
        shares = {part["share"] for part in parts.values()}
        for share in shares:
            axes.axhline(100 * share, color=palette.quiet, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set(xlabel="principal components", ylabel="variance explained, %", ylim=(0, 103))
        axes.grid(axis="y")
        axes.legend(loc="lower right", fontsize=9)

    return (6.4, 3.4), paint


def class_gradients(parts, palette, colours):
    """log of the mean length of each probability's gradient, by true class, on one scale.

    Args:
        parts: {model: `ClassGradients` as a dictionary}.
    """
    rows, columns, size = grid(len(parts), 2.9)
    matrices = {name: np.asarray(part["matrix"], float) for name, part in parts.items()}
    every = np.concatenate([m[np.isfinite(m)] for m in matrices.values()])
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)

    def paint(figure):
        found = panels(figure, rows, columns, parts)
        for axes, matrix in zip(found, matrices.values(), strict=True):
            drawn = axes.imshow(matrix, cmap=EVEN, vmin=low, vmax=max(high, low + 1e-9),
                                interpolation="none")  # fmt: skip
            mean = f"mean {np.nanmean(matrix):.2f}" if np.isfinite(matrix).any() else "no images"
            axes.set(xlabel=f"class $k$ ({mean})", ylabel="true class")
            if len(matrix) <= 12:
                axes.set_xticks(range(len(matrix)))
                axes.set_yticks(range(len(matrix)))
        label = r"$\log$ mean $\|\partial p_k / \partial x\|_2$"
        figure.colorbar(drawn, ax=found, label=label, shrink=0.8)

    return size, paint


def trace(parts, palette, colours):
    """How the game went: the discriminator's accuracy, both losses, shift and gradient.

    Args:
        parts: {model: `DiscriminatorTrace` as a dictionary}.
    """

    def paint(figure):
        for axes, (title, lines) in zip(panels(figure, 2, 2, TRACED), TRACED.items(), strict=True):
            for name, part in parts.items():
                names, values = part["names"], np.array(part["values"], float)
                for figure_name, style in lines.items():
                    if figure_name in names and len(values):
                        y = values[:, names.index(figure_name)]
                        axes.plot(values[:, names.index("step")], y, style, color=colours[name],
                                  linewidth=1.6, label=text(name))  # fmt: skip
            axes.set(title=title, xlabel="step")
            axes.title.set_fontsize(9)
            axes.grid(axis="y")
            if "discriminator_accuracy" in lines:
                axes.axhline(0.5, color=palette.quiet, linewidth=1, linestyle=":")
                axes.set_ylim(0, 1.02)
                if any(parts):
                    axes.legend(loc="lower right", fontsize=8)
            else:
                axes.set_ylim(bottom=0)

    return (7.2, 5.0), paint


def planes(parts, palette, colours):
    """t-SNE: a row for each model, clean images, then clean and attacked ones by epsilon.

    Args:
        parts: {model: `Planes` as a dictionary}.
    """
    columns = 1 + max(len(part["epsilons"]) for part in parts.values())

    def paint(figure):
        import matplotlib

        every = figure.subplots(len(parts), columns, squeeze=False)
        for line, (name, part) in zip(every, parts.items(), strict=True):
            labels = np.ravel(part["labels"]).astype(int)
            classes = labels.max() + 1
            scale = matplotlib.colormaps["tab10" if classes <= 10 else "turbo"]
            shades = scale(labels if classes <= 10 else labels / classes)
            clouds = [("clean", [part["clean"]])]
            clouds += [
                (f"epsilon {epsilon:.3g}", pair)
                for epsilon, pair in zip(part["epsilons"], part["pairs"], strict=True)
            ]
            line[0].set_ylabel(text(name), color=palette.ink)
            for axes in line:
                bare(axes)
            for axes, (title, sides) in zip(line, clouds, strict=False):
                axes.set_title(title)
                for points, (mark, area) in zip(sides, POINTS.values(), strict=False):
                    # Thousands of points are an image inside of the SVG.
                    axes.scatter(*np.transpose(points), s=area, c=shades, marker=mark,
                                 linewidths=0.5 if mark == "x" else 0, rasterized=True)  # fmt: skip
        if columns > 1:
            figure.supxlabel("dots: clean images; crosses: attacked ones", size=9,
                             color=palette.ink)  # fmt: skip

    return (max(1.9 * columns, 3.2), 0.5 + 1.9 * len(parts)), paint


def visualised(parts, palette, colours):
    """The first image, what each class made of it, and the gradient that it began with.

    Args:
        parts: {model: {what the class is: `Visualised` as a dictionary}}.
    """
    kinds = list(dict.fromkeys(kind for part in parts.values() for kind in part))

    def paint(figure):
        every = figure.subplots(len(parts), 1 + 2 * len(kinds), squeeze=False)
        for line, (name, part) in zip(every, parts.items(), strict=True):
            for axes in line:
                bare(axes)
            line[0].set_ylabel(text(name), color=palette.ink)
            options = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "none"}
            for number, kind in enumerate(kinds):
                if kind not in part:
                    continue
                found = part[kind]
                if not line[0].images:
                    line[0].imshow(rgb(found["x"][0]), **options)
                    line[0].set_title("image")
                result, slope = line[1 + 2 * number : 3 + 2 * number]
                result.imshow(rgb(found["images"][0]), **options)
                result.set_title(f"{text(kind)}: {int(np.ravel(found['y'])[0])}")
                field = np.asarray(found["gradient"][0], float).mean(-1)
                reach = max(np.abs(field).max(), 1e-30)
                slope.imshow(field, cmap=DIVERGING, vmin=-reach, vmax=reach, interpolation="none")
                slope.set_title("gradient")

    return (1.3 * (1 + 2 * len(kinds)) + 0.5, 0.4 + 1.4 * len(parts)), paint


FIELDS = {  # name: (result, whether it comes as {key: result}, painter)
    "areas": (Curve, True, areas),
    "sensitivity": (Sensitivity, True, sensitivity),
    "angles": (Angles, True, angles),
    "dimensions": (Dimensions, False, dimensions),
    "class_gradients": (ClassGradients, False, class_gradients),
    "trace": (DiscriminatorTrace, False, trace),
    "planes": (Planes, False, planes),
    "visualised": (Visualised, True, visualised),
}
PAINTERS = {name: painter for name, (_, _, painter) in FIELDS.items()}


def checked(name, found, argument=None):
    """What an `Entry` has under `name`, or a TypeError about `argument`."""
    kind, several, _ = FIELDS[name]
    argument, wanted = argument or name, f"tr.{kind.__module__.split('.')[1]}.{kind.__name__}"
    if found is None:
        return None
    if not several and not isinstance(found, kind):
        raise TypeError(f"`{argument}` must be a {wanted}. Received: {type(found).__name__}")
    if not several:
        return found
    if not isinstance(found, dict) or not found:
        more = " without entries" if isinstance(found, dict) else ""
        raise TypeError(
            f"`{argument}` must be a dictionary of {wanted}. Received: {type(found).__name__}{more}"
        )
    for one in found.values():
        if not isinstance(one, kind):
            raise TypeError(f"`{argument}` must hold {wanted}. Received: {type(one).__name__}")
    return {str(key): one for key, one in found.items()}


def plain(name, found):
    """The result, or the results, as plain values of a card."""
    if found is None:
        return None
    if FIELDS[name][1]:
        return {key: _values(one) for key, one in found.items()}
    return _values(found)


def _values(one):
    values = one.first(1).to_dict() if isinstance(one, Visualised) else one.to_dict()
    if isinstance(one, Dimensions):
        values["explained"] = [np.round(one.explained, 6).tolist()]
    if isinstance(one, Planes):
        values["labels"] = [values["labels"]]  # one line of a card, not a line for each
        for key in ("clean", "pairs"):
            values[key] = np.round(getattr(one, key), 2).tolist()
    if isinstance(one, Visualised):
        values["logits"] = [np.ravel(values["logits"]).tolist()]
        for key in ("x", "images"):
            values[key] = np.round(values[key], 3).tolist()
    return values
