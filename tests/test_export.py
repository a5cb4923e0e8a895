"""A file that ships answers like its source, says how to feed it, appears whole or not at all."""

import gzip
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from tfrobust import export, files, models, pruning, shrink
from tfrobust.export import convert, interpreter
from tfrobust.layers import BetaBernoulliMask, insert_masks, masks


def small_net(classes=5, softmax=False):
    image = x = keras.Input((12, 12, 1))
    x = layers.Conv2D(6, 3, use_bias=False)(x)
    x = layers.BatchNormalization(gamma_initializer="random_normal")(x)
    x = layers.ReLU()(x)
    x = layers.MaxPool2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(classes, activation="softmax" if softmax else None)(x)
    return keras.Model(image, x)


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(1).random((64, 12, 12, 1), np.float32)
    x[:, 0, 0], x[:, 0, 1] = 0, 1
    return x


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(3)
    return small_net()


@pytest.fixture(scope="module")
def int8(net, images, tmp_path_factory):
    return export.tflite(net, tmp_path_factory.mktemp("int8") / "net.tflite", "int8", images)


def test_float32_file_equals_keras(net, images, tmp_path):
    exported = export.tflite(net, tmp_path / "deep" / "net.tflite")
    assert exported.parity <= 1e-5 and exported.agreement == 1
    np.testing.assert_allclose(
        export.predict(exported, images), net(images, training=False), atol=1e-5
    )
    assert exported.bytes == (tmp_path / "deep" / "net.tflite").stat().st_size
    assert exported.input == {
        "dtype": "float32",
        "shape": [1, 12, 12, 1],
        "scale": None,
        "zero_point": None,
    }
    assert json.loads(json.dumps(exported.to_dict()))["output"]["shape"] == [1, 5]
    assert list(tmp_path.rglob("*"))[1:] == [tmp_path / "deep" / "net.tflite"]


@pytest.mark.parametrize(("quantize", "factor"), [("float16", 0.75), ("dynamic", 0.6)])
def test_quantised_weights_are_smaller_and_close(quantize, factor, images, tmp_path):
    net = models.lenet5_caffe(width=0.3)
    x = np.random.default_rng(0).random((20, 28, 28, 1), np.float32)
    full = export.tflite(net, tmp_path / "full.tflite", calibration=x)
    small = export.tflite(net, tmp_path / "small.tflite", quantize, calibration=x)
    assert small.bytes < factor * full.bytes
    scale = np.abs(export.predict(full, x)).max()
    assert full.parity <= small.parity <= 0.05 * scale
    assert small.images == 20


def test_int8_file_is_integer_throughout_and_states_its_contract(int8, images, net):
    assert (int8.input["dtype"], int8.output["dtype"]) == ("int8", "int8")
    # Pixels span [0, 1]: 255 steps from -128 up.
    assert int8.input["scale"] == pytest.approx(1 / 255, rel=1e-3)
    assert int8.input["zero_point"] == -128
    runner = interpreter.Runner(int8)
    types = {np.dtype(t["dtype"]).name for t in runner.interpreter.get_tensor_details()}
    assert types <= {"int8", "int32"}
    assert int8.agreement >= 0.9 and "scale" in str(int8) and "zero point -128" in str(int8)


def test_predict_follows_the_stated_contract(int8, images):
    raw = interpreter.Runner(int8).interpreter
    feed, out = int8.input, int8.output
    pixels = np.clip(np.round(images[0] / feed["scale"]) + feed["zero_point"], -128, 127)
    raw.set_tensor(raw.get_input_details()[0]["index"], pixels[None].astype(np.int8))
    raw.invoke()
    value = raw.get_tensor(raw.get_output_details()[0]["index"])[0].astype(np.float32)
    by_hand = (value - out["zero_point"]) * out["scale"]
    np.testing.assert_allclose(export.predict(int8.path, images[:1])[0], by_hand, rtol=1e-6)


def test_predict_takes_path_bytes_and_result_alike(int8, images):
    with open(int8.path, "rb") as file:
        content = file.read()
    wanted = export.predict(int8, images)
    assert wanted.dtype == np.float32 and wanted.shape == (64, 5)
    assert np.array_equal(export.predict(int8.path, images), wanted)
    assert np.array_equal(export.predict(content, images[10:20]), wanted[10:20])


def test_single_logit_head(tmp_path):
    exported = export.tflite(small_net(classes=1), tmp_path / "binary.tflite")
    assert exported.agreement == 1 and exported.output["shape"] == [1, 1]


def test_masks_are_refused_by_name_of_the_next_call(tmp_path):
    masked = models.lenet5_caffe(mask=BetaBernoulliMask)
    with pytest.raises(ValueError, match="Call `tr.shrink.compact"):
        export.tflite(masked, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"quantize": "int8"}, "`calibration` must hold training images"),
        ({"calibration": np.zeros((4, 8, 8, 1), np.float32)}, r"shape \(n, 12, 12, 1\)"),
        ({"calibration": np.full((4, 12, 12, 1), 2.0)}, r"`calibration` must lie in \[0, 1\]"),
        ({"quantize": "dynamic", "sparse": True}, "Take quantize='int8' with calibration"),
    ],
)
def test_bad_arguments(arguments, message, net, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.tflite(net, tmp_path / "net.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_sparse_is_a_yes_or_no(net, tmp_path):
    with pytest.raises(TypeError, match="`sparse` must be True or False. Received: sparse=0.9"):
        export.tflite(net, tmp_path / "net.tflite", sparse=0.9)


def pruned(share):
    """A net of 9,700 weights, of which the smallest are zero."""
    keras.utils.set_random_seed(4)
    image = keras.Input((12, 12, 1))
    x = layers.Dense(64, activation="relu")(layers.Flatten()(image))
    net = keras.Model(image, layers.Dense(5)(x))
    if share:
        pruning.prune(net, share)
    return net


@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_a_sparse_file_is_the_plain_one_without_its_zeros(quantize, images, tmp_path):
    net = pruned(0.9)
    plain = export.tflite(net, tmp_path / "plain.tflite", quantize, images)
    sparse = export.tflite(net, tmp_path / "sparse.tflite", quantize, images, sparse=True)
    assert sparse.sparse and not plain.sparse
    assert sparse.bytes < {None: 0.3, "float16": 0.4, "int8": 0.6}[quantize] * plain.bytes
    assert np.array_equal(export.predict(sparse, images), export.predict(plain, images))
    assert (sparse.parity, sparse.agreement) == (plain.parity, plain.agreement)
    content = pathlib.Path(sparse.path).read_bytes()
    assert sparse.bytes == len(content)
    assert sparse.gzip == len(gzip.compress(content, 6, mtime=1)) and sparse.gzip < plain.bytes / 3
    assert "sparse" in str(sparse) and f"{sparse.gzip:,} in gzip" in str(sparse)
    assert all(time > 0 for time in export.latencies([plain, sparse], n=20))


def test_a_sparse_file_that_saves_nothing_says_so(images, tmp_path):
    net = pruned(0.5)
    with pytest.warns(UserWarning, match="does not make this file smaller") as caught:
        sparse = export.tflite(net, tmp_path / "half.tflite", "int8", images, sparse=True)
    plain = export.tflite(net, tmp_path / "half.tflite", "int8", images)
    text = next(str(w.message) for w in caught if "sparse" in str(w.message))
    assert sparse.bytes > plain.bytes  # 8-bit places cost as much as 8-bit weights
    assert f"{sparse.bytes:,} bytes, {plain.bytes:,} without it" in text and "50.0 %" in text
    with pytest.warns(UserWarning, match="25.0 % .* only kernels with 30 % or more"):
        export.tflite(pruned(0.25), tmp_path / "quarter.tflite", sparse=True)


def test_a_file_that_the_interpreter_refuses_is_named_with_its_reason(images):
    dynamic = convert._convert(pruned(0.9), (12, 12, 1), "dynamic", None, True)
    with pytest.raises(ValueError, match="that this interpreter can run.*XNNPack") as caught:
        export.predict(dynamic, images)
    assert "\n" not in str(caught.value)


def test_narrow_calibration_is_legal_but_unwise(net, images, tmp_path):
    with pytest.warns(UserWarning, match="will clip pixels"):
        export.tflite(net, tmp_path / "net.tflite", "int8", images * 0.5)
    # Pictures that miss pure black and white by a few grey levels are everyday calibration.
    export.tflite(net, tmp_path / "net.tflite", "int8", 0.02 + 0.95 * images)


@pytest.mark.parametrize(("scale", "sparse"), [(1.0, False), (1e-8, False), (1.0, True)])
def test_a_file_that_answers_differently_is_not_written(scale, sparse, tmp_path, monkeypatch):
    target = tmp_path / "net.tflite"
    target.write_bytes(b"the previous file")
    nets = [small_net(), small_net()]
    for net in nets:  # logits of 1e-8 must not slip through an absolute tolerance
        net.layers[-1].set_weights([scale * w for w in net.layers[-1].get_weights()])
    other = convert._convert(nets[1], (12, 12, 1), None, None, False)
    monkeypatch.setattr(convert, "_convert", lambda *_: other)
    with pytest.raises(ValueError, match="must answer like its Keras source"):
        export.tflite(nets[0], target, sparse=sparse)
    assert target.read_bytes() == b"the previous file" and len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_keeps_the_previous_file(tmp_path):
    target = tmp_path / "net.tflite"
    target.write_bytes(b"the previous file")

    def fail(name):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.replace(target, fail)
    assert target.read_bytes() == b"the previous file" and len(list(tmp_path.iterdir())) == 1


def test_conversion_is_silent(net, images, tmp_path, capfd):
    export.tflite(net, tmp_path / "net.tflite", "int8", images)
    assert capfd.readouterr() == ("", "")


def test_predict_refuses_what_it_cannot_run(int8, images, tmp_path):
    (tmp_path / "text.tflite").write_text("not a model")
    with pytest.raises(ValueError, match="must be a TensorFlow Lite file"):
        export.predict(tmp_path / "text.tflite", images)
    with pytest.raises(ValueError, match=r"shape \(n, 12, 12, 1\)"):
        export.predict(int8, images[:, :8])
    with pytest.raises(TypeError, match="divide uint8 images by 255"):
        export.predict(int8, (images * 255).astype(np.uint8))
    with pytest.raises(OSError):
        export.predict(tmp_path / "absent.tflite", images)


def test_latency_sees_a_hundredfold_network(int8, tmp_path):
    image = keras.Input((12, 12, 1))
    x = layers.Conv2D(256, 3, activation="relu")(image)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    big = keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    big = export.tflite(big, tmp_path / "big.tflite")
    fast, slow = export.latencies([int8, big], n=50)
    assert 0 < fast < slow / 3
    assert export.latency(int8.path, n=50) < slow
    with pytest.raises(ValueError, match="`n` must be an integer >= 1"):
        export.latency(int8, n=0)


def test_keras_file_round_trip(net, images, tmp_path):
    saved = export.keras_file(net, tmp_path / "net.keras")
    twin = keras.saving.load_model(saved.path)
    assert np.array_equal(twin(images, training=False), net(images, training=False))
    assert saved.parity == 0 and saved.format == "keras" and 0 < saved.gzip < 2 * saved.bytes
    masked = models.lenet5_caffe(mask=BetaBernoulliMask, width=0.2)
    assert export.keras_file(masked, tmp_path / "masked.keras").parity <= 1e-6
    with pytest.raises(ValueError, match="must end in '.keras'"):
        export.keras_file(net, tmp_path / "net.h5")


@keras.saving.register_keras_serializable(package="tests")
class Forgetful(keras.layers.Layer):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()


def test_keras_file_catches_a_layer_that_forgets(tmp_path):
    image = keras.Input((4,))
    forgetful = keras.Model(image, Forgetful(3.0)(layers.Dense(2)(image)))
    with pytest.raises(ValueError, match="a layer forgets part of its state"):
        export.keras_file(forgetful, tmp_path / "net.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stock_file_loads_without_tfrobust(net, images, tmp_path):
    export.keras_file(net, tmp_path / "net.keras")
    code = (
        "import sys; sys.modules['tfrobust'] = None\n"
        "import keras, numpy as np\n"
        f"model = keras.saving.load_model({str(tmp_path / 'net.keras')!r})\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, model(np.load({str(tmp_path / 'x.npy')!r})))"
    )
    np.save(tmp_path / "x.npy", images)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), net(images), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "pixel_range"),
    [
        (keras.applications.MobileNetV3Small, (0, 255)),
        (keras.applications.ResNet50V2, (-1, 1)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_backbones_prepared_half_gated_and_shrunk(build, pixel_range, tmp_path):
    backbone = build(input_shape=(32, 32, 3), weights=None, classes=10)
    net = models.prepare(backbone, pixel_range=pixel_range)
    net = insert_masks(net, lambda name: BetaBernoulliMask(initial_a=2.0, name=name))
    for mask in masks(net):
        mask.a_.assign(np.where(np.arange(mask.a_.shape[0]) % 2, 2.0, -9.0))
    exported = export.tflite(shrink.compact(net), tmp_path / "net.tflite")
    assert exported.agreement == 1
    assert exported.bytes < 0.6 * 4 * backbone.count_params()
