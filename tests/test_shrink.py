"""shrink.py: the same logits with fewer channels, in stock layers, for every net of the bank."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from tests import bank_graphs
from tests.bank_graphs import GRAPHS, conv, head, normed
from tests.bank_masks import SHAPE, FixedMask, images, randomize, shut
from tfrobust import export, graph, shrink
from tfrobust.models import lenet5_caffe


def assert_same_logits(model, small, x):
    """DESIGN's tolerance: 1e-5 * max(1, max |logit|), and the same decision."""
    a, b = (np.asarray(m(x, training=False), np.float64) for m in (model, small))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(a).max()))
    np.testing.assert_array_equal(a.argmax(-1), b.argmax(-1))


def channels(model):
    """Channels of the result of every layer with weights."""
    return {
        n.name: n.outputs[0].shape[-1]
        for n in graph.walk(model).nodes
        if isinstance(n.layer, layers.Layer) and n.layer.weights
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shrunk")


@pytest.mark.parametrize("build", [b for _, b in GRAPHS], ids=[name for name, _ in GRAPHS])
def test_logits_are_equal_and_layers_are_stock(build, folder, request):
    model = build()
    before = model.get_weights()
    small = shrink.compact(model)
    x = images(shape=model.input_shape[1:])
    assert_same_logits(model, small, x)
    for operation in small.operations:
        assert type(operation).__module__.startswith("keras."), operation
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert small.input_shape == model.input_shape and small.name == model.name
    name = request.node.callspec.id
    if name not in ("all_gates_open", "layers_kept_whole"):
        assert small.count_params() < sum(w.size for w in before)
    twice = shrink.compact(small)  # finds nothing more to cut
    assert channels(twice) == channels(small)
    assert_same_logits(small, twice, x[:64])
    # For the reload below: files, inputs and outputs.
    small.save(folder / f"{name}.keras")
    np.savez(folder / f"{name}.npz", x=x[:16], y=small(x[:16], training=False))


_RELOAD = """
import json, pathlib, sys
sys.modules["tfrobust"] = None  # importing it raises ImportError
import keras, numpy as np
worst = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    data = np.load(path.with_suffix(".npz"))
    logits = np.asarray(keras.saving.load_model(path)(data["x"], training=False))
    worst[path.stem] = float(np.abs(logits - data["y"]).max() / max(1, np.abs(data["y"]).max()))
print(json.dumps(worst))
"""


def test_saved_models_load_without_tfrobust(folder):
    run = subprocess.run(
        [sys.executable, "-c", _RELOAD, str(folder)], capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr[-2000:]
    worst = json.loads(run.stdout.splitlines()[-1])
    assert len(worst) == len(list(folder.glob("*.keras"))) > 0
    assert max(worst.values()) <= 1e-6, worst


def _gated_lenet(counts):
    """LeNet-5-Caffe with the first n gates of each mask open, flatten rows spread over the map."""
    net = lenet5_caffe(mask=FixedMask)
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        gate = net.get_layer(name).gate
        value = np.zeros(gate.shape[0])
        value[:count] = rng.uniform(0.2, 1, count)
        gate.assign(value)
    return randomize(net)


def test_lenet_by_hand():
    """7-21-147-46 of the ANP-VS paper: 21 channels leave 336 flatten rows, 147 of them live."""
    net = _gated_lenet({"mask_conv1": 7, "mask_conv2": 21, "mask_dense3": 46})
    rows = np.zeros((16, 50))
    rows[:, :21].reshape(-1)[:] = 0
    live = [(p, c) for p in range(16) for c in range(21)][::2][:147]
    for p, c in live:
        rows[p, c] = 0.7
    net.get_layer("mask_flatten").gate.assign(rows.reshape(-1))
    small = shrink.compact(net)
    sizes = [w.shape for w in small.get_weights()]
    assert sizes[0] == (5, 5, 1, 7) and sizes[2] == (5, 5, 7, 21)
    assert sizes[4] == (147, 46) and sizes[6] == (46, 10)
    assert [n.name for n in graph.walk(small).nodes].count("take_flatten") == 1
    assert_same_logits(net, small, images(256, (28, 28, 1)))


def test_no_gather_when_all_rows_of_living_channels_survive():
    net = _gated_lenet({"mask_conv1": 3, "mask_conv2": 5, "mask_dense3": 9})
    net.get_layer("mask_flatten").gate.assign(np.ones(800))
    small = shrink.compact(net)
    assert not [n for n in graph.walk(small).nodes if type(n.layer).__name__ == "Take"]
    assert small.get_layer("dense3").kernel.shape == (80, 9)


def test_a_channel_whose_rows_are_all_dead_goes_too():
    net = _gated_lenet({})
    rows = np.ones((16, 50))
    rows[:, 10:] = 0
    net.get_layer("mask_flatten").gate.assign(rows.reshape(-1))
    assert shrink.compact(net).get_layer("conv2").filters == 10


def test_mask_before_norm_leaves_one_constant_channel():
    """Eight filters, five shut: three and one constant for the SAME reader, three for a 1 x 1."""
    for size, expected in ((3, 4), (1, 3)):
        inputs = keras.Input(SHAPE)
        x = FixedMask(name="m")(conv(inputs, name="a"))
        x = layers.BatchNormalization()(x)
        net = randomize(keras.Model(inputs, head(conv(x, size=size, name="b"))))
        net.get_layer("m").gate.assign([1, 0, 0.5, 0, 0, 0.7, 0, 0])
        small = shrink.compact(net)
        assert small.get_layer("a").filters == expected
        assert_same_logits(net, small, images(200))


def test_constants_of_relu_zero_leave_nothing():
    inputs = keras.Input(SHAPE)
    x = FixedMask(name="m")(conv(inputs, name="a"))
    x = layers.ReLU()(layers.BatchNormalization(name="n")(x))
    net = keras.Model(inputs, head(conv(x, name="b")))
    net.get_layer("m").gate.assign([1, 0, 0.5, 0, 0, 0.7, 0, 0])
    net.get_layer("n").beta.assign([-1.0] * 8)
    assert shrink.compact(net).get_layer("a").filters == 3


def test_dead_residual_branch_disappears():
    inputs = keras.Input(SHAPE)
    x = layers.ReLU()(conv(inputs, name="stem"))
    y = FixedMask(name="m")(conv(normed(conv(x, name="a")), name="b"))
    net = keras.Model(inputs, head(layers.Add(name="sum")([x, y])))
    net.get_layer("m").gate.assign([0.0] * 8)
    small = shrink.compact(net)
    assert {n.name for n in graph.walk(small).nodes} & {"a", "b", "sum"} == set()
    assert_same_logits(net, small, images(100))


def test_channels_joined_by_a_sum_go_together():
    inputs = keras.Input(SHAPE)
    a, b = (FixedMask(name=f"m{i}")(conv(inputs, name=f"c{i}")) for i in range(2))
    net = keras.Model(inputs, head(conv(layers.Add()([a, b]), name="read")))
    net.get_layer("m0").gate.assign([0, 0, 0, 0, 1, 1, 1, 1])
    net.get_layer("m1").gate.assign([0, 0, 1, 1, 0, 0, 1, 1])
    small = shrink.compact(net)
    assert channels(small)["c0"] == channels(small)["c1"] == 6
    assert small.get_layer("read").kernel.shape == (3, 3, 6, 8)


def test_gate_that_fits_nowhere_stays_as_a_stock_scale():
    inputs = keras.Input(SHAPE)
    x = FixedMask(name="m")(layers.Activation("tanh")(conv(inputs)))
    net = shut(keras.Model(inputs, head(layers.Activation("tanh")(x))))
    small = shrink.compact(net)
    assert isinstance(small.get_layer("m"), layers.Rescaling)
    assert_same_logits(net, small, images(100))


def test_reader_that_ignores_channels_of_a_map_gathers_only_where_it_pays(monkeypatch):
    inputs = keras.Input(SHAPE)
    x = layers.ReLU(name="relu")(conv(inputs, 16, name="stem"))
    y = conv(FixedMask(name="m")(x), 16, name="reader")
    net = shut(randomize(keras.Model(inputs, head(layers.Add()([x, y])))))
    takes = []
    for cost in (1024, 1):
        monkeypatch.setattr(shrink.plan, "_COPY", cost)
        small = shrink.compact(net)
        takes.append([n.name for n in graph.walk(small).nodes if "take" in n.name])
        assert_same_logits(net, small, images(100))
    assert takes == [[], ["take_relu"]]


def test_constraints_of_our_own_stay_behind(tmp_path):
    @keras.saving.register_keras_serializable(package="tfrobust_tests")
    class Own(keras.constraints.Constraint):
        def __call__(self, w):
            return w

    net = bank_graphs.pruned()
    net.get_layer("a").kernel_constraint = Own()
    net.get_layer("b").kernel_constraint = keras.constraints.MaxNorm(3)
    small = shrink.compact(net)
    assert small.get_layer("a").kernel_constraint is None
    assert isinstance(small.get_layer("b").kernel_constraint, keras.constraints.MaxNorm)


class _Twist(layers.Layer):
    def call(self, x):
        return keras.ops.sin(x)


class _MyConv(layers.Conv2D):
    def call(self, x):
        return super().call(x) + 1.0


def _with(layer):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, head(layer(FixedMask()(conv(inputs)))))


def test_unknown_layer_is_refused_by_name_until_it_has_a_rule():
    net = shut(_with(_Twist(name="odd")))
    with pytest.raises(ValueError, match=r"no rule for layer 'odd' \(_Twist\).*register"):
        shrink.compact(net)
    shrink.rule.register(_Twist, shrink.Pointwise)
    small = shrink.compact(net)
    assert small.get_layer("odd").output.shape[-1] == 4
    assert_same_logits(net, small, images(100))


def test_subclass_of_a_stock_layer_has_no_rule_of_its_own():
    with pytest.raises(ValueError, match=r"'mine' \(_MyConv\)"):
        shrink.compact(shut(_with(_MyConv(4, 3, name="mine"))))


def test_what_cannot_be_cut_is_named():
    with pytest.raises(ValueError, match="tr.models.prepare"):
        inputs = keras.Input(SHAPE)
        shrink.compact(keras.Model(inputs, layers.Softmax()(head(inputs))))
    with pytest.raises(ValueError, match="'side' must work on the last axis"):
        shrink.compact(_with(layers.BatchNormalization(axis=1, name="side")))
    with pytest.raises(ValueError, match="'fold'.*channels_first"):
        shrink.compact(_with(layers.Flatten(data_format="channels_first", name="fold")))


def test_unknown_image_sizes():
    inputs = keras.Input((None, None, 2))
    x = normed(FixedMask()(conv(inputs)))
    x = FixedMask()(normed(conv(layers.Add()([x, FixedMask()(conv(x))]))))
    net = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    net = shut(randomize(net))
    small = shrink.compact(net)
    assert small.count_params() < 0.7 * net.count_params()
    assert_same_logits(net, small, images(64))


def test_shrunk_model_trains_on():
    """Dropout with a noise shape for each channel follows the cut; fit moves all kernels."""
    inputs = keras.Input(SHAPE)
    x = layers.Dropout(0.5, noise_shape=(None, 1, 1, 8))(FixedMask()(conv(inputs, name="a")))
    small = shrink.compact(shut(randomize(keras.Model(inputs, head(x)))))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile("sgd", loss, run_eagerly=True)
    before = small.get_weights()
    small.fit(images(16), np.arange(16) % 5, verbose=0)
    assert all((a != b).any() for a, b in zip(before, small.get_weights(), strict=True))


BLOCKS = ("plain", "norm", "norm_mask", "sigmoid", "deep", "pool", "pad", "sum", "join", "dropout")


@st.composite
def chains(draw):
    blocks = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4))
    return blocks, draw(st.integers(0, 10**6)), draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))


def _chain(blocks):
    inputs = x = keras.Input((6, 6, 2))
    for block in blocks:
        if block == "plain":
            x = layers.ReLU()(FixedMask()(conv(x, 4)))
        elif block == "norm":
            x = normed(FixedMask()(conv(x, 5)))
        elif block == "norm_mask":
            x = FixedMask()(normed(conv(x, 4, use_bias=False)))
        elif block == "sigmoid":
            x = layers.Activation("sigmoid")(FixedMask()(conv(x, 4, padding="same", strides=2)))
        elif block == "deep":
            x = normed(FixedMask()(layers.DepthwiseConv2D(3, padding="same")(x)))
        elif block == "pool":
            x = layers.MaxPooling2D(2, padding="same")(x)
        elif block == "pad":
            x = conv(layers.ZeroPadding2D(1)(x), 4, padding="valid")
        elif block == "sum":
            y = FixedMask()(conv(x, x.shape[-1]))
            x = layers.Add()([x, normed(y)])
        elif block == "join":
            x = layers.Concatenate()([FixedMask()(x), layers.ReLU()(conv(x, 2))])
        else:
            x = layers.Dropout(0.3)(FixedMask()(x))
    x = FixedMask()(layers.Dense(6, activation="relu")(FixedMask()(layers.Flatten()(x))))
    return keras.Model(inputs, layers.Dense(3)(x))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chains())
def test_random_gates_on_random_chains(chain):
    blocks, seed, share = chain
    keras.utils.set_random_seed(seed)
    net = shut(randomize(_chain(blocks), seed), seed, share)
    small = shrink.compact(net)
    assert_same_logits(net, small, images(64, (6, 6, 2), seed))
    assert small.count_params() <= net.count_params()


@pytest.mark.slow
@pytest.mark.parametrize("build", [b for _, b in GRAPHS], ids=[name for name, _ in GRAPHS])
def test_shrunk_models_convert_to_tflite(build, tmp_path):
    small = shrink.compact(build())
    assert export.tflite(small, tmp_path / "small.tflite").parity <= 1e-4
