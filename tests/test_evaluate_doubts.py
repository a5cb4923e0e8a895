"""What an evaluation doubts, and how its scores are printed."""

import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tests.bank_evaluate import Recorder, codes, flipper, run
from tfrobust import attacks, evaluate, threats

# ---- doubts -------------------------------------------------------------------------------------


def images_and_labels(net, count=40):
    x = bank.images(count)
    return x, attacks.forward(net, x).argmax(-1)


def test_probabilities_are_flagged():
    net = bank.classifier()
    data = images_and_labels(net)
    assert "probabilities" in codes(run(lambda x: tf.nn.softmax(net(x)), data))
    assert "probabilities" not in codes(run(net, data))
    with pytest.raises(ValueError, match="its last layer 'softmax.*' applies softmax"):
        run(keras.Model(net.inputs, keras.ops.softmax(net.outputs[0])), data)


def test_random_outputs_are_flagged():
    net = bank.classifier()

    def noisy(x):
        return net(x, training=False) + tf.random.normal((tf.shape(x)[0], 4))

    assert "stochastic_output" in codes(run(noisy, images_and_labels(net)))


def test_saturated_and_quantised_logits_are_flagged():
    net, x, y = bank.linear(1000.0)
    assert "zero_ce_gradient" in codes(run(net, (x, y)))
    net, x, y = bank.linear(1.0)
    assert "zero_ce_gradient" not in codes(run(net, (x, y)))
    assert "no_gradient" in codes(run(lambda z: tf.round(100 * net(z)) / 100, (x, y)))


def test_batch_statistics_are_flagged():
    net = bank.classifier()

    def leaky(x):
        z = net(x, training=False)
        return z - tf.reduce_mean(z, 0, keepdims=True)

    assert "batch_dependent" in codes(run(leaky, images_and_labels(net)))


def test_flags_of_weak_attacks_and_of_an_early_end_of_the_curve():
    net, x, y = flipper()

    def weak(name, share):
        return Recorder(net, lambda i, r: i % 10 < share, name=name)

    scores = run(net, (x, y), [weak("FGSM", 8), weak("PGD-3", 3), weak("APGD-T", 5)])
    assert {"single_step_stronger", "pgd_above_apgd"} <= codes(scores)
    assert "no_strong_attack" not in codes(scores)
    alone = run(net, (x, y), [weak("PGD-3", 0)], eps_grid=[0.1])
    assert {"no_strong_attack", "curve_above_chance", "few_images"} <= codes(alone)
    assert "masked_gradients" in codes(run(net, (x, y), [weak("PGD-3", 0)], eps_grid=[0.6]))


def test_a_sound_evaluation_has_no_doubts():
    net, x, y = bank.linear(30.0)
    table = [
        attacks.FGSM(threats.Linf(0.05)),
        attacks.PGD(threats.Linf(0.05), steps=20),
        attacks.APGD(threats.Linf(0.05), steps=20),
    ]
    x, y = np.repeat(x, 40, 0), np.repeat(y, 40)
    scores = run(net, (x, y), table, eps_grid=[0.05, 0.1, 0.25])
    doubts = [flag for flag in scores.flags if flag.severity == "doubt"]
    assert [flag for flag in doubts if flag.code != "zero_ce_gradient"] == []


# ---- printing -----------------------------------------------------------------------------------


def test_tables_say_what_was_not_run_and_dicts_come_back():
    net, x, y = flipper()
    scores = run(net, (x, y), [Recorder(net, lambda i, r: i % 2 == 0)], eps_grid=[0.5])
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(scores)
    for text in (console.export_text(), str(scores)):
        assert "PGD-3" in text and "AutoAttack" in text and "not run" in text
        assert "[few_images]" in text
    values = json.loads(json.dumps(scores.to_dict()))
    again = evaluate.Scores.from_dict(values)
    assert again.to_dict() == values and again.curve == scores.curve and again.joint == scores.joint
    with pytest.raises(KeyError, match="No attack named 'CW'"):
        scores["CW"]


def test_progress_is_silent_off_a_terminal_and_live_on_one(capfd, monkeypatch):
    net, x, y = flipper()
    attack = [Recorder(net, lambda i, r: i % 2 == 0, runs=2)]
    evaluate.robustness(net, (x, y), attack, batch_size=16)
    assert capfd.readouterr().out == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    evaluate.robustness(net, (x, y), attack, batch_size=16)
    shown = capfd.readouterr().out
    assert "robust" in shown and "PGD-3 run 2/2" in shown and "/ 40" in shown
