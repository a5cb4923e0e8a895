"""The papers' networks: exact sizes, shapes, masks, and that every room understands them."""

import keras
import numpy as np
import pytest
from keras import layers

import tfrobust as tr
from tests.bank_masks import FixedMask, images, randomize, shut

M = tr.models
CIFAR, MNIST = (32, 32, 3), (28, 28, 1)

# builder, trainable parameters as the papers (or their code) count them, moving statistics
SIZES = [
    (M.linear, {}, 7_850, 0),
    (M.linear, {"classes": 1}, 785, 0),
    (M.lenet300_100, {}, 266_610, 0),
    (M.cifar_large, {}, 2_466_858, 0),
    (M.cifar_large, {"input_shape": MNIST}, 1_974_762, 0),
    (M.cnn_small, {}, 166_406, 0),
    (M.cnn_small, {"input_shape": (32, 32, 3)}, 214_918, 0),
    (M.all_cnn, {}, 1_369_738, 0),
    (M.vgg16, {}, 14_991_946, 9_472 + 20),  # and the seeds of ten dropouts
    (M.vgg16, {"classes": 100}, 15_038_116, 9_472 + 20),
    (M.vgg16_bn, {}, 15_311_818, 8_448),
    (M.vgg_like, {}, 12_626_378, 7_424),
    (M.resnet18, {}, 11_173_962, 9_600),
    (M.resnet18, {"version": "mnist"}, 263_546, 1_632),
    (M.resnet32, {}, 464_154, 2_272),
    (M.wide_resnet28, {}, 9_132_634, 8_992),
]
# Small ones for whatever runs them.
SMALL = {
    "lenet300_100": {"width": 0.1},
    "cifar_large": {"width": 1 / 8},
    "all_cnn": {"width": 1 / 8},
    "vgg16": {"width": 1 / 16},
    "vgg16_bn": {"width": 1 / 16},
    "vgg_like": {"width": 1 / 16},
    "resnet18": {"width": 0.5, "version": "mnist"},
    "resnet32": {"width": 0.5, "blocks_per_stage": 2},
    "wide_resnet28": {"width": 0.5, "widen": 2, "blocks_per_stage": 2},
}
RESIDUAL = ("resnet18", "resnet32", "wide_resnet28")


def small(name, **changes):
    keras.utils.set_random_seed(1)
    return getattr(M, name)(**{**SMALL[name], **changes})


def count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


@pytest.mark.parametrize(
    "build, options, trainable, moving", SIZES, ids=[f"{f.__name__}{o or ''}" for f, o, *_ in SIZES]
)
def test_parameters_are_those_of_the_papers(build, options, trainable, moving):
    net = build(**options)
    assert count(net.trainable_variables) == trainable
    assert count(net.non_trainable_variables) == moving
    assert net.output_shape == (None, options.get("classes", 10)) and net.name == build.__name__
    assert net.input_shape[1:] == options.get("input_shape", net.input_shape[1:])
    # Activations are layers of their own; every name is ours (Keras counts its own up).
    for operation in net.operations:
        assert not operation.name[-1].isdigit() or any(c.isalpha() for c in operation.name)
        assert isinstance(operation, layers.Activation) or not tr.graph.fused_activation(operation)
    narrow = build(**options, **({} if build is M.linear else {"width": 0.1}))
    assert [op.name for op in narrow.operations] == [op.name for op in net.operations]


def test_masks_of_vgg16():
    """15 masks with 5,248 units, two parameters each, in the paper's slot or behind the ReLU."""
    net = M.vgg16(mask=tr.layers.BetaBernoulliMask)
    assert sum(total for _, _, total in tr.layers.kept(net)) == 5_248
    assert len(tr.layers.masks(net)) == 15
    assert count(net.trainable_variables) == 14_991_946 + 10_496
    order = [layer.name for layer in net.layers]
    assert order.index("mask_conv1") == order.index("norm1") - 1
    order = [n.name for n in small("vgg16", mask=tr.layers.VIBMask, slot="after_activation").layers]
    assert order.index("mask_conv1") == order.index("relu_conv1") + 1
    with pytest.raises(ValueError, match="`slot` must be one of"):
        M.vgg16(slot="before")


@pytest.mark.slow
def test_depths_by_hand():
    """31 convolutions of ResNet-32, 28 layers of Wide ResNet-28 (shortcuts not counted), 9, 13."""

    def convolutions(net):
        found = [layer for layer in net.layers if isinstance(layer, layers.Conv2D)]
        return [layer for layer in found if "shortcut" not in layer.name]

    assert len(convolutions(M.resnet18(width=0.1))) == 17
    assert len(convolutions(M.resnet32(width=0.1))) == 31
    assert len(convolutions(M.wide_resnet28(width=0.1))) == 28 - 3
    assert len(convolutions(M.all_cnn(width=0.1))) == 9
    assert len(convolutions(M.vgg16_bn(width=0.1))) == 13
    assert len(convolutions(M.vgg_like(width=0.1))) == 12
    usual = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    assert len(convolutions(M.vgg_like(stages=usual, width=0.1))) == 13


def test_maps_by_hand():
    shapes = {
        ("cifar_large", "flatten"): (8 * 8 * 8,),
        ("all_cnn", "conv7"): (6, 6, 24),
        ("vgg16_bn", "flatten"): (2 * 2 * 32,),
        ("vgg_like", "flatten"): (32,),
        ("resnet18", "add4_2"): (1, 1, 32),
        ("resnet32", "add3_2"): (8, 8, 32),
        ("wide_resnet28", "add3_2"): (8, 8, 64),
    }
    for (name, layer), shape in shapes.items():
        assert small(name).get_layer(layer).output.shape[1:] == shape, name


@pytest.mark.parametrize("name", SMALL)
def test_width_scales_filters_and_units(name):
    full, half = (small(name, width=w) for w in (0.5, 0.25))
    for wide, narrow in zip(full.layers, half.layers, strict=True):
        for layer in (wide,) if isinstance(wide, layers.Conv2D | layers.Dense) else ():
            (ours,), (theirs,) = layer.kernel.shape[-1:], narrow.kernel.shape[-1:]
            last = layer.name == "logits" or (name, layer.name) == ("all_cnn", "conv9")
            assert theirs == (ours if last else max(1, round(ours / 2)))
    for width in (0, -1, float("nan"), "wide", True):
        with pytest.raises(ValueError, match="`width` must be a number > 0. Received: width="):
            small(name, width=width)


def test_arguments_that_cannot_be():
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="`blocks_per_stage` must be an integer >= 1"):
            M.resnet32(blocks_per_stage=wrong)
    with pytest.raises(ValueError, match="`widen` must be a number > 0. Received: widen=0"):
        M.wide_resnet28(widen=0)
    for wrong in ((0.5, 0.0), (0.5,), 3, ((0.1, 0.2), 1.0), ("a", "b")):
        with pytest.raises(ValueError, match="`normalization` must be None or"):
            M.cifar_large(normalization=wrong)


def test_normalization_is_asked_for_and_works_on_pixels():
    plain = small("cifar_large")
    asked = small("cifar_large", normalization=((0.5, 0.4, 0.3), 0.2))
    asked.set_weights(plain.get_weights())
    x = images(4, CIFAR)
    by_hand = plain((x - np.array([0.5, 0.4, 0.3], "float32")) / 0.2)
    np.testing.assert_allclose(asked(x), by_hand, atol=1e-5)
    assert not [layer for layer in plain.layers if isinstance(layer, layers.Rescaling)]


# Shortcuts without parameters -------------------------------------------------------------------


def test_shortcut_is_every_second_pixel_and_zeros():
    """With the blocks' last normalizations at zero the stream is the shortcut alone."""
    net = small("resnet32")
    for layer in net.layers:
        if layer.name.startswith("norm") and layer.name.endswith("b"):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
            layer.beta.assign(np.zeros(layer.beta.shape))
    maps = keras.Model(
        net.input, [net.get_layer(n).output for n in ("relu_stem", "add2_2", "add3_2")]
    )
    first, second, third = (np.asarray(m) for m in maps(images(4, CIFAR)))
    assert first.std() > 0
    np.testing.assert_array_equal(second[..., :8], first[:, ::2, ::2])
    np.testing.assert_array_equal(third[..., :8], first[:, ::4, ::4])
    assert not second[..., 8:].any() and not third[..., 8:].any()


@pytest.mark.parametrize("borders", [pytest.param((0, 0), marks=pytest.mark.slow), (1, 2)])
def test_zero_channels_are_cut_bounded_and_counted(borders):
    """A padding with zeros on both sides, in front of a sum: some of them die, some live."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    x = FixedMask(name="m")(layers.ReLU()(x))
    wide = keras.ops.pad(x, [[0, 0], list(borders), [0, 0], [3, 2]])
    y = layers.Conv2D(9, 3, padding="same", name="b")(inputs)
    y = keras.ops.pad(FixedMask(name="n")(y), [[0, 0], list(borders), [0, 0], [0, 0]])
    z = layers.BatchNormalization()(layers.Add()([wide, y]))
    z = layers.Conv2D(3, 3, padding="same", name="c")(layers.ReLU()(z))
    net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(z)))
    randomize(net)
    net.get_layer("m").gate.assign([0, 1, 0, 0.5])
    net.get_layer("n").gate.assign([0, 1, 1, 0, 0, 2, 0, 0, 1])
    cut = tr.shrink.compact(net)
    x = images(32, (6, 6, 2))
    np.testing.assert_allclose(net(x), cut(x), atol=1e-5)
    assert cut.get_layer("a").filters <= 3 and cut.get_layer("b").filters < 9
    again = tr.shrink.compact(cut)
    np.testing.assert_allclose(net(x), again(x), atol=1e-5)
    lower, upper = tr.bounds.interval(cut, x[:8], tr.threats.Linf(0.02))
    moved = np.clip(x[:8] + np.random.default_rng(0).uniform(-0.02, 0.02, x[:8].shape), 0, 1)
    logits = np.asarray(cut(moved.astype("float32")))
    assert (lower <= logits).all() and (logits <= upper).all() and (lower < upper).all()
    # 2 + 9 - (shared by both: 4, 6 and 8) live channels reach the reader.
    footprint = tr.footprint.measure(net)
    assert {row.name: row.units for row in footprint.rows}["a"] == 2


def test_paddings_that_are_no_zeros_stay_whole():
    inputs = keras.Input((6, 6, 4))
    x = layers.ReLU()(layers.Conv2D(4, 3, name="a")(inputs))
    x = keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [1, 1]], mode="reflect")
    x = keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [1, 0]], constant_values=0.5)
    net = randomize(keras.Model(inputs, layers.Dense(2, name="d")(layers.Flatten()(x))))
    with pytest.raises(ValueError, match="'a': '.*' mirrors its channels"):
        tr.pruning.prune(net, 0.5, structured="filters")
    kernel = net.get_layer("a").kernel
    kernel.assign(np.asarray(kernel) * [1, 0, 0, 1])
    cut = tr.shrink.compact(net)
    x = images(8, (6, 6, 4))
    np.testing.assert_allclose(net(x), cut(x), atol=1e-5)
    assert all(row.units >= 0 for row in tr.footprint.measure(net).rows)


def test_unit_features_stand_in_front_of_the_last_layer():
    net = small("resnet18")
    unit = M.unit_features(net)
    assert [v.shape for v in unit.weights] == [v.shape for v in net.weights]
    h = keras.Model(unit.input, unit.get_layer("features").output)(images(4, MNIST))
    np.testing.assert_allclose(np.linalg.norm(h, axis=1), 1.0, atol=1e-5)
    logits = net.get_layer("logits")
    np.testing.assert_allclose(
        unit(images(4, MNIST)), np.asarray(h) @ np.asarray(logits.kernel), atol=1e-5
    )
    middle = M.unit_features(net, "relu_add2_2", name="unit").get_layer("unit")
    assert middle.output.shape[1:] == (4, 4, 16)
    with pytest.raises(ValueError, match="`feature_layer` must name a layer of 'resnet18': .*pool"):
        M.unit_features(net, "nope")


# Every room ------------------------------------------------------------------------------------


QUICK = ("lenet300_100", "all_cnn", "resnet32")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SMALL]
)
def test_masks_stand_where_they_can_be_cut(name):
    net = small(name, mask=FixedMask)
    masks = [layer.name for layer in net.layers if isinstance(layer, FixedMask)]
    assert masks and all(mask.startswith("mask_") for mask in masks)
    if name == "resnet32":  # inside of blocks only
        assert masks == [f"mask_conv{stage}_{block}a" for stage in (1, 2, 3) for block in (1, 2)]
    shut(randomize(net))
    cut = tr.shrink.compact(net)
    x = images(8, net.input_shape[1:])
    logits = np.asarray(net(x, training=False))
    assert np.ptp(logits, axis=0).max() > 0
    np.testing.assert_allclose(
        cut(x, training=False), logits, atol=1e-5 * max(1, abs(logits).max())
    )
    assert cut.count_params() < 0.62 * net.count_params()
    assert tr.footprint.measure(cut).flops < tr.footprint.measure(small(name)).flops


@pytest.mark.parametrize("name", SMALL)
def test_counts_are_complete(name):
    net = small(name)
    footprint = tr.footprint.measure(net)
    assert footprint.parameters == net.count_params() and not footprint.uncounted
    convolutions = [layer for layer in net.layers if isinstance(layer, layers.Conv2D)]
    positions = [
        np.prod(layer.output.shape[1:3]) * layer.kernel.shape[-1] for layer in convolutions
    ]
    macs = sum(
        p * np.prod(c.kernel.shape[:-1]) for p, c in zip(positions, convolutions, strict=True)
    )
    macs += sum(np.prod(d.kernel.shape) for d in net.layers if isinstance(d, layers.Dense))
    assert footprint.macs == macs


@pytest.mark.parametrize(
    "name", ["resnet32", pytest.param("wide_resnet28", marks=pytest.mark.slow)]
)
def test_residual_networks_are_bounded_and_saved(name, tmp_path):
    net = randomize(small(name, width=0.2, blocks_per_stage=1))
    net.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    x = images(2, CIFAR)
    logits = np.asarray(net(x, training=False))
    np.testing.assert_allclose(again(x, training=False), logits, atol=1e-5)
    lower, upper = tr.bounds.interval(net, x, tr.threats.Linf(1e-4))
    assert (lower <= logits).all() and (logits <= upper).all() and np.isfinite(upper).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_convert_to_tflite(name, tmp_path):
    net = randomize(small(name))
    assert tr.export.tflite(net, tmp_path / "net.tflite").parity <= 1e-4
