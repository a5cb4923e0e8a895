"""How the pictures of the results pages are drawn."""

import io

INKS = ("#8c8c8c", "#20639b", "#d1662b", "#3c8c5a", "#7b4fa3", "#b5892e", "#c2477f")


def svg(size, paint):
    """SVG text, the same for the same picture, of what `paint(figure)` draws.

    Args:
        size: Inches, (width, height).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "tfrobust", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        for axis in figure.axes:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def ladder(panels, keys, names, inks, label):
    """Accuracy against the share pruned, one line for each run: SVG text.

    Args:
        panels: {title: {run: rows}}, rows as in a curve.json, with "ratio" and `keys`; a panel for
            each kind of pruning.
        keys: {key of a row: line style}; the first is the one the legend shows.
        names, inks: {run: its name in the legend, its colour}; other runs are left out.
        label: Of the y axis.
    """
    first = next(iter(keys))

    def paint(figure):
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, runs) in zip(axes, panels.items(), strict=True):
            for run in [run for run in runs if run in inks]:
                for key, style in keys.items():
                    x, y = ([100 * row[name] for row in runs[run]] for name in ("ratio", key))
                    shown = names[run] if key == first else None
                    axis.plot(x, y, style, color=inks[run], label=shown, linewidth=1.5)
            axis.set(title=title, xlabel="pruned, %", xlim=(0, 100), ylim=(0, 100))
        axes[0].set_ylabel(label)
        lines = {}
        for axis in axes:
            for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
                lines.setdefault(name, line)
        place = {"title": "fine-tuning", "frameon": False, "loc": "outside right center"}
        figure.legend(lines.values(), lines.keys(), **place)

    return svg((4 * len(panels) + 1, 3.2), paint)
