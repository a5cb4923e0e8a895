"""The game contract carries three players: adversarial feature desensitization as a toy.

Bashivan et al. (2021): (1) encoder and classifier learn the labels, (2) a discriminator learns to
tell clean from adversarial features, (3) the encoder learns to fool it. The encoder belongs to two
groups with an optimizer each; every turn sees the updates of the turns before it.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.bank_resume import resumed_equals_unbroken, state, until_killed

GROUPS = ("labels", "discriminator", "encoder")


def bce(label, score):
    """Mean binary cross-entropy of scores against one label."""
    return tf.reduce_mean(tf.nn.softplus(-score if label else score))


@keras.saving.register_keras_serializable(package="tests")
class ToyAFD(tr.training.Game):
    turns = (("labels",), ("discriminator",), ("encoder",))

    def __init__(self, classifier, attack, **kwargs):
        super().__init__(classifier, attack, **kwargs)
        self.encoder = keras.Model(classifier.input, classifier.layers[-2].output)
        width = self.encoder.output_shape[-1]
        hidden = keras.layers.Dense(5, activation="leaky_relu")
        self.critic = keras.Sequential([keras.Input((width,)), hidden, keras.layers.Dense(1)])

    def terms(self):
        return ("fooled",)

    def group_variables(self):
        return {
            "labels": self.classifier.trainable_variables,
            "discriminator": self.critic.trainable_variables,
            "encoder": self.encoder.trainable_variables,
        }

    def objective(self, batch, turn):
        (group,) = turn
        if group == "labels":
            clean, adversarial = self.passes(batch.x, batch.x_adv)
            self.score(batch, clean.logits, adversarial.logits)
            loss = self.data_loss(batch, clean.logits)
        elif group == "discriminator":
            h, h_adv = (self.encoder(x, training=True) for x in (batch.x, batch.x_adv))
            loss = bce(0, self.critic(h)) + bce(1, self.critic(h_adv))
            loss = self.per_replica(loss)
        else:
            score = self.critic(self.encoder(batch.x_adv, training=True))
            self.report("fooled", tf.reduce_mean(tf.cast(score < 0, tf.float32)), batch.count)
            loss = self.per_replica(bce(0, score))
        return {group: loss}


def game(seed=0, rates=(0.1, 0.2, 0.05), momentum=0.9, **compiling):
    keras.utils.set_random_seed(seed)
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=1, random_start=False)
    toy = ToyAFD(bank.classifier(seed=seed), attack)
    sgd = keras.optimizers.SGD
    optimizers = {g: sgd(r, momentum=momentum) for g, r in zip(GROUPS, rates, strict=True)}
    toy.compile(optimizers, **compiling)
    return toy


def data(count=24):
    return bank.images(count, seed=5), np.arange(count) % 4


def values(variables):
    return [v.numpy() for v in variables]


def test_three_optimizers_are_built_before_the_first_step():
    toy = game()
    owned = toy.group_variables()
    assert tuple(toy.optimizers) == GROUPS
    for group in GROUPS:
        # iteration, learning rate and one momentum for each variable it owns
        assert len(toy.optimizers[group].variables) == 2 + len(owned[group])
    assert owned["encoder"] == owned["labels"][: len(owned["encoder"])]


@pytest.mark.parametrize("mover", GROUPS)
def test_each_player_moves_its_own_variables_only(mover):
    toy = game(rates=[0.1 * (group == mover) for group in GROUPS], run_eagerly=True)
    owned = toy.group_variables()
    everything = [*toy.classifier.trainable_variables, *toy.critic.trainable_variables]
    before = values(everything)
    toy.fit(*data(), batch_size=12, verbose=0)
    mine = {id(v) for v in owned[mover]}
    for variable, old in zip(everything, before, strict=True):
        assert np.array_equal(variable.numpy(), old) == (id(variable) not in mine), variable.path


def test_turns_follow_each_other_as_in_a_loop_by_hand():
    """Three steps against a plain loop: each turn is evaluated after the updates before it."""
    toy, hand = game(), game()
    x, y = data(12)
    toy.fit(x, y, batch_size=12, epochs=3, shuffle=False, verbose=0)

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    encoder, critic, owned = hand.encoder, hand.critic, hand.group_variables()
    momenta = {group: [0.0] * len(owned[group]) for group in GROUPS}
    rates = dict(zip(GROUPS, (0.1, 0.2, 0.05), strict=True))
    for _ in range(3):
        x_adv = hand.attacked(tf.constant(x), tf.constant(y))
        turns = (
            ("labels", lambda: cross_entropy(y, hand.classifier(x))),
            (
                "discriminator",
                lambda: bce(0, critic(encoder(x))) + bce(1, critic(encoder(x_adv))),  # noqa: B023
            ),
            ("encoder", lambda: bce(0, critic(encoder(x_adv)))),  # noqa: B023
        )
        for group, loss in turns:
            with tf.GradientTape() as tape:
                value = loss()
            gradients = tape.gradient(value, owned[group])
            for i, (variable, gradient) in enumerate(zip(owned[group], gradients, strict=True)):
                momenta[group][i] = 0.9 * momenta[group][i] - rates[group] * gradient
                variable.assign_add(momenta[group][i])
    for a, b in zip(toy.variables, hand.variables, strict=True):
        if a is not toy.step:
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-6, err_msg=a.path)


def test_fit_reports_and_validates():
    x, y = data()
    history = game().fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"loss", "robust_accuracy", "fooled", "val_robust_accuracy"} <= set(history)
    assert 0 <= history["fooled"][0] <= 1 and history["loss"][0] > 0


def test_round_trip_keeps_three_optimizers(tmp_path):
    toy = game(run_eagerly=True)
    toy.fit(*data(), batch_size=12, verbose=0)
    toy.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    for one, two in zip(toy.optimizers.values(), again.optimizers.values(), strict=True):
        for a, b in zip(one.variables, two.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    for one in (toy, again):
        one.fit(*data(), batch_size=12, shuffle=False, verbose=0)
    for a, b in zip(toy.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_resume_brings_back_all_three(tmp_path):
    def train(seed, *callbacks):
        toy = game(seed, run_eagerly=True)
        batches = tr.data.Batches(*data(), batch_size=10)
        until_killed(toy.fit, batches, epochs=3, verbose=0, callbacks=list(callbacks))
        return state(toy)

    resumed_equals_unbroken(train, tmp_path, kill=4, save_freq="epoch")
