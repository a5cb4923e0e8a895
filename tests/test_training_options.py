"""MART, Free AT, Fast AT, GradAlign, AWP and averages of weights: by hand, resumed, in files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.test_trades import LABELS, data, linear, softmax
from tfrobust import losses, noise
from tfrobust.training import awp, gradalign

THREAT = tr.threats.Linf(0.2)
FGSM = tr.attacks.FGSM(THREAT)
SGD = keras.optimizers.SGD


def step(game, x, y, sample_weight=None, optimizer=None, loss=None):
    """One eager step; returns the logs."""
    game.compile(optimizer or SGD(1.0), loss=loss)
    batch = [tf.constant(v) for v in (x, y)]
    return game.train_step((*batch, *([] if sample_weight is None else [sample_weight])))


def weights(model):
    return [w.copy() for w in model.get_weights()]


def assert_close(ours, theirs, atol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# MART ----


def mart_by_hand(kernel, bias, x, x_adv, hot, row, beta):
    """The loss with float64 probabilities, labels `hot` in the cross-entropy, `row` elsewhere."""
    z, z_adv = x @ kernel + bias, x_adv @ kernel + bias
    if kernel.shape[1] == 1:
        z, z_adv = (np.concatenate([0 * v, v], 1) for v in (z, z_adv))
    p, q = softmax(z), softmax(z_adv)
    here = np.arange(len(x))
    other = np.where(np.eye(p.shape[1])[row] == 1, 0, q).max(1)
    kl = (p * np.log(p / q)).sum(1)
    return -(hot * np.log(q)).sum(1) - np.log(1 - other) + beta * kl * (1 - p[here, row])


@pytest.mark.parametrize("labels", LABELS)
def test_mart_by_hand(labels):
    """Loss against NumPy, gradient against its central differences."""
    outputs, loss = LABELS[labels]
    net, classes = linear(outputs), max(outputs, 2)
    x, y = data(classes=classes)
    row, hot, given = y, np.eye(classes)[y], y
    if labels == "smoothed":
        hot, given = 0.9 * hot + 0.1 / 3, hot
    each = np.array([1, 2, 0, 0.5, 1, 3], "float32")
    game = tr.training.MART(net, FGSM, beta=3.0)
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    x_adv = game.attacked(tf.constant(x), tf.constant(given)).numpy()

    def value(kernel, bias):
        return (each * mart_by_hand(kernel, bias, x, x_adv, hot, row, 3.0)).mean()

    logs = step(game, x, given, each, loss=loss)
    assert float(logs["loss"]) == pytest.approx(value(kernel, bias), rel=1e-5)
    moved = kernel - net.get_weights()[0]
    for place in np.ndindex(*kernel.shape):
        h = np.zeros_like(kernel)
        h[place] = 1e-5
        slope = (value(kernel + h, bias) - value(kernel - h, bias)) / 2e-5
        assert moved[place] == pytest.approx(slope, abs=1e-5)


def test_mart_of_a_threat_plays_the_authors_attack():
    game = tr.training.MART(linear(), THREAT)
    assert (game.attack.loss, game.attack.steps, game.attack.random_start) == ("ce", 10, 0.001)
    assert game.attack.last_iterate and game.attack.step_size == pytest.approx(0.05)
    assert losses.runner_up(tf.constant([[0.0, 500.0]]), [0]).numpy() == pytest.approx(500.0)


# Free AT ----


def free_by_hand(kernel, bias, batches, replays, epsilon, rows, rate):
    """SGD on a linear net in NumPy; delta belongs to rows, not to images."""
    delta = np.zeros((rows, kernel.shape[0]))
    for x, y in batches:
        n = len(x)
        for _ in range(replays):
            x_adv = np.clip(x + delta[:n], 0, 1)
            error = (softmax(x_adv @ kernel + bias) - np.eye(kernel.shape[1])[y]) / n
            upward = np.sign(error @ kernel.T)
            delta[:n] = np.clip(delta[:n] + epsilon * upward, -epsilon, epsilon)
            kernel, bias = kernel - rate * x_adv.T @ error, bias - rate * error.sum(0)
    return kernel, bias, delta


def test_free_at_by_hand():
    """Two batches, the last one smaller; delta is carried over by rows."""
    net, (x, y) = linear(), data(10)
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    game = tr.training.FreeAT(net, THREAT, replays=3, batch_size=6)
    game.compile(SGD(0.5))
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    for batch in batches:
        game.train_step(tuple(tf.constant(v) for v in batch))
    kernel, bias, delta = free_by_hand(kernel, bias, batches, 3, 0.2, 6, 0.5)
    assert_close(net.get_weights(), [kernel, bias], atol=2e-6)
    np.testing.assert_allclose(game.carried.numpy(), delta, atol=1e-6)
    assert np.abs(delta).max() == pytest.approx(0.2) and int(game.step.numpy()) == 6
    assert int(game.optimizer.iterations.numpy()) == 6


def test_free_at_in_l2_keeps_delta_in_the_ball():
    game = tr.training.FreeAT(linear(), tr.threats.L2(0.3), 3, batch_size=6, step_size=0.2)
    for _ in range(3):
        step(game, *data(), optimizer=SGD(0.1))
        length = np.linalg.norm(game.carried.numpy(), axis=1)
        assert (length <= 0.3 + 1e-6).all() and length.max() > 0.15


def test_fast_at_is_one_step_from_a_random_point():
    attack, (net, (x, y)) = tr.training.fast_attack(THREAT), (linear(), data())
    assert (attack.steps, attack.random_start, attack.last_iterate) == (1, True, True)
    assert attack.step_size == pytest.approx(0.25)
    kernel, bias = net.get_weights()
    start = tr.attacks.PGD(THREAT, 0, random_start=True, last_iterate=True)(net, x, y)
    gradient = (softmax(start @ kernel + bias) - np.eye(3)[y]) @ kernel.T
    want = np.clip(np.clip(start + 0.25 * np.sign(gradient), x - 0.2, x + 0.2), 0, 1)
    np.testing.assert_allclose(attack(net, x, y), want, atol=1e-6)


# GradAlign


def test_gradalign_of_a_linear_net_with_two_classes_is_zero():
    """Its gradients by the image all point along the difference of the two weight columns."""
    net, (x, y) = linear(2), data(classes=2)
    game = tr.training.AdversarialTraining(net, FGSM, regularizers=[tr.training.GradAlign(1.0)])
    assert float(step(game, x, y)["regularization"]) == pytest.approx(0.0, abs=1e-6)


def test_gradalign_by_hand_and_its_gradient():
    """Against NumPy on a linear net of three classes; the gradient against differences."""
    net, (x, y) = linear(3), data()
    game = tr.training.AdversarialTraining(net, FGSM, regularizers=[tr.training.GradAlign(1.0)])
    game.compile(SGD(0.0))
    batch = tr.training.Batch(*(tf.constant(v) for v in (x, y)), None, None, tf.constant(len(x)))
    (term,) = game.regularizers
    keys = noise.keys(game.draw(), "gradalign", np.arange(len(x)))
    beside = THREAT.random_start(tf.constant(x), keys).numpy().astype(np.float64)
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())

    def value(kernel):
        a, b = ((softmax(v @ kernel + bias) - np.eye(3)[y]) @ kernel.T for v in (x, beside))
        return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    with tf.GradientTape() as tape:
        got = term.penalty(game, batch)
        total = tf.reduce_sum(got)
    np.testing.assert_allclose(got, value(kernel), atol=1e-5)
    assert value(kernel).max() > 1e-3
    slopes = tape.gradient(total, net.trainable_variables[0]).numpy()
    for place in [(0, 0), (1, 2), (3, 1)]:
        h = np.zeros_like(kernel)
        h[place] = 1e-5
        want = (value(kernel + h) - value(kernel - h)).sum() / 2e-5
        assert slopes[place] == pytest.approx(want, abs=1e-4)


def test_gradalign_is_differentiable_through_convolution_and_pooling():
    net = bank.classifier()
    x, y = (tf.constant(v) for v in (bank.images(4), np.arange(4)))
    with tf.GradientTape() as tape:
        rows = [tf.reshape(gradalign.input_gradient(net, v, y), (4, -1)) for v in (x, x / 2)]
        total = tf.reduce_sum(gradalign.misalignment(*rows))
    gradients = tape.gradient(total, net.trainable_variables)
    assert all(g is None or np.isfinite(g).all() for g in gradients)
    assert np.abs(gradients[0]).max() > 0


# AWP ----


def at_by_hand(kernel, bias, x, y):
    error = (softmax(x @ kernel + bias) - np.eye(kernel.shape[1])[y]) / len(x)
    return x.T @ error, error.sum(0)


def test_awp_by_hand():
    net, (x, y) = linear(), data()
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    kernel[1, 2] = 0.0  # as if pruned
    net.set_weights([kernel, bias])
    game = tr.training.AdversarialTraining(net, FGSM, weight_attack=tr.training.AWP(0.5))
    x_adv = game.attacked(tf.constant(x), tf.constant(y)).numpy()
    gradient = np.where(kernel == 0, 0, at_by_hand(kernel, bias, x_adv, y)[0])
    there = kernel + 0.5 * np.linalg.norm(kernel) * gradient / np.linalg.norm(gradient)
    assert there[1, 2] == 0
    at_kernel, at_bias = at_by_hand(there, bias, x_adv, y)  # biases are not attacked
    logs = step(game, x, y)
    assert_close(net.get_weights(), [kernel - at_kernel, bias - at_bias], atol=2e-6)
    log_p = np.log(softmax(x_adv @ there + bias))
    assert float(logs["loss"]) == pytest.approx(-log_p[np.arange(6), y].mean(), rel=1e-5)


class Watched(tr.training.AdversarialTraining):
    """Keeps what its passes see."""

    seen = None

    def forward(self, x, training=True):
        state = [v.numpy() for v in self.classifier.variables]
        result = super().forward(x, training)
        if training:
            self.seen.append((state, result.logits.numpy()))
        return result


def noisy(prune=False):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((4,))
    x = keras.layers.Dense(5, name="a")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = tr.layers.BetaBernoulliMask(initial_a=2.0, seed=1, name="mask")(x)
    x = keras.layers.Dropout(0.3, seed=2)(keras.layers.Activation("relu")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="b")(x))


def test_awp_leaves_no_trace_of_its_first_evaluation():
    """Masks, scales and biases are not attacked; noise, statistics and reports are as of one."""
    net = noisy()
    constraint = tr.pruning.MaskConstraint((4, 5))
    kernel = net.get_layer("a").kernel
    kernel.constraint = constraint
    constraint.mask.assign(np.arange(20).reshape(4, 5) % 3 > 0)
    kernel.assign(constraint(kernel))
    game = Watched(net, FGSM, weight_attack=tr.training.AWP(0.1))
    game.seen = []
    before = [v.numpy() for v in net.variables]
    game.compile(SGD(0.0), metrics=["accuracy"])
    logs = game.train_step(tuple(tf.constant(v) for v in data()))
    (first, _), (second, _) = game.seen
    for variable, a, b, old in zip(net.variables, first, second, before, strict=True):
        attacked = variable.name == "kernel"
        assert np.array_equal(a, b) != attacked, variable.path
        if variable.trainable:
            np.testing.assert_array_equal(variable.numpy(), old)
    pruned = ~constraint.mask.numpy()
    place = [v is kernel for v in net.variables].index(True)
    assert (second[place][pruned] == 0).all()
    gap, size = np.linalg.norm(second[place] - first[place]), np.linalg.norm(first[place])
    assert gap == pytest.approx(0.1 * size, rel=1e-4)
    assert float(game.trackers["robust_accuracy"].count.numpy()) == 6
    assert 0 <= float(logs["accuracy"]) <= 1
    wanted = tr.training.AdversarialTraining(noisy(), FGSM)
    wanted.compile(SGD(0.0))
    wanted.train_step(tuple(tf.constant(v) for v in data()))
    seeds = [v for v in net.variables if v.name == "seed_generator_state"]
    others = [v for v in wanted.classifier.variables if v.name == "seed_generator_state"]
    for a, b in zip(seeds, others, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("masks", [False, True])
def test_awp_of_anp_attacks_both_groups_at_one_point(masks):
    """Each group's gradient is taken at the attacked kernels; masks move there only if asked."""
    game = tr.training.ANP(
        noisy(), FGSM, train_size=50, weight_attack=tr.training.AWP(0.1, masks=masks)
    )
    chosen = [v.path for g, vs in game.group_variables().items()
              for v in game.weight_attack.chosen(game, vs)]  # fmt: skip
    assert len(chosen) == (4 if masks else 2)
    optimizer = {"weights": SGD(0.1), "masks": SGD(0.1)}
    logs = step(game, *data(), optimizer=optimizer)
    assert np.isfinite(float(logs["loss"])) and set(logs) == {"loss", "robust_accuracy", "kl"}


def test_awp_with_weights_that_follow_from_others():
    """Surgery: the classifier holds what follows from the shadows, before and after each step."""
    net, surgery = noisy(), tr.pruning.Surgery(c=0.5)
    game = Watched(net, FGSM, transform=surgery, weight_attack=tr.training.AWP(0.1))
    game.seen = []
    game.compile(SGD(0.1))
    surgery.begin()
    for _ in range(2):
        zeros = [v.numpy() == 0 for v in net.variables]
        game.train_step(tuple(tf.constant(v) for v in data()))
        for variable, zero, attacked in zip(net.variables, zeros, game.seen[-1][0], strict=True):
            if variable.name == "kernel":
                assert zero.any() and not attacked[zero].any()
    for w, own in zip(surgery._kept.targets, surgery._kept.own, strict=True):
        np.testing.assert_array_equal(w.numpy(), surgery.value(own))


def test_awp_survives_infinite_gradients():
    w = tf.constant([1.0, -2.0])
    assert not awp.step(w, tf.constant([np.inf, 1.0])).numpy().any()
    np.testing.assert_allclose(awp.step(w, tf.constant([3e38, -3e38])), [5**0.5 / 2**0.5] * 2
                               * np.array([1, -1]), rtol=1e-6)  # fmt: skip


# Every game and option: resumed, in a file, its arguments -----------------------------------------
