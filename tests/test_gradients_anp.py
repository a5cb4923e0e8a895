"""Gradients of ANP-VS against central differences of its formulas, written out in float64.

The net is smooth: 4 -> tanh "one" -> mask -> tanh "two" -> logits. The noise of the mask and the
adversarial images are held fixed.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import beta as beta_function
from scipy.special import digamma

import tfrobust as tr
from tests import bank
from tfrobust.training import Batch

COUNT, UNITS, N, BETA, DECAY, LAMBDA = 6, 5, 20, 3.0, 0.3, 1.5
SHAPES = [(4, UNITS), (UNITS,), (UNITS, 4), (4,), (4, 3), (3,)]
RNG = np.random.default_rng(4)
X, MOVE = bank.images(COUNT, (4,)) * 0.6 + 0.2, RNG.uniform(-0.2, 0.2, (COUNT, 4))
X_ADV, Y = (X + MOVE).astype("float32"), np.arange(COUNT) % 3
U, EACH = RNG.uniform(0.2, 0.8, UNITS), RNG.uniform(0.2, 0.8, (COUNT, UNITS))
NORMAL = RNG.normal(0, 1, (COUNT, UNITS))
every_mask = pytest.mark.parametrize("kind", bank.MASKS, ids=lambda kind: kind.__name__)


# The formulas -----------------------------------------------------------------------------------


def softplus(v):
    return np.log1p(np.exp(v))


def log_pi(a, b, u):
    """log of (1 - u^{1/b})^{1/a} with a, b before their softplus."""
    return np.log(1 - u ** (1 / softplus(b))) / softplus(a)


def gates(kind, first, second):
    """(COUNT, UNITS) gates of the fixed noise."""
    if kind is tr.layers.VIBMask:
        return first + np.exp(second / 2) * NORMAL
    pi = np.exp(log_pi(first, second, U))
    return 1 / (1 + np.exp(-(np.log(pi / (1 - pi)) + np.log(EACH / (1 - EACH))) / 0.7))


def kl(kind, first, second):
    if kind is tr.layers.VIBMask:
        return 0.5 * np.log(1 + first**2 / np.exp(second)).sum()
    a, b, alpha = softplus(first), softplus(second), 1e-4
    inner = (1 - alpha / a) * (-np.euler_gamma - digamma(b) - 1 / b)
    return (inner + np.log(a * b / alpha) - (b - 1) / b).sum()


def expected(kind, first, second):
    if kind is tr.layers.VIBMask:
        return first * (np.exp(second) < first**2)
    a, b = softplus(first), softplus(second)
    return b * beta_function(1 + 1 / a, b)


def forward(theta, x, gate):
    """(logits, features) of a net with the flat weights `theta`."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES])[:-1]
    weights = [w.reshape(s) for w, s in zip(np.split(theta, ends), SHAPES, strict=True)]
    one = np.tanh(x @ weights[0] + weights[1])
    two = np.tanh((one * gate) @ weights[2] + weights[3])
    return two @ weights[4] + weights[5], (one, two)


def cross_entropy(logits):
    logits = logits - logits.max(1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(COUNT), Y])


def suppression(features, moved):
    return np.mean([np.abs(a - b).mean() for a, b in zip(features, moved, strict=True)])


def terms(kind, point):
    """{name: value} of both losses and V; `point` is (theta, first, second) in one array."""
    theta, first, second = np.split(point, [len(point) - 2 * UNITS, len(point) - UNITS])
    gate = gates(kind, first, second)
    (clean, features), (attacked, moved) = (forward(theta, x, gate) for x in (X, X_ADV))
    v = suppression(features, moved)
    mixed = (cross_entropy(clean) + 2 * cross_entropy(attacked)) / 3
    return {
        "weights": mixed + 0.5 * DECAY * (theta**2).sum() + LAMBDA * v,
        "masks": cross_entropy(attacked) + BETA / N * kl(kind, first, second),
        "V": v,
    }


def slopes(function, point, step=1e-6):
    """Central differences of `function` at each coordinate of `point`."""
    steps = step * np.eye(len(point))
    return np.array([(function(point + h) - function(point - h)) / (2 * step) for h in steps])


# The game ---------------------------------------------------------------------------------------


def masked(kind):
    """(net, its point): a lively net whose mask draws the fixed noise."""
    inputs = keras.Input((4,))
    one = keras.layers.Dense(UNITS, activation="tanh", name="one")(inputs)
    mask = kind(name="mask") if kind is tr.layers.VIBMask else kind(temperature=0.7, name="mask")
    two = keras.layers.Dense(4, activation="tanh", name="two")(mask(one))
    net = keras.Model(inputs, keras.layers.Dense(3, name="logits")(two))
    rng = np.random.default_rng(1)
    weights = [rng.normal(0, 0.7, shape).astype("float32") for shape in SHAPES]
    for layer, at in (("one", 0), ("two", 2), ("logits", 4)):
        net.get_layer(layer).set_weights(weights[at : at + 2])
    if kind is tr.layers.VIBMask:
        values = [rng.uniform(0.5, 1.5, UNITS), rng.uniform(-3, -1.5, UNITS)]
        mask.sample = lambda count: (
            mask.parameters()[0] + tf.sqrt(mask.parameters()[1]) * NORMAL.astype("float32")
        )
    else:
        values = [rng.uniform(-0.5, 2, UNITS), rng.uniform(-0.5, 1, UNITS)]
        mask.sample = lambda count: mask.gate(*(tf.constant(v, tf.float32) for v in (U, EACH)))
    values = [v.astype("float32") for v in values]
    for variable, value in zip(mask.trainable_variables, values, strict=True):
        variable.assign(value)
    flat = [np.float64(v).ravel() for v in (*weights, *values)]
    return net, np.concatenate(flat)


def flat(gradients):
    return np.concatenate([np.ravel(g) for g in gradients])


def played(net):
    term = tr.regularizers.VulnerabilitySuppression(LAMBDA)
    game = tr.training.ANP(
        net, tr.attacks.FGSM(tr.threats.Linf(0.1)), beta=BETA, train_size=N,
        weight_decay=DECAY, regularizers=[term],
    )  # fmt: skip
    game.compile(run_eagerly=True)
    x, y, x_adv = (tf.constant(v) for v in (X, Y, X_ADV))
    return game, Batch(x, y, None, x_adv, tf.constant(COUNT))


@every_mask
def test_both_losses_and_their_gradients(kind):
    """Of weights and masks, both at the same parameters, each by its own group alone."""
    net, point = masked(kind)
    game, batch = played(net)
    losses, gradients, _ = game.differentiated(batch, game.turns[0], game.group_variables())
    groups = {"weights": slice(0, -2 * UNITS), "masks": slice(-2 * UNITS, None)}
    for name, rows in groups.items():
        assert float(losses[name]) == pytest.approx(terms(kind, point)[name], rel=1e-5)
        wanted = slopes(lambda p, name=name: terms(kind, p)[name], point)[rows]
        assert np.abs(wanted).min() > 1e-5  # every parameter counts
        np.testing.assert_allclose(flat(gradients[name]), wanted, rtol=1e-3, atol=3e-6)


@every_mask
def test_vulnerability_is_differentiated_through_both_branches(kind):
    net, point = masked(kind)
    game, batch = played(net)
    variables = [v.value for group in game.group_variables().values() for v in group]
    with tf.GradientTape() as tape:
        value = game.penalties(batch, *game.passes(batch.x, batch.x_adv))
    found = tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    assert float(value) == pytest.approx(LAMBDA * terms(kind, point)["V"], rel=1e-5)
    wanted = LAMBDA * slopes(lambda p: terms(kind, p)["V"], point)
    np.testing.assert_allclose(flat(found), wanted, rtol=1e-3, atol=3e-6)

    def one_branch(p, start=point):
        """V with clean features that stand still."""
        parts = [np.split(q, [len(q) - 2 * UNITS, len(q) - UNITS]) for q in (start, p)]
        pairs = zip((X, X_ADV), parts, strict=True)
        sides = [forward(part[0], x, gates(kind, *part[1:]))[1] for x, part in pairs]
        return suppression(*sides)

    assert np.abs(LAMBDA * slopes(one_branch, point) - wanted).max() > 0.05


def test_log_pi():
    """One number shared by the batch: log pi and its slopes by both parameters, over all u."""
    mask = tr.layers.BetaBernoulliMask()
    mask.build((None, 60))
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1.5, 3, 60).astype("float32") for _ in range(2))
    u = rng.uniform(0.05, 0.95, 60).astype("float32")
    for variable, value in zip((mask.a_, mask.b_), (a, b), strict=True):
        variable.assign(value)
    with tf.GradientTape() as tape:
        value = mask.log_pi(tf.constant(u))
    found = tape.gradient(value, [mask.a_.value, mask.b_.value])
    a, b, u = (np.float64(v) for v in (a, b, u))
    np.testing.assert_allclose(value, log_pi(a, b, u), rtol=1e-4, atol=1e-6)
    h = 1e-6
    by_a = (log_pi(a + h, b, u) - log_pi(a - h, b, u)) / (2 * h)
    by_b = (log_pi(a, b + h, u) - log_pi(a, b - h, u)) / (2 * h)
    for ours, theirs in zip(found, (by_a, by_b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


@every_mask
def test_the_attack_climbs_the_gradient_of_the_net_in_inference(kind):
    """Through the expected gate, by images: one step of FGSM, in its direction and in its signs."""
    net, point = masked(kind)
    theta, first, second = np.split(point, [len(point) - 2 * UNITS, len(point) - UNITS])
    gate = expected(kind, first, second)
    assert np.abs(gate - gates(kind, first, second)).max() > 0.1

    def loss(flat_x):
        return COUNT * cross_entropy(forward(theta, flat_x.reshape(X.shape), gate)[0])

    wanted = slopes(loss, np.float64(X).ravel()).reshape(X.shape)
    assert np.abs(wanted).min() > 1e-4
    with bank.eagerly():
        signs = tr.attacks.FGSM(tr.threats.Linf(0.1))(net, X, Y) - X
        step = tr.attacks.FGSM(tr.threats.L2(0.1))(net, X, Y) - X
    np.testing.assert_allclose(signs, 0.1 * np.sign(wanted), atol=1e-6)
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(step, 0.1 * unit, atol=1e-5)
