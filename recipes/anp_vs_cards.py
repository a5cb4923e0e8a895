"""What the cards of `recipes.anp_vs_table1` hold, and what the paper printed in their place."""

import re

import tfrobust as tr
from recipes.anp_vs_rows import ALL, default
from recipes.cells import ROOT, gap, percent, spread

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
# Table 3: clean, white box, V.
PAPER3 = {
    "mnist": {
        "at": (99.14, 88.03, 0.045),
        "at_vs": (99.24, 90.36, 0.022),
        "anp_bbd": (98.64, 90.12, 0.020),
        "anp_vs_bbd": (99.05, 91.31, 0.011),
    },
    "cifar10": {
        "at": (87.50, 49.85, 0.050),
        "at_vs": (87.44, 51.52, 0.024),
        "anp_bbd": (88.36, 55.63, 0.022),
        "anp_vs_bbd": (88.18, 56.21, 0.016),
    },
}
ACCURACIES = {
    "clean": "clean",
    "white": "white box PGD-40",
    "black": "black box",
    "pgd": "PGD-40 x 5",
    "autoattack": "AutoAttack",
}
COSTS = {
    "v_white": "V white",
    "v_black": "V black",
    "memory": "memory, %",
    "xflops": "xFLOPs",
    "sparsity": "sparsity, %",
    "seconds": "processor s",
}
ORDER = ("clean", "white", "black", "v_white", "v_black", "memory", "xflops", "sparsity")
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


def option(more, name, data):
    """The value of an option in such a key, or its default.

    >>> option("_beta8_gain0", "gain", "mnist"), option("", "vib_beta", "cifar10")
    (0.0, 50.0)
    """
    match = re.search(rf"_{name}({NUMBER})", more)
    return float(match[1]) if match else default(data, name)


def others(more, *names):
    """What such a key says of other options.

    >>> others("_beta8_suppress10", "suppress"), others("_suppress10", "suppress")
    ('_beta8', '')
    """
    for name in names:
        more = re.sub(rf"_{name}{NUMBER}", "", more)
    return more


def rates(card):
    """{accuracy: {"count", "n"} or None} of one card."""
    entry = next(iter(card["models"].values()))
    families = entry["families"]
    white = next(
        a["rate"] for s in entry["scores"] for a in s["attacks"] if a["name"].startswith("PGD-")
    )
    return {
        "clean": entry["clean"],
        "white": white,
        "black": entry["transfer"][0]["robust"],
        "pgd": families["PGD"],
        "autoattack": families["AutoAttack"],
    }


def columns(card):
    """The figures of one card: those of the paper's table, AutoAttack, processor seconds."""
    entry = next(iter(card["models"].values()))
    paper = entry["settings"]["paper_columns"]
    return {
        **{name: percent(value) for name, value in rates(card).items()},
        "gap": gap(rates(card)["pgd"], rates(card)["autoattack"]),
        "v_white": entry["vulnerability"]["network"],
        "v_black": entry["vulnerability_black"]["network"],
        "memory": paper["memory"],
        "xflops": paper["xflops"],
        "sparsity": max(paper["sparsity"], 100 * entry["settings"]["zeros"]),
        "seconds": entry["settings"]["seconds"][1],
    }


DIGITS = {
    "clean": 2, "white": 2, "black": 2, "pgd": 1, "autoattack": 1, "v_white": 4, "v_black": 4,
    "gap": 1, "memory": 2, "xflops": 2, "sparsity": 2, "seconds": 0,
}  # fmt: skip


def means(seeds, names):
    """The cells of some cards that differ in the seed alone."""
    each = [columns(card) for card in seeds.values()]
    return [spread([c[name] for c in each], DIGITS[name]) for name in names]
