"""Nets that get smaller while they train: the same logits, momenta carried on, killed and resumed.

Run as a program this file is the victim: it trains until it kills itself.
"""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfrobust as tr
from tests import bank
from tests.bank_masks import randomize
from tests.bank_resume import state, until_killed

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES, BATCH = 48, 16
SLOW = pytest.mark.slow


def shut(net, share=0.5, seed=0):
    """Shuts a share of the units of each mask that are still open."""
    rng = np.random.default_rng(seed)
    for mask in tr.layers.masks(net):
        left = np.flatnonzero(mask.keep())
        closed = rng.permutation(left)[: int(share * len(left))]
        noisy = isinstance(mask, tr.layers.VIBMask)
        variable = mask.log_var if noisy else mask.a_
        values = np.asarray(variable.numpy())
        values[closed] = 2.0 if noisy else -9.0
        variable.assign(values)
    return net


def opened(mask):
    """A factory of masks with different open gates; deterministic ones draw nothing."""

    def make(name):
        if mask is tr.layers.VIBMask:
            return mask(jitter=0.2, seed=1, name=name)
        return mask(initial_a=3.0, seed=1, name=name)

    return make


def normed(mask, slot):
    """SAME convolutions with normalization, dropout and a residual sum, masked in `slot`."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    for number in (1, 2):
        x = layers.Conv2D(6, 3, padding="same", name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization(name=f"norm{number}")(x))
        x = layers.Dropout(0.2, seed=number, name=f"dropout{number}")(x)
    side = layers.Conv2D(6, 1, name="side")(x)
    x = layers.Add(name="sum")([x, side])
    x = layers.MaxPooling2D(name="pool")(layers.Conv2D(8, 3, padding="same", name="conv3")(x))
    x = layers.Dense(10, activation="relu", name="dense")(layers.Flatten(name="flat")(x))
    net = keras.Model(inputs, layers.Dense(4, name="logits")(x))
    return tr.layers.insert_masks(randomize(net), opened(mask), slot)


def assert_same_logits(a, b):
    x = bank.images(32)
    x[::2, 1:-1, 1:-1] = 0.5
    a, b = (np.asarray(tr.attacks.forward(net, x), np.float64) for net in (a, b))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(1, np.abs(a).max()))
    np.testing.assert_array_equal(b.argmax(-1), a.argmax(-1))


@pytest.mark.parametrize(
    "mask, slot",
    [
        (tr.layers.VIBMask, "before_activation"),
        (tr.layers.BetaBernoulliMask, "after_activation"),
        pytest.param(tr.layers.VIBMask, "after_activation", marks=SLOW),
        pytest.param(tr.layers.BetaBernoulliMask, "before_activation", marks=SLOW),
    ],
)
def test_trimming_is_exact_and_leaves_masks_alive(mask, slot):
    net = shut(normed(mask, slot))
    before = [w.copy() for w in net.get_weights()]
    small, origins = tr.shrink.trim(net)
    assert_same_logits(net, small)
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [m.name for m in tr.layers.masks(small)] == [m.name for m in tr.layers.masks(net)]
    assert small.count_params() < 0.6 * net.count_params()
    assert {id(o.new) for o in origins} == {id(v) for v in small.variables}
    states = 0
    for origin in origins:
        path, old = origin.new.path, origin.old
        whole = path.split("/")[0].startswith("mask_") or "norm" in path
        if old is not None and (whole or "seed" in path):  # kernels may have taken up constants
            np.testing.assert_array_equal(origin.new.numpy(), origin.take(old.numpy()), path)
            states += "seed" in path
    assert states == len(tr.layers.masks(net)) + 2
    # What is left is cut again, and a net without shut units stays as it is.
    again, _ = tr.shrink.trim(shut(small, seed=1))
    assert_same_logits(small, again)
    assert again.count_params() < small.count_params()
    same, _ = tr.shrink.trim(again)
    assert [w.shape for w in same.get_weights()] == [w.shape for w in again.get_weights()]
    assert_same_logits(again, tr.shrink.compact(again))


def test_zeros_that_may_learn_stay():
    """Kernels and gammas that start at 0, as residual branches do, are no closed gates."""
    net = normed(tr.layers.VIBMask, "after_activation")
    net.get_layer("side").kernel.assign(np.zeros((1, 1, 6, 6)))
    net.get_layer("logits").kernel.assign(np.zeros((10, 4)))
    net.get_layer("norm1").gamma.assign(np.zeros(6))
    small, _ = tr.shrink.trim(net)
    assert small.count_params() == net.count_params()


def test_a_layer_whose_units_are_all_shut_keeps_one():
    net = normed(tr.layers.BetaBernoulliMask, "after_activation")
    net.get_layer("mask_conv1").a_.assign([-9.0] * 6)
    small, _ = tr.shrink.trim(net)
    assert_same_logits(net, small)
    assert small.get_layer("conv1").filters == 1
    assert small.get_layer("conv2").kernel.shape == (3, 3, 1, 6)


# --- games ----------------------------------------------------------------------------------------


def anp(net=None, mask=tr.layers.VIBMask, **optimizers):
    keras.utils.set_random_seed(0)
    net = net or tr.models.digits_net(4, widths=(8, 8, 12), mask=opened(mask))
    # No sign in the attack, which would make a step of a rounding error.
    attack = tr.attacks.FGSM(tr.threats.L2(0.5))
    terms = [tr.regularizers.VulnerabilitySuppression(1.0)]
    radius = keras.optimizers.schedules.CosineDecay(0.5, 40)
    game = tr.training.ANP(
        net, attack, train_size=EXAMPLES, regularizers=terms, epsilon=radius,
        kl_weights={tr.layers.masks(net)[0].name: 2.0},
    )  # fmt: skip
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 3, 0.5)
    weights, masks = keras.optimizers.Adam(schedule), keras.optimizers.SGD(1e-4)
    game.compile({"weights": weights, "masks": masks, **optimizers})
    return game


def batches():
    return tr.data.Batches(bank.images(EXAMPLES), np.arange(EXAMPLES) % 4, BATCH, seed=3)


def fit(game, epochs=2, first=0, **kwargs):
    game.fit(batches(), epochs=epochs, initial_epoch=first, verbose=0, **kwargs)
    return game


def test_a_cut_game_makes_the_steps_of_the_whole_one():
    """With frozen gates nothing is random, a dead unit gets no gradient and gives none: the cut net
    ends where the survivors of the whole one end. Momenta and iteration, both schedules, V and its
    units, and the order of the data all count. (Not Adam, which divides rounding errors by others;
    and kinks of |z - z'| make more of them too.)"""
    mask = tr.layers.BetaBernoulliMask
    net = shut(tr.models.digits_net(4, widths=(8, 8, 12), mask=opened(mask)))
    for gate in tr.layers.masks(net):
        gate.trainable = False
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    whole = anp(net, weights=keras.optimizers.SGD(schedule, momentum=0.9))
    fit(whole)
    cut = tr.training.shrunk(whole)
    survivors = {o.new.path: o for o in tr.shrink.trim(whole.classifier)[1]}
    assert cut.regularizers[0].units == [512, 512, 12] and int(cut.step.numpy()) == 6
    assert cut.classifier.get_layer("conv1").filters == 4
    start, moved = {v.path: v.numpy() for v in cut.classifier.trainable_variables}, 0.0
    for game in (whole, cut):
        fit(game, 4, 2)
    for variable in cut.classifier.trainable_variables:
        origin, value = survivors[variable.path], variable.numpy()
        wanted = origin.take(origin.old.numpy())
        np.testing.assert_allclose(value, wanted, rtol=0, atol=5e-5, err_msg=variable.path)
        moved = max(moved, np.abs(value - start[variable.path]).max())
    assert moved > 0.01
    for name in ("regularization", "robust_accuracy"):
        values = [game.history.history[name] for game in (whole, cut)]
        np.testing.assert_allclose(*values, rtol=1e-3)
    assert_same_logits(whole.classifier, cut.classifier)


@pytest.mark.parametrize("mask", bank.MASKS)
def test_momenta_are_those_of_the_survivors(mask):
    game, rng = anp(mask=mask, masks=keras.optimizers.AdamW(1e-2)), np.random.default_rng(0)
    shut(game.classifier)
    for variable in {id(v): v for o in game.optimizers.values() for v in o.variables}.values():
        if variable.shape:
            variable.assign(rng.normal(size=variable.shape))
    game.optimizers["masks"].iterations.assign(7)
    new = tr.training.shrunk(game)
    assert int(new.optimizers["masks"].iterations.numpy()) == 7
    alive, second = (game.classifier.get_layer(f"mask_conv{n}").keep() for n in (1, 2))
    for name in ("_momentums", "_velocities"):
        slots = []
        for each in (game, new):
            parts = each.optimizers.values()
            pairs = ((o._trainable_variables, getattr(o, name)) for o in parts)
            slots.append({v.path: s.numpy() for p in pairs for v, s in zip(*p, strict=True)})
        old, cut = slots
        assert list(old) == list(cut)
        wanted = old["conv2/kernel"][:, :, alive][..., second]
        np.testing.assert_array_equal(cut["conv2/kernel"], wanted)
        np.testing.assert_array_equal(cut["conv1/bias"], old["conv1/bias"][alive])
        gates = [path for path in old if path.startswith("mask_conv2/")]
        assert len(gates) == 2 and alive.sum() == second.sum() == 4
        for path in gates:
            np.testing.assert_array_equal(cut[path], old[path][second])
    assert new.attack is game.attack and type(new) is type(game)


class Shut(keras.callbacks.Callback):
    """Units die at the ends of the first two epochs."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch < 2:
            shut(self.model.classifier, 0.4, seed=epoch)


class Kill(keras.callbacks.Callback):
    """Ends the process, or only the `fit`, before a batch."""

    def __init__(self, batches, really=False):
        super().__init__()
        self.left, self.really = batches, really

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left < 0:
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def run(folder=None, kill=None, really=False, seed=0, epochs=6, shrink_every=2):
    game = anp()
    keras.utils.set_random_seed(seed)
    early = keras.callbacks.EarlyStopping("units", mode="min", patience=2)
    killer = [] if kill is None else [Kill(kill, really)]
    return until_killed(
        tr.training.fit_and_shrink, game, batches(), epochs=epochs, shrink_every=shrink_every,
        directory=folder, verbose=0, callbacks=[Shut(), early, *killer],
    )  # fmt: skip


def flops(net):
    """Of the net that is trained: every channel it has, shut or not."""

    def visit(node, *args, **kwargs):
        gate = isinstance(node.layer, tr.layers.Mask)
        return args[0] if gate else tr.graph.copy(node, *args, **kwargs)

    return tr.footprint.measure(tr.graph.rebuild(net, visit)).flops


@pytest.fixture(scope="module")
def unbroken():
    return run()


def test_stretches_are_one_fit_that_gets_cheaper(unbroken):
    game, history = unbroken
    # EarlyStopping sees units die until epoch 2 and gives up two epochs later, in stretch 3.
    assert history.epoch == [0, 1, 2, 3, 4] and int(game.step.numpy()) == 15
    assert int(game.optimizers["weights"].iterations.numpy()) == 15
    assert history.history["units"] == [28, 18, 11, 11, 11]
    assert history.history["units_trained"] == [28, 28, 11, 11, 11]
    assert len(history.history["loss"]) == 5
    assert [m.keep().size for m in game.masks()] == [3, 3, 5]
    assert flops(game.classifier) < flops(anp().classifier) / 3


@pytest.mark.slow
@pytest.mark.parametrize("kill", [2, 4, 8])
def test_killed_and_resumed_ends_in_the_same_bits(unbroken, tmp_path, kill):
    """Within the first stretch, in its second epoch, and within the smaller net's epochs."""
    assert run(tmp_path / "run", kill) is None
    game, history = run(tmp_path / "run", seed=1)
    for a, b in zip(state(unbroken[0]), state(game), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history.epoch == unbroken[1].epoch and history.history == unbroken[1].history
    assert not (tmp_path / "run").exists()


@SLOW
def test_too_few_dead_units_wait():
    game = anp(shut(anp().classifier, 0.13))
    settings = {"epochs": 2, "verbose": 0}
    same, _ = tr.training.fit_and_shrink(game, batches(), least=0.5, **settings)
    assert same is game
    other, _ = tr.training.fit_and_shrink(game, batches(), least=0.0, **settings)
    assert other.classifier.count_params() < game.classifier.count_params()


def pruned():
    net = normed(tr.layers.VIBMask, "after_activation")
    tr.pruning.prune(net, 0.5)
    return anp(net)


def averaged():
    game = anp()
    ema = keras.optimizers.Adam(use_ema=True)
    game.compile({"weights": ema, "masks": keras.optimizers.SGD(1e-2)})
    return game


def go(game, **kwargs):
    kwargs = {"epochs": 2, "verbose": 0, **kwargs}
    return tr.training.fit_and_shrink(game, kwargs.pop("x", batches()), **kwargs)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: go(keras.Sequential()), TypeError, "`game` must be a tr.training.Game"),
        (lambda: go(tr.training.TRADES(tr.models.digits_net(4), tr.threats.Linf(0.1))), ValueError,
         "must be compiled"),
        (lambda: go(averaged()), ValueError, "use_ema"),
        (lambda: go(pruned()), ValueError, "pruning mask"),
        (lambda: go(anp(), shrink_every=0), ValueError, "`shrink_every` must be an integer >= 1"),
        (lambda: go(anp(), least=1), ValueError, "`least`"),
        (lambda: go(anp(), initial_epoch=1), ValueError, "initial_epoch"),
        (lambda: go(anp(), callbacks=tr.training.Resume("x")), ValueError, "give `directory`"),
        (lambda: go(anp(), callbacks=[keras.callbacks.EarlyStopping(restore_best_weights=True)]),
         ValueError, "restore_best_weights=False"),
        (lambda: go(anp(), directory="x", x=bank.images(4), y=np.arange(4)), ValueError, "Batches"),
        (lambda: tr.shrink.trim(tr.models.digits_net()), ValueError, "must have masks"),
        (lambda: tr.regularizers.VulnerabilitySuppression(units=[3]), ValueError, "`units`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(call, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_another_run_is_refused(tmp_path):
    assert run(tmp_path, 0) is None
    with pytest.raises(ValueError, match="another run .shrinking.shrink_every: 2 there, 3 here"):
        run(tmp_path, shrink_every=3)


@SLOW
def test_kill_9(unbroken, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_stretches", tmp_path / "run", "7"], cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    game, _ = run(tmp_path / "run", seed=1)
    for a, b in zip(state(unbroken[0]), state(game), strict=True):
        np.testing.assert_array_equal(a, b)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), really=True)
