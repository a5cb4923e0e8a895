"""The AFD recipes walk their whole way on tiny data, and the page says what cards hold."""

import json

import pytest

import tfrobust as tr
from recipes import afd_stages, results_afd, results_afd_features
from tests.test_recipes import folder, run  # noqa: F401


def entry(pgd, suite):
    def rate(count):
        return None if count is None else {"count": count, "n": 200}

    attacks = [{"name": "transfer of PGD-40", "rate": rate(190)}]
    return {
        "clean": rate(198),
        "families": {"PGD": rate(pgd), "FGSM": rate(180), "AutoAttack": rate(suite)},
        "scores": [{"attacks": attacks}],
    }


def test_a_row_tells_the_gap_between_pgd_and_autoattack():
    row = results_afd.row(entry(180, 150))
    assert row[-1] == "15.0 **masked?**" and row[1] == "90.00 (85.1 to 93.4, n = 200)"
    assert row[4] == "not run" and row[5].startswith("75.00")  # no FGSM transfer
    assert results_afd.row(entry(180, 172))[-1] == "4.0"
    assert results_afd.row(entry(180, None))[-2:] == ["not run", "not run"]


def test_every_row_of_the_paper_has_a_method():
    features = results_afd_features
    assert set(features.PAPER_AREAS) <= set(afd_stages.METHODS)
    assert set(results_afd.TABLE_A6) | set(results_afd.TABLE1) == set(afd_stages.METHODS)
    assert all(len(values) == len(features.AREAS) for values in features.PAPER_AREAS.values())
    known = [method.paper for method in afd_stages.METHODS.values() if method.paper]
    assert len(known) == 6 and all(len(row) == len(results_afd.COLUMNS) for row in known)


@pytest.mark.slow
def test_tables_of_afd(folder, tmp_path):  # noqa: F811
    """Trained, judged, taken up again, and its areas measured."""
    flags = ("--data-dir", folder, "--work", tmp_path)
    out = run("afd_table1", *flags)
    assert "AFD, seed 0" in out and "PGD - AutoAttack" in out
    saved = tmp_path / "smoke" / "saved_models" / "mnist_lenet_afd"
    card = json.loads((saved / "card.json").read_text())
    assert "--methods afd" in card["command"]
    part = card["models"]["AFD"]
    assert part["settings"]["collapse"] == [] and "trace" not in part["settings"]
    trace = tr.report.entry.unpacked(part["trace"])
    assert trace["values"][-1][trace["names"].index("discriminator_accuracy")] > 0
    assert "has a card" in run("afd_table1", "--resume", *flags)
    assert "AFD, FC1-PD, seed 0" in run("afd_discriminators", *flags)
    page = results_afd.page(tmp_path / "smoke")
    assert "## LeNet-5" in page and "no collapse" in page and "## Table 1" not in page


@pytest.mark.slow
def test_areas(folder, tmp_path):  # noqa: F811
    flags = ("--data-dir", folder, "--work", tmp_path)
    out = run("afd_table2_auc", *flags)
    assert "C&W: area" in out and "units" in out
    saved = tmp_path / "afd_table2" / "smoke" / "saved_models" / "mnist_lenet_afd"
    curves = json.loads((saved / "curves.json").read_text())
    assert set(curves) == set(results_afd_features.AREAS)
    part = tr.report.load(saved).to_dict()["models"]["AFD"]
    given = set(tr.report.representation.FIELDS) - {"trace"}
    assert given <= set(part) and set(part["areas"]) == set(curves)
    root = saved.parent.parent
    assert len(results_afd_features.angles(root / "saved_models", "lenet5")) == 3
    assert results_afd.plots(root) == {}  # of the ResNet alone
    saved.rename(saved.parent / "mnist_rn18_afd")
    (drawn,) = results_afd.plots(root).values()
    assert "relative shift of the representation" in drawn
    assert part["judged_by"] == [
        "python -m recipes.afd_table2_auc --n 8 --models saved_models/mnist_lenet_afd --smoke"
    ]
    assert results_afd.plots(root) == {"docs/results/afd_sensitivity.svg": drawn}
    assert "afd_sensitivity.svg" in results_afd.page(root)
