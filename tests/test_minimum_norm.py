"""Attacks for the smallest change: exact distances, and what each one promises on its way."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tfrobust import attacks, threats

LINF, L2, L1 = threats.Linf(0.3), threats.L2(0.5), threats.L1(1.0)
NORMS = pytest.mark.parametrize("threat", [LINF, L2, L1], ids=lambda threat: threat.norm)
EACH = [
    attacks.DDN(L2, steps=40),
    attacks.CarliniWagner(L2, search_steps=4, steps=60, step_size=0.05, initial_const=0.1),
    attacks.DeepFool(L2),
    attacks.DeepFool(LINF),
    attacks.FAB(LINF, steps=20),
    attacks.FAB(L1, steps=20),
    attacks.FAB(L2, steps=20, targets=9),
]
each = pytest.mark.parametrize("attack", EACH, ids=bank.attack_id)


def checked(attack, net, x, y, goal=None):
    """`attack.minimum`, what it says confirmed by other means."""
    found = attack.minimum(net, x, y, goal=goal)
    change = (found.x_adv - x).reshape(len(x), -1)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[attack.threat.norm]
    far = np.linalg.norm(change.astype(float), order, axis=1)
    np.testing.assert_allclose(found.distance[found.fooled], far[found.fooled], rtol=1e-5)
    assert np.isfinite(found.distance).tolist() == found.fooled.tolist()
    assert found.x_adv.dtype == np.float32 and found.x_adv.shape == x.shape
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    logits, place = attacks.forward(net, found.x_adv), (y if goal is None else goal)[:, None]
    own = np.take_along_axis(logits, place, 1)[:, 0]
    np.put_along_axis(logits, place, -np.inf, 1)
    right = logits.max(-1) > own if goal is None else own > logits.max(-1)
    np.testing.assert_array_equal(found.fooled, right)
    return found


@functools.cache
def curve():
    return bank.curve()


@functools.cache
def straight():
    return bank.linear(1.0)


def linear(scale):
    """`bank.linear`: one net, so that attacks of either scale share a graph."""
    bank.rescale(straight()[0], scale)
    return straight()


MODELS = {"linear": lambda: linear(1.0), "steep": lambda: linear(30.0), "curve": curve}
on_each_model = pytest.mark.parametrize("model", MODELS)


@functools.cache
def whole(kind, threat, **options):
    attack = kind(threat, **options)
    attack.stride = attack.iterations  # one graph
    return attack


@functools.cache
def ratios(kind, threat, model, **options):
    """Distances over the exact ones, none of them below 1, and the `Result`."""
    net, x, y = MODELS[model]()
    found = checked(whole(kind, threat, **options), net, x, y)
    exact = bank.CURVE_DISTANCE if model == "curve" else bank.LINEAR_DISTANCE
    ratio = found.distance / exact[threat.norm]
    assert ratio.min() >= 1 - 5e-4  # the exact distances have five decimals
    return ratio, found


# --- fixtures with exact answers -------------------------------------------------------------


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize(("model", "most"), [("steep", 1.03), ("curve", 1.01)])
def test_ddn_finds_the_boundary(model, most, steps):
    assert ratios(attacks.DDN, L2, model, steps=steps)[0].max() <= most


@pytest.mark.parametrize(("loss", "low", "high"), [("ce", 1.38, 1.45), ("margin", 1.0, 1.03)])
def test_ddn_follows_cross_entropy_where_that_misleads(loss, low, high):
    ratio, _ = ratios(attacks.DDN, L2, "linear", loss=loss)
    assert low - 5e-4 <= ratio.min() and ratio.max() <= high


@on_each_model
@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_deepfool_finds_a_boundary(threat, model):
    ratio, found = ratios(attacks.DeepFool, threat, model)
    assert ratio.max() <= (1.35 if model == "curve" else 1.03)
    assert (found.gradients == (3 if model == "curve" else 9) * found.iterations).all()


@on_each_model
@NORMS
def test_fab_finds_the_boundary(threat, model):
    ratio, found = ratios(attacks.FAB, threat, model)
    assert ratio.max() <= 1.015
    assert (found.gradients == (3 if model == "curve" else 9) * 100).all()  # each wrong class
    assert (found.queries == 2 * 100 + 1).all()


@pytest.mark.parametrize("model", ["steep", "curve"])
@NORMS
def test_fab_t_finds_it_with_one_gradient_a_step(threat, model):
    ratio, found = ratios(attacks.FAB, threat, model, targets=9)
    assert ratio.max() <= 1.015
    assert (found.gradients == (3 if model == "curve" else 9) * 100).all()  # a run for each class


@pytest.mark.parametrize(
    ("kind", "threat"),
    [(attacks.DeepFool, L2), (attacks.DeepFool, LINF)]
    + [(attacks.FAB, threat) for threat in (LINF, L2, L1)],
    ids=str,
)
def test_the_scale_of_logits_changes_nothing(kind, threat):
    one, thirty = (ratios(kind, threat, model)[0] for model in ("linear", "steep"))
    np.testing.assert_allclose(one, thirty, rtol=1e-3)


@pytest.mark.slow
@on_each_model
def test_carlini_wagner_finds_the_boundary(model):
    ratio, found = ratios(attacks.CarliniWagner, L2, model, steps=1000)
    assert ratio.max() <= 1.02
    assert (found.gradients < 9 * 1000).all()  # each image ended early


@each
def test_nothing_succeeds_within_98_percent_and_much_does_beyond(attack):
    net, x, y = linear(30.0)
    exact = bank.LINEAR_DISTANCE[attack.threat.norm]
    assert bank.fooled_at(attack, net, x, y, 0.98 * exact) == 0
    assert bank.fooled_at(attack, net, x, y, 1.2 * exact) == 6


# --- what each walk promises -----------------------------------------------------------------


def affine(weights, bias, shape=(2,)):
    net = keras.Sequential([keras.Input(shape), keras.layers.Dense(len(bias))])
    net.set_weights([np.array(weights, "float32"), np.array(bias, "float32")])
    return net


@pytest.mark.parametrize(("threat", "order"), [(L2, 2), (LINF, 1)], ids=["l2", "linf"])
def test_deepfool_meets_a_straight_boundary_in_one_step(threat, order):
    w, b = np.array([1.5, -2.0]), 0.2
    net = affine(np.stack([0 * w, w], 1), [0.0, b])
    x, y = np.array([[0.4, 0.6]], "float32"), np.array([0])
    found = attacks.DeepFool(threat, steps=1).minimum(net, x, y)
    want = 1.02 * (abs(x[0] @ w + b) / np.linalg.norm(w, order) + 1e-4)
    np.testing.assert_allclose(found.distance, want, rtol=1e-5)
    # Judged by the end of the walk, or by the next step where there is one.
    assert (found.gradients, found.queries, found.iterations) == (1, 3, 1)
    more = attacks.DeepFool(threat).minimum(net, x, y)
    np.testing.assert_array_equal(more.x_adv, found.x_adv)


def a_call(attack, net, x, y, run=0, epsilon=np.inf):
    """A call as the template makes it, outside of a graph."""
    return attack.call(
        *(net, tf.constant(x), tf.constant(y, tf.int32), tf.range(len(x)), 0, run),
        epsilon=tf.constant(epsilon, tf.float32),
        active=tf.ones(len(x), tf.bool),
        eager_stop=False,
        numbers=attack.tensors(),
    )


def states(attack, net, x, y, steps):
    """The states of an attack, step by step."""
    call = a_call(attack, net, x, y)
    state = attack.begin(call)
    yield state
    for i in range(steps):
        state = {**state, **attack.step(call, tf.constant(i), state)}
        yield state


def test_ddn_radii_follow_the_rule():
    net, x, y = bank.linear(30.0)
    corner = np.linalg.norm(np.maximum(x, 1 - x).reshape(6, -1), axis=1)
    before, best = None, np.full(6, np.inf)
    for state in states(attacks.DDN(L2, steps=20), net, x, y, 20):
        radius, distance = state["radius"].numpy(), state["distance"].numpy()
        length = np.linalg.norm((state["x"].numpy() - x).reshape(6, -1), axis=1)
        assert (length <= radius * (1 + 1e-5)).all()
        assert (distance <= best).all()
        if before is not None:
            fooled = attacks.verdicts(net, before["x"].numpy(), y)
            rule = before["radius"].numpy() * np.where(fooled, 0.95, 1.05)
            np.testing.assert_allclose(radius, np.minimum(rule, corner), rtol=1e-5)
        before, best = state, distance


def test_ddn_walks_where_there_is_no_gradient():
    net = affine(np.zeros((2, 2)), [0.0, 0.0])
    x, y = np.full((3, 2), 0.5, "float32"), np.zeros(3, int)
    *_, last = states(attacks.DDN(L2), net, x, y, 3)
    moved = last["x"].numpy() - x
    assert (np.abs(moved).max(-1) > 0.1).all() and np.isinf(last["distance"]).all()
    assert len(np.unique(moved.round(4), axis=0)) == 3  # each image its own way


def test_carlini_wagner_keeps_its_bracket_and_the_box():
    net, x, y = bank.curve()
    attack = attacks.CarliniWagner(L2, search_steps=6, steps=8, step_size=0.1, initial_const=0.1)
    before = None
    for state in states(attack, net, x, y, attack.iterations):
        state = {name: value.numpy() for name, value in state.items()}
        c, low, high = (state[name] for name in ("c", "low", "high"))
        assert (low <= c).all() and (c <= high).all()
        if before is not None:
            assert (low >= before["low"]).all() and (high <= before["high"]).all()
            assert (state["distance"] <= before["distance"]).all()
            assert (np.diff([before["search"], state["search"]], axis=0) <= 1).all()
        before = state
    assert (before["search"] >= 6).all() and np.isfinite(before["distance"]).any()
    best = before["best"][np.isfinite(before["distance"])]
    assert best.min() > 0 and best.max() < 1


def test_carlini_wagner_asks_for_confidence():
    net, x, y = bank.curve()
    x[0] = [0.0, 1.0]  # a corner of the box is no obstacle
    y = attacks.forward(net, x).argmax(-1)
    more = {"search_steps": 5, "steps": 60, "step_size": 0.05, "initial_const": 0.3}
    sure = checked(attacks.CarliniWagner(L2, confidence=0.5, **more), net, x, y)
    plain = checked(attacks.CarliniWagner(L2, **more), net, x, y)
    assert sure.fooled.sum() >= 5
    assert (bank.margins(net, sure.x_adv, y)[sure.fooled] >= 0.5 - 1e-5).all()
    assert (plain.distance < sure.distance)[sure.fooled].all()


def test_carlini_wagner_gives_each_image_its_own_time():
    net, x, y = bank.curve()
    settings_ = {"search_steps": 3, "steps": 40, "step_size": 0.05}
    patient = attacks.CarliniWagner(L2, abort_early=False, **settings_).minimum(net, x, y)
    assert (patient.iterations == 120).all() and (patient.gradients == 120).all()
    hasty = attacks.CarliniWagner(L2, **settings_)
    together = hasty.minimum(net, x, y)
    assert together.iterations.min() < 120
    for n in range(3):
        alone = hasty.minimum(net, x[n : n + 1], y[n : n + 1], index=[n])
        assert alone.iterations[0] == together.iterations[n]
        np.testing.assert_allclose(alone.x_adv[0], together.x_adv[n], atol=1e-6)


@NORMS
def test_fab_never_loses_what_it_has(threat):
    net, x, y = bank.curve()
    best, where = np.full(6, np.inf), None
    for state in states(attacks.FAB(threat), net, x, y, 15):
        distance = state["distance"].numpy()
        assert (distance <= best).all()
        best, where = distance, state["best"].numpy()
    found = np.isfinite(best)
    assert found.all() and attacks.verdicts(net, where, y).all()


def test_fab_restarts_elsewhere():
    net, x, y = bank.curve()
    attack = attacks.FAB(L2, steps=10, restarts=2, targets=2)
    for epsilon, radius in ((np.inf, 0.25), (0.1, 0.05)):
        first, start = (
            attack.origin(a_call(attack, net, x, y, run, epsilon)).numpy() for run in (1, 2)
        )
        np.testing.assert_array_equal(first, x)
        inside = ((start > 0) & (start < 1)).all(-1)
        far = np.linalg.norm(start - x, axis=1)
        np.testing.assert_allclose(far[inside], radius, rtol=1e-4)
        assert inside.sum() >= 3
    once = attacks.FAB(L2, steps=10, targets=2).minimum(net, x, y)
    assert (attack.minimum(net, x, y).distance <= once.distance).all()


# --- properties of all -----------------------------------------------------------------------


@pytest.mark.parametrize("attack", [attacks.FAB, attacks.DeepFool], ids=lambda a: a.__name__)
def test_half_the_steps_never_find_less(attack):
    net, x, y = bank.curve()
    half, full = (attack(L2, steps=steps).minimum(net, x, y).distance for steps in (3, 6))
    assert (full <= half).all()


OUTER = [(1, (8, 8, 1)), (2, (6, 4, 3)), (3, (5,)), (10, (3, 7, 3))]


def pairs():
    """Every attack with every model, of which each attack meets two among the fast tests."""
    for row, attack in enumerate(EACH):
        for column, (classes, shape) in enumerate(OUTER):
            marks = () if (row + column) % 2 else pytest.mark.slow
            name = f"{bank.attack_id(attack)}-{classes}"
            yield pytest.param(attack, classes, shape, marks=marks, id=name)


@pytest.mark.parametrize(("attack", "classes", "shape"), [*pairs()])
def test_classes_and_shapes(attack, classes, shape):
    keras.utils.set_random_seed(classes)
    hidden = keras.layers.Flatten()(inputs := keras.Input(shape))
    hidden = keras.layers.Dense(8, activation="tanh")(hidden)
    net = keras.Model(inputs, keras.layers.Dense(classes)(hidden))
    for count in (1, 5):
        x = bank.images(count, shape=shape)
        y = attacks.forward(net, x).argmax(-1)
        y[1:2] = (y[1:2] + 1) % max(classes, 2)  # wrong as it is
        found = checked(attack, net, x, y)
        assert found.distance[1:2].sum() == 0 and found.gradients[1:2].sum() == 0
        assert found.fooled.mean() >= 0.8


@each
def test_goals(attack):
    net, x, y = linear(30.0)
    goal = (y + 3) % 10
    found = checked(attack, net, x, y, goal)
    free = attack.minimum(net, x, y).distance
    assert found.fooled.sum() >= 5 and (found.distance >= 0.9 * free).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: attacks.DDN(LINF), "`threat` must be tr.threats.L2 for DDN"),
        (lambda: attacks.DeepFool(L1), "`threat` must be tr.threats.L2 or tr.threats.Linf"),
        (lambda: attacks.DDN(L2, steps=0), "`steps` must be an integer >= 1"),
        (lambda: attacks.DDN(L2, gamma=1.0), r"`gamma` must be a number in \(0, 1\)"),
        (lambda: attacks.CarliniWagner(L2, step_size=-1), "`step_size`"),
        (lambda: attacks.CarliniWagner(L2, search_steps=1.5), "`search_steps`"),
        (lambda: attacks.CarliniWagner(L2, initial_const=0), "`initial_const`"),
        (lambda: attacks.CarliniWagner(L2, confidence=np.nan), "`confidence`"),
        (lambda: attacks.DeepFool(L2, candidates=1), "`candidates`"),
        (lambda: attacks.DeepFool(L2, overshoot="0.1"), "`overshoot`"),
        (lambda: attacks.FAB(L2, alpha_max=2), "`alpha_max`"),
        (lambda: attacks.FAB(L2, eta=0.9), "`eta`"),
        (lambda: attacks.FAB(L2, beta=True), "`beta`"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_losses_belong_to_ddn_alone():
    for attack in (attacks.CarliniWagner, attacks.DeepFool, attacks.FAB):
        with pytest.raises(TypeError, match="loss"):
            attack(L2, loss="ce")
