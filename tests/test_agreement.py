"""The comparison with other libraries: its arithmetic, the torch twins, and PGD beside foolbox's.

The comparison itself runs in `make agreement`.
"""

import argparse

import keras
import numpy as np
import pytest

import tfrobust as tr
from bench import agreement, duels
from tests import bank

# --- arithmetic -----------------------------------------------------------------------------


def test_only_legal_fooling_points_count():
    # Brighter than 1/2 is class 1. Wrong as it is; fooled; fooled too far away; not fooled.
    net = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    net.set_weights([np.array([[-2.0, 2.0]]), np.array([1.0, -1.0])])
    x = np.array([0.9, 0.4, 0.2, 0.3], "float32").reshape(4, 1, 1, 1)
    x_adv = np.array([0.9, 0.6, 0.8, 0.4], "float32").reshape(4, 1, 1, 1)
    clean = np.array([False, True, True, True])
    arguments = net, x, np.zeros(4, int), x_adv, clean
    assert agreement.judged(*arguments, epsilon=0.3) == {"robust": 2, "illegal": 1}
    # Distances of the three right ones: 0.2, 0.6, infinite.
    assert agreement.judged(*arguments, epsilon=None) == {"median": 0.6, "found": 2, "illegal": 0}


def test_goals_are_read_off_the_rows():
    rows = {
        "PGD, tfrobust": {"robust": 903, "images": 1000},
        "PGD, foolbox": {"robust": 900, "images": 1000},
        "PGD, ART": {"robust": 910, "images": 1000},
        "PGD, tfrobust, last iterate": {"robust": 904, "images": 1000},
        "DDN, tfrobust": {"median": 1.01},
        "DDN, foolbox": {"median": 1.0},
        "C&W, foolbox": {"median": 1.0},  # ours is not there yet: no goal
        "DeepFool, tfrobust": {"median": float("inf"), "found": 40},
        "DeepFool, foolbox": {"median": float("inf"), "found": 41},
        "AutoAttack, tfrobust": {"robust": 87, "images": 100},
        "AutoAttack, torchattacks": {"robust": 880, "images": 1000},
    }
    values = [value for _, value, _ in agreement.goals(rows)]
    assert values == [0.3, -0.7, 0.4, 0.6, 1.01, 1, 1.0]


def test_what_has_run_is_not_run_again():
    arguments = argparse.Namespace(only=["PGD"], images=1000, fresh=False)
    first = list(agreement.wanted({}, "abc", arguments))
    names = [f"{row['attack']}, {row['library']}" for row in first]
    assert "PGD, tfrobust" in names and "PGD, tfrobust, last iterate" in names
    done = dict(zip(names, first, strict=True))
    assert not list(agreement.wanted(done, "abc", arguments))
    assert len(list(agreement.wanted(done, "other weights", arguments))) == len(first)
    arguments.images = 100
    assert len(list(agreement.wanted(done, "abc", arguments))) == len(first)


# --- torch ----------------------------------------------------------------------------------


def taking(axis_rows=(0, 3, 3, 17, 31)):
    """A net that flattens a map and takes some of its rows, one of them twice."""
    inputs = keras.Input((8, 6, 2))
    x = keras.layers.Conv2D(4, 3, activation="relu", padding="same")(inputs)
    x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = keras.ops.take(x, np.array(axis_rows), axis=-1)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def strided():
    inputs = keras.Input((9, 7, 1))
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False)(inputs)
    x = keras.layers.Conv2D(6, 2, groups=2)(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("build", [tr.models.digits_net, taking, strided])
def test_torch_twin_gives_the_same_logits(build):
    pytest.importorskip("torch")
    from bench import torch_nets

    keras.utils.set_random_seed(0)
    model = build()
    x = bank.images(5, model.input_shape[1:])
    assert torch_nets.disagreement(model, torch_nets.carried_over(model), x) < 1e-5


@pytest.mark.parametrize("name", agreement.MODELS)
def test_torch_twins_of_the_saved_models(name):
    pytest.importorskip("torch")
    from bench import torch_nets

    model = keras.saving.load_model(agreement.SAVED / name / "model.keras", compile=False)
    x = bank.images(32, model.input_shape[1:])
    assert torch_nets.disagreement(model, torch_nets.carried_over(model), x) < 1e-4


def test_what_torch_twins_cannot_carry_is_refused():
    pytest.importorskip("torch")
    from bench import torch_nets

    inputs = keras.Input((4, 4, 1))
    flat = keras.layers.Flatten()(inputs)
    branched = keras.layers.Add()([keras.layers.Dense(3)(flat), keras.layers.Dense(3)(flat)])
    with pytest.raises(ValueError, match="must be a chain"):
        torch_nets.carried_over(keras.Model(inputs, branched))
    for layer, words in (
        (keras.layers.Dense(3, activation="tanh"), "no activation but ReLU"),
        (keras.layers.BatchNormalization(), "must consist of"),
    ):
        with pytest.raises(ValueError, match=words):
            torch_nets.carried_over(keras.Model(inputs, layer(keras.layers.Flatten()(inputs))))


# --- foolbox --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A small trained net and 50 test digits."""
    keras.utils.set_random_seed(0)
    data = tr.data.load("digits")
    net = tr.models.digits_net(widths=(4, 6, 16))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(1e-2), loss=loss)
    net.fit(data.x_train, data.y_train, batch_size=64, epochs=2, verbose=0)
    return net, data.x_test[:50], data.y_test[:50]


def test_pgd_beside_foolbox(digits):
    """The same start and steps: the last iterates agree, the best so far is never weaker."""
    pytest.importorskip("foolbox")
    net, x, y = digits

    def build(attacks):
        return attacks.LinfPGD(abs_stepsize=0.03, steps=5, random_start=False)

    def fooled(**options):
        threat = tr.threats.Linf(0.1)
        ours = tr.attacks.PGD(threat, steps=5, step_size=0.03, random_start=False, **options)
        return tr.attacks.verdicts(net, ours(net, x, y), y).sum()

    theirs = tr.attacks.verdicts(net, duels.foolbox(build, 0.1)(net, x, y), y).sum()
    assert 10 < theirs < 40  # else the comparison says nothing
    assert fooled(last_iterate=True) == theirs
    assert fooled() >= theirs


# Without early ends: foolbox judges progress by the sum over the batch, we by image.
SEARCH = {"steps": 20, "initial_const": 1.0, "abort_early": False}


@pytest.mark.parametrize(
    ("build", "ours"),
    [
        (lambda a: a.DDNAttack(steps=20), tr.attacks.DDN(tr.threats.L2(1.0), steps=20)),
        (lambda a: a.L2DeepFoolAttack(steps=10), tr.attacks.DeepFool(tr.threats.L2(1.0), steps=10)),
        (
            lambda a: a.L2CarliniWagnerAttack(binary_search_steps=2, stepsize=0.1, **SEARCH),
            tr.attacks.CarliniWagner(tr.threats.L2(1.0), search_steps=2, step_size=0.1, **SEARCH),
        ),
    ],
    ids=["DDN", "DeepFool", "C&W"],
)
def test_smallest_changes_beside_foolbox(digits, build, ours):
    pytest.importorskip("foolbox")
    net, x, y = digits
    clean = ~tr.attacks.verdicts(net, x, y)
    found = duels.foolbox(build)(net, x, y)
    theirs = agreement.judged(net, x, y, found, clean, None)
    mine = agreement.judged(net, x, y, ours.minimum(net, x, y).x_adv, clean, None)
    assert mine["found"] >= theirs["found"] > 0.8 * clean.sum()
    assert mine["median"] <= 1.02 * theirs["median"]
