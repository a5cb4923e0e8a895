"""docs/results/afd.md from made-up cards: means over seeds, verdicts, what is left out."""

import numpy as np

import tfrobust as tr
from recipes import afd_stages, afd_table2_auc, figures, results_afd, results_afd_features
from tests.test_recipes_afd_rows import flags


def made(root, method, seed, pgd, suite, area=0.5, units=8, **changes):
    """A card of 100 images with figures, and what was measured beside it; returns its folder."""
    args = flags(root, out=root / "saved_models", **changes)
    rate, title = tr.evaluate.Rate, afd_stages.METHODS[method].title
    families = {"PGD": rate(pgd, 100), "AutoAttack": rate(suite, 100)}
    flag = tr.evaluate.Flag("seen", f"Seen {seed}.", "Look.", "doubt" if seed == 2 else "note")
    scores = tr.evaluate.Scores(
        100, 10, rate(99, 100), (), families, rate(suite, 100), flags=(flag,)
    )
    told = {**afd_stages.flags_of(method, seed, args), "n": args.n, "digest": "net"}
    told |= {"parameters": 1234, "seconds": [60.0 + seed, 90.0], "collapse": []}
    pairs = {"DDN": ([0.5] * 190, 10), "DeepFool": ([], 200), "C&W": ([0.25], 0)}
    angles = {
        name: tr.diagnostics.Angles(np.array(values), left)
        for name, (values, left) in pairs.items()
    }
    entry = tr.report.Entry(scores=[scores], settings=told, angles=angles)
    folder = args.out / afd_stages.name_of(method, seed, args.net)
    command = afd_stages.command(method, seed, args)
    card = tr.report.card(folder.name, {title: entry}, command=command)
    card = tr.report.amended(card, title, entry=tr.report.Entry(angles=angles), command="later")
    card.save(folder)
    curves = {name: {"auc": area, "n": 8, "net": "net"} for name in results_afd_features.AREAS}
    afd_table2_auc.keep(folder / "curves.json", curves)
    shift = {"median": 0.1 + 0.1 * seed, "deviation": 0.2}
    afd_table2_auc.keep(folder / "features.json", {
        "n": 8, "net": "net", "layer": "pool" if method != "afd" else "features",
        "dimensions": {"units": units, "features": 32, "dimensions": 4, "lone": 2},
        "sensitivity": {"0.1": {**shift, "median": 0.05}, "0.3": shift},
    })  # fmt: skip
    return folder


def test_nothing_of_nothing(tmp_path):
    assert results_afd.page(tmp_path) is None and results_afd.plots(tmp_path) == {}


def test_page_of_three_seeds(tmp_path):
    for seed, pgd in ((0, 90), (1, 92), (2, 94)):
        made(tmp_path, "afd", seed, pgd, 80, area=0.6, units=8)
        made(tmp_path, "at", seed, 95, 91 + seed, area=0.5, units=32)
    page = results_afd.page(tmp_path)
    assert "| **AFD, 3 seeds** | 99.00 +- 0.00 | 92.00 +- 2.00 | not run |" in page
    assert "| AFD, seed 1 | 99.00 (94.6 to 99.8, n = 100) | 92.00 (85.0 to 95.9, n = 100) |" in page
    assert "| AFD, paper | 99.15 +- 0.12 | 96.13 +- 0.35 |" in page and "| 92 | - |" in page
    assert "- AFD - AT under PGD-40 x 5: -3.00 points, 92.00 (seeds: 3) and 95.00" in page
    assert "**more than** 2 points below AT" in page and "AutoAttack: -12.00 points" in page
    assert "- PGD - AutoAttack of AFD, mean over seeds: 12.0 **masked?**." in page
    assert "- Doubts about AFD, seed 2: Seen 2." in page and "Seen 1." not in page
    assert "| AFD | 3 | 0.5 | 10 | 1,234 | PGD-7, steps of 0.075 | 61 +- 1 | 90 +- 0 |" in page
    assert "| **AT, 3 seeds** | 0.500 +- 0.000 |" in page
    assert "| area, PGD Linf | +0.100 | +0.160 | as the paper |" in page
    assert "| area, C&W | +0.100 | +0.000 | paper: equal |" in page
    assert "| units used, % | -75.000 | -71.875 | as the paper |" in page
    assert "| components, % | +0.000 | -57.812 | against the paper |" in page
    assert "| 8 of 32 (25 %) |" in page and "| 18 of 64 (28 %) | 6 of 64 (9 %) |" in page
    assert "`pool` (AT); `features` (AFD)" in page and "has 32 features, the paper's 64" in page
    assert "0.500 (n = 190, 10 left out) | - (n = 0, 200 left out)" in page
    assert "- `later`" in page and "--methods at --seeds 2`" in page
    assert (
        "## LeNet-5" not in page and "## Discriminators" not in page and "## The game" not in page
    )
    (drawn,) = results_afd.plots(tmp_path).values()
    assert drawn == results_afd.plots(tmp_path)["docs/results/afd_sensitivity.svg"]
    colours = {
        line.split("stroke: ")[1][:7] for line in drawn.splitlines() if "stroke-width: 2" in line
    }
    assert len(colours & set(figures.INKS)) == 2


def test_settings_that_differ_have_lines_of_their_own(tmp_path):
    made(tmp_path, "afd", 0, 97, 95)
    made(tmp_path, "afd", 1, 97, 95, epochs=20)
    made(tmp_path, "at", 0, 96, 95)
    page = results_afd.page(tmp_path)
    assert "| AFD | 1 | 0.5 | 10 |" in page and "| AFD | 1 | 0.5 | 20 |" in page
    assert "+1.00 points" in page and ": at most 2 points below AT." in page
    folder = made(tmp_path, "nt", 0, 0, 0)
    assert results_afd_features.area_rows("nt", tmp_path / "saved_models") == {0: [0.5] * 8}
    assert "| NT | 1 | 0.5 | 10 | 1,234 | none | 60 | 90 |" in results_afd.page(tmp_path)
    card = tr.report.load(folder).to_dict()
    card["models"]["NT"]["settings"]["digest"] = "another"
    tr.report.Card(card).save(folder)
    assert not results_afd_features.area_rows("nt", tmp_path / "saved_models")
