"""docs/results/afd.md, made from the cards of `recipes.afd_table1` and what lies beside them."""

import numpy as np

import tfrobust as tr
from recipes import cells
from recipes import results_afd_features as features
from recipes.afd_cards import SAVED, TABLE1, attacks_of, cards, means, titled
from recipes.afd_stages import METHODS, NETS
from recipes.cells import ROOT, average, flagged, interval, percent, spread

BAR = 2.0  # points under PGD that AFD may stay behind AT
TABLE_A6 = {"afd_fc1_pd": 85.96, "afd_fc3": 90.73, "afd": 97.03, "afd_fc4_pd": None}
COLUMNS = ("clean", "PGD-40 x 5", "FGSM", "PGD BB", "FGSM BB", "AutoAttack")
plots = features.plots


def figures_of(entry):
    """[per cent of `COLUMNS`, PGD - AutoAttack in points]."""
    rates = attacks_of(entry)
    values = [percent(rate) for rate in rates.values()]
    return [*values, cells.gap(rates["PGD-40 x 5"], rates["AutoAttack"])]


def row(entry):
    """Texts of a row of Table 1: rates with intervals and n, the gap with its flag."""
    told = [interval(rate) for rate in attacks_of(entry).values()]
    return [*told, flagged(figures_of(entry)[-1])]


def table1(saved=SAVED, net="resnet18"):
    """Ours, one row a seed and their mean, and the paper's, of ResNet-18; [] without cards."""
    lines = []
    for method in TABLE1:
        entries = {seed: entry for seed, (_, entry, _) in cards(method, saved, net).items()}
        rows = {seed: figures_of(entry) for seed, entry in entries.items()}
        lines += titled(method, rows, 2, {seed: row(entry) for seed, entry in entries.items()})
        if entries and METHODS[method].paper and net == "resnet18":
            told = " | ".join([*METHODS[method].paper, "-"])
            lines.append(f"| {METHODS[method].title}, {METHODS[method].source} | {told} |")
    head = ["| | " + " | ".join([*COLUMNS, "PGD - AutoAttack"]) + " |", "|---" * 8 + "|"]
    return head + lines if lines else []


def verdict(saved=SAVED, net="resnet18"):
    """AFD beside AT in points, means over seeds: under PGD with its bar, and under AutoAttack."""
    at, afd = (
        {seed: figures_of(entry) for seed, (_, entry, _) in cards(method, saved, net).items()}
        for method in ("at", "afd")
    )
    lines = []
    for name in ("PGD-40 x 5", "AutoAttack"):
        place = COLUMNS.index(name)
        gap = features.gap(at, afd, place)
        if gap is None:
            continue
        told = ""
        if name != "AutoAttack":
            met = "at most" if gap >= -BAR else "**more than**"
            told = f": {met} {BAR:g} points below AT"
        both = " and ".join(
            f"{average(row[place] for row in rows.values()):.2f} (seeds: {len(rows)})"
            for rows in (afd, at)
        )
        lines.append(f"- AFD - AT under {name}: {gap:+.2f} points, {both}{told}.")
    if (gap := average(row[-1] for row in afd.values())) is not None:
        lines.append(f"- PGD - AutoAttack of AFD, mean over seeds: {flagged(gap)}.")
    return lines


def doubts(saved=SAVED, net="resnet18"):
    """What the evaluation doubts about each net, a line a card; [] where it doubts nothing."""
    return [
        line
        for method in METHODS
        for seed, (_, entry, _) in cards(method, saved, net).items()
        for line in cells.doubts(f"{METHODS[method].title}, seed {seed}", entry)
    ]


def training(saved=SAVED, net="resnet18"):
    """How each method was trained, a line for each setting; [] without cards."""
    lines = []
    for method in METHODS:
        groups = {}
        for _, entry, _ in cards(method, saved, net).values():
            told = entry["settings"]
            if "width" not in told:  # nobody trained it
                continue
            steps = told.get("steps")
            attack = f"PGD-{steps}, steps of 0.075" if steps else "none"
            attack += " on KL" * (method == "trades")
            setting = f"{told['width']:g} | {told['epochs']} | {told['parameters']:,} | {attack}"
            groups.setdefault(setting, []).append(told["seconds"])
        for setting, seconds in groups.items():
            cost = " | ".join(spread(list(column), 0) for column in zip(*seconds, strict=True))
            lines.append(f"| {METHODS[method].title} | {len(seconds)} | {setting} | {cost} |")
    head = [
        "| | seeds | width | epochs | parameters | attack in training | seconds | processor s |",
        "|---" * 8 + "|",
    ]
    return head + lines if lines else []


def discriminators(saved=SAVED, net="resnet18"):
    """Table A6; [] where only the default was trained."""
    lines, others = [], 0
    for method, paper in TABLE_A6.items():
        entries = {seed: entry for seed, (_, entry, _) in cards(method, saved, net).items()}
        others += bool(entries) and method != "afd"
        title = METHODS[method].title if method != "afd" else "AFD, FC3-PD"
        told = "-" if paper is None else f"{paper:.2f}"
        rates = {seed: attacks_of(entry) for seed, entry in entries.items()}
        names = ("PGD-40 x 5", "AutoAttack")
        for seed, found in rates.items():
            shown = " | ".join(interval(found[name]) for name in names)
            lines.append(f"| {title}, seed {seed} | {shown} | {told} |")
        values = {seed: [percent(found[name]) for name in names] for seed, found in rates.items()}
        if mean := means(values, 2):
            lines.append(f"| **{title}, {len(values)} seeds** | {' | '.join(mean)} | {told} |")
    head = ["| discriminator | PGD-40 x 5 | AutoAttack | paper, PGD |", "|---|---|---|---|"]
    return head + lines if others else []


def traces(saved=SAVED, net="resnet18"):
    """How the game went: accuracy of the discriminator, distance of the features, and collapse."""
    lines = []
    for method in METHODS:
        for seed, (_, entry, _) in cards(method, saved, net).items():
            if "trace" not in entry:
                continue
            trace, found = tr.report.entry.unpacked(entry["trace"]), entry["settings"]["collapse"]
            told = trace["values"][:, trace["names"].index("discriminator_accuracy")]
            causes = ", ".join(f"{f['cause']} at step {f['step']}" for f in found) or "no collapse"
            shown = [
                f"{value:.3f} ({2 * abs(2 * value - 1):.2f})"
                for value in (told[0], np.median(told), told[-1])
            ]
            lines.append(
                f"- {METHODS[method].title}, seed {seed}: accuracy {shown[0]} at first, "
                f"{shown[1]} in the median, {shown[2]} at the end; {causes}."
            )
    return lines


def commands(saved=SAVED):
    """What made the cards, and what was measured on their nets afterwards."""
    known = [found for n in NETS for m in METHODS for found in cards(m, saved, n).values()]
    lines = [card["command"] for _, _, card in known]
    lines += [command for _, entry, _ in known for command in entry.get("judged_by", ())]
    return [f"- `{line}`" for line in dict.fromkeys(lines)]


def section(title, *parts):
    """A heading and its parts with empty lines between, [] where there is nothing to show."""
    parts = [part for part in parts if part]
    lines = [line for part in parts for line in ["", *part]]
    return ["", f"## {title}", *lines] if parts else []


GAME = (
    "Accuracy a of the discriminator on training batches, in brackets 2 |2 a - 1|, an estimate of "
    "the H-delta-H distance of clean and attacked features."
)


def page(root=ROOT):
    """docs/results/afd.md, or None without cards."""
    saved = root / "saved_models"
    if not (made := commands(saved)):
        return None
    game, lenet = traces(saved), traces(saved, "lenet5")
    picture = ["![relative shift of the representation over epsilon](afd_sensitivity.svg)"]
    lines = [
        "# Adversarial feature desensitization, MNIST, Linf, epsilon 0.3",
        "",
        "Made by `make results` from the cards in `saved_models/`. All methods take the same",
        "net (AFD's divides its features by their length, but for the row with plain ones),",
        "epochs, fewer than the paper's, and attack in training, weaker than the paper's (100",
        "epochs, PGD-40, full width), whose rows stand beside ours. AFD's rates on the",
        "ResNet-18 are the best of a few under PGD on held-out training images (the guide tells",
        "which, and what Square made of them); those of other methods and of LeNet-5 are not",
        "tuned. Per cent with 95 % intervals (Wilson) and n; over seeds mean +- standard",
        "deviation. BB: crafted on a naturally trained net of another seed. The paper's",
        "AutoAttack is of 100 images. A gap between PGD and AutoAttack beyond 5 points is a",
        "symptom of masked gradients; see [the guide](../afd.md).",
        *section("Table 1", table1(saved), verdict(saved), doubts(saved), training(saved)),
        *section("Discriminators (Table A6)", discriminators(saved)),
        *section(
            "Areas under accuracy over epsilon (Table 2)",
            features.areas(saved),
            features.notes(saved),
        ),
        *section(
            "Representations (Table A5)",
            features.representations(saved),
            features.remarks(saved),
            picture if plots(root) else [],
        ),
        *section("Does AFD differ from AT as in the paper?", features.signs(saved)),
        *section(
            "Angles to the perturbation of PGD (Table A7; the paper's values are lost), radians",
            features.angles(saved),
        ),
        *section("The game", game and [GAME], game),
        *section(
            "LeNet-5, which the paper calls unstable",
            table1(saved, "lenet5"),
            doubts(saved, "lenet5"),
            training(saved, "lenet5"),
            lenet,
        ),
        *section("Commands", made),
        "",
    ]
    return "\n".join(lines)
