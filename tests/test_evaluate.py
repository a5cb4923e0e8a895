"""Evaluation: closed forms, who is attacked, streams, transfer, bad input."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tests.bank_evaluate import Recorder, codes, flipper, run
from tfrobust import attacks, evaluate, threats

# ---- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, n, low, high",  # Wilson intervals as published by Newcombe (1998), table I
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(count, n, low, high):
    assert evaluate.wilson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert evaluate.wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(
    "norm, kind, loss", [("linf", threats.Linf, "margin"), ("l2", threats.L2, "dlr")]
)
def test_curve_of_a_linear_model_counts_its_exact_distances(norm, kind, loss):
    net, x, y = bank.linear(30.0)
    exact = np.sort(bank.LINEAR_DISTANCE[norm])
    grid = [f * d for d in exact for f in (0.98, 1.03)]
    attack = attacks.PGD(kind(grid[-1]), steps=100, step_size=0.1 * grid[-1], loss=loss)
    scores = run(net, (x, y), [attack], eps_grid=grid)
    expected = [6] + [int((exact > e).sum()) for e in sorted(grid)]
    assert [rate.count for rate in scores.curve.rates] == expected
    eps, values = np.array([0, *sorted(grid)]), np.array(expected) / 6
    assert scores.curve.auc == pytest.approx(np.trapezoid(values, eps) / eps[-1])


def test_worst_case_is_per_image_and_below_each_attack():
    net, x, y = flipper()
    even = Recorder(net, lambda i, r: i % 2 == 0, name="PGD-3")
    third = Recorder(net, lambda i, r: i % 3 == 0, name="APGD-CE")
    more = Recorder(net, lambda i, r: i == 7, name="APGD-T")
    scores = run(net, (x, y), [even, third, more], batch_size=16)
    right = np.arange(5, 40)
    assert scores.clean == evaluate.Rate(35, 40)
    assert scores["PGD-3"].count == sum(right % 2 != 0)
    assert scores["APGD-CE"].count == sum(right % 3 != 0)
    assert scores.families["APGD"].count == sum((right % 3 != 0) & (right != 7))
    assert scores.joint.count == sum((right % 2 != 0) & (right % 3 != 0) & (right != 7))
    assert scores.records["APGD-T"].sum() == 34 and not scores.records["APGD-T"][7]


def test_only_rows_still_right_are_attacked_with_their_global_index():
    net, x, y = flipper()
    attack = Recorder(net, lambda i, r: i % 4 == r, runs=3)
    scores = run(net, (x, y), [attack], batch_size=16)
    seen = [(r, set(index)) for r, index, _ in attack.calls]
    right = set(range(5, 40))
    for chunk in range(3):
        rows = right & set(range(16 * chunk, 16 * chunk + 16))
        for number in range(3):
            left = {i for i in rows if i % 4 >= number}
            assert seen[3 * chunk + number] == (number, left)
    assert scores["PGD-3"].count == sum(1 for i in right if i % 4 == 3)


def test_cascade_has_the_same_worst_case_and_attacks_survivors():
    net, x, y = flipper()

    def pair():
        return [
            Recorder(net, lambda i, r: i % 2 == 0, name="PGD-3"),
            Recorder(net, lambda i, r: i % 3 == 0, name="APGD-CE"),
        ]

    each, one = pair(), pair()
    plain, cascade = run(net, (x, y), each), run(net, (x, y), one, cascade=True)
    assert plain.joint == cascade.joint == cascade["APGD-CE"]
    assert plain["APGD-CE"].count > cascade["APGD-CE"].count
    assert set(one[1].calls[0][1]) == {i for i in range(5, 40) if i % 2}
    assert set(each[1].calls[0][1]) == set(range(5, 40))


def test_success_is_judged_afresh_and_illegal_points_never_count():
    net, x, y = flipper()
    far = Recorder(net, lambda i, r: True, threat=threats.Linf(0.01))
    scores = run(net, (x, y), [far])
    near = 2 * np.abs(x[5:, 0] - 0.5) <= 0.01 + 1e-6
    assert scores["PGD-3"].count == 35 - near.sum()
    assert scores.attacks[0].illegal == 35 - near.sum()
    assert "illegal_points" in codes(scores)
    lazy = Recorder(net, lambda i, r: False)
    assert run(net, (x, y), [lazy])["PGD-3"].count == 35

    class Broken(Recorder):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs) * np.nan

    assert run(net, (x, y), [Broken(net, lambda i, r: True)])["PGD-3"].count == 35


def test_ties_count_as_robust():
    inputs = keras.Input((1,))
    net = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="zeros")(inputs))
    x, y = np.full((20, 1), 0.5, "float32"), np.zeros(20, int)
    scores = run(net, (x, y), [attacks.PGD(threats.Linf(0.3), steps=2)])
    assert scores.joint.count == scores.clean.count == 20
    assert "no_gradient" in codes(scores)


def test_curve_is_monotone_and_meets_the_attacks_own_figure():
    net, x = bank.classifier(), bank.images(48)
    y = attacks.forward(net, x).argmax(-1)
    attack = attacks.PGD(threats.Linf(0.1), steps=5, restarts=2)
    scores = run(net, (x, y), [attack], eps_grid=[0.2, 0.1, 0.05, 0.0])
    assert scores.curve.epsilons == (0.0, 0.05, 0.1, 0.2)
    values = scores.curve.accuracies
    assert values[0] == 1.0 and all(a >= b for a, b in zip(values, values[1:], strict=False))
    assert scores.curve.rates[2].count <= scores[attack.name].count
    assert scores.joint.count <= scores[attack.name].count


def test_real_attacks_do_not_depend_on_the_chunks():
    net, x = bank.classifier(), bank.images(50)
    y = attacks.forward(net, x).argmax(-1)
    threat = threats.Linf(0.02)
    table = [attacks.FGSM(threat), attacks.PGD(threat, steps=4, restarts=2)]
    small, large = (run(net, (x, y), table, batch_size=size) for size in (17, 256))
    assert 0 < small.joint.count < 50
    for name in small.records:
        np.testing.assert_array_equal(small.records[name], large.records[name])


def test_single_logit_models_and_callables():
    inputs = keras.Input((1,))
    net = keras.Model(inputs, keras.layers.Dense(1, name="logits")(inputs))
    net.get_layer("logits").set_weights([np.array([[8.0]]), np.array([-4.0])])
    _, x, y = flipper()
    attack = attacks.PGD(threats.Linf(0.1), steps=3)
    scores = run(net, (x, y), [attack])
    other = run(lambda images: 8.0 * images - 4.0, (x, y), [attack])
    near = np.abs(x[5:, 0] - 0.5) < 0.1
    assert scores.classes == other.classes == 2
    assert scores.joint.count == other.joint.count == 35 - near.sum()


# ---- data ---------------------------------------------------------------------------------------


class Pairs(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.x[7 * i : 7 * i + 7], self.y[7 * i : 7 * i + 7]


def test_every_kind_of_stream_gives_the_same_scores():
    net, x, y = flipper()

    def batches():
        for i in range(0, 40, 9):
            yield x[i : i + 9], y[i : i + 9], np.ones(len(x[i : i + 9]))

    streams = [
        (x, y),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(11),
        Pairs(x, y),
        batches(),
        [(x[:13], y[:13]), (x[13:], y[13:, None])],
    ]
    found = [run(net, s, [Recorder(net, lambda i, r: i % 3 == 0)], batch_size=16) for s in streams]
    for scores in found[1:]:
        assert scores.to_dict() | {"seconds": 0} == found[0].to_dict() | {"seconds": 0}
    assert run(net, Pairs(x, y), max_examples=15).n == 15


def test_streams_are_not_held():
    net, x, y = flipper()
    alive = []

    def batches():
        for number in range(30):
            alive.append(number)
            yield x[:8], y[:8]

    source, seen = batches(), []
    attack = Recorder(net, lambda i, r: seen.append(alive[-1]) or False)
    run(net, source, [attack], batch_size=8)
    assert (
        max(n - i // 8 for n, i in zip(seen, [i for c in attack.calls for i in c[1]], strict=True))
        <= 1
    )


# ---- transfer -----------------------------------------------------------------------------------


def test_transfer_to_the_twin_itself_is_the_white_box_result():
    net, x = bank.classifier(), bank.images(40)
    y = attacks.forward(net, x).argmax(-1)
    y[:4] = (y[:4] + 1) % 4
    attack = attacks.PGD(threats.Linf(0.1), steps=5)
    x_adv = attack(net, x, y)
    moved = evaluate.transfer(lambda z: attacks.forward(net, z), x_adv, y, x, attack=attack.name)
    assert moved.robust == run(net, (x, y), [attack]).joint
    assert moved.clean == evaluate.Rate(36, 40) and moved.kind == "transfer"
    assert evaluate.Transfer.from_dict(json.loads(json.dumps(moved.to_dict()))) == moved
    assert "transfer of PGD-5 crafted on Keras twin" in str(moved)


# ---- bad input ----------------------------------------------------------------------------------


def spoiled():
    net, x, y = flipper()
    x = x.copy()

    def nan_for_ones(z):
        logits = net(z, training=False)
        return tf.where(z > 0.9, np.nan, logits)

    return nan_for_ones, x, y


def test_nan_logits_name_the_batch():
    model, x, y = spoiled()
    with pytest.raises(ValueError, match=r"batch 2 \(example 36\)"):
        run(model, (x, y), batch_size=16)


def bad_inputs():
    net, x, y = flipper()
    pgd = [attacks.PGD(threats.Linf(0.1), steps=1)]
    soft = keras.Model(net.inputs, keras.layers.Softmax()(net.outputs[0]))
    return [
        ("pixels", lambda: run(net, (x * 2, y)), ValueError, r"`x` must lie in \[0, 1\]"),
        ("uint8", lambda: run(net, ((x * 255).astype("uint8"), y)), TypeError, "divide uint8"),
        ("one-hot", lambda: run(net, (x, np.eye(2)[y])), ValueError, "argmax"),
        ("range", lambda: run(net, (x, y + 1)), ValueError, "labels from 1 to 2"),
        ("length", lambda: run(net, (x, y[:-1])), ValueError, "one label for each"),
        ("empty", lambda: run(net, (x[:0], y[:0])), ValueError, "at least one example"),
        ("empty stream", lambda: run(net, iter(())), ValueError, "at least one example"),
        ("late", lambda: run(net, [(x, y), (x, y), (x - 1, y)]), ValueError, "of batch 2"),
        ("no pair", lambda: run(net, [x, x, x]), TypeError, "pairs"),
        ("no data", lambda: run(net, 3), TypeError, "Received: int"),
        ("shape", lambda: run(net, (np.ones((4, 2)), y[:4])), ValueError, "the model's input"),
        ("model", lambda: run("net", (x, y)), TypeError, "`model`"),
        ("softmax", lambda: run(soft, (x, y)), ValueError, "tr.models.prepare"),
        ("attack", lambda: run(net, (x, y), ["PGD"]), TypeError, "Received: str"),
        ("batch", lambda: run(net, (x, y), batch_size=0), ValueError, "`batch_size`"),
        ("most", lambda: run(net, (x, y), max_examples=0.5), ValueError, "`max_examples`"),
        ("grey", lambda: run(net, (x, y), pgd, eps_grid=[8]), ValueError, "8/255"),
        ("grid", lambda: run(net, (x, y), pgd, eps_grid=[]), ValueError, "above 0"),
        ("curve", lambda: run(net, (x, y), eps_grid=[0.1]), ValueError, "needs an attack"),
        ("rows", lambda: evaluate.transfer(lambda z: z[0], x, y), ValueError, "`predict`"),
        ("count", lambda: evaluate.wilson(3, 2), ValueError, "`count`"),
    ]


@pytest.mark.parametrize("case", range(21))
def test_bad_input(case):
    table = bad_inputs()
    assert len(table) == 21
    _, call, error, match = table[case]
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
