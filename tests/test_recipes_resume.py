"""Ladders of the pruning recipes that a kill ends in the middle, and that go on from there."""

import argparse
import dataclasses

import keras
import numpy as np
import pytest

import tfrobust as tr
from recipes import mnist, pruning_stages
from tests import bank_pruning as bank

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
