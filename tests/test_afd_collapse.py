"""Faults that are put into a running game are seen within one window; healthy runs are not."""

import warnings

import keras
import numpy as np
import pytest

import tfrobust as tr
from tests import bank_afd as bank

WINDOW, BATCH = 20, 8
pytestmark = pytest.mark.slow


class Inject(keras.callbacks.Callback):
    """Breaks the game at a step."""

    def __init__(self, fault, at):
        super().__init__()
        self.fault, self.at, self.steps = fault, at, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps == self.at:
            FAULTS[self.fault](self.model)
        self.steps += 1


def stop(game, *groups):
    for group in groups:
        game.optimizers[group].learning_rate.assign(0.0)
        for velocity in game.optimizers[group].variables[2:]:
            velocity.assign(np.zeros(velocity.shape))


def silence(game):
    """All weights zero, and nobody trains it: a bias would move."""
    game.discriminator.set_weights([0 * w for w in game.discriminator.get_weights()])
    stop(game, "discriminator")


def shout(game):
    """Scores around 60, where the encoder has no gradient; its optimizer goes on."""
    layer = next(v for v in game.discriminator.layers[::-1] if getattr(v, "bias", None) is not None)
    layer.bias.assign([60.0])


def poison(game):
    kernel = game.discriminator.trainable_variables[0]
    kernel.assign(np.full(kernel.shape, np.nan))


def flatten(game):
    """No unit answers any more: no gradient, though all optimizers go on."""
    layer = game.classifier.get_layer("norm")
    layer.gamma.assign(np.zeros(6))
    layer.beta.assign(np.full(6, -10.0))


FAULTS = {
    "dead": silence,
    "frozen": lambda game: stop(game, "discriminator"),
    "saturated": shout,
    "not finite": poison,
    "encoder": flatten,
}


@pytest.fixture(scope="module")
def plain():
    """A game with a discriminator that nothing bounds, traced once, and its first state."""
    h = keras.Input((6,))
    x = keras.layers.Dense(8, "leaky_relu")(h)
    critic = keras.Model(h, keras.layers.Dense(1, name="score")(x))
    game = bank.game((0.02, 0.02, 0.02), discriminator=critic, eager=False)
    return game, game.get_weights()


@pytest.fixture(scope="module")
def default():
    """The same with the spectrally normalized one, which looks at labels."""
    game = bank.game((0.02, 0.02, 0.02), eager=False)
    return game, game.get_weights()


def run(game, watch, *callbacks, epochs=8):
    game.fit(*bank.data(10 * BATCH), batch_size=BATCH, epochs=epochs, verbose=0,
             callbacks=[*callbacks, watch])  # fmt: skip


def afresh(game, start):
    """The game with its first weights and optimizers that have not moved yet."""
    game.set_weights(start)
    for optimizer in game.optimizers.values():
        for variable in optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        optimizer.learning_rate.assign(0.02)
    return game


@pytest.mark.parametrize("critic", ["plain", "default"])
@pytest.mark.parametrize("fault", FAULTS)
def test_injected_fault_is_caught_within_a_window(request, critic, fault):
    game = afresh(*request.getfixturevalue(critic))
    watch, onset = tr.training.CollapseWatch(window=WINDOW, action="stop"), 33
    with pytest.warns(tr.training.DiscriminatorCollapse) as caught:
        run(game, watch, Inject(fault, onset))
    first = caught[0].message
    assert first.cause == {"frozen": "dead"}.get(fault, fault)
    assert first.step <= onset + WINDOW
    assert "Cure: " in str(first) and "\n" not in str(first)
    assert watch.found[0] == {"cause": first.cause, "step": first.step}
    assert watch.steps < 80  # `fit` ended early


def test_restore_brings_the_best_epoch_back(plain):
    game = afresh(*plain)
    watch = tr.training.CollapseWatch(WINDOW, "restore", monitor="robust_accuracy")
    with pytest.warns(tr.training.DiscriminatorCollapse):
        run(game, watch, Inject("not finite", 33))
    assert watch.best_weights is not None
    assert bank.same(game.get_weights(), watch.best_weights)
    assert all(np.isfinite(w).all() for w in game.get_weights())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_healthy_runs_raise_nothing(seed):
    data = tr.data.load("digits")
    keras.utils.set_random_seed(seed)
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=3)
    net = tr.models.unit_features(tr.models.digits_net(width=0.5))
    game = tr.training.AFD(net, attack, seed=seed)
    sgd = keras.optimizers.SGD
    game.compile({"weights": sgd(0.05, 0.9), "discriminator": sgd(0.02, 0.9),
                  "encoder": sgd(0.05, 0.9)})  # fmt: skip
    watch = tr.training.CollapseWatch(window=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error", tr.training.DiscriminatorCollapse)
        logs = game.fit(data.x_train, data.y_train, batch_size=64, epochs=12, verbose=0,
                        callbacks=[watch]).history  # fmt: skip
    assert watch.found == [] and logs["clean_accuracy"][-1] > 0.5
