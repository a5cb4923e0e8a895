"""Pruning under plain `fit`: exact zeros, exact counts, any optimizer, any game, any mistake."""

import io
import os
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

import tfrobust as tr
from tests import bank, bank_pruning
from tests.bank_pruning import OPTIMIZERS, Watch, adversarial, compiled, dense, fit
from tfrobust.pruning import (
    Geometric,
    Linear,
    MagnitudePruning,
    OneShot,
    Threshold,
    constant,
    polynomial,
)
from tfrobust.pruning.constraint import optimizers_of, slots


def pruned(model):
    """{layer: number of exact zeros in its kernel}."""
    return {name: int((~mask).sum()) for name, mask in tr.pruning.masks_of(model).items()}


def tfmot():
    return tr.pruning.borrowed.tfmot().sparsity.keras


# The invariant ----------------------------------------------------------------------------------


QUICK = ("momentum", "adam-ema")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in OPTIMIZERS],
)
def test_zeros_hold_in_fit(name):
    # Eager steps take milliseconds, a trace seconds; other tests of this file are traced.
    net = compiled(dense(), OPTIMIZERS[name](), run_eagerly=True)
    prune = MagnitudePruning(polynomial(0.0, 0.75, 1, 5, every=2))
    watch = Watch(prune)
    history = fit(net, prune, watch, validation_data=bank_pruning.data(8))
    assert watch.pruned == [0, 0, 0, 105, 105, 120, 120]  # 0, 0.65625 and 0.75 before 1, 3 and 5
    assert pruned(net) == {"hidden": 96, "logits": 24}
    assert history.history["sparsity"] == [0.0, 0.75]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_hold_in_every_optimizer(name):
    """The same without `fit`, gradients of any size at pruned entries; slots are cleared."""
    net, rng = dense(), np.random.default_rng(0)
    optimizer = net.optimizer = OPTIMIZERS[name]()
    variables = net.trainable_variables
    optimizer.build(variables)
    for step in range(6):
        if step in (2, 4):
            tr.pruning.prune(net, 0.25 * step / 2)
            masks = tr.pruning.masks_of(net)
            assert pruned(net) == {"hidden": 16 * step, "logits": 4 * step}
            for inner in optimizers_of(net):
                for layer, mask in masks.items():
                    for slot in slots(inner, net.get_layer(layer).kernel):
                        assert (slot.numpy()[~mask] == 0).all()
        optimizer.apply([rng.normal(0, 9, v.shape).astype("float32") for v in variables], variables)
        if step >= 2:
            for layer, mask in tr.pruning.masks_of(net).items():
                assert np.isfinite(net.get_layer(layer).kernel.numpy()).all()
                assert (mask <= masks[layer]).all()


def test_the_users_constraint_comes_first():
    net = compiled(dense(keras.constraints.NonNeg()), run_eagerly=True)
    prune = MagnitudePruning(OneShot(0.25))
    fit(net, prune, Watch(prune), epochs=1)
    kernel = net.get_layer("hidden").kernel.numpy()
    assert (kernel >= 0).all() and (kernel == 0).sum() >= 32
    assert isinstance(net.get_layer("hidden").kernel_constraint, keras.constraints.NonNeg)
    tr.pruning.release(net)
    assert net.get_layer("hidden").kernel.constraint is net.get_layer("hidden").kernel_constraint


def test_masks_are_no_weights_of_the_model():
    net = compiled(dense(), run_eagerly=True)
    before = len(net.variables)
    prune = MagnitudePruning(OneShot(0.5))
    fit(net, prune, epochs=1)
    assert len(net.variables) == before
    kernel = net.get_layer("hidden").kernel
    mask = kernel.constraint.mask
    assert not mask.trainable and mask.shape == kernel.shape
    assert all(mask is not v for v in net.trainable_variables)


# Traced steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [compiled, adversarial], ids=["plain", "game"])
def test_a_traced_step_learns_of_the_masks(make):
    """Attached late, moved while traced, held by later fits without the callback."""
    model = make(dense())
    fit(model, epochs=1)
    prune = MagnitudePruning(polynomial(0.0, 0.8, 1, 3, every=1))
    watch = Watch(prune)
    fit(model, prune, watch, epochs=2)
    assert watch.pruned == [0, 0, 113, 129, 129, 129, 129]
    fit(model, epochs=1)
    assert pruned(model) == {"hidden": 103, "logits": 26}
    assert tr.pruning.sparsity(model) == 129 / 160


def test_the_classifier_alone_is_traced_anew_after_a_game():
    net = compiled(dense())
    fit(net, epochs=1)
    game = adversarial(net, run_eagerly=True)
    fit(game, MagnitudePruning(OneShot(0.5)), epochs=1)
    fit(net, epochs=1)
    assert pruned(net) == {"hidden": 64, "logits": 16}


def test_games_on_one_classifier_learn_of_the_masks_one_by_one():
    """The same callback goes on in another game, whose step was traced without the masks."""
    net = dense()
    first, second = adversarial(net), compiled(net)
    fit(second, epochs=1)
    game, prune = adversarial(net), MagnitudePruning(OneShot(0.5))
    fit(game, epochs=1)
    fit(first, prune, epochs=1)
    step = first.train_function
    fit(game, prune, Watch(prune), epochs=1)
    fit(first, prune, epochs=1)
    assert first.train_function is step  # traced once
    assert pruned(net) == {"hidden": 64, "logits": 16}


@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_steps_per_execution(eager):
    """Three steps an epoch, two at once: points at 0, 1, ... are met before steps 0, 2, 3, 5."""
    net = compiled(dense(), steps_per_execution=2, run_eagerly=eager)
    prune = MagnitudePruning(polynomial(0.1, 0.8, 0, 5, power=1, every=1))
    watch = Watch(prune)
    fit(net, prune, watch, epochs=2)
    # s = 0.1, 0.38, 0.52, 0.8 (0.24 and 0.66 are passed over).
    assert watch.pruned == [17, 62, 84, 129, 129]


def test_inside_anp():
    x, y = bank_pruning.data()
    game = tr.training.ANP(
        bank.classifier(shape=(4, 4, 1), mask=tr.layers.BetaBernoulliMask),
        tr.attacks.FGSM(tr.threats.Linf(0.1)),
        train_size=24,
    )
    game.compile(run_eagerly=True)
    prune = MagnitudePruning(constant(0.5, every=1), exclude="first")
    watch = Watch(prune)
    history = game.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[prune, watch])
    zeros = pruned(game)
    assert zeros["conv1"] == 0 and zeros["conv2"] == 108 and zeros["logits"] == 16
    assert history.history["sparsity"] == pytest.approx([0.5, 0.5])
    assert tr.pruning.sparsity(game) < 0.5  # the excluded layer counts here


# Counts -----------------------------------------------------------------------------------------


def test_a_third_of_what_is_left():
    """784 -> 2, the sequence of Guo et al., through `fit`."""
    inputs = keras.Input((28,))
    net = keras.Model(inputs, keras.layers.Dense(28, name="only")(inputs))
    net.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    prune = MagnitudePruning(Geometric(1 / 3, updates=16, unit="steps"))
    watch = Watch(prune)
    x = bank.images(17, (28,))
    history = net.fit(x, x, batch_size=1, verbose=0, callbacks=[prune, watch])
    left = [523, 349, 233, 156, 104, 70, 47, 32, 22, 15, 10, 7, 5, 4, 3, 2, 2, 2]
    assert [784 - gone for gone in watch.pruned] == left
    assert history.history["sparsity"] == pytest.approx([0.9974], abs=1e-4)


def test_epochs_are_counted_over_several_fits():
    net = compiled(dense(), run_eagerly=True)
    prune = MagnitudePruning(Linear(0.6, updates=3, every=2, begin=1))
    seen = []
    for epochs in (3, 2, 1):
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            seen += fit(net, prune, epochs=epochs).history["sparsity"]
    assert np.allclose(seen, [0.0, 0.2, 0.2, 0.4, 0.4, 0.6], atol=0.01)


@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.5, 0.9])
def test_counts_are_those_of_tfmot_up_to_its_rounding(fraction):
    """tfmot keeps max(round(n (1 - s)), 1), we prune min(ceil(s n), n - 1)."""
    tfmot()
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    net = dense()
    weights = [net.get_layer(n).kernel for n in ("hidden", "logits")]
    impl = pruning_impl.Pruning(lambda: 0, [], lambda step: (True, fraction), (1, 1), "AVG")
    theirs = [impl._update_mask(w.value)[1].numpy().astype(bool) for w in weights]
    tr.pruning.prune(net, fraction)
    for ours, mask in zip(tr.pruning.masks_of(net).values(), theirs, strict=True):
        assert 0 <= mask.sum() - ours.sum() <= 1
        assert (ours <= mask).all()


def test_schedules_of_tfmot_are_asked_before_each_step():
    """s(10), s(50), s(100) of (0, 0.9, 0, 100, power 3), and a subclass written for one step."""

    class Steps(tfmot().PruningSchedule):
        def __call__(self, step):
            if step < 3:
                return tf.constant(False), tf.constant(0.0)
            return step == 3, tf.constant(0.3)

        def get_config(self):
            return {}

    adapted = tr.pruning.borrowed.adapted(polynomial(0.0, 0.9, 0, 100, every=10))
    assert [adapted.crossed(at - 1, at) for at in (10, 50, 55, 100, 110)] == [
        10,
        50,
        None,
        100,
        None,
    ]
    assert [round(adapted.target(at), 4) for at in (10, 50, 100)] == [0.2439, 0.7875, 0.9]
    assert adapted.crossed(-1, 5000) == 100 and adapted.crossed(100, 5000) is None
    own = tr.pruning.borrowed.adapted(Steps())
    assert own.crossed(-1, 2) is None and own.crossed(2, 9) == 3
    assert own.count(10, 3) == 3  # 0.3 as float32 is more than 0.3
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def test_the_last_point_at_the_end_of_training_counts():
    """`end_step` = number of steps, as tfmot's guide has it: its counter starts at one."""
    net = compiled(dense(), run_eagerly=True)
    history = fit(net, MagnitudePruning(polynomial(0.0, 0.5, 0, 6, every=3)))
    assert history.history["sparsity"][-1] == 0.5
    assert tr.pruning.sparsity(net) == 0.5


def test_global_ranking_is_one_ranking():
    net = dense()
    net.get_layer("logits").kernel.assign(net.get_layer("logits").kernel * 100)
    tr.pruning.prune(net, 0.75, scope="global")
    assert pruned(net) == {"hidden": 120, "logits": 0}
    tr.pruning.prune(net, 0.9, scope="global")
    assert pruned(net) == {"hidden": 127, "logits": 17}  # every layer keeps its best


@pytest.mark.parametrize("runs", [(2, 4), (1, 4), (3, 4), (2, 3)])
def test_m_of_n_is_that_of_tfmot(runs):
    tfmot()
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="three")(inputs)
    x = keras.layers.Conv2D(8, 3, name="six")(x)
    net = keras.Model(inputs, keras.layers.Dense(4, name="rows")(keras.layers.Flatten()(x)))
    kernels = {layer.name: layer.kernel.numpy() for layer in net.layers if layer.weights}
    tr.pruning.prune(net, runs[0] / runs[1], structured=runs)
    for name, mask in tr.pruning.masks_of(net).items():
        rows = pruning_utils.weights_rearrange(tf.constant(kernels[name]))
        theirs = pruning_utils.generate_m_by_n_mask(rows, runs)
        theirs = pruning_utils.m_by_n_sparsity_mask_prepare(
            theirs, tf.TensorShape(kernels[name].shape)
        )
        np.testing.assert_array_equal(mask, theirs.numpy().astype(bool))


def test_runs_go_step_by_step():
    net = compiled(dense(), run_eagerly=True)
    prune = MagnitudePruning(Linear(0.5, updates=2, every=1), structured=(2, 4))
    watch = Watch(prune)
    fit(net, prune, watch)
    assert watch.pruned == [40, 40, 40, 80, 80, 80, 80]


def test_a_rule_of_ones_own():
    net = dense()
    tr.pruning.prune(net, 0.5, rule=lambda kernel, layer: np.full_like(kernel, 1.0))
    kernel = net.get_layer("logits").kernel.numpy()
    assert (kernel.reshape(-1)[:16] == 0).all() and kernel.reshape(-1)[16:].all()
    with pytest.raises(ValueError, match="`rule` must return scores >= 0"):
        tr.pruning.prune(net, 0.6, rule=lambda kernel, layer: kernel)


# Averages, saving, loading ----------------------------------------------------------------------


def test_averages_in_the_models_place_are_clean():
    """SwapEMAWeights puts averages in for validation; at the end they stay."""
    average = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)
    net = compiled(dense(), average, run_eagerly=True)
    prune = MagnitudePruning(OneShot(0.5))
    swap = keras.callbacks.SwapEMAWeights()
    fit(net, swap, prune, Watch(prune), validation_data=bank_pruning.data(8))
    assert pruned(net) == {"hidden": 64, "logits": 16}


@pytest.mark.parametrize("structured", [None, "filters"])
def test_zeros_survive_saving_loading_and_tuning(tmp_path, structured):
    net = compiled(dense(), run_eagerly=True)
    fit(net, MagnitudePruning(OneShot(0.5), structured=structured), epochs=1)
    net.save(tmp_path / "net.keras")
    masks = tr.pruning.masks_of(net)
    for average in (False, True):
        again = keras.saving.load_model(tmp_path / "net.keras")
        for name, mask in tr.pruning.masks_of(again).items():
            np.testing.assert_array_equal(mask, masks[name])
        optimizer = keras.optimizers.Adam(0.1, use_ema=average)
        compiled(again, optimizer, run_eagerly=True)
        if average:
            fit(again, MagnitudePruning(tr.pruning.Keep()))
        else:
            held = tr.pruning.freeze(again)
            assert held.pruned == sum((~mask).sum() for mask in masks.values())
            fit(again)
        for name, mask in tr.pruning.masks_of(again).items():
            np.testing.assert_array_equal(mask, masks[name])
        if structured:
            dead = ~masks["hidden"].any(axis=0)
            for values in again.get_layer("norm").get_weights()[:2]:
                assert (values[dead] == 0).all()
            assert (again.get_layer("hidden").bias.numpy()[dead] == 0).all()


def test_a_new_callback_starts_from_masks_but_not_from_weights_loaded_over_them():
    net = compiled(dense(), run_eagerly=True)
    dense_weights = net.get_weights()
    fit(net, MagnitudePruning(OneShot(0.75)), epochs=1)
    first = tr.pruning.masks_of(net)
    prune = MagnitudePruning(OneShot(0.5))
    fit(net, prune, epochs=1)
    assert prune.report().sparsity == 0.75
    assert all((m == first[n]).all() for n, m in tr.pruning.masks_of(net).items())
    net.set_weights(dense_weights)
    fit(net, MagnitudePruning(OneShot(0.5)), epochs=1)
    assert pruned(net) == {"hidden": 64, "logits": 16}


# Reports ----------------------------------------------------------------------------------------


def test_report():
    net = compiled(dense(), run_eagerly=True)
    prune = MagnitudePruning(OneShot(0.5), exclude=["last"])
    with pytest.raises(ValueError, match="pass this callback to `fit` first"):
        prune.report()
    fit(net, prune, epochs=1)
    report = prune.report()
    assert (report.pruned, report.total, report.sparsity) == (64, 128, 0.5)
    assert report.left == (("logits", "it is excluded"),)
    assert str(report) == "50.00 % of 128 weights pruned (hidden 50.0 %)"
    assert report.to_dict()["rows"][0]["sparsity"] == 0.5
    console = Console(file=io.StringIO(), width=100)
    console.print(report)
    assert "it is excluded" in console.file.getvalue()


def test_nothing_leaves_the_device_between_updates(monkeypatch):
    """Per batch the callback compares two integers: no weight or mask is read."""
    net = compiled(dense(), run_eagerly=True)
    prune = MagnitudePruning(constant(0.5, every=1))
    fit(net, prune, epochs=1)

    def read(variable):
        raise AssertionError("a read")

    for module in (tr.pruning.pruner, tr.pruning.constraint, tr.pruning.figures):
        monkeypatch.setattr(module, "numpy", read)
    for batch in range(50):
        prune.on_train_batch_begin(batch)
        prune.on_train_batch_end(batch)


def test_thresholds_say_by_themselves_how_much_goes():
    net = compiled(dense(), keras.optimizers.SGD(0.0), run_eagerly=True)
    before = net.get_layer("hidden").kernel.numpy()
    prune = MagnitudePruning(Threshold(1.0, updates=2, every=1))
    watch = Watch(prune)
    fit(net, prune, watch)
    left = before[np.abs(before) >= before.std()]
    assert watch.pruned[3] > watch.pruned[0] >= before.size - left.size
    once = before.size - left.size
    twice = before.size - (np.abs(left) >= left.std()).sum()
    assert pruned(net)["hidden"] == twice >= once
