"""Bounds: numbers worked by hand, exact oracles, and no point of the ball outside of them."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank, bank_graphs
from tests.bank_masks import SHAPE, FixedMask, randomize
from tfrobust import attacks, bounds, graph, shrink
from tfrobust.bounds import Program, elementwise, kernels
from tfrobust.bounds.rule import Box, Diagonal, Difference, Monotone, Pointwise, Product, Rule, rule
from tfrobust.threats import L1, L2, Linf, Threat

NO_RULE = {"sigmoid_behind_a_mask", "fused_activations", "layers_kept_whole"}  # Softmax, LayerNorm
GRAPHS = {name: build for name, build in bank_graphs.GRAPHS if name not in NO_RULE}
QUICK = """lenet mask_before_norm_same constant_behind_a_padding flatten_rows depthwise
residual_pre_activation squeeze_and_excite signed_gates""".split()
ACTIVATIONS = sorted(elementwise.TURNS)


def model_of(function, shape=SHAPE):
    """A functional model with random weights, biases and statistics."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input(shape)
    model = randomize(keras.Model(inputs, function(inputs)))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.scale:
            layer.gamma.assign(layer.gamma * np.resize([-1.0, 1.0], layer.gamma.shape))
    return model


def box_of(x, epsilon):
    return Box(*Linf(epsilon).box(tf.constant(x)))


def points(x, epsilon, count):
    """`count` legal points for each image: half of them corners of its box."""
    rng = np.random.default_rng(7)
    noise = rng.uniform(-1, 1, (count, *x.shape))
    noise[::2] = np.sign(noise[::2])
    return np.clip(x + epsilon * noise, 0, 1).astype("float32").reshape(-1, *x.shape[1:])


def assert_contained(model, epsilon=0.05, count=250, images=4):
    """Every value of every layer lies in its box, for 1,000 points."""
    program, x = Program(model), bank.images(images, model.input_shape[1:])
    boxes = program.boxes(box_of(x, epsilon), [program.output])
    values = {0: tf.constant(points(x, epsilon, count))}
    for number, (step, sources) in enumerate(program.steps, 1):
        values[number] = step(*(values[s] for s in sources))
    np.testing.assert_allclose(
        values[program.output], model(values[0], training=False), rtol=1e-4, atol=1e-5
    )
    for number, box in boxes.items():
        lower, upper = (bound.numpy() for bound in box)
        value = values[number].numpy().reshape(count, *lower.shape)
        slack = 1e-5 * max(1.0, np.abs(value).max())
        assert (value >= lower - slack).all() and (value <= upper + slack).all(), number
        assert (lower <= upper).all()


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


AFFINE = {
    "dense": lambda: layers.Dense(3),
    "conv": lambda: layers.Conv2D(3, 3, strides=2, padding="same"),
    "conv_even": lambda: layers.Conv2D(3, (2, 4), strides=2, padding="same"),
    "conv_dilated": lambda: layers.Conv2D(3, 3, dilation_rate=2, use_bias=False),
    "conv_groups": lambda: layers.Conv2D(4, 3, groups=2),
    "conv_transpose": lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
    "normed": lambda: layers.BatchNormalization(),
    "normed_rows": lambda: layers.BatchNormalization(axis=1, scale=False),
    "rescaling": lambda: layers.Rescaling([-2.0, 3.0], offset=[0.5, -1.0]),
    "normalization": lambda: layers.Normalization(mean=[0.1, 0.2], variance=[0.5, 2.0]),
    "average": lambda: layers.AveragePooling2D(3, strides=2, padding="same"),
    "global_average": lambda: layers.GlobalAveragePooling2D(),
    "flatten": lambda: layers.Flatten(),
    "reshape": lambda: layers.Reshape((4, -1)),
    "permute": lambda: layers.Permute((3, 1, 2)),
    "padding": lambda: layers.ZeroPadding2D(((1, 0), (0, 2))),
    "cropping": lambda: layers.Cropping2D(((1, 0), (0, 2))),
    "upsampling": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
    "resizing": lambda: layers.Resizing(5, 11),
    "mask": lambda: FixedMask(),
    "twice": lambda: lambda x: layers.Average()([x, layers.Add()([x, 2.0 * x])]),
    "difference": lambda: lambda x: layers.Subtract()([x[:, 1:], 0.5 * x[:, :-1]]),
    "join": lambda: lambda x: layers.Concatenate(axis=1)([x, -x]),
    "constants": lambda: lambda x: (1.0 - x * np.array([-3.0, 2.0], "float32")) / -2.0 + 5.0,
    "take": lambda: lambda x: keras.ops.take(x, np.array([1, 0, 1]), axis=-1),
    "moves": lambda: (
        lambda x: keras.ops.pad(
            keras.ops.flip(
                keras.ops.transpose(keras.ops.reshape(x, (-1, 16, 8)), (0, 2, 1)), axis=1
            ),
            ((0, 0), (1, 1), (0, 0)),
        )
    ),
    "sums": lambda: lambda x: keras.ops.mean(keras.ops.sum(x, axis=1, keepdims=True), axis=2),
}


@pytest.mark.parametrize("make", AFFINE.values(), ids=AFFINE)
def test_affine_layers_are_exact(make):
    """The extremes of an affine map are its centre -+ |Jacobian| r, here by differentiation."""
    model = model_of(lambda x: make()(x))
    for mask in model.layers:
        if isinstance(mask, FixedMask):
            mask.gate.assign([-1.5, 0.0])
    box = box_of(bank.images(2, SHAPE), 0.3)
    with tf.GradientTape() as tape:
        tape.watch(centre := box.centre)
        value = model(centre, training=False)
    jacobian = tf.reshape(tape.batch_jacobian(value, centre), (2, -1, 128))
    radius = tf.einsum("nij,nj->ni", tf.abs(jacobian), tf.reshape(box.radius, (2, 128)))
    lower, upper = Program(model).interval(box)
    radius = tf.reshape(radius, value.shape)
    slack = {"atol": 2e-6 * max(1, np.abs(upper).max())}
    np.testing.assert_allclose(lower, value - radius, **slack)
    np.testing.assert_allclose(upper, value + radius, **slack)


def test_one_dimension_and_depth():
    """Causal and plain convolutions of other ranks, exact as well; a separable one only sound."""
    sequence = layers.Conv1D(3, 3, padding="causal", dilation_rate=2)
    assert_contained(model_of(lambda x: layers.DepthwiseConv1D(2)(sequence(x)), (8, 2)))
    assert_contained(model_of(lambda x: layers.Conv1DTranspose(2, 3, strides=2)(x), (8, 2)))
    assert_contained(model_of(lambda x: layers.Conv3D(2, 2)(x), (4, 4, 4, 1)))
    assert_contained(model_of(lambda x: layers.SeparableConv2D(4, 3, padding="same")(x)))
    assert_contained(model_of(lambda x: layers.SeparableConv1D(4, 3, strides=2)(x), (8, 2)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_exact(name):
    """Against the extremes on a fine grid, inside of a layer and as an operation."""
    rng = np.random.default_rng(0)
    low = rng.uniform(-4, 3, (1, 200)).astype("float32")
    high = low + rng.uniform(0, 3, (1, 200)).astype("float32")
    inputs = keras.Input((200,))
    for function in (layers.Activation(name), getattr(keras.ops, name, None)):
        if function is not None:
            grid = np.asarray(function(tf.constant(np.linspace(low, high, 1001))))
            box = Program(keras.Model(inputs, function(inputs))).interval(Box(low, high))
            lower, upper = (bound.numpy() for bound in box)
            assert (lower <= grid.min(0) + 1e-6).all() and (upper >= grid.max(0) - 1e-6).all()
            np.testing.assert_allclose(lower[0], grid.min(0)[0], atol=1e-4)
            np.testing.assert_allclose(upper[0], grid.max(0)[0], atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.5),
        layers.LeakyReLU(negative_slope=0.3),
        layers.ELU(alpha=-0.5),
        layers.PReLU(alpha_initializer=keras.initializers.RandomUniform(-1, 1, seed=0)),
        layers.MaxPooling2D(3, strides=2, padding="same"),
        layers.GlobalMaxPooling2D(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_hold(layer):
    assert_contained(model_of(lambda x: layer(layers.Rescaling(4.0, -2.0)(x))), epsilon=0.2)


def test_products_and_extremes_of_operations_hold():
    def mix(x):
        x = 4.0 * x - 2.0
        y = keras.ops.square(keras.ops.abs(x) - 1.0) * layers.Multiply()([x, -x, x[:, ::-1]])
        y = keras.ops.maximum(keras.ops.minimum(y, x), -0.5)
        return keras.ops.max(keras.ops.clip(y, -0.3, 0.4), axis=1)

    assert_contained(model_of(mix), epsilon=0.2)


# --- whole nets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS)
def test_no_point_of_the_ball_leaves_its_box(build):
    assert_contained(build())


@pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS)
def test_limits_and_order(build):
    """Epsilon 0 gives the logits, bounds are nested, and elision never loses."""
    net = build()
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
    "build", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in GRAPHS]
)
def test_a_masked_model_has_the_bounds_of_its_shrunk_twin(build):
    net = GRAPHS[build]()
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
    assert_contained(bank.classifier(mask=lambda **kwargs: mask(initial_a=2.0, **kwargs)))


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
    x_adv = attack(net, x, y, epsilon=epsilon)
    logits = attacks.forward(net, x_adv)
    certified = bounds.certified(net, x, y, attack.threat, epsilon)
    broken = logits.argmax(-1) != y
    assert certified.any()
    assert not (certified & broken).any(), np.flatnonzero(certified & broken)
    lower, upper = Program(net).interval(box_of(x, epsilon))
    assert tf.reduce_all((logits >= lower - 1e-5) & (logits <= upper + 1e-5))


def test_attacks_break_what_is_not_certified_where_bounds_are_exact():
    net, x = bank.linear()[0], bank.images(64)
    y, attack = attacks.forward(net, x).argmax(-1), attacks.PGD(Linf(0.02), 20, loss="margin")
    broken = attacks.verdicts(net, attack(net, x, y), y)
    np.testing.assert_array_equal(bounds.certified(net, x, y, attack.threat), ~broken)
    assert 0 < broken.sum() < 64


# --- invariants ----------------------------------------------------------------------------------


def test_activations_inside_of_layers_hold():
    """Also those that are layers, in a nested model that is called with a training argument."""

    def net(x):
        inner = keras.Input(SHAPE)
        h = bank_graphs.conv(inner, activation=layers.LeakyReLU(negative_slope=0.3))
        h = layers.Dense(4, activation=layers.Identity())(layers.Dense(4, activation="mish")(h))
        h = layers.Activation(layers.ELU())(h)
        return bank_graphs.head(keras.Model(inner, h)(x, training=False))

    assert_contained(model_of(net))


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


def test_other_norms_take_the_box_around_their_ball():
    net, x, y = bank.linear()
    box = bounds.margins(net, x, y, Linf(0.02))
    for threat in (L2(0.02), L1(0.02)):
        np.testing.assert_array_equal(bounds.margins(net, x, y, threat), box)
    assert (bounds.margins(net, x, y, L2(30.0)) <= bounds.margins(net, x, y, Linf(1.0))).all()


def test_weights_are_live_and_nothing_retraces(monkeypatch):
    traces = []
    worst = Program.worst
    monkeypatch.setattr(Program, "worst", lambda *args: traces.append(0) or worst(*args))
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
    net, x = by_hand()
    assert bounds.certified(net, x, [0], Linf(0.1)).all()
    net.layers[1].kernel.assign([[3e38, 0.0], [3e38, 1.0]])
    assert bounds.margins(net, x, [0], Linf(1.0)).tolist() == [-np.inf]
    net.layers[1].kernel.assign([[np.nan, 0.0], [1.0, 1.0]])
    assert not bounds.certified(net, x, [0], Linf(0.1)).any()


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


# --- what is refused -----------------------------------------------------------------------------


class _Twist(layers.Layer):
    def call(self, x):
        return keras.ops.sin(x)


class _MyConv(layers.Conv2D):
    def call(self, x):
        return super().call(x) + 1.0


def _with(layer):
    return model_of(lambda x: bank_graphs.head(layer(x)))


def test_an_unknown_layer_is_refused_by_name_until_it_has_a_rule():
    net, x = _with(_Twist(name="odd")), bank.images(4, SHAPE)
    with pytest.raises(TypeError, match=r"layer 'odd' \(_Twist\).*tr.bounds.register\(_Twist"):
        bounds.interval(net, x, Linf(0.1))
    bounds.register(_Twist, bounds.Monotone)  # on [0, 1] it rises
    assert_contained(net)
    assert (bounds.interval(net, x, Linf(0.1))[0] < bounds.interval(net, x, Linf(0.1))[1]).all()


def test_a_subclass_does_not_inherit_the_rule_of_a_stock_layer():
    with pytest.raises(TypeError, match=r"'mine' \(_MyConv\)"):
        Program(_with(_MyConv(4, 3, name="mine")))


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (layers.Softmax(name="odd"), TypeError, r"'odd' \(Softmax\)"),
        (layers.LayerNormalization(name="odd"), TypeError, "'odd'"),
        (layers.Dense(3, activation="softmax", name="odd"), TypeError, "activation softmax.*'odd'"),
        (layers.Activation(lambda x: -x, name="odd"), TypeError, "activation <lambda>.*'odd'"),
        (layers.UpSampling2D(2, interpolation="bicubic", name="odd"), TypeError, "'odd'"),
        (layers.Dense(3, dtype="mixed_float16", name="odd"), ValueError, "'odd'.*dtype float32"),
        (lambda x: 1.0 / (1.0 + x), TypeError, "Divide"),
        (lambda x: keras.activations.relu(x, negative_slope=-0.5), TypeError, "ReLU"),
        (lambda x: keras.ops.split(x, 2, axis=1)[0], ValueError, "layers of one result"),
    ],
)
def test_what_has_no_bound_is_named(layer, error, match):
    net = _with(layer)
    with pytest.raises(error, match=match):
        bounds.interval(net, bank.images(4, SHAPE), Linf(0.1))


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.5),
        lambda x: layers.Dropout(0.5)(x, training=True),  # `model(x, training=False)` overrules it
        layers.GaussianNoise(0.5),
        layers.GaussianDropout(0.5),
        layers.SpatialDropout2D(0.5),
        layers.RandomFlip(),
        layers.RandomRotation(0.5),
        layers.RandomZoom(0.5),
        layers.RandomTranslation(0.5, 0.5),
        layers.RandomContrast(0.5),
        layers.RandomBrightness(0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_noise_is_idle_in_inference(layer):
    assert_contained(_with(layer), count=2)


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


# --- the tests above would notice ----------------------------------------------------------------


def _mixed(x):
    """A net that needs every part of every rule."""
    x = bank_graphs.normed(bank_graphs.conv(layers.Rescaling(4.0, -2.0)(x), activation="silu"))
    x = layers.Subtract()([bank_graphs.conv(x), bank_graphs.conv(x)])
    return bank_graphs.head(layers.Multiply()([x, layers.Activation("tanh")(x)]))


def _train_mode(self, x):
    mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
    layer = self.layer
    if not isinstance(layer, layers.BatchNormalization):
        return Rule.__call__(self, x)
    return tf.nn.batch_normalization(x, mean, variance, layer.beta, layer.gamma, layer.epsilon)


MUTANTS = {
    "W in place of |W|": (kernels.ops, "abs", keras.ops.convert_to_tensor),
    "no radius": (Box, "radius", property(lambda box: 0.0 * box.lower)),
    "no bias": (
        kernels.Kernel,
        "__call__",
        lambda self, x: self.linear(self.layer, x, keras.ops.convert_to_tensor),
    ),
    "batch statistics": (Diagonal, "__call__", _train_mode),
    "negative gamma forgotten": (Diagonal, "interval", Monotone.interval),
    "valley forgotten": (Pointwise, "interval", Monotone.interval),
    "difference of equal ends": (Difference, "interval", Monotone.interval),
    "product of equal ends": (Product, "interval", Monotone.interval),
}


def test_the_net_for_mutants_is_contained():
    assert_contained(model_of(_mixed))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_rule_is_noticed(mutant, monkeypatch):
    owner, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        assert_contained(model_of(_mixed))


def test_bounds_know_masks_by_what_they_offer():
    mask = FixedMask()
    assert isinstance(mask, elementwise.Gate)
    assert graph.dispatch(rule, mask) is Diagonal
    assert not isinstance(layers.Dense(2), elementwise.Gate)
