"""Complete verification: against enumeration, inside `certify`, after a kill, what it refuses."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import optimize

from tests import bank
from tests.bank_bounds import mlp, model_of, relaxed
from tests.test_bounds import by_hand
from tests.test_verify import certify
from tfrobust import attacks, bounds, verify
from tfrobust.bounds import Box, Program, Region
from tfrobust.threats import Linf
from tfrobust.verify import complete
from tfrobust.verify.complete import Problem, exact


def enumerated(net, box, y):
    """The least margins by a linear program for every pattern of a dense ReLU net, in float64."""
    weights = [w.astype(float) for w in net.get_weights()]
    low, high = (bound.numpy()[0].astype(float) for bound in box)
    hidden = [w.shape[1] for w in weights[:-2:2]]
    best = np.full(weights[-1].shape, np.inf)
    for pattern in itertools.product((0.0, 1.0), repeat=sum(hidden)):
        gates = np.split(np.array(pattern), np.cumsum(hidden)[:-1])
        a, b = np.eye(len(low)), np.zeros(len(low))
        rows, ends = [], []
        for kernel, bias, gate in zip(weights[:-2:2], weights[1:-2:2], gates, strict=True):
            a, b = kernel.T @ a, kernel.T @ b + bias
            sign = 1 - 2 * gate  # z <= 0 where it is off, -z <= 0 where it is on
            rows.append(sign[:, None] * a)
            ends.append(-sign * b)
            a, b = gate[:, None] * a, gate * b
        a, b = weights[-2].T @ a, weights[-2].T @ b + weights[-1]
        for k in set(range(len(b))) - {y}:
            found = optimize.linprog(
                a[y] - a[k],
                np.concatenate(rows),
                np.concatenate(ends),
                bounds=np.stack([low, high], -1),
                method="highs",
            )
            if found.status == 0:
                best[k] = min(best[k], found.fun + b[y] - b[k])
    return best


@pytest.mark.parametrize("seed", [0, 1])
def test_milp_is_enumeration_and_bounds_stay_below_it(seed):
    """IBP <= best-of <= the minimum <= what attacks find."""
    net, x, y = mlp(seed, (3, 3, 3, 3))
    threat = Linf(0.3)
    for row in range(2):
        point, label = x[row : row + 1], int(y[row])
        box = Box(*threat.box(tf.constant(point)))
        wanted = enumerated(net, box, label)
        problem = Problem(Program(net), box)
        others = [k for k in range(3) if k != label]
        found = [problem.least(label, [k]) for k in others]
        np.testing.assert_allclose([f.margin for f in found], wanted[others], atol=1e-6)
        whole = exact(net, point[0], label, threat)
        assert whole.solved and whole.margin == min(f.margin for f in found)
        reached = -bank.margins(net, whole.x[None], [label])[0]
        np.testing.assert_allclose(reached, whole.margin, atol=1e-4)
        region = Region.around(threat, tf.constant(point))
        ibp = relaxed(Program(net), region, [label], "ibp")[0, others]
        best = bounds.METHODS["crown"](Program(net), region, [label]).numpy()[0, others]
        slack = 1e-5 * max(1, np.abs(ibp).max())
        assert (ibp <= best + slack).all() and (best <= wanted[others] + slack).all()
        x_adv = attacks.PGD(threat, 20, loss="margin", restarts=2)(net, point, [label])
        assert -bank.margins(net, x_adv, [label])[0] >= whole.margin - 1e-5


def _tiny(x):
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(2, 2, strides=2)(x)))
    y = layers.Add()([layers.AveragePooling2D(2)(x), layers.Conv2D(2, 1, strides=2)(x)])
    return layers.Dense(3)(layers.Dense(4, "relu")(layers.Flatten()(y)))


def test_exact_knows_convolutions_and_joins():
    net = model_of(_tiny, (4, 4, 1))
    x, threat = bank.images(3, (4, 4, 1)), Linf(0.2)
    y = attacks.forward(net, x).argmax(-1)
    for point, label in zip(x, y, strict=True):
        found = exact(net, point, label, threat)
        region = Region.around(threat, tf.constant(point[None]))
        best = relaxed(Program(net), region, [label], "full adaptive")[0]
        best = np.delete(best, label).min()
        reached = -bank.margins(net, found.x[None], [label])[0]
        assert best <= found.margin + 1e-5
        np.testing.assert_allclose(reached, found.margin, atol=1e-4)


def test_exact_is_the_closed_form_where_nothing_is_bent():
    """A linear net, and one whose ReLUs are all on or off: row . c + b - |row| . r."""
    net, x, y = mlp(0)
    net.layers[1].bias.assign(net.layers[1].bias + [9.0, -9.0] * 4)
    net.layers[2].bias.assign(net.layers[2].bias + [99.0, -99.0] * 4)
    inputs = keras.Input((4,))
    straight = keras.Model(inputs, layers.Dense(3)(layers.Dense(5)(inputs)))
    for model in (net, straight):
        box = Box(*Linf(0.05).box(x))
        with tf.GradientTape() as tape:
            centre = box.centre
            tape.watch(centre)
            logits = model(centre)
        jacobian, logits = tape.batch_jacobian(logits, centre).numpy(), logits.numpy()
        assert Problem(Program(model), Box(box.lower[:1], box.upper[:1])).open == 0
        for n, label in enumerate(y[:3]):
            rows = jacobian[n, label] - jacobian[n]
            margins = logits[n, label] - logits[n] - np.abs(rows) @ box.radius.numpy()[n]
            found = exact(model, x[n], label, Linf(0.05))
            wanted = np.delete(margins, label).min()
            np.testing.assert_allclose(found.margin, wanted, atol=1e-5 * np.abs(logits).max())


def test_exact_margins_never_grow_with_the_radius():
    net, x, y = mlp(1, (3, 5, 5, 3))
    for n in range(3):
        margins = [exact(net, x[n], y[n], Linf(e)).margin for e in (0.0, 0.05, 0.1, 0.2, 0.4)]
        assert (np.diff(margins) <= 1e-6).all() and margins[-1] < margins[0]
        np.testing.assert_allclose(margins[0], -bank.margins(net, x[n : n + 1], y[n : n + 1])[0],
                                   atol=1e-4)  # fmt: skip


def _no_bias(self, rule, number, sources, original=Problem._affine):
    before = len(self._ends)
    original(self, rule, number, sources)
    self._ends[before:] = [(0.0, 0.0)] * (len(self._ends) - before)


def _always_on(self, number, source, lower, upper, low, high, gates, original=Problem._relu):
    original(self, number, source, np.maximum(lower, 0.0), upper, low, high, gates)


@pytest.mark.parametrize(("name", "wrong"), [("_affine", _no_bias), ("_relu", _always_on)])
def test_wrong_constraints_are_noticed(name, wrong, monkeypatch):
    monkeypatch.setattr(Problem, name, wrong)
    with pytest.raises(AssertionError):
        test_milp_is_enumeration_and_bounds_stay_below_it(0)


def test_exact_decides_all_and_its_radius_grounds_attacks():
    """Just below the exact radius, by bisection, no attack succeeds; above it the witness does."""
    net, x, _ = mlp(0, (3, 6, 6, 3))
    y = attacks.forward(net, x).argmax(-1)
    proof = certify(net, (x, y), Linf(0.3), ["ibp", "exact"])
    assert proof.undecided == 0 and 0 < proof.verified.count < 6
    point, label = x[5:], int(y[5])
    low, high = 0.0, 0.3
    for _ in range(12):
        middle = 0.5 * (low + high)
        safe = exact(net, point[0], label, Linf(middle)).margin > 0
        low, high = (middle, high) if safe else (low, middle)
    attack = attacks.PGD(Linf(1.0), 20, loss="margin", restarts=3)
    assert not attacks.verdicts(net, attack(net, point, [label], epsilon=low), [label])[0]
    found = attacks.DeepFool(Linf(1.0)).minimum(net, point, np.array([label]))
    assert not found.fooled[0] or found.distance[0] >= low - 1e-4
    region = Region.around(Linf(high), tf.constant(point))
    assert np.delete(relaxed(Program(net), region, [label], "full zero")[0], label).min() <= 0


def test_exact_leaves_room_for_rounding():
    """z = (1e4, 1e4 + x / 100): the margin is above 1e-4, but float32 sees a tie at x = 0.0101."""
    image = keras.Input((1,))
    net = keras.Model(image, layers.Dense(2)(image))
    net.set_weights([np.array([[0.0, 1e-2]]), np.array([1e4, 1e4])])
    assert attacks.forward(net, np.array([[0.0101]], "float32")).argmax() == 0
    for method in (["ibp", "exact"], ["exact"]):
        proof = certify(net, ([[0.5]], [1]), Linf(0.49), method, attacks=[])
        assert proof.verified.count == 0, (method, str(proof))


def test_the_record_has_the_margin_that_was_solved_for():
    net, x, y = mlp(0, (3, 6, 6, 3))
    proof = certify(net, (x, y), Linf(0.3), ["ibp", "exact"], attacks=[])
    rows = np.flatnonzero(proof.records["stage"] == 2)
    rows = rows[proof.records["status"][rows] == verify.STATUS.index("verified")]
    assert len(rows)
    for row in rows:
        found = exact(net, x[row], int(y[row]), Linf(0.3))
        np.testing.assert_allclose(proof.records["margin"][row], found.margin, atol=1e-4)


def test_the_curve_is_that_of_complete_verification():
    net, x, y = mlp(0, (3, 6, 6, 3))
    y = attacks.forward(net, x).argmax(-1)
    curve = certify(net, (x, y), Linf(0.15), ["exact"], attacks=[], eps_grid=[0.05, 0.3]).curve
    for epsilon, rate in zip(curve.epsilons[1:], curve.rates[1:], strict=True):
        assert rate.count == sum(
            exact(net, x[n], y[n], Linf(epsilon)).margin > 1e-3 for n in range(6)
        )
    assert 0 < curve.rates[-1].count < 6


def test_complete_verification_is_kept_image_by_image(tmp_path, monkeypatch):
    """Killed at the third image and on the curve, it goes on there, and says where it is."""
    net, x, y = mlp(0, (3, 6, 6, 3))
    y = attacks.forward(net, x).argmax(-1)
    given = net, (x, y), Linf(0.15), ["exact"]
    options = {"attacks": [], "eps_grid": [0.3], "state": tmp_path / "run.state"}
    wanted = certify(*given, **{**options, "state": None})
    monkeypatch.setattr("tfrobust.evaluate.state._PAUSE", 0.0)
    calls, told, least, tell = [], [], Problem.least, verify.protocol._Chunk._tell

    def killed(self, *args):
        calls.append(args[-1])
        if len(calls) in (3, 8):
            raise KeyboardInterrupt
        return least(self, *args)

    monkeypatch.setattr(Problem, "least", killed)
    monkeypatch.setattr(verify.protocol._Chunk, "_tell", lambda *a: told.append(a[1:]) or tell(*a))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            certify(*given, **options)
    proof = certify(*given, **options)
    for name, values in wanted.records.items():
        np.testing.assert_array_equal(proof.records[name], values)
    verified = wanted.verified.count
    assert len(calls) == 6 + verified + 2
    assert max(calls) < 60  # what building took is off the limit
    shares = [share for share, what in told if what.startswith("exact, ")]
    assert len(shares) == 6 + 1 and shares[:3] == sorted(shares[:3])


def test_time_runs_out_without_a_wrong_answer():
    net, x, y = mlp(0, (4, 12, 12, 3))
    found = exact(net, x[0], int(y[0]), Linf(0.5), time_limit=1e-3)
    truth = exact(net, x[0], int(y[0]), Linf(0.5))
    assert truth.solved and found.margin <= truth.margin + 1e-6


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"time_limit": "a"}, ValueError, "`time_limit` must be a number of seconds > 0"),
        ({"time_limit": 0}, ValueError, "`time_limit` must be a number of seconds > 0"),
        ({"binaries": 2.5}, ValueError, "`binaries` must be an integer >= 0"),
        ({"threat": 0.1}, TypeError, "`threat` must be a tr.threats.Linf"),
        ({"epsilon": -1}, ValueError, "`epsilon` must be finite and >= 0"),
        ({"x": [0.5]}, ValueError, "`x` must have shape"),
        ({"y": 2}, ValueError, "`y` must lie in"),
    ],
)
def test_bad_input_of_complete_verification(change, error, match):
    net, x = by_hand()
    given = {"x": x[0], "y": 0, "threat": Linf(0.1), **change}
    with pytest.raises(error, match=match) as caught:
        exact(net, **given)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="`method` must be one of ibp"):
        bounds.margins(net, x, [0], Linf(0.1), method=None)


def test_too_many_open_neurons_are_refused_and_left_undecided(monkeypatch):
    net, x, y = mlp(0, (4, 12, 12, 3))
    with pytest.raises(ValueError, match="at most 2 neurons"):
        exact(net, x[0], int(y[0]), Linf(0.5), binaries=2)
    monkeypatch.setattr(complete, "BINARIES", 2)
    proof = certify(net, (x, y), Linf(0.5), ["ibp", "exact"], attacks=[])
    assert proof.undecided == proof.attacked.count - proof.verified.count
