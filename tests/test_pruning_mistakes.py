"""What goes wrong with pruning is named at once, in one line, before work is lost."""

import keras
import pytest

import tfrobust as tr
from tests.bank_pruning import adversarial, compiled, dense, fit
from tfrobust.pruning import (
    Geometric,
    Linear,
    MagnitudePruning,
    OneShot,
    Threshold,
    constant,
    polynomial,
)


def tfmot():
    return tr.pruning.borrowed.tfmot().sparsity.keras


MISTAKES = {
    "a number": (lambda: 0.9, {}, TypeError, r"`schedule` must be a schedule .* Received: 0\.9"),
    "a class": (lambda: OneShot, {}, TypeError, "`schedule` must be a schedule"),
    "a callback": (
        lambda: tfmot().UpdatePruningStep(), {}, TypeError,
        r"`schedule` must not hold tfmot's UpdatePruningStep.*use tr\.pruning\.MagnitudePruning",
    ),
    "no pair": (lambda: lambda step: 3, {}, TypeError, "`schedule` must return .should_prune"),
    "nan": (
        lambda: lambda step: (step == 0, float("nan")), {}, ValueError,
        r"`schedule` must give sparsities in \[0, 1\)\. Received: nan at step 0",
    ),
    "begin is end": (
        lambda: tfmot().PolynomialDecay(0.0, 0.5, 4, 4), {}, ValueError,
        "`schedule` must end after it begins.*Received: begin_step=4, end_step=4",
    ),
    "never reached": (
        lambda: tfmot().PolynomialDecay(0.0, 0.5, 0, 250, frequency=100), {}, ValueError,
        r"`schedule` must have end_step - begin_step a multiple of frequency.*end_step=200\)",
    ),
    "backwards": (
        lambda: tfmot().PolynomialDecay(0.5, 0.1, 0, 100), {}, ValueError,
        "`schedule` must not lead to less sparsity",
    ),
    "all": (lambda: OneShot(1.0), {}, ValueError, r"`final` must lie in \[0, 1\).*final=1\.0"),
    "all of tfmot": (lambda: constant(1.0), {}, ValueError, "`final` must lie in"),
    "all of the rest": (lambda: Geometric(1), {}, ValueError, r"`rho` must lie in \[0, 1\)"),
    "nothing of the rest": (lambda: Geometric(0.0), {}, ValueError, r"`rho` must lie in \(0, 1\)"),
    "no updates": (lambda: Linear(0.5, updates=0), {}, ValueError, "`updates` must be an integer"),
    "unit": (lambda: Linear(0.5, unit="batches"), {}, ValueError, "`unit` must be one of"),
    "structured": (
        lambda: OneShot(0.5), {"structured": "rows"}, ValueError, "`structured` must be None"
    ),
    "n:m": (lambda: OneShot(0.5), {"structured": (4, 2)}, ValueError, "`structured` must be"),
    "runs": (
        lambda: OneShot(0.4), {"structured": (2, 4)}, ValueError,
        r"`schedule` must end at 2 / 4 or above.*Received: 0\.4",
    ),
    "global runs": (
        lambda: OneShot(0.5), {"structured": (2, 4), "scope": "global"}, ValueError,
        '`scope` must be "layer"',
    ),
    "scope": (lambda: OneShot(0.5), {"scope": "net"}, ValueError, "`scope` must be one of"),
    "fan_in": (lambda: OneShot(0.5), {"normalise": "fan_in"}, ValueError, "`normalise` must be"),
    "no filters": (
        lambda: OneShot(0.5), {"min_filters": 0}, ValueError, "`min_filters` must be an integer"
    ),
    "quality": (lambda: Threshold(0.0), {}, ValueError, "`quality` must be > 0"),
    "global threshold": (
        lambda: Threshold(1.0), {"scope": "global"}, ValueError, "`schedule` must give a fraction"
    ),
    "rule": (lambda: OneShot(0.5), {"rule": "l2"}, TypeError, "`rule` must be a callable"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_at_once(name):
    schedule, options, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message) as error:
        MagnitudePruning(schedule(), **options)
    assert "\n" not in str(error.value)


LATE = {
    "unknown": ({"exclude": ["conv7"]}, r"`exclude` must name layers .*'logits'\].*'conv7'"),
    "nothing": ({"exclude": lambda layer: True}, "`model` must have kernels to prune.*excluded"),
    "no filters": ({"exclude": "first", "structured": "filters"}, "'logits': it makes the logits"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_the_model_does_not_allow(name):
    options, message = LATE[name]
    net = compiled(dense(), run_eagerly=True)
    before = net.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(net, MagnitudePruning(OneShot(0.5), **options))
    assert all((a == b).all() for a, b in zip(before, net.get_weights(), strict=True))


@pytest.mark.parametrize("make", [compiled, adversarial], ids=["plain", "game"])
def test_callbacks_of_tfmot_are_refused(make):
    model = make(dense(), run_eagerly=True)
    message = r"`callbacks` must not hold tfmot's UpdatePruningStep.*MagnitudePruning"
    for others in ([MagnitudePruning(OneShot(0.5))], [] if make is adversarial else None):
        if others is not None:
            with pytest.raises(TypeError, match=message):
                fit(model, *others, tfmot().UpdatePruningStep())


def test_wrapped_models_are_refused():
    tfmot()
    import tf_keras

    net = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(2)])
    with pytest.raises(TypeError, match="`classifier` must be a Keras 3 model, not one of"):
        adversarial(net)
    wrapped = tfmot().prune_low_magnitude(net)
    with pytest.raises(TypeError, match="`classifier` .*prune_low_magnitude.*MagnitudePruning"):
        adversarial(wrapped)
    with pytest.raises(TypeError, match="`model` must be a Keras 3 model"):
        tr.pruning.sparsity(wrapped)


@pytest.mark.parametrize(
    "schedule, message",
    [
        (Linear(0.6, updates=3, every=1), r"0\.6: training ended after 2 epochs at 0\.4"),
        (polynomial(0.0, 0.6, 0, 8, every=4), r"0\.6: training ended after 6 steps at 0\.525"),
    ],
    ids=["ours", "tfmot"],
)
def test_a_schedule_that_outlives_training_warns(schedule, message):
    net = compiled(dense(), run_eagerly=True)
    with pytest.warns(UserWarning, match=f"did not reach its final sparsity {message}"):
        fit(net, MagnitudePruning(schedule))


def test_early_stopping_and_keras_own_backup_are_warned_of(tmp_path):
    net = compiled(dense(), run_eagerly=True)
    prune = MagnitudePruning(Linear(0.5, updates=2, every=1))
    early = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    with pytest.warns(UserWarning, match="EarlyStopping that may restore.*behind epoch 1"):
        fit(net, prune, early)
    fit(net, prune, keras.callbacks.EarlyStopping("loss", 1, start_from_epoch=1))
    with pytest.warns(UserWarning, match="Take tr.training.Resume"):
        fit(net, prune, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
