"""Labels of every form and weights of examples in the `fit` of a game."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_fit import (
    CLASSES,
    LOGITS,
    SGD,
    STEP,
    anp_vs,
    assert_close,
    at_vs,
    data,
    net,
    weights_after,
)

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
        return weights_after(make(), x, labels, epochs=1, optimizer=optimizer)

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
    accuracy = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    game.compile(SGD(0.0), metrics=[accuracy], run_eagerly=True)
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
