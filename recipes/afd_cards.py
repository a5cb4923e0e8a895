"""What the cards of `recipes.afd_table1` and the files beside them hold."""

import json

import tfrobust as tr
from recipes.afd_stages import METHODS, NETS
from recipes.cells import ROOT, spread

SAVED = ROOT / "saved_models"
TABLE1 = ("nt", "at", "trades", "match", "afd", "afd_plain", "afd_wgan")


def cards(method, saved=SAVED, net="resnet18"):
    """{seed: (folder, entry, card)} of a method, seeds ascending."""
    found, start = {}, f"{NETS[net]}_{method}"
    for path in saved.glob(f"{start}*/card.json"):
        rest = path.parent.name.removeprefix(start)
        if rest == "" or (rest.startswith("_s") and rest[2:].isdigit()):
            card = tr.report.load(path).to_dict()
            found[int(rest[2:] or 0)] = path.parent, next(iter(card["models"].values())), card
    return dict(sorted(found.items()))


def beside(folder, entry, name):
    """JSON beside a card: {} where it is missing, or was measured on another net than the card's.

    Of curves.json those curves of the card's net.
    """
    path, digest = folder / name, entry.get("settings", {}).get("digest")
    told = json.loads(path.read_text()) if path.exists() else {}
    if name == "curves.json":
        return {attack: curve for attack, curve in told.items() if curve.get("net") == digest}
    return told if told.get("net") == digest else {}


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


def means(rows, digits):
    """Cells of mean and deviation over the seeds, [] for fewer than two.

    Args:
        rows: {seed: values}, None where a value is missing.
        digits: Of all cells.

    >>> means({0: [1.0, None], 1: [3.0, 2.0]}, 1), means({0: [1.0]}, 1)
    (['2.0 +- 1.4', 'not run'], [])
    """
    if len(rows) < 2:
        return []
    return [spread(list(column), digits) for column in zip(*rows.values(), strict=True)]


def titled(method, rows, digits, cells=None):
    """Lines of a table: one for each seed, then their mean.

    Args:
        rows: {seed: values}.
        digits: Of the values.
        cells: {seed: texts} in place of the values, None: the values.
    """
    title = METHODS[method].title
    shown = cells or {
        seed: ["not run" if v is None else f"{v:.{digits}f}" for v in values]
        for seed, values in rows.items()
    }
    lines = [f"| {title}, seed {seed} | " + " | ".join(told) + " |" for seed, told in shown.items()]
    if mean := means(rows, digits):
        lines.append(f"| **{title}, {len(rows)} seeds** | " + " | ".join(mean) + " |")
    return lines
