"""Moves onto planes within the box: the smallest ones, by other means, in all three norms."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tfrobust.attacks import hyperplane

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def smallest(norm, size, room, gap):
    """The norm of the smallest move in [0, room] with size . move = gap, by other means."""
    d = len(size)
    if norm == "l2":  # every set of coordinates that may be at the end of their room
        best = np.inf
        for ends in itertools.product([False, True], repeat=d):
            ends = np.array(ends)
            left = gap - size[ends] @ room[ends]
            share = left / max((size[~ends] ** 2).sum(), 1e-300)
            move = np.where(ends, room, share * size)
            if left >= -1e-9 and (move <= room + 1e-9).all() and size @ move >= gap - 1e-9:
                best = min(best, np.linalg.norm(move))
        return best
    plane, cap = np.append(size, 0.0)[None], np.c_[np.eye(d), -np.ones(d)]
    cost = np.append(np.full(d, norm == "l1", float), norm == "linf")
    ends = [*((0, r) for r in room), (0, None)]
    found = linprog(cost, cap, np.full(d, 0.0 if norm == "linf" else 10.0), plane, [gap], ends)
    return found.fun


@norms
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 5),
    share=st.floats(0.01, 0.99) | st.floats(1.01, 1.3),
)
def test_moves_to_planes_are_the_smallest(norm, seed, d, share):
    rng = np.random.default_rng(seed)
    t = rng.choice([0.0, 1.0, rng.uniform()], d) if seed % 3 else rng.uniform(size=d)
    w = rng.normal(size=d) * 10.0 ** rng.integers(-2, 3)
    if seed % 2:
        w = np.round(w, 0)  # equal and zero entries
    t, w = t.astype("float32"), w.astype("float32")
    toward = np.sign(w) * (-1) ** (seed % 5)
    size, room = np.abs(w).astype(float), np.where(toward > 0, 1 - t, t).astype(float)
    most = size @ room
    gap = np.float32(share * most * (-1) ** (seed % 5))
    move = hyperplane.to_plane(norm, t[None], tf.constant(w[None]), tf.constant([gap]))
    move = move.numpy()[0].astype(float)
    assert (t + move).min() >= -1e-7 and (t + move).max() <= 1 + 1e-7
    if share >= 1:
        np.testing.assert_allclose(move, np.where(w == 0, 0, toward * room), atol=1e-6)
        return
    assert abs(w @ move - gap) <= 1e-5 * max(most, 1e-30)
    if most > 0:
        order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
        want = smallest(norm, size, room, abs(float(gap)))
        np.testing.assert_allclose(np.linalg.norm(move, order), want, rtol=2e-4, atol=1e-6)


@norms
def test_planes_in_many_dimensions_are_met(norm):
    rng = np.random.default_rng(0)
    t = rng.uniform(size=(64, 784)).astype("float32") * (rng.uniform(size=(64, 784)) < 0.4)
    w = (rng.normal(size=t.shape) * np.exp(2 * rng.normal(size=t.shape))).astype("float32")
    room = np.where(w > 0, 1 - t, t)
    gap = (np.abs(w) * room).sum(-1).astype("float32") * np.geomspace(1e-4, 0.999, 64, dtype="f")
    t = t.astype("float32")
    move = hyperplane.to_plane(norm, tf.constant(t), tf.constant(w), tf.constant(gap))
    np.testing.assert_allclose((w * move.numpy()).sum(-1), gap, rtol=1e-4)
    assert (t + move.numpy()).min() >= 0 and (t + move.numpy()).max() <= 1


@norms
def test_a_flat_or_met_plane_moves_nothing(norm):
    t = tf.constant([[0.2, 0.8], [0.2, 0.8]])
    w, gap = tf.constant([[0.0, 0.0], [1.0, -2.0]]), tf.constant([1.0, 0.0])
    assert not hyperplane.to_plane(norm, t, w, gap).numpy().any()
