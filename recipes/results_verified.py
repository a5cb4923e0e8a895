"""docs/results/verified.md and its plot, made from the cards of certified training and pruning.

Every figure comes from a card, or from the curve.json or unlearning.json beside it.
"""

import json
import re

import tfrobust as tr
from recipes import figures
from recipes.cells import ROOT, rate

METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "mixtrain": "MixTrain"}
MODES = {"none": "None", "nat": "Nat", "adv": "Adv", "verif": "Verif"}
INKS = {"none": "#8c8c8c", "nat": "#d1662b", "adv": "#20639b", "verif": "#3c8c5a"}
KINDS = {"weights": "single weights", "filters": "whole filters"}
START = "before pruning"
STYLES = {"verified": "-", "attacked": "--"}


def certified(root=ROOT):
    """{folder name: card} of the nets that certified training made."""
    found = [path.parent for path in (root / "saved_models").glob("*_certified_*/card.json")]
    folders = [folder for folder in found if "_pruned_" not in folder.name]
    folders.sort(key=lambda folder: re.sub(r"\d+", lambda m: m[0].zfill(4), folder.name))
    return {folder.name: tr.report.load(folder).to_dict() for folder in folders}


def pruned(start, kind, root=ROOT):
    """{fine-tuning: (folder, card)} of a start's pruned nets; "verif_k1" is one of them."""
    found = {}
    for path in sorted((root / "saved_models").glob(f"{start}_pruned_{kind}_*/card.json")):
        mode = path.parent.name.removeprefix(f"{start}_pruned_{kind}_")
        if mode.split("_")[0] in MODES:
            found[mode] = (path.parent, tr.report.load(path.parent).to_dict())
    order = list(MODES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0].split("_")[0])))


def title(mode):
    """A column's head.

    >>> title("verif_k1")
    'Verif, k = 1'
    """
    name, _, few = mode.partition("_k")
    return MODES[name] + (f", k = {few}" if few else "")


def three(entry):
    """clean / attacked / verified (by intervals alone), in per cent of the same images."""
    proof = entry["certificate"][0]
    values = [proof[name]["accuracy"] for name in ("clean", "attacked", "verified")]
    return " / ".join(f"{100 * v:.1f}" for v in values) + f" ({intervals(proof):.1f})"


def first(card):
    return next(iter(card["models"].values()))


def nets(root=ROOT):
    """The table of certified training, MixTrain apart from it where it has its own."""
    lines = [
        "| net | parameters | method | epsilon | trained to | epochs | minutes | processor s "
        "| of an epoch | clean | under attack | verified | by intervals alone "
        "| first n images: clean / AutoAttack |",
        "|" + "---|" * 14,
    ]
    for card in certified(root).values():
        entry = first(card)
        told, proof = entry["settings"], entry["certificate"][0]
        method = METHODS[told["method"]]
        if told["method"] == "mixtrain":
            method += f", k = {told['k']}, alpha = {told['alpha']:g}, {told['bound']}"
        wall, seconds = told["seconds"]
        wide = "" if told["width"] == 1 else f" x {told['width']:g}"
        lines.append(
            f"| {told['net']}{wide} "
            f"| {entry['footprint']['parameters']:,} | {method} | {told['epsilon']:g} "
            f"| {told['grow'] * told['epsilon']:g} | {told['epochs']} | {wall / 60:.0f} "
            f"| {seconds:.0f} | {seconds / told['epochs']:.1f} | {rate(proof['clean'])} "
            f"| {rate(proof['attacked'])} | {rate(proof['verified'])} | {intervals(proof):.1f} "
            f"| {suite(entry)} |"
        )
    return lines


def intervals(proof):
    """Per cent of the images that intervals alone verify."""
    return 100 * next(s["verified"] for s in proof["stages"] if s["name"] == "ibp") / proof["n"]


def suite(entry):
    """Clean and under AutoAttack, of the same images."""
    for scores in entry["scores"]:
        if auto := scores["families"].get("AutoAttack"):
            return f"{auto['n']:,}: {rate(scores['clean'])} / {rate(auto)}"
    return "not run"


def short(root=ROOT):
    """README's table of certified nets, with an empty line before it; no line without cards."""
    lines = []
    for name, card in certified(root).items():
        entry = first(card)
        proof, told = entry["certificate"][0], entry["settings"]
        if told["method"] == "mixtrain":
            continue
        lines.append(
            f"| [{told['net']}](saved_models/{name}/card.json) | {told['epsilon']:g} "
            f"| {rate(proof['clean'])} | {rate(proof['attacked'])} | {rate(proof['verified'])} "
            f"| {entry['footprint']['parameters']:,} | `{card['command']}` |"
        )
    head = "| MNIST, certified | Linf | clean | under PGD-40 | verified | parameters | made by |"
    return ["", head, "|---" * 7 + "|", *lines] if lines else []


def grid(start, kind, root=ROOT):
    """Ratios down, fine-tuning across, and what Verif keeps of the start."""
    runs = pruned(start, kind, root)
    entries = {mode: card["models"] for mode, (_, card) in runs.items()}
    names = list(dict.fromkeys(n for e in entries.values() for n in e if n != START))
    names.sort(key=lambda name: float(name.rstrip("%")))
    if not names:
        return []
    lines = [
        "| pruned | " + " | ".join(map(title, entries)) + " | Verif keeps, of the start |",
        "|---" * (len(entries) + 2) + "|",
    ]
    for name in names:
        row = [three(models[name]) if name in models else "" for models in entries.values()]
        kept = ""
        if name in entries.get("verif", {}):
            now, then = (entries["verif"][n]["certificate"][0] for n in (name, START))
            kept = " / ".join(
                f"{100 * now[k]['accuracy'] / then[k]['accuracy']:.1f}" if then[k]["count"] else "-"
                for k in ("clean", "attacked", "verified")
            )
            kept += " %"
        lines.append(f"| {name} | " + " | ".join([*row, kept]) + " |")
    return lines


def kept(start, kind, root=ROOT):
    """What each fine-tuning keeps of the start's certificates, and how far it is behind Verif."""
    shares = {}
    for mode, (_, card) in pruned(start, kind, root).items():
        proofs = {name: entry["certificate"][0] for name, entry in card["models"].items()}
        full = proofs.pop(START)["verified"]["count"]
        shares[mode] = {name: 100 * p["verified"]["count"] / full for name, p in proofs.items()}
    lines = ["Of the start's verified images each fine-tuning keeps, in per cent:", ""]
    for mode, own in shares.items():
        told = ", ".join(f"{share:.1f} at {name}" for name, share in own.items())
        if mode in ("nat", "adv") and "verif" in shares:
            behind = [shares["verif"][name] - share for name, share in own.items()]
            least, most = f"{min(behind):.1f}", f"{max(behind):.1f}"
            told += f"; {least if least == most else f'{least} to {most}'} behind Verif"
        lines.append(f"- {title(mode)}: {told}")
    return lines


def caption(start, root=ROOT):
    """What the curves show, which are not the nets of the tables."""
    folders = [f for kind in KINDS for f, _ in pruned(start, kind, root).values()]
    files = [f / "curve.json" for f in folders if (f / "curve.json").exists()]
    both = all("by_ibp" in json.loads(file.read_text())[0] for file in files)
    by = "intervals, then CROWN-IBP" if both else "intervals alone"
    return [
        f"The curves: the first 500 test images, verified by {by}, under PGD-20 from one start,",
        "on the ladder, before the last fine-tuning.",
    ]


def unlearned(start, root=ROOT):
    """Lines on natural training without pruning, and on the conflict of gradients."""
    path = root / "saved_models" / f"{start}_pruned_weights_nat" / "unlearning.json"
    if not path.exists():
        return []
    told = json.loads(path.read_text())
    conflict, both = told["conflict"], "by_ibp" in told["rows"][0]
    by = "intervals, then CROWN-IBP," if both else "intervals alone"
    loss = "its training" if both else "intervals at epsilon"
    cells = [f"{100 * row['verified']:.1f}" for row in told["rows"]]
    return [
        f"Natural training without pruning (Figure 3 of the paper), first {told['images']:,} test",
        f"images, verified by {by} after each epoch:",
        "",
        "| epoch | " + " | ".join(str(row["epoch"]) for row in told["rows"]) + " |",
        "|---" * (len(cells) + 1) + "|",
        "| verified | " + " | ".join(cells) + " |",
        "| clean | " + " | ".join(f"{100 * row['clean']:.1f}" for row in told["rows"]) + " |",
        "",
        f"At the start the gradients of the clean loss and of the verified loss of {loss} have",
        f"opposite signs in {100 * conflict['share']:.1f} % of the weights, cosine",
        f"{conflict['cosine']:.3f} (Figure 4; the paper: 52 % on average; random signs give 50 %).",
    ]


def page(root=ROOT):
    """docs/results/verified.md."""
    lines = [
        "# Verified networks",
        "",
        "Made by `make results` from the cards in `saved_models/*_certified_*`; each names the",
        "command that makes it (`python -m recipes.certified_training`,",
        "`python -m recipes.verifiable_pruning`). *Verified* are test images whose answer no image",
        "in the Linf ball can change, proved by interval bounds, then CROWN-IBP on what is left;",
        "*under attack* are those that PGD-40 on the margin does not break. All 10,000 test",
        "images, in per cent; image by image verified <= under attack <= clean. The proof is of",
        "the float32 Keras model, not of a quantized export.",
    ]
    found = certified(root)
    if not found:
        return "\n".join([*lines, "", "No run has been judged yet.", ""])
    lines += ["", "## Certified training", "", *nets(root)]
    told = {
        first(card)["note"]: METHODS[first(card)["settings"]["method"]] for card in found.values()
    }
    for note in filter(None, told):
        lines += ["", f"{told[note]}: {note}"]
    for start, card in found.items():
        if not any(pruned(start, kind, root) for kind in KINDS):
            continue
        told = first(card)["settings"]
        lines += [
            "",
            f"## Pruned: {told['net']}, epsilon {told['epsilon']:g}, {METHODS[told['method']]}",
            "",
            "Cells: clean / under attack / verified (by intervals alone). None: no fine-tuning;",
            "Nat: cross-entropy on clean images; Adv: PGD adversarial training; Verif: the",
            f"training of the start, at its full radius. The start: {three(first(card))}.",
            "",
            f"![verified accuracy along the ladder](verified_{start}.svg)",
            "",
            *caption(start, root),
        ]
        for kind, name in KINDS.items():
            if table := grid(start, kind, root):
                lines += ["", f"### {name[0].upper()}{name[1:]}", "", *table]
                lines += ["", *kept(start, kind, root)]
        if table := unlearned(start, root):
            lines += ["", "### How fast certificates are unlearned", "", *table]
    return "\n".join([*lines, ""])


def plot(start, root=ROOT):
    """SVG text: verified (line) and attacked (dashes) accuracy against the share pruned."""
    panels = {}
    for kind, title in KINDS.items():
        runs = {
            mode: folder / "curve.json" for mode, (folder, _) in pruned(start, kind, root).items()
        }
        if runs:
            panels[title] = {m: json.loads(f.read_text()) for m, f in runs.items() if f.exists()}
    return figures.ladder(panels, STYLES, MODES, INKS, "%: verified (line), under attack (dashes)")


def plots(root=ROOT):
    """{path below `root`: SVG text} of the starts that were pruned."""
    return {
        f"docs/results/verified_{start}.svg": plot(start, root)
        for start in certified(root)
        if any(pruned(start, kind, root) for kind in KINDS)
    }
