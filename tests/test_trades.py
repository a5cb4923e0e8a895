"""TRADES against its formula written out in NumPy, its limits, and the attack on the KL."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.bank_pruning import dense
from tests.bank_resume import resumed_equals_unbroken, until_killed
from tfrobust import losses

THREAT = tr.threats.Linf(0.2)
SGD = keras.optimizers.SGD


def kl_attack(**kwargs):
    options = {"steps": 2, "random_start": 0.01, "last_iterate": True, **kwargs}
    return tr.attacks.PGD(THREAT, loss="kl", **options)


def linear(outputs=3, seed=1):
    inputs = keras.Input((4,))
    net = keras.Model(inputs, keras.layers.Dense(outputs, name="logits")(inputs))
    rng = np.random.default_rng(seed)
    net.set_weights([rng.normal(0, 2, (4, outputs)), rng.normal(0, 1, outputs)])
    return net


def data(count=6, classes=3):
    return bank.images(count, (4,)), np.arange(count) % classes


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def by_hand(net, x, x_adv, hot, weights, beta):
    """(loss, gradient by the kernel, gradient by the bias); two classes as the pair (0, z)."""
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    single = kernel.shape[1] == 1
    z, z_adv = x @ kernel + bias, x_adv @ kernel + bias
    if single:
        z, z_adv = (np.concatenate([0 * v, v], 1) for v in (z, z_adv))
    p, q = softmax(z), softmax(z_adv)
    kl = (p * (np.log(p) - np.log(q))).sum(1)
    loss = -(hot * np.log(p)).sum(1) + beta * kl
    dz = p - hot + beta * p * (np.log(p) - np.log(q) - kl[:, None])
    dz_adv = beta * (q - p)
    dz, dz_adv = (v * weights[:, None] / len(x) for v in (dz, dz_adv))
    dz, dz_adv = (v[:, 1:] if single else v for v in (dz, dz_adv))
    return (weights * loss).mean(), x.T @ dz + x_adv.T @ dz_adv, (dz + dz_adv).sum(0)


LABELS = {
    "integers": (3, None),
    "smoothed": (3, keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)),
    "binary": (1, None),
}


@pytest.mark.parametrize("labels", LABELS)
def test_loss_and_gradient_by_hand(labels):
    outputs, loss = LABELS[labels]
    net = linear(outputs)
    x, y = data(classes=max(outputs, 2))
    weights, hot = np.array([1, 2, 0, 0.5, 1, 3], "float32"), np.eye(max(outputs, 2))[y]
    game = tr.training.TRADES(net, kl_attack(), beta=3.0)
    game.compile(SGD(1.0), loss=loss, run_eagerly=labels != "integers")
    if labels == "smoothed":
        hot, y = 0.9 * hot + 0.1 / 3, hot
    x_adv = game.attacked(tf.constant(x), tf.constant(y)).numpy()
    before = net.get_weights()
    want, kernel, bias = by_hand(net, x, x_adv, hot, weights, beta=3.0)
    history = game.fit(x, y, sample_weight=weights, batch_size=6, shuffle=False, verbose=0).history
    assert history["loss"][0] == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(before[0] - net.get_weights()[0], kernel, atol=2e-6)
    np.testing.assert_allclose(before[1] - net.get_weights()[1], bias, atol=2e-6)
    assert np.abs(x_adv - x).max() > 0.1 and history["kl"][0] > 0.01


def test_the_attack_ascends_the_kl_by_hand():
    """One step on a linear net from the noise: x0 + step sign(W (q0 - p)), projected."""
    net, (x, y) = linear(), data()
    start = kl_attack(steps=0)(net, x, y)
    assert 0.005 < (start - x).std() < 0.02
    kernel, bias = net.get_weights()
    p, q = softmax(x @ kernel + bias), softmax(start @ kernel + bias)
    want = np.clip(np.clip(start + 0.05 * np.sign((q - p) @ kernel.T), x - 0.2, x + 0.2), 0, 1)
    np.testing.assert_allclose(kl_attack(steps=1, step_size=0.05)(net, x, y), want, atol=1e-6)


def test_the_attack_needs_no_labels_and_beats_its_start():
    net, (x, y) = linear(), data()
    attack = kl_attack(steps=10)
    x_adv = attack(net, x, y)
    np.testing.assert_array_equal(x_adv, attack(net, x, (y + 1) % 3))
    gap = [losses.kl(net(x), net(v)).numpy() for v in (attack(net, x, y, epsilon=0.0), x_adv)]
    assert (gap[0] == 0).all() and (gap[1] > 0.02).all()
    # Steps in segments on shrinking batches, and the steps inside a train step.
    inside = tf.function(lambda: attack.within(net, tf.constant(x), y, attack.seed))()
    assert np.abs(inside - x).max() == pytest.approx(0.2, abs=1e-6)


def test_kl_is_a_divergence_in_nats():
    rng = np.random.default_rng(0)
    for scale in (1e-4, 1.0, 50.0):
        a, b = (tf.constant(rng.normal(0, scale, (200, 5)), tf.float32) for _ in range(2))
        values = losses.kl(a, b).numpy()
        p, q = (
            v - np.log(np.exp(v).sum(-1, keepdims=True)) for v in (np.float64(a), np.float64(b))
        )
        want = (np.exp(p) * (p - q)).sum(-1)
        np.testing.assert_allclose(values, want, rtol=1e-5, atol=1e-5)
        assert (values >= 0).all() and (losses.kl(a, a).numpy() == 0).all()


def test_at_the_image_itself_the_gradient_is_zero():
    net, (x, y) = linear(), data()
    with pytest.warns(UserWarning, match="goes nowhere: the gradient of KL is zero"):
        attack = kl_attack(random_start=False)
    np.testing.assert_array_equal(attack(net, x, y), x)
    z = net(x)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = losses.kl_from_clean(z, None, tf.identity(net(x)))
    assert not tape.gradient(value, z).numpy().any()


def test_beta_zero_is_plain_keras_fit():
    """Batch normalization, dropout and all: the adversarial pass leaves no trace."""
    nets = [dense(), dense()]
    game = tr.training.TRADES(nets[0], THREAT, beta=0)
    game.compile(SGD(0.1), run_eagerly=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    nets[1].compile(SGD(0.1), loss, run_eagerly=True)
    x, y = bank.images(8, (4, 4, 1)), np.arange(8) % 4
    for model in (game, nets[1]):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(nets[0].get_weights(), nets[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_threat_gets_the_papers_attack():
    attack = tr.training.TRADES(linear(), THREAT).attack
    assert (attack.loss, attack.random_start, attack.steps) == ("kl", 0.001, 10)
    assert attack.last_iterate and attack.step_size == pytest.approx(0.05)
    again = tr.attacks.PGD.from_config(attack.get_config())
    x, y = data()
    np.testing.assert_array_equal(attack(linear(), x, y), again(linear(), x, y))


def test_one_graph_and_pruning_beside_it():
    traced = []

    class Counting(tr.training.TRADES):
        def objective(self, batch, turn):
            traced.append(1)
            return super().objective(batch, turn)

    net = dense()
    vulnerable = [tr.regularizers.VulnerabilitySuppression(1.0)]
    game = Counting(net, tr.attacks.PGD(THREAT, 1, loss="kl", random_start=0.01), beta=2.0,
                    regularizers=vulnerable)  # fmt: skip
    game.compile(SGD(0.1, momentum=0.9))
    prune = tr.pruning.MagnitudePruning(tr.pruning.Linear(0.75, updates=2, every=1))
    x, y = bank.images(20, (4, 4, 1)), np.arange(20) % 4
    history = game.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[prune]).history
    assert len(traced) <= 2  # the last batch is shorter
    assert tr.pruning.sparsity(net) == 0.75
    assert min(history["kl"]) > 0 and min(history["regularization"]) > 0


def test_round_trip(tmp_path):
    beta = keras.optimizers.schedules.PolynomialDecay(6.0, 10, 1.0)
    game = tr.training.TRADES(linear(), THREAT, beta=beta, weight_decay=1e-3)
    game.compile(SGD(0.1, momentum=0.9), metrics=["accuracy"], run_eagerly=True)
    x, y = data()
    game.fit(x, y, verbose=0)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    for model in (game, again):
        model.fit(x, y, verbose=0)
    assert again.get_config()["beta"] == game.get_config()["beta"]
    for a, b in zip(game.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resumed_equals_unbroken(tmp_path):
    def train(seed, *callbacks):
        game = tr.training.TRADES(linear(seed=seed), kl_attack(steps=1), beta=2.0)
        game.compile(keras.optimizers.Adam(0.1), run_eagerly=True)
        batches = tr.data.Batches(*data(), batch_size=2, seed=1)
        until_killed(game.fit, batches, epochs=3, verbose=0, callbacks=list(callbacks))
        return game.get_weights()

    resumed_equals_unbroken(train, tmp_path, kill=4, save_freq=2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tr.training.TRADES(linear(), THREAT, beta=-1.0), "`beta` must be >= 0"),
        (lambda: kl_attack(random_start=2), r"`random_start` must be True.*random_start=2"),
        (lambda: kl_attack(random_start=1.0), r"`random_start` must be True.*=1\.0"),
        (lambda: kl_attack(targets=2), "`targets` must be 0 with loss='kl'"),
        (
            lambda: kl_attack()(linear(), *data(), goal=(data()[1] + 1) % 3),
            "`goal` must be None with loss='kl'",
        ),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_another_loss_than_kl_is_named():
    with pytest.warns(UserWarning, match="`attack` maximises 'ce', not the KL"):
        tr.training.TRADES(linear(), tr.attacks.PGD(THREAT))
