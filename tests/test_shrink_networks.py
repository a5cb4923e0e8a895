"""Pruned networks of the papers are cut exactly: logits, every position of a map, after a reload.

Normalization is live (random statistics, gamma and beta), so a filter that was silenced in part, or
a border that was forgotten, would show.
"""

import keras
import numpy as np
import pytest
from keras import layers

import tfrobust as tr
from tests.bank_masks import images, randomize

M = tr.models
SLOW = pytest.mark.slow
BINDS = pytest.mark.filterwarnings("ignore:`min_filters`=. keeps filters")
# name -> options of a whole but narrow network, and the last map in front of its head
NETS = {
    "cifar_large": ({"width": 1 / 4}, "relu_conv4"),
    "all_cnn": ({"width": 1 / 6}, "relu_conv7"),
    "vgg16_bn": ({"width": 1 / 8}, "relu_conv13"),
    "vgg_like": ({"width": 1 / 8}, "relu_conv11"),
    "resnet32": ({"width": 0.5}, "relu_add3_5"),
    "wide_resnet28": ({"width": 0.25, "widen": 2}, "relu_norm_last"),
}
# name -> options of one that is quick as well
QUICK = {
    "cifar_large": ({"width": 1 / 8}, "relu_conv4"),
    "vgg_like": ({"stages": ((8, 2), (12, 1)), "width": 1}, "pool2"),
    "resnet32": ({"width": 0.5, "blocks_per_stage": 1}, "relu_add3_1"),
    "wide_resnet28": ({"width": 0.5, "widen": 1, "blocks_per_stage": 1}, "relu_norm_last"),
}


def lively(name, options, layer, size=32):
    """The network, and its twin with a convolution on the map of `layer` in place of the head: the
    logits of the twin are all positions of the map."""
    keras.utils.set_random_seed(3)
    net = getattr(M, name)(input_shape=(size, size, 3), **options)
    x = layers.Conv2D(3, 3, padding="same", name="probe")(net.get_layer(layer).output)
    twin = keras.Model(net.input, layers.Flatten(name="positions")(x), name="twin")
    for model in (net, twin):
        randomize(model)
        for dense in (d for d in model.layers if isinstance(d, layers.Dense)):
            kernel = np.asarray(dense.kernel)  # vgg16_bn's start at 0.01 lets nothing through
            dense.kernel.assign(kernel / kernel.std() * np.sqrt(2 / len(kernel)))
    return net, twin


def settle(model, x):
    """Moving statistics as training on these images leaves them."""
    norms = [n for n in model.layers if isinstance(n, layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm in norms:
        norm.momentum = 0.9


def answers(model, x):
    return np.asarray(model(x, training=False), np.float64)


def assert_equal_and_smaller(model, dense, x, tmp_path, share):
    """DESIGN's rule 7, before and after a reload; `dense` are the answers without pruning."""
    masked = answers(model, x)
    scale = max(1, np.abs(masked).max())
    # Images differ by more than the tolerance, and so does what was pruned.
    assert np.ptp(masked, axis=0).max() > 1e-3 * scale
    assert np.abs(masked - dense).max() > 1e-3 * scale
    cut = tr.shrink.compact(model)
    cut.save(tmp_path / "cut.keras")
    for small in (cut, keras.saving.load_model(tmp_path / "cut.keras")):
        result = answers(small, x)
        np.testing.assert_allclose(result, masked, rtol=0, atol=1e-5 * scale)
        np.testing.assert_array_equal(result.argmax(-1), masked.argmax(-1))
    assert cut.count_params() < share * model.count_params()
    assert tr.footprint.measure(cut).flops < share * tr.footprint.measure(model).flops
    return cut


def prove(name, table, tmp_path, size=32, share=0.75, count=16, **options):
    net, twin = lively(name, *table[name], size)
    x = images(count, (size, size, 3))
    x[::2, 1:-1, 1:-1] = 0.5  # nothing but the border tells these apart
    settle(net, x)
    before = answers(net, x), answers(twin, x)
    report = tr.pruning.prune(net, 0.5, structured="filters", **options)
    settle(net, x)
    assert report.sparsity >= 0.5
    cut = assert_equal_and_smaller(net, before[0], x, tmp_path, share)
    for row in report.rows:
        assert cut.get_layer(row.name).kernel.shape[-1] <= row.filters_total - row.filters
    # The twin shares all layers but its head with the network.
    assert_equal_and_smaller(twin, before[1], x, tmp_path, share)
    return report


RESIDUAL = ("resnet32", "wide_resnet28")


@pytest.mark.parametrize(
    "name, residual",
    [
        ("cifar_large", "inside"),
        ("vgg_like", "inside"),
        ("resnet32", "shared"),
        pytest.param("resnet32", "inside", marks=SLOW),
        pytest.param("wide_resnet28", "inside", marks=SLOW),
        pytest.param("wide_resnet28", "shared", marks=SLOW),
    ],
)
def test_pruned_networks_are_cut_exactly(name, residual, tmp_path):
    prove(name, QUICK, tmp_path, 12, scope="layer", count=8, residual=residual)


@SLOW
@BINDS
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", RESIDUAL)
def test_streams_of_whole_networks_are_cut_exactly(name, scope, tmp_path):
    options = {"scope": scope, "min_filters": 4 if scope == "global" else 1, "normalise": "fan_in"}
    report = prove(name, NETS, tmp_path, residual="shared", **options)
    assert dict(report.left) == {"logits": "it makes the logits"}
    assert sorted(map(len, report.groups)) == ([16] if name == "resnet32" else [5, 5, 5])


@SLOW
@BINDS
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", NETS)
def test_whole_networks_are_cut_exactly(name, scope, tmp_path):
    prove(name, NETS, tmp_path, scope=scope, min_filters=4 if scope == "global" else 1)


@SLOW
@pytest.mark.parametrize(
    "name, options, residual",
    [
        ("resnet32", {}, "shared"),
        ("wide_resnet28", {"widen": 1}, "shared"),
        ("vgg_like", {"width": 0.5}, "inside"),
    ],
)
def test_a_quarter_of_the_work_runs_faster(name, options, residual, tmp_path):
    """Half of the filters, a quarter of the FLOPs, of nets of 50 MFLOPs and more: TFLite is faster
    by half of that at the least. Prints what it measures (`-s`)."""
    keras.utils.set_random_seed(3)
    net = randomize(getattr(M, name)(**options))
    full = tr.footprint.measure(net).flops
    files = [tr.export.tflite(net, tmp_path / "full.tflite")]
    tr.pruning.prune(net, 0.5, structured="filters", scope="layer", residual=residual)
    small = tr.shrink.compact(net)
    files.append(tr.export.tflite(small, tmp_path / "small.tflite"))
    gain = full / tr.footprint.measure(small).flops
    assert full >= 50e6 and 3.5 < gain < 4.5
    before, after = tr.export.latencies(files)
    print(
        f"{name} {options}: {full / 1e6:.0f} MFLOPs, {gain:.2f} x fewer; {before:.2f} -> "
        f"{after:.2f} ms, {before / after:.2f} x; {files[0].bytes:,} -> {files[1].bytes:,} bytes"
    )
    assert before >= 0.5 * gain * after
