"""The stages of robust pruning: the ladder, its curve, the page that cards make."""

import argparse

import numpy as np
import pytest

import tfrobust as tr
from recipes import mnist, pruning_stages, results_pruning
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
    assert run("robust_pruning", "--finetune", "robust", "--resume", *flags)
