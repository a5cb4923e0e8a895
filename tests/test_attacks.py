"""Attacks: properties that every attack of the bank must have, and bad arguments."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import bank
from tfrobust import attacks, losses, threats

every_attack = pytest.mark.parametrize("attack", bank.ATTACKS, ids=bank.attack_id)


@pytest.fixture(scope="module")
def net():
    return bank.classifier()


@pytest.fixture(scope="module")
def batch(net):
    x = bank.images(20)
    y = attacks.forward(net, x).argmax(-1)
    y[::7] = (y[::7] + 1) % 4  # some are wrong from the start
    return x, y


@functools.cache
def restored(attack):
    """The attack as its config describes it; all tests of this file share its two graphs."""
    return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(attack))


def test_fgsm_is_the_sign_of_the_gradient_and_one_step_of_pgd(net):
    x, y = bank.images(16) * 0.6 + 0.2, np.arange(16) % 4
    x_adv = attacks.FGSM(threats.Linf(0.1))(net, x, y)
    variable = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = losses.cross_entropy(net(variable, training=False), y)
    sign = np.sign(tape.gradient(loss, variable))
    np.testing.assert_allclose(x_adv, x + 0.1 * sign, atol=1e-6)
    pgd = attacks.PGD(
        threats.Linf(0.1), steps=1, step_size=0.1, random_start=False, last_iterate=True
    )
    np.testing.assert_array_equal(pgd(net, x, y), x_adv)


@every_attack
def test_legal_deterministic_and_no_state_changed(attack, net, batch):
    attack, (x, y) = restored(attack), batch
    before = [v.numpy() for v in net.variables]
    x_adv = attack(net, x, y)
    assert x_adv.dtype == np.float32 and x_adv.shape == x.shape and np.isfinite(x_adv).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    most = bank.tolerance(attack.threat.epsilon)
    assert attack.threat.distance(x_adv, x).numpy().max() <= most
    np.testing.assert_array_equal(attack(net, x, y), x_adv)
    for old, new in zip(before, net.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@every_attack
def test_result_of_an_example_does_not_depend_on_its_company(attack, net, batch):
    attack, (x, y) = restored(attack), batch
    whole = attack(net, x, y)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(attack(net, x[order], y[order], index=order), whole[order])
    # Another bucket: the same draws, but convolutions may differ in the last bit.
    part = attack(net, x[3:19], y[3:19], index=np.arange(3, 19))
    np.testing.assert_allclose(part, whole[3:19], atol=1e-5)


@every_attack
def test_zero_radius_returns_x(attack, net, batch):
    x, y = batch
    np.testing.assert_array_equal(restored(attack)(net, x, y, epsilon=0.0), x)


@every_attack
def test_config_round_trip_and_one_trace_for_each_bucket_whatever_the_radius(attack, net, batch):
    fresh, (x, y) = restored(attack), batch
    assert fresh is not attack and type(fresh) is type(attack)
    assert fresh.name == attack.name and fresh.get_config() == attack.get_config()
    for count, epsilon in ((5, 0.05), (16, 0.1), (20, 0.03), (9, 0.02), (16, None), (20, None)):
        fresh(net, x[:count], y[:count], epsilon=epsilon)
    assert fresh.traces == 2


@bank.some_attacks(1)
def test_eager_steps_find_what_the_graph_of_the_restored_attack_finds(attack, net, batch):
    x, y = (part[:8] for part in batch)
    with bank.eagerly():
        eager = attack(net, x, y)
    # A sign turns where a gradient's last bits decide: a row may go another way.
    differ = np.abs(restored(attack)(net, x, y) - eager).reshape(8, -1).max(-1) > 1e-4
    assert differ.sum() <= 1


@every_attack
def test_accuracy_falls(attack, net, batch):
    x, y = batch
    before = attacks.verdicts(net, x, y)
    x_adv = restored(attack)(net, x, y)
    after = attacks.verdicts(net, x_adv, y)
    assert after.sum() > before.sum()


@bank.some_attacks(0)
def test_inside_a_graph_it_is_at_least_as_strong(attack, net, batch):
    x, y = batch
    within = tf.function(lambda a, b: attack.within(net, a, b, tf.constant(1)), autograph=False)
    inside = within(x, y)  # as in `fit`; test_attack_properties.py has a graph of autograph's
    most = bank.tolerance(attack.threat.epsilon)
    assert attack.threat.distance(inside, x).numpy().max() <= most
    loss = losses.cross_entropy(attacks.forward(net, inside.numpy()), y).numpy()
    assert loss.mean() > losses.cross_entropy(attacks.forward(net, x), y).numpy().mean()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 20), st.floats(0, 0.5), st.integers(0, 99), st.sampled_from([2, 3, 4, 10]))
def test_pgd_property(count, epsilon, seed, classes):
    net = _nets(classes)
    x, y = bank.images(count, seed=seed), np.arange(count) % classes
    attack = attacks.PGD(threats.Linf(0.5), steps=4, seed=seed)
    x_adv = _shared(attack, net, x, y, epsilon)
    assert np.abs(x_adv - x).max() <= epsilon * (1 + 1e-6) + 1e-7
    # Best-so-far never loses an example that was wrong from the start at the start point itself.
    more = attacks.verdicts(net, x_adv, y)
    assert more.dtype == bool and len(more) == count


_cache = {}


def _nets(classes):
    return _cache.setdefault(classes, bank.classifier(classes))


def _shared(attack, net, x, y, epsilon):
    return _cache.setdefault("attack", attack)(net, x, y, epsilon=epsilon)


def test_more_steps_restarts_and_radius_never_lose(net, batch):
    x, y = batch
    wins = []
    for restarts in (1, 3):
        attack = attacks.PGD(threats.Linf(0.05), steps=5, restarts=restarts)
        wins.append(attacks.verdicts(net, attack(net, x, y), y))
    assert (wins[1] >= wins[0]).all()
    short, long = (
        attacks.PGD(threats.Linf(0.05), steps=s, step_size=0.01)(net, x, y) for s in (3, 12)
    )
    assert (attacks.verdicts(net, long, y) >= attacks.verdicts(net, short, y)).all()


def test_best_so_far_is_never_weaker_than_the_last_iterate(net, batch):
    x, y = batch
    best, last = (
        attacks.PGD(threats.Linf(0.05), steps=6, step_size=0.03, last_iterate=flag)(net, x, y)
        for flag in (False, True)
    )
    assert (attacks.verdicts(net, best, y) >= attacks.verdicts(net, last, y)).all()


def test_seed_and_run_change_the_start(net, batch):
    x, y = batch
    one = attacks.PGD(threats.Linf(0.05), steps=0)(net, x, y)
    two = attacks.PGD(threats.Linf(0.05), steps=0, seed=1)(net, x, y)
    assert np.abs(one - two).max() > 0
    three = attacks.PGD(threats.Linf(0.05), steps=0, restarts=2)(net, x, y, run=1)
    assert np.abs(one - three).max() > 0


def test_constant_model_gives_no_nan_and_no_success():
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    net = keras.Model(inputs, keras.layers.Dense(4, kernel_initializer="zeros")(flat))
    x, y = bank.images(4), np.arange(4)
    for attack in bank.ATTACKS:
        with bank.eagerly():
            x_adv = attack(net, x, y)
        assert np.isfinite(x_adv).all()
        assert not attacks.verdicts(net, x_adv, y).any()  # ties are not successes


def test_callable_models_and_single_logits():
    net = bank.classifier(1)
    x = bank.images(6)
    y = (attacks.forward(net, x)[:, 1] > 0).astype(int)
    attack = attacks.PGD(threats.Linf(0.3), steps=10)
    assert attacks.verdicts(net, attack(net, x, y), y).any()
    call = lambda images: net(images, training=False)  # noqa: E731
    np.testing.assert_array_equal(attack(call, x, y), attack(net, x, y))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: attacks.PGD(0.3), TypeError, "`threat` must be a tr.threats.Threat"),
        (lambda: attacks.PGD(threats.Linf(0.1), steps=-1), ValueError, "`steps`"),
        (lambda: attacks.PGD(threats.Linf(0.1), step_size=0), ValueError, "`step_size`"),
        (lambda: attacks.PGD(threats.Linf(0.1), loss="cw"), ValueError, "`loss` must be"),
        (lambda: attacks.PGD(threats.Linf(0.1), restarts=0), ValueError, "`restarts`"),
        (lambda: attacks.APGD(threats.Linf(0.1), large_radius=True), ValueError, "`large_rad"),
        (lambda: attacks.PGD(threats.Linf(0.1), eot=0), ValueError, "`eot`"),
        (lambda: attacks.PGD(threats.Linf(0.1), on_failure="x"), ValueError, "`on_failure`"),
        (lambda: attacks.MIM(threats.Linf(0.1), decay=-1), ValueError, "`decay`"),
        (lambda: attacks.RFGSM(threats.Linf(0.1), share=2), ValueError, "`share`"),
        (lambda: attacks.APGD(threats.Linf(0.1), loss="dlr_targeted"), ValueError, "`targets`"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_probabilities_are_refused():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
    with pytest.raises(ValueError, match="must return logits"):
        attacks.PGD(threats.Linf(0.1))(net, np.full((1, 2), 0.5), [0])


def test_dlr_needs_classes():
    with pytest.raises(ValueError, match="needs a model with 3 classes"):
        attacks.PGD(threats.Linf(0.1), loss="dlr")(bank.classifier(2), bank.images(2), [0, 1])
