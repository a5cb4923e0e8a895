"""The ANP-VS tables of the results pages, made from the cards of `recipes.anp_vs_table1`.

Rows accumulate: a row with several seeds shows mean and standard deviation over them, and how many
there are. The paper's figures stand beside ours; its budget was 200 epochs.
"""

import json
import math
import re

import tfrobust as tr
from recipes.anp_vs_rows import ALL, ROWS
from recipes.cells import ROOT

# Madaan et al. (2020), Tables 1 and 4: clean, white box, black box, V white, V black, memory in %,
# xFLOPs, sparsity in %.
PAPER = {
    "mnist": {
        "standard": (99.29, 0.00, 8.02, 0.129, 0.113, 100, 1, 0),
        "bp_bbd": (99.34, 0.00, 12.99, 0.091, 0.078, 4.14, 9.68, 83.48),
        "bp_vib": (99.32, 5.66, 15.47, 0.091, 0.078, 4.34, 9.39, 82.46),
        "at": (99.14, 88.03, 94.18, 0.045, 0.040, 100, 1, 0),
        "at_bnn": (99.16, 88.44, 94.87, 0.364, 0.199, 200, 0.5, 0),
        "pretrained_at": (99.18, 88.26, 94.49, 0.412, 0.381, 100, 1, 0),
        "admm": (99.01, 88.47, 94.61, 0.041, 0.038, 100, 1, 80.00),
        "trades": (99.07, 89.67, 95.04, 0.037, 0.033, 100, 1, 0),
        "anp_vs_bbd": (99.05, 91.31, 95.43, 0.017, 0.015, 6.81, 10.57, 84.16),
        "anp_vs_vib": (98.86, 90.11, 95.14, 0.017, 0.015, 4.87, 10.06, 78.48),
    },
    "cifar10": {
        "standard": (92.76, 13.79, 41.65, 0.077, 0.065, 100, 1, 0),
        "bp_bbd": (92.91, 14.30, 42.88, 0.037, 0.033, 12.41, 2.34, 75.92),
        "bp_vib": (92.73, 12.28, None, 0.035, 0.032, 12.38, 2.38, 76.35),
        "at": (87.50, 49.85, 63.70, 0.050, 0.047, 100, 1, 0),
        "at_bnn": (86.69, 51.87, 64.92, 0.267, 0.238, 200, 0.5, 0),
        "pretrained_at": (87.50, 52.25, 66.10, 0.041, 0.036, 100, 1, 0),
        "admm": (78.15, 47.37, 62.15, 0.034, 0.030, 100, 1, 75.00),
        "trades": (80.33, 52.08, 64.80, 0.045, 0.042, 100, 1, 0),
        "anp_vs_bbd": (88.18, 56.21, 71.44, 0.019, 0.016, 12.27, 2.41, 76.53),
        "anp_vs_vib": (87.56, 53.41, 68.12, 0.025, 0.021, 12.09, 2.43, 77.02),
    },
}
TITLES = {"cifar10": "CIFAR-10, Linf, epsilon 8/255: VGG-16 at a quarter of its width"}
HEAD = (
    "| method | seeds | clean | white box PGD-40 | black box | AutoAttack | V white | V black "
    "| memory, % | xFLOPs | sparsity, % | processor s |"
)


SAVED = ROOT / "saved_models"
NUMBER = r"[\d.e+-]+"


def cards(data, row, saved=SAVED):
    """{options that differ from the defaults, such as "_suppress10": {seed: card}} of a row."""
    more = "".join(f"(?:_{name}{NUMBER})?" for name in ALL[row].options)
    wanted, found = re.compile(rf"{data}_anp_{row}({more})_s(\d+)"), {}
    for path in sorted(saved.glob(f"{data}_anp_{row}*/card.json")):
        match = wanted.fullmatch(path.parent.name)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = tr.report.load(path.parent).to_dict()
    return {more: dict(sorted(seeds.items())) for more, seeds in sorted(found.items())}


def option(more, name):
    """The value of an option in such a key, or None.

    >>> option("_beta8_gain0", "gain"), option("", "gain")
    (0.0, None)
    """
    match = re.search(rf"_{name}({NUMBER})", more)
    return float(match[1]) if match else None


def columns(card):
    """The figures of one card: those of the paper's table, AutoAttack, processor seconds."""
    entry = next(iter(card["models"].values()))
    paper, families = entry["settings"]["paper_columns"], entry["families"]
    white = next(
        a["rate"] for s in entry["scores"] for a in s["attacks"] if a["name"].startswith("PGD-")
    )
    return {
        "clean": percent(entry["clean"]),
        "white": percent(white),
        "black": percent(entry["transfer"][0]["robust"]),
        "autoattack": percent(families["AutoAttack"]),
        "v_white": entry["vulnerability"]["network"],
        "v_black": entry["vulnerability_black"]["network"],
        "memory": paper["memory"],
        "xflops": paper["xflops"],
        "sparsity": max(paper["sparsity"], 100 * entry["settings"]["zeros"]),
        "seconds": entry["settings"]["seconds"][1],
    }


def percent(value):
    return None if value is None else 100 * value["count"] / value["n"]


def spread(values, digits):
    """Mean, and +- the sample standard deviation where there are several.

    >>> spread([1.0, 3.0], 1), spread([2.0], 2), spread([None], 2)
    ('2.0 +- 1.4', '2.00', 'not run')
    """
    if any(v is None for v in values):
        return "not run"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.{digits}f} +- {deviation:.{digits}f}"


DIGITS = {
    "clean": 2, "white": 2, "black": 2, "autoattack": 1, "v_white": 4, "v_black": 4, "memory": 2,
    "xflops": 2, "sparsity": 2, "seconds": 0,
}  # fmt: skip


def means(seeds, names=tuple(DIGITS)):
    """The cells of some cards that differ in the seed alone."""
    each = [columns(card) for card in seeds.values()]
    return [spread([c[name] for c in each], DIGITS[name]) for name in names]


def table(data, saved=SAVED):
    """Lines of Table 1, ours and the paper's; nothing where no card is."""
    lines = []
    for row, (title, *_) in ALL.items():
        seeds = cards(data, row, saved).get("")
        if not seeds:
            continue
        lines.append(f"| {title} | {len(seeds)} | " + " | ".join(means(seeds)) + " |")
        if row in PAPER[data]:
            theirs = ["" if v is None else f"{v:g}" for v in PAPER[data][row]]
            theirs.insert(3, "")
            lines.append("| *the paper* | | " + " | ".join(theirs) + " | |")
    return [HEAD, "|---" * 12 + "|", *lines] if lines else []


def ablation(data, saved=SAVED):
    """Lines of Table 3: with and without masks and VS, over lambda."""
    lines = [
        "| method | lambda | seeds | clean | white box PGD-40 | AutoAttack | V white | V black |",
        "|---" * 8 + "|",
    ]
    for row in ("at", "at_vs", "anp_bbd", "anp_vs_bbd"):
        found = cards(data, row, saved)
        weighed = "suppress" in ALL[row].options
        default = 1.0 if weighed else 0.0
        values = {option(m, "suppress") or default: s for m, s in found.items() if "gain" not in m}
        for value, seeds in sorted(values.items()):
            cells = means(seeds, ("clean", "white", "autoattack", "v_white", "v_black"))
            lines.append(
                f"| {ALL[row].title} | {value:g} | {len(seeds)} | " + " | ".join(cells) + " |"
            )
    return lines if len(lines) > 3 else []


def figure3(data, saved=SAVED):
    """Lines of Figure 3: what beta prunes, and what it costs."""
    lines = [
        "| method | beta | sparsity, % | xFLOPs | clean | white box PGD-40 |",
        "|---" * 6 + "|",
    ]
    for row, flag in (("bp_bbd", "bp_beta"), ("pat", "bp_beta"), ("anp_vs_bbd", "beta")):
        for more, seeds in cards(data, row, saved).items():
            if row == "anp_vs_bbd" and option(more, "gain") != 0:
                continue
            value = option(more, flag)
            value = value if value is not None else {"bp_beta": 1.0, "beta": 100.0}[flag]
            cells = means(seeds, ("sparsity", "xflops", "clean", "white"))
            lines.append(f"| {ALL[row].title} | {value:g} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 4 else []


def sweeps(data, saved=SAVED):
    """Lines of Table 2: accuracy against the radius and the iterations of PGD."""
    path = saved / f"{data}_anp_table2" / "results.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())["rows"]
    first = next(iter(found.values()))
    columns = [f"epsilon {radius:g}" for radius, _ in first["epsilon"]]
    columns += [f"{steps} steps" for steps, _ in first["iterations"]]
    lines = ["| net | images | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in found.items():
        cells = [f"{100 * right / row['n']:.1f}" for _, right in row["epsilon"] + row["iterations"]]
        lines.append(f"| {name} | {row['n']:,} | " + " | ".join(cells) + " |")
    return lines


def budget(data, saved=SAVED):
    """What the cards of Table 1 were trained with, in words, or where they differ."""
    told = {}
    for row in ROWS:
        for card in cards(data, row, saved).get("", {}).values():
            entry = next(iter(card["models"].values()))["settings"]
            told.setdefault((entry["epochs"], entry["train_images"], entry["n"]), []).append(row)
    return [
        f"{epochs} epochs of {f'{images:,} training images' if images else 'all training images'}, "
        f"AutoAttack on the first {n:,}"
        + (f" ({', '.join(dict.fromkeys(rows))})" if len(told) > 1 else "")
        for (epochs, images, n), rows in told.items()
    ]


def section(data, root=ROOT):
    """The part of a results page about ANP-VS and its baselines."""
    saved = root / "saved_models"
    rows = table(data, saved)
    if not rows:
        return []
    lines = [
        "## ANP-VS and its baselines",
        "",
        "Made by `python -m recipes.anp_vs_table1`, a card for each row and seed. The budget:",
        "; ".join(budget(data, saved)) + ".",
        "White box: PGD-40, one start, all test images. Black box: PGD-40 on a net of another",
        "seed, adversarially trained for rows that are, standard for the others. V: last iterates,",
        "all test images, units that were cut never move. Memory, xFLOPs and sparsity by the",
        "formulas of the paper's code (sparsity of units; of weights for ADMM). Masked nets are",
        "shrunk and, for ANP-VS, fine-tuned at the end. AT BNN is judged as the net of its mean",
        "weights; averages over draws, attacked as averages, stand on its card.",
        "",
        *rows,
        "",
    ]
    if found := ablation(data, saved):
        lines += ["### Masks and vulnerability suppression, alone and together", "", *found, ""]
    if found := figure3(data, saved):
        lines += ["### What beta prunes", "", *found, ""]
    if found := sweeps(data, saved):
        lines += ["### Larger radii, more iterations", "", *found, ""]
    return lines


def page(data, root=ROOT):
    """A page of its own for a data set that has no other, None without cards."""
    lines = section(data, root)
    return "\n".join([f"# {TITLES[data]}", "", *lines]) if lines else None
