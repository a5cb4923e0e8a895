"""Expectation over transformation: models that are random are attacked and judged on average."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tfrobust import attacks, threats

LINF = threats.Linf(0.1)


class Noise(keras.layers.Layer):
    """Gaussian noise at inference, from a seed generator of Keras."""

    def __init__(self, deviation, seed=1, **kwargs):
        super().__init__(**kwargs)
        self.deviation, self.generator = deviation, keras.random.SeedGenerator(seed)

    def call(self, x):
        return x + self.deviation * keras.random.normal(tf.shape(x), seed=self.generator)


def noisy(net, deviation=0.3):
    inputs = keras.Input(net.input_shape[1:])
    return keras.Model(inputs, net(Noise(deviation)(inputs)))


@pytest.fixture(scope="module")
def clean():
    net, x = bank.classifier(), bank.images(32)
    return net, x, attacks.forward(net, x).argmax(-1)


@pytest.fixture(scope="module")
def random(clean):
    return noisy(clean[0])


def states(model):
    found = [v.numpy() for v in model.non_trainable_variables if "seed_generator" in v.path]
    assert found
    return found


def test_one_draw_of_a_fixed_model_is_the_plain_attack(clean):
    net, x, y = clean
    plain, once = attacks.PGD(LINF, steps=3), attacks.PGD(LINF, steps=3, eot=1)
    np.testing.assert_array_equal(once(net, x, y), plain(net, x, y))


def test_many_draws_of_a_fixed_model_are_the_attack_to_the_last_step(clean):
    net, x, y = clean
    place = (net, x, y, np.arange(32), 0.1, 0, None)
    one, counts = attacks.PGD(LINF, steps=3).attempt(*place, eager_stop=False)
    many, more = attacks.PGD(LINF, steps=3, eot=4).attempt(*place, eager_stop=False)
    np.testing.assert_allclose(many, one, atol=1e-5)
    np.testing.assert_array_equal(more[:2], 4 * counts[:2])
    np.testing.assert_array_equal(more[2], counts[2])


@pytest.mark.parametrize(
    "attack",
    [
        attacks.FGSM(LINF, eot=3),
        attacks.MIM(LINF, steps=3, eot=3),
        attacks.RFGSM(LINF, eot=3, restarts=2),
        attacks.PGD(LINF, steps=3, eot=1),
        attacks.APGD(LINF, steps=3, eot=3),
    ],
    ids=lambda attack: f"{bank.attack_id(attack)}-{attack.eot}",
)
def test_generators_stay_where_they_are_and_bits_repeat(clean, random, attack):
    _, x, y = clean
    before = states(random)
    first, second = attack.result(random, x, y), attack.result(random, x, y)
    np.testing.assert_array_equal(first.x_adv, second.x_adv)
    np.testing.assert_array_equal(first.fooled, second.fooled)
    for old, new in zip(before, states(random), strict=True):
        np.testing.assert_array_equal(old, new)
    if attack.runs == 1:  # what is claimed can be checked with the same number of draws
        again = attacks.verdicts(random, first.x_adv, y, draws=attack.eot)
        np.testing.assert_array_equal(first.fooled, again)


def test_generators_stay_where_they_are_after_an_error(clean, random):
    _, x, y = clean
    before = states(random)

    def fails(logits, y, target):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attacks.PGD(LINF, steps=3, loss=fails)(random, x, y)
    np.testing.assert_array_equal(before[0], states(random)[0])


def test_runs_and_seeds_draw_other_noise(clean, random):
    _, x, y = clean
    one, other = (attacks.FGSM(LINF, restarts=2, eot=2, seed=seed) for seed in (0, 1))

    def points(attack, run):
        place = (random, x, y, np.arange(32), 0.1, run, None)
        return attack.attempt(*place, eager_stop=False)[0]

    assert np.abs(points(one, 0) - points(one, 1)).max() > 0
    assert np.abs(points(one, 0) - points(other, 0)).max() > 0
    np.testing.assert_array_equal(points(one, 1), points(one, 1))


def test_averaged_gradients_break_more(clean, random):
    """Judged by the mean of 200 passes, an attack on the mean of 20 beats one on single passes."""
    _, x, y = clean
    wins = []
    for eot in (1, 20):
        x_adv = attacks.PGD(LINF, steps=8, eot=eot)(random, x, y)
        wins.append(attacks.verdicts(random, x_adv, y, draws=200).mean())
    assert wins[1] >= wins[0] + 0.15


def test_counts_are_multiplied_by_the_draws(clean, random):
    _, x, y = clean
    counts = attacks.PGD(LINF, steps=3, eot=7).result(random, x, y)
    assert (counts.queries == 7 * 4).all() and (counts.gradients == 7 * 3).all()


def test_goals_are_reached_on_average(clean, random):
    _, x, y = clean
    goal = (y + 1) % 4
    found = attacks.PGD(threats.Linf(0.5), steps=5, eot=5).result(random, x, y, goal=goal)
    np.testing.assert_array_equal(
        found.fooled, attacks.verdicts(random, found.x_adv, y, goal, draws=5)
    )
    assert found.fooled.mean() > 0.5


def test_inside_a_graph(clean, random):
    _, x, y = clean
    attack = attacks.FGSM(LINF, eot=3)
    inside = tf.function(lambda a, b: attack.within(random, a, b, tf.constant(1)), autograph=False)
    x_adv = inside(x, y).numpy()
    assert np.abs(x_adv - x).max() <= 0.1 + 1e-6
    assert attacks.verdicts(random, x_adv, y, draws=20).mean() > 0.2


@pytest.mark.parametrize("eot", [0, 2.5, True])
def test_draws_are_whole_and_positive(eot):
    with pytest.raises(ValueError, match="`eot` must be an integer >= 1"):
        attacks.PGD(LINF, eot=eot)
