"""Games under plain `fit`: callbacks, traces, configs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_fit import CLASSES, SGD, STEP, anp_vs, assert_close, at_vs, data, net, weights_after

# Callbacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "max"])
def test_early_stopping_on_robust_accuracy(mode):
    """A frozen game never improves: it stops after `patience` further epochs."""
    x, y = data()
    game = at_vs()
    game.compile(SGD(0.0), run_eagerly=True)
    early = keras.callbacks.EarlyStopping("val_robust_accuracy", patience=2, mode=mode)
    history = game.fit(
        x, y, epochs=9, verbose=0, validation_data=(x, y), callbacks=[early], batch_size=20
    )
    assert history.epoch == [0, 1, 2]


def test_restored_best_weights_are_those_of_the_best_robust_accuracy():
    x, y = data()
    game = at_vs()
    game.compile(SGD(0.5), run_eagerly=True)
    early = keras.callbacks.EarlyStopping(
        "val_robust_accuracy", patience=9, mode="max", restore_best_weights=True
    )
    history = game.fit(
        x, y, epochs=6, batch_size=20, verbose=0, validation_data=(x, y), callbacks=[early]
    )
    result = game.evaluate(x, y, verbose=0, return_dict=True)
    assert result["robust_accuracy"] == max(history.history["val_robust_accuracy"])


def test_tensorboard_gets_the_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorflow.python.summary.summary_iterator import summary_iterator

    x, y = data()
    game = anp_vs()
    game.compile(metrics=["accuracy"], run_eagerly=True)
    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1, update_freq="batch")
    game.fit(x, y, epochs=2, batch_size=10, verbose=0, validation_data=(x, y), callbacks=[board])
    tags = {
        value.tag
        for path in tmp_path.glob("*/events*")
        for event in summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"epoch_loss", "epoch_robust_accuracy", "epoch_accuracy", "epoch_kl"} <= tags


def test_reduce_on_plateau_and_learning_rate_schedule():
    x, y = data()
    game = at_vs()
    game.compile(SGD(0.1), run_eagerly=True)
    slower = keras.callbacks.ReduceLROnPlateau(
        "robust_accuracy", mode="max", patience=1, factor=0.5
    )
    game.fit(x, y, epochs=3, verbose=0, callbacks=[slower], batch_size=20)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.0])
    one, three = at_vs(), at_vs()
    first = weights_after(one, x, y, epochs=2, optimizer=SGD(schedule))
    assert_close(weights_after(three, x, y, epochs=5, optimizer=SGD(schedule)), first)


# How Keras runs the step ------------------------------------------------------------------------


def accuracy():
    """No string: what is made at the first step is traced again."""
    return [keras.metrics.SparseCategoricalAccuracy("accuracy")]


@pytest.mark.parametrize("make", [pytest.param(at_vs, marks=pytest.mark.slow), anp_vs])
def test_steps_per_execution_changes_nothing(make):
    x, y = data(44)
    weights = []
    for steps in (1, 4):
        game = make(attack=tr.attacks.PGD(tr.threats.Linf(0.1), steps=2))
        game.compile(steps_per_execution=steps, metrics=accuracy())
        logs = game.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        weights.append((game.classifier.get_weights(), logs))
    assert_close(weights[0][0], weights[1][0])
    assert weights[0][1] == weights[1][1]


def at():
    return tr.training.AdversarialTraining(net(), STEP)


@pytest.mark.parametrize(("source", "make"), [("batches", anp_vs), ("arrays", at), ("tf.data", at)])
def test_no_retrace_after_the_second_batch(source, make):
    x, y = data(42)
    game = make()
    game.compile(metrics=["accuracy"])
    traces = {"train": 0, "test": 0}

    def counted(name, step):
        def call(batch):
            traces[name] += 1
            return step(batch)

        return call

    class After(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(traces["train"])

    seen = []
    game.train_step = counted("train", game.train_step)
    game.test_step = counted("test", game.test_step)
    options = {"epochs": 3, "verbose": 0, "callbacks": [After()]}
    if source == "arrays":  # 16 + 16 + 10 images
        game.fit(x, y, batch_size=16, validation_data=(x, y), **options)
    else:
        train = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        train = train if source == "tf.data" else tr.data.Batches(x, y, 16)
        game.fit(train, validation_data=train, **options)
    # Of the first batch one as well: the metrics, given by name, were made before.
    assert seen == [1] * 9 and traces["test"] == 1


# Configs ----------------------------------------------------------------------------------------


def test_compile_config_round_trip(tmp_path):
    """Loss, metrics, schedules and Keras options come back; the next epoch has the same bits."""
    schedules = keras.optimizers.schedules
    game = at_vs(epsilon=schedules.PolynomialDecay(0.02, 4, 0.1), seed=3)
    game.compile(
        keras.optimizers.Adam(schedules.CosineDecay(1e-2, 20)),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(2, name="top2")],
        weighted_metrics=[keras.metrics.CategoricalAccuracy("weighted")],
        steps_per_execution=2,
    )
    x, y = data()
    hot = keras.utils.to_categorical(y, CLASSES)

    def fit(one):
        logs = one.fit(x, hot, batch_size=5, epochs=2, shuffle=False, verbose=0).history
        return {name: [float(v) for v in values] for name, values in logs.items()}

    fit(game)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    assert type(again) is type(game) and again.seed == 3 and again.steps_per_execution == 2
    assert again.loss.get_config() == game.loss.get_config()
    assert again.get_compile_config() == game.get_compile_config()
    logs = fit(again)
    assert logs == fit(game)
    assert {"top2", "weighted", "accuracy", "robust_accuracy", "loss", "regularization"} == set(
        logs
    )
    for a, b in zip(game.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_the_classifier_is_saved_without_the_game(tmp_path):
    x, y = data()
    game = anp_vs()
    game.compile(run_eagerly=True)
    game.fit(x, y, verbose=0)
    game.classifier.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again(x).numpy(), game.classifier(x).numpy())


def test_batches_are_checked_whole_before_the_first_step():
    x, y = data()
    game = at_vs()
    game.compile(SGD(0.1))
    for images, labels, kind, message in (
        ((x * 255).astype("uint8"), y, TypeError, "divide uint8 images by 255"),
        (np.concatenate([x[:-1], x[-1:] * 2 + 1]), y, ValueError, r"`x` must lie in \[0, 1\]"),
        (x, y + 1, ValueError, r"`y` must lie in \[0, 3\]"),
    ):
        with pytest.raises(kind, match=message):
            game.fit(tr.data.Batches(images, labels, 4), verbose=0)
    assert int(game.step.numpy()) == 0
