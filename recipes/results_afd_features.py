"""Tables 2, A5 and A7 and the sensitivity plot of docs/results/afd.md, from what lies beside cards.

Measurements of another net than the card's are left out (see `afd_cards.beside`).
"""

from recipes import figures
from recipes.afd_cards import SAVED, TABLE1, beside, cards, titled
from recipes.afd_stages import METHODS
from recipes.cells import ROOT, average

AREAS = ("PGD Linf", "PGD L2", "PGD L1", "FGSM", "MIM", "DDN", "DeepFool", "C&W")
PAPER_AREAS = {
    "nt": (0.16, 0.12, 0.14, 0.29, 0.16, 0.18, 0.23, 0.75),
    "at": (0.67, 0.50, 0.44, 0.76, 0.84, 0.72, 0.74, 0.96),
    "trades": (0.62, 0.47, 0.41, 0.72, 0.80, 0.77, 0.73, 0.96),
    "afd": (0.83, 0.84, 0.70, 0.84, 0.84, 0.85, 0.83, 0.96),
}
PAPER_DIMENSIONS = {"nt": (64, 24), "at": (64, 43), "trades": (64, 40), "afd": (18, 6)}
PAPER_FEATURES = 64
ANGLES = ("DDN", "DeepFool", "C&W")
EPSILON = "0.3"


def measured(method, name, saved=SAVED, net="resnet18"):
    """{seed: JSON beside its card} of the seeds that have it."""
    found = {
        seed: beside(folder, entry, name)
        for seed, (folder, entry, _) in cards(method, saved, net).items()
    }
    return {seed: told for seed, told in found.items() if told}


def area_rows(method, saved=SAVED, net="resnet18"):
    """{seed: areas in the order of `AREAS`}."""
    return {
        seed: [told[a]["auc"] if a in told else None for a in AREAS]
        for seed, told in measured(method, "curves.json", saved, net).items()
    }


def areas(saved=SAVED, net="resnet18"):
    """Table 2: areas under accuracy over epsilon; [] where nothing was measured."""
    lines = []
    for method in TABLE1:
        rows = area_rows(method, saved, net)
        lines += titled(method, rows, 3)
        if rows and method in PAPER_AREAS:
            told = " | ".join(f"{v:.2f}" for v in PAPER_AREAS[method])
            lines.append(f"| {METHODS[method].title}, paper | {told} |")
    head = ["| | " + " | ".join(AREAS) + " |", "|---" * (len(AREAS) + 1) + "|"]
    return head + lines if lines else []


def notes(saved=SAVED, net="resnet18"):
    """What a reader must know of the areas."""
    sizes = {
        curve["n"]
        for method in TABLE1
        for told in measured(method, "curves.json", saved, net).values()
        for curve in told.values()
    }
    if not sizes:
        return []
    told = " or ".join(f"{n:,}" for n in sorted(sizes))
    return [
        f"On the first {told} test images; 1 is an accuracy "
        "of 100 % at every radius of the paper's grid. All eight attacks follow gradients: where a "
        "net hides them (see PGD - AutoAttack above), its areas are too large."
    ]


def feature_row(told):
    """[share of units used, share of components, median shift, its deviation]."""
    d, s = told["dimensions"], told["sensitivity"][EPSILON]
    shares = [100 * d[name] / d["features"] for name in ("units", "dimensions")]
    return [*shares, s["median"], s["deviation"]]


def representations(saved=SAVED, net="resnet18"):
    """Table A5 and the sensitivity of the representation; [] where nothing was measured."""
    lines = []
    for method in TABLE1:
        found, title = measured(method, "features.json", saved, net), METHODS[method].title
        for seed, told in found.items():
            d, (_, _, median, deviation) = told["dimensions"], feature_row(told)
            lines.append(
                f"| {title}, seed {seed} | {of(d['units'], d['features'])} "
                f"| {of(d['dimensions'], d['features'])} | {of(d['lone'], told['n'])} "
                f"| {median:.3f} | {deviation:.3f} "
                f"| `{told['layer']}` | {told['n']:,} |"
            )
        if found and net == "resnet18" and method in PAPER_DIMENSIONS:
            cells = " | ".join(of(value, PAPER_FEATURES) for value in PAPER_DIMENSIONS[method])
            lines.append(f"| {title}, paper | {cells} | - | - | - | - | 10,000 |")
    head = [
        "| | units used | principal components | images that light one unit alone | median shift "
        "| its deviation | layer | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return head + lines if lines else []


def of(part, whole):
    """Count, and its share.

    >>> of(18, 64)
    '18 of 64 (28 %)'
    """
    return f"{part} of {whole} ({100 * part / whole:.0f} %)"


def remarks(saved=SAVED, net="resnet18"):
    """What a reader must know to compare the representations."""
    layers, sizes = {}, set()
    for method in TABLE1:
        for told in measured(method, "features.json", saved, net).values():
            layers.setdefault(told["layer"], []).append(METHODS[method].title)
            sizes.add(told["dimensions"]["features"])
    if not layers:
        return []
    where = "; ".join(
        f"`{layer}` ({', '.join(dict.fromkeys(titles))})" for layer, titles in layers.items()
    )
    return [
        f"Units, components and shifts are of what the decoder sees: {where}. `features` have unit "
        "length and `pool` has not, so units and components are not of the same kind; shifts are "
        "relative. The representation has "
        f"{' or '.join(map(str, sorted(sizes)))} features, the paper's {PAPER_FEATURES}: compare "
        "shares. Where an image lights one unit alone, unit features are constant around it, and "
        "so are logits: gradients vanish. Shifts are those under PGD-40 at epsilon 0.3.",
    ]


def angles(saved=SAVED, net="resnet18"):
    """Table A7: mean angle in the representation to PGD's perturbation, radians."""
    lines = []
    for method in TABLE1:
        for seed, (_, entry, _) in cards(method, saved, net).items():
            if found := entry.get("angles"):
                cells = " | ".join(angle(found[name]) for name in ANGLES)
                lines.append(f"| {METHODS[method].title}, seed {seed} | {cells} |")
    return ["| | " + " | ".join(ANGLES) + " |", "|---|---|---|---|", *lines] if lines else []


def angle(found):
    """Mean angle, of how many pairs, and how many did not move.

    >>> angle({"mean": 0.5, "n": 190, "left_out": 10}), angle({"mean": None, "n": 0, "left_out": 8})
    ('0.500 (n = 190, 10 left out)', '- (n = 0, 8 left out)')
    """
    mean = "-" if found["mean"] is None else f"{found['mean']:.3f}"
    return f"{mean} (n = {found['n']}, {found['left_out']} left out)"


def signs(saved=SAVED, net="resnet18"):
    """AFD - AT, means over seeds: ours, the paper's, and whether they have one sign."""
    ours, papers = [], []
    at, afd = (area_rows(method, saved, net) for method in ("at", "afd"))
    if at and afd:
        for place, name in enumerate(AREAS):
            ours.append((f"area, {name}", gap(at, afd, place)))
            papers.append(PAPER_AREAS["afd"][place] - PAPER_AREAS["at"][place])
    at, afd = (
        {s: feature_row(told) for s, told in measured(m, "features.json", saved, net).items()}
        for m in ("at", "afd")
    )
    if at and afd:
        for place, name in enumerate(("units used, %", "components, %")):
            one, two = (PAPER_DIMENSIONS[m][place] for m in ("at", "afd"))
            ours.append((name, gap(at, afd, place)))
            papers.append(100 * (two - one) / PAPER_FEATURES)
        ours.append(("median shift", gap(at, afd, 2)))
        papers.append("smaller")  # Figure 4, no numbers
    lines = [sign(name, value, paper) for (name, value), paper in zip(ours, papers, strict=True)]
    head = ["| AFD - AT | ours | the paper | sign |", "|---|---|---|---|"]
    return head + lines if lines else []


def gap(at, afd, place):
    """Mean of AFD minus mean of AT, or None."""
    one, two = (average(row[place] for row in rows.values()) for rows in (at, afd))
    return None if one is None or two is None else two - one


def sign(name, value, paper):
    """A line of `signs`.

    >>> sign("a", 0.1, 0.2)
    '| a | +0.100 | +0.200 | as the paper |'
    >>> sign("b", -0.1, 0.0), sign("c", 0.1, "smaller")
    ('| b | -0.100 | +0.000 | paper: equal |', '| c | +0.100 | smaller | against the paper |')
    """
    told = paper if isinstance(paper, str) else f"{paper:+.3f}"
    wanted = -1.0 if isinstance(paper, str) else round(paper, 6)
    if value is None:
        return f"| {name} | not run | {told} | - |"
    same = "paper: equal" if wanted == 0 else "against the paper"
    if wanted * value > 0:
        same = "as the paper"
    return f"| {name} | {value:+.3f} | {told} | {same} |"


def plots(root=ROOT):
    """{path below `root`: SVG text} of the sensitivity over epsilon, where it was measured.

    A method has one colour: thin lines for seeds, a thick one for their mean.
    """
    found = {method: measured(method, "features.json", root / "saved_models") for method in TABLE1}
    found = {method: seeds for method, seeds in found.items() if seeds}
    if not found:
        return {}
    inks = dict(zip(TABLE1, figures.INKS, strict=True))

    def paint(figure):
        axis = figure.subplots()
        for method, seeds in found.items():
            courses = [course(told) for told in seeds.values()]
            x = courses[0][0]
            for _, y in courses:
                axis.plot(x, y, color=inks[method], linewidth=0.7, alpha=0.6)
            mean = [
                sum(column) / len(column) for column in zip(*(y for _, y in courses), strict=True)
            ]
            title = METHODS[method].title + (f", {len(courses)} seeds" if len(courses) > 1 else "")
            axis.plot(x, mean, color=inks[method], linewidth=2, label=title)
        axis.set(xlabel="epsilon", ylabel="median relative shift of the representation")
        axis.set(xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False)

    return {"docs/results/afd_sensitivity.svg": figures.svg((6.0, 3.4), paint)}


def course(told):
    """(epsilons, median shifts) from (0, 0) on."""
    rows = sorted((float(epsilon), s["median"]) for epsilon, s in told["sensitivity"].items())
    return [0.0, *(e for e, _ in rows)], [0.0, *(m for _, m in rows)]
