"""Ladders of the pruning recipes that a kill ends in the middle, and that go on from there."""

import argparse
import dataclasses

import keras
import numpy as np
import pytest

import tfrobust as tr
from recipes import mnist, pruning_stages, sparsity_robustness
from tests import bank_pruning as bank
from tests.bank_resume import Kill

RUNGS = [0.25, 0.5, 0.75, 0.875]
ARGS = {"ratios": RUNGS, "smoke": True, "structured": "weights", "scope": "layer", "seed": 0}
ARGS |= {"normalise": "none", "rate": 1e-2, "epochs": 4, "peak": 1e-2, "settle": 1}
SCENE = dataclasses.replace(
    pruning_stages.SETTINGS["mnist"], training=tr.attacks.FGSM(tr.threats.Linf(0.1))
)


def data():
    """Three batches, and something to look at."""
    x, y = bank.data(3 * mnist.BATCH)
    return tr.data.Dataset(x, y, x[:8], y[:8], 4)


PLAYER = pruning_stages.player


def eager(*args, **kwargs):
    game, batches = PLAYER(*args, **kwargs)
    game.run_eagerly = True
    return game, batches


def walked(folder, mode, seed, monkeypatch, looks=None, **changes):
    """(net, rows of the curve) of a ladder; a kill ends it after so many looks at the net."""
    seen = []

    def look(net):
        if len(seen) == looks:
            raise KeyboardInterrupt
        seen.append(1)
        return {"clean": 1.0, "attacked": tr.pruning.sparsity(net)}

    monkeypatch.setattr(pruning_stages, "looker", lambda *_: look)
    monkeypatch.setattr(pruning_stages, "player", eager)
    net, args = bank.dense(seed=seed), argparse.Namespace(**ARGS, resume=True, finetune=mode)
    vars(args).update(changes)
    try:
        rows = pruning_stages.walk(net, SCENE, data(), args, folder)
    except KeyboardInterrupt:
        rows = None
    return net, rows


@pytest.mark.parametrize("mode", ["nat", pytest.param("robust", marks=pytest.mark.slow)])
def test_a_killed_ladder_goes_on(tmp_path, monkeypatch, mode):
    """Killed in the third of four epochs; what goes on began with other weights."""
    net, rows = walked(tmp_path / "whole", mode, 0, monkeypatch)
    assert walked(tmp_path / "killed", mode, 0, monkeypatch, looks=2)[1] is None
    again, after = walked(tmp_path / "killed", mode, 9, monkeypatch)
    for a, b in zip(net.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    told = [[(row["ratio"], row["attacked"]) for row in found] for found in (rows, after)]
    assert told[0] == told[1] == [(0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (0.875, 0.875)]
    assert all(a["seconds"][1] < b["seconds"][1] for a, b in zip(after, after[1:], strict=False))
    path = tmp_path / "killed" / "pruned_0.875.keras"
    kept = keras.saving.load_model(path, compile=False)
    for a, b in zip(net.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# What is counted and refused ----------------------------------------------------------------------


@pytest.mark.parametrize("execution", [1, 2, 3])
def test_rungs_are_counted_in_steps(execution):
    """Six steps in one epoch, a rung every two; an execution of three skips a rung."""
    options, clock = {"run_eagerly": True, "steps_per_execution": execution}, mnist.Clock()
    net = bank.compiled(bank.dense(), **options)
    curve = pruning_stages.Curve(
        net, RUNGS[:3], 2, lambda net: {"zeros": tr.pruning.sparsity(net)}, lambda *_: 0, clock
    )
    prune = tr.pruning.MagnitudePruning(tr.pruning.Ladder(RUNGS[:3], every=2, unit="steps"))
    if execution > 2:
        with pytest.raises(ValueError, match="`steps_per_execution` must be at most the steps of"):
            bank.fit(net, clock, curve, prune, epochs=1, batch_size=4)
        return
    bank.fit(net, clock, curve, prune, epochs=1, batch_size=4)
    assert [row["zeros"] for row in curve.rows] == RUNGS[:3] and curve.steps == 6


def test_rows_are_not_taken_over_by_other_settings(tmp_path):
    """Killed after the first row; with another number of images nothing goes on."""
    plan = dataclasses.replace(sparsity_robustness.PLANS["linear"], first=2, again=2, rounds=2)
    x, y = bank.data()

    def fit(folder, kill=None, **settings):
        net = bank.compiled(bank.dense(), run_eagerly=True)
        batches, seen = tr.data.Batches(x, y, 8, seed=0), []

        def judge(net, number, slow):
            seen.append(number)
            return {"left": 1, "of": 2, "accuracy": 0.5, "fgs": {"value": 0.1},
                    "deepfool": {"value": 1.0}, "number": number}  # fmt: skip

        path = tr.files.target(folder / "reference.weights.h5")
        rows = sparsity_robustness.Rows(judge, plan, "title", path, settings)
        keeper = tr.training.Resume(folder / "fit", batches, [rows], save_freq=1)
        killed = [Kill(kill)] if kill else []
        try:
            net.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[rows, keeper, *killed])
        except KeyboardInterrupt:
            pass
        return rows.rows, seen

    whole, numbers = fit(tmp_path / "whole", pgd=500)
    assert [row["number"] for row in whole] == numbers == [0, 1, 2]
    fit(tmp_path / "killed", kill=4, pgd=500)  # in the second epoch
    with pytest.raises(SystemExit, match="`--resume` must have the settings .* with other pgd"):
        fit(tmp_path / "killed", pgd=100)
    assert fit(tmp_path / "killed", pgd=500) == (whole, [2])
