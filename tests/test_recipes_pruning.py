"""The stages of robust pruning: the ladder, its curve, the page that cards make."""

import argparse
import sys
import types

import keras
import numpy as np
import pytest

import tfrobust as tr
from recipes import (
    command,
    mnist,
    pretrain,
    pruning_judge,
    pruning_stages,
    results_pruning,
    robust_pruning,
)
from tests import bank_pruning as bank
from tests.test_recipes import folder, run  # noqa: F401


def test_ladder_passes_every_ratio():
    rungs = pruning_stages.ladder([0.5, 0.75, 0.9, 0.95, 0.98])
    assert len(rungs) == 40 and rungs[-2:] == [0.975, 0.98]
    assert {0.5, 0.75, 0.9, 0.95} < set(rungs)
    np.testing.assert_allclose(np.diff(rungs[:-1]), 0.025, atol=1e-9)


def test_curve_measures_each_rung_after_its_training():
    """Rungs of two steps in epochs of three: rows come before the next update, wherever it is."""
    net, rungs, seen = bank.compiled(bank.dense()), [0.25, 0.5, 0.75], []
    clock = mnist.Clock()
    curve = pruning_stages.Curve(
        net,
        rungs,
        2,
        look=lambda net: {"clean": 1.0, "attacked": tr.pruning.sparsity(net)},
        keep=lambda net, ratio, seconds: seen.append((ratio, seconds[0] >= 0)),
        clock=clock,
    )
    prune = tr.pruning.MagnitudePruning(tr.pruning.Ladder(rungs, every=2, unit="steps"))
    bank.fit(net, clock, curve, prune, epochs=2)
    assert [row["ratio"] for row in curve.rows] == rungs
    assert [row["attacked"] for row in curve.rows] == rungs  # 160 weights: exact quarters
    assert seen == [(r, True) for r in rungs]
    assert curve.rows[0]["seconds"][0] <= curve.rows[2]["seconds"][0] <= clock.done[0]


def test_same_architecture_fresh_weights():
    net = bank.dense()
    first, again = pruning_stages.fresh(net, 1), pruning_stages.fresh(net, 1)
    assert [w.shape for w in first.weights] == [w.shape for w in net.weights]
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.get_weights()[0], net.get_weights()[0])


def test_a_run_goes_on_with_its_own_flags(tmp_path):
    args = argparse.Namespace(resume=False, rate=1e-3, work=tmp_path)
    pruning_stages.same_run(args, tmp_path / "run")
    args.resume = True
    pruning_stages.same_run(args, tmp_path / "run")
    args.rate = 2e-3
    with pytest.raises(SystemExit, match="--rate was 0.001, is 0.002"):
        pruning_stages.same_run(args, tmp_path / "run")
    (tmp_path / "run" / "settings.json").rename(tmp_path / "run" / "other.json")
    with pytest.raises(SystemExit, match="settings.json, the flags of what .* holds: it is gone"):
        pruning_stages.same_run(args, tmp_path / "run")


def test_a_run_goes_on_from_its_own_start(tmp_path):
    args = argparse.Namespace(resume=False, rate=1e-3, work=tmp_path)
    net, other = bank.dense(seed=0), bank.dense(seed=1)
    pruning_stages.same_run(args, tmp_path / "run", start=net)
    args.resume = True
    pruning_stages.same_run(args, tmp_path / "run", start=bank.dense(seed=0))
    with pytest.raises(SystemExit, match="weights of start was .*, is "):
        pruning_stages.same_run(args, tmp_path / "run", start=other)
    (tmp_path / "run" / "settings.json").write_text('{"rate": 0.001}')  # by an earlier version
    pruning_stages.same_run(args, tmp_path / "run", start=other)


def arguments(**changes):
    told = {"resume": False, "smoke": False, "rate": 1e-3, "epochs": 6, "start": None, "n": 500}
    return argparse.Namespace(**{**told, **changes})


def card(place, took=None, titles=("before pruning", "50%"), **flags):
    """A card of a run with these flags, whose nets took so much."""
    args = arguments(**flags)
    entries = {title: tr.report.Entry(settings=command.told(args, took or {})) for title in titles}
    tr.report.card("run", entries).save(place)


TOOK = {"seconds": [2.0, 2.0], "epochs": 10}


@pytest.mark.parametrize("took", [{}, TOOK])
def test_a_card_of_other_flags_is_refused(tmp_path, took):
    command.refuse_other_flags(tmp_path, arguments(rate=7.0))
    card(tmp_path, took)
    command.refuse_other_flags(tmp_path, arguments())
    command.refuse_other_flags(tmp_path, arguments(smoke=True, rate=7.0))
    for flag, value in (("rate", 2e-3), ("n", 1000), ("epochs", 10)):
        with pytest.raises(
            SystemExit, match=f"must hold cards of these flags.*--{flag} was .*, is"
        ):
            command.refuse_other_flags(tmp_path, arguments(**{flag: value}))


def test_cards_that_do_not_tell_the_flag():
    """As they were: what the start took stood in the place of --epochs, or nothing did."""
    entry = {"settings": {"epochs": 10, "rate": 1e-3, "seconds": [1.0, 1.0]}}
    assert command.flags_of({"models": {"start": entry}}) == {"rate": 1e-3, "seconds": [1.0, 1.0]}
    entry["settings"].pop("seconds")
    assert command.flags_of({"models": {"start": entry}})["epochs"] == 10


def test_a_table_of_other_flags_is_refused(tmp_path):
    saved = tmp_path / "saved_models"
    for name in ("weights_none", "weights_nat", "filters_robust", "filters_robust_s1"):
        card(saved / f"mnist_pruned_{name}", TOOK, n=500)
    results_pruning.grid("mnist", "weights", tmp_path)
    results_pruning.duel("mnist", tmp_path)
    card(saved / "mnist_pruned_weights_nat", TOOK, n=1000)
    card(saved / "mnist_pruned_filters_robust_s1", TOOK, rate=2e-3)
    with pytest.raises(SystemExit, match="the same --n. Received: none 500, nat 1000"):
        results_pruning.grid("mnist", "weights", tmp_path)
    with pytest.raises(SystemExit, match="the same --rate. Received: pruned, fine-tuned, seed 0 0"):
        results_pruning.duel("mnist", tmp_path)


def test_smoke_leaves_real_runs_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robust_pruning.py", "--work", "w", "--out", "o", "--smoke"])
    args = mnist.arguments("", 1)
    assert (str(args.work), str(args.out)) == ("w/smoke_runs", "w/smoke")


def test_ratios_have_names_of_their_own():
    ratios = [0.5, 0.75, 0.9, 0.95, 0.97, 0.975, 0.98, 0.995]
    assert len({pruning_stages.label(r) for r in ratios}) == len(ratios)
    assert pruning_stages.label(0.9) == "90"


def test_scratch_twins_of_a_shipped_run(tmp_path):
    """The robust run is gone; its card tells what the net took."""
    args = arguments(structured="filters", ratios=[0.75], work=tmp_path, out=tmp_path / "out",
                     data="made_up", seed=0)  # fmt: skip
    with pytest.raises(SystemExit, match="needs the net of the robust run with the same seed"):
        robust_pruning.twins_of(args)
    shipped = tmp_path / "out" / "made_up_pruned_filters_robust"
    card(shipped, TOOK, titles=("before pruning", "75%"))
    tr.export.keras_file(bank.dense(), shipped / "model_75.keras")
    ((net, told),) = robust_pruning.twins_of(args).values()
    assert net.count_params() == bank.dense().count_params()
    assert (told["epochs"], told["seconds"]) == (10, [2.0, 2.0])


def test_epochs_of_equal_time_are_measured_once(tmp_path, monkeypatch):
    """30 seconds at 2 seconds an epoch and 1 to begin with; whoever goes on measures nothing."""
    places = []

    def from_scratch(net, scene, data, epochs, peak, seed, place, resume):
        places.append(place)
        return types.SimpleNamespace(done=[0.0, 1.0 + 2.0 * epochs])

    monkeypatch.setattr(pruning_stages, "from_scratch", from_scratch)
    for _ in range(2):
        count = robust_pruning.epochs_for(30.0, bank.dense(), None, None, tmp_path, "0.75")
        assert count == 15
    assert places == [tmp_path / "timing"] * 2


def test_half_a_judgement_belongs_to_its_net_and_images(tmp_path, monkeypatch):
    states = []

    def robustness(net, test, attacks, state, max_examples=None):
        states.append(state.name)
        rates = [types.SimpleNamespace(rate=0)]
        return types.SimpleNamespace(n=1, clean=0, attacks=rates)

    monkeypatch.setattr(tr.evaluate, "robustness", robustness)
    monkeypatch.setattr(tr.report, "Entry", lambda **told: told)
    scene, data = pruning_stages.SETTINGS["mnist"], types.SimpleNamespace(x_test=0, y_test=0)
    for net, n in ((bank.dense(), 5), (bank.dense(), 6), (bank.dense(seed=1), 5)):
        told = pruning_judge.entry(net, "start", scene, data, arguments(n=n), tmp_path, TOOK)
    assert told["settings"]["epochs"] == 10 and told["settings"]["flag_epochs"] == 6
    whole, first = states[::2], states[1::2]
    assert whole[0] == whole[1] != whole[2] and len(set(first)) == 3


def test_the_start_is_judged_before_anything_is_trained(folder, tmp_path, monkeypatch):  # noqa: F811
    """A wrong start, or a judgement of another, shows at once and not after hours."""
    words = ["robust_pruning", "--smoke", "--data-dir", folder, "--work", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    seen = []
    monkeypatch.setattr(robust_pruning, "pruned", lambda *_: seen.append("pruned") or {})
    monkeypatch.setattr(pruning_judge, "entry", lambda net, *rest: seen.append(rest[0]))
    monkeypatch.setattr(pruning_judge, "ship", lambda *_: seen.append("shipped"))
    robust_pruning.main()
    assert seen == ["mnist", "pruned", "shipped"]


def test_what_is_masked_is_told_of_the_net_before_the_cut(tmp_path, monkeypatch):
    """Half of 8 filters of 16 weights; the layer of logits stays, and the cut net has no zeros."""
    looks = {"clean": 1.0, "attacked": 0.0}
    monkeypatch.setattr(pruning_stages, "looker", lambda *_: lambda net: looks)
    args = arguments(ratios=[0.5, 0.95], smoke=True, structured="filters", scope="layer",
                     normalise="none", finetune="none")  # fmt: skip
    data = tr.data.Dataset(*bank.data(8), *bank.data(8), 4)
    pruning_stages.walk(bank.dense(), None, data, args, tmp_path)
    told = [pruning_stages.masked(tmp_path / f"pruned_{r:g}.json") for r in args.ratios]
    assert told == [{"masked": 0.5, "fewest": []}, {"masked": 0.875, "fewest": ["hidden"]}]
    cut = keras.saving.load_model(tmp_path / "pruned_0.5.keras", compile=False)
    assert pruning_stages.zeros(cut) == 0.0
    assert pruning_stages.masked(tmp_path / "of_an_earlier_version.json") == {}


def test_starts_of_pretrain():
    assert all(hasattr(tr.models, name) for name in pretrain.NETS)
    assert pretrain.build("linear", (8, 8, 1), 1.0).count_params() == 650
    with pytest.raises(SystemExit, match="`--width` is for nets with hidden units. Received: 0.5"):
        pretrain.build("linear", (8, 8, 1), 0.5)


def test_a_start_that_is_none(tmp_path):
    args = argparse.Namespace(start=str(tmp_path), data="mnist")
    with pytest.raises(SystemExit, match="must be the folder of a saved net"):
        pruning_stages.start_net(args)
    tr.export.keras_file(bank.dense(), tmp_path / "model.keras")
    with pytest.raises(SystemExit, match="must hold a card.json that tells the seconds"):
        pruning_stages.start_of(args)
    (tmp_path / "model.keras").write_bytes(b"no zip")
    with pytest.raises(SystemExit, match="must hold a readable model.keras"):
        pruning_stages.start_net(args)


def test_page_without_cards_is_only_its_head(tmp_path):
    (tmp_path / "saved_models").mkdir()
    assert results_pruning.page(tmp_path).startswith("# Robust pruning")
    assert "No run has been judged yet" in results_pruning.page(tmp_path)
    assert "##" not in results_pruning.page(tmp_path)


@pytest.mark.slow
def test_the_whole_grid(folder, tmp_path):  # noqa: F811
    """Robust, then the scratch twins of its nets, then no fine-tuning; the page shows them all."""
    flags = ("--data-dir", folder, "--work", tmp_path, "--structured", "filters")
    for mode in ("robust", "scratch", "none", "nat"):
        run("robust_pruning", "--finetune", mode, *flags)
    (tmp_path / "saved_models").symlink_to(tmp_path / "smoke")
    page = results_pruning.page(tmp_path)
    for word in ("Robust keeps", "| 75% | pruned, fine-tuned | 0 |", "scratch, same epochs"):
        assert word in page
    assert "<svg" in results_pruning.plot("mnist", tmp_path)
    names = {path.name for path in (tmp_path / "smoke" / "mnist_pruned_filters_robust").iterdir()}
    assert {"card.json", "curve.json", "model_90.keras", "model_90_int8.tflite"} < names
    cards = [
        tr.report.load(tmp_path / "smoke" / f"mnist_pruned_filters_{mode}").to_dict()["models"]
        for mode in ("robust", "scratch")
    ]
    robust, scratch = (models["75%"]["settings"] for models in cards)
    assert 0.7 < robust["masked"] < 0.8 and robust["zeros"] < 0.01
    assert (scratch["peak"], scratch["rate"], scratch["flag_rate"]) == (2e-3, None, 1e-3)
    assert cards[0]["before pruning"]["settings"]["epochs"] == 10
    assert [t["name"] for t in cards[0]["75%"]["transfer"]] == ["TFLite float32", "TFLite int8"]
    assert run("robust_pruning", "--finetune", "robust", "--resume", *flags)
