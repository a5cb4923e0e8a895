"""Two logical CPUs train as one device: terms are counted once, noise differs between replicas.

Logical devices must exist before TensorFlow starts, so this file also runs as a program that
prints what it measured; the tests read it.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tfrobust as tr  # noqa: E402
from tests import bank  # noqa: E402
from tests.bank_resume import resumed_equals_unbroken, until_killed  # noqa: E402
from tfrobust import noise  # noqa: E402

COUNT, BATCH, STEPS = 16, 16, 3
STILL = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2, random_start=False)
RANDOM = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2)
SGD = keras.optimizers.SGD


def data():
    return bank.images(COUNT, seed=5), np.arange(COUNT) % 4


def suppression():
    return [tr.regularizers.VulnerabilitySuppression(2.0)]


def dense(mask=lambda name: keras.layers.Identity()):
    """Traced sooner than the bank's convolutions."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(6)(keras.layers.Flatten()(inputs))
    x = mask("mask")(keras.layers.Activation("relu")(x))
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def accuracy():
    """No string: what is made at the first step is traced again."""
    return [keras.metrics.SparseCategoricalAccuracy("accuracy")]


def at_vs():
    game = tr.training.AdversarialTraining(
        bank.classifier(), STILL, mix=(1, 2), regularizers=suppression(), weight_decay=0.1
    )
    game.compile(SGD(0.1, momentum=0.9), metrics=accuracy())
    return game


def anp_vs(noisy=False, attack=STILL):
    """ANP-VS; without noise the masks are their expectation, but still learn."""
    net = dense(mask=lambda name: tr.layers.BetaBernoulliMask(seed=3, name=name))
    game = tr.training.ANP(
        net, attack, beta=5.0, train_size=20, regularizers=suppression(), weight_decay=0.1
    )
    if not noisy:
        for mask in game.masks():
            mask.sample = lambda count, m=mask: tf.tile(m.expected()[None], (count, 1))
    game.compile({"weights": SGD(0.1), "masks": SGD(1.0)})
    return game


def regularized():
    """The classifier's own regularization loss is a term written by hand too."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.1))(
        keras.layers.Flatten()(inputs)
    )
    keras.utils.set_random_seed(0)
    net = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Activation("relu")(x)))
    net.set_weights([np.random.default_rng(1).normal(0, 0.2, w.shape) for w in net.get_weights()])
    game = tr.training.AdversarialTraining(net, STILL)
    game.compile(SGD(0.1))
    return game


def trades():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an attack without noise cannot start on the KL
        game = tr.training.TRADES(
            dense(),
            STILL,
            beta=3.0,
            weight_decay=0.1,
            transform=tr.pruning.Surgery(c=0.2),
        )
    game.compile(SGD(0.1, momentum=0.9))  # weights that are functions of others, too
    return game


def bayes():
    """Weights are drawn once for all replicas, so their noise may stay on."""
    weights = tr.layers.GaussianWeights(20, initial=0.2, beta=2.0)
    game = tr.training.AdversarialTraining(dense(), STILL, mix=(1, 1), transform=weights)
    game.compile(SGD(0.1, momentum=0.9))
    return game


def afd():
    game = tr.training.AFD(bank.classifier(), STILL, weight_decay=0.1, discriminator_decay=0.1)
    game.compile({g: SGD(0.1, momentum=0.9) for g in game.groups}, metrics=accuracy())
    return game


def mart_awp():
    game = tr.training.MART(dense(), STILL, beta=3.0, weight_attack=tr.training.AWP(0.1))
    game.compile(SGD(0.1, momentum=0.9))
    return game


def free_at():
    game = tr.training.FreeAT(dense(), tr.threats.L2(0.7), replays=2, batch_size=BATCH, mix=(1, 2))
    game.compile(SGD(0.1))
    return game


def certified():
    game = tr.training.CertifiedTraining(
        dense(), tr.threats.Linf(0.1), bound="crown-ibp", crown=0.5, weight_decay=0.1,
        regularizers=[tr.training.ReLUStability(0.1)],
    )  # fmt: skip
    game.compile(SGD(0.1, momentum=0.9), metrics=accuracy())
    return game


GAMES = {
    "AT-VS": at_vs,
    "MART, AWP": mart_awp,
    "Free AT": free_at,
    "ANP-VS": anp_vs,
    "TRADES": trades,
    "AFD": afd,
    "AT BNN": bayes,
    "certified": certified,
    "layer regularizer": regularized,
}
QUICK = ("ANP-VS", "AFD", "weighted")
SLOW = tuple(name for name in GAMES if name not in QUICK)


def trained(make, weighted=False, eager=False):
    x, y = data()
    weights = np.linspace(0, 2, COUNT).astype("float32") if weighted else None
    game = make()
    game.run_eagerly = eager
    batches = tr.data.Batches(x, y, BATCH, seed=1, drop_remainder=True, sample_weight=weights)
    validation = batches if make is at_vs else None  # a trace less for the others
    history = game.fit(batches, epochs=STEPS, verbose=0, validation_data=validation).history
    return game, history


def values(game):
    optimizers = [v for o in game.optimizers.values() for v in o.variables]
    carried = [game.carried] if isinstance(game, tr.training.FreeAT) else []
    found = (*game.trainable_variables, *optimizers, *carried)
    return [np.asarray(v.numpy(), "float64") for v in found]


def compared(strategy, make, weighted=False):
    one, alone = trained(make, weighted, eager=True)  # three steps cost less than a trace
    with strategy.scope():
        two, together = trained(make, weighted)
    pairs = list(zip(values(one), values(two), strict=True))
    return {
        "weights": max(float(np.abs(a - b).max()) for a, b in pairs),
        "logs": {name: [alone[name], together[name]] for name in alone},
        "names": [sorted(alone), sorted(together)],
        "step": int(two.step.numpy()),
        "iterations": [int(o.iterations.numpy()) for o in two.optimizers.values()],
    }


def noises(strategy):
    """Per replica: gates of a mask, dropout, and a random start, for the same images."""
    x, y = data()
    x, y = tf.constant(x[:4]), tf.constant(y[:4])
    with strategy.scope():
        game = anp_vs(noisy=True, attack=RANDOM)
        mask = game.masks()[0]
        inputs = keras.Input((8, 8, 1))
        flat = keras.layers.Flatten()(inputs)
        dropped = keras.Model(inputs, keras.layers.Dropout(0.5)(flat))
        (state,) = (v for v in dropped.variables if v.name == "seed_generator_state")

    @tf.function
    def draw():
        def replica():
            gates = [mask.sample(4), mask.sample(4)]
            with noise.apart(dropped):
                kept = dropped(tf.ones_like(x), training=True)
            return gates[0], gates[1], game.attacked(x, y), kept, tf.identity(state.value)

        return strategy.run(replica)

    both = [[np.asarray(v) for v in strategy.experimental_local_results(part)] for part in draw()]
    (first, other), (again, _), (start, other_start), (kept, other_kept), states = both
    return {
        "gates": float(np.abs(first - other).max()),
        "next draw": float(np.abs(first - again).max()),
        "starts": float(np.abs(start - other_start).max()),
        "dropout": float(np.abs(kept - other_kept).max()),
        "states": [state.tolist() for state in states],
    }


def resumed(strategy):
    """Whether a broken, resumed fit on two replicas does what an unbroken one does."""

    def train(seed, *callbacks):
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            inputs = keras.Input((8, 8, 1))
            x = keras.layers.Dense(6)(keras.layers.Flatten()(inputs))
            x = keras.layers.Dropout(0.2)(tr.layers.BetaBernoulliMask(initial_a=2.0)(x))
            net = keras.Model(inputs, keras.layers.Dense(4)(x))
            game = tr.training.ANP(net, RANDOM, train_size=20)
            game.compile()
        batches = tr.data.Batches(*data(), 8, seed=1, drop_remainder=True)
        until_killed(game.fit, batches, epochs=4, verbose=0, callbacks=list(callbacks))
        return values(game)

    with tempfile.TemporaryDirectory() as folder:
        resumed_equals_unbroken(train, pathlib.Path(folder), kill=3, save_freq="epoch")
    return True


def main():
    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    # As in conftest.py: graphs that run three times are not worth a rewriting.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    names = sys.argv[1:]
    measured = {name: compared(strategy, GAMES[name]) for name in names if name in GAMES}
    if "weighted" in names:
        measured["weighted"] = compared(strategy, at_vs, weighted=True)
        measured["noise"] = noises(strategy)
        measured["resume"] = resumed(strategy)
    measured["replicas"] = strategy.num_replicas_in_sync
    print(json.dumps(measured))


@functools.cache
def run(*names):
    """What two replicas measure of these games, in a process of their own."""
    child = subprocess.run(
        [sys.executable, __file__, *names],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=500,
        check=False,
    )
    if child.returncode:
        pytest.fail(child.stderr[-3000:])
    return json.loads(child.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured():
    return run(*QUICK)


@pytest.fixture
def game(name):
    return run(*QUICK) if name in QUICK else run(*SLOW)


every_game = pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)


@every_game
def test_two_replicas_train_as_one_device(game, name):
    assert game["replicas"] == 2
    assert game[name]["weights"] <= 1e-5


@every_game
def test_two_replicas_report_as_one_device(game, name):
    """Loss, KL, penalty and accuracies, also of the validation."""
    ours, theirs = game[name]["names"]
    assert ours == theirs
    for metric, (one, two) in game[name]["logs"].items():
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5, err_msg=metric)


@every_game
def test_a_step_of_two_replicas_is_one_step(game, name):
    steps = 2 * STEPS if name == "Free AT" else STEPS  # two replays
    assert game[name]["step"] == steps
    assert set(game[name]["iterations"]) == {steps}


@pytest.mark.parametrize("kind", ["gates", "next draw", "starts", "dropout"])
def test_replicas_draw_different_noise(measured, kind):
    assert measured["noise"][kind] > 0.01


def test_replicas_keep_one_seed_state(measured):
    """Saved once and restored on all, so it must be the same on all between steps."""
    one, two = measured["noise"]["states"]
    assert one == two and one[1] == 1


def test_resume_is_exact_on_two_replicas(measured):
    assert measured["resume"]


if __name__ == "__main__":
    main()
