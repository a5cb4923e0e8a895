"""docs/results/sparsity.md from the results.json of `recipes.sparsity_robustness`.

Part of `make results`. Every figure is computed here from that JSON; the paper's stand beside them.
"""

import json

import numpy as np

from recipes.cells import ROOT

FILE = "saved_models/sparsity_robustness/results.json"
PAGE = "docs/results/sparsity.md"
HEADS = {
    "accuracy": "accuracy, %", "fgs": "r_inf FGS", "rfgs": "r_inf rFGS", "pgd": "r_inf PGD-20",
    "deepfool": "r_2 DeepFool", "cw": "r_2 C&W", "exact_fgs": "r_inf FGS, no box",
    "exact_deepfool": "r_2 DeepFool, no box", "silent": "silent units, %",
}  # fmt: skip
PERCENT = ("accuracy", "silent")
# Guo et al. (2018): accuracy in per cent, r_inf (FGS) and r_2 (DeepFool) of the dense references.
PAPER = {
    "linear_1v7": {"accuracy": "99.17 +- 0.00", "r_2": "2.0103 +- 0.0022"},
    "linear": {"accuracy": "92.26 +- 0.08"},
    "lenet300_100": {
        "accuracy": "98.20 +- 0.07", "r_inf": "0.2862 +- 0.0113", "r_2": "1.3213 +- 0.0207",
    },
    "lenet5": {
        "accuracy": "99.11 +- 0.04", "r_inf": "0.7388 +- 0.0188", "r_2": "2.7831 +- 0.1490",
    },
}  # fmt: skip
TABLE_1 = {
    "lenet300_100": ("0.2862, 1.3213, 98.20, 45.25", "0.3993, 1.5903, 98.27, 75.92",
                     "0.2098, 1.1440, 97.96, 95.22"),
    "lenet5": ("0.7388, 2.7831, 99.11, 51.26", "0.7729, 3.1688, 99.19, 97.54",
               "0.6741, 2.0799, 99.10, 99.64"),
}  # fmt: skip
DROP, BENIGN = 0.05, 0.01  # the thresholds of tr.diagnostics.PruningWatch


def load(root=ROOT):
    """The results, or None where there are none."""
    path = root / FILE
    return json.loads(path.read_text()) if path.exists() else None


def value(row, key):
    """The figure of a row, NaN where it was not measured."""
    found = row.get(key, np.nan)
    return found["value"] if isinstance(found, dict) else found


def series(chains, key, rows="rows"):
    """`(references, rounds)` of one figure."""
    return np.array([[value(row, key) for row in chain[rows]] for chain in chains], float)


def cell(values, percent=False):
    """mean +- standard deviation over references."""
    values = np.asarray(values) * (100 if percent else 1)
    if np.isnan(values).any():
        return ""
    digits = 2 if percent else 4
    spread = f" +- {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def curve(chains):
    """One line for each round."""
    keys = [key for key in HEADS if np.isfinite(series(chains, key)[:, 0]).all()]
    lines = ["| weights left, % | " + " | ".join(HEADS[k] for k in keys) + " |"]
    lines.append("|---" * (len(keys) + 1) + "|")
    for place, row in enumerate(chains[0]["rows"]):
        cells = [cell(series(chains, k)[:, place], k in PERCENT) for k in keys]
        lines.append(f"| {100 * row['left'] / row['of']:.2f} | " + " | ".join(cells) + " |")
    return lines


def change(first, then):
    """Relative change of means over references, in per cent, with sign."""
    return f"{100 * (then.mean() / first.mean() - 1):+.1f} %"


def best(chains, key):
    """(round of the highest mean, share of weights left there in per cent)."""
    place = int(series(chains, key).mean(0).argmax())
    row = chains[0]["rows"][place]
    return place, 100 * row["left"] / row["of"]


def shape(title, chains, measure, key):
    """A sentence on the way of one figure along the rounds."""
    found = series(chains, key)
    place, left = best(chains, key)
    ups = int((found[:, 1:].max(1) > found[:, 0]).sum())
    return (
        f"- {title}, {measure}: dense {found[:, 0].mean():.4f}, after the first round "
        f"{change(found[:, 0], found[:, 1])}, highest {found[:, place].mean():.4f} "
        f"({change(found[:, 0], found[:, place])}) with {left:.2f} % of the weights, at the end "
        f"{change(found[:, 0], found[:, -1])}; above its dense value at some round in {ups} of "
        f"{len(chains)} references"
    )


def watched(title, chains, key):
    """Where a watch over the schedule would have warned, by means over references."""
    robust, benign = series(chains, key).mean(0), series(chains, "accuracy").mean(0)
    for place, row in enumerate(chains[0]["rows"]):
        lost = 1 - robust[place] / robust[0], 1 - benign[place] / benign[0]
        if lost[0] > DROP and lost[1] < BENIGN:
            return (
                f"- {title}: yes, with {100 * row['left'] / row['of']:.2f} % of the weights left "
                f"(r_2 {-100 * lost[0]:+.1f} %, accuracy {-100 * lost[1]:+.2f} %)"
            )
    return f"- {title}: no, accuracy falls by {100 * BENIGN:.0f} % first"


def penalties(name, chains):
    """Table 1: r_inf, r_2, accuracy and silent units under the l1 penalty."""
    keys = ("fgs", "deepfool", "accuracy", "silent")
    lines = ["| l1 penalty | " + " | ".join(HEADS[k] for k in keys) + " |", "|---" * 5 + "|"]
    for place, row in enumerate(chains[0]["l1"]):
        cells = [cell(series(chains, k, "l1")[:, place], k in PERCENT) for k in keys]
        lines.append(f"| {row['penalty']:g} | " + " | ".join(cells) + " |")
    shown = "; ".join(TABLE_1[name])
    return [*lines, "", f"The paper's three rows (strengths not given): {shown}."]


def silence(title, chains):
    """A sentence: what the largest penalty made of the share of silent units."""
    found = 100 * series(chains, "silent", "l1").mean(0)
    way = "rises" if found[-1] > found[0] else "falls"
    return (
        f"Silent units: the paper's share rises with sparsity; here it {way} under the penalty, "
        f"from {found[0]:.1f} to {found[-1]:.1f} %."
    )


def verdict(title, chains):
    """A sentence on the r_2 of a linear net, which the paper only sees fall."""
    found = series(chains, "exact_deepfool")
    gains = 100 * (found[:, 1:].max(1) / found[:, 0] - 1)
    if gains.max() <= 0:
        return f"- {title}: so it is here, in all {len(chains)} references"
    return (
        f"- {title}: not to the letter. Pruned and trained on, r_2 stands above its dense value at "
        f"some round in {int((gains > 0).sum())} of {len(chains)} references, by "
        f"{gains.max():.2f} % at most; there is no reference that was trained on unpruned"
    )


def unfooled(chains, key):
    """Most images that an attack could not fool, over all rows, and of how many."""
    rows = [row[key] for chain in chains for row in chain["rows"] if key in row]
    return max(row.get("unfooled", 0) for row in rows), max(row["n"] for row in rows)


def page(root=ROOT):
    """docs/results/sparsity.md, or None without results."""
    results = load(root)
    if results is None:
        return None
    settings = results["settings"]
    plans, count = settings["plans"], settings["images"]
    nets = {name: chains for name, chains in results["nets"].items() if chains}
    linear = [name for name in nets if not plans[name]["penalties"]]
    deep = [name for name in nets if plans[name]["penalties"]]
    references = " and ".join(sorted({str(len(chains)) for chains in nets.values()}))
    lines = [
        "# What sparsity does to robustness",
        "",
        f"Made by `make results` from [results.json](../../{FILE}), which",
        f"`{results['command']}` writes. After Guo",
        "et al. (2018, arXiv 1810.09619), Figures 1 and 2 and Table 1, on MNIST: naturally trained",
        f"references ({references} of each net; the paper has 10) are pruned step by step, a third",
        "of what is left of each layer at a time, and trained on in between. Nothing here was",
        "trained to be robust, and r_inf under one step is no verdict: PGD-20 stands beside it.",
        "",
        f"r_inf: accuracy on adversarial images, Linf {settings['epsilon']:g}; FGS on all test",
        f"images, rFGS on the first {count['rfgs']:,}, PGD-20 on the first {count['pgd']:,}.",
        "r_2: mean L2 distance of the adversarial image over *all* images, 0 for wrong ones;",
        f"DeepFool on the first {count['deepfool']:,}, {settings['attacks']['cw']} (C&W) on the",
        f"first {count['cw']:,} at every fourth round, both inside the pixel box. The closed forms",
        "of linear nets know no box; they are over all test images. Means and standard deviations",
        f"over references. {settings['optimizer']} ({settings['decay']:g}), batch",
        f"{settings['batch']}.",
        "",
        "![r_inf and r_2 against the weights that are left]"
        "(../../saved_models/sparsity_robustness/figure.png)",
        "",
        "## The dense references, and the paper's",
        "",
        "| net | accuracy, % | paper | r_inf FGS | paper | r_2 DeepFool | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, chains in nets.items():
        told = PAPER[name]
        r_2 = "exact_deepfool" if name in linear else "deepfool"
        cells = [cell(series(chains, "accuracy")[:, 0], True), told["accuracy"]]
        cells += [cell(series(chains, "fgs")[:, 0]), told.get("r_inf", "")]
        cells += [cell(series(chains, r_2)[:, 0]), told.get("r_2", "")]
        lines.append(f"| {plans[name]['title']} | " + " | ".join(cells) + " |")
    lines += ["", "Linear nets: r_2 in closed form.", "", "## The shapes", ""]
    for name in nets:
        box = name in linear
        title, chains = plans[name]["title"], nets[name]
        lines.append(shape(title, chains, "r_inf (FGS)", "exact_fgs" if box else "fgs"))
        lines.append(shape(title, chains, "r_2", "exact_deepfool" if box else "deepfool"))
    lines += [
        "",
        "The paper: the r_2 of linear nets only falls, from the first round on, while their r_inf",
        "rises; of the other nets both rise, until they are pruned too far. That r_2 only falls:",
        "",
        *(verdict(plans[name]["title"], nets[name]) for name in linear),
        "",
        f"Does r_2 fall by more than {100 * DROP:.0f} % before accuracy falls by "
        f"{100 * BENIGN:.0f} % (what `tr.diagnostics.PruningWatch` warns of)?",
        "",
    ]
    for name in nets:
        key = "exact_deepfool" if name in linear else "deepfool"
        lines.append(watched(plans[name]["title"], nets[name], key))
    if deep:
        lines += ["", "## Activation sparsity", ""]
        lines += ["Trained on from the reference under an l1 penalty on all kernels.", ""]
    for name in deep:
        title = plans[name]["title"]
        lines += [f"### {title}", "", *penalties(name, nets[name]), silence(title, nets[name]), ""]
    lines += [*([] if deep else [""]), "## Round by round", ""]
    for name, chains in nets.items():
        lost, of = unfooled(chains, "deepfool")
        lines += [f"### {plans[name]['title']}", ""]
        if lost:
            lines += [
                f"DeepFool found nothing for up to {lost} of {of:,} images: they count 0.",
                "",
            ]
        lines += [*curve(chains), ""]
    return "\n".join(lines)


def pages(root=ROOT):
    """{path below `root`: text}, empty without results."""
    text = page(root)
    return {} if text is None else {PAGE: text}
