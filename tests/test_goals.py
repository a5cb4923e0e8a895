"""Targeted attacks: `goal=` names the class that the attacker wants to see."""

import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tfrobust import attacks, losses, threats

LINF = threats.Linf(0.1)
GRADIENT = [attack for attack in bank.ATTACKS if isinstance(attack, attacks.PGD | attacks.APGD)]
every_gradient_attack = pytest.mark.parametrize("attack", GRADIENT, ids=bank.attack_id)


def setting(classes):
    net, x = bank.classifier(classes), bank.images(16)
    logits = attacks.forward(net, x)
    y = logits.argmax(-1)
    return net, x, y, (y + 1) % logits.shape[-1]


@pytest.fixture(scope="module")
def four():
    return setting(4)


@every_gradient_attack
def test_the_goal_comes_nearer_and_success_is_its_argmax(attack, four):
    net, x, y, goal = four
    with bank.eagerly():
        found = attack.result(net, x, y, goal=goal)
    logits = attacks.forward(net, found.x_adv)
    np.testing.assert_array_equal(found.fooled, logits.argmax(-1) == goal)
    np.testing.assert_array_equal(found.fooled, attacks.verdicts(net, found.x_adv, y, goal))
    assert np.isinf(found.distance[~found.fooled]).all()
    before = losses.cross_entropy(attacks.forward(net, x), goal).numpy()
    after = losses.cross_entropy(logits, goal).numpy()
    assert after.mean() < before.mean() and (after <= before + 1e-6).mean() > 0.9
    assert found.fooled.any()


def test_a_goal_is_harder_than_any_class(four):
    net, x, y, goal = four
    attack = attacks.PGD(threats.Linf(0.05), steps=8)
    free, aimed = attack.result(net, x, y), attack.result(net, x, y, goal=goal)
    assert free.fooled.sum() > aimed.fooled.sum() > 0


def test_fgsm_steps_against_the_gradient_of_the_goal(four):
    net, x, y, goal = four
    x = x * 0.6 + 0.2
    images = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = losses.cross_entropy(net(images, training=False), goal)
    sign = np.sign(tape.gradient(loss, images))
    x_adv = attacks.FGSM(LINF)(net, x, y, goal=goal)
    np.testing.assert_allclose(x_adv, x - 0.1 * sign, atol=1e-6)


def test_one_run_serves_a_goal_whatever_the_targets(four):
    net, x, y, goal = four
    attack = attacks.PGD(LINF, steps=2, loss="dlr_targeted", targets=3, restarts=2)
    assert attack.runs_of(4, goal=True) == [0, 3]
    skipped = attack.result(net, x, y, goal=goal, run=1)
    np.testing.assert_array_equal(skipped.x_adv, x)
    assert not skipped.queries.any()


def test_inside_a_graph(four):
    net, x, y, goal = four
    attack = attacks.PGD(threats.Linf(0.5), steps=5)
    inside = tf.function(lambda *a: attack(net, *a[:2], goal=a[2]), autograph=False)
    logits = attacks.forward(net, inside(x, y, goal).numpy())
    assert (logits.argmax(-1) == goal).mean() > 0.5


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("classes", [1, 2])
def test_two_classes_leave_one_goal(classes, loss):
    """The other class is the only wrong one, so both kinds of attack ask for the same."""
    net, x, y, goal = setting(classes)
    attack = attacks.PGD(LINF, steps=3, loss=loss)
    with bank.eagerly():
        free, aimed = attack.result(net, x, y), attack.result(net, x, y, goal=goal)
    np.testing.assert_array_equal(free.fooled, aimed.fooled)
    np.testing.assert_allclose(free.x_adv, aimed.x_adv, atol=1e-5)


def test_three_classes_are_enough_for_dlr_with_a_goal():
    net, x, y, goal = setting(3)
    found = attacks.PGD(LINF, steps=5, loss="dlr").result(net, x, y, goal=goal)
    assert np.isfinite(found.x_adv).all() and found.fooled.any()


@pytest.mark.parametrize(
    ("goal", "error", "match"),
    [
        (lambda y: y, ValueError, "`goal` must differ from `y`. Received: both . in row 0"),
        (lambda y: np.where(np.arange(16) == 5, y, (y + 1) % 4), ValueError, "in row 5"),
        (lambda y: y + 4, ValueError, r"`goal` must lie in \[0, 3\]"),
        (lambda y: y - 9, ValueError, r"`goal` must lie in \[0, 3\]"),
        (lambda y: (y + 1)[:3] % 4, ValueError, "`goal` must have one label for each of the 16"),
        (lambda y: ((y + 1) % 4) + 0.5, TypeError, "`goal` must be integer labels"),
        (lambda y: np.eye(4)[(y + 1) % 4], ValueError, "`goal` must be integer labels"),
    ],
)
def test_bad_goals_are_refused(four, goal, error, match):
    net, x, y, _ = four
    with pytest.raises(error, match=match):
        attacks.PGD(LINF)(net, x, y, goal=goal(y))


def test_the_class_that_is_seen_already_is_a_success_at_once(four):
    net, x, y, goal = four
    found = attacks.PGD(LINF, steps=4, random_start=False).result(net, x, goal, goal=y)
    assert found.fooled.all() and (found.distance == 0).all() and (found.gradients == 1).all()
