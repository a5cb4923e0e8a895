"""Rules of bounds: each layer against an exact oracle, by name where there is none, and mutants."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank, bank_graphs
from tests.bank_bounds import assert_contained, box_of, model_of
from tests.bank_masks import SHAPE, FixedMask
from tfrobust import bounds, graph
from tfrobust.bounds import Program, elementwise, kernels
from tfrobust.bounds.rule import Box, Diagonal, Difference, Monotone, Pointwise, Product, Rule, rule
from tfrobust.threats import Linf
from tfrobust.training import CertifiedTraining

AFFINE = {
    "dense": lambda: layers.Dense(3),
    "conv": lambda: layers.Conv2D(3, 3, strides=2, padding="same"),
    "conv_even": lambda: layers.Conv2D(3, (2, 4), strides=2, padding="same"),
    "conv_dilated": lambda: layers.Conv2D(3, 3, dilation_rate=2, use_bias=False),
    "conv_groups": lambda: layers.Conv2D(4, 3, groups=2),
    "conv_transpose": lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
    "conv_transpose_padded": lambda: layers.Conv2DTranspose(3, 3, strides=2, output_padding=1),
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
    value = model(box.centre, training=False)
    count = int(np.prod(value.shape[1:]))
    copies = tf.repeat(box.centre, count, 0)  # one for each row of the Jacobian
    with tf.GradientTape() as tape:
        tape.watch(copies)
        values = tf.reshape(model(copies, training=False), (2, count, count))
        rows = tf.reduce_sum(values * tf.eye(count))
    jacobian = tf.reshape(tape.gradient(rows, copies), (2, count, 128))
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


@pytest.mark.parametrize("name", sorted(elementwise.TURNS))
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


def test_activations_inside_of_layers_hold():
    """Also those that are layers, in a nested model that is called with a training argument."""

    def net(x):
        inner = keras.Input(SHAPE)
        h = bank_graphs.conv(inner, activation=layers.LeakyReLU(negative_slope=0.3))
        h = layers.Dense(4, activation=layers.Identity())(layers.Dense(4, activation="mish")(h))
        h = layers.Activation(layers.ELU())(h)
        return bank_graphs.head(keras.Model(inner, h)(x, training=False))

    assert_contained(model_of(net))


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
        (layers.ReLU(dtype="float64", name="odd"), ValueError, "'odd'.*in float64.*dtype float32"),
        (
            lambda x: layers.Dropout(0.5, name="odd")(x, training=True),
            ValueError,
            r"built for inference.*'odd' \(Dropout\) called with training=True",
        ),
        (
            lambda x: layers.BatchNormalization(name="odd")(x, training=True),
            ValueError,
            "'odd'.*called with training=True",
        ),
        (lambda x: 1.0 / (1.0 + x), TypeError, "Divide"),
        (lambda x: keras.activations.relu(x, negative_slope=-0.5), TypeError, "ReLU"),
        (lambda x: keras.ops.split(x, 2, axis=1)[0], ValueError, "layers of one result"),
    ],
)
def test_what_has_no_bound_is_named(layer, error, match):
    net = _with(layer)
    for bound in (
        lambda: bounds.interval(net, bank.images(4, SHAPE), Linf(0.1)),
        lambda: bounds.certified(net, bank.images(2, SHAPE), [0, 1], Linf(0.1)),
        lambda: CertifiedTraining(net, Linf(0.1)),
    ):
        with pytest.raises(error, match=match) as caught:
            bound()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.5),
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
