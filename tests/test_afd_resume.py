"""A feature game that was killed within an epoch, and one that is brought back from a collapse."""

import keras
import numpy as np
import pytest

import tfrobust as tr
from tests import bank_afd as bank
from tests.bank_resume import Kill, until_killed


def run(folder=None, kill=None, seed=0, save_freq=2):
    """(variables, watch, trace) of two epochs of 4 batches, or of what is left of them."""
    random = tr.attacks.PGD(tr.threats.Linf(0.1), steps=1)
    game = bank.game(attack=random, classifier=bank.net(seed=seed))
    watch = tr.training.CollapseWatch(window=10, action="restore", monitor="robust_accuracy")
    trace = tr.diagnostics.DiscriminatorTrace(every=3)
    callbacks = [watch, trace]
    if folder is not None:
        callbacks.append(tr.training.Resume(folder, save_freq=save_freq))
    if kill is not None:
        callbacks.append(Kill(kill - 1))
    batches = tr.data.Batches(*bank.data(16), batch_size=4)
    until_killed(game.fit, batches, epochs=2, verbose=0, callbacks=callbacks)
    optimizers = [v for o in game.optimizers.values() for v in o.variables]
    return bank.values([*game.variables, *optimizers]), watch, trace


@pytest.fixture(scope="module")
def unbroken():
    return run()


@pytest.mark.parametrize("kill", [7, pytest.param(3, marks=pytest.mark.slow)])
def test_watch_and_trace_after_a_resume_within_an_epoch(unbroken, tmp_path, kill):
    """Killed at 7, goes on at 6: two batches pass by, and nobody counts them twice."""
    run(tmp_path, kill)
    values, watch, trace = run(tmp_path, seed=1)
    whole, expected, course = unbroken
    assert bank.same(values, whole)
    assert watch.state == expected.state and watch.steps == 8 and watch.found == []
    assert trace.state == course.state
    assert [row["step"] for row in trace.rows] == [3, 6]
    assert all(value is not None for row in trace.rows for value in row.values())


def test_callbacks_have_their_hooks_back_after_an_interrupt(tmp_path):
    """While batches pass by nobody hears of them; the same objects then serve another `fit`."""
    heard, counted = [], []

    class Count(keras.callbacks.Callback):
        resumes = ("count",)
        count = 0

        def on_train_batch_end(self, batch, logs=None):
            self.count += 1
            counted.append(batch)

    class Listen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            heard.append(batch)

    def fit(*callbacks):
        keras.utils.set_random_seed(0)
        net = bank.net()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        net.compile("sgd", loss, run_eagerly=True)
        batches = tr.data.Batches(*bank.data(40), batch_size=4)
        resume = tr.training.Resume(tmp_path / "run", batches, [count], save_freq=5)
        try:
            net.fit(batches, shuffle=False, verbose=0, callbacks=[count, resume, *callbacks])
        except KeyboardInterrupt:
            pass

    count = Count()
    fit(Kill(6))
    heard.clear(), counted.clear()
    fit(Listen(), Kill(2))  # while the first five pass by
    assert heard == [0, 1, 2] and counted == []
    heard.clear()
    fit(Listen())
    assert heard == list(range(10)) and counted == [5, 6, 7, 8, 9] and count.count == 10
    assert "on_train_batch_end" not in vars(count)


# Back from a collapse -----------------------------------------------------------------------------


class Poison(keras.callbacks.Callback):
    """NaN in the discriminator before one step."""

    def __init__(self, at):
        super().__init__()
        self.at, self.steps = at, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps == self.at:
            kernel = self.model.discriminator.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, np.nan))
        self.steps += 1


@pytest.mark.parametrize(
    ("at", "back"),
    [(1, "the start"), pytest.param(5, "the end of epoch 0", marks=pytest.mark.slow)],
)
def test_what_is_restored_trains_on(at, back):
    """A fault in the first epoch too, momenta as well: a second fit stays finite."""
    game = bank.game()
    everything = [*game.variables, *(v for o in game.optimizers.values() for v in o.variables)]
    start, options = bank.values(everything), {"batch_size": 4, "verbose": 0}
    watch = tr.training.CollapseWatch(10, "restore", monitor="robust_accuracy")
    with pytest.warns(tr.training.DiscriminatorCollapse, match=f"Back at {back}. Cure"):
        game.fit(*bank.data(16), **options, epochs=3, callbacks=[Poison(at), watch])
    assert watch.best_epoch == (None if at < 4 else 0) and watch.steps == at + 1
    now = bank.values(everything)
    assert all(np.isfinite(value).all() for value in now)
    assert int(game.optimizers["weights"].iterations) == (0 if at < 4 else 4)
    kept = [v.path for v, a, b in zip(everything, now, start, strict=True) if np.array_equal(a, b)]
    assert (len(kept) == len(everything)) == (at < 4)
    logs = game.fit(*bank.data(8), **options).history
    assert all(np.isfinite(values).all() for values in logs.values())
