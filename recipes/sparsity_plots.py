"""The figure of recipes.sparsity_robustness, drawn from its JSON alone."""

import numpy as np

TITLES = {"r_inf": "r_inf, epsilon 0.1", "r_2": "r_2, pixels"}
LINES = {
    "r_inf": {"fgs": "FGS", "rfgs": "rFGS", "pgd": "PGD-20", "exact_fgs": "FGS, no box"},
    "r_2": {"deepfool": "DeepFool", "cw": "C&W", "exact_deepfool": "DeepFool, no box"},
}
COLOURS = {"fgs": "C0", "rfgs": "C1", "pgd": "C2", "exact_fgs": "C3",
           "deepfool": "C0", "cw": "C1", "exact_deepfool": "C3"}  # fmt: skip


def curve(chains, key):
    """(weights left in per cent, mean over references, standard deviation) at each round."""
    points = {}
    for chain in chains:
        for row in chain["rows"]:
            value = row.get(key)
            if value is not None:
                value = value["value"] if isinstance(value, dict) else value
                points.setdefault(row["round"], []).append((100 * row["left"] / row["of"], value))
    rounds = [np.array(points[number]) for number in sorted(points)]
    left = np.array([r[:, 0].mean() for r in rounds])
    spread = [r[:, 1].std(ddof=1) if len(r) > 1 else 0.0 for r in rounds]
    return left, np.array([r[:, 1].mean() for r in rounds]), np.array(spread)


def draw(results, path):
    """Accuracy with r_inf above, r_2 below, against the weights that are left."""
    from matplotlib.figure import Figure

    import tfrobust as tr

    nets = {name: chains for name, chains in results["nets"].items() if chains}
    figure = Figure(figsize=(3.1 * len(nets), 5.2), layout="constrained")
    axes = figure.subplots(2, len(nets), squeeze=False, sharex=True)
    for column, (name, chains) in enumerate(nets.items()):
        for ax, (measure, lines) in zip(axes[:, column], LINES.items(), strict=True):
            if measure == "r_inf":
                ax.set_title(results["settings"]["plans"][name]["title"], fontsize=10)
                left, mean, _ = curve(chains, "accuracy")
                ax.plot(left, mean, color="0.5", linestyle="--", label="accuracy")
                ax.set_ylim(0, 1.02)
            for key, label in lines.items():
                left, mean, spread = curve(chains, key)
                if len(left):
                    ax.errorbar(left, mean, spread, color=COLOURS[key], label=label,
                                marker=".", markersize=4, linewidth=1, capsize=1.5)  # fmt: skip
            if measure == "r_2":
                ax.set_ylim(bottom=0)
                ax.set_xlabel("weights left, %")
            ax.set_xscale("log")
            ax.grid(alpha=0.3)
            if not column:
                ax.set_ylabel(TITLES[measure])
                ax.legend(fontsize=7, frameon=False)
        axes[0, column].invert_xaxis()
    tr.files.replace(path, lambda name: figure.savefig(name, dpi=72))
