"""Properties of the choice: exact counts, ties by index, monotone, and the bounds of m:n."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfrobust as tr
from tests import bank_pruning as bank
from tfrobust.pruning import Geometric, Linear, MagnitudePruning, OneShot, Threshold, select
from tfrobust.pruning.borrowed import adapted, polynomial

few = settings(max_examples=60, deadline=None)
# Few values, so that ties are the rule.
SCORES = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
)
FRACTION = st.floats(0.0, 1.0, exclude_max=True)


@few
@given(SCORES, st.integers(0, 45))
def test_smallest_is_a_stable_sort(scores, count):
    expected = np.zeros(len(scores), bool)
    expected[np.argsort(scores, kind="stable")[:count]] = True
    np.testing.assert_array_equal(select.smallest(scores, count), expected)


@few
@given(st.integers(1, 10**6), st.integers(0, 999))
def test_the_amount_meets_the_fraction_and_never_takes_all(count, thousandths):
    gone = select.amount(thousandths / 1000, count)
    exact = -(-thousandths * count // 1000)  # in integers
    assert gone == min(exact, count - 1)


@few
@given(SCORES, st.lists(FRACTION, min_size=1, max_size=4))
def test_masks_are_monotone_and_counts_exact(scores, fractions):
    """Weights move between updates; what is gone stays gone."""
    alive, most = np.ones(len(scores), bool), 0
    for number, fraction in enumerate(fractions):
        moved = np.roll(scores, number)
        count = select.amount(fraction, len(scores))
        ((gone,), _) = select.by_layer([np.where(alive, moved, select.DEAD)], [count])
        assert not (gone & alive).all() or len(scores) == 1
        assert (gone | alive).all()  # all that was gone is gone
        alive, most = ~gone, max(most, count)
        assert gone.sum() == most


@few
@given(st.lists(SCORES, min_size=1, max_size=4), FRACTION, st.integers(1, 3), st.data())
def test_one_ranking_over_layers(scores, fraction, spare, data):
    sizes = [data.draw(st.integers(1, 5)) for _ in scores]
    total = sum(size * len(s) for size, s in zip(sizes, scores, strict=True))
    need = select.amount(fraction, total)
    chosen, bound = select.together(scores, sizes, need, spare)
    gone = sum(size * c.sum() for size, c in zip(sizes, chosen, strict=True))
    free = sum(size * max(len(s) - spare, 0) for size, s in zip(sizes, scores, strict=True))
    assert all((~c).sum() >= min(spare, len(c)) for c in chosen)
    assert min(need, free) <= gone < min(need, free) + max(sizes) or need == 0 == gone
    # What stays although it could have gone scores no less than what went.
    worst = max((s[c].max() for s, c in zip(scores, chosen, strict=True) if c.any()), default=0)
    for s, c in zip(scores, chosen, strict=True):
        if (~c).sum() > spare:
            assert s[~c].min() >= worst or math.isclose(s[~c].min(), worst)
    if not bound:
        assert gone >= need
    again, _ = select.together(
        [np.where(c, select.DEAD, s) for s, c in zip(scores, chosen, strict=True)],
        sizes, need, spare,
    )  # fmt: skip
    assert all((a == c).all() for a, c in zip(again, chosen, strict=True))


@few
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 3)),
        elements=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (2, 5)]),
)
def test_every_run_has_its_zeros(scores, run):
    count, size = run
    chosen = select.in_runs(scores, count, size)
    width = scores.shape[1]
    for begin in range(0, width, size):
        part, gone = scores[:, begin : begin + size], chosen[:, begin : begin + size]
        filled = size - part.shape[1]
        assert (gone.sum(axis=1) == max(0, count - filled)).all()
        kept = np.where(gone, np.inf, part).min(axis=1)
        lost = np.where(gone, part, -np.inf).max(axis=1)
        assert (kept >= lost).all()
    more = select.in_runs(np.where(chosen, select.DEAD, scores), min(count + 1, size - 1), size)
    assert (more | ~chosen).all()


@few
@given(st.integers(2, 5000), st.floats(0.05, 0.9), st.integers(1, 20))
def test_geometric_takes_its_share_of_the_rest(total, rho, updates):
    schedule, left = Geometric(rho, updates=updates), total
    for update in range(updates):
        rest = total - schedule.count(total, update)
        assert rest >= 1 and left - rest in (math.floor(rho * left), math.floor(rho * left + 1e-9))
        left = rest


@few
@given(
    st.sampled_from(
        [
            Linear(0.7, updates=5, every=3, begin=2),
            OneShot(0.5, begin=4),
            adapted(polynomial(0.1, 0.7, 2, 17, every=5)),
        ]
    ),
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
)
def test_no_point_is_missed_whatever_the_stride(schedule, strides):
    """Steps per execution only delay: the target is that of the latest point passed."""
    asked, target, now = -1, 0.0, 0
    for stride in [0, *strides]:
        now += stride
        update = schedule.crossed(asked, now)
        target = target if update is None else max(target, schedule.target(update))
        asked = now
        each, expected = -1, 0.0
        for step in range(now + 1):
            point = schedule.crossed(each, step)
            expected = expected if point is None else schedule.target(point)
            each = step
        assert target == pytest.approx(expected)


@pytest.mark.parametrize(
    "made",
    [
        Linear(0.7, updates=5, every=3, begin=2, unit="steps"),
        Geometric(0.25, updates=4),
        OneShot(0.5, begin=4),
        Threshold(0.5, updates=3),
        tr.pruning.Keep(),
        tr.pruning.MaskConstraint((2, 3), keras.constraints.NonNeg()),
    ],
    ids=lambda made: type(made).__name__,
)
def test_configs_come_back(made):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert type(again) is type(made) and again.get_config() == made.get_config()


@pytest.mark.parametrize("end, execution", [(5, 2), (5, 3), (4, 3), (1, 6)])
def test_the_end_of_a_schedule_within_the_last_execution_counts(end, execution):
    """Of six steps only the first of each execution is asked before it; the end is asked after."""
    net = bank.compiled(bank.dense(), run_eagerly=True, steps_per_execution=execution)
    prune = MagnitudePruning(polynomial(0.0, 0.8, 0, end, every=1))
    history = bank.fit(net, prune, epochs=1, batch_size=4)
    assert history.history["sparsity"] == pytest.approx([0.8], abs=0.01)


@pytest.mark.parametrize(
    "layer, shape, axis",
    [
        (keras.layers.Conv1D(3, 2), (6, 8), 1),
        (keras.layers.Conv1DTranspose(3, 2), (6, 8), 2),
        (keras.layers.Conv2DTranspose(3, 2), (6, 6, 8), 3),
        (keras.layers.SeparableConv1D(3, 2), (6, 8), 1),
        (keras.layers.SeparableConv2D(3, 2), (6, 6, 8), 2),
        (keras.layers.Conv3D(3, 2), (3, 3, 3, 8), 3),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_runs_go_along_the_input_channels(layer, shape, axis):
    """Two zeros among each four of eight input channels: the two that are smallest."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    net = keras.Model(inputs, layer(inputs))
    kernel = tr.pruning.kernel_of(layer)
    before = np.moveaxis(np.abs(kernel.numpy()), axis, -1).reshape(-1, 2, 4)
    tr.pruning.prune(net, 0.5, structured=(2, 4))
    mask = tr.pruning.masks_of(net)[layer.name]
    runs = np.moveaxis(mask, axis, -1).reshape(-1, 2, 4)
    np.testing.assert_array_equal(runs, before > np.sort(before)[..., 1:2])
    if "separable" in layer.name:
        assert np.all(layer.depthwise_kernel.numpy() != 0)


def test_what_plain_fit_clips_by_counts_pruned_entries():
    """As the class says: a pruned entry stays 0, its momentum moves. Games mask the gradient."""
    net, optimizer = bank.dense(), keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1)
    model = bank.compiled(net, optimizer, run_eagerly=True)
    bank.fit(model, MagnitudePruning(OneShot(0.5)), epochs=1)
    mask = tr.pruning.masks_of(net)["hidden"]
    (slot,) = [v for v in optimizer.momentums if v.shape == mask.shape]
    assert (~mask).sum() == 64 and np.any(slot.numpy()[~mask])
