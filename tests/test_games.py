"""Games: limit cases, ownership of variables, and the oracle losses of ANP and ANP-VS."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tfrobust import attacks, layers, losses, regularizers, threats, training

PGD = attacks.PGD(threats.Linf(0.1), steps=2)
NOTHING = attacks.PGD(threats.Linf(0.0), steps=0, random_start=False)
Suppress = regularizers.VulnerabilitySuppression
SGD = keras.optimizers.SGD


def data(count=12, classes=4):
    return bank.images(count, seed=5), np.arange(count) % classes


def play(game, steps=2, run_eagerly=True, **compiled):
    """A few plain `fit` steps on one batch, not worth a trace; returns the classifier's weights."""
    game.compile(run_eagerly=run_eagerly, **compiled)
    x, y = data()
    game.fit(x, y, batch_size=12, epochs=steps, shuffle=False, verbose=0)
    return [w.copy() for w in game.classifier.get_weights()]


def same(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))


def masked(seed=0):
    return bank.classifier(mask=lambda name: layers.BetaBernoulliMask(seed=3, name=name), seed=seed)


def anp(net=None, **kwargs):
    return training.ANP(net or masked(), PGD, train_size=100, **kwargs)


def two(weights=1e-2, masks=1e-2):
    return {"weights": SGD(weights), "masks": SGD(masks)}


def test_clean_mix_is_plain_keras_fit():
    game = training.AdversarialTraining(bank.classifier(), PGD, mix=(1, 0))
    ours = play(game, run_eagerly=False, optimizer=SGD(0.1))
    plain = bank.classifier()
    plain.compile(SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = data()
    plain.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(ours, plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_zero_radius_is_clean_training():
    one = training.AdversarialTraining(bank.classifier(), NOTHING)
    two_ = training.AdversarialTraining(bank.classifier(), NOTHING, mix=(1, 0))
    for a, b in zip(play(one, optimizer=SGD(0.1)), play(two_, optimizer=SGD(0.1)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_lambda_zero_is_anp_bit_for_bit():
    plain = play(anp(), optimizer=two())
    assert same(play(anp(regularizers=[Suppress(0.0)]), optimizer=two()), plain)
    assert not same(play(anp(regularizers=[Suppress(5.0)]), optimizer=two()), plain)


@pytest.mark.parametrize("idle", ["weights", "masks"])
def test_each_optimizer_moves_its_own_group_only(idle):
    net = masked()
    game = anp(net, regularizers=[Suppress(1.0)])
    owned = game.group_variables()
    assert len(owned["masks"]) == 6 and len(owned["weights"]) == len(net.trainable_variables) - 6
    before = {g: [v.numpy() for v in vs] for g, vs in owned.items()}
    play(game, optimizer=two(**{idle: 0.0}))
    for group, variables in owned.items():
        still = same(before[group], [v.numpy() for v in variables])
        assert still == (group == idle)


def test_beta_zero_has_no_pruning_pressure_and_large_beta_prunes():
    means = {}
    for beta in (0.0, 1e4):
        net = masked()
        play(anp(net, beta=beta), steps=5, optimizer={"weights": SGD(0.0), "masks": SGD(0.05)})
        means[beta] = np.mean([np.mean(m.expected()) for m in layers.masks(net)])
    start = np.mean([np.mean(m.expected()) for m in layers.masks(masked())])
    assert means[1e4] < 0.5 * start
    assert means[0.0] == pytest.approx(start, rel=0.1)


def test_frozen_masks_stay_and_are_deterministic():
    net = masked()
    for mask in layers.masks(net):
        mask.trainable = False
    game = training.AdversarialTraining(net, PGD, mix=(1, 2))
    before = [m.a_.numpy() for m in layers.masks(net)]
    first = play(game, optimizer=SGD(0.1))
    assert same(before, [m.a_.numpy() for m in layers.masks(net)])
    again = masked()
    for mask in layers.masks(again):
        mask.trainable = False
    second = play(training.AdversarialTraining(again, PGD, mix=(1, 2)), optimizer=SGD(0.1))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_of_anp_vs_by_hand():
    net = masked()
    for mask in layers.masks(net):
        mask.trainable = False  # no sampling: the oracle needs no noise
    for mask in layers.masks(net)[:1]:
        mask.trainable = True
    game = anp(net, regularizers=[Suppress(0.7)], beta=3.0, weight_decay=0.01)
    for mask in layers.masks(net):
        mask.sample = lambda count, m=mask: tf.tile(m.expected()[None], (count, 1))
    game.compile(optimizer=two())
    x, y = data()
    x_adv = PGD(net, x, y)
    images, labels, attacked = (tf.constant(v) for v in (x, y, x_adv))
    batch = training.Batch(images, labels, None, attacked, tf.constant(12))
    got = game.objective(batch, ("weights", "masks"))
    trunk = regularizers.with_features(net, regularizers.feature_layers(net))
    clean, *z = trunk(x, training=False)
    adversarial, *z_adv = trunk(x_adv, training=False)
    ce, ce_adv = (float(tf.reduce_mean(losses.cross_entropy(v, y))) for v in (clean, adversarial))
    v = np.mean([np.mean(np.abs(a - b)) for a, b in zip(z, z_adv, strict=True)])
    l2 = sum(float(np.sum(w.numpy() ** 2)) for w in game.group_variables()["weights"])
    kl = sum(float(mask.kl()) for mask in layers.masks(net))
    want = (ce + 2 * ce_adv) / 3 + 0.005 * l2 + 0.7 * v
    assert float(got["weights"]) == pytest.approx(want, rel=1e-5)
    assert float(got["masks"]) == pytest.approx(ce_adv + 3.0 / 100 * kl, rel=1e-5)


def test_shared_noise_makes_equal_passes_equal():
    net = masked()
    game = training.ANP(net, NOTHING, train_size=100, regularizers=[Suppress(1.0)])
    x, _ = data()
    clean, again = game.passes(tf.constant(x), tf.constant(x))
    np.testing.assert_array_equal(clean.logits, again.logits)
    later, _ = game.passes(tf.constant(x), tf.constant(x))
    assert np.abs(later.logits - clean.logits).max() > 0  # the next step draws anew
    game.share_noise = False
    clean, again = game.passes(tf.constant(x), tf.constant(x))
    assert np.abs(clean.logits - again.logits).max() > 0


def test_attack_does_not_move_batch_normalization():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization(name="bn")(x))
    net = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    x, y = data()
    moments = [v.numpy() for v in net.get_layer("bn").non_trainable_variables]
    game = training.AdversarialTraining(net, PGD)
    game.compile(SGD(0.0), run_eagerly=True)
    game.attacked(tf.constant(x), tf.constant(y))
    game.evaluate(x, y, verbose=0)
    assert same(moments, [v.numpy() for v in net.get_layer("bn").non_trainable_variables])
    game.fit(x, y, verbose=0)  # one pass in training mode, on the adversarial batch
    assert not same(moments, [v.numpy() for v in net.get_layer("bn").non_trainable_variables])


def test_fit_logs_what_it_did():
    game = anp(regularizers=[Suppress(1.0)])
    game.compile(metrics=["accuracy"], run_eagerly=True)
    x, y = data()
    history = game.fit(x, y, validation_data=(x, y), verbose=0).history
    wanted = {"loss", "accuracy", "robust_accuracy", "kl", "regularization"}
    wanted |= {"val_loss", "val_accuracy", "val_robust_accuracy"}
    assert wanted <= set(history)
    assert "val_kl" not in history
    assert history["loss"][0] > 0 and history["kl"][0] > 0 and history["regularization"][0] > 0
    assert history["val_robust_accuracy"][0] <= history["val_accuracy"][0] + 1e-6


def test_epsilon_schedule_is_used():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.2)
    game = training.AdversarialTraining(bank.classifier(), PGD, epsilon=schedule)
    game.compile(SGD(0.0))
    x, y = data()
    x, y = tf.constant(x), tf.constant(y)
    radii = []
    for step in (0, 5, 10):
        game.step.assign(step)
        radii.append(float(tf.reduce_max(tf.abs(game.attacked(x, y) - x))))
    np.testing.assert_allclose(radii, [0.0, 0.1, 0.2], atol=1e-5)


def test_game_round_trip_keeps_both_optimizers(tmp_path):
    game = anp(regularizers=[Suppress(1.0)])
    play(game, optimizer={"weights": keras.optimizers.Adam(), "masks": keras.optimizers.Adam(1e-2)})
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    for group, optimizer in game.optimizers.items():
        assert same(
            [v.numpy() for v in optimizer.variables],
            [v.numpy() for v in again.optimizers[group].variables],
        )
    # Keras does not save the states of seed generators (tr.training.Resume does): copy them.
    for a, b in zip(game._noise_states(), again._noise_states(), strict=True):
        b.assign(a.value)
    x, y = data()
    for one in (game, again):
        one.fit(x, y, batch_size=12, verbose=0)
    for a, b in zip(game.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_vulnerability_by_hand_and_over_all_units():
    net = bank.classifier()
    x, y = data()
    x_adv = PGD(net, x, y)
    got = regularizers.vulnerability(net, x, x_adv, batch_size=5)
    trunk = regularizers.with_features(net, regularizers.feature_layers(net))
    gaps = [np.mean(np.abs(a - b), 0) for a, b in zip(trunk(x)[1:], trunk(x_adv)[1:], strict=True)]
    assert got.network == pytest.approx(np.mean([g.mean() for g in gaps]), rel=1e-5)
    assert got.units == sum(g.size for g in gaps) == 8 * 8 * 4 + 8 * 8 * 6 + 8
    sizes = [np.mean(np.abs(a)) for a in trunk(x)[1:]]
    assert got.relative == pytest.approx(
        np.mean([g.mean() / s for g, s in zip(gaps, sizes, strict=True)]), rel=1e-5
    )
    assert regularizers.vulnerability(net, x, x).network == 0.0
    # Over the units of a wider net, the missing ones count as units that never move.
    double = {name: 2 * unit.size for name, unit in got.per_unit.items()}
    assert regularizers.vulnerability(net, x, x_adv, units=double).network == pytest.approx(
        got.network / 2, rel=1e-5
    )


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: training.AdversarialTraining(bank.classifier(), "pgd"), TypeError, "`attack`"),
        (
            lambda: training.AdversarialTraining(bank.classifier(), PGD, mix=(0, 0)),
            ValueError,
            "`mix`",
        ),
        (lambda: training.ANP(bank.classifier(), PGD, train_size=9), ValueError, "insert_masks"),
        (lambda: training.ANP(masked(), PGD), ValueError, "`train_size`"),
        (lambda: anp(beta=-1.0), ValueError, "`beta` must be >= 0"),
        (lambda: anp().compile("adam"), ValueError, "dict with one optimizer for each"),
        (lambda: anp().compile({"weights": "adam"}), ValueError, "must have the keys"),
        (
            lambda: training.AdversarialTraining(bank.classifier(), PGD).compile(
                "adam", loss="sparse_categorical_crossentropy"
            ),
            ValueError,
            "must take logits",
        ),
        (
            lambda: training.AdversarialTraining(bank.classifier(), PGD).compile(
                "adam", loss=keras.losses.SparseCategoricalCrossentropy()
            ),
            ValueError,
            "must take logits",
        ),
        (lambda: Suppress(-1), ValueError, "`weight`"),
        (lambda: Suppress(1, reduction="max"), ValueError, "`reduction`"),
        (lambda: anp(regularizers=[Suppress(1, features=["nope"])]), ValueError, "`features`"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
