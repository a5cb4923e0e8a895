"""AFD through `fit`: its limits, labels and weights, resume, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank_afd as bank
from tests.bank_resume import resumed_equals_unbroken, state, until_killed

SGD, SLOW = keras.optimizers.SGD, pytest.mark.slow
CLEAN = {"bn_stats": "clean_only"}


def fit(game, count=20, epochs=2, **options):
    game.fit(*bank.data(count), batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options)
    return game


# Limits ------------------------------------------------------------------------------------------


def test_an_encoder_that_does_not_play_is_plain_training():
    """lr_E = 0 with clean statistics: the weights and moving averages of Keras's own fit."""
    game = fit(bank.game((0.1, 0.2, 0.0), classifier=bank.net(dropout=0.3), **CLEAN))
    net = bank.net(dropout=0.3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(SGD(0.1, 0.9), loss, run_eagerly=True)
    net.fit(*bank.data(20), batch_size=8, epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(game.classifier.variables, net.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_weight_zero_with_the_adversarial_loss_is_adversarial_training():
    game = fit(bank.game(mix=(0, 1), weight=0.0, **CLEAN))
    other = tr.training.AdversarialTraining(bank.net(), bank.ATTACK)
    other.compile(SGD(0.1, 0.9), run_eagerly=True)
    fit(other)
    assert bank.same(
        bank.values(game.classifier.variables), bank.values(other.classifier.variables)
    )


def test_statistics_of_all_passes_or_of_the_first_alone():
    """Momentum 0.9: one clean pass against three passes of the game besides."""
    moved = {}
    for name in ("all", "clean_only"):
        game = bank.game((0.0, 0.0, 0.0), bn_stats=name)
        fit(game, count=8, epochs=1)
        moved[name] = game.classifier.get_layer("norm").moving_variance.numpy()
    x, _ = bank.data(8)
    hidden = keras.Model(game.classifier.input, game.classifier.get_layer("first").output)
    variance = np.var(hidden(x).numpy(), 0)
    np.testing.assert_allclose(moved["clean_only"], 0.9 + 0.1 * variance, rtol=1e-4)
    assert np.abs(moved["all"] - moved["clean_only"]).min() > 0.01


@pytest.mark.slow
def test_a_schedule_of_the_weight_is_a_warm_up():
    rise = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.0, 1.0])
    game = bank.game((0.0, 0.1, 0.1), weight=rise)
    before = bank.values(game.encoder.trainable_variables)
    fit(game, count=16, epochs=1)  # steps 0 and 1
    assert bank.same(before, bank.values(game.encoder.trainable_variables))
    fit(game, count=16, epochs=1)
    assert not bank.same(before, bank.values(game.encoder.trainable_variables))


@pytest.mark.slow
def test_simultaneous_and_sequential_agree_to_first_order():
    def after(order, rate):
        game = bank.game((rate, rate, rate), update_order=order, **CLEAN)
        fit(game, count=8, epochs=1)
        return np.concatenate([v.numpy().ravel() for v in game.trainable_variables])

    start = np.concatenate([v.numpy().ravel() for v in bank.game().trainable_variables])
    gaps = []
    for rate in (0.1, 0.001):
        one, other = after("sequential", rate), after("simultaneous", rate)
        assert np.abs(one - other).max() > 0
        gaps.append(np.linalg.norm(one - other) / np.linalg.norm(one - start))
    assert gaps[1] < 0.2 * gaps[0]


def test_more_turns_of_the_discriminator():
    game = fit(bank.game(discriminator_steps=3), count=8, epochs=1)
    assert {g: int(o.iterations) for g, o in game.optimizers.items()} == {
        "weights": 1, "discriminator": 3, "encoder": 1
    }  # fmt: skip


def test_failed_attacks_hand_out_their_best_point_or_the_image():
    x, y = (tf.constant(v) for v in bank.data(16))
    never = tr.attacks.PGD(tr.threats.Linf(1e-4), steps=1)
    for policy, moves in (("best_loss", True), ("clean", False), (None, True)):
        game = bank.game(attack=never, on_failure=policy)
        right = tr.attacks.correct(game.classifier, *bank.data(16))
        moved = np.abs(game.attacked(x, y) - x).max((1, 2, 3)) > 0
        assert (moved == moves)[right].all() and right.any()
    assert never.on_failure == "best_loss"
    with pytest.warns(UserWarning, match="the more equal pairs"):
        bank.game(attack=tr.attacks.PGD(tr.threats.Linf(0.1), steps=1, on_failure="clean"))


# Labels and weights ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "int64",
        *(pytest.param(k, marks=SLOW) for k in ("int32", "one-hot", "two classes", "one logit")),
    ],
)
def test_labels_of_every_kind(kind):
    """A last batch of 1 among batches of 5; all kinds of the same labels train alike."""
    classes = {"two classes": 2, "one logit": 2}.get(kind, 4)
    x, y = bank.data(11, classes)
    loss, net = None, bank.net(1 if kind == "one logit" else classes)
    if kind == "one-hot":
        y = np.eye(4, dtype="float32")[y]
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    else:
        y = y.astype("int64" if kind == "int64" else "int32")
    game = bank.game(classifier=net, loss=loss)
    logs = game.fit(x, y, batch_size=5, shuffle=False, verbose=0).history
    assert set(tr.training.domain.FIGURES) <= set(logs)
    assert all(np.isfinite(values).all() for values in logs.values())
    assert game.discriminator.get_layer("rows").classes == classes
    if classes == 4:
        reference = bank.game()
        reference.fit(*bank.data(11), batch_size=5, shuffle=False, verbose=0)
        for one, two in zip(game.variables, reference.variables, strict=True):
            np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-6, err_msg=one.path)


def test_weights_of_examples_and_classes_reach_every_loss():
    game = bank.game(weight_decay=0.0)
    x, y = bank.data(8)
    images, labels, ones = tf.constant(x), tf.constant(y), np.ones(8, "float32")

    def losses(weight):
        game.classifier.get_layer("norm").moving_mean.assign(np.zeros(6))
        batch = tr.training.Batch(images, labels, weight, images[::-1], tf.constant(8))
        settled = game.objective(batch, ("discriminator",))
        return {**settled, **game.objective(batch, ("weights",)),
                **game.objective(batch, ("encoder",))}  # fmt: skip

    for layer in game.discriminator.layers:
        for _ in range(60 if hasattr(layer, "effective") else 0):
            layer.effective(training=True)
    plain, double = losses(None), losses(tf.constant(2 * ones))
    for group in bank.GROUPS:
        assert float(double[group]) == pytest.approx(2 * float(plain[group]), rel=1e-4)
    logs = [
        game.fit(x, y, batch_size=8, verbose=0, **given).history["loss"][0]
        for given in ({"class_weight": dict.fromkeys(range(4), 0.0)}, {"sample_weight": 0 * ones})
    ]
    assert logs == [0.0, 0.0]


# Saving and resuming -----------------------------------------------------------------------------


def own_discriminator():
    h = keras.Input((6,))
    return keras.Model(h, keras.layers.Dense(1)(keras.layers.Dense(5, "tanh")(h)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"discriminator": {"n_hidden": 0, "projection": False}, "feature_norm": False},
            marks=SLOW,
        ),
        pytest.param(
            {"discriminator": "own", "divergence": "wasserstein", "gradient_penalty": 1.0},
            marks=SLOW,
        ),
    ],
    ids=["default", "options", "own"],
)
def test_round_trip_keeps_everything(options, tmp_path):
    if options.get("discriminator") == "own":
        options = {**options, "discriminator": own_discriminator()}
    game = fit(bank.game(**options), count=8)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    again.run_eagerly = True
    names = ("classifier", "name", "discriminator" if "divergence" in options else "")
    config = {k: v for k, v in game.get_config().items() if k not in names}
    assert {k: v for k, v in again.get_config().items() if k in config} == config
    for one in (game, again):
        fit(one, count=8)
    for one, two in zip(game.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=one.path)
    for one, two in zip(game.optimizers.values(), again.optimizers.values(), strict=True):
        assert bank.same(bank.values(one.variables), bank.values(two.variables))


@pytest.mark.slow
def test_resume_brings_back_all_three_optimizers(tmp_path):
    """With random starts, dropout, momenta, power iterations and a falling rate: bit for bit."""

    watches = []

    def train(seed, *callbacks):
        random = tr.attacks.PGD(tr.threats.Linf(0.1), steps=1)
        game = bank.game(attack=random, classifier=bank.net(seed=seed, dropout=0.2))
        watch = tr.training.CollapseWatch(window=10, action="restore", monitor="robust_accuracy")
        rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
        batches = tr.data.Batches(*bank.data(), batch_size=5)
        until_killed(game.fit, batches, epochs=4, verbose=0, callbacks=[rate, watch, *callbacks])
        watches.append(watch)
        return state(game)

    resumed_equals_unbroken(train, tmp_path, kill=6, save_freq="epoch")
    whole, _, again = watches
    assert whole.state == again.state and bank.same(whole.best_weights, again.best_weights)


# The rest of the house ---------------------------------------------------------------------------


def test_representation_matching_is_a_regularizer():
    """Its limit: weight 0 is training on clean images; by hand on a pair of passes."""
    match = tr.regularizers.RepresentationMatching("h", 2.0)
    game = tr.training.AdversarialTraining(
        bank.net(normalized=False), bank.ATTACK, mix=(1, 0), regularizers=[match]
    )
    game.compile(SGD(0.1), run_eagerly=True)
    x, y = bank.data()
    hidden = keras.Model(game.classifier.input, game.classifier.get_layer("h").output)
    gap = hidden(x) - hidden(game.attacked(tf.constant(x), tf.constant(y)))
    want = 2 * np.linalg.norm(gap, axis=1).mean()
    logs = game.fit(x, y, batch_size=12, verbose=0).history
    assert logs["regularization"][0] == pytest.approx(want, rel=1e-4)
    assert type(match).from_config(match.get_config()).get_config() == match.get_config()
    h = tf.ones((2, 3))
    with tf.GradientTape() as tape:
        tape.watch(h)
        total = match(
            tr.regularizers.Pass(None, [h]), tr.regularizers.Pass(None, [tf.ones((2, 3))])
        )
    np.testing.assert_array_equal(tape.gradient(total, h), 0.0)


@pytest.mark.slow
def test_masks_prune_while_features_are_desensitized(tmp_path):
    """Gates close, are cut, and the file answers as the net; unit features stay unit features."""

    def mask(name):
        return tr.layers.BetaBernoulliMask(seed=1, name=name)

    net = tr.models.unit_features(bank.net(mask=mask))
    game = bank.game(classifier=net, beta=12.0, train_size=12)
    assert game.groups == ("weights", "masks", "discriminator", "encoder")
    owned = game.group_variables()
    assert len(owned["masks"]) == 2 and len(owned["encoder"]) == 4
    logs = game.fit(*bank.data(), batch_size=12, epochs=8, verbose=0).history
    assert logs["kl"][-1] < logs["kl"][0]
    (layer,) = game.masks()
    layer.a_.assign(np.where(np.arange(6) % 2, -9.0, layer.a_))  # where long training takes them
    kept = int((layer.expected().numpy() > 0).sum())
    small = tr.shrink.compact(game.classifier)
    assert small.get_layer("first").units == kept <= 3
    x, _ = bank.data()
    np.testing.assert_allclose(small(x), game.classifier(x, training=False), atol=1e-5)
    exported = tr.export.tflite(small, tmp_path / "small.tflite")
    assert exported.parity < 1e-4
    np.testing.assert_allclose(tr.export.predict(exported.path, x), small(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("structured", [None, "filters"])
@pytest.mark.parametrize("order", ["sequential", "simultaneous"])
def test_pruning_shrinking_and_export_need_no_special_case(structured, order, tmp_path):
    net = bank.net()
    game = bank.game(classifier=net, update_order=order)
    prune = tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5), structured=structured)
    game.fit(*bank.data(), batch_size=6, epochs=2, verbose=0, callbacks=[prune])
    kernel = net.get_layer("first").kernel.numpy()
    assert (kernel == 0).mean() == 0.5  # both optimizers of the encoder hold them
    assert structured is None or (np.abs(kernel).sum(0) == 0).sum() == 3
    small = tr.shrink.compact(net)
    x, _ = bank.data()
    np.testing.assert_allclose(small(x), net(x, training=False), atol=1e-5)
    tr.export.keras_file(small, tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), small(x))
    exported = tr.export.tflite(small, tmp_path / "small.tflite")
    np.testing.assert_allclose(tr.export.predict(exported.path, x), small(x), atol=1e-4)


def test_channels_that_are_always_zero_leave_unit_features():
    net = tr.models.unit_features(bank.net(normalized=False))
    first, x = net.get_layer("first"), bank.data()[0]
    first.kernel.assign(np.asarray(first.kernel) * [1, 0, 1, 0, 1, 0])
    small = tr.shrink.compact(net)
    assert small.get_layer("first").units == small.get_layer("logits").kernel.shape[0] == 3
    np.testing.assert_allclose(small(x), net(x), atol=1e-6)
    first.kernel.assign(np.zeros(first.kernel.shape))
    np.testing.assert_allclose(tr.shrink.compact(net)(x), net(x), atol=1e-6)


def test_file_answers_images_without_features(tmp_path):
    """The length of h is 0 where no ReLU wakes: the file must not divide by it."""
    net, x = tr.models.unit_features(bank.net(normalized=False)), bank.data()[0]
    first, logits = (net.get_layer(name) for name in ("first", "logits"))
    top = np.max(x.reshape(len(x), -1) @ first.kernel.numpy(), 1)
    first.bias.assign(np.full(6, -np.median(top)))
    logits.bias.assign([0.1, 0.2, 0.3, 0.4])
    dead = top < np.median(top) - 0.05  # in int8 too
    for quantize, rows in ((None, slice(None)), ("int8", dead)):
        path = tmp_path / f"{quantize}.tflite"
        tr.export.tflite(net, path, quantize, np.concatenate([x, 0 * x[:1], 1 + 0 * x[:1]]))
        near = 1e-5 if quantize is None else 0.03
        np.testing.assert_allclose(
            tr.export.predict(path, x)[rows], np.asarray(net(x))[rows], atol=near
        )
    np.testing.assert_allclose(np.asarray(net(x))[dead], [[0.1, 0.2, 0.3, 0.4]] * dead.sum())
    assert 2 < dead.sum() < 8


# What it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"feature_layer": "pool"},
            r"`feature_layer` must name a layer of 'net': \[.*'first', 'norm', 'h', 'logits'\]. "
            "Received: feature_layer='pool'",
        ),
        ({"feature_layer": "flatten"}, "weights in front of it"),
        ({"divergence": "js"}, "`divergence` must be one of"),
        ({"generator_loss": "both"}, "`generator_loss` must be one of"),
        ({"generator_loss": "saturating", "divergence": "hinge"}, "'nonsaturating' or 'two_sided'"),
        ({"update_order": "random"}, "`update_order` must be one of"),
        ({"bn_stats": "none"}, "`bn_stats` must be one of"),
        ({"on_failure": "drop"}, "`on_failure` must be None, 'best_loss' or 'clean'"),
        ({"weight": -1.0}, "`weight` must be >= 0"),
        ({"mix": (0, 0)}, "`mix` must be two weights"),
        ({"discriminator_steps": 0}, "`discriminator_steps` must be an integer >= 1"),
        ({"discriminator_steps": 2, "update_order": "simultaneous"}, "must be 1 with"),
        ({"gradient_penalty": -1}, "`gradient_penalty` must be >= 0"),
        ({"encoder_decay": "x"}, "`encoder_decay` must be >= 0"),
        ({"beta": 1.0, "train_size": 12}, "insert_masks"),
        ({"beta": 1.0}, "`train_size` must be an integer >= 1"),
        ({"discriminator": {"n_hidden": -1}}, "`n_hidden` must be an integer >= 0"),
        ({"discriminator": {"slope": 2}}, r"`slope` must lie in \[0, 1\]"),
        ({"discriminator": 3}, "`discriminator` must be None, a dict"),
        ({"discriminator": bank.net()}, r"must take features \(batch, 6\)"),
    ],
)
def test_bad_arguments(options, match):
    net = bank.net()
    net.layers[1].name = "flatten"
    with pytest.raises((TypeError, ValueError), match=match) as error:
        tr.training.AFD(net, bank.ATTACK, **options)
    assert "\n" not in str(error.value)


def test_three_optimizers_or_none():
    with pytest.raises(TypeError, match="`attack` must be a tr.attacks.Attack"):
        tr.training.AFD(bank.net(), None)
    game = tr.training.AFD(bank.net(), bank.ATTACK)
    with pytest.raises(ValueError, match="a dict with one optimizer for each of the groups"):
        game.compile("adam")
    with pytest.raises(ValueError, match="must have the keys"):
        game.compile({"weights": "sgd", "encoder": "sgd"})
    game.compile()
    rates = {g: float(o.learning_rate) for g, o in game.optimizers.items()}
    assert rates == pytest.approx({"weights": 0.1, "discriminator": 0.1, "encoder": 0.5})
