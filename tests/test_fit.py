"""Games under plain `fit`: callbacks, labels, weights of examples, precision, configs, traces."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank

CLASSES = 4
STEP = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2, random_start=False)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SGD = keras.optimizers.SGD


def net(classes=CLASSES, mask=None, normalized=False, seed=0):
    """Dense net without noise, unless masked."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((4, 4, 1))
    x = keras.layers.Dense(6)(keras.layers.Flatten()(x))
    if normalized:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    if mask is not None:
        x = mask(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x))


def at_vs(classifier=None, attack=STEP, mix=(1, 2), **kwargs):
    return tr.training.AdversarialTraining(
        classifier or net(),
        attack,
        mix=mix,
        regularizers=[tr.regularizers.VulnerabilitySuppression(2.0)],
        weight_decay=0.01,
        **kwargs,
    )


def anp_vs(attack=STEP, dtype=None, **kwargs):
    mask = tr.layers.BetaBernoulliMask(initial_a=2.0, seed=3, dtype=dtype)
    return tr.training.ANP(
        net(mask=mask),
        attack,
        train_size=50,
        regularizers=[tr.regularizers.VulnerabilitySuppression(2.0)],
        **kwargs,
    )


def data(count=20, classes=CLASSES, seed=1):
    return bank.images(count, (4, 4, 1), seed), np.arange(count) % classes


def weights_after(game, x, y, epochs=2, batch_size=20, optimizer=None, loss=None, **fit):
    # Eager steps cost milliseconds, a trace seconds; one test below compares the two.
    game.compile(optimizer or SGD(0.1), loss, run_eagerly=True)
    game.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **fit)
    return game.classifier.get_weights()


def assert_close(ours, theirs, atol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


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
    game.compile(metrics=["accuracy"])
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


@pytest.mark.parametrize("make", [at_vs, anp_vs])
def test_steps_per_execution_changes_nothing(make):
    x, y = data(44)
    weights = []
    for steps in (1, 4):
        game = make(attack=tr.attacks.PGD(tr.threats.Linf(0.1), steps=2))
        game.compile(steps_per_execution=steps, metrics=["accuracy"])
        logs = game.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        weights.append((game.classifier.get_weights(), logs))
    assert_close(weights[0][0], weights[1][0])
    assert weights[0][1] == weights[1][1]


@pytest.mark.parametrize("source", ["batches", "arrays", "tf.data"])
def test_no_retrace_after_the_second_batch(source):
    x, y = data(42)
    game = anp_vs()
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
    # Two of the first batch: TensorFlow traces anew a step that made variables (the metrics).
    assert seen == [2] * 9 and traces["test"] == 1


# Label forms ------------------------------------------------------------------------------------

FORMS = {
    "int32": lambda y: y.astype("int32"),
    "int64": lambda y: y.astype("int64"),
    "uint8": lambda y: y.astype("uint8"),
    "column": lambda y: y[:, None],
    "float": lambda y: y.astype("float32"),
}


@pytest.mark.parametrize("make", [at_vs, anp_vs])
def test_integer_forms_are_the_same_labels(make):
    x, y = data()

    def after(labels):
        optimizer = SGD(0.1) if make is at_vs else {"weights": SGD(0.1), "masks": SGD(0.1)}
        return weights_after(make(), x, labels, optimizer=optimizer)

    expected = after(y)
    for form in FORMS.values():
        assert_close(after(form(y)), expected)


@pytest.mark.parametrize("form", ["column", "one-hot"])
def test_compiled_steps_equal_eager_ones(form):
    x, y = data()
    labels = y[:, None] if form == "column" else keras.utils.to_categorical(y, CLASSES)
    loss = LOGITS if form == "column" else keras.losses.CategoricalCrossentropy(from_logits=True)
    game = at_vs()
    game.compile(SGD(0.1), loss)
    weights = np.linspace(0, 2, 20).astype("float32")
    options = {"batch_size": 20, "epochs": 2, "shuffle": False, "verbose": 0}
    game.fit(x, labels, sample_weight=weights, **options)
    eager = weights_after(at_vs(), x, labels, loss=loss, sample_weight=weights)
    assert_close(game.classifier.get_weights(), eager, atol=1e-6)


def test_one_hot_equals_integers():
    x, y = data()
    hot = keras.utils.to_categorical(y, CLASSES)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    ours = weights_after(at_vs(), x, hot, loss=loss)
    assert_close(ours, weights_after(at_vs(), x, y), atol=1e-6)


def objective(game, x, y, sample_weight=None):
    """(loss of the weights, x_adv) of one batch, before any update."""
    x, y = tf.constant(x), tf.constant(y)
    x_adv = game.attacked(x, y)
    batch = tr.training.Batch(x, y, sample_weight, x_adv, tf.shape(x)[0])
    return float(game.objective(batch, game.turns[0])["weights"]), x_adv.numpy()


def test_label_smoothing_reaches_the_adversarial_term():
    x, y = data()
    hot = keras.utils.to_categorical(y, CLASSES).astype("float32")
    game = tr.training.AdversarialTraining(net(), STEP)
    game.compile(
        SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    )
    value, x_adv = objective(game, x, hot)
    log_p = tf.nn.log_softmax(game.classifier(x_adv)).numpy()
    smooth = 0.8 * hot + 0.2 / CLASSES
    assert value == pytest.approx(float(np.mean(-np.sum(smooth * log_p, -1))), rel=1e-5)
    # The attack needs the class, not the smoothed row.
    np.testing.assert_array_equal(x_adv, objective(at_int(), x, y)[1])


def at_int():
    game = tr.training.AdversarialTraining(net(), STEP)
    game.compile(SGD(0.1))
    return game


@pytest.mark.parametrize("form", ["int32", "column", "float", "float column"])
def test_single_logit_is_two_classes(form):
    """A head with logit z and binary cross-entropy = a head with logits (0, z)."""
    x, y = data(classes=2)
    binary = {**FORMS, "float column": lambda y: y[:, None].astype("float32")}[form](y)
    single, double = net(classes=1), net(classes=2)
    for layer in single.layers:
        weights = layer.get_weights()
        if layer.name == "logits":
            weights = [np.concatenate([0 * w, w], -1) for w in weights]
        double.get_layer(index=single.layers.index(layer)).set_weights(weights)
    games = [at_vs(single), at_vs(double)]
    games[0].compile(SGD(0.1), keras.losses.BinaryCrossentropy(from_logits=True), run_eagerly=True)
    games[1].compile(SGD(0.1), run_eagerly=True)
    (one, x_one), (two, x_two) = objective(games[0], x, binary), objective(games[1], x, y)
    np.testing.assert_allclose(x_one, x_two, atol=1e-6)
    assert one == pytest.approx(two, rel=1e-5)
    one = games[0].evaluate(x, binary, verbose=0, return_dict=True)
    two = games[1].evaluate(x, y, verbose=0, return_dict=True)
    assert one == pytest.approx(two, abs=1e-5)


def test_single_logit_metrics_and_default_loss():
    x, y = data(classes=2)
    game = tr.training.AdversarialTraining(net(classes=1), STEP)
    game.compile(SGD(0.0), metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")])
    history = game.fit(x, y, batch_size=20, verbose=0).history
    right = (game.classifier.predict(x, verbose=0)[:, 0] > 0) == y
    assert history["accuracy"][0] == pytest.approx(right.mean())


# Weights of examples ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["integers", "one-hot"])
def test_weight_zero_is_an_absent_example(form):
    """In every term, the vulnerability too; the others weigh n / (n - k), as Keras divides by n."""
    x, y = data()
    gone = np.array([0, 3, 4, 11])
    weights = np.full(20, 20 / 16, "float32")
    weights[gone] = 0.0
    labels = y if form == "integers" else keras.utils.to_categorical(y, CLASSES)
    loss = None if form == "integers" else keras.losses.CategoricalCrossentropy(from_logits=True)
    weighted = weights_after(at_vs(), x, labels, loss=loss, sample_weight=weights)
    stay = np.delete(np.arange(20), gone)
    absent = weights_after(at_vs(), x[stay], labels[stay], loss=loss, batch_size=16)
    assert_close(weighted, absent, atol=1e-6)


def test_weight_zero_is_an_absent_example_for_masks():
    """Masks frozen at their expectation, but with their KL and the adversarial loss by hand."""
    x, y = data()
    game = anp_vs()
    for mask in game.masks():
        mask.sample = lambda count, m=mask: tf.tile(m.expected()[None], (count, 1))
    game.compile()
    weights = tf.constant([2.0] * 10 + [0.0] * 10)
    x_adv = game.attacked(tf.constant(x), tf.constant(y))
    losses = []
    for rows, weight in ((slice(None), weights), (slice(10), None)):
        batch = tr.training.Batch(x[rows], y[rows], weight, x_adv[rows], tf.shape(x[rows])[0])
        losses.append({k: float(v) for k, v in game.objective(batch, game.turns[0]).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_uniform_weights_change_nothing_and_scale_every_data_term():
    x, y = data()
    ones = weights_after(at_vs(), x, y, sample_weight=np.ones(20, "float32"))
    assert_close(ones, weights_after(at_vs(), x, y), atol=1e-7)


@pytest.mark.parametrize("make", [at_vs, anp_vs])
def test_class_weight_is_sample_weight_by_hand(make):
    x, y = data()
    table = {0: 0.5, 1: 3.0, 3: 0.0}
    by_hand = np.array([table.get(int(label), 1.0) for label in y], "float32")

    def optimizer():
        return SGD(0.1) if make is at_vs else {"weights": SGD(0.1), "masks": SGD(0.1)}

    ours = weights_after(make(), x, y, optimizer=optimizer(), class_weight=table)
    assert_close(ours, weights_after(make(), x, y, optimizer=optimizer(), sample_weight=by_hand))
    plain = weights_after(make(), x, y, optimizer=optimizer())
    assert max(np.abs(a - b).max() for a, b in zip(ours, plain, strict=True)) > 1e-4


def test_batches_carry_weights():
    x, y = data()
    weights = np.linspace(0, 2, 20).astype("float32")
    ours = weights_after(at_vs(), x, y, sample_weight=weights)
    for stored, given in ((weights, None), (None, {0: 5.0})):
        game = at_vs()
        game.compile(SGD(0.1), run_eagerly=True)
        batches = tr.data.Batches(x, y, 20, shuffle=False, sample_weight=stored)
        game.fit(batches, epochs=2, verbose=0, class_weight=given)
        expected = ours if given is None else weights_after(at_vs(), x, y, class_weight=given)
        assert_close(game.classifier.get_weights(), expected, atol=1e-6)


def test_weighted_metrics_are_weighted_and_metrics_are_not():
    x, y = data()
    game = tr.training.AdversarialTraining(net(), STEP)
    accuracy = keras.metrics.SparseCategoricalAccuracy
    metrics = {"metrics": [accuracy("plain")], "weighted_metrics": [accuracy("weighted")]}
    game.compile(SGD(0.0), run_eagerly=True, **metrics)
    weights = np.linspace(0, 2, 20).astype("float32")
    right = game.classifier.predict(x, verbose=0).argmax(-1) == y
    for logs in (
        game.fit(x, y, sample_weight=weights, batch_size=20, verbose=0).history,
        game.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True),
    ):
        got = {k: np.squeeze(v) for k, v in logs.items()}
        assert got["plain"] == pytest.approx(right.mean(), abs=1e-6)
        assert got["weighted"] == pytest.approx((right * weights).sum() / weights.sum(), abs=1e-6)


# Mixed precision --------------------------------------------------------------------------------


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def policy(request):
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy("float32")


def test_mixed_precision_trains(policy):
    x, y = data()
    game = anp_vs()
    game.compile({"weights": keras.optimizers.Adam(1e-2), "masks": keras.optimizers.Adam(1e-2)})
    assert game.classifier.compute_dtype == policy.removeprefix("mixed_")
    scaled = [isinstance(o, keras.optimizers.LossScaleOptimizer) for o in game.optimizers.values()]
    assert scaled == [policy == "mixed_float16"] * 2
    before = game.classifier.get_weights()
    history = game.fit(x, y, epochs=8, batch_size=20, verbose=0, validation_data=(x, y)).history
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
    for old, new in zip(before, game.classifier.get_weights(), strict=True):
        assert new.dtype == np.float32 or new.dtype == old.dtype
        assert np.isfinite(new).all()
    moved = [
        np.abs(a - b).max() > 0 for a, b in zip(before, game.classifier.get_weights(), strict=True)
    ]
    assert all(moved[: len(game.classifier.trainable_variables)])


def test_mixed_precision_follows_the_classifier_not_the_moment(policy):
    """A net of mixed precision wrapped after the global policy is back to float32."""
    classifier = net()
    keras.mixed_precision.set_dtype_policy("float32")
    game = tr.training.AdversarialTraining(classifier, STEP)
    game.compile("adam")
    scaled = isinstance(game.optimizers["weights"], keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


def test_attacks_stay_in_float32(policy):
    x, y = data()
    classifier = net()
    game = tr.training.AdversarialTraining(classifier, STEP)
    game.compile("adam")
    x_adv = game.attacked(tf.constant(x), tf.constant(y))
    assert x_adv.dtype == tf.float32
    with tf.GradientTape() as tape:
        images = tf.constant(x)
        tape.watch(images)
        loss = tf.reduce_sum(tr.losses.cross_entropy(classifier(images), y))
    assert loss.dtype == tf.float32 and tape.gradient(loss, images).dtype == tf.float32
    # Two sign steps of 2.5 / 2 epsilon end on the ball's surface, not on a float16 grid.
    change = np.abs(x_adv.numpy() - x)
    free = (x > 0.11) & (x < 0.89)
    np.testing.assert_allclose(change[free].max(), 0.1, atol=1e-6)


def test_masks_keep_float32_parameters_under_mixed_precision(policy):
    mask = tr.layers.BetaBernoulliMask(initial_a=1.2345, initial_b=0.7)
    x = np.ones((2, 3), "float32")
    mask.build((None, 3))
    gate = mask.expected().numpy()
    keras.mixed_precision.set_dtype_policy("float32")
    plain = tr.layers.BetaBernoulliMask(initial_a=1.2345, initial_b=0.7)
    plain.build((None, 3))
    np.testing.assert_array_equal(gate, plain.expected().numpy())
    inside = []
    expected = mask.expected
    mask.expected = lambda: inside.append(expected()) or inside[-1]
    mask(x)
    np.testing.assert_array_equal(inside[0].numpy(), gate)


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
    game.compile()
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
