"""Footprint: the paper's totals, closed forms by hand, masks, and rules of the user's own."""

import io
import json

import keras
import numpy as np
import pytest

from tfrobust import footprint, shrink
from tfrobust.layers import BetaBernoulliMask, Mask
from tfrobust.models import lenet5_caffe

L = keras.layers

LENET_COUNTS = [(14, 21, 150, 49), (7, 21, 147, 46), (12, 19, 160, 37), (10, 23, 200, 53)]


@keras.saving.register_keras_serializable(package="tests.footprint")
class FixedMask(Mask):
    """Keeps the channels of a given list."""

    def __init__(self, live, **kwargs):
        super().__init__(**kwargs)
        self.live = live

    def expected(self):
        return keras.ops.convert_to_tensor(np.asarray(self.live, np.float32))

    def get_config(self):
        return {**super().get_config(), "live": self.live}


def first(live, total):
    return [int(i < live) for i in range(total)]


def test_lenet_totals_are_the_papers():
    measured = footprint.measure(lenet5_caffe())
    assert (measured.flops, measured.memory) == (4_615_940, 477_410)
    assert (measured.parameters, measured.units, measured.bytes) == (431_080, 1370, 4 * 431_080)
    assert measured.macs == 576 * 25 * 20 + 64 * 25 * 20 * 50 + 800 * 500 + 500 * 10
    assert measured.activations == 11_520 + 3_200 + 500 + 10
    counted = footprint.lenet_counts()
    for total in ("flops", "macs", "memory", "parameters", "units", "units_total"):
        assert getattr(measured, total) == getattr(counted, total), total


def test_measured_vgg_block_agrees_with_the_counts():
    x = h = keras.Input((32, 32, 3))
    for filters in (64, 64):
        h = L.Conv2D(filters, 3, padding="same")(h)
        h = L.ReLU()(L.BatchNormalization()(h))
    h = L.Flatten()(L.MaxPooling2D()(h))
    measured = footprint.measure(keras.Model(x, L.Dense(10)(h)))
    rows = footprint.vgg16_counts().rows[:5]
    head = 10 * (2 * 16 * 16 * 64)
    assert measured.flops == sum(row.flops for row in rows) + head
    assert measured.memory == sum(row.memory for row in rows) + 16 * 16 * 64 * 10 + 10


def masked_lenet(counts):
    """LeNet whose masks keep the first units; live flatten units lie in live maps."""
    a, b, c, d = counts
    flat = [0] * 800
    alive = [p * 50 + ch for p in range(16) for ch in range(b)]
    for i in alive[:b] + alive[b:][: c - b]:
        flat[i] = 1
    live = {
        "mask_conv1": first(a, 20),
        "mask_conv2": first(b, 50),
        "mask_flatten": flat,
        "mask_dense3": first(d, 500),
    }
    return lenet5_caffe(mask=lambda name: FixedMask(live[name], name=name))


@pytest.mark.parametrize("counts", LENET_COUNTS, ids=str)
def test_masked_lenet_is_counted_by_its_kept_units(counts):
    measured, counted = footprint.measure(masked_lenet(counts)), footprint.lenet_counts(counts)
    assert [row.units for row in measured.rows if row.units] == list(counts)
    for total in ("flops", "memory", "units", "units_total", "parameters", "macs"):
        assert getattr(measured, total) == getattr(counted, total), total


def test_a_fresh_mask_removes_nothing_and_costs_nothing():
    masked = footprint.measure(lenet5_caffe(mask=BetaBernoulliMask))
    plain = footprint.measure(lenet5_caffe())
    for total in ("flops", "memory", "units", "parameters", "nonzero"):
        assert getattr(masked, total) == getattr(plain, total), total


def test_a_closed_map_kills_its_flatten_rows_and_the_reverse():
    x = keras.Input((2, 2, 1))
    h = L.Conv2D(3, 1, name="conv")(x)
    h = L.Flatten()(FixedMask([1, 1, 0])(h))
    # rows of channel 1 (of each of the 4 positions) are closed behind the flatten
    h = FixedMask([1, 0, 1] * 4)(h)
    rows = {r.name: r for r in footprint.measure(keras.Model(x, L.Dense(2, name="d")(h))).rows}
    assert rows["conv"].units == 1
    assert rows["conv"].parameters == 2
    assert rows["d"].macs == 4 * 2


def test_mask_after_batchnorm_and_through_depthwise_reaches_the_convolution():
    x = keras.Input((4, 4, 1))
    h = L.Conv2D(6, 3, padding="same", use_bias=False, name="wide")(x)
    h = L.ReLU()(L.BatchNormalization(name="bn")(h))
    h = FixedMask(first(4, 6))(h)
    h = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(h)
    h = L.GlobalAveragePooling2D()(h)
    rows = {r.name: r for r in footprint.measure(keras.Model(x, L.Dense(2, name="d")(h))).rows}
    assert (rows["wide"].units, rows["wide"].units_total) == (4, 6)
    assert (rows["wide"].flops, rows["wide"].parameters) == (4 * 16 * (2 * 9 - 1), 4 * 9)
    assert rows["bn"].parameters == 4 * 4
    assert (rows["deep"].flops, rows["deep"].parameters) == (8 * 16 * (2 * 9), 8 * 10)
    assert rows["d"].parameters == 8 * 2 + 2


def test_residual_sum_keeps_a_channel_that_either_side_needs():
    x = keras.Input((4, 4, 1))
    left = FixedMask([1, 0, 0])(L.Conv2D(3, 1, name="left")(x))
    right = FixedMask([0, 1, 0])(L.Conv2D(3, 1, name="right")(x))
    h = L.Conv2D(2, 1, name="after")(L.Add(name="sum")([left, right]))
    model = keras.Model(x, L.Dense(2)(L.GlobalMaxPooling2D()(h)))
    rows = {r.name: r for r in footprint.measure(model).rows}
    assert [rows[n].units for n in ("left", "right", "after")] == [1, 1, 2]
    assert rows["after"].macs == 16 * 2 * 2
    assert rows["sum"].flops == 16 * 2


def test_concatenation_and_separable_convolution_by_hand():
    x = keras.Input((4, 4, 2))
    h = L.Concatenate()([FixedMask([1, 0])(x), x])
    h = L.SeparableConv2D(5, 3, padding="same", depth_multiplier=2, name="s")(h)
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(h)))
    row = {r.name: r for r in footprint.measure(model).rows}["s"]
    assert row.macs == 16 * (3 * 2 * 9 + 3 * 2 * 5)
    assert row.flops == 16 * 3 * 2 * (2 * 9 - 1) + 16 * 5 * (2 * 6)


def test_groups_fused_activation_and_nonzeros():
    x = keras.Input((3, 3, 4))
    h = L.Conv2D(8, 3, groups=2, activation="relu", use_bias=False, name="g")(x)
    model = keras.Model(x, L.Dense(2, name="d")(L.Flatten()(h)))
    kernel = np.ones((3, 3, 2, 8), np.float32)
    kernel[0] = 0
    model.get_layer("g").set_weights([kernel])
    found = footprint.measure(model)
    row = found.rows[0]
    assert f"({found.nonzero} not 0)" in repr(found) and found.nonzero == 96 + 16
    assert row.flops == 8 * (2 * 9 * 2 - 1 + 1)
    assert (row.parameters, row.nonzero) == (144, 96)


def test_dict_round_trip_and_tables():
    measured = footprint.measure(lenet5_caffe(mask=BetaBernoulliMask))
    again = footprint.Footprint.from_dict(json.loads(json.dumps(measured.to_dict())))
    assert again.to_dict() == measured.to_dict()
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(measured)
    assert "4,615,940" in console.export_text()


@keras.saving.register_keras_serializable(package="tests.footprint")
class Scale(L.Layer):
    def build(self, input_shape):
        self.gain = self.add_weight(shape=(input_shape[-1],))

    def call(self, inputs):
        return inputs * self.gain


@keras.saving.register_keras_serializable(package="tests.footprint")
class CountedScale(Scale):
    pass


@footprint.cost.register(CountedScale)
def _(layer, inputs, output):
    return footprint.Cost(flops=output.size)


def tiny(layer):
    x = keras.Input((2, 2, 3))
    return keras.Model(x, L.Dense(2)(L.Flatten()(layer(x))))


def test_an_unknown_layer_is_named_and_a_registered_one_counted():
    with pytest.warns(UserWarning, match="my_scale"):
        assert footprint.measure(tiny(Scale(name="my_scale"))).uncounted == ("my_scale",)
    measured = footprint.measure(tiny(CountedScale(name="mine")))
    assert {r.name: r.flops for r in measured.rows}["mine"] == 12
    assert measured.uncounted == ()


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: footprint.lenet_counts((7, 21)), ValueError, "4 counts"),
        (lambda: footprint.lenet_counts((7, 21, 147, 501)), ValueError, "at most"),
        (lambda: footprint.vgg16_counts(memory="both"), ValueError, "'fixed' or 'code'"),
        (lambda: footprint.measure("net"), TypeError, "keras.Model"),
        (
            lambda: footprint.measure(tiny(L.Conv2D(2, 1, data_format="channels_first"))),
            ValueError,
            "channels last",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
def test_macs_of_published_networks():
    # Howard et al. (2019) give 56 M for MobileNetV3-Small, Sandler et al. (2018) 300 M for V2.
    for build, macs in (
        (keras.applications.MobileNetV3Small, 56e6),
        (keras.applications.MobileNetV2, 300e6),
    ):
        model = build(input_shape=(224, 224, 3), weights=None, classifier_activation=None)
        measured = footprint.measure(model)
        assert measured.macs == pytest.approx(macs, rel=0.01)
        assert measured.parameters == model.count_params()


def after_activation():
    """Conv blocks with batch normalization, a residual sum and masks in the exact slot."""
    x = keras.Input((8, 8, 3))
    h = L.Conv2D(6, 3, padding="same", name="c1")(x)
    h = FixedMask([1, 0, 1, 1, 0, 1], name="m1")(L.ReLU()(L.BatchNormalization()(h)))
    side = FixedMask([1, 1, 0, 0], name="m2")(L.ReLU()(L.Conv2D(4, 3, padding="same")(h)))
    skip = FixedMask([1, 1, 0, 0], name="m3")(L.ReLU()(L.Conv2D(4, 1)(h)))
    h = L.MaxPooling2D()(L.Add()([side, skip]))
    h = FixedMask([1, 0, 1, 1, 1] * 2, name="m4")(L.ReLU()(L.Dense(10)(L.Flatten()(h))))
    return keras.Model(x, L.Dense(3)(h))


@pytest.mark.parametrize(
    "model",
    [lambda: masked_lenet((7, 21, 50, 46)), after_activation],
    ids=["lenet", "residual"],
)
def test_live_units_of_a_masked_model_are_those_of_its_shrunk_twin(model):
    model = model()
    masked, small = footprint.measure(model), footprint.measure(shrink.compact(model))
    for total in ("units", "parameters", "macs"):
        assert getattr(masked, total) == getattr(small, total), total


@pytest.mark.parametrize("live", [(20, 50, 800, 500), (7, 21, 271, 46)])
def test_a_units_cost_is_what_closing_it_saves(live):
    """Of 271 places the last open one, 5 * 50 + 20, is of a live map."""
    names = ("mask_conv1", "mask_conv2", "mask_flatten", "mask_dense3")

    def net(live):
        gates = {
            n: first(k, total) for n, k, total in zip(names, live, (20, 50, 800, 500), strict=True)
        }
        return lenet5_caffe(mask=lambda name: FixedMask(gates[name], name=name))

    costs, flops = footprint.unit_costs(net(live)), footprint.measure(net(live)).flops
    for place, name in enumerate(names):
        fewer = [count - (place == i) for i, count in enumerate(live)]
        assert costs[name] == flops - footprint.measure(net(fewer)).flops > 0
    assert set(footprint.unit_costs(net((0, 0, 0, 0))).values()) == {0}
