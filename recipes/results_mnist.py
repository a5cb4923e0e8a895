"""docs/results/mnist.md and the results table of README.md, made from the cards."""

import re

import tfrobust as tr
from recipes import figures, results_anp_vs
from recipes.cells import ROOT, doubts, interval, rate

BEGIN, END = "<!-- results: made by `make results` from the cards -->", "<!-- end of results -->"
TITLES = {"AT": "plain AT", "ANP-VS": "ANP-VS, shrunk", "scratch": "its scratch twin"}


def shipped(name, root=ROOT):
    """(card as a dict, title, entry of the shipped model), or None where there is no card."""
    path = root / "saved_models" / name / "card.json"
    if not path.exists():
        return None
    card = tr.report.load(path).to_dict()
    title = next(t for t, entry in card["models"].items() if entry["files"])
    return card, title, card["models"][title]


def names(root=ROOT):
    """The nets of the page: plain AT, then each point of the front and its twin, by FLOP gain."""
    found = {p.parent.name for p in (root / "saved_models").glob("mnist_*x/card.json")}
    gains = sorted(int(m[1]) for name in found if (m := re.fullmatch(r"mnist_anp_vs_(\d+)x", name)))
    pairs = (f"mnist_{kind}_{gain}x" for gain in gains for kind in ("anp_vs", "scratch"))
    return ["mnist_at", *pairs]


def rows(root=ROOT):
    """One list of cells for each shipped MNIST model."""
    for name in names(root):
        found = shipped(name, root)
        if found is None:
            continue
        card, title, entry = found
        yield name, card, TITLES[title], entry


def short_table(root=ROOT):
    """The table of README.md."""
    lines = [
        "| MNIST, Linf 0.3 | clean | PGD-40 x 5 | APGD-CE+T | AutoAttack "
        "| fewer FLOPs | parameters | made by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, card, title, entry in rows(root):
        families = entry["families"]
        lines.append(
            f"| [{title}](saved_models/{name}/card.json) | {rate(entry['clean'])} "
            f"| {rate(families['PGD'])} | {rate(families['APGD'])} "
            f"| {rate(families['AutoAttack'])} | {entry['gain']['xflops']:.2f} x "
            f"| {entry['footprint']['parameters']:,} | `{card['command']}` |"
        )
    return "\n".join(lines)


def sized(title, entry):
    """A title that tells the points of the front apart."""
    return title if title == TITLES["AT"] else f"{title}, {entry['gain']['xflops']:.2f} x"


def page(root=ROOT):
    """docs/results/mnist.md."""
    found = [(name, card, sized(title, entry), entry) for name, card, title, entry in rows(root)]
    lines = [
        "# MNIST, Linf, epsilon 0.3",
        "",
        "Made by `make results` from the cards in `saved_models/`; each names the command that",
        "makes it. Accuracies in per cent with 95 % intervals (Wilson). PGD is PGD-40, step 0.01,",
        "5 restarts, best iterate; APGD is the worst case of APGD-CE and APGD-T (9 targets, 100",
        "steps); AutoAttack is the standard version, on the first n test images, put on the",
        "cards by `python -m recipes.autoattack`. A scratch twin has the same",
        "shrunk architecture, trained from random weights with the same objective (but for the",
        "parent's soft labels: it has no parent) for as many epochs as fill the processor seconds",
        "of *all* stages of the pruned net at the price of its own fine-tuning epochs; the seconds",
        "that each really took stand under 'Size and cost'. The paper (Madaan et al., 2020, Table",
        "1): 99.05 clean, 91.31 under PGD-40 with one restart, 84 % of the units removed; its own",
        "accounting gives 6.6 x fewer FLOPs for the unit counts of its Table 5.",
        "",
        "## Robustness",
        "",
        "| net | clean | PGD-40, 1 start | PGD-40 x 5 | APGD-CE+T | AutoAttack |",
        "|---|---|---|---|---|---|",
    ]
    for _, _, title, entry in found:
        single = next(a["rate"] for s in entry["scores"] for a in s["attacks"] if a["runs"] == 1)
        cells = [interval(entry["clean"]), interval(single)]
        for family in ("PGD", "APGD", "AutoAttack"):
            cells.append(interval(entry["families"][family]))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    told = [line for name, _, title, e in found for line in doubts(f"{title} ({name})", e)]
    lines += ["", *told, "", "![AutoAttack against FLOPs](mnist_front.svg)"]
    lines += ["", *results_anp_vs.section("mnist", root)]
    lines += ["## AutoAttack, member by member", "", *members(found)]
    lines += [
        "",
        "## Size and cost",
        "",
        "| net | units kept of 1,370 | FLOPs | fewer FLOPs | parameters "
        "| TFLite float32 / int8, bytes | ms, unpruned / float32 / int8 | training, processor s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, _, title, entry in found:
        sizes = {f.get("quantize") or f["format"]: f["bytes"] for f in entry["files"]}
        ms = entry["latency_ms"]
        times = " / ".join(f"{ms[k]:.3f}" for k in ("unpruned net, float32", "float32", "int8"))
        lines.append(
            f"| {title} | {units(entry)} | {entry['footprint']['flops']:,} "
            f"| {entry['gain']['xflops']:.2f} x | {entry['footprint']['parameters']:,} "
            f"| {sizes['tflite']:,} / {sizes['int8']:,} | {times} "
            f"| {entry['settings']['seconds'][1]:.0f} |"
        )
    lines += [
        "",
        "Latencies: one image, one thread, in turns with the unpruned net in one run.",
        "",
        "## Vulnerability",
        "",
        "PGD-40 pairs of the first 1,000 test images, over the 15,220 units of the unshrunk",
        "network; units that were cut count as units that never move. The second column divides",
        "each layer by its own mean activation: scaling a layer does not change it.",
        "",
        "| net | V | mean of v_l / E abs(z_l) |",
        "|---|---|---|",
    ]
    for _, _, title, entry in found:
        v = entry["vulnerability"]
        lines.append(f"| {title} | {v['network']:.4f} | {v['relative']:.4f} |")
    lines += ["", "## Exported files under replayed attacks", "", *replays(found), ""]
    return "\n".join(lines)


def front(root=ROOT):
    """SVG text: accuracy under AutoAttack with its interval against the FLOP gain."""
    inks = {"plain AT": "#8c8c8c", "ANP-VS, shrunk": "#20639b", "its scratch twin": "#d1662b"}
    series = {}
    for _, _, title, entry in rows(root):
        if value := entry["families"]["AutoAttack"]:
            gain = entry["gain"]["xflops"] if entry["gain"] else 1.0
            series.setdefault(title, []).append((gain, value["count"], value["n"]))

    def paint(figure):
        axis = figure.subplots()
        for title, points in series.items():
            x, y = [p[0] for p in points], [100 * p[1] / p[2] for p in points]
            ends = [tr.evaluate.wilson(*p[1:]) for p in points]
            below = [v - 100 * low for v, (low, _) in zip(y, ends, strict=True)]
            above = [100 * high - v for v, (_, high) in zip(y, ends, strict=True)]
            shift = 1.02 if title == "its scratch twin" else 1.0  # beside each other
            axis.errorbar(
                [v * shift for v in x], y, (below, above), fmt="o-", color=inks[title], label=title,
                markersize=4, linewidth=1.2, capsize=2,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axis.set(xlabel="x fewer FLOPs", ylabel="under AutoAttack, % (95 % intervals)")
        axis.legend(frameon=False)

    return figures.svg((5.4, 3.2), paint)


def plots(root=ROOT):
    """{path below `root`: SVG text}."""
    return {"docs/results/mnist_front.svg": front(root)}


def members(found):
    """What is left after each member of AutoAttack, and what it cost."""
    suites = [
        (title, attack)
        for _, _, title, entry in found
        for scores in entry["scores"]
        for attack in scores["attacks"]
        if attack["name"] == "AutoAttack"
    ]
    if not suites:
        return ["Not run."]
    names = [name for name, _ in suites[0][1]["parts"]]
    sizes = sorted({attack["rate"]["n"] for _, attack in suites})
    lines = [
        f"Images of {' or '.join(f'{n:,}' for n in sizes)} that are still right after each member,",
        "which sees only what those before it left; forward and backward passes for an image that",
        "is right without attack.",
        "",
        "| net | " + " | ".join(names) + " | forward | backward |",
        "|---" * (len(names) + 3) + "|",
    ]
    for title, attack in suites:
        cells = [str(rate["count"]) for _, rate in attack["parts"]]
        cells += [f"{attack['queries']:,.0f}", f"{attack['gradients']:,.0f}"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def units(entry):
    """Kept units, by layer and in total."""
    kept = [str(row["units"]) for row in entry["footprint"]["rows"] if row["units"]]
    return f"{'-'.join(kept)} = {entry['footprint']['units']:,}"


def replays(found):
    """Accuracy of the TFLite files, clean and on images crafted against the Keras twin."""
    lines = ["| net | file | clean, first 1,000 | transfer of PGD-40 |", "|---|---|---|---|"]
    for _, _, title, entry in found:
        for t in entry["transfer"]:
            lines.append(
                f"| {title} | {t['name']} | {rate(t['clean'])} | {interval(t['robust'])} |"
            )
    return lines


def with_table(text, *more, root=ROOT):
    """README text with its results made anew: the table, and more lines of other pages' rows."""
    head, rest = text.split(BEGIN)
    table = "\n".join([short_table(root), *more])
    return head + BEGIN + "\n" + table + "\n" + END + rest.split(END)[1]
