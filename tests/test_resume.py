"""A killed `fit`, started again, ends in the weights of the unbroken one, bit for bit.

Run as a program this file is the victim: it trains, and somebody kills it.
"""

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

ROOT = pathlib.Path(__file__).resolve().parent.parent
EPOCHS, BATCHES, EXAMPLES = 3, 6, 90


def masked_net(masked=True):
    inputs = x = keras.Input((8, 8, 1))
    x = keras.layers.Dense(6)(keras.layers.Flatten()(x))
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    if masked:
        x = tr.layers.BetaBernoulliMask(initial_a=2.0)(x)
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def anp_vs(seed, beta=4.0, **compiling):
    """An ANP-VS game with every kind of state: two optimizers, masks, dropout, batch norm."""
    keras.utils.set_random_seed(seed)
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2)
    vulnerability = tr.regularizers.VulnerabilitySuppression(1.0)
    game = tr.training.ANP(
        masked_net(), attack, beta=beta, train_size=EXAMPLES, regularizers=[vulnerability]
    )
    game.compile(metrics=["accuracy"], **compiling)
    return game


def plain(seed, **compiling):
    """A plain Keras model, with an EMA in its optimizer."""
    keras.utils.set_random_seed(seed)
    net = masked_net(masked=False)
    net.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **compiling,
    )
    return net


def digits(seed=0, batch_size=16):
    data = tr.data.load("digits")
    train = tr.data.Batches(data.x_train[:EXAMPLES], data.y_train[:EXAMPLES], batch_size, seed=seed)
    return train, (data.x_test[:32], data.y_test[:32])


class Kill(keras.callbacks.Callback):
    """Ends `fit` as abruptly as a process can do to itself and go on testing."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def train(make, seed, folder=None, kill=None, save_freq="epoch", execution=1, **kwargs):
    """(model, history) of a `fit` that keeps state in `folder` and stops after `kill` batches."""
    model = make(seed, steps_per_execution=execution)
    batches, validation = digits()
    early = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0)
    others = [early, slower]
    callbacks = list(others)
    if folder is not None:
        # A game finds out data and callbacks by itself and puts this one last.
        known = (None, ()) if isinstance(model, tr.training.Game) else (batches, others)
        resume = tr.training.Resume(folder, *known, save_freq=save_freq, **kwargs)
        callbacks = [resume, *others] if known[0] is None else [*others, resume]
    if kill is not None:
        callbacks.append(Kill(kill))
    try:
        history = model.fit(
            batches,
            epochs=EPOCHS,
            shuffle=False,
            validation_data=validation,
            verbose=0,
            callbacks=callbacks,
        )
    except KeyboardInterrupt:
        return model, None
    return model, history


def state(model):
    """Everything that training has changed: weights, seeds, optimizers."""
    optimizers = getattr(model, "optimizers", {0: model.optimizer}).values()
    variables = [*model.variables, *(v for o in optimizers for v in o.variables)]
    return [np.asarray(v.numpy()) for v in variables]


def assert_same(model, other):
    ours, theirs = state(model), state(other)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def unbroken():
    return {make: train(make, seed=0) for make in (anp_vs, plain)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with an ANP-VS run that stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    train(anp_vs, 0, folder, kill=8)
    return folder


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


def test_several_kills_and_steps_per_execution(tmp_path):
    model, expected = train(plain, 0, execution=2)
    for seed, kill in ((0, 2), (5, 1), (6, 3)):
        train(plain, seed, tmp_path, kill, save_freq=2, execution=2)
    resumed, history = train(plain, 9, tmp_path, save_freq=2, execution=2)
    assert_same(resumed, model)
    assert history.history == expected.history


def test_an_interrupt_while_skipping_and_the_same_game_again(tmp_path):
    """Control-C in a notebook, at any moment, then `fit` once more."""
    whole, _ = train(plain, 0)
    train(plain, 0, tmp_path, kill=11, save_freq=4)  # leaves 4 batches of epoch 1 to skip
    net, batches = plain(3), digits()[0]
    early = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0)
    for kill in ([Kill(1)], []):
        resume = tr.training.Resume(tmp_path, batches, [early, slower], save_freq=4)
        options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0}
        options["callbacks"] = [early, slower, resume, *kill]
        try:
            net.fit(batches, validation_data=digits()[1], **options)
        except KeyboardInterrupt:
            assert net.train_function.trains
    assert_same(net, whole)


def test_other_steps_per_execution_within_an_epoch_are_refused(tmp_path):
    train(plain, 0, tmp_path, kill=3, save_freq=2)
    with pytest.raises(ValueError, match="`steps_per_execution` must stay as it was"):
        train(plain, 0, tmp_path, save_freq=2, execution=3)


def test_an_epoch_boundary_resumes_with_other_steps_per_execution(unbroken, tmp_path):
    train(plain, 0, tmp_path, kill=8)
    assert_same(train(plain, 1, tmp_path, execution=3)[0], unbroken[plain][0])


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
        try:
            resumed.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[backup, *kill])
        except KeyboardInterrupt:
            pass
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
        game.compile("sgd")
        return game

    for value, kill in ((5.0, 1), (7.0, None)):
        game = make(value)
        callbacks = [tr.training.Resume(tmp_path, save_freq=1), *([Kill(kill)] if kill else [])]
        try:
            game.fit(digits()[0], verbose=0, callbacks=callbacks)
        except KeyboardInterrupt:
            pass
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
        try:
            plain(0).fit(batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
        except KeyboardInterrupt:
            pass
    assert dual.value == 27.0
    np.testing.assert_array_equal(dual.trace, [[0, 0], [0, 0], [1, 1], [2, 2]])


# The file ---------------------------------------------------------------------------------------


def test_a_torn_write_leaves_the_previous_state(tmp_path, monkeypatch):
    """A kill in the middle of a write: the next start finds the whole file before it."""
    from tfrobust.training import snapshot

    train(plain, 0, tmp_path, kill=8)
    before = (tmp_path / "resume.npz").read_bytes()

    def torn(stream, **arrays):
        stream.write(b"half of an arch")
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot.np, "savez", torn)
    train(plain, 0, tmp_path)
    assert (tmp_path / "resume.npz").read_bytes() == before
    (tmp_path / ".77.resume.npz").write_text("left over by kill -9")
    tr.training.Resume(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["resume.npz"]


def test_foreign_files_stay_when_the_run_ends(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    train(plain, 0, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_an_oserror(tmp_path, content):
    (tmp_path / "resume.npz").write_bytes(content)
    with pytest.raises(OSError, match=r"`directory` must hold a readable state.*resume\.npz") as e:
        train(plain, 0, tmp_path)
    assert "\n" not in str(e.value)


def other_data(game):
    return digits(seed=1)[0]


def other_size(game):
    return digits(batch_size=32)[0]


def same_data(game):
    return digits()[0]


def adversarial(seed):
    keras.utils.set_random_seed(seed)
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2)
    game = tr.training.AdversarialTraining(masked_net(), attack)
    game.compile("sgd")
    return game


OTHERS = [
    ("another game", adversarial, same_data, r'model: "ANP" there, "AdversarialTraining" here'),
    ("another beta", lambda seed: anp_vs(seed, beta=5.0), same_data, r"config\.beta: 4\.0 there"),
    ("another order", anp_vs, other_data, r"data\.seed: 0 there, 1 here"),
    ("another batch size", anp_vs, other_size, r"data\.batch_size: 16 there, 32 here"),
]


@pytest.mark.parametrize("make, data, message", [o[1:] for o in OTHERS], ids=[o[0] for o in OTHERS])
def test_another_run_is_refused(killed, make, data, message):
    game = make(0)
    before = state(game)
    early = keras.callbacks.EarlyStopping("val_loss")
    slower = keras.callbacks.ReduceLROnPlateau("loss")
    with pytest.raises(ValueError, match=f"`directory` must be empty or hold.*{message}") as error:
        game.fit(data(game), verbose=0, callbacks=[tr.training.Resume(killed), early, slower])
    assert "\n" not in str(error.value)
    for a, b in zip(before, state(game), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (killed / "resume.npz").exists()


# What is refused --------------------------------------------------------------------------------


def test_arguments():
    with pytest.raises(TypeError, match="`directory` must be the path"):
        tr.training.Resume("")
    with pytest.raises(TypeError, match="`directory` must be the path"):
        tr.training.Resume(None)


@pytest.mark.parametrize("save_freq", [0, -1, True, 1.5, "batch", None])
def test_save_freq(tmp_path, save_freq):
    with pytest.raises(ValueError, match="`save_freq` must be"):
        tr.training.Resume(tmp_path, save_freq=save_freq)


def test_an_unwritable_folder_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="`directory` must be a folder that can be written") as e:
            tr.training.Resume(path)
        assert "\n" not in str(e.value)


def test_data_must_be_batches(tmp_path):
    with pytest.raises(TypeError, match=r"`data` must be tr\.data\.Batches. Received: ndarray"):
        tr.training.Resume(tmp_path, np.zeros(3))


def test_arrays_that_keras_shuffles_are_refused(tmp_path):
    game = anp_vs(0)
    train_, _ = digits()
    with pytest.raises(ValueError, match=r"`x` must be tr\.data\.Batches for Resume"):
        game.fit(train_.x, train_.y, verbose=0, callbacks=[tr.training.Resume(tmp_path)])


def test_steps_per_epoch_is_refused(tmp_path):
    game = anp_vs(0)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be left out"):
        game.fit(
            digits()[0], steps_per_epoch=2, verbose=0, callbacks=[tr.training.Resume(tmp_path)]
        )


def test_a_plain_model_must_not_shuffle_batches(tmp_path):
    random.seed(1)
    net, batches = plain(0), digits()[0]
    with pytest.raises(ValueError, match="`shuffle` must be False in `fit` of a plain Keras model"):
        net.fit(batches, verbose=0, callbacks=[tr.training.Resume(tmp_path, batches)])


def test_an_unbuilt_model_is_refused(tmp_path):
    net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = digits()[0]
    with pytest.raises(ValueError, match="The model must be built before `fit` with Resume"):
        net.fit(
            batches, shuffle=False, verbose=0, callbacks=[tr.training.Resume(tmp_path, batches)]
        )


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
    game.compile("sgd")
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


@pytest.mark.parametrize(
    "kills", [1, pytest.param(5, marks=pytest.mark.slow)], ids=["once", "five-times"]
)
def test_kill_9(unbroken, tmp_path, kills):
    ended = kill_and_finish(tmp_path, kills, seed=kills)
    expected = state(unbroken[anp_vs][0])
    assert len(ended) == len(expected)
    for a, b in zip(ended, expected, strict=True):
        np.testing.assert_array_equal(a, b)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main(*sys.argv[1:])
