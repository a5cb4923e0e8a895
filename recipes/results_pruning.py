"""docs/results/pruning.md and its plots, made from the cards of `recipes.robust_pruning`.

Every figure comes from a card or from the curve.json beside it; what has no card is left out.
"""

import json

import tfrobust as tr
from recipes import figures
from recipes.cells import ROOT, gap, mark, rate
from recipes.command import refuse_unlike

DATA = {
    "mnist": "MNIST, Linf 0.3, LeNet-5-Caffe",
    "mnist_natural": "MNIST from a naturally trained start",
    "cifar10": "CIFAR-10, Linf 8/255, CIFAR-large at 0.35 of its width",
}
KINDS = {"weights": "single weights", "filters": "whole filters"}
MODES = {"none": "None", "nat": "Nat", "robust": "Robust", "trades": "TRADES"}
INKS = {"none": "#8c8c8c", "nat": "#d1662b", "robust": "#20639b", "trades": "#3c8c5a"}
START = "before pruning"
SAME = ("start", "n", "smoke")  # in all columns
SEEDS = ("scope", "normalise", "rate", "settle", "epochs", "peak", "distill")  # of all seeds


def cards(data, kind, mode, root=ROOT):
    """{seed: (folder, card)} of the runs of one cell, seeds ascending."""
    found = {}
    for path in sorted((root / "saved_models").glob(f"{data}_pruned_{kind}_{mode}*/card.json")):
        rest = path.parent.name.removeprefix(f"{data}_pruned_{kind}_{mode}")
        if rest == "" or (rest.startswith("_s") and rest[2:].isdigit()):
            found[int(rest[2:] or 0) if rest else 0] = path.parent
    return {s: (found[s], tr.report.load(found[s]).to_dict()) for s in sorted(found)}


def attack(entry, name):
    """The rate under the family `name`, or None."""
    return entry["families"].get(name)


def before(data, root=ROOT):
    """(clean, PGD, AutoAttack) rates of the start, from the first card that has them."""
    for kind in KINDS:
        for mode in MODES:
            for _, card in cards(data, kind, mode, root).values():
                entry = card["models"][START]
                return entry["clean"], attack(entry, "PGD"), attack(entry, "AutoAttack")
    return None


def cells(entry):
    """clean / PGD / AutoAttack."""
    values = entry["clean"], attack(entry, "PGD"), attack(entry, "AutoAttack")
    return " / ".join(rate(value, 1) for value in values)


def ranking(data, kind, root=ROOT):
    """How the runs of a table ranked what they pruned and what they trained, from their cards."""
    said = {}
    for mode, title in MODES.items():
        if found := cards(data, kind, mode, root).get(0):
            models = [e for n, e in found[1]["models"].items() if n != START]
            told = models[0]["settings"]
            what = "l1 norm" if kind == "filters" else "magnitude"
            what += " over fan-in" if told["normalise"] == "fan_in" else ""
            where = "within each layer" if told["scope"] == "layer" else "across all layers"
            spent = ""
            if mode != "none":
                rungs = max(e["settings"]["ladder_epochs"] for e in models)
                spent = (
                    f"; a ladder of {rungs:g} epochs at learning rate {told['rate']:g}, then "
                    f"{told['settle']} epochs at each ratio"
                )
            said.setdefault(f"{what}, {where}{spent}", []).append(title)
    return [f"Ranked by {text} ({', '.join(titles)})." for text, titles in said.items()]


def grid(data, kind, root=ROOT):
    """Ratios down, fine-tuning across; in the last column what Robust keeps of the start."""
    found = {m: c[0][1] for m in MODES if 0 in (c := cards(data, kind, m, root))}
    refuse_unlike(found, SAME)
    entries = {mode: card["models"] for mode, card in found.items()}
    names = list(dict.fromkeys(n for e in entries.values() for n in e if n != START))
    names.sort(key=lambda name: float(name.rstrip("%")))
    if not names:
        return []
    lines = [
        "| pruned | " + " | ".join(MODES[m] for m in entries) + " | Robust keeps, of the start |",
        "|---" * (len(entries) + 2) + "|",
    ]
    for name in names:
        row = [cells(e[name]) if name in e else "" for e in entries.values()]
        kept = ""
        if name in entries.get("robust", {}):
            models = entries["robust"]
            shares = [
                _share(models[name][k], models[START][k])
                if k == "clean"
                else _share(attack(models[name], k), attack(models[START], k))
                for k in ("clean", "PGD", "AutoAttack")
            ]
            kept = " / ".join(shares) + " %"
        lines.append(f"| {name} | " + " | ".join([*row, kept]) + " |")
    return lines


def suspicious(data, kind, root=ROOT):
    """A sentence on nets that Square breaks where gradients did not: PGD flatters these."""
    found = cards(data, kind, "robust", root).get(0)
    if not found:
        return []
    told = []
    for name, entry in found[1]["models"].items():
        codes = {flag["code"] for flag in entry["flags"]}
        suite = _parts(entry, "AutoAttack")
        if "black_box_stronger" in codes and suite:
            left = {part: rate["count"] for part, rate in suite["parts"]}
            told.append(f"{name} {left['FAB-T']} / {left['Square']}")
    if not told:
        return []
    return [
        "Square, which needs no gradient, still breaks images of the Robust nets that the gradient",
        "attacks leave (flag `black_box_stronger`): judge them by AutoAttack, not by PGD. Right",
        f"after FAB-T / after Square: {', '.join(told)}.",
    ]


def _parts(entry, name):
    attacks = (attack for scores in entry["scores"] for attack in scores["attacks"])
    return next((attack for attack in attacks if attack["name"] == name), None)


def _share(now, then):
    if now is None or then is None:
        return "not run"
    if not then["count"]:
        return "of none"
    return f"{100 * now['count'] / now['n'] / (then['count'] / then['n']):.1f}"


def sizes(data, kind, root=ROOT):
    """What the robust run with seed 0 left: zeros, parameters, FLOPs, files, latency."""
    found = cards(data, kind, "robust", root).get(0)
    if not found:
        return []
    models = found[1]["models"]
    full = models[START]["footprint"]
    lines = [
        "| pruned | kernel entries that are zero | units | parameters | FLOPs | fewer FLOPs "
        "| files: bytes (gzip) | ms: start / float32 / int8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in models.items():
        f, ms = entry["footprint"], entry["latency_ms"]
        zeros = entry["settings"].get("zeros")
        times = " / ".join(f"{v:.3f}" for v in ms.values()) if ms else ""
        listed = ", ".join(_file(file) for file in entry["files"])
        units = "-".join(str(row["units"]) for row in f["rows"] if row["units"])
        lines.append(
            f"| {name} | {'' if zeros is None else f'{100 * zeros:.1f} %'} | {units} "
            f"| {f['parameters']:,} | {f['flops']:,} | {full['flops'] / f['flops']:.2f} x "
            f"| {listed} | {times} |"
        )
    return lines


def _file(file):
    kind = file["format"] if file["format"] == "keras" else file.get("quantize") or "float32"
    kind += " sparse" if file.get("sparse") else ""
    packed = f" ({file['gzip']:,})" if file.get("gzip") else ""
    return f"{kind} {file['bytes']:,}{packed}"


def short(root=ROOT):
    """Rows of README's table: what robust fine-tuning kept on MNIST."""
    lines = []
    for kind, ratio in (("weights", "90%"), ("filters", "75%")):
        found = cards("mnist", kind, "robust", root).get(0)
        if found is None or ratio not in found[1]["models"]:
            continue
        folder, card = found
        entry = card["models"][ratio]
        full = card["models"][START]["footprint"]["flops"]
        zeros = entry["settings"]["zeros"]
        left = f" ({100 * zeros:.0f} % zeros)" if zeros > 0.01 else ""
        pgd, suite = attack(entry, "PGD"), attack(entry, "AutoAttack")
        lines.append(
            f"| [{ratio[:-1]} % of the {kind} pruned](saved_models/{folder.name}/card.json) "
            f"| {rate(entry['clean'])} | {rate(pgd)}{mark(gap(pgd, suite))} "
            f"| {rate(attack(entry, 'APGD'))} | {rate(suite)} "
            f"| {full / entry['footprint']['flops']:.2f} x "
            f"| {entry['footprint']['parameters']:,}{left} | `{card['command']}` |"
        )
    return lines


def duel(data, root=ROOT):
    """Fine-tuned against scratch, seed by seed: (lines of the table, {ratio: gaps under AA})."""
    tuned = cards(data, "filters", "robust", root)
    rivals = {
        "scratch, same epochs": cards(data, "filters", "scratch", root),
        "scratch, same seconds": cards(data, "filters", "scratch_seconds", root),
    }
    runs = {"pruned, fine-tuned": tuned, **rivals}
    for title, seeds in runs.items():
        refuse_unlike({f"{title}, seed {s}": card for s, (_, card) in seeds.items()}, SEEDS)
    joined = {f"{t}, seed {s}": c for t, seeds in runs.items() for s, (_, c) in seeds.items()}
    refuse_unlike(joined, SAME)
    lines = [
        "| pruned | net | seed | clean | PGD-40 x 5 | AutoAttack | epochs | processor s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    gaps = {}
    ratios = sorted(
        {n for r in rivals.values() for _, c in r.values() for n in c["models"]} - {START}
    )
    for ratio in ratios:
        for title, seeds in runs.items():
            for seed, (_, card) in seeds.items():
                entry = card["models"].get(ratio)
                if entry is None:
                    continue
                lines.append(
                    f"| {ratio} | {title} | {seed} | {rate(entry['clean'])} "
                    f"| {rate(attack(entry, 'PGD'))} | {rate(attack(entry, 'AutoAttack'))} "
                    f"| {entry['settings']['epochs']:.1f} | {entry['settings']['seconds'][1]:.0f} |"
                )
                mine = tuned.get(seed, (None, {"models": {}}))[1]["models"].get(ratio)
                if mine is not entry and mine and attack(mine, "AutoAttack"):
                    pair = attack(mine, "AutoAttack"), attack(entry, "AutoAttack")
                    gaps.setdefault((ratio, title), []).append(
                        100 * (pair[0]["count"] / pair[0]["n"] - pair[1]["count"] / pair[1]["n"])
                    )
    return (lines, gaps) if ratios else ([], {})


def curves_of(data, kind, root=ROOT):
    """{mode: rows of the ladder} of the runs with seed 0."""
    curves = {}
    for mode in MODES:
        found = cards(data, kind, mode, root).get(0)
        if found and (found[0] / "curve.json").exists():
            curves[mode] = json.loads((found[0] / "curve.json").read_text())
    return curves


def plot(data, root=ROOT):
    """SVG text of the curves: attacked (solid) and clean (dashed) accuracy against the ratio."""
    curves = {kind: curves_of(data, kind, root) for kind in KINDS}
    panels = {KINDS[k]: c for k, c in curves.items() if c} or {k: {} for k in KINDS.values()}
    label = "accuracy, %: attacked (line), clean (dashes)"
    return figures.ladder(panels, {"attacked": "-", "clean": "--"}, MODES, INKS, label)


def page(root=ROOT):
    """docs/results/pruning.md."""
    lines = [
        "# Robust pruning",
        "",
        "Made by `make results` from the cards in `saved_models/*_pruned_*`; each names the",
        "command that makes it (`python -m recipes.robust_pruning`). A robust net is pruned up a",
        "ladder of 2.5 % of its weights or filters, fine-tuned in between (Sehwag et al., 2019):",
        "**None** (no fine-tuning), **Nat** (cross-entropy on clean images), **Robust** (the",
        "adversarial training that made the start). At the ratios of the tables the net is",
        "fine-tuned once more at a falling learning rate. The paper trains 5 epochs on each rung;",
        "here so many fill the whole ladder. Cells: clean accuracy on all test images / accuracy",
        "under PGD-40 with 5 starts / under AutoAttack (standard), both on the first test images,",
        "in per cent. The output layer keeps its neurons. No images were held out: the settings",
        "were chosen with an eye on these test images.",
    ]
    for data, title in DATA.items():
        start = before(data, root)
        if start is None:
            continue
        lines += ["", f"## {title}", ""]
        shown = [rate(v) for v in start]
        lines += [f"The start: clean {shown[0]}, PGD-40 x 5 {shown[1]}, AutoAttack {shown[2]}."]
        lines += [*judged_on(start, data, root), ""]
        lines += [f"![accuracy along the ladder](pruning_{data}.svg)", ""]
        lines += ["The curves: PGD-20 from one start on the first 500 test images, on the ladder,"]
        lines += ["before the last fine-tuning.", ""]
        for kind, name in KINDS.items():
            if table := grid(data, kind, root):
                lines += [f"### {name[0].upper()}{name[1:]}", "", *ranking(data, kind, root), ""]
                lines += [*table, ""]
                if found := suspicious(data, kind, root):
                    lines += [*found, ""]
                lines += [*sizes(data, kind, root), ""]
        table, gaps = duel(data, root)
        if table:
            lines += ["### Is the parent worth it? Against the same small net from scratch", ""]
            lines += _verdict(gaps) + ["", *table, ""]
        lines.pop()
    if not any(before(data, root) for data in DATA):
        lines += ["", "No run has been judged yet."]
    return "\n".join([*lines, ""])


def judged_on(start, data, root=ROOT):
    """On how many images PGD and AutoAttack were run, and what else the cards say of the data."""
    suite = start[2] or start[1]
    low, high = tr.evaluate.wilson(suite["count"], suite["n"])
    notes = {
        card["data"]["note"].partition("; ")[2]
        for kind in KINDS
        for mode in MODES
        for _, card in cards(data, kind, mode, root).values()
    }
    more = "".join(f"; {note}" for note in sorted(notes) if note)
    return [
        f"PGD and AutoAttack: the first {suite['n']:,} test images, a 95 % interval is about "
        f"+-{50 * (high - low):.0f} points{more}."
    ]


def _verdict(gaps):
    """A sentence for each ratio, made from the seeds' gaps."""
    lines = [
        "The scratch net has the architecture that pruning left, random weights and the same",
        "adversarial training (epsilon raised over the first fifth), for as many epochs as the",
        "start, the ladder and the settling took together or, where a row says so, the same",
        "processor seconds. All seeds of the fine-tuned net have one start.",
        "Points of AutoAttack accuracy by which the fine-tuned net is ahead, seed by seed:",
        "",
    ]
    for (ratio, title), values in gaps.items():
        mean = sum(values) / len(values)
        shown = ", ".join(f"{v:+.1f}" for v in values)
        lines.append(f"- {ratio}, {title}: {shown}; mean {mean:+.1f}")
    return lines


def plots(root=ROOT):
    """{path below `root`: SVG text} of the data sets that have cards."""
    return {
        f"docs/results/pruning_{data}.svg": plot(data, root)
        for data in DATA
        if before(data, root) is not None
    }
