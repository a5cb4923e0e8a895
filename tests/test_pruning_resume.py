"""A `fit` killed in the middle of a schedule ends in the masks and weights of the unbroken one.

Run as a program this file is the victim: it trains, and somebody kills it.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_pruning import adversarial, compiled, data, dense
from tests.bank_resume import Kill, until_killed
from tfrobust.pruning import Geometric, Keep, Linear, MagnitudePruning, Threshold, polynomial

ROOT = pathlib.Path(__file__).resolve().parent.parent
EPOCHS = 4  # of three steps


def schedules(name):
    if name == "epochs":
        return MagnitudePruning(Linear(0.8, updates=4, every=1), scope="global")
    if name == "filters":
        schedule = Linear(0.75, updates=6, every=2, unit="steps")
        return MagnitudePruning(schedule, structured="filters")
    if name == "runs":
        return MagnitudePruning(Linear(0.5, updates=2, every=6, unit="steps"), structured=(2, 4))
    if name == "geometric":
        return MagnitudePruning(Geometric(1 / 3, updates=5, every=2, begin=1, unit="steps"))
    if name == "threshold":
        return MagnitudePruning(Threshold(1.0, updates=3, every=3, begin=2, unit="steps"))
    if name == "keep":
        return MagnitudePruning(Keep())
    return MagnitudePruning(polynomial(0.0, 0.9, 1, 11, every=2))


def train(folder=None, kill=None, name="steps", seed=0, make=compiled, save_freq=1, execution=1):
    optimizer = keras.optimizers.Adam(0.02, weight_decay=0.01, use_ema=True, ema_momentum=0.8)
    net = dense(seed=seed)
    if name == "keep":  # other zeros for other seeds
        tr.pruning.prune(net, 0.5)
        tr.pruning.release(net)
    model = make(net, optimizer, steps_per_execution=execution, run_eagerly=True)
    batches, prune = tr.data.Batches(*data(), 8, seed=3), schedules(name)
    callbacks = [prune]
    if folder is not None:
        known = (None, ()) if make is adversarial else (batches, [prune])
        callbacks.append(tr.training.Resume(folder, *known, save_freq=save_freq))
    if kill is not None:
        callbacks.append(Kill(kill))
    options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    return model, prune, until_killed(model.fit, batches, **options)


def state(model, prune):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.asarray(v.numpy()) for v in variables] + prune._pruner.masks


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name, make, save_freq, kills",
    [
        ("steps", compiled, 1, (5, 1)),
        ("epochs", adversarial, 2, (7,)),
        pytest.param("epochs", compiled, "epoch", (4,), marks=pytest.mark.slow),
        pytest.param("steps", adversarial, 1, (4, 3), marks=pytest.mark.slow),
        pytest.param("filters", compiled, 2, (8,), marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_unbroken(tmp_path, name, make, save_freq, kills):
    """Kills within an epoch and at its end; later starts have another seed."""
    whole = train(name=name, make=make)
    for seed, kill in enumerate(kills):
        train(tmp_path, kill, name, seed, make, save_freq)
    model, prune, history = train(tmp_path, None, name, 9, make, save_freq)
    assert_same(state(model, prune), state(*whole[:2]))
    assert history.history == whole[2].history
    assert 0.7 < prune.report().sparsity < 1


@pytest.mark.parametrize(
    "name, sparsity",
    [
        ("runs", 0.5),
        pytest.param("keep", 0.5, marks=pytest.mark.slow),
        pytest.param("geometric", 0.85625, marks=pytest.mark.slow),
        pytest.param("threshold", None, marks=pytest.mark.slow),
    ],
)
def test_other_schedules_resumed(tmp_path, name, sparsity):
    """Killed in the second of four epochs, between two updates."""
    whole = train(name=name)
    train(tmp_path, 4, name, 0)
    model, prune, _ = train(tmp_path, None, name, 9)
    assert_same(state(model, prune), state(*whole[:2]))
    found = prune.report().sparsity
    assert 0 < found < 1 and (sparsity is None or found == sparsity)


@pytest.mark.slow
def test_steps_per_execution(tmp_path):
    whole = train(execution=2)
    train(tmp_path, 3, execution=2)
    model, prune, _ = train(tmp_path, seed=9, execution=2)
    assert_same(state(model, prune), state(*whole[:2]))


def test_another_schedule_is_refused(tmp_path):
    train(tmp_path, 4, name="steps")
    with pytest.raises(ValueError, match="`schedule` and its options must be those of the run"):
        train(tmp_path, name="epochs")


# Kill -9 ----------------------------------------------------------------------------------------


def main(folder, out):
    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            print("batch", batch, flush=True)
            time.sleep(0.1)

    game = adversarial(dense(), keras.optimizers.Adam(0.02))
    prune = schedules("steps")
    resume = tr.training.Resume(folder, save_freq=2)
    batches = tr.data.Batches(*data(), 8, seed=3)
    game.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[prune, resume, Slow()])
    np.savez(out, *state(game, prune))


def start(folder, out):
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_kill_9(tmp_path):
    ends = []
    for name, waits in (("whole", ()), ("killed", (6, 3))):
        folder = tmp_path / name
        folder.mkdir()
        for lines in waits:
            child = start(folder / "run", folder / "end.npz")
            for _ in range(lines):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            _, errors = child.communicate()
            assert child.returncode == -signal.SIGKILL, errors[-2000:]
        child = start(folder / "run", folder / "end.npz")
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors[-2000:]
        with np.load(folder / "end.npz") as file:
            ends.append([file[key] for key in file.files])
    assert_same(*ends)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main(*sys.argv[1:])
