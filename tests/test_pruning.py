"""Pruning under plain `fit`: exact zeros, exact counts, any optimizer, any game, any mistake."""

import numpy as np
import pytest

import tfrobust as tr
from tests import bank_pruning
from tests.bank_pruning import OPTIMIZERS, Watch, compiled, dense, fit
from tfrobust.pruning import MagnitudePruning, polynomial
from tfrobust.pruning.constraint import optimizers_of, slots


def pruned(model):
    """{layer: number of exact zeros in its kernel}."""
    return {name: int((~mask).sum()) for name, mask in tr.pruning.masks_of(model).items()}


# The invariant ----------------------------------------------------------------------------------


QUICK = ("momentum", "adam-ema", "schedule-free")


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
