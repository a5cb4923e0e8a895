"""Certified training against closed forms on linear nets, its limits, and every attack point."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.bank_pruning import dense
from tfrobust import losses

SGD = keras.optimizers.SGD
THREAT = tr.threats.Linf(0.1)


def linear(outputs=3, seed=1):
    inputs = keras.Input((4,))
    net = keras.Model(inputs, keras.layers.Dense(outputs, name="logits")(inputs))
    rng = np.random.default_rng(seed)
    net.set_weights([rng.normal(0, 2, (4, outputs)), rng.normal(0, 1, outputs)])
    return net


def data(count=6, classes=3):
    return 0.2 + 0.6 * bank.images(count, (4,)), np.arange(count) % classes


def cross_entropy(z, hot):
    top = z.max(-1, keepdims=True)
    return -(hot * (z - top - np.log(np.exp(z - top).sum(-1, keepdims=True)))).sum(-1)


def by_hand(kernel, bias, x, y, hot, weights, kappa, epsilon):
    """Mean of kappa CE(z) + (1 - kappa) CE(-m), m_k = row.x + b - epsilon |row|_1, row = w_y - w_k.

    A single logit z stands for the pair (0, z).
    """
    if kernel.shape[1] == 1:
        kernel, bias = (np.concatenate([0 * v, v], -1) for v in (kernel, bias))
    rows = kernel.T[y][:, None] - kernel.T[None]
    least = (rows * x[:, None]).sum(-1) + bias[y][:, None] - bias - epsilon * np.abs(rows).sum(-1)
    loss = kappa * cross_entropy(x @ kernel + bias, hot) + (1 - kappa) * cross_entropy(-least, hot)
    return (weights * loss).mean()


def slope(function, array, step=1e-6):
    found = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        beside = array.copy()
        beside[place] += step
        found[place] = function(beside)
        beside[place] -= 2 * step
        found[place] = (found[place] - function(beside)) / (2 * step)
    return found


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp", "symbolic"])
@pytest.mark.parametrize("labels", ["integers", "smoothed", "binary"])
def test_loss_and_gradient_by_hand(labels, bound):
    outputs = 1 if labels == "binary" else 3
    net, classes = linear(outputs), max(outputs, 2)
    x, y = data(classes=classes)
    weights, hot = np.array([1, 2, 0, 0.5, 1, 3], "float32"), np.eye(classes)[y]
    loss, given = None, y
    if labels == "smoothed":
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        hot, given = 0.9 * hot + 0.1 / 3, hot
    game = tr.training.CertifiedTraining(net, THREAT, kappa=0.3, bound=bound, crown=0.5)
    game.compile(SGD(1.0), loss=loss, run_eagerly=True)
    kernel, bias = (w.astype("float64") for w in net.get_weights())

    def whole(kernel, bias):
        return by_hand(kernel, bias, x, y, hot, weights, 0.3, 0.1)

    logs = game.fit(x, given, sample_weight=weights, batch_size=6, shuffle=False, verbose=0).history
    assert logs["loss"][0] == pytest.approx(whole(kernel, bias), rel=1e-5)
    moved = [
        before - after for before, after in zip((kernel, bias), net.get_weights(), strict=True)
    ]
    np.testing.assert_allclose(moved[0], slope(lambda k: whole(k, bias), kernel), atol=2e-5)
    np.testing.assert_allclose(moved[1], slope(lambda b: whole(kernel, b), bias), atol=2e-5)


def small(seed=0, activation="relu"):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(3, 3, 2, "same", activation=activation)(inputs)
    x = keras.layers.Dense(6, activation=activation)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def digits(count=24, classes=3):
    return bank.images(count, (8, 8, 1)), np.arange(count) % classes


def worst(game, x, y):
    margins, _ = game.bounded(tf.constant(x), tf.constant(y))
    logits = tr.training.certified.worst_logits(margins, tf.constant(y), 3)
    return losses.cross_entropy(logits, y).numpy()


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp", "symbolic"])
def test_no_attack_reaches_the_worst_loss(bound):
    net, (x, y) = small(), digits()
    game = tr.training.CertifiedTraining(net, THREAT, bound=bound, crown=1.0)
    limit = worst(game, x, y)
    attack = tr.attacks.PGD(THREAT, steps=20, restarts=3, last_iterate=True)
    rng = np.random.default_rng(0)
    corners = np.clip(x + 0.1 * rng.choice([-1, 1], x.shape), 0, 1).astype("float32")
    for x_adv in (x, attack(net, x, y), corners):
        reached = losses.cross_entropy(net(x_adv), y).numpy()
        assert (limit >= reached - 1e-5).all()
    assert (limit > losses.cross_entropy(net(x), y).numpy() + 1e-3).all()


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp", "symbolic"])
def test_radius_0_is_the_clean_loss(bound):
    net, (x, y) = small(), digits()
    game = tr.training.CertifiedTraining(net, tr.threats.Linf(0.0), bound=bound, crown=1.0)
    want = losses.cross_entropy(net(x), y).numpy()
    np.testing.assert_allclose(worst(game, x, y), want, atol=1e-5)
    game.compile(SGD(0.1), run_eagerly=True)
    assert np.isfinite(game.fit(x, y, verbose=0).history["loss"]).all()


def test_gradient_matches_finite_differences():
    """On a net with a dead unit, and one whose pre-activation is exactly 0."""
    net, (x, y) = small(activation="relu"), digits(6)
    kernel, bias = net.layers[3].get_weights()
    kernel[:, 0], bias[0] = 0.0, -1.0
    kernel[:, 1], bias[1] = 0.0, 0.0
    net.layers[3].set_weights([kernel, bias])
    game = tr.training.CertifiedTraining(net, THREAT)
    with tf.GradientTape() as tape:
        margins, _ = game.bounded(tf.constant(x), tf.constant(y))
        loss = tf.reduce_mean(losses.cross_entropy(-margins, y))
    found = tape.gradient(loss, net.trainable_variables)
    assert all(np.isfinite(g).all() for g in found)
    last = net.trainable_variables[-2]
    start = last.numpy()

    def at(value):
        last.assign(value)
        return float(np.mean(worst(game, x, y), dtype="float64"))

    np.testing.assert_allclose(found[-2], slope(at, start, 1e-2), atol=2e-3)


def test_kappa_and_crown_follow_the_radius():
    x, y = digits()
    ramp = tr.training.Ramp(0.2, length=4)
    game = tr.training.CertifiedTraining(
        small(), THREAT, kappa=0.5, bound="crown-ibp", crown=0.2, epsilon=ramp
    )
    seen = []
    for step in range(5):
        game.step.assign(step)
        seen.append([float(v) for v in (game.radius(), game.share(0.5), game.share(game.crown))])
    # The ramp ends at twice the threat's radius, and so do kappa and the share of CROWN.
    want = [[0, 1, 1], [0.05, 0.875, 0.8], [0.1, 0.75, 0.6], [0.15, 0.625, 0.4], [0.2, 0.5, 0.2]]
    np.testing.assert_allclose(seen, want, atol=1e-6)
    decay = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.2)  # which tells no end
    other = tr.training.CertifiedTraining(small(), THREAT, epsilon=decay)
    for step, want in ((1, 0.75), (2, 0.5), (3, 0.5)):
        other.step.assign(step)
        np.testing.assert_allclose(other.share(other.kappa), want, atol=1e-6)
    fixed = tr.training.CertifiedTraining(small(), THREAT, kappa=tr.training.Ramp(0.7, length=2))
    fixed.step.assign(1)
    assert float(fixed.share(fixed.kappa)) == pytest.approx(0.35)


# MixTrain ---------------------------------------------------------------------------------------


def test_mixtrain_of_everything_is_the_whole_loss():
    """k = batch, no replacement, alpha = 1: CE + weight RCE, whatever the order drawn."""
    net, (x, y) = small(), digits(12)
    game = tr.training.MixTrain(
        net, THREAT, k=12, alpha=1.0, weight=0.5, replacement=False, bound="ibp"
    )
    game.compile(SGD(0.0))
    logs = game.fit(x, y, batch_size=12, verbose=0).history
    margins, _ = game.bounded(tf.constant(x), tf.constant(y))
    robust = losses.cross_entropy(-margins, y).numpy().mean()
    clean = losses.cross_entropy(net(x), y).numpy().mean()
    assert logs["loss"][0] == pytest.approx(clean + 0.5 * robust, rel=1e-5)
    assert logs["robust_loss"][0] == pytest.approx(robust, rel=1e-5)
    want = (tr.bounds.margins(net, x, y, THREAT) > 0).mean()
    assert logs["verified_accuracy"][0] == pytest.approx(want)


def test_mixtrain_draws_with_the_chance_and_the_number_asked_for():
    net, (x, y) = small(), digits(8)
    game = tr.training.MixTrain(net, THREAT, k=3, alpha=0.25, bound="ibp", seed=5)
    images = tf.constant(x)
    batch = tr.training.Batch(images, tf.constant(y), None, images, 8)
    game.compile(SGD(0.0))
    losses_seen, drawn = [], []
    for step in range(200):
        game.step.assign(step)
        rows = game.some(batch).x.numpy()
        assert rows.shape == (3, 8, 8, 1)
        drawn += [int(np.abs(x - row).sum((1, 2, 3)).argmin()) for row in rows]
        if step < 60:
            losses_seen.append(float(game.mixed(batch)[1]))
    assert np.bincount(drawn, minlength=8).min() > 40  # of 75 expected
    assert 0.1 < np.mean(np.array(losses_seen) > 0) < 0.45
    few = tr.training.MixTrain(net, THREAT, k=20, replacement=False, bound="ibp").some(batch)
    assert sorted(few.y.numpy()) == sorted(y)


# With the rest of the house ---------------------------------------------------------------------


def test_training_verifies_what_natural_training_does_not():
    source = tr.data.load("digits")
    x, y, test = source.x_train[:640], source.y_train[:640], (source.x_test, source.y_test)
    rates = {}
    for name in ("natural", "certified"):
        keras.utils.set_random_seed(0)
        net = tr.models.lenet300_100(input_shape=(8, 8, 1))
        tr.training.ibp_initialization(net)
        threat = tr.threats.Linf(0.05)
        if name == "natural":
            game = tr.training.AdversarialTraining(net, None)
        else:
            game = tr.training.CertifiedTraining(
                net, threat, epsilon=tr.training.Ramp(0.05, length=60, begin=10)
            )
        game.compile(keras.optimizers.Adam(2e-3), metrics=["accuracy"])
        game.fit(x, y, batch_size=64, epochs=12, verbose=0)
        rates[name] = float(tr.bounds.certified(net, *test, threat).mean())
    assert rates["natural"] < 0.2 and rates["certified"] > 0.6
    logs = game.evaluate(*test, batch_size=64, verbose=0, return_dict=True)
    assert logs["verified_accuracy"] == pytest.approx(rates["certified"], abs=1e-3)


def test_pruned_weights_stay_pruned_and_masks_learn():
    x, y = digits(32)
    net = small()
    prune = tr.pruning.MagnitudePruning(tr.pruning.Ladder([0.5], every=1, unit="steps"))
    game = tr.training.CertifiedTraining(net, THREAT)
    game.compile(SGD(0.1, momentum=0.9), run_eagerly=True)
    game.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[prune])
    kernel = net.layers[1].get_weights()[0]
    assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.05)
    masked = bank.classifier(mask=tr.layers.BetaBernoulliMask)
    game = tr.training.CertifiedANP(masked, THREAT, train_size=32)
    groups = game.group_variables()
    before = {name: [v.numpy() for v in found] for name, found in groups.items()}
    game.compile(metrics=["accuracy"], run_eagerly=True)
    shape = masked.input_shape[1:]
    logs = game.fit(bank.images(16, shape), np.arange(16) % 4, verbose=0).history
    assert logs["kl"][0] > 0 and logs["robust_loss"][0] > 0
    for name, found in groups.items():
        assert any((v.numpy() != b).any() for v, b in zip(found, before[name], strict=True)), name


@pytest.mark.parametrize(
    "make",
    [
        lambda net: tr.training.CertifiedTraining(
            net, THREAT, kappa=0.2, bound="crown-ibp", crown=0.5,
            epsilon=tr.training.Ramp(0.1, 3, 1, 0.01, smooth=True, every=2),
            regularizers=[tr.training.ReLUStability(1e-3), tr.training.BoxTightness()],
            validation_attack=tr.attacks.FGSM(THREAT),
        ),
        lambda net: tr.training.MixTrain(
            net, THREAT, k=2, alpha=0.5, weight=tr.training.Growth(0.1, 2.5, 5), bound="ibp"
        ),
    ],
)  # fmt: skip
def test_configs_make_the_round_trip(make):
    game = make(small())
    again = type(game).from_config(game.get_config())
    assert again.get_config() == game.get_config()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"threat": 0.1}, TypeError, "`threat` must be a tr.threats.Threat"),
        ({"bound": "crown"}, ValueError, "`bound` must be one of ibp"),
        ({"kappa": 1.5}, ValueError, "`kappa` must be in"),
        ({"crown": -0.1}, ValueError, "`crown` must be >= 0"),
        ({"epsilon": 8}, ValueError, "`epsilon`"),
        ({"attack": tr.attacks.FGSM(THREAT)}, TypeError, "`attack` has no place"),
    ],
)
def test_what_is_refused(change, kind, words):
    with pytest.raises(kind, match=words) as caught:
        tr.training.CertifiedTraining(small(), **{"threat": THREAT, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"k": 0}, {"k": 2.5}, {"alpha": 2}, {"weight": -1}])
def test_what_mixtrain_refuses(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` must"):
        tr.training.MixTrain(small(), THREAT, **change)


def test_an_unknown_layer_is_named():
    inputs = keras.Input((4,))
    x = keras.layers.GaussianNoise(0.1)(inputs)
    x = keras.layers.Lambda(lambda v: v * v, name="square")(x)
    net = keras.Model(inputs, keras.layers.Dense(3)(x))
    with pytest.raises(TypeError, match="'square'"):
        tr.training.CertifiedTraining(net, THREAT)


def test_dense_bank_net_with_surgery():
    """A weight transform: bounds are those of the weights of the pass, pruned ones 0."""
    x, y = bank.images(32, dense().input_shape[1:]), np.arange(32) % dense().output_shape[-1]
    net = dense()
    game = tr.training.CertifiedTraining(net, THREAT, transform=tr.pruning.Surgery(1.0))
    game.compile(SGD(0.0), run_eagerly=True)
    losses = game.fit(x, y, batch_size=32, epochs=2, verbose=0).history["robust_loss"]
    assert all((w == 0).mean() > 0.5 for w in net.get_weights() if w.ndim > 1)
    margins, _ = tr.training.CertifiedTraining(net, THREAT).bounded(tf.constant(x), y)
    wanted = np.mean(tr.losses.cross_entropy(-margins, y))
    np.testing.assert_allclose(losses[1], wanted, rtol=1e-5)
    margins, _ = tr.training.CertifiedTraining(dense(), THREAT).bounded(tf.constant(x), y)
    assert abs(np.mean(tr.losses.cross_entropy(-margins, y)) - wanted) > 0.01
