"""Linear relaxations: by hand, against exact answers and each other, and mutants of their rules."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank, bank_graphs
from tests.bank_bounds import assert_contained, assert_margins_hold, mlp, model_of, relaxed
from tests.bank_masks import FixedMask, randomize, shut
from tests.test_bounds import GRAPHS, by_hand
from tfrobust import bounds, shrink
from tfrobust.bounds import METHODS, Program, Region, backward
from tfrobust.threats import L1, L2, Linf
from tfrobust.verify import exact

FAST = ["mask_before_norm_same", "squeeze_and_excite"]
SLOW = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in GRAPHS]


def region_of(x, epsilon, threat=Linf):
    return Region.around(threat(0.0), tf.constant(x), epsilon)


# --- by hand and against exact answers -----------------------------------------------------------


def test_numbers_worked_by_hand():
    """h = relu(x1 + 2 x2 - 1, x2 - x1), z = (h1 + h2, h2); x in [0.4, 0.6], y = 1.

    z1 - z0 = -h1 = -(x1 + 2 x2 - 1) >= -0.8. And with z = (h2, 0), y = 0, the relaxation of h2 on
    [-0.2, 0.2]: 0 from the slope 0, x2 - x1 >= -0.2 from the slope 1 and (x2 - x1) / 2 >= -0.1 from
    the parallel.
    """
    net, x = by_hand()
    program, region = Program(net), region_of(x, 0.1)
    for method in ("zero", "adaptive", "parallel", "full zero", "symbolic"):
        found = relaxed(program, region, [1], method)
        np.testing.assert_allclose(found, [[-0.8, 0.0]], atol=1e-6)
    first, bias, _, _ = net.get_weights()
    net.set_weights([first, bias, np.array([[0.0, 0.0], [1.0, 0.0]]), np.zeros(2)])
    for method, least in {"zero": 0.0, "adaptive": 0.0, "parallel": -0.1, "symbolic": -0.1}.items():
        np.testing.assert_allclose(relaxed(program, region, [0], method)[0, 1], least, atol=1e-6)
    net.set_weights([first, np.array([-1.0, 0.1]), np.array([[0.0, 0.0], [1.0, 0.0]]), np.zeros(2)])
    found = relaxed(program, region, [0], "adaptive")  # on [-0.1, 0.3] the slope is 1
    np.testing.assert_allclose(found[0, 1], -0.1, atol=1e-6)


@pytest.mark.parametrize("threat", [Linf, L2, L1])
def test_affine_models_are_exact(threat):
    """row . x - epsilon |row|_q, or the box where it is tighter; chains of affine layers too."""
    _, x, y = bank.linear()
    inputs = keras.Input((8, 8, 1))
    net = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(inputs)))
    deep = layers.Flatten()(layers.Rescaling(2.0, -1.0)(inputs))
    deep = keras.Model(inputs, layers.Dense(10)(layers.Dense(30)(deep)))
    for model in (net, deep):
        at = model(x).numpy().astype(float)
        jacobian = []
        for k in range(10):
            point = tf.constant(x)
            with tf.GradientTape() as tape:
                tape.watch(point)
                logit = model(point)[:, k]
            jacobian.append(tape.gradient(logit, point).numpy().reshape(6, -1))
        jacobian = np.stack(jacobian, 1).astype(float)
        slopes = jacobian[np.arange(6), y][:, None] - jacobian
        margin = at[np.arange(6), y][:, None] - at
        epsilon = {Linf: 0.05, L2: 0.4, L1: 2.0}[threat]
        dual = {Linf: 1, L2: 2, L1: np.inf}[threat]
        ball = margin - epsilon * np.linalg.norm(slopes, dual, axis=-1)
        flat = x.reshape(6, -1)
        low, high = np.clip(flat - epsilon, 0, 1), np.clip(flat + epsilon, 0, 1)
        box = margin + np.minimum(
            slopes * (low - flat)[:, None], slopes * (high - flat)[:, None]
        ).sum(-1)
        exact = np.maximum(box, ball)
        program, region = Program(model), region_of(x, epsilon, threat)
        for method in ("zero", "full adaptive"):
            np.testing.assert_allclose(relaxed(program, region, y, method), exact, atol=2e-5)


def test_where_every_relu_is_stable_relaxations_are_exact():
    net, x, y = mlp(0)
    net.layers[1].bias.assign(net.layers[1].bias + [9.0, -9.0] * 4)
    net.layers[2].bias.assign(net.layers[2].bias + [99.0, -99.0] * 4)
    program, region = Program(net), region_of(x, 0.05)
    box = program.boxes(region, program.bent)
    assert all(
        (b.lower.numpy() * b.upper.numpy() > 0).all() for n, b in box.items() if n in program.bent
    )
    point = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(point)
        logits = net(point)
    jacobian = tape.batch_jacobian(logits, point).numpy()
    slopes = jacobian[np.arange(6), y][:, None] - jacobian
    centre = net(region.box.centre).numpy()
    exact = centre[np.arange(6), y][:, None] - centre
    exact -= (np.abs(slopes) * region.box.radius.numpy()[:, None]).sum(-1)
    for method in ("zero", "adaptive", "parallel", "full zero", "full adaptive", "symbolic"):
        np.testing.assert_allclose(relaxed(program, region, y, method), exact, atol=2e-4)
    assert (relaxed(program, region, y, "ibp") <= exact + 2e-4).all()


@pytest.mark.parametrize(
    ("threat", "activation"),
    [(Linf, "relu"), (Linf, "tanh"), (Linf, "elu"), (L2, "relu"), (L1, "leaky_relu")],
)
def test_symbolic_intervals_are_fast_lin(threat, activation):
    """Two implementations of one relaxation: forward with generators, backward with rows."""
    net, x, y = mlp(len(activation), activation=activation)
    program = Program(net)
    for epsilon in (0.03, 0.3):
        region = region_of(x, epsilon, threat)
        symbolic = relaxed(program, region, y, "symbolic")
        fast = relaxed(program, region, y, "full parallel")
        np.testing.assert_allclose(symbolic, fast, atol=1e-5 * max(1, np.abs(fast).max()))


def test_symbolic_intervals_of_every_kind_of_layer():
    """Bent branches side by side too, whose errors have nothing to do with each other."""

    def net(x):
        x = bank_graphs.normed(bank_graphs.conv(x, 2, strides=2))
        y = layers.Add()(
            [layers.Activation("tanh")(bank_graphs.conv(x, 2)), layers.ReLU()(0.5 - x)]
        )
        x = layers.Concatenate()([layers.MaxPooling2D(2)(y), layers.AveragePooling2D(2)(x)])
        return bank_graphs.head(layers.Multiply()([x, layers.Activation("sigmoid")(x)]))

    model = model_of(net)
    assert_margins_hold(model, ["symbolic", "full parallel"])
    program, x = Program(model), bank.images(2, model.input_shape[1:])
    found = [relaxed(program, region_of(x, 0.02), [0, 1], m) for m in ("symbolic", "ibp")]
    assert (found[0] > found[1] - 1e-5).all()

    def apart(x):  # relu(t) - relu(t), by layers of their own: not 0 for certain
        a, b = (layers.Dense(1, "relu", kernel_initializer="ones")(x) for _ in range(2))
        return layers.Dense(2)(layers.Subtract()([a, b]))

    inputs = keras.Input((1,))
    net = keras.Model(inputs, apart(2.0 * inputs - 1.0))
    net.layers[-1].set_weights([np.array([[1.0, 0.0]]), np.zeros(2)])
    region = region_of(np.full((1, 1), 0.5, "float32"), 0.5)
    # Each lies in (t + 1) / 2 +- 1 / 4 for t in [-1, 1]: the difference is above -1 / 2 only.
    np.testing.assert_allclose(
        relaxed(Program(net), region, [0], "symbolic")[0, 1], -0.5, atol=1e-6
    )


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_order(seed):
    """Slope 0 is nowhere looser than intervals; the best of all is not looser than any of them."""
    net, x, y = mlp(seed, (4, 8, 8, 3), ["relu", "tanh", "softplus", "relu6"][seed])
    program = Program(net)
    for epsilon in (0.0, 0.2):
        region = region_of(x, epsilon)
        members = ["ibp", "zero", "adaptive", "full zero", "full adaptive"]
        single = {m: relaxed(program, region, y, m) for m in members}
        both = [METHODS[name](program, region, y).numpy() for name in ("crown", "crown-ibp")]
        slack, (best, half) = both[0][:, -1:], (found[:, :-1] for found in both)
        assert (single["zero"] >= single["ibp"] - slack).all()
        assert (single["full zero"] >= single["zero"] - slack).all()
        for member, bound in single.items():
            assert (best >= bound - slack).all() or not member.startswith("full")
            assert (half >= bound - slack).all() or member.startswith("full")
        assert (half >= single["ibp"] - slack).all()
        assert (best >= single["ibp"] - slack).all()
        if epsilon == 0:
            logits = net(x).numpy()
            for bound in [*single.values(), best, half]:
                wanted = logits[np.arange(6), y][:, None] - logits
                assert (np.abs(bound - wanted) <= slack).all()


# --- whole nets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLOW)
def test_no_point_of_the_ball_is_below_its_bound(name):
    """Every layer; slope 0 is never looser than intervals."""
    net = GRAPHS[name]()
    assert_margins_hold(net, ["zero", "adaptive"])
    program, x = Program(net), bank.images(2, net.input_shape[1:])
    for epsilon in (0.0, 0.03):
        region, y = region_of(x, epsilon), np.arange(2) % program.classes
        ibp, zero, adaptive = (relaxed(program, region, y, m) for m in ("ibp", "zero", "adaptive"))
        slack = 2e-5 * max(1.0, np.abs(ibp).max())
        assert (zero >= ibp - slack).all()
        if epsilon == 0:
            np.testing.assert_allclose(zero, ibp, atol=slack)
            np.testing.assert_allclose(adaptive, ibp, atol=slack)


@pytest.mark.parametrize("threat", [L2(0.3), L1(1.0)], ids=repr)
@pytest.mark.parametrize("name", ["lenet", pytest.param(FAST[1], marks=pytest.mark.slow)])
def test_other_balls_hold(name, threat):
    assert_margins_hold(GRAPHS[name](), ["ibp", "zero", "adaptive"], threat)


def test_the_ball_is_tighter_than_its_box():
    program, x, y = Program(bank.classifier()), bank.images(4), np.arange(4)
    for threat, radius in ((L2, 0.3), (L1, 0.8)):
        for method in ("ibp", "adaptive"):
            ball = relaxed(program, region_of(x, radius, threat), y, method)
            box = relaxed(program, region_of(x, radius), y, method)
            assert (ball >= box).all() and (ball.min(-1) > box.min(-1)).all()


def _narrow(x):
    x = bank_graphs.normed(bank_graphs.conv(x, 3, strides=2))
    y = layers.Add()([layers.MaxPooling2D(2, strides=1, padding="same")(x), bank_graphs.conv(x, 3)])
    return bank_graphs.head(layers.LeakyReLU()(bank_graphs.conv(y, 2, strides=2)))


@pytest.mark.parametrize(
    "mode",
    ["adaptive", *(pytest.param(m, marks=pytest.mark.slow) for m in ("zero", "parallel"))],
)
def test_full_crown_holds_layer_by_layer(mode):
    net = model_of(_narrow)
    assert_contained(net, mode=mode, images=2)
    assert_margins_hold(net, [f"full {mode}"], images=2)


def test_chunks_do_not_change_bounds():
    net, x, y = mlp(0, (4, 12, 12, 5))
    program, region, memory = Program(net), region_of(x, 0.1), 300  # 4 of 12 neurons at a time
    boxes = backward.tightened(program, region, "adaptive", memory)
    whole = backward.tightened(program, region, "adaptive")
    for number, box in whole.items():
        np.testing.assert_allclose(boxes[number], box, atol=1e-4)
    np.testing.assert_allclose(
        backward.margins(program, region, y, "adaptive", whole, 200),  # 2 of 4 classes
        backward.margins(program, region, y, "adaptive", whole),
        atol=1e-4,
    )


def assert_shrunk(net, x, ours, theirs):
    """1e-5 of the largest logit or margin, as shrinking itself."""
    slack = 1e-5 * max(1.0, np.abs(net(x, training=False)).max(), np.abs(ours).max())
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=slack)


def test_dearer_bounds_know_no_masks_either():
    """Full CROWN, symbolic intervals and complete verification of a masked and a shrunk net."""
    keras.utils.set_random_seed(0)
    inputs = h = keras.Input((4,))
    for _ in range(2):
        h = FixedMask()(layers.Dense(8, "relu")(h))
    net = shut(randomize(keras.Model(inputs, layers.Dense(3)(h))))
    small, x, y = shrink.compact(net), bank.images(3, (4,)), np.arange(3)
    assert small.count_params() < net.count_params() - 30
    region = region_of(x, 0.2)
    for method in ("full adaptive", "symbolic"):
        ours, theirs = (relaxed(Program(m), region, y, method) for m in (net, small))
        assert_shrunk(net, x, ours, theirs)
    ours, theirs = ([exact(m, *row, Linf(0.2)).margin for row in zip(x, y, strict=True)]
                    for m in (net, small))  # fmt: skip
    assert_shrunk(net, x, ours, np.array(theirs))


@pytest.mark.parametrize("name", SLOW)
def test_a_masked_model_has_the_bounds_of_its_shrunk_twin(name):
    net = GRAPHS[name]()
    small = shrink.compact(net)
    x = bank.images(2, net.input_shape[1:])
    y = np.arange(2)
    region = region_of(x, 0.02)
    for method in ("zero", "adaptive"):
        ours, theirs = (relaxed(Program(m), region, y, method) for m in (net, small))
        assert_shrunk(net, x, ours, theirs)


# --- invariants ----------------------------------------------------------------------------------


def test_a_row_has_its_bounds_in_any_company():
    net, x, y = mlp(3)
    x = np.concatenate([x, 0 * x + 1])
    y, program = np.tile(y, 2), Program(net)
    for method in ("adaptive", "full adaptive", "symbolic"):
        whole = relaxed(program, region_of(x, 0.1), y, method)
        part = relaxed(program, region_of(x[3:5], 0.1), y[3:5], method)
        np.testing.assert_allclose(part, whole[3:5], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "symbolic", "crown"])
def test_compiled_bounds_are_those_of_the_program(method):
    net, x, y = mlp(3)
    for threat in (Linf(0.1), L2(0.2)):
        found, rounding = bounds.class_margins(net, x, y, threat, method=method)
        region = Region.around(threat, tf.constant(x))
        wanted = METHODS[method](Program(net), region, y).numpy()
        np.testing.assert_allclose(found, wanted[:, :-1], atol=1e-4)
        few = bounds.class_margins(net, x[2:4], y[2:4], threat, method=method)[0]
        np.testing.assert_allclose(few, found[2:4], atol=1e-5)
        np.testing.assert_allclose(rounding, wanted[:, -1], rtol=1e-4)


def test_units_may_be_permuted_and_rescaled():
    net, x, y = mlp(1, (2, 8, 8, 4))
    w = net.get_weights()
    program, region = Program(net), region_of(x, 0.05)
    methods = ("zero", "adaptive", "full adaptive", "symbolic")
    before = [relaxed(program, region, y, m) for m in methods]
    order = np.random.default_rng(0).permutation(8)
    w[2], w[3], w[4] = w[2][:, order] * 3.0, w[3][order] * 3.0, w[4][order] / 3.0
    net.set_weights(w)
    for method, old in zip(methods, before, strict=True):
        np.testing.assert_allclose(relaxed(program, region, y, method), old, atol=1e-4)


def test_a_single_logit_is_the_pair_of_zero_and_itself():
    single, x, _ = mlp(0, (4, 8, 1))
    pair = keras.Model(single.input, layers.Dense(2)(single.layers[-2].output))
    kernel, bias = single.layers[-1].get_weights()
    pair.layers[-1].set_weights([np.hstack([0 * kernel, kernel]), np.append(0 * bias, bias)])
    region, y = region_of(x, 0.05), np.arange(6) % 2
    for method in ("zero", "full adaptive", "symbolic"):
        ours, theirs = (relaxed(Program(m), region, y, method) for m in (single, pair))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("mode", ["zero", "adaptive"])
def test_gradients_train(mode):
    """Finite where boxes are points or units dead; elsewhere those of finite differences."""
    net, x, y = mlp(5, (2, 4, 3))
    program, kernel = Program(net), net.layers[1].kernel

    def loss(epsilon):
        region = Region.around(Linf(0.0), tf.constant(x), tf.constant(epsilon))
        return tf.reduce_sum(backward.margins(program, region, y, mode))

    start = net.get_weights()
    for epsilon in (0.1, 0.0):
        for shift in (0.0, -9.0):
            net.layers[1].bias.assign(start[1] + shift)
            with tf.GradientTape() as tape:
                value = loss(epsilon)
            gradient = tape.gradient(value, net.trainable_variables)
            assert all(np.isfinite(g).all() for g in gradient)
    net.set_weights(start)
    with tf.GradientTape() as tape:
        value = loss(0.05)
    gradient = tape.gradient(value, kernel).numpy()
    for i, j in np.ndindex(2, 4):
        ends = []
        for sign in (1, -1):
            moved = start[0].copy()
            moved[i, j] += sign * 2e-3
            kernel.assign(moved)
            ends.append(float(loss(0.05)))
        np.testing.assert_allclose(gradient[i, j], (ends[0] - ends[1]) / 4e-3, rtol=0.05, atol=0.05)


def test_robust_cross_entropy_is_above_that_of_every_point():
    net, x, y = mlp(2)
    program, epsilon = Program(net), 0.1
    rng = np.random.default_rng(0)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    for method in ("ibp", "adaptive", "symbolic"):
        robust = np.asarray(entropy(y, -relaxed(program, region_of(x, epsilon), y, method)))
        for _ in range(20):
            point = np.clip(x + epsilon * np.sign(rng.normal(size=x.shape)), 0, 1)
            clean = np.asarray(entropy(y, net(point.astype("float32"))))
            assert (robust >= clean - 1e-5).all()
        robust = entropy(y, -relaxed(program, region_of(x, 0.0), y, method))
        np.testing.assert_allclose(robust, entropy(y, net(x)), atol=1e-5)


def test_epsilon_is_a_tensor_and_nothing_retraces(monkeypatch):
    traces = []
    original = backward.sized
    monkeypatch.setattr(backward, "sized", lambda *a: traces.append(0) or original(*a))
    net, x, y = mlp(0)
    before = [bounds.margins(net, x, y, Linf(e), method="crown-ibp") for e in (0.0, 0.1, 0.3)]
    assert len(traces) == 2  # one for each slope
    assert (np.diff(before, axis=0) < 0).all()
