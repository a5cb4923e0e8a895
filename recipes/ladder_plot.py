"""The picture of a pruning ladder: accuracy against the share pruned, one line for each run."""

import io


def svg(panels, keys, names, inks, label):
    """SVG text of curves, one panel for each kind of pruning.

    Args:
        panels: {title: {run: rows}}, rows as in a curve.json, with "ratio" and `keys`.
        keys: {key of a row: line style}; the first is the one the legend shows.
        names, inks: {run: its name in the legend, its colour}; other runs are left out.
        label: Of the y axis.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    first = next(iter(keys))
    settings = {"svg.hashsalt": "tfrobust", "svg.fonttype": "none", "font.size": 9}
    with rc_context(settings):
        figure = Figure(figsize=(4 * len(panels) + 1, 3.2), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, runs) in zip(axes, panels.items(), strict=True):
            for run in [run for run in runs if run in inks]:
                for key, style in keys.items():
                    x, y = ([100 * row[name] for row in runs[run]] for name in ("ratio", key))
                    shown = names[run] if key == first else None
                    axis.plot(x, y, style, color=inks[run], label=shown, linewidth=1.5)
            axis.set_title(title)
            axis.set_xlabel("pruned, %")
            axis.set_xlim(0, 100)
            axis.set_ylim(0, 100)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(label)
        handles = {}
        for axis in axes:
            for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, line)
        place = {"title": "fine-tuning", "frameon": False, "loc": "outside right center"}
        figure.legend(handles.values(), handles.keys(), **place)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
