"""Bounds against what attacks find: all targets, every graph, hidden values too."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank, bank_graphs, test_relaxations
from tests.bank_bounds import assert_contained, assert_margins_hold, model_of, relaxed
from tests.test_bounds import GRAPHS
from tfrobust import attacks, bounds
from tfrobust.bounds import Program, Region, forward
from tfrobust.threats import L1, L2, Linf

FAST = ("flatten_rows", "pruned")


def descended(net, x, y, epsilon, steps=10):
    """PGD's last points for all targets from random starts, `(classes * images, ...)`."""
    classes, (lower, upper) = Program(net).classes, Linf(epsilon).box(x)
    lower, upper = (np.tile(end, (classes, *[1] * (x.ndim - 1))) for end in (lower, upper))
    goals = tf.repeat(tf.range(classes), len(x))
    rows = tf.one_hot(np.tile(y, classes), classes) - tf.one_hot(goals, classes)
    points = tf.constant(np.random.default_rng(0).uniform(lower, upper).astype("float32"))
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(points)
            margin = tf.reduce_sum(rows * net(points, training=False))
        step = epsilon / 4 * tf.sign(tape.gradient(margin, points))
        points = tf.clip_by_value(points - step, lower, upper)
    return points.numpy()


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in GRAPHS]
)
def test_no_attack_leaves_a_box_or_a_margin(name):
    """PGD aimed at each class and the library's APGD, against hidden boxes and all margins."""
    net, threat = GRAPHS[name](), Linf(0.05)
    x = bank.images(2, net.input_shape[1:])
    y = np.arange(2) % Program(net).classes
    found = [x, descended(net, x, y, 0.05)]
    apgd = attacks.APGD(threat, 5, loss="margin", targets=Program(net).classes - 1)
    with bank.eagerly():
        found.append(np.asarray(apgd(net, x, y)))
    found = np.concatenate(found)
    assert_contained(net, 0.05, images=2, found=found)
    assert_margins_hold(net, ["ibp", "zero", "adaptive"], threat, images=2, found=found)


SHAPES = {
    "groups": (lambda x: bank_graphs.conv(x, 4, groups=2), (5, 5, 2)),
    "separable": (lambda x: layers.SeparableConv2D(3, 3, padding="same")(x), (5, 5, 2)),
    "transposed": (lambda x: layers.Conv2DTranspose(2, 3, strides=2, padding="same")(x), (3, 3, 2)),
    "depth": (lambda x: layers.Conv3D(2, 2)(x), (3, 3, 3, 1)),
    "sequence": (lambda x: layers.SeparableConv1D(3, 3, padding="same")(x), (6, 2)),
}


@pytest.mark.parametrize(
    "name", [n if n != "sequence" else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_relaxations_know_convolutions_of_other_kinds(name):
    """Against points, with slope 0 nowhere below intervals, and exact where no ReLU is bent."""
    layer, shape = SHAPES[name]
    net = model_of(lambda x: bank_graphs.head(layers.ReLU()(layer(x))), shape)
    methods = ["ibp", "zero", "symbolic"]
    assert_margins_hold(net, methods, images=2, count=100)
    program, x = Program(net), tf.constant(bank.images(2, shape))
    region = Region.around(Linf(0.05), x)
    ibp, zero = (relaxed(program, region, [0, 1], m) for m in ("ibp", "zero"))
    assert (zero >= ibp - 2e-5 * max(1, np.abs(ibp).max())).all()
    straight = model_of(lambda x: bank_graphs.head(layer(x)), shape)
    program = Program(straight)
    exact, *others = (relaxed(program, region, [0, 1], m) for m in methods)
    if name in ("separable", "sequence"):  # IBP folds affine layers as well
        assert program.bent == []
    for found in others:
        np.testing.assert_allclose(found, exact, atol=2e-5 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("threat", [L2, pytest.param(L1, marks=pytest.mark.slow)])
def test_radius_0_is_the_model(threat):
    net = model_of(
        lambda x: bank_graphs.head(bank_graphs.normed(bank_graphs.conv(x, 2))), (4, 4, 1)
    )
    program, x = Program(net), bank.images(3, (4, 4, 1))
    logits, y = net(x).numpy(), np.arange(3)
    wanted, region = logits[np.arange(3), y][:, None] - logits, Region.around(threat(0.0), x)
    for method in ("ibp", "adaptive", "full zero", "symbolic"):
        found = relaxed(program, region, y, method)
        np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1, np.abs(logits).max()))
    lower, upper = program.interval(region)
    np.testing.assert_allclose(lower, logits, atol=2e-5 * np.abs(logits).max())
    np.testing.assert_allclose(upper, logits, atol=2e-5 * np.abs(logits).max())


@pytest.mark.parametrize("threat", [Linf, L2, L1])
@pytest.mark.parametrize("mode", ["ibp", "zero", "adaptive", "symbolic"])
def test_gradients_are_finite_where_a_box_ends_at_0(threat, mode):
    """u = 0 > l, l = 0 < u, l = u = 0, and no radius at all."""
    net = model_of(lambda x: layers.Dense(2)(layers.Dense(4, "relu")(x)), (2,))
    x, program = np.full((1, 2), 0.5, "float32"), Program(net)
    first = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    net.layers[1].set_weights([first, np.array([-0.75, -0.25, 0.0, -1.0])])
    for epsilon in (0.25, 0.0):
        box = program.boxes(Region.around(threat(epsilon), x), program.bent)[program.bent[0]]
        if epsilon:
            np.testing.assert_array_equal(box.upper.numpy()[0, [0, 2]], [0.0, 0.0])
            np.testing.assert_array_equal(box.lower.numpy()[0, [1, 2]], [0.0, 0.0])
        with tf.GradientTape() as tape:
            region = Region.around(threat(0.0), tf.constant(x), tf.constant(epsilon))
            if mode == "ibp":
                margins = program.margins(region, [1])
            elif mode == "symbolic":
                margins = bounds.forward.margins(program, region, [1])
            else:
                margins = bounds.backward.margins(program, region, [1], mode)
            value = tf.reduce_sum(margins)
        gradients = tape.gradient(value, net.trainable_variables)
        assert all(np.isfinite(g).all() for g in gradients)
        assert any((np.asarray(g) != 0).any() for g in gradients)


def _no_errors(centre, generators, pixels, region, original=forward._least):
    return original(centre, generators[:, :pixels], pixels, region)


def _with_bias(rule, parts):
    generators = forward._level(parts)
    flat = [tf.reshape(g, (-1, *g.shape[2:])) for g in generators]
    moved = rule(*flat)
    moved = tf.reshape(moved, (-1, generators[0].shape[1], *moved.shape[1:]))
    return rule(*(centre for centre, _ in parts)), moved


def _lower_line(rule, parts, boxes, count, original=forward._bent):
    centre, generators = original(rule, parts, boxes, count)
    return centre - tf.reduce_sum(generators[:, count:], 1), generators


@pytest.mark.parametrize(
    ("name", "wrong"), [("_least", _no_errors), ("_affine", _with_bias), ("_bent", _lower_line)]
)
def test_wrong_symbolic_intervals_are_noticed(name, wrong, monkeypatch):
    monkeypatch.setattr(forward, name, wrong)
    with pytest.raises(AssertionError):
        test_relaxations.test_symbolic_intervals_are_fast_lin(Linf, "relu")
