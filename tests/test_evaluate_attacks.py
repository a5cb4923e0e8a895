"""Evaluation with every kind of attack: ensembles, smallest changes, masked models, kills."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tests.bank_evaluate import Recorder, codes, flipper, run
from tfrobust import attacks, evaluate, threats

# Between the exact Linf distances of LIN10, of which one image's is larger.
RADIUS, LEFT = 0.08, 1


def ensemble(threat, **more):
    return attacks.WorstCase(
        [
            attacks.APGD(threat, steps=30),
            attacks.APGD(threat, steps=30, loss="dlr_targeted", targets=9),
            attacks.Square(threat, queries=1500),
        ],
        **more,
    )


# ---- models that hide their gradients -----------------------------------------------------------


def test_quantised_logits_look_robust_to_gradients_and_the_joint_figure_is_right():
    net, x, y = bank.linear(3.0)

    def quantised(images):
        return tf.round(100 * net(images, training=False)) / 100

    threat = threats.Linf(RADIUS)
    scores = run(quantised, (x, y), [attacks.PGD(threat, steps=10), ensemble(threat)])
    assert scores["PGD-10"].count >= 5
    assert scores.joint.count == LEFT
    assert {"no_gradient", "black_box_stronger"} <= codes(scores)


def test_huge_logits_look_robust_to_cross_entropy_and_the_joint_figure_is_right():
    # What is left of the gradient is the rounding of 1 - p: at best it points away from the class.
    net, x, y = bank.linear(30000.0)
    threat = threats.Linf(0.063)
    scores = run(net, (x, y), [attacks.BIM(threat, steps=10), ensemble(threat)])
    assert scores["BIM-10"].count >= LEFT + 2
    assert scores.joint.count == LEFT
    assert "zero_ce_gradient" in codes(scores)


@keras.saving.register_keras_serializable(package="tests")
class Jitter(keras.layers.Layer):
    """Gaussian noise at inference."""

    def __init__(self, size=0.3, **kwargs):
        super().__init__(**kwargs)
        self.size, self.seeds = size, keras.random.SeedGenerator(1)

    def call(self, x):
        return x + self.size * keras.random.normal(tf.shape(x), seed=self.seeds)


def test_random_models_are_flagged_and_averaged():
    net, x, y = bank.linear(30.0)
    noisy = keras.Model(net.inputs, Jitter()(net.outputs[0]))
    threat = threats.Linf(RADIUS)
    rand = attacks.WorstCase([attacks.APGD(threat, steps=20, loss="margin", eot=20)])
    scores = run(noisy, (x, y), [rand])
    assert scores.joint.count == LEFT
    (flag,) = [flag for flag in scores.flags if flag.code == "stochastic_output"]
    assert flag.severity == "note"
    alone = run(noisy, (x, y), [attacks.PGD(threat, steps=2)])
    (flag,) = [flag for flag in alone.flags if flag.code == "stochastic_output"]
    assert flag.severity == "doubt" and "rand" in flag.advice


# ---- doubts -------------------------------------------------------------------------------------


def test_attacks_without_gradients_that_are_stronger_are_flagged():
    net, x, y = flipper()
    white = Recorder(net, lambda i, r: i % 10 == 0, name="PGD-3")
    black = Recorder(net, lambda i, r: i % 10 < 3, name="Square")
    assert "black_box_stronger" not in codes(run(net, (x, y), [white, black]))
    black.white_box = False
    scores = run(net, (x, y), [white, black])
    (flag,) = [flag for flag in scores.flags if flag.code == "black_box_stronger"]
    assert flag.sentence.startswith("6 of 40")  # 11, 12, 21, 22, 31, 32


def test_a_loss_that_still_rises_is_flagged():
    net, x = bank.classifier(10), bank.images(40)
    y = attacks.forward(net, x).argmax(-1)
    short = attacks.PGD(threats.Linf(0.05), steps=3, step_size=0.0005, random_start=False)
    assert "loss_still_rising" in codes(run(net, (x, y), [short]))
    long = attacks.PGD(threats.Linf(0.004), steps=30)
    assert "loss_still_rising" not in codes(run(net, (x, y), [long]))


def test_dynamic_layers_and_second_opinions():
    @keras.saving.register_keras_serializable(package="tests")
    class Busy(keras.layers.Layer):
        declares_dynamic = True

        def call(self, x):
            return x

    net, x, y = bank.linear(30.0)
    busy = keras.Model(net.inputs, Busy()(net.outputs[0]))
    weak = attacks.FGSM(threats.Linf(RADIUS), loss=_nothing)
    scores = run(busy, (x, y), [weak], second_opinion=6)
    assert scores.joint.count == 6
    assert {"dynamic_defence", "black_box_stronger"} <= codes(scores)
    with pytest.raises(ValueError, match="`second_opinion`"):
        run(net, (x, y), [weak], second_opinion=-1)


@keras.saving.register_keras_serializable(package="tests")
def _nothing(logits, y, target=None):
    return tf.reduce_sum(logits, -1) * 0.0


# ---- smallest changes, classes, costs -----------------------------------------------------------


def test_smallest_changes_give_distances_and_the_whole_curve():
    net, x, y = bank.linear(30.0)
    y = y.copy()
    y[0] = 3  # wrong without attack
    exact = np.sort(bank.LINEAR_DISTANCE["linf"][1:])
    grid = [f * d for d in exact for f in (0.98, 1.03)]
    nearest = attacks.FAB(threats.Linf(0.02), targets=9)
    scores = run(net, (x, y), [nearest], eps_grid=grid, curve_attack=nearest)
    (score,) = scores.attacks
    assert score.rate.count == (exact > 0.02).sum()
    assert score.distances.found == score.distances.attacked == 5
    assert score.distances.median == pytest.approx(np.median(exact), rel=0.015)
    assert score.distances.mean == pytest.approx(exact.mean(), rel=0.015)
    assert score.distances.mean_all == pytest.approx(exact.sum() / 6, rel=0.015)
    wanted = [5] + [int((exact > e).sum()) for e in sorted(grid)]
    assert [rate.count for rate in scores.curve.rates] == wanted
    again = evaluate.Scores.from_dict(scores.to_dict())
    assert again.attacks[0].distances == score.distances and again.to_dict() == scores.to_dict()
    assert "median" in str(scores)


def test_counts_by_class_and_by_image():
    net, x, y = flipper()
    attack = Recorder(net, lambda i, r: i % 2 == 0)
    scores = run(net, (x, y), [attack])
    table = np.array(scores.per_class)
    assert table[:, 0].tolist() == [(y == 0).sum(), (y == 1).sum()]
    assert table.sum(0).tolist() == [40, 35, scores.joint.count]
    assert scores.attacks[0].queries is None  # not an attack of ours: nobody counted
    pgd = attacks.PGD(threats.Linf(1e-6), steps=4)
    found = run(net, (x, y), [pgd])
    assert found.attacks[0].gradients == 4 and found.attacks[0].queries == 5
    assert found.records["PGD-4: gradients"].sum() == 4 * 35


# ---- kills within a chunk -----------------------------------------------------------------------


class Dying(attacks.APGD):
    """APGD that fails before a given run."""

    dies_at, made = None, 0

    def result(self, *args, **kwargs):
        if type(self).made == self.dies_at:
            raise KeyboardInterrupt
        type(self).made += 1
        return super().result(*args, **kwargs)


def test_finished_runs_of_an_unfinished_chunk_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tfrobust.evaluate.state._PAUSE", 0.0)
    net, x = bank.classifier(10), bank.images(60)
    y = attacks.forward(net, x).argmax(-1)
    attack = Dying(threats.Linf(0.01), steps=2, restarts=6)
    whole = run(net, (x, y), [attack])
    assert 0 < whole.joint.count < 60 and Dying.made == 6
    Dying.made, Dying.dies_at = 0, 4
    with pytest.raises(KeyboardInterrupt):
        run(net, (x, y), [attack], state=tmp_path / "s")
    Dying.made, Dying.dies_at = 0, None
    again = run(net, (x, y), [attack], state=tmp_path / "s")
    assert Dying.made == 2
    assert again.to_dict() | {"seconds": 0} == whole.to_dict() | {"seconds": 0}
    for name, values in whole.records.items():
        np.testing.assert_array_equal(again.records[name], values)
    Dying.made = 0
