"""The ANP-VS recipes: commands of cards, the page, and the whole way on tiny data."""

import argparse
import json

import pytest

from recipes import anp_vs_stages, anp_vs_table1, results_anp_vs
from tests.test_recipes import folder, run  # noqa: F401


def test_a_card_names_its_own_command():
    args = argparse.Namespace(
        command="python -m recipes.anp_vs_table3 --grid 1 10 --data mnist --suppress 3 --epochs 4"
    )
    assert anp_vs_table1.command(args, "at_vs", 2, {"suppress": 10.0}) == (
        "python -m recipes.anp_vs_table1 --data mnist --epochs 4 --suppress 10 "
        "--rows at_vs --seeds 2"
    )


def test_every_row_has_the_figures_of_the_paper():
    for data, rows in results_anp_vs.PAPER.items():
        assert set(rows) == set(anp_vs_table1.ROWS), data
        assert all(len(values) == 8 for values in rows.values())


def test_no_table_without_cards(tmp_path):
    (tmp_path / "saved_models").mkdir()
    assert results_anp_vs.section("mnist", tmp_path) == []


def test_a_stage_of_other_flags_is_refused(tmp_path):
    args = argparse.Namespace(data="mnist", epochs=2, work=tmp_path, width=1.0)
    stage = anp_vs_stages.Run(args, None, 0)
    stage.keep(tmp_path / "at", 2, {}, {"seconds": [1.0, 1.0], "epochs": 2})
    assert stage.told(tmp_path / "at", 2, {})["epochs"] == 2
    args.width = 0.5
    with pytest.raises(SystemExit, match="must hold stages of the same flags.*other width"):
        stage.told(tmp_path / "at", 2, {})


@pytest.mark.slow
def test_the_tables(folder, tmp_path):  # noqa: F811
    """All rows on stages that they share; a second call does nothing new; sweeps; the page."""
    flags = ("--data-dir", folder, "--work", tmp_path)
    rows = ("standard", "bp_vib", "at_bnn", "admm", "trades", "anp_vs_bbd")
    run("anp_vs_table1", "--rows", *rows, *flags)
    run("anp_vs_table3", "--grid", 1, *flags)
    (tmp_path / "saved_models").symlink_to(tmp_path / "smoke")
    page = "\n".join(results_anp_vs.section("mnist", tmp_path))
    for word in ("AT BNN", "ADMM", "ANP-VS (beta-Bernoulli)", "*the paper*", "AT-VS"):
        assert word in page
    run("anp_vs_table2", "--rows", "at", "anp_vs_bbd", *flags)
    made = json.loads((tmp_path / "smoke" / "mnist_anp_table2" / "results.json").read_text())
    assert {row["row"] for row in made["rows"]} == {"at", "anp_vs_bbd"}
    assert all(0 <= right <= row["n"] for row in made["rows"] for _, right in row["epsilon"])


@pytest.mark.slow
def test_the_search(folder, tmp_path):  # noqa: F811
    out = run("tune_anp_vs", "--data-dir", folder, "--work", tmp_path)
    made = json.loads((tmp_path / "smoke" / "mnist_tune_anp_vs" / "results.json").read_text())
    assert made["trials"] == 2 and made["front"] and "wrote" in out
