"""A killed `fit`, started again, ends in the weights of the unbroken one, bit for bit.

Run as a program this file is the victim: it trains, and somebody kills it.
"""

import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_resume import (
    EPOCHS,
    Kill,
    anp_vs,
    assert_same,
    digits,
    masked_net,
    plain,
    state,
    train,
    until_killed,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unbroken():
    return {make: train(make, seed=0) for make in (anp_vs, plain)}


# Inside one process -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, save_freq, kill",
    [(plain, "epoch", 2), (plain, "epoch", 8), (plain, 4, 11), (anp_vs, 4, 11)],
)
def test_resumed_equals_unbroken(unbroken, tmp_path, make, save_freq, kill):
    """Within the first epoch, at an epoch's end, within an epoch; the second start has another
    seed, so that all there is comes out of the file."""
    train(make, 0, tmp_path / "run", kill, save_freq)
    keras.layers.Dense(4)  # moves Keras's counter of names behind "dense_7"
    assert (tmp_path / "run" / "resume.npz").exists()
    resumed, history = train(make, 1, tmp_path / "run", save_freq=save_freq)
    model, expected = unbroken[make]
    assert_same(resumed, model)
    assert history.history == expected.history  # the epochs before the kill included
    assert history.epoch == expected.epoch
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_several_kills_and_steps_per_execution(tmp_path, eager):
    make = functools.partial(plain, run_eagerly=eager)
    model, expected = train(make, 0, execution=2)
    for seed, kill in ((0, 2), (5, 1), (6, 3)):
        train(make, seed, tmp_path, kill, save_freq=2, execution=2)
    resumed, history = train(make, 9, tmp_path, save_freq=2, execution=2)
    assert_same(resumed, model)
    assert history.history == expected.history


def test_an_interrupt_while_skipping_and_the_same_game_again(unbroken, tmp_path):
    """Control-C in a notebook, at any moment, then `fit` once more."""
    train(plain, 0, tmp_path, kill=11, save_freq=4)  # leaves 4 batches of epoch 1 to skip
    net, batches = plain(3), digits()[0]
    early = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0)
    for kill in ([Kill(1)], []):
        resume = tr.training.Resume(tmp_path, batches, [early, slower], save_freq=4)
        options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0}
        options["callbacks"] = [early, slower, resume, *kill]
        if until_killed(net.fit, batches, validation_data=digits()[1], **options) is None:
            assert kill and net.train_function.trains
    assert_same(net, unbroken[plain][0])


def test_other_steps_per_execution_within_an_epoch_are_refused(tmp_path):
    train(plain, 0, tmp_path, kill=3, save_freq=2)
    with pytest.raises(ValueError, match="`steps_per_execution` must stay as it was"):
        train(plain, 0, tmp_path, save_freq=2, execution=3)


def test_an_epoch_boundary_resumes_with_other_steps_per_execution(unbroken, tmp_path):
    train(plain, 0, tmp_path, kill=8)
    assert_same(train(plain, 1, tmp_path, execution=3)[0], unbroken[plain][0])


@pytest.mark.slow
def test_a_kept_run_only_restores_its_end(unbroken, tmp_path):
    model, history = train(plain, 0, tmp_path, delete_checkpoint=False)
    again, same = train(plain, 1, tmp_path, kill=0, delete_checkpoint=False)
    assert same is not None  # no batch was trained
    assert_same(again, unbroken[plain][0])
    assert same.history == history.history
    assert again._initial_epoch is None  # Keras would start later fits there


@pytest.mark.slow
def test_plain_backup_and_restore_is_not_exact(unbroken, tmp_path):
    """Why this callback exists; when Keras learns it, this test says so."""
    whole, resumed = anp_vs(0), None
    batches, _ = digits()
    whole.fit(batches, epochs=EPOCHS, verbose=0)
    for seed, kill in ((0, [Kill(8)]), (1, [])):
        resumed = anp_vs(seed)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "run")
        options = {"epochs": EPOCHS, "verbose": 0, "callbacks": [backup, *kill]}
        until_killed(resumed.fit, batches, **options)
    pairs = zip(whole.get_weights(), resumed.get_weights(), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3


def test_bfloat16_and_held_variables_survive(tmp_path):
    class Held(tr.attacks.FGSM):
        """An attack with a state of its own."""

        def __init__(self, threat):
            super().__init__(threat)
            self.memory = [keras.Variable([1.0, 2.0], dtype="bfloat16", trainable=False)]

    def make(value):
        keras.utils.set_random_seed(0)
        attack = Held(tr.threats.Linf(0.1))
        attack.memory[0].assign([value, 2.0])
        game = tr.training.AdversarialTraining(masked_net(masked=False), attack)
        game.compile("sgd", run_eagerly=True)
        return game

    for value, kill in ((5.0, 1), (7.0, None)):
        game = make(value)
        callbacks = [tr.training.Resume(tmp_path, save_freq=1), *([Kill(kill)] if kill else [])]
        until_killed(game.fit, digits()[0], verbose=0, callbacks=callbacks)
    np.testing.assert_array_equal(np.asarray(game.attack.memory[0].numpy(), "float32"), [5.0, 2.0])


def test_own_callback_says_what_to_keep(tmp_path):
    class Dual(keras.callbacks.Callback):
        resumes = ("value", "trace")

        def __init__(self):
            super().__init__()
            self.value, self.trace = 1.0, [np.zeros(2)]

        def on_epoch_end(self, epoch, logs=None):
            self.value *= 3
            self.trace.append(np.full(2, epoch))

    for kill in (8, None):
        dual, batches = Dual(), digits()[0]
        resume = tr.training.Resume(tmp_path, batches, [dual])
        callbacks = [dual, resume, *([Kill(kill)] if kill else [])]
        options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, "callbacks": callbacks}
        until_killed(plain(0).fit, batches, **options)
    assert dual.value == 27.0
    np.testing.assert_array_equal(dual.trace, [[0, 0], [0, 0], [1, 1], [2, 2]])


def test_a_game_keeps_the_order_of_batches_without_resume():
    """Keras would shuffle with global random numbers, and count passes from 0."""
    seen = []

    class Spy(tr.data.Batches):
        def __getitem__(self, index):
            seen.append((self.epoch, index))
            return super().__getitem__(index)

    x, y = digits()[1]
    batches = Spy(x, y, 8)
    game = tr.training.AdversarialTraining(
        masked_net(masked=False), tr.attacks.FGSM(tr.threats.Linf(0.1))
    )
    game.compile("sgd", run_eagerly=True)
    game.fit(batches, epochs=4, initial_epoch=2, verbose=0)
    assert seen[-8:] == [(epoch, i) for epoch in (2, 3) for i in range(4)]


# Kill -9 ----------------------------------------------------------------------------------------


def main(folder, out):
    """The victim: trains slowly, tells every batch, saves its final state."""

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            print("batch", batch, flush=True)
            time.sleep(0.15)

    game = anp_vs(0)
    batches, validation = digits()
    early = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0)
    resume = tr.training.Resume(folder, save_freq=2)
    game.fit(
        batches,
        epochs=EPOCHS,
        validation_data=validation,
        verbose=0,
        callbacks=[early, slower, resume, Slow()],
    )
    np.savez(out, *state(game))


def start(folder, out):
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def kill_and_finish(folder, kills, seed):
    """State after a child was killed `kills` times and started again."""
    moments = random.Random(seed)
    out = folder / "end.npz"
    for _ in range(kills):
        child = start(folder / "run", out)
        for _ in range(moments.randint(1, 5)):
            child.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.2))  # within a step, a write or a pause
        child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors[-2000:]
    child = start(folder / "run", out)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors[-2000:]
    with np.load(out) as file:
        return [file[name] for name in file.files]


@pytest.mark.slow  # what a kill inside one process leaves behind is resumed above
@pytest.mark.parametrize("kills", [1, 5], ids=["once", "five-times"])
def test_kill_9(unbroken, tmp_path, kills):
    ended = kill_and_finish(tmp_path, kills, seed=kills)
    expected = state(unbroken[anp_vs][0])
    assert len(ended) == len(expected)
    for a, b in zip(ended, expected, strict=True):
        np.testing.assert_array_equal(a, b)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main(*sys.argv[1:])
