"""Certificates: by hand, against exact answers, never above what attacks leave, after a kill."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import bank
from tests.bank_bounds import mlp, model_of
from tests.test_bounds import by_hand
from tfrobust import attacks, bounds, verify
from tfrobust.bounds import Program
from tfrobust.threats import L1, L2, Linf


def certify(*args, **kwargs):
    return verify.certify(*args, progress=False, **kwargs)


# --- by hand -------------------------------------------------------------------------------------


def test_numbers_worked_by_hand():
    """z = (x, 1 - x), ball 0.2: verified from 0.7 on, broken below; 0.71 - 0.2 is above a half."""
    image = keras.Input((1,))
    net = keras.Model(image, layers.Dense(2)(image))
    net.set_weights([np.array([[1.0, -1.0]]), np.array([0.0, 1.0])])
    x = np.array([[0.9], [0.71], [0.69], [0.4], [0.2]], "float32")
    proof = certify(net, (x, [0, 0, 0, 0, 1]), Linf(0.2), eps_grid=[0.1, 0.3])
    wanted = ["verified", "verified", "broken", "broken", "verified"]
    assert proof.status.tolist() == wanted and proof.undecided == 0
    counts = proof.clean.count, proof.attacked.count, proof.verified.count
    assert counts == (4, 3, 3)
    np.testing.assert_allclose(proof.records["margin"][:2], [0.4, 0.02], atol=1e-6)
    assert proof.curve.epsilons == (0.0, 0.1, 0.2, 0.3)
    assert [rate.count for rate in proof.curve.rates] == [4, 4, 3, 1]
    stages = [(s.name, s.seen, s.verified, s.broken) for s in proof.stages]
    assert stages[:3] == [("clean", 5, 0, 1), ("ibp", 4, 3, 0), ("PGD-40", 1, 0, 1)]


def test_what_is_printed_and_written():
    net, x, y = bank.linear()
    proof = certify(net, (x, y), Linf(0.02), "ibp", eps_grid=[0.01])
    again = verify.Certificate.from_dict(json.loads(json.dumps(proof.to_dict())))
    assert again == proof
    text = str(proof)
    assert "verified" in text and "6 images" in text and "verified at 0.01" in text
    bare = certify(net, (x, y), Linf(0.02), "ibp", attacks=[])
    assert bare.attacked is None and "not run" in str(bare)
    assert bare.undecided == bare.clean.count - bare.verified.count
    assert verify.Certificate.from_dict(bare.to_dict()) == bare


# --- against attacks -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf(0.003), L2(0.02), L1(0.03)], ids=repr)
def test_no_attack_of_the_bank_breaks_what_is_verified(threat):
    """And status, rates and records say the same: verified <= attacked <= clean, image by image."""
    net, x = bank.classifier(), bank.images(16)
    y = attacks.forward(net, x).argmax(-1)
    y[:2] = (y[:2] + 1) % 4
    proof = certify(net, (x, y), threat, "crown-ibp", eps_grid=[threat.epsilon / 2])
    verified = proof.status == "verified"
    assert (proof.status[:2] == "broken").all() and proof.clean.count == 14
    assert verified.any(), proof
    assert proof.verified.count <= proof.attacked.count <= proof.clean.count
    counts = [rate.count for rate in proof.curve.rates]
    assert counts == sorted(counts, reverse=True) and counts[-1] == proof.verified.count
    for attack in bank.ATTACKS:
        if attack.threat.norm == threat.norm and bank.fitting(attack, 4):
            x_adv = attack(net, x, y, epsilon=threat.epsilon)
            near = threat.distance(tf.constant(x_adv), tf.constant(x)) <= threat.epsilon + 1e-6
            hit = attacks.verdicts(net, x_adv, y) & near.numpy() & verified
            assert not hit.any(), (bank.attack_id(attack), np.flatnonzero(hit), str(proof))


@pytest.mark.slow
def test_dearer_methods_verify_more_and_keep_what_cheaper_ones_did():
    net, x, _ = mlp(6, (4, 10, 10, 3))
    x = bank.images(24, (4,))
    y = attacks.forward(net, x).argmax(-1)
    verified = {}
    for method in ("ibp", "crown-ibp", "crown", "exact"):
        proof = certify(net, (x, y), Linf(0.06), method)
        verified[method] = proof.status == "verified"
    assert (verified["ibp"] <= verified["crown-ibp"]).all()
    assert (verified["crown-ibp"] <= verified["crown"]).all()
    assert (verified["crown"] <= verified["exact"]).all()
    sums = [v.sum() for v in verified.values()]
    assert sums[0] < sums[1] <= sums[2] <= sums[3], sums


# --- data, memory, resume ------------------------------------------------------------------------


def test_chunks_streams_and_arrays_agree():
    net, x, y = bank.linear()
    x, y = np.tile(x, (4, 1, 1, 1)), np.tile(y, 4)
    whole = certify(net, (x, y), Linf(0.03), "ibp")
    parts = certify(net, (x, y), Linf(0.03), "ibp", batch_size=7)
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    streamed = certify(net, stream, Linf(0.03), "ibp", batch_size=7, max_examples=20)
    assert (whole.status == parts.status).all() and (whole.status[:20] == streamed.status).all()
    assert [(s.seen, s.verified, s.broken) for s in whole.stages] == [
        (s.seen, s.verified, s.broken) for s in parts.stages
    ]


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    net, x, y = bank.linear()
    x, y = np.tile(x, (4, 1, 1, 1)), np.tile(y, 4)
    options = {"eps_grid": [0.01, 0.05], "batch_size": 8, "state": tmp_path / "run.state"}
    options["attacks"] = []
    wanted = certify(net, (x, y), Linf(0.03), "crown-ibp", **{**options, "state": None})
    calls, original = [], verify.protocol.class_margins

    def killed(*args, **kwargs):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(verify.protocol, "class_margins", killed)
    with pytest.raises(KeyboardInterrupt):
        certify(net, (x, y), Linf(0.03), "crown-ibp", **options)
    monkeypatch.setattr(verify.protocol, "class_margins", original)
    proof = certify(net, (x, y), Linf(0.03), "crown-ibp", **options)
    for name, values in wanted.records.items():
        np.testing.assert_array_equal(proof.records[name], values)
    for change in ({"x": 1 - x}, {"threat": Linf(0.04)}, {"method": "ibp"}):
        given = {"x": x, "threat": Linf(0.03), "method": "crown-ibp", **change}
        with pytest.raises(ValueError, match="belongs to another evaluation"):
            certify(net, (given["x"], y), given["threat"], given["method"], **options)


def test_memory_is_bounded_by_chunks(monkeypatch):
    """No call sees more images than its coefficients may take."""
    net, x, y = bank.linear()
    method = bounds.METHODS["crown-ibp"]
    fake = types.SimpleNamespace(size=2**22, classes=10)
    assert method.rows(fake) == 1 and method.rows(Program(net)) >= 256
    seen, handed, original = [], [], bounds.buckets.apply

    def watched(function, *arrays, most=None):
        def small(*rows):
            seen.append(len(rows[0]))
            return function(*rows)

        handed.append(most)
        return original(small, *arrays, most=most)

    monkeypatch.setattr(bounds.buckets, "apply", watched)
    monkeypatch.setattr(bounds.methods, "FLOATS", 16 * 9 * 64)  # of 9 rows of 64 pixels
    many = np.tile(x, (8, 1, 1, 1)), np.tile(y, 8)
    found = bounds.margins(net, *many, Linf(0.1), method="crown-ibp")
    assert handed == [16] and seen == [16, 16, 16] and len(found) == 48
    bounds.margins(net, *many, Linf(0.1))  # of 4 x 64 floats
    assert handed == [16, 36] and seen[3:] == [32, 16]


# --- what is refused -----------------------------------------------------------------------------


def _with(layer):
    return model_of(lambda x: layers.Dense(3)(layers.Flatten()(layer(x))), (4, 4, 1))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"threat": 0.1}, TypeError, "`threat` must be a tr.threats.Threat"),
        ({"method": "crown_ibp"}, ValueError, "`method` must be 'auto', one of ibp"),
        ({"method": []}, ValueError, "`method` must be 'auto'"),
        ({"method": None}, ValueError, "`method` must be 'auto'.*method=None"),
        ({"method": [["ibp"]]}, ValueError, "`method` must be 'auto'"),
        ({"attacks": 5}, TypeError, "`attacks` must hold tr.attacks.Attack"),
        ({"time_limit": "a"}, ValueError, "`time_limit` must be a number of seconds > 0"),
        ({"attacks": [attacks.PGD(Linf(0.2))]}, ValueError, "`attacks` must attack Linf"),
        ({"attacks": ["pgd"]}, TypeError, "`attacks` must hold tr.attacks.Attack"),
        ({"eps_grid": [-0.1]}, ValueError, "`eps_grid` must hold finite radii >= 0"),
        ({"eps_grid": 0.1}, TypeError, "`eps_grid` must be a list"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"time_limit": 0}, ValueError, "`time_limit` must be a number of seconds > 0"),
        ({"data": (np.full((2, 4, 4, 1), 2.0), [0, 1])}, ValueError, "`x` must lie in"),
        ({"data": (np.zeros((2, 5, 4, 1)), [0, 1])}, ValueError, "`x` must have shape"),
        ({"model": keras.Sequential()}, TypeError, "tr.models.prepare"),
        ({"model": lambda x: x}, TypeError, "functional keras.Model"),
        ({"layer": layers.LayerNormalization(name="odd")}, TypeError, "layer 'odd'"),
        ({"layer": layers.Dense(2, dtype="mixed_float16", name="odd")}, ValueError, "'odd'"),
        (
            {"layer": lambda x: layers.BatchNormalization(name="odd")(x, training=True)},
            ValueError,
            "'odd'.*called with training=True",
        ),
        (
            {"layer": lambda x: layers.Dropout(0.5, name="odd")(x, training=True)},
            ValueError,
            "'odd'.*called with training=True",
        ),
        ({"layer": layers.Activation("tanh", name="odd"), "method": "exact"}, TypeError, "'odd'"),
        ({"threat": L2(0.1), "method": "exact"}, ValueError, "must be a tr.threats.Linf"),
        ({"layer": layers.Dense(900), "method": "exact"}, ValueError, "must be tiny"),
    ],
)
def test_bad_input(change, error, match):
    layer = change.pop("layer", None)
    given = {
        "model": _with(layer or layers.ReLU()),
        "data": (bank.images(2, (4, 4, 1)), [0, 1]),
        "threat": Linf(0.1),
        **change,
    }
    with pytest.raises(error, match=match) as caught:
        certify(**given)
    assert "\n" not in str(caught.value)


def test_a_radius_below_zero_is_refused():
    with pytest.raises(ValueError, match="`epsilon` must be finite and >= 0"):
        certify(by_hand()[0], (np.zeros((1, 2)), [0]), Linf(-0.1))
