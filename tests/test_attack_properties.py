"""What every attack of the bank promises, over batches, radii, seeds and numbers of classes."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import bank
from tfrobust import attacks, losses, threats

every_attack = pytest.mark.parametrize("attack", bank.ATTACKS, ids=bank.attack_id)
few = settings(max_examples=6, deadline=None, derandomize=True)


@functools.cache
def model(classes):
    return bank.classifier(classes)


def labelled(net, count, seed, wrong=3):
    """Images with the model's own labels, but every `wrong`-th another one."""
    x = bank.images(count, seed=seed)
    logits = attacks.forward(net, x)
    y = logits.argmax(-1)
    y[::wrong] = (y[::wrong] + 1) % logits.shape[-1]
    return x, y


def honest(attack, classes, count, share, data_seed):
    """(net, x, y, epsilon, x_adv), after a look at all that a result says of itself."""
    net, epsilon = model(classes), share * attack.threat.epsilon
    x, y = labelled(net, count, data_seed)
    found = attack.result(net, x, y, epsilon=epsilon)
    x_adv, distance = found.x_adv, attack.threat.distance(found.x_adv, x).numpy()
    assert x_adv.dtype == np.float32 and x_adv.shape == x.shape and np.isfinite(x_adv).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and distance.max() <= bank.tolerance(epsilon)
    margin = losses.margin(net(x_adv, training=False), y).numpy()
    np.testing.assert_array_equal(found.fooled, margin > 0)
    np.testing.assert_array_equal(found.distance[found.fooled], distance[found.fooled])
    assert np.isinf(found.distance[~found.fooled]).all()
    return net, x, y, epsilon, x_adv


@bank.some_attacks(1)
@few
@given(count=st.integers(1, 16), share=st.floats(0.0, 1.0), data_seed=st.integers(0, 99))
def test_legal_honest_and_repeatable(attack, count, share, data_seed):
    # Two classes are next, the linear nets below have ten.
    net, x, y, epsilon, x_adv = honest(attack, 4, count, share, data_seed)
    np.testing.assert_array_equal(attack(net, x, y, epsilon=epsilon), x_adv)


@pytest.mark.parametrize(
    "attack", [a for a in bank.ATTACKS if bank.fitting(a, 2)], ids=bank.attack_id
)
def test_legal_and_honest_between_two_classes(attack):
    with bank.eagerly():
        honest(attack, 2, 7, 0.8, 0)


@bank.some_attacks(0)
def test_failures_and_wrong_rows_stay_clean_if_asked(attack):
    config = {**attack.get_config(), "on_failure": "clean"}
    kind = type(attack)
    modest, net = kind.from_config(config), model(4)
    x, y = labelled(net, 16, 1)
    with bank.eagerly():
        found = modest.result(net, x, y, epsilon=0.3 * attack.threat.epsilon)
    wrong = attacks.verdicts(net, x, y)
    assert wrong.any() and found.fooled[wrong].all()
    for rows in (wrong, ~found.fooled):
        np.testing.assert_array_equal(found.x_adv[rows], x[rows])
    assert (found.queries[wrong] == 0).all()


@pytest.mark.slow  # tests/test_attacks.py moves rows between two buckets too, bit for bit
@every_attack
def test_splitting_a_batch_splits_the_result(attack):
    net = model(4)
    x, y = labelled(net, 32, 2)
    whole, place = attack(net, x, y), np.random.default_rng(0).permutation(32)
    for rows in (place[:16], place[16:]):
        part = attack(net, x[rows], y[rows], index=rows)
        # Another company may mean another bucket, where convolutions differ in the last bits; a
        # verdict at the boundary may then turn, so a row or two are allowed to.
        differ = np.abs(part - whole[rows]).reshape(16, -1).max(-1) > 1e-4
        assert differ.sum() <= 1


@every_attack
def test_a_larger_ball_breaks_no_less(attack):
    net = model(4)
    x, y = labelled(net, 32, 3, wrong=50)

    def fooled(share, rows):
        epsilon = share * attack.threat.epsilon
        return int(attack.result(net, x[rows], y[rows], rows, epsilon=epsilon).fooled.sum())

    halves = np.arange(32).reshape(2, 16)  # the smallest bucket, which has a graph already
    broken = [sum(fooled(share, rows) for rows in halves) for share in (0.25, 0.5, 1.0)]
    slack = 1 + (not getattr(attack, "white_box", True)) * 2
    assert broken[0] <= broken[1] + slack and broken[1] <= broken[2] + slack


def test_iterated_attacks_are_stronger_than_one_step():
    net = model(10)
    x, y = labelled(net, 100, 4, wrong=200)
    threat, steps = threats.Linf(0.02), (attacks.FGSM, attacks.BIM, attacks.MIM, attacks.PGD)
    broken = [attack(threat).result(net, x, y).fooled.sum() for attack in steps]
    assert broken[0] <= min(broken[1:]) + 1 and broken[1] > 0


def test_momentum_of_nothing_is_bim():
    net = model(4)
    x, y = labelled(net, 16, 5)
    threat = threats.Linf(0.05)
    bim, mim = (
        attacks.BIM(threat, on_failure="clean"),
        attacks.MIM(threat, decay=0.0, on_failure="clean"),
    )
    np.testing.assert_array_equal(bim(net, x, y), mim(net, x, y))
    assert np.abs(attacks.MIM(threat)(net, x, y) - attacks.BIM(threat)(net, x, y)).max() > 0
    assert np.abs(mim(net, x, y) - x).max() <= 0.05 + 1e-7


def test_iterates_stay_within_the_way_they_went():
    net = model(4)
    x, y = labelled(net, 16, 6)
    attack = attacks.BIM(threats.Linf(0.3), steps=3, step_size=0.01, last_iterate=True)
    assert np.abs(attack(net, x, y) - x).max() <= 0.03 + 1e-6


def test_random_step_of_nothing_is_fgsm_and_of_everything_is_noise():
    net = model(4)
    x, y = labelled(net, 16, 7)
    threat = threats.Linf(0.05)
    plain, none = attacks.FGSM(threat), attacks.RFGSM(threat, share=0.0)
    np.testing.assert_allclose(none(net, x, y), plain(net, x, y), atol=1e-7)
    x = x * 0.8 + 0.1
    noise = attacks.RFGSM(threat, share=1.0)(net, x, y)
    np.testing.assert_allclose(np.abs(noise - x), 0.05, atol=1e-6)


def test_more_steps_and_restarts_keep_every_success():
    net = model(10)
    x, y = labelled(net, 64, 8)
    kinds = [
        lambda steps, restarts: attacks.PGD(
            threats.Linf(0.01), steps=steps, step_size=0.004, restarts=restarts
        ),
        lambda steps, restarts: attacks.BIM(
            threats.L2(0.1), steps=steps, step_size=0.03, restarts=restarts
        ),
    ]
    for kind in kinds:
        short, long, often = (
            kind(*budget).result(net, x, y).fooled for budget in ((3, 1), (9, 1), (3, 3))
        )
        assert (long >= short).all() and (often >= short).all()


def test_compaction_and_padding_leave_rows_alone():
    """A batch that shrinks on the way gives what a fixed batch gives."""
    net = model(10)
    x, y = labelled(net, 256, 9, wrong=2)
    attack = attacks.PGD(threats.Linf(0.01), steps=30)
    attack.stride = 3
    whole = attacks.PGD(threats.Linf(0.01), steps=30)
    whole.stride = 30
    one, two = attack.result(net, x, y), whole.result(net, x, y)
    assert (one.fooled != two.fooled).sum() <= 1
    same = one.fooled & two.fooled
    np.testing.assert_allclose(one.x_adv[same], two.x_adv[same], atol=1e-4)
    assert one.iterations.max() <= 30 and (one.iterations[same] < 30).any()


def test_attacks_inside_a_graph_keep_to_their_contract():
    net, x = model(4), bank.images(8)
    y = np.arange(8) % 4
    attack = attacks.MIM(threats.Linf(0.1), steps=3, restarts=2, on_failure="clean")
    inside = tf.function(lambda a, b: attack(net, a, b))(x, y).numpy()
    fooled = attacks.verdicts(net, inside, y)
    np.testing.assert_array_equal(inside[~fooled], x[~fooled])


def test_models_that_branch_on_tensors_get_autograph():
    def branching(x):
        z = tf.reshape(x, (-1, 64))[:, :4]
        if tf.reduce_sum(x) > 0:
            z = 3.0 * z
        return z

    x = bank.images(4)
    y = attacks.forward(branching, x).argmax(-1)
    found = attacks.PGD(threats.Linf(0.5), steps=3).result(branching, x, y)
    np.testing.assert_array_equal(found.fooled, attacks.verdicts(branching, found.x_adv, y))
