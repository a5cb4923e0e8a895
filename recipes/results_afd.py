"""docs/results/afd.md, made from the cards of `recipes.afd_table1` and what lies beside them."""

import json

import numpy as np

import tfrobust as tr
from recipes.afd_stages import METHODS, NETS
from recipes.cells import ROOT, rate

GAP = 0.05  # PGD minus AutoAttack beyond which gradients are suspected of being masked
TABLE1 = ("nt", "at", "trades", "match", "afd", "afd_wgan")
TABLE_A6 = {"afd_fc1_pd": 85.96, "afd_fc3": 90.73, "afd": 97.03, "afd_fc4_pd": None}
AREAS = ("PGD Linf", "PGD L2", "PGD L1", "FGSM", "MIM", "DDN", "DeepFool", "C&W")
PAPER_AREAS = {
    "nt": (0.16, 0.12, 0.14, 0.29, 0.16, 0.18, 0.23, 0.75),
    "at": (0.67, 0.50, 0.44, 0.76, 0.84, 0.72, 0.74, 0.96),
    "trades": (0.62, 0.47, 0.41, 0.72, 0.80, 0.77, 0.73, 0.96),
    "afd": (0.83, 0.84, 0.70, 0.84, 0.84, 0.85, 0.83, 0.96),
}
PAPER_DIMENSIONS = {"nt": (64, 24), "at": (64, 43), "trades": (64, 40), "afd": (18, 6)}


def cards(method, root=ROOT, net="resnet18"):
    """{seed: (folder, entry, card)} of a method, seeds ascending."""
    found, start = {}, f"{NETS[net]}_{method}"
    for path in (root / "saved_models").glob(f"{start}*/card.json"):
        rest = path.parent.name.removeprefix(start)
        if rest == "" or (rest.startswith("_s") and rest[2:].isdigit()):
            card = tr.report.load(path).to_dict()
            found[int(rest[2:] or 0)] = path.parent, next(iter(card["models"].values())), card
    return dict(sorted(found.items()))


def attacks_of(entry):
    """{column: rate} of a card, None where an attack was not run."""
    named = {a["name"]: a["rate"] for scores in entry["scores"] for a in scores["attacks"]}

    def first(*words):
        return next((r for name, r in named.items() if all(w in name for w in words)), None)

    families = entry["families"]
    return {
        "clean": entry["clean"],
        "PGD-40 x 5": families.get("PGD"),
        "FGSM": families.get("FGSM"),
        "PGD BB": first("transfer", "PGD"),
        "FGSM BB": first("transfer", "FGSM"),
        "AutoAttack": families.get("AutoAttack"),
    }


def line(title, entry):
    """A row of Table 1 with the gap between PGD and AutoAttack in points."""
    rates = attacks_of(entry)
    cells = [interval(value) for value in rates.values()]
    pgd, suite = rates["PGD-40 x 5"], rates["AutoAttack"]
    gap = "not run"
    if pgd and suite:
        value = pgd["count"] / pgd["n"] - suite["count"] / suite["n"]
        gap = f"{100 * value:.1f}" + (" **masked?**" if value > GAP else "")
    return f"| {title} | " + " | ".join([*cells, gap]) + " |"


def interval(value):
    """Per cent with its 95 % interval."""
    if value is None:
        return "not run"
    low, high = tr.evaluate.wilson(value["count"], value["n"])
    return f"{rate(value)} ({100 * low:.1f} to {100 * high:.1f})"


def table1(root=ROOT, net="resnet18"):
    """Ours, one row a seed, and the paper's, of ResNet-18."""
    lines = [
        "| | clean | PGD-40 x 5 | FGSM | PGD BB | FGSM BB | AutoAttack | PGD - AutoAttack |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in TABLE1:
        for seed, (_, entry, _) in cards(method, root, net).items():
            lines.append(line(f"{METHODS[method].title}, seed {seed}", entry))
        if any(METHODS[method].paper) and net == "resnet18":
            paper = ["-" if v is None else f"{v:.2f}" for v in METHODS[method].paper]
            lines.append(f"| {METHODS[method].title}, paper | " + " | ".join(paper) + " | - | - |")
    return lines


def discriminators(root=ROOT, net="resnet18"):
    """Table A6."""
    lines = ["| discriminator | PGD-40 x 5 | AutoAttack | paper, PGD |", "|---|---|---|---|"]
    for method, paper in TABLE_A6.items():
        title = METHODS[method].title if method != "afd" else "AFD, FC3-PD"
        told = "-" if paper is None else f"{paper:.2f}"
        for seed, (_, entry, _) in cards(method, root, net).items():
            rates = attacks_of(entry)
            cells = [interval(rates[name]) for name in ("PGD-40 x 5", "AutoAttack")]
            lines.append(f"| {title}, seed {seed} | " + " | ".join(cells) + f" | {told} |")
    return lines


def beside(folder, entry, name):
    """JSON beside a card: {} where it is missing, or was measured on another net than the card's.

    Of curves.json those curves of the card's net.
    """
    path, digest = folder / name, entry.get("settings", {}).get("digest")
    told = json.loads(path.read_text()) if path.exists() else {}
    if name == "curves.json":
        return {attack: curve for attack, curve in told.items() if curve.get("net") == digest}
    return told if told.get("net") == digest else {}


def areas(root=ROOT, net="resnet18"):
    """Table 2: areas under accuracy over epsilon."""
    lines = ["| | " + " | ".join(AREAS) + " |", "|---" * (len(AREAS) + 1) + "|"]
    for method in TABLE1:
        for seed, (folder, entry, _) in cards(method, root, net).items():
            curves = beside(folder, entry, "curves.json")
            if curves:
                told = [f"{curves[a]['auc']:.3f}" if a in curves else "not run" for a in AREAS]
                lines.append(f"| {METHODS[method].title}, seed {seed} | " + " | ".join(told) + " |")
        if method in PAPER_AREAS:
            told = " | ".join(f"{v:.2f}" for v in PAPER_AREAS[method])
            lines.append(f"| {METHODS[method].title}, paper | {told} |")
    return lines


def representations(root=ROOT, net="resnet18"):
    """Table A5 and the sensitivity of the representation."""
    lines = [
        "| | units used | principal components | paper | median shift | its deviation |",
        "|---|---|---|---|---|---|",
    ]
    for method in TABLE1:
        for seed, (folder, entry, _) in cards(method, root, net).items():
            told = beside(folder, entry, "features.json")
            if not told:
                continue
            d, s = told["dimensions"], told["sensitivity"]["0.3"]
            paper = "{} of 64 / {}".format(*PAPER_DIMENSIONS.get(method, ("-", "-")))
            lines.append(
                f"| {METHODS[method].title}, seed {seed} | {d['units']} of {d['features']} "
                f"| {d['dimensions']} | {paper} | {s['median']:.3f} | {s['deviation']:.3f} |"
            )
    return lines


def angles(root=ROOT, net="resnet18"):
    """Table A7: mean angle in the representation to PGD's perturbation, radians."""
    lines = ["| | DDN | DeepFool | C&W |", "|---|---|---|---|"]
    for method in TABLE1:
        for seed, (_, entry, _) in cards(method, root, net).items():
            found = entry.get("angles")
            if found:
                told = [found[name]["mean"] for name in ("DDN", "DeepFool", "C&W")]
                cells = " | ".join("-" if value is None else f"{value:.3f}" for value in told)
                lines.append(f"| {METHODS[method].title}, seed {seed} | {cells} |")
    return lines


def plots(root=ROOT):
    """{path below `root`: SVG text} of the sensitivity over epsilon, from cards that have it."""
    import io

    from matplotlib import rc_context

    found = [
        tr.report.load(folder)
        for method in TABLE1
        for folder, entry, _ in cards(method, root).values()
        if "sensitivity" in entry
    ]
    if not found:
        return {}
    figure, out = tr.report.plot_sensitivity(found), io.StringIO()
    with rc_context({"svg.hashsalt": "tfrobust", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
    return {"docs/results/afd_sensitivity.svg": text}


def traces(root=ROOT, net="resnet18"):
    """How the game went: accuracy of the discriminator, and collapse."""
    lines = []
    for method in METHODS:
        for seed, (_, entry, _) in cards(method, root, net).items():
            if "trace" not in entry:
                continue
            trace, found = tr.report.entry.unpacked(entry["trace"]), entry["settings"]["collapse"]
            told = trace["values"][:, trace["names"].index("discriminator_accuracy")]
            causes = ", ".join(f"{f['cause']} at step {f['step']}" for f in found) or "no collapse"
            lines.append(
                f"- {METHODS[method].title}, seed {seed}: accuracy {told[0]:.3f} at first, "
                f"{np.median(told):.3f} in the middle, {told[-1]:.3f} at the end; {causes}."
            )
    return lines


def page(root=ROOT):
    """docs/results/afd.md, or None without cards."""
    known = [c for n in NETS for m in METHODS for _, _, c in cards(m, root, n).values()]
    if not known:
        return None
    commands = [f"- `{card['command']}`" for card in known]
    return "\n".join([
        "# Adversarial feature desensitization, MNIST, Linf, epsilon 0.3",
        "",
        "Made by `make results` from the cards in `saved_models/`. A narrow ResNet-18, the same",
        "for all methods, trained for far fewer epochs and on weaker attacks than in the paper,",
        "whose rows (100 epochs, PGD-40, full width) stand beside ours. Per cent with 95 %",
        "intervals (Wilson). BB: crafted on a naturally trained net of another seed. A gap between",
        "PGD and AutoAttack beyond 5 points is a symptom of masked gradients; see",
        "[the guide](../afd.md).",
        "",
        "## Table 1", "", *table1(root),
        "", "## Discriminators (Table A6)", "", *discriminators(root),
        "", "## Areas under accuracy over epsilon (Table 2)", "", *areas(root),
        "", "## Representations (Table A5)", "", *representations(root),
        *(["", "![relative shift of the representation over epsilon](afd_sensitivity.svg)"]
          if plots(root) else []),
        "", "## Angles to the perturbation of PGD (Table A7; the paper's values are lost)", "",
        *angles(root),
        "", "## The game", "", *traces(root),
        "", "## LeNet-5, which the paper calls unstable", "", *table1(root, "lenet5"),
        "", *traces(root, "lenet5"),
        "", "## Commands", "", *commands, "",
    ])  # fmt: skip
