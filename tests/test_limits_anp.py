"""Limit cases of ANP-VS and its baselines: what each becomes when a part of it is switched off."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank

SGD = keras.optimizers.SGD
ATTACK = tr.attacks.FGSM(tr.threats.Linf(0.1))
NOTHING = tr.attacks.PGD(tr.threats.Linf(0.0), steps=0, random_start=False)
NO_STEP = tr.attacks.PGD(tr.threats.Linf(0.1), steps=0, random_start=False)
COUNT = 12
every_mask = pytest.mark.parametrize("kind", bank.MASKS)


def data():
    return bank.images(COUNT, (4, 4, 1), seed=1), np.arange(COUNT) % 4


def net(kind=None, normalized=False, seed=0):
    """Dense net; its weights do not depend on the mask."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((4, 4, 1))
    x = keras.layers.Dense(6)(keras.layers.Flatten()(x))
    if normalized:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))
    if kind is None:
        return model
    masked = keras.layers.Dense(4, name="logits")(kind(seed=3, name="mask")(x))
    masked = keras.Model(inputs, masked)
    masked.get_layer("logits").set_weights(model.get_layer("logits").get_weights())
    return masked


def opened(model):
    """Sets every gate to 1 and freezes it: the masks are off."""
    for mask in tr.layers.masks(model):
        if isinstance(mask, tr.layers.VIBMask):
            mask.mu.assign(np.ones(6))
            mask.log_var.assign(np.full(6, -40.0))
        else:
            mask.a_.assign(np.full(6, 1e9))
        np.testing.assert_array_equal(mask.expected(), np.ones(6))
    tr.layers.freeze_masks(model)
    return model


def anp(model, attack=ATTACK, cls=tr.training.ANP, **kwargs):
    given = () if cls is tr.training.BP else (attack,)
    return cls(model, *given, train_size=50, **kwargs)


def played(game, epochs=1, weights=0.1, masks=0.1):
    """(weights, gates, last logs) after a few steps of the game, eager and without `fit`."""
    rates = {"weights": SGD(weights, momentum=0.9), "masks": SGD(masks)}
    game.compile({group: rates[group] for group in game.groups}, run_eagerly=True)
    batch = tuple(tf.constant(v) for v in data())
    for _ in range(epochs):
        logs = {name: float(value) for name, value in game.train_step(batch).items()}
    kept = [layer for layer in game.classifier.layers if not isinstance(layer, tr.layers.Mask)]
    weights = [w for layer in kept for w in layer.get_weights()]
    gates = [w for mask in game.masks() for w in mask.get_weights()[:2]]
    return weights, gates, logs


def assert_close(ours, theirs, atol=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def suppression(weight):
    return [tr.regularizers.VulnerabilitySuppression(weight)]


# ANP-VS -> ANP -> AT-VS -> AT -> standard ---------------------------------------------------------


@every_mask
def test_lambda_zero_is_anp_bit_for_bit(kind, monkeypatch):
    plain = played(anp(net(kind)), epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(tr.regularizers.VulnerabilitySuppression, "__call__", None)  # not computed
        zero = played(anp(net(kind), regularizers=suppression(0.0)), epochs=2)
    assert_close(zero[0] + zero[1], plain[0] + plain[1], atol=0)
    suppressed = played(anp(net(kind), regularizers=suppression(5.0)))
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(suppressed[0], plain[0], strict=True))


@every_mask
@pytest.mark.parametrize(("weight", "beta"), [(0.0, 4.0), (2.0, 0.0)])
def test_masks_off_is_at_or_at_vs(kind, weight, beta):
    """Whatever beta is: frozen masks have no gradient."""
    terms = {"regularizers": suppression(weight)}
    without = tr.training.AdversarialTraining(net(), ATTACK, (1, 2), weight_decay=1e-4, **terms)
    masked = anp(opened(net(kind)), beta=beta, **terms)
    assert_close(played(masked)[0], played(without)[0])


@every_mask
def test_masks_off_and_no_adversarial_share_is_standard(kind):
    plain = net()
    plain.compile(
        SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = data()
    plain.train_step((tf.constant(x), tf.constant(y)))
    masked = anp(opened(net(kind)), mix=(1, 0), weight_decay=0.0)
    assert_close(played(masked)[0], plain.get_weights())
    without_attack = tr.training.AdversarialTraining(net(), None)
    assert_close(played(without_attack)[0], plain.get_weights())


@every_mask
def test_beta_zero_with_live_masks_is_at_on_a_stochastic_net(kind):
    """No pruning pressure, and not AT: the gates are sampled, and learn."""
    model = net(kind)
    game = anp(model, beta=0.0)
    before = [w for mask in game.masks() for w in mask.get_weights()[:2]]
    x, y = (tf.constant(v) for v in data())
    game.compile(run_eagerly=True)
    batch = tr.training.Batch(x, y, None, game.attacked(x, y), tf.constant(COUNT))
    losses, gradients, _ = game.differentiated(batch, game.turns[0], game.group_variables())
    assert all(np.abs(g).max() > 0 for g in gradients["masks"])
    game = anp(net(kind), beta=50.0)
    game.compile(run_eagerly=True)
    heavy, _, _ = game.differentiated(batch, game.turns[0], game.group_variables())
    kl = sum(float(mask.kl()) for mask in game.masks())
    assert float(heavy["masks"] - losses["masks"]) == pytest.approx(kl, rel=1e-4)  # 50 / 50 KL
    at = tr.training.AdversarialTraining(net(), ATTACK, (1, 2), weight_decay=1e-4)
    weights, gates, _ = played(anp(net(kind), beta=0.0))
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(weights, played(at)[0], strict=True))
    assert any(np.abs(a - b).max() > 0 for a, b in zip(gates, before, strict=True))


@every_mask
def test_large_beta_prunes_everything(kind):
    mask = kind(seed=3, jitter=0.0) if kind is tr.layers.VIBMask else kind(seed=3)
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Dense(4)(mask(keras.layers.Flatten()(inputs))))
    game = anp(model, beta=1e6)
    game.compile({"weights": SGD(0.0), "masks": keras.optimizers.Adam(3.0)})
    x, y = (tf.constant(v) for v in data())
    for _ in range(6):
        game.train_step((x, y))
    assert not mask.keep().any()
    assert np.mean(tr.attacks.correct(model, *data())) == 0.25  # chance


@every_mask
@pytest.mark.parametrize("still", ["weights", "masks"])
def test_a_learning_rate_of_zero_keeps_the_group_bit_for_bit(kind, still):
    first = played(anp(net(kind)), epochs=1, weights=0.0, masks=0.0)
    after = played(anp(net(kind)), epochs=1, **{still: 0.0})
    for place, group in enumerate(("weights", "masks")):
        same = all(np.array_equal(a, b) for a, b in zip(first[place], after[place], strict=True))
        assert same == (group == still)


# No adversary: BP


@every_mask
@pytest.mark.parametrize("attack", [NOTHING, NO_STEP], ids=["zero radius", "zero steps"])
def test_an_attack_that_stays_is_bp(kind, attack):
    """beta = 1; BP makes one pass where ANP makes two equal ones."""
    none = played(anp(net(kind), attack, beta=1.0, regularizers=suppression(3.0)))
    bp = played(anp(net(kind), cls=tr.training.BP))
    assert_close(none[0] + none[1], bp[0] + bp[1])
    assert none[2]["regularization"] == 0.0
    apart = played(
        anp(net(kind), attack, beta=1.0, regularizers=suppression(3.0), share_noise=False)
    )
    assert apart[2]["regularization"] == 0.0  # before the mask nothing is random


def test_zero_steps_from_a_random_start_are_an_attack():
    noise = tr.attacks.PGD(tr.threats.Linf(0.1), steps=0)
    logs = played(anp(net(bank.MASKS[0]), noise, regularizers=suppression(1.0)))[2]
    assert logs["regularization"] > 1e-3


NOISE = {
    "beta-Bernoulli": lambda: tr.layers.BetaBernoulliMask(seed=3),
    "VIB": lambda: tr.layers.VIBMask(initial_log_var=-2.0, seed=3),
    "dropout": lambda: keras.layers.Dropout(0.5, seed=3),
    "normalization": keras.layers.BatchNormalization,  # its statistics are those of the batch
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("share", [True, False])
def test_images_that_stay_are_vulnerable_where_the_passes_draw_apart(noise, share):
    inputs = keras.Input((4, 4, 1))
    x = NOISE[noise]()(keras.layers.Flatten()(inputs))
    x = keras.layers.Activation("relu", name="after")(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    game = tr.training.AdversarialTraining(
        model, NO_STEP, mix=(1, 2), regularizers=suppression(1.0), share_noise=share
    )
    value = played(game, epochs=1)[2]["regularization"]
    if share or noise == "normalization":
        assert value == 0.0
    else:
        assert value > 0.01


@every_mask
def test_bp_pays_for_no_attack_and_reports_none(kind):
    x, y = data()
    game, calls = anp(net(kind), cls=tr.training.BP), []
    forward = game.forward
    game.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    logs = played(game, epochs=1)[2]
    assert len(calls) == 1 and set(logs) == {"loss", "kl"}
    game.compile(metrics=["accuracy"], run_eagerly=True)
    history = game.fit(x, y, validation_data=(x, y), batch_size=COUNT, verbose=0).history
    assert set(history) == {"loss", "accuracy", "kl", "val_loss", "val_accuracy"}
    if kind is not bank.MASKS[0]:
        return
    watched = anp(net(kind), cls=tr.training.BP, validation_attack=ATTACK)
    watched.compile(run_eagerly=True)
    history = watched.fit(x, y, validation_data=(x, y), batch_size=COUNT, verbose=0).history
    assert set(history) == {"loss", "kl", "val_loss", "val_robust_accuracy"}
    model = watched.classifier
    x_adv = ATTACK.within(model, tf.constant(x), y, tf.constant(0))
    right = np.mean(tr.attacks.correct(model, x_adv.numpy(), y))
    assert history["val_robust_accuracy"][0] == pytest.approx(right)


@every_mask
def test_the_loss_of_bp_by_hand(kind):
    model = net(kind)
    for mask in tr.layers.masks(model):
        mask.sample = lambda count, m=mask: tf.tile(m.expected()[None], (count, 1))
    game = anp(model, cls=tr.training.BP, weight_decay=0.1)
    game.compile()
    x, y = (tf.constant(v) for v in data())
    batch = tr.training.Batch(x, y, None, game.attacked(x, y), tf.constant(COUNT))
    got = game.objective(batch, game.turns[0])
    log_p = tf.nn.log_softmax(model(x)).numpy()
    ce = -np.mean(log_p[np.arange(COUNT), y.numpy()])
    l2 = sum(np.sum(v.numpy() ** 2) for v in game.group_variables()["weights"])
    kl = sum(float(mask.kl()) for mask in game.masks())
    assert float(got["weights"]) == pytest.approx(ce + 0.05 * l2, rel=1e-5)
    assert float(got["masks"]) == pytest.approx(ce + kl / 50, rel=1e-5)


# PAT


@every_mask
def test_pat(kind, tmp_path):
    """BP, freeze, AT: phi stays, the gate is the inference one, BatchNormalization goes on."""
    model = net(kind, normalized=True)
    played(anp(model, cls=tr.training.BP))
    (mask,) = tr.layers.masks(model)
    bank.half_shut(mask)
    assert tr.layers.freeze_masks(model) == ["mask"]
    phi, gate, kept = mask.get_weights(), mask.expected().numpy(), mask.keep()
    assert 0 < kept.sum() < 6
    game = tr.training.AdversarialTraining(model, ATTACK, (1, 2), weight_decay=1e-4)
    assert all(v is not w for v in game.group_variables()["weights"] for w in mask.variables)
    moved = [v.numpy() for v in model.layers[3].non_trainable_variables]
    logs = played(game)[2]
    assert set(logs) == {"loss", "robust_accuracy"}  # no KL
    for before, after in zip(phi, mask.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    ones = np.ones((3, 6), "float32")
    np.testing.assert_array_equal(mask(ones, training=True), np.tile(gate, (3, 1)))
    now = [v.numpy() for v in model.layers[3].non_trainable_variables]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(moved, now, strict=True))
    # Frozen it stays: in the config, and in a file.
    model.save(tmp_path / "pat.keras")
    again = keras.saving.load_model(tmp_path / "pat.keras")
    (loaded,) = tr.layers.masks(again)
    assert not loaded.trainable and not loaded.trainable_variables
    np.testing.assert_array_equal(loaded(ones, training=True), np.tile(gate, (3, 1)))
    x, _ = data()
    for one in (model, again):
        played(tr.training.AdversarialTraining(one, ATTACK), epochs=1)
    np.testing.assert_array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))


def test_freezing_a_net_without_masks_is_refused():
    with pytest.raises(ValueError, match="`model` must have masks"):
        tr.layers.freeze_masks(net())


# What is asserted of the other baselines: TRADES in test_trades.py --------------------------------


def test_options_switched_off_change_nothing_bit_for_bit():
    def at(**kwargs):
        return played(tr.training.AdversarialTraining(net(), ATTACK, **kwargs))[0]

    plain = at()
    assert_close(at(weight_attack=tr.training.AWP(0.0)), plain, atol=0)
    assert_close(at(regularizers=[tr.training.GradAlign(0.0)]), plain, atol=0)
    zero = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.0, 0.1])
    assert_close(at(weight_attack=tr.training.AWP(zero)), plain, atol=0)


def test_free_at_of_zero_radius_is_standard_training_m_times():
    free = tr.training.FreeAT(net(), tr.threats.Linf(0.0), replays=3, batch_size=COUNT)
    standard = tr.training.AdversarialTraining(net(), None)
    assert_close(played(free, epochs=2)[0], played(standard, epochs=6)[0])
    assert int(free.step.numpy()) == int(free.optimizer.iterations.numpy()) == 6
