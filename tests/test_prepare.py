"""models/prepare.py: any classifier becomes pixels in [0, 1] in, logits out."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.bank_masks import images, randomize
from tfrobust import attacks, contract, graph, threats, training
from tfrobust.models import prepare


def _sequential(end, units=3, **kwargs):
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(units, **kwargs, name="last"),
            *end,
        ]
    )


def _operation(function):
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, function(layers.Dense(3, name="last")(layers.Flatten()(inputs))))


def _convolutional():
    """As MobileNetV3: the classes are a 1 x 1 map, flattened, then activated."""
    inputs = keras.Input((None, None, 2))
    x = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(4, 3)(inputs))
    x = layers.Flatten()(layers.Conv2D(3, 1, activation="softmax", name="last")(x))
    return keras.Model(inputs, layers.Dropout(0.1)(x))


HEADS = {
    "dense_softmax": lambda: _sequential([], activation="softmax"),
    "layer_softmax": lambda: _sequential([layers.Softmax()]),
    "layer_activation": lambda: _sequential([layers.Activation("softmax")]),
    "operation_softmax": lambda: _operation(keras.ops.softmax),
    "activation_softmax": lambda: _operation(keras.activations.softmax),
    "under_quiet_layers": _convolutional,
}


@pytest.mark.parametrize("build", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("low, high", [(0, 255), (-1, 1), (0, 1)])
def test_softmax_goes_and_the_range_is_folded_in(build, low, high):
    keras.utils.set_random_seed(0)
    model, x = build(), images(8)
    logits = prepare(model, (low, high))(x, training=False)
    expected = model(x * (high - low) + low, training=False)
    np.testing.assert_allclose(keras.ops.softmax(logits), expected, atol=1e-5)
    assert np.abs(np.sum(logits, -1) - 1).max() > 1e-3


def test_sigmoid_of_a_binary_head_goes():
    model, x = _sequential([], units=1, activation="sigmoid"), images(8)
    logits = prepare(model, (0, 1))(x)
    np.testing.assert_allclose(keras.ops.sigmoid(logits), model(x), atol=1e-6)


def test_logits_stay_and_only_the_last_activation_is_touched():
    model = _sequential([layers.Activation("linear")])
    small = prepare(model, (0, 1))
    np.testing.assert_allclose(small(images(8)), model(images(8)), atol=1e-6)
    assert [type(n.layer).__name__ for n in graph.walk(small).nodes][-1] == "Activation"
    inner = _sequential([layers.Softmax(), layers.Dense(2, name="logits")])
    assert any(
        isinstance(n.layer, layers.Softmax) for n in graph.walk(prepare(inner, (0, 1))).nodes
    )


def test_rescaling_is_the_first_layer_and_pixels_are_float():
    model = keras.Sequential([keras.Input((8, 8, 2), dtype="uint8", name="picture")])
    model.add(layers.Rescaling(1 / 127.5, offset=-1.0))
    model.add(layers.Flatten())
    model.add(layers.Dense(3, activation="softmax"))
    small = prepare(model)
    first = graph.walk(small).nodes[0]
    assert first.name == "pixel_range" and (first.layer.scale, first.layer.offset) == (255.0, 0.0)
    assert small.inputs[0].dtype == "float32" and small.layers[0].name == "picture"
    assert contract.classifier(small) is small


def test_nested_backbone_is_flat_and_fresh():
    inner = keras.Input((None, None, 2))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(inner))
    backbone = keras.Model(inner, layers.GlobalAveragePooling2D()(x), name="backbone")
    backbone.trainable = False
    inputs = keras.Input((8, 8, 2))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.Dense(3, activation="softmax", name="conv")(backbone(x, training=False))
    model = randomize(keras.Model(inputs, x))
    small, x = prepare(model, (0, 1)), images(8)
    assert not any(isinstance(layer, keras.Model) for layer in small.layers)
    np.testing.assert_allclose(
        keras.ops.softmax(small(x, training=False)), model(x, training=False), atol=1e-6
    )
    assert not small.get_layer("norm").trainable
    weights = small.get_layer("norm").get_weights()
    small(x, training=True)  # the backbone was called with training=False: statistics stay
    for a, b in zip(weights, small.get_layer("norm").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fixed_batch_size_is_opened():
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, 8, 8, 2)), layers.Flatten(), layers.Dense(3)]
    )
    assert prepare(model, (0, 1)).input_shape == (None, 8, 8, 2)


def test_mixed_precision_keeps_float32_logits():
    inputs = keras.Input((8, 8, 2))
    x = layers.Dense(3, dtype="mixed_bfloat16")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Activation("softmax", dtype="float32")(x))
    assert prepare(model, (0, 1)).outputs[0].dtype == "float32"


class _Own(keras.Model):
    def call(self, x):
        return x


def _two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], layers.Dense(2)(layers.Add()([a, b])))


def _map():
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, layers.Conv2D(3, 3)(inputs))


def _shared():
    twice = layers.Dense(4, name="twice")
    inputs = keras.Input((4,))
    return keras.Model(inputs, twice(twice(inputs)))


def _game():
    net = _sequential([])
    return training.AdversarialTraining(prepare(net, (0, 1)), attacks.FGSM(threats.Linf(0.1)))


BAD = {
    "a game": (_game, TypeError, "pass game.classifier. Received: AdversarialTraining"),
    "no model": (lambda: 3, TypeError, "must be a functional or Sequential"),
    "subclassed": (_Own, TypeError, "is subclassed"),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(2)]), ValueError, "no input shape"),
    "two inputs": (_two_inputs, ValueError, "one input and one output.*2 inputs"),
    "a map": (_map, ValueError, r"shape \(batch, classes\)"),
    "shared": (_shared, ValueError, "'twice' is used more than once"),
}


@pytest.mark.parametrize("build, error, text", BAD.values(), ids=BAD)
def test_what_cannot_be_brought(build, error, text):
    with pytest.raises(error, match=text) as caught:
        prepare(build())
    assert "\n" not in str(caught.value)


def _led_by(*first, dtype="float32"):
    image = x = keras.Input((8, 8, 2), dtype=dtype)
    for layer in first:
        x = layer(x)
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))


def _normalized(mean, deviation):
    return layers.Normalization(mean=[mean, mean], variance=[deviation**2] * 2)


def test_without_a_range_the_guess_is_said():
    model = _led_by()
    with pytest.warns(UserWarning, match=r"\(0, 255\) is a guess.*pixel_range=\(0, 1\)") as caught:
        small = prepare(model)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(small(images(4)), model(255 * images(4)), rtol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: _led_by(dtype="uint8"),
        lambda: _led_by(layers.Rescaling(1 / 255)),
        lambda: _led_by(layers.Rescaling(1 / 127.5, offset=-1.0)),
        lambda: _led_by(layers.Rescaling(1 / 255), _normalized(0.45, 0.225)),
        lambda: _led_by(_normalized(120.0, 60.0)),
        lambda: _led_by(layers.Rescaling(1.0, offset=-110.0)),
    ],
)
def test_a_model_that_tells_its_range_needs_none(build):
    model, grey = build(), np.rint(255 * images(4))
    np.testing.assert_allclose(prepare(model)(grey / 255), model(grey), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer, given",
    [
        (lambda: _normalized(0.13, 0.31), None),
        (lambda: _normalized(0.13, 0.31), (0, 255)),
        (lambda: layers.Rescaling(2.0, offset=-1.0), (0, 255)),
        (lambda: layers.Rescaling(255.0), (0, 255)),
        (lambda: layers.Rescaling(1 / 255), (0, 1)),
        (lambda: layers.Rescaling(1.0, offset=-110.0), (0, 1)),
    ],
)
def test_a_range_against_the_models_own_layers_is_doubted(layer, given):
    with pytest.warns(UserWarning, match="does not fit the model: layer"):
        prepare(_led_by(layer()), given)


@pytest.mark.parametrize("pixel_range", [(1, 0), (0, 0), 255, (0, 1, 2), ("a", 1), (0, np.inf)])
def test_bad_ranges(pixel_range):
    with pytest.raises(ValueError, match="`pixel_range` must be two numbers"):
        prepare(_sequential([]), pixel_range)
