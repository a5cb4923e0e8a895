"""Bounds: numbers worked by hand, exact distances, whole nets, never above what attacks leave."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank, bank_graphs
from tests.bank_bounds import assert_contained, box_of, model_of
from tests.bank_masks import SHAPE
from tfrobust import attacks, bounds, shrink
from tfrobust.bounds import Program
from tfrobust.threats import L1, L2, Linf, Threat

NO_RULE = {"sigmoid_behind_a_mask", "fused_activations", "layers_kept_whole"}  # Softmax, LayerNorm
GRAPHS = {name: build for name, build in bank_graphs.GRAPHS if name not in NO_RULE}
QUICK = """lenet mask_before_norm_same constant_behind_a_padding flatten_rows depthwise
residual_pre_activation squeeze_and_excite signed_gates""".split()


# --- by hand and against exact answers -----------------------------------------------------------


def by_hand():
    """h = relu(x1 + 2 x2 - 1, x2 - x1), z = (h1 + h2, h2)."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(2, activation="relu")(inputs)
    net = keras.Model(inputs, layers.Dense(2)(hidden))
    first, second = np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    net.set_weights([first, np.array([-1.0, 0.0]), second, np.zeros(2)])
    return net, np.array([[0.5, 0.5]], "float32")


def test_numbers_worked_by_hand():
    """x in [0.4, 0.6]: h1 in [0.2, 0.8], h2 in [-0.2, 0.2] and in [0, 0.2] behind the ReLU."""
    net, x = by_hand()
    lower, upper = bounds.interval(net, x, Linf(0.1))
    np.testing.assert_allclose(lower, [[0.2, 0.0]], atol=1e-6)
    np.testing.assert_allclose(upper, [[1.0, 0.2]], atol=1e-6)
    # z0 - z1 = h1: the margin is 0.2, of which the bounds of the logits know nothing.
    np.testing.assert_allclose(bounds.margins(net, x, [0], Linf(0.1)), [0.2], atol=1e-6)
    np.testing.assert_allclose(bounds.margins(net, x, [1], Linf(0.1)), [-0.8], atol=1e-6)
    assert bounds.certified(net, x, [0], Linf(0.1)).tolist() == [True]
    assert bounds.certified(net, x, [1], Linf(0.1)).tolist() == [False]


def test_the_box_ends_at_black_and_white():
    net, _ = by_hand()
    edge = np.array([[0.05, 1.0]], "float32")
    lower, upper = (b.numpy() for b in Linf(0.1).box(edge))
    np.testing.assert_allclose([lower[0], upper[0]], [[0.0, 0.9], [0.15, 1.0]], atol=1e-6)
    # h1 in [0.8, 1.15], h2 in [0.75, 1.0]
    lower, upper = bounds.interval(net, edge, Linf(0.1))
    np.testing.assert_allclose([lower[0], upper[0]], [[1.55, 0.75], [2.15, 1.0]], atol=1e-6)


@pytest.mark.parametrize("threat", bank.THREATS, ids=repr)
def test_the_box_holds_every_legal_point(threat):
    x, far = bank.images(seed=0), bank.images(seed=1)
    legal = threat.project(far, x)
    lower, upper = threat.box(x)
    assert tf.reduce_all((lower <= legal) & (legal <= upper))


def test_a_linear_model_is_certified_up_to_its_exact_distance():
    net, x, y = bank.linear()
    distances = bank.LINEAR_DISTANCE["linf"]  # to 5 digits
    for n, distance in enumerate(distances):
        row = net, x[n : n + 1], y[n : n + 1], Linf(0.1)
        assert bounds.certified(*row, epsilon=distance - 2e-5).all()
        assert not bounds.certified(*row, epsilon=distance + 2e-5).any()


def test_margins_of_a_linear_model_in_closed_form():
    net, x, y = bank.linear()
    weights, bias = (w.astype("float64") for w in net.get_layer("logits").get_weights())
    low, high = np.clip(x - 0.2, 0, 1).reshape(6, -1), np.clip(x + 0.2, 0, 1).reshape(6, -1)
    centre, radius = (low + high) / 2, (high - low) / 2
    rows = weights.T[y][:, None] - weights.T[None]  # (6, 10, 64)
    exact = np.einsum("nki,ni->nk", rows, centre) + bias[y][:, None] - bias
    exact -= np.einsum("nki,ni->nk", np.abs(rows), radius)
    exact[np.arange(6), y] = np.inf
    np.testing.assert_allclose(bounds.margins(net, x, y, Linf(0.2)), exact.min(-1), atol=1e-5)


def test_certified_radii_stay_below_the_exact_ones():
    net, x, y = bank.curve()
    for norm, threat in (("linf", Linf), ("l2", L2), ("l1", L1)):
        exact = bank.CURVE_DISTANCE[norm]
        share = np.array([bounds.certified(net, x, y, threat(0.1), e) for e in exact * 1.001])
        assert not np.diag(share).any()
    assert bounds.certified(net, x, y, Linf(0.1), 0.1 * exact.min()).all()


# --- whole nets ----------------------------------------------------------------------------------


@functools.cache
def built(name):
    """A net for the tests that only look at it."""
    return GRAPHS[name]()


@pytest.mark.parametrize("name", GRAPHS)
def test_no_point_of_the_ball_leaves_its_box(name):
    assert_contained(built(name))


@pytest.mark.parametrize("name", GRAPHS)
def test_limits_and_order(name):
    """Epsilon 0 gives the logits, bounds are nested, and elision never loses."""
    net = built(name)
    program, x = Program(net), bank.images(4, net.input_shape[1:])
    logits = net(x, training=False).numpy()
    y, slack = logits.argmax(-1), 1e-5 * max(1.0, np.abs(logits).max())
    outer, outer_margins = None, None
    for epsilon in (0.1, 0.02, 0.0):
        lower, upper = (bound.numpy() for bound in program.interval(box_of(x, epsilon)))
        margins = program.margins(box_of(x, epsilon), y).numpy()
        own = np.take_along_axis(lower, y[:, None], 1)
        wide = max(slack, 1e-5 * np.abs([lower, upper]).max())
        assert (np.where(np.eye(lower.shape[-1])[y], 0, margins - own + upper) >= -wide).all()
        if outer is not None:
            assert (lower >= outer[0] - slack).all() and (upper <= outer[1] + slack).all()
            assert (margins >= outer_margins - slack).all()
        outer, outer_margins = (lower, upper), margins
    np.testing.assert_allclose(lower, logits, atol=slack)
    np.testing.assert_allclose(upper, logits, atol=slack)
    own = np.take_along_axis(logits, y[:, None], 1)
    np.testing.assert_allclose(margins, own - logits, atol=2 * slack)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in GRAPHS]
)
def test_a_masked_model_has_the_bounds_of_its_shrunk_twin(name):
    net = built(name)
    small = shrink.compact(net)
    x = bank.images(4, net.input_shape[1:])
    y = np.arange(4) % net.output_shape[-1]
    slack = 1e-5 * max(1.0, np.abs(net(x, training=False)).max())
    for epsilon in (0.0, 0.02):
        box = box_of(x, epsilon)
        for method, *labels in (("interval",), ("margins", y)):
            ours, theirs = (getattr(Program(m), method)(box, *labels) for m in (net, small))
            wide = max(slack, 1e-5 * np.abs(ours).max())
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=wide)


def test_a_closed_layer_leaves_constants():
    net = GRAPHS["all_gates_shut"]()
    lower, upper = bounds.interval(net, bank.images(4, SHAPE), Linf(0.5))
    np.testing.assert_array_equal(lower, upper)


@pytest.mark.parametrize("mask", bank.MASKS)
def test_every_mask_has_a_rule(mask):
    assert_contained(bank.classifier(mask=mask))


@functools.cache
def net_and_epsilon(name):
    """Some rows are certified there, others are not."""
    return (bank.classifier(), 0.002) if name == "classifier" else (bank.linear()[0], 0.02)


LINF = [attack for attack in bank.ATTACKS if attack.threat.norm == "linf"]


@pytest.mark.parametrize("attack", LINF, ids=bank.attack_id)
@pytest.mark.parametrize("name", ["classifier", "linear"])
def test_certified_is_below_attacked(name, attack):
    """No attack breaks a certified row, and none finds logits outside of their bounds."""
    net, epsilon = net_and_epsilon(name)
    x = bank.images(16)
    y = attacks.forward(net, x).argmax(-1)
    with bank.eagerly():
        x_adv = attack(net, x, y, epsilon=epsilon)
    logits = attacks.forward(net, x_adv)
    certified = bounds.certified(net, x, y, attack.threat, epsilon)
    broken = logits.argmax(-1) != y
    assert certified.any()
    wrong = np.flatnonzero(certified & broken)
    told = bounds.margins(net, x, y, attack.threat, epsilon), -bank.margins(net, x_adv, y)
    seed, (bound, found) = getattr(attack, "seed", None), (part[wrong] for part in told)
    assert not len(wrong), f"seed {seed}, images {wrong}: margins above {bound}, found {found}"
    lower, upper = Program(net).interval(box_of(x, epsilon))
    assert tf.reduce_all((logits >= lower - 1e-5) & (logits <= upper + 1e-5))


def test_attacks_break_what_is_not_certified_where_bounds_are_exact():
    net, x = bank.linear()[0], bank.images(64)
    y, attack = attacks.forward(net, x).argmax(-1), attacks.PGD(Linf(0.02), 20, loss="margin")
    broken = attacks.verdicts(net, attack(net, x, y), y)
    np.testing.assert_array_equal(bounds.certified(net, x, y, attack.threat), ~broken)
    assert 0 < broken.sum() < 64


# --- invariants ----------------------------------------------------------------------------------


def test_a_row_has_its_bounds_in_any_company():
    net = model_of(lambda x: bank_graphs.head(bank_graphs.normed(bank_graphs.conv(x))))
    x, y = bank.images(40, SHAPE), np.arange(40) % 5
    whole = bounds.margins(net, x, y, Linf(0.02))
    np.testing.assert_allclose(
        bounds.margins(net, x[7:9], y[7:9], Linf(0.02)), whole[7:9], atol=1e-5
    )


def test_units_may_be_permuted_and_rescaled():
    inputs = keras.Input((2,))
    hidden = layers.Dense(8, "relu")(inputs)
    net = keras.Model(inputs, layers.Dense(4)(layers.Dense(8, "relu")(hidden)))
    rng = np.random.default_rng(0)
    w = [rng.normal(size=v.shape) for v in net.get_weights()]
    net.set_weights(w)
    x, y = bank.images(8, (2,)), np.arange(8) % 4
    order = rng.permutation(8)
    before = bounds.margins(net, x, y, Linf(0.05))
    w[2], w[3], w[4] = w[2][:, order] * 3.0, w[3][order] * 3.0, w[4][order] / 3.0
    net.set_weights(w)
    np.testing.assert_allclose(bounds.margins(net, x, y, Linf(0.05)), before, atol=1e-4)


def test_one_logit_is_the_pair_of_zero_and_itself():
    single = bank.classifier(classes=1)
    pair = keras.Model(single.input, layers.Dense(2, name="pair")(single.layers[-2].output))
    kernel, bias = single.layers[-1].get_weights()
    pair.get_layer("pair").set_weights(
        [np.hstack([0 * kernel, kernel]), np.concatenate([0 * bias, bias])]
    )
    x, y = bank.images(8), np.arange(8) % 2
    np.testing.assert_allclose(
        *(bounds.margins(net, x, y, Linf(0.02)) for net in (single, pair)), atol=1e-6
    )
    lower, upper = bounds.interval(single, x, Linf(0.02))
    assert lower.shape == (8, 1) and (lower < upper).all()


def test_other_norms_take_their_ball():
    """z0 - z1 = h1 = 0.5 -+ 0.1 |(1, 2)|_q for p = 2 and 1, the same by every name."""
    net, x = by_hand()
    for threat, least in ((L2(0.1), 0.5 - 0.1 * 5**0.5), (L1(0.1), 0.3)):
        found = bounds.margins(net, x, [0], threat)
        np.testing.assert_allclose(found, [least], atol=1e-6)
        every, _ = bounds.class_margins(net, x, [0], threat)
        np.testing.assert_array_equal(every[:, 1], found)
        (lower,), (upper,) = bounds.interval(net, x, threat)
        high = 0.1 * 2**0.5 if threat.norm == "l2" else 0.1  # h2
        wanted = [least, 0.0], [1.0 - least + high, high]
        np.testing.assert_allclose([lower, upper], wanted, atol=1e-6)
        assert bounds.certified(net, x, [0], threat, 0.9 * 0.5 / (0.5 - least) * 0.1).all()
    assert bounds.margins(net, x, [0], L2(30.0)) <= bounds.margins(net, x, [0], Linf(1.0))


def test_weights_are_live_and_nothing_retraces(monkeypatch):
    traces = []
    rounding = Program.rounding  # asked for once in a trace
    monkeypatch.setattr(Program, "rounding", lambda *args: traces.append(0) or rounding(*args))
    net, x, y = bank.linear()
    before = bounds.margins(net, x, y, Linf(0.1))
    for epsilon, count in itertools.product((0.0, 0.05, 0.2), (6, 3)):
        bounds.margins(net, x[:count], y[:count], Linf(0.1), epsilon)
    assert len(traces) == 1
    net.set_weights([2 * w for w in net.get_weights()])
    np.testing.assert_allclose(bounds.margins(net, x, y, Linf(0.1)), 2 * before, atol=1e-5)
    assert len(traces) == 1


def test_gradients_train():
    """Finite where boxes are points and units are dead; elsewhere those of finite differences."""
    net, x = by_hand()
    program, kernel = Program(net), net.layers[1].kernel
    for epsilon in (0.1, 0.0):
        for bias in ([-1.0, 0.0], [-9.0, -9.0]):
            net.layers[1].bias.assign(bias)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(program.margins(box_of(x, epsilon), [0]))
            gradient = tape.gradient(loss, net.trainable_variables)
            assert all(np.isfinite(g).all() for g in gradient)
    net.layers[1].bias.assign([-1.0, 0.05])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(program.margins(box_of(x, 0.1), [1]))
    gradient = tape.gradient(loss, kernel).numpy()
    start, change = kernel.numpy(), 1e-2  # piecewise linear, so a wide step is exact
    for i, j in np.ndindex(2, 2):
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[i, j] += sign * change
            kernel.assign(moved)
            ends.append(tf.reduce_sum(program.margins(box_of(x, 0.1), [1])).numpy())
        np.testing.assert_allclose(gradient[i, j], (ends[0] - ends[1]) / (2 * change), atol=1e-3)
    kernel.assign(start)


def test_what_overflows_is_not_certified():
    """Also where an activation hides the overflow from the logits."""
    net, x = by_hand()
    assert bounds.certified(net, x, [0], Linf(0.1)).all()
    inputs = keras.Input((2,))
    hidden = layers.Dense(2, activation="relu6")(inputs)
    hidden = keras.Model(inputs, layers.Dense(2)(hidden))
    hidden.set_weights(net.get_weights())
    for kernel in ([[3e38, 0.0], [3e38, 1.0]], [[np.nan, 0.0], [1.0, 1.0]]):
        for model in (net, hidden):
            model.layers[1].kernel.assign(kernel)
            assert bounds.margins(model, x, [0], Linf(1.0)).tolist() == [-np.inf]
            assert not bounds.certified(model, x, [0], Linf(1.0)).any()


def test_unknown_image_sizes():
    def net(x):
        x = layers.ReLU()(bank_graphs.conv(x))
        return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))

    small, free = model_of(net), model_of(net, (None, None, 2))
    free.set_weights(small.get_weights())
    x, y = bank.images(4, SHAPE), [0, 1, 2, 0]
    np.testing.assert_allclose(
        *(bounds.margins(model, x, y, Linf(0.02)) for model in (small, free)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": keras.Sequential()}, TypeError, "tr.models.prepare"),
        ({"x": np.full((2, 8, 8, 1), 2.0)}, ValueError, "`x` must lie in"),
        ({"x": np.zeros((2, 9, 8, 1))}, ValueError, "`x` must have shape"),
        ({"y": [0]}, ValueError, "one label for each of the 2 images"),
        ({"y": [0, 10]}, ValueError, "`y` must lie in"),
        ({"threat": 0.1}, TypeError, "`threat` must be a tr.threats.Threat"),
        ({"epsilon": 8}, ValueError, "write 8/255"),
    ],
)
def test_bad_input(change, error, match):
    net, x, y = bank.linear()
    given = {"model": net, "x": x[:2], "y": y[:2], "threat": Linf(0.1), **change}
    with pytest.raises(error, match=match):
        bounds.margins(**given)


def test_a_threat_of_ones_own_needs_a_box():
    class Mine(Threat):
        pass

    net, x, _ = bank.linear()
    with pytest.raises(TypeError, match=r"Mine must define box\(\)"):
        bounds.interval(net, x, Mine(0.1))
