"""The ANP-VS tables of the results pages, made from the cards of `recipes.anp_vs_table1`.

Rows accumulate: a row with several seeds shows mean and standard deviation over them, and how many
there are. The paper's figures stand beside ours; its budget was 200 epochs.
"""

import hashlib
import json
import textwrap

from recipes import cells, figures
from recipes.anp_vs_cards import (
    ACCURACIES,
    COSTS,
    DIGITS,
    ORDER,
    PAPER,
    PAPER3,
    SAVED,
    cards,
    columns,
    means,
    option,
    others,
    rates,
)
from recipes.anp_vs_rows import ALL, SWEPT, default
from recipes.cells import ROOT

TITLES = {"cifar10": "CIFAR-10, Linf, epsilon 8/255: VGG-16"}


def table(data, names=tuple(ACCURACIES), saved=SAVED):
    """Lines of Table 1, ours and the paper's, with the columns `names`; [] where no card is."""
    lines, judged = [], "autoattack" in names
    for row, (title, *_) in ALL.items():
        seeds = cards(data, row, saved).get("")
        if not seeds:
            continue
        told = means(seeds, names)
        if judged and len(seeds) == 1:
            (card,) = seeds.values()
            told = [cells.interval(rates(card)[name], DIGITS[name], n=False) for name in names]
        gaps = [columns(card)["gap"] for card in seeds.values()]
        more = cells.flagged(cells.average(gaps)) if judged else epochs(seeds)
        lines.append(f"| {title} | {len(seeds)} | " + " | ".join([*told, more]) + " |")
        if row in PAPER[data]:
            theirs = dict(zip(ORDER, PAPER[data][row], strict=True))
            shown = ["" if theirs.get(n) is None else f"{theirs[n]:g}" for n in names]
            lines.append("| *the paper* | | " + " | ".join(shown) + " | |")
    titles = {**ACCURACIES, **COSTS}
    more = "PGD-40 x 5 - AutoAttack" if judged else "epochs, stage by stage"
    head = ["method", "seeds", *(titles[name] for name in names), more]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines] if lines else []


def epochs(seeds):
    """Epochs of each stage of a row, once for all seeds where they are alike."""
    entries = [next(iter(card["models"].values())) for card in seeds.values()]
    told = [" + ".join(f"{n:g}" for n in e["settings"]["stages"].values()) for e in entries]
    return ", ".join(dict.fromkeys(told))


def verdict(data, saved=SAVED):
    """ANP-VS beside AT under AutoAttack, means over seeds, and what it saves; a line each."""
    at, lines = cards(data, "at", saved).get(""), []
    for row in ("anp_vs_bbd", "anp_vs_vib"):
        seeds = cards(data, row, saved).get("")
        if not at or not seeds:
            continue
        ours, theirs = ([columns(card) for card in made.values()] for made in (seeds, at))
        if any(told["autoattack"] is None for told in (*ours, *theirs)):
            continue
        mean = [cells.average(told["autoattack"] for told in each) for each in (ours, theirs)]
        gains = cells.spread([told["xflops"] for told in ours], 2)
        lines.append(
            f"- {ALL[row].title} - AT under AutoAttack: {mean[0] - mean[1]:+.2f} points, "
            f"{mean[0]:.2f} (seeds: {len(ours)}) and {mean[1]:.2f} (seeds: {len(theirs)}), at "
            f"{gains} x fewer FLOPs."
        )
    return lines


def remarks(data, saved=SAVED):
    """Doubts of the evaluations, and the nets whose answers are averages, a line each."""
    lines = []
    for row, (title, *_) in ALL.items():
        for seed, card in cards(data, row, saved).get("", {}).items():
            (first, *others) = (e for e in card["models"].values() if e["scores"])
            lines += cells.doubts(f"{title}, seed {seed}", first, ["loss_still_rising"])
            for entry in others:
                clean, attacked = entry["clean"], entry["families"]["PGD"]
                name = entry["scores"][0]["attacks"][0]["name"]
                lines.append(
                    f"- {title}, seed {seed}, averages over draws, attacked as averages: "
                    f"{cells.interval(clean)} clean, {cells.interval(attacked)} under {name}."
                )
                lines += cells.doubts(f"{title}, seed {seed}, averages over draws", entry)
    return lines


def weights(data, row, saved=SAVED):
    """[(lambda, {seed: card})] of a row at its other defaults; without suppression lambda is 0."""
    weighed = "suppress" in ALL[row].options
    found = {
        option(more, "suppress", data) if weighed else 0.0: seeds
        for more, seeds in cards(data, row, saved).items()
        if not others(more, "suppress")
    }
    return sorted(found.items())


def ablation(data, saved=SAVED):
    """Lines of Table 3: with and without masks and VS, over lambda; [] where neither is alone."""
    names = ("clean", "white", "autoattack", "v_white", "v_black")
    titles = [{**ACCURACIES, **COSTS}[name] for name in names]
    lines, alone = [], False
    for row in ("at", "at_vs", "anp_bbd", "anp_vs_bbd"):
        values = weights(data, row, saved)
        alone |= bool(values) and row in ("at_vs", "anp_bbd")
        for value, seeds in values:
            told = " | ".join(means(seeds, names))
            lines.append(f"| {ALL[row].title} | {value:g} | {len(seeds)} | {told} |")
        if values:
            clean, white, v = PAPER3[data][row]
            lines.append(f"| *the paper* | | | {clean:.2f} | {white:.2f} | | {v:g} | |")
    head = ["| method | lambda | seeds | " + " | ".join(titles) + " |", "|---" * 8 + "|"]
    return head + lines if alone else []


def suppression(data, saved=SAVED):
    """What VS adds to AT and to ANP on the seeds that both have, a line for each lambda."""
    lines = []
    for row, without in (("at_vs", "at"), ("anp_vs_bbd", "anp_bbd")):
        base = cards(data, without, saved).get("", {})
        for value, seeds in weights(data, row, saved):
            both = sorted(seeds.keys() & base.keys())
            pairs = [(columns(seeds[seed]), columns(base[seed])) for seed in both]
            judged = all(told["autoattack"] is not None for pair in pairs for told in pair)
            if not pairs or not judged:
                continue
            gain = cells.spread([a["autoattack"] - b["autoattack"] for a, b in pairs], 1)
            ratio = cells.spread([a["v_white"] / b["v_white"] for a, b in pairs], 2)
            named = f"{len(both)} seeds" if len(both) > 1 else f"seed {both[0]}"
            lines.append(
                f"- {ALL[row].title}, lambda {value:g}, beside "
                f"{ALL[without].title}, {named}: V {ratio} x, AutoAttack "
                f"{gain if gain.startswith('-') else f'+{gain}'} points."
            )
    return lines


def swept(data, row, saved=SAVED):
    """{beta: {seed: card}} of a row of Figure 3, whose masks no gain has stopped."""
    flag = SWEPT[row]
    return {
        option(more, flag, data): seeds
        for more, seeds in cards(data, row, saved).items()
        if not others(more, flag, "gain")
        and ("gain" not in ALL[row].options or option(more, "gain", data) == 0)
    }


def figure3(data, saved=SAVED):
    """Lines of Figure 3: what beta prunes, and what it costs; [] before anything is swept."""
    names = ("sparsity", "xflops", "clean", "white", "v_white")
    lines = [
        "| method | beta | sparsity, % | xFLOPs | clean | white box PGD-40 | V white |",
        "|---" * 7 + "|",
    ]
    for row in ("standard", "at"):
        if seeds := cards(data, row, saved).get(""):
            lines.append(f"| {ALL[row].title} | - | " + " | ".join(means(seeds, names)) + " |")
    found = {row: swept(data, row, saved) for row in SWEPT}
    for row, values in found.items():
        for value, seeds in sorted(values.items()):
            told = " | ".join(means(seeds, names))
            lines.append(f"| {ALL[row].title} | {value:g} | {told} |")
    return lines if max(map(len, found.values())) > 1 else []


def plots(root=ROOT):
    """{path below `root`: SVG text} of Figure 3, of each data set that was swept."""
    return {
        f"docs/results/{data}_beta.svg": figures.svg(
            (6.4, 3.2), lambda f, d=data: _paint(f, d, root)
        )
        for data in PAPER
        if figure3(data, root / "saved_models")
    }


def _paint(figure, data, root):
    saved = root / "saved_models"
    panels = figure.subplots(1, 2, sharex=True)
    for axis, name in zip(panels, ("clean", "white"), strict=True):
        for row, ink in zip(SWEPT, figures.INKS[1:], strict=False):
            betas = swept(data, row, saved).values()
            each = [columns(card) for seeds in betas for card in seeds.values()]
            each.sort(key=lambda told: told["sparsity"])
            x, y = ([told[key] for told in each] for key in ("sparsity", name))
            axis.plot(x, y, "o-", color=ink, label=ALL[row].title, markersize=4, linewidth=1.2)
        for row, style in (("standard", ":"), ("at", "--")):
            if seeds := cards(data, row, saved).get(""):
                mean = cells.average(columns(card)[name] for card in seeds.values())
                axis.axhline(mean, color=figures.INKS[0], linestyle=style, label=ALL[row].title)
        axis.set(xlabel="units removed, %", ylabel=f"{ACCURACIES[name]}, %")
    panels[1].legend(frameon=False, fontsize=7)


def mark(folder):
    """SHA-256 of the net in a folder, "" without one."""
    path = folder / "model.keras"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def sweeps(data, saved=SAVED):
    """Lines of Table 2: accuracy against the radius and the iterations of PGD."""
    path = saved / f"{data}_anp_table2" / "results.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())["rows"]
    found = {name: row for name, row in found.items() if row["mark"]["net"] == mark(saved / name)}
    if not found:
        return []
    first = next(iter(found.values()))
    columns = [f"epsilon {radius:g}" for radius, _ in first["epsilon"]]
    columns += [f"{steps} steps" for steps, _ in first["iterations"]]
    lines = ["| net | images | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in found.items():
        told = [f"{100 * right / row['n']:.1f}" for _, right in row["epsilon"] + row["iterations"]]
        lines.append(f"| {name} | {row['n']:,} | " + " | ".join(told) + " |")
    return lines


def budget(data, saved=SAVED):
    """What the cards were trained and judged with, in words, or where they differ."""
    told = {}
    for row in ALL:
        for seeds in cards(data, row, saved).values():
            for card in seeds.values():
                entry = next(iter(card["models"].values()))["settings"]
                names = ("epochs", "train_images", "test_images", "n", "width", "warm", "dropout")
                key = tuple(entry.get(name) or None for name in names)
                told.setdefault(key, []).append(ALL[row].title)
    return [
        f"{epochs} epochs of {of(images, 'training')}"
        + f", adversarial rows after {warm} epochs of standard training" * bool(warm)
        + f"; judged on {of(tests, 'test')}, PGD-40 x 5 and AutoAttack on the first {n:,}"
        + f"; {width:g} of the network's width" * (width != 1)
        + f"; {dropout or 0:g} of the paper's dropout" * (data != "mnist" and dropout != 1)
        + (f" ({', '.join(dict.fromkeys(rows))})" if len(told) > 1 else "")
        for (epochs, images, tests, n, width, warm, dropout), rows in told.items()
    ]


def of(count, kind):
    """So many images of a kind.

    >>> of(None, "test"), of(2000, "test")
    ('all test images', 'the first 2,000 test images')
    """
    return f"all {kind} images" if count is None else f"the first {count:,} {kind} images"


STAGES = {
    "anp_vs_bbd": "of ANP-VS adversarial training, masks, fine-tuning",
    "bp_bbd": "of BP standard training, masks (on clean images alone)",
    "pretrained_at": "of Pretrained AT standard training, then attacked images alone",
    "pat": "of PAT those of BP, then adversarial training of what is left",
    "admm": "of ADMM adversarial training, pull, fine-tuning",
}


def section(data, root=ROOT):
    """The part of a results page about ANP-VS and its baselines."""
    saved = root / "saved_models"
    rows = table(data, tuple(ACCURACIES), saved)
    if not rows:
        return []
    names = ("gain", "beta", "vib_beta", "cost_power", "warm")
    known = {name: default(data, name) for name in names}
    made = [row for row in ALL if cards(data, row, saved)]
    stages = [words for row, words in STAGES.items() if row in made or f"{row[:-3]}vib" in made]
    first = "standard training first for adversarial rows; " * bool(known["warm"])
    text = (
        f"Made by `python -m recipes.anp_vs_table1`, a card for each row and seed. The budget: "
        f"{'; '.join(budget(data, saved))}. The attack in training is PGD-7; the paper trained for "
        "200 epochs. Rates of one net with 95 % intervals (Wilson) in brackets; over seeds mean +- "
        "standard deviation. The white box has one start. PGD-40 x 5 and AutoAttack see the same "
        "images: their gap is a sign of masked gradients beyond 5 points. Black box: PGD-40 on a "
        "net of another seed, adversarially trained for rows that are, standard for the others. "
        "Masked nets are shrunk before they are judged"
        + "; AT BNN is judged as the net of its mean weights"
        * ("at_bnn" in made)
        + ". That twice the steps of PGD would lift margins a little more is no news beside "
        "AutoAttack and left out of the doubts that follow the table; cards tell it."
    )
    size = (
        "V: last iterates, units that were cut never move. Memory, xFLOPs and sparsity by the "
        "formulas of the paper's code (sparsity of units"
        + "; of weights for ADMM"
        * ("admm" in made)
        + f"). **How much ANP-VS prunes is our choice**: its masks learn until {known['gain']:g} x "
        f"fewer FLOPs are reached (beta {known['beta']:g}, of VIB {known['vib_beta']:g}, over the "
        "images of the whole training set; the KL of each unit weighed by its FLOPs to the power "
        f"of {known['cost_power']:g}; the paper weighs all alike and trains on), then the small "
        f"net is fine-tuned. Stages: {first}{'; '.join(stages)}."
    )
    lines = [
        "## ANP-VS and its baselines",
        "",
        *textwrap.wrap(text, 95, break_on_hyphens=False),
        "",
        *rows,
        "",
        *verdict(data, saved),
        "",
        *(remarks(data, saved) or ["None."]),
        "",
        "### Vulnerability and size",
        "",
        *textwrap.wrap(size, 95, break_on_hyphens=False),
        "",
        *table(data, tuple(COSTS), saved),
        "",
    ]
    if found := ablation(data, saved):
        lines += ["### Masks and vulnerability suppression, alone and together", "", *found, ""]
        lines += [*suppression(data, saved), ""]
    if found := figure3(data, saved):
        lines += ["### What beta prunes", "", *found, ""]
        lines += [f"![accuracy against the units that beta removes]({data}_beta.svg)", ""]
    if found := sweeps(data, saved):
        lines += ["### Larger radii, more iterations", "", *found, ""]
    return lines


def page(data, root=ROOT):
    """A page of its own for a data set that has no other, None without cards."""
    lines = section(data, root)
    return "\n".join([f"# {TITLES[data]}", "", *lines]) if lines else None
