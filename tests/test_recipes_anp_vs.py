"""The ANP-VS recipes: commands of cards, the page, and the whole way on tiny data."""

import argparse
import dataclasses
import json
import shutil

import numpy as np
import pytest

import tfrobust as tr
from recipes import anp_vs_cards, anp_vs_rows, anp_vs_stages, results_anp_vs
from tests.test_recipes import folder, run  # noqa: F401


def flags(tmp_path, **changes):
    """The flags of table 1 at their defaults, but for the changes."""
    told = {name: keywords.get("default") for name, keywords in anp_vs_rows.options().items()}
    told |= {"epochs": 10, "smoke": False, "seed": 0, "work": tmp_path, "out": tmp_path}
    told |= anp_vs_stages.NETS["mnist"].defaults
    return argparse.Namespace(**{**told, **changes})


def test_cards_are_named_by_what_their_row_depends_on(tmp_path):
    args = flags(tmp_path, suppress=10.0, bp_beta=4.0, epochs=4)
    assert anp_vs_rows.name_of("at", 0, args) == "mnist_anp_at_s0"
    assert anp_vs_rows.name_of("at_vs", 2, args) == "mnist_anp_at_vs_suppress10_s2"
    assert anp_vs_rows.name_of("bp_vib", 1, args) == "mnist_anp_bp_vib_bp_beta4_s1"
    assert anp_vs_rows.command("at_vs", 2, args) == (
        "python -m recipes.anp_vs_table1 --rows at_vs --seeds 2 --epochs 4 --suppress 10"
    )
    assert anp_vs_rows.command("at", 0, flags(tmp_path, n=500, width=0.5)) == (
        "python -m recipes.anp_vs_table1 --rows at --seeds 0 --epochs 10 --width 0.5 --n 500"
    )


def test_every_row_has_the_figures_of_the_paper():
    for data, rows in results_anp_vs.PAPER.items():
        assert set(rows) == set(anp_vs_rows.ROWS), data
        assert all(len(values) == 8 for values in rows.values())


def test_no_table_without_cards(tmp_path):
    (tmp_path / "saved_models").mkdir()
    assert results_anp_vs.section("mnist", tmp_path) == []


def test_a_card_of_other_flags_is_refused(tmp_path):
    args = flags(tmp_path)
    name = anp_vs_rows.name_of("at", 0, args)
    tr.report.card(
        name, {"AT": tr.report.Entry()}, command=anp_vs_rows.command("at", 0, args)
    ).save(tmp_path / name)
    anp_vs_rows.every([("at", 0, {})], args, None)  # is there: nothing to do
    wanted = [("trades", 0, {}), ("at", 0, {})]  # refused before the first is trained
    with pytest.raises(SystemExit, match="`--out` must hold cards of these flags"):
        anp_vs_rows.every(wanted, flags(tmp_path, epochs=3), None)


def test_cards_of_one_table_differ_in_their_row_alone(tmp_path):
    entry = tr.report.Entry(settings={"epochs": 10, "n": 1000, "width": 1.0})
    tr.report.card("x", {"AT": entry}).save(tmp_path / "mnist_anp_at_s0")
    for name, value in (("epochs", 3), ("n", 10), ("width", 0.5), ("warm", 2)):
        with pytest.raises(SystemExit, match=f"`--{name}` must be that of the other cards"):
            anp_vs_rows.every([("trades", 0, {})], flags(tmp_path, **{name: value}), None)


WRONG = [
    {"epochs": 0}, {"n": -5}, {"n": 20_000}, {"warm": -3}, {"seeds": [0, -1]}, {"train_images": 0},
    {"gain": float("nan")}, {"gain": 0.5}, {"gain": float("inf")}, {"beta": float("nan")},
    {"suppress": -1.0}, {"cost_power": float("nan")}, {"cost_power": 1000.0}, {"width": 0.0},
    {"grid": [1.0, float("inf")]}, {"seed": 3}, {"train_images": 70_000},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_senseless_flags_are_refused_before_work(tmp_path, monkeypatch, wrong):
    small = tr.data.load("digits")
    monkeypatch.setattr(anp_vs_rows.pruning_stages, "dataset", lambda args: small)
    args = flags(tmp_path, **{"n": 100, "train_images": None, **wrong})
    (name,) = wrong
    with pytest.raises(SystemExit, match=f"`--{name.replace('_', '-')}s?` "):
        anp_vs_rows.prepared(args)


def test_a_stage_of_other_flags_is_refused(tmp_path):
    """Done or killed; of another data set, network, start; not of other rows' options."""
    args, data, place = flags(tmp_path, epochs=2), tr.data.load("digits"), tmp_path / "at"
    run = anp_vs_stages.Run(args, data, 0)
    net = run.net()

    def begun(run, net=net, epochs=2, before=None):
        return run.begun(place, run.flags(net, epochs, before or {}))

    assert begun(run) is None
    args.gain, args.suppress = 2.0, 3.0  # other rows' affairs
    assert begun(run) is None
    others = [
        ("before", {"before": {"standard": 16}}),
        ("epochs", {"epochs": 3}),
        ("weights at the start", {"net": anp_vs_stages.Run(args, data, 1).net()}),
    ]
    for done in (False, True):
        if done:
            anp_vs_stages.keep(place / "stage.json", {"seconds": [1.0, 1.0], "epochs": 2})
            assert begun(run)["epochs"] == 2
        for name, change in others:
            with pytest.raises(SystemExit, match=f"must hold stages of the same flags.*{name}"):
                begun(run, **change)
    fewer = dataclasses.replace(data, x_train=data.x_train[:9], y_train=data.y_train[:9])
    with pytest.raises(SystemExit, match="must hold stages of the same flags.*train_images"):
        begun(anp_vs_stages.Run(args, fewer, 0))
    args.width = 0.5
    with pytest.raises(SystemExit, match="must hold stages of the same flags.*width"):
        begun(run)
    (place / "flags.json").unlink()
    with pytest.raises(SystemExit, match="must hold stages with their flags"):
        begun(run)


def test_flags_are_completed_by_the_data_set(tmp_path, monkeypatch):
    small = tr.data.load("digits")
    monkeypatch.setattr(anp_vs_rows.pruning_stages, "dataset", lambda args: small)
    bare = dict.fromkeys(anp_vs_rows.BY_DATA)
    args = flags(tmp_path, **bare, data="cifar10", n=50, train_images=100, test_images=60)
    data = anp_vs_rows.prepared(args)
    assert (len(data.x_train), len(data.y_train), len(data.x_test), len(data.y_test)) == (
        100, 100, 60, 60)  # fmt: skip
    assert (args.width, args.dropout, args.warm, args.vib_beta) == (0.25, 0.0, 16, 50.0)
    assert anp_vs_rows.name_of("anp_vs_vib", 0, args) == "cifar10_anp_anp_vs_vib_s0"
    assert anp_vs_rows.command("anp_vs_vib", 0, args) == (
        "python -m recipes.anp_vs_table1 --data cifar10 --rows anp_vs_vib --seeds 0 --epochs 10 "
        "--train-images 100 --test-images 60 --n 50"
    )
    args = flags(tmp_path, **bare, n=50)
    anp_vs_rows.prepared(args)
    assert (args.width, args.dropout, args.warm, args.vib_beta) == (1.0, None, 0, 100.0)
    with pytest.raises(SystemExit, match="`--n` must be"):
        anp_vs_rows.prepared(flags(tmp_path, **bare, n=61, test_images=60))


def test_missing_data_is_one_line(tmp_path):
    args = flags(tmp_path, **dict.fromkeys(anp_vs_rows.BY_DATA), data_dir=tmp_path / "none")
    with pytest.raises(SystemExit, match="none"):
        anp_vs_rows.prepared(args)


def test_a_sweep_of_another_net_is_not_shown(tmp_path):
    net, table2 = tmp_path / "mnist_anp_at_s0", tmp_path / "mnist_anp_table2"
    net.mkdir()
    (net / "model.keras").write_bytes(b"a net")
    row = {"mark": {"n": 4, "net": results_anp_vs.mark(net)}, "n": 4}
    row |= {"epsilon": [[0.1, 3]], "iterations": [[100, 2]]}
    anp_vs_stages.keep(table2 / "results.json", {"rows": {net.name: row, "gone": row}})
    assert results_anp_vs.sweeps("mnist", tmp_path)[2:] == ["| mnist_anp_at_s0 | 4 | 75.0 | 50.0 |"]
    (net / "model.keras").write_bytes(b"another")
    assert results_anp_vs.sweeps("mnist", tmp_path) == []


def test_masks_of_a_run_have_noise_of_their_own(tmp_path):
    stage = anp_vs_stages.Run(flags(tmp_path), None, 0)
    net = stage.masked(stage.net(), "bbd", initial_a=2.0)
    gates = [mask.sample(1)[0, :20].numpy() for mask in tr.layers.masks(net)]
    assert all(not np.array_equal(a, b) for a, b in zip(gates, gates[1:], strict=False))


def test_rows_on_cifar_start_from_the_standard_net(tmp_path, monkeypatch):
    """Once, shared by all; on MNIST from random weights; a flag without meaning is refused."""
    begun = []

    def stage(run, name, before, net, epochs, *_, **__):
        begun.append((name, before and list(before.epochs), epochs))
        return anp_vs_stages.Trained(net, [0.0, 0.0], {name: epochs})

    monkeypatch.setattr(anp_vs_stages.Run, "stage", stage)
    data = tr.data.load("digits")
    rows = (anp_vs_stages.at, anp_vs_stages.trades, anp_vs_stages.at_bnn, anp_vs_stages.standard)
    for name, warm in (("cifar10", 16), ("mnist", 0)):
        args = flags(tmp_path, data=name, width=0.0625, dropout=0.0, warm=warm)
        begun.clear()
        for row in rows:
            row(anp_vs_stages.Run(args, data, 0))
        told = {name: (before, epochs) for name, before, epochs in begun}
        start = ["standard"] if warm else None
        assert told["standard"] == (None, warm or 10)
        assert told["at"] == told["trades"] == told["at_bnn"] == (start, 10)
    args = flags(tmp_path, dropout=0.5)
    with pytest.raises(SystemExit, match="`--dropout` has no meaning for mnist"):
        anp_vs_rows.prepared(args)


def test_features_of_v_are_those_of_the_release():
    """11,520 + 3,200 + 500 units of LeNet, 277,504 over 15 features of VGG-16."""
    for net, features, units in (
        (tr.models.lenet5_caffe(), 3, 15_220),
        (tr.models.vgg16(), 15, 277_504),
    ):
        found = anp_vs_stages.units_of(net, net)
        assert (len(found), sum(found.values())) == (features, units)


def test_weights_of_masks_follow_the_cost_of_a_unit(tmp_path):
    stage = anp_vs_stages.Run(flags(tmp_path), None, 0)
    net = stage.masked(stage.net(), "bbd")
    weights = anp_vs_stages.cost_weights(net, 0.5)
    costs, units = tr.footprint.unit_costs(net), [20, 50, 800, 500]
    assert sum(w * n for w, n in zip(weights.values(), units, strict=True)) == pytest.approx(1370)
    ratio = weights["mask_conv1"] / weights["mask_flatten"]
    assert ratio**2 == pytest.approx(costs["mask_conv1"] / costs["mask_flatten"])
    assert set(anp_vs_stages.cost_weights(net, 0.0).values()) == {1.0}


def told(clean, v, auto=50):
    """What `columns` reads of a card."""
    rate = {"count": clean, "n": 100}
    paper = {"memory": 10.0, "xflops": 5.0, "sparsity": 80.0}
    attack = {"name": "PGD-40", "rate": {"count": clean - 10, "n": 100}}
    entry = {
        "clean": rate,
        "families": {
            "PGD": {"count": 45, "n": 50},
            "AutoAttack": auto and {"count": auto, "n": 50},
        },
        "scores": [{"attacks": [{"name": "FGSM", "rate": rate}, attack]}],
        "transfer": [{"robust": {"count": clean - 1, "n": 100}}],
        "vulnerability": {"network": v},
        "vulnerability_black": {"network": v / 2},
        "settings": {"paper_columns": paper, "zeros": 0.9, "seconds": [9.0, 7.0]},
    }
    return {"models": {"AT": entry}}


def test_seeds_are_averaged():
    cells = anp_vs_cards.means({0: told(98, 0.01), 1: told(96, 0.03)}, anp_vs_cards.DIGITS)
    assert cells[:6] == ["97.00 +- 1.41", "87.00 +- 1.41", "96.00 +- 1.41", "90.0 +- 0.0",
                         "100.0 +- 0.0", "0.0200 +- 0.0141"]  # fmt: skip
    assert cells[7:] == ["-10.0 +- 0.0", "10.00 +- 0.00", "5.00 +- 0.00", "90.00 +- 0.00", "7 +- 0"]
    assert anp_vs_cards.means({0: told(98, 0.01, None)}, ("autoattack",)) == ["not run"]


def test_cards_of_a_row_do_not_stray_to_another(tmp_path):
    """Rows whose names begin alike, options, seeds."""
    names = (
        "at_s0",
        "at_s1",
        "at_bnn_s0",
        "at_vs_s0",
        "at_vs_suppress10_s0",
        "anp_bbd_beta8_gain0_s2",
    )
    for name in names:
        name = f"mnist_anp_{name}"
        tr.report.card(name, {"AT": tr.report.Entry()}).save(tmp_path / name)
    found = {row: results_anp_vs.cards("mnist", row, tmp_path) for row in anp_vs_rows.ALL}
    shape = {row: {more: list(seeds) for more, seeds in v.items()} for row, v in found.items() if v}
    assert shape == {
        "at": {"": [0, 1]},
        "at_bnn": {"": [0]},
        "at_vs": {"": [0], "_suppress10": [0]},
        "anp_bbd": {"_beta8_gain0": [2]},
    }


def test_the_ablation_is_ordered_by_lambda(monkeypatch):
    """V falls from AT to AT-VS in these figures; the default lambda has no suffix."""
    made = {
        "at": {"": {0: told(98, 0.05)}},
        "at_vs": {"": {0: told(97, 0.04)}, "_suppress10": {0: told(96, 0.02)}},
        "anp_vs_bbd": {"_beta8": {0: told(1, 0.5)}, "_gain0": {0: told(1, 0.5)}},
    }
    monkeypatch.setattr(results_anp_vs, "cards", lambda data, row, saved: made.get(row, {}))
    lines = results_anp_vs.ablation("mnist")[2:]
    assert lines[1] == "| *the paper* | | | 99.14 | 88.03 | | 0.045 | |"
    lines = [line for line in lines if "*the paper*" not in line]
    assert [line.split(" | ")[1] for line in lines] == ["0", "1", "10"]
    assert [line.split(" | ")[6] for line in lines] == ["0.0500", "0.0400", "0.0200"]
    del made["at_vs"]
    assert results_anp_vs.ablation("mnist") == []


def test_suppression_is_compared_on_the_seeds_of_both(monkeypatch):
    made = {
        "at": {"": {0: told(98, 0.05), 1: told(98, 0.04), 2: told(9, 0.9)}},
        "at_vs": {
            "": {0: told(97, 0.04, 49), 1: told(97, 0.04, 48)},
            "_suppress10": {1: told(96, 0.02)},
        },
        "anp_vs_bbd": {"": {0: told(1, 0.5)}},
        "anp_bbd": {"": {0: told(1, 0.5, None)}},
    }
    monkeypatch.setattr(results_anp_vs, "cards", lambda data, row, saved: made.get(row, {}))
    assert results_anp_vs.suppression("mnist") == [
        "- AT-VS, lambda 1, beside AT, 2 seeds: V 0.90 +- 0.14 x, AutoAttack -3.0 +- 1.4 points.",
        "- AT-VS, lambda 10, beside AT, seed 1: V 0.50 x, AutoAttack +0.0 points.",
    ]


def test_the_verdict_compares_means_over_seeds(monkeypatch):
    made = {
        "at": {"": {0: told(98, 0.05), 1: told(98, 0.05, 40)}},
        "anp_vs_bbd": {"": {0: told(97, 0.04, 42)}},
        "anp_vs_vib": {"": {0: told(97, 0.04, None)}},
    }
    monkeypatch.setattr(results_anp_vs, "cards", lambda data, row, saved: made.get(row, {}))
    (line,) = results_anp_vs.verdict("mnist")
    assert "AutoAttack: -6.00 points, 84.00 (seeds: 1) and 90.00 (seeds: 2), at 5.00 x" in line


def test_figure_3_takes_masks_that_no_gain_stopped(monkeypatch):
    made = {
        "at": {"": {0: told(98, 0.05), 1: told(98, 0.05)}},
        "bp_bbd": {"": {0: told(97, 0.04)}, "_bp_beta8": {0: told(96, 0.04)}},
        "anp_vs_bbd": {
            "": {0: told(95, 0.04)},
            "_beta8_gain0": {0: told(94, 0.04)},
            "_beta8_gain0_cost_power0": {0: told(1, 0.5)},
        },
    }
    monkeypatch.setattr(results_anp_vs, "cards", lambda data, row, saved: made.get(row, {}))
    lines = results_anp_vs.figure3("mnist")[2:]
    assert [line.split(" | ")[1] for line in lines] == ["-", "1", "8", "8"]
    assert [line.split(" | ")[4] for line in lines] == ["98.00 +- 0.00", "97.00", "96.00", "94.00"]
    drawn = results_anp_vs.plots()["docs/results/mnist_beta.svg"]
    assert drawn.startswith("<?xml") and drawn.count(">AT<") == 1
    del made["bp_bbd"]["_bp_beta8"]
    assert results_anp_vs.figure3("mnist") == [] and not results_anp_vs.plots()


@pytest.mark.slow
def test_the_tables(folder, tmp_path):  # noqa: F811
    """All rows on stages that they share; a second call does nothing new; sweeps; the page."""
    flags = ("--data-dir", folder, "--work", tmp_path)
    rows = ("standard", "bp_vib", "at_bnn", "admm", "trades", "anp_vs_bbd")
    run("anp_vs_table1", "--rows", *rows, *flags)
    run("anp_vs_table3", "--grid", 1, 10, *flags)
    run("anp_vs_fig3", "--grid", 1, *flags)
    (tmp_path / "saved_models").symlink_to(tmp_path / "smoke")
    page = "\n".join(results_anp_vs.section("mnist", tmp_path))
    for word in ("AT BNN", "ADMM", "ANP-VS (beta-Bernoulli)", "*the paper*", "AT-VS"):
        assert word in page
    shutil.rmtree(tmp_path / "smoke" / "mnist_anp_at_bnn_s0")
    run("anp_vs_table1", "--rows", "at_bnn", *flags)  # judged anew, from the stage that is kept
    run("anp_vs_table2", "--rows", "at", "anp_vs_bbd", *flags)
    made = json.loads((tmp_path / "smoke" / "mnist_anp_table2" / "results.json").read_text())
    assert set(made["rows"]) == {"mnist_anp_at_s0", "mnist_anp_anp_vs_bbd_s0"}
    for row in made["rows"].values():
        assert all(0 <= right <= row["n"] for _, right in row["epsilon"])
        assert row["iterations"][0][1] >= row["iterations"][1][1]  # more steps never help the net


@pytest.mark.slow
def test_the_search(folder, tmp_path):  # noqa: F811
    out = run("tune_anp_vs", "--data-dir", folder, "--work", tmp_path)
    made = json.loads((tmp_path / "smoke" / "mnist_tune_anp_vs" / "results.json").read_text())
    assert made["trials"] == 2 and made["front"] and "wrote" in out
