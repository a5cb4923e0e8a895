"""Schedules of the radius: end points, the smooth ramp's joint, staircases."""

import keras
import numpy as np
import pytest

import tfrobust as tr


def test_mixtrain_schedules_at_their_corners():
    """60 epochs of 3 steps: the radius grows for 10 of them, the weight every 5 after that."""
    steps = 3
    epsilon = tr.training.Ramp(0.3, length=10 * steps, every=steps)
    weight = tr.training.Growth(0.1, 2.5, every=5 * steps, begin=10 * steps)
    epochs = np.array([0, 5, 10, 14, 15, 20, 59])
    for offset in (0, steps - 1):  # it moves between epochs only
        at = epochs * steps + offset
        radii = [float(epsilon(step)) for step in at]
        np.testing.assert_allclose(radii, [0, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3], atol=1e-7)
        grown = [float(weight(step)) for step in at]
        np.testing.assert_allclose(grown, [0.1, 0.1, 0.1, 0.1, 0.25, 0.625, 50], rtol=1e-5)


def test_smooth_ramp_has_no_corner_where_its_parts_meet():
    ramp = tr.training.Ramp(1.0, length=4000, begin=100, smooth=True)
    values = np.array([float(ramp(step)) for step in range(1090, 1112)], "float64")
    slopes = np.diff(values)
    assert np.abs(np.diff(slopes)).max() < 5e-3 * slopes.max()
    ends = [float(ramp(step)) for step in (0, 100, 4100, 9000)]
    np.testing.assert_allclose(ends, [0, 0, 1, 1], atol=1e-6)
    # Quartic at the start: twice as far is sixteen times as much.
    assert float(ramp(600)) / float(ramp(350)) == pytest.approx(16, rel=1e-4)


def test_round_trip():
    for schedule in (
        tr.training.Ramp(0.3, 10, 2, 0.1, smooth=True, every=3),
        tr.training.Growth(0.1, 2.0, 4, 3, 7.0),
    ):
        config = keras.saving.serialize_keras_object(schedule)
        again = keras.saving.deserialize_keras_object(config)
        assert [float(again(s)) for s in range(20)] == [float(schedule(s)) for s in range(20)]


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [({"length": 0}, "length"), ({"begin": -1}, "begin"), ({"every": 0.5}, "every"),
     ({"final": -0.1}, "final"), ({"initial": float("nan")}, "initial")],
)  # fmt: skip
def test_what_is_refused(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        tr.training.Ramp(**{"final": 0.3, "length": 5, **kwargs})
