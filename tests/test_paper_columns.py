"""Memory, xFLOPs and Sparsity as the ANP-VS tables have them: every figure of the paper's nets."""

import numpy as np
import pytest

import tfrobust as tr
from tests import bank

F, M = tr.footprint, tr.models

# What the released formulas make of the counts in Table 5 (Tables 1 and 4 claim other figures):
# xFLOPs, Memory by the released code, Memory with its dense layers counted once, Sparsity.
ROWS = {
    "MNIST BP BBD": (10, "14-21-150-49", 3.35, 10.98, 10.98, 82.92),
    "MNIST ANP-VS BBD": (10, "7-21-147-46", 6.62, 7.69, 7.69, 83.87),
    "MNIST BP VIB": (10, "12-19-160-37", 4.18, 9.62, 9.62, 83.36),
    "MNIST ANP-VS VIB": (10, "10-23-200-53", 4.35, 9.97, 9.97, 79.12),
    "C10 BP BBD": (
        *(10, "57-59-127-101-150-71-31-41-35-10-46-48-16-16-25"),
        *(3.26, 8.66, 10.29, 84.13),
    ),
    "C10 ANP-VS BBD": (
        *(10, "42-57-113-96-147-68-25-37-27-9-39-40-13-13-12"),
        *(4.00, 7.34, 8.74, 85.94),
    ),
    "C10 BP VIB": (
        *(10, "49-56-106-92-157-74-26-43-32-10-39-40-7-7-13"),
        *(3.94, 7.67, 9.14, 85.69),
    ),
    "C10 ANP-VS VIB": (
        *(10, "40-57-104-93-174-96-30-48-39-9-49-57-10-10-12"),
        *(3.95, 7.81, 9.31, 84.22),
    ),
    "C100 BP BBD": (
        *(100, "62-64-128-123-244-203-84-130-95-18-152-157-32-32-101"),
        *(2.04, 15.81, 18.41, 69.04),
    ),
    "C100 ANP-VS BBD": (
        *(100, "60-64-126-122-235-185-77-128-101-17-165-177-35-35-45"),
        *(2.15, 14.95, 17.88, 70.05),
    ),
    "C100 BP VIB": (
        *(100, "52-64-119-116-229-179-83-99-71-17-107-110-12-11-49"),
        *(2.38, 12.69, 15.16, 74.89),
    ),
    "C100 ANP-VS VIB": (
        *(100, "44-58-110-109-207-155-81-86-66-19-88-86-15-15-36"),
        *(2.90, 10.76, 12.89, 77.61),
    ),
}


@pytest.mark.parametrize(
    "classes, units, xflops, code, fixed, sparsity", ROWS.values(), ids=ROWS.keys()
)
def test_rows_of_table_5(classes, units, xflops, code, fixed, sparsity):
    units = tuple(int(count) for count in units.split("-"))
    found = F.paper_columns(units, classes=classes)
    assert found.units == units
    columns = (found.xflops, found.memory_code, found.memory, found.sparsity)
    assert [round(column, 2) for column in columns] == [xflops, code, fixed, sparsity]


def test_the_full_networks():
    lenet = F.lenet_counts()
    assert (lenet.flops, lenet.memory, lenet.units) == (4_615_940, 477_410, 1370)
    for classes, flops, code, fixed, parameters in (
        (10, 627_329_546, 19_881_538, 16_655_818, 14_991_946),
        (100, 627_421_796, 20_481_748, 16_701_988, 15_038_116),
    ):
        vgg = F.vgg16_counts(classes=classes)
        assert (vgg.flops, vgg.memory, vgg.units) == (flops, fixed, 5248)
        assert vgg.parameters == parameters
        assert F.vgg16_counts(classes=classes, memory="code").memory == code


@pytest.mark.parametrize("classes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_measured_vgg_lacks_the_activation_of_its_linear_logits_only(classes):
    measured, counted = F.measure(M.vgg16(classes)), F.vgg16_counts(classes=classes)
    assert measured.flops == counted.flops - classes
    for total in ("memory", "units", "units_total", "macs"):
        assert getattr(measured, total) == getattr(counted, total), total
    assert measured.parameters == counted.parameters + 9_472  # moving statistics


def shut_first(net, count):
    """Shuts the first `count` units of every mask, whatever its kind."""
    for mask in tr.layers.masks(net):
        if isinstance(mask, tr.layers.VIBMask):
            mask.log_var.assign(np.where(np.arange(mask.mu.shape[0]) < count, 9.0, -9.0))
        else:
            mask.a_.assign(np.where(np.arange(mask.a_.shape[0]) < count, -9.0, 2.0))


@pytest.mark.parametrize("mask", bank.MASKS)
def test_units_of_a_masked_and_a_shrunk_lenet(mask):
    net = M.lenet5_caffe(mask=mask, width=0.2)
    shut_first(net, 2)
    assert F.paper_units(net) == (2, 8, 158, 98)
    # The first two of 16 x 10 values are those of the two closed maps at the first place.
    assert F.paper_units(tr.shrink.compact(net)) == (2, 8, 16 * 8, 98)
    assert F.paper_columns(net) == F.paper_columns((2, 8, 158, 98))


def test_units_of_a_masked_and_a_shrunk_vgg():
    net = M.vgg16(mask=tr.layers.VIBMask, width=1 / 16, slot="after_activation")
    before = F.paper_units(net)
    assert before == (4, 4, 8, 8, 16, 16, 16, *(32,) * 8)
    shut_first(net, 2)
    left = tuple(count - 2 for count in before)
    assert F.paper_units(net) == F.paper_units(tr.shrink.compact(net)) == left
    found = F.paper_columns(net, before)
    assert found.sparsity == pytest.approx(100 * 30 / sum(before))
    assert found.xflops < 2 < F.paper_columns(net).xflops


def test_units_where_no_mask_stands_on_the_flattened_map():
    net = tr.layers.insert_masks(M.lenet5_caffe(width=0.2), tr.layers.BetaBernoulliMask)
    shut_first(net, 2)
    assert F.paper_units(net) == (2, 8, 16 * 8, 98)


def test_two_numbers_a_weight():
    """The paper's convention for a Bayesian network: memory 200, xFLOPs 0.5, sparsity 0."""
    found = F.paper_columns(M.lenet5_caffe(), per_weight=2)
    assert (found.memory, found.xflops, found.sparsity) == (200, 0.5, 0)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: F.paper_columns((7, 21, 147)), ValueError, "4 counts"),
        (lambda: F.paper_columns(5), ValueError, "4 counts"),
        (lambda: F.paper_columns((7, 21, 147, 46), F.counts.VGG16), ValueError, "same network"),
        (lambda: F.paper_columns((7, 21, 147, 501)), ValueError, "at most"),
        (lambda: F.paper_columns((7, 21, 147, 46), per_weight=0), ValueError, "`per_weight`"),
        (lambda: F.paper_units("net"), TypeError, "keras.Model"),
        (lambda: F.paper_units(M.digits_net()), ValueError, "names of its layers"),
        (lambda: F.paper_units(M.lenet5_caffe(input_shape=(32, 32, 3))), ValueError, "28 x 28"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    "factory, places, kl",
    [
        (tr.layers.BetaBernoulliMask, dict(zip("abcd", F.counts.LENET, strict=True)), 9_658.4),
        (
            M.vgg16_mask,
            {f"mask_{'conv' if n < 13 else 'dense'}{n}": u for n, u in enumerate(F.counts.VGG16)},
            45_087.6,
        ),
    ],
    ids=["LeNet", "VGG-16"],
)
def test_release_masks_start_as_the_paper_has_them(factory, places, kl):
    total = 0.0
    for name, units in places.items():
        mask = factory(name=name)
        mask.build((None, units))
        total += float(mask.kl())
    assert total == pytest.approx(kl, abs=0.5)
