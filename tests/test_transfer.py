"""Transfer attacks: crafted on a substitute, judged on the target."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tfrobust import attacks, threats

LINF = threats.Linf(0.1)
CRAFT = attacks.MIM(LINF, steps=5, loss="margin")


@pytest.fixture(scope="module")
def target():
    net, x = bank.classifier(), bank.images(24)
    y = attacks.forward(net, x).argmax(-1)
    y[::7] = (y[::7] + 1) % 4
    return net, x, y


@pytest.fixture(scope="module")
def substitute(target):
    """The target with other weights: close, not equal."""
    net, draw = bank.classifier(), np.random.default_rng(1)
    net.set_weights([w + draw.normal(0, 0.05, w.shape) for w in target[0].get_weights()])
    return net


@pytest.mark.parametrize(
    "attack",
    [
        CRAFT,
        attacks.PGD(LINF, steps=3, restarts=2, on_failure="clean"),
        attacks.APGD(LINF, steps=5, loss="dlr_targeted", targets=3),
        attacks.WorstCase([attacks.FGSM(LINF), attacks.PGD(LINF, steps=3)]),
        attacks.DDN(threats.L2(0.7), steps=5),
    ],
    ids=bank.attack_id,
)
def test_from_the_target_itself_it_is_the_white_box_attack(target, attack):
    net, x, y = target
    transfer = attacks.Transfer(net, attack)
    assert transfer.name == f"transfer of {attack.name}" and transfer.threat == attack.threat
    assert transfer.runs == attack.runs and transfer.runs_of(4) == attack.runs_of(4)
    for field in ("x_adv", "fooled", "distance", "queries", "gradients", "iterations"):
        white, moved = (getattr(a.result(net, x, y), field) for a in (attack, transfer))
        np.testing.assert_array_equal(white, moved, err_msg=field)


def test_it_breaks_less_than_the_white_box_and_more_than_nothing(target, substitute):
    net, x, y = target
    transfer = attacks.Transfer(substitute, CRAFT)
    moved, white = transfer.result(net, x, y), CRAFT.result(net, x, y)
    before = attacks.verdicts(net, x, y)
    assert before.sum() < moved.fooled.sum() <= white.fooled.sum()
    np.testing.assert_array_equal(moved.fooled, attacks.verdicts(net, moved.x_adv, y))
    assert np.abs(moved.x_adv - x).max() <= 0.1 + 1e-7
    np.testing.assert_array_equal(transfer(net, x, y), moved.x_adv)
    # On another model than the target every row goes on to the last step.
    assert (moved.iterations == 5).all() and (white.iterations < 5).any()


def test_the_threat_of_the_call_counts(target, substitute):
    net, x, y = target
    transfer = attacks.Transfer(substitute, CRAFT)
    np.testing.assert_array_equal(transfer(net, x, y, epsilon=0.0), x)
    assert np.abs(transfer(net, x, y, epsilon=0.02) - x).max() <= 0.02 + 1e-7
    goal = (y + 1) % 4
    found = transfer.result(net, x, y, epsilon=0.5, goal=goal)
    np.testing.assert_array_equal(found.fooled, attacks.verdicts(net, found.x_adv, y, goal))


def test_inside_a_graph_it_crafts_on_the_substitute(target, substitute):
    net, x, y = target
    seed = tf.constant(1)
    moved = tf.function(
        lambda a, b: attacks.Transfer(substitute, CRAFT).within(net, a, b, seed), autograph=False
    )
    own = tf.function(lambda a, b: CRAFT.within(substitute, a, b, seed), autograph=False)
    np.testing.assert_array_equal(moved(x, y), own(x, y))


def test_the_config_knows_the_substitute_by_its_weights(target, substitute):
    one, other = (attacks.Transfer(net, CRAFT).get_config() for net in (target[0], substitute))
    assert json.loads(json.dumps(one)) == one
    assert one["attack"] == other["attack"] and one["substitute"] != other["substitute"]
    twin = bank.classifier()
    twin.set_weights(substitute.get_weights())
    assert attacks.Transfer(twin, CRAFT).get_config() == other
    with pytest.raises(TypeError, match="call tr.attacks.Transfer"):
        attacks.Transfer.from_config(one)


def mirrored():
    """(source, target, x, y): two linear nets, one the mirror image of the other, data both ways.

    Whatever breaks a mirrored image on the target breaks the image itself on the source.
    """
    draw, nets = np.random.default_rng(0), []
    kernel, x = draw.normal(0, 1, (2, 8, 1)), bank.images(30, (2, 8, 1), seed=3)
    for weights in (kernel, kernel[:, ::-1]):
        inputs = keras.Input((2, 8, 1))
        net = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        net.set_weights([np.stack([-weights.ravel(), weights.ravel()], 1), np.zeros(2)])
        nets.append(net)
    x = np.concatenate([x, x[:, :, ::-1]])
    y = (np.sum([attacks.forward(net, x)[:, 1] for net in nets], axis=0) > 0).astype(int)
    return *nets, x, y


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
def test_a_source_falls_to_its_own_images_no_less_than_the_target(epsilon):
    """On linear nets no legal point is worse than x + epsilon sign(gradient), clipped; by mirror
    symmetry the source keeps what the target keeps of its own, at most what it keeps of these."""
    source, target, x, y = mirrored()
    attack = attacks.FGSM(threats.Linf(epsilon))
    with bank.eagerly():
        own = attack.result(source, x, y).fooled
        white = attack.result(target, x, y).fooled
        black = attacks.Transfer(source, attack).result(target, x, y).fooled
        before = attacks.verdicts(target, x, y)
    assert own.sum() == white.sum()
    np.testing.assert_array_equal(own, np.roll(white, 30))
    assert (white >= black).all() and not before.any()
    assert black.sum() < own.sum() and (epsilon < 0.2 or black.any())


def test_an_evaluation_counts_it_among_the_others(target, substitute):
    net, x, y = target
    transfer = attacks.Transfer(substitute, CRAFT)
    scores = tr.evaluate.robustness(net, (x, y), [CRAFT, transfer], progress=False)
    white, moved = (score.rate.count for score in scores.attacks)
    assert white <= moved < scores.clean.count
    assert moved == (~transfer.result(net, x, y).fooled & ~attacks.verdicts(net, x, y)).sum()


def test_callables_serve_as_substitutes(target, substitute):
    net, x, y = target
    plain = attacks.Transfer(lambda images: substitute(images, training=False), CRAFT)
    np.testing.assert_allclose(
        plain(net, x, y), attacks.Transfer(substitute, CRAFT)(net, x, y), atol=1e-6
    )
    assert "lambda" in plain.get_config()["substitute"]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda net: attacks.Transfer(net, 3), TypeError, "`attack` must be a tr.attacks.Attack"),
        (lambda net: attacks.Transfer("net", CRAFT), TypeError, "`substitute` must be a Keras"),
        (
            lambda net: attacks.Transfer(bank.classifier(3), CRAFT)(net, bank.images(2), [0, 1]),
            ValueError,
            "`substitute` must have the 4 classes of the target. Received: 3",
        ),
        (
            lambda net: attacks.Transfer(bank.classifier(4, (6, 6, 1)), CRAFT)(
                net, bank.images(2), [0, 1]
            ),
            ValueError,
            "`x` must have shape",
        ),
    ],
)
def test_bad_arguments(target, make, error, match):
    with pytest.raises(error, match=match):
        make(target[0])
