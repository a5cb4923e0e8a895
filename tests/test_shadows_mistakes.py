"""What goes wrong around pruning in games is refused in one line, or holds all the same."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import tfrobust as tr
from tests.bank_pruning import compiled, data, dense, fit
from tfrobust import models as M
from tfrobust.pruning import (
    Keep,
    Ladder,
    LearnedScores,
    Linear,
    MagnitudePruning,
    OneShot,
    Surgery,
    Threshold,
)
from tfrobust.training import snapshot

LINF = tr.threats.Linf(0.1)
NOBODY = tr.attacks.PGD(tr.threats.Linf(0.0), steps=0, random_start=False)


def play(net, transform=None, optimizer="sgd", **options):
    game = tr.training.AdversarialTraining(net, NOBODY, mix=(1, 0), transform=transform, **options)
    game.compile(optimizer, run_eagerly=True)
    return game


# Loops of one's own -----------------------------------------------------------------------------


def test_single_batches_train_what_fit_trains():
    """A step of `train_on_batch` is a step of `fit`: the classifier is not all zeros behind it."""
    x, y = data(8)
    games = [play(dense(), LearnedScores(0.5), optimizers.SGD(0.1)) for _ in range(2)]
    games[0].train_on_batch(tf.constant(x), tf.constant(y))
    games[1].fit(x, y, batch_size=8, shuffle=False, verbose=0)
    kernels = [[w.numpy() for w in game.classifier.weights] for game in games]
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_array_equal(a, b)
    assert tr.pruning.sparsity(games[0].classifier) == 0.5


@pytest.mark.parametrize("make", [lambda: Surgery(0.2), lambda: LearnedScores(0.5)])
def test_a_step_before_the_beginning_is_refused(make):
    net = dense()
    before, game = [v.numpy() for v in net.trainable_variables], play(net, make())
    batch = tuple(map(tf.constant, data(8)))
    with pytest.raises(ValueError, match=r"call game\.transform\.begin\(\)\. Received") as error:
        game.train_step(batch)
    assert "\n" not in str(error.value)
    for a, b in zip(before, net.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    game.transform.begin()
    game.train_step(batch)
    assert 0.1 < tr.pruning.sparsity(net) < 0.9


# The same run? ----------------------------------------------------------------------------------


def unnamed():
    inputs = keras.Input((4,))
    x = layers.ReLU()(layers.Dense(3)(layers.Dense(3)(inputs)))
    return keras.Model(inputs, layers.Dense(2)(x))


def hidden(net):
    return [layer.name for layer in net.layers if isinstance(layer, layers.Dense)]


RUNS = {
    "exclude": lambda net, n: play(net, LearnedScores(0.5, exclude=hidden(net)[n])),
    "c": lambda net, n: play(
        net, Surgery({name: float(i == n) for i, name in enumerate(hidden(net))})
    ),
    "features": lambda net, n: play(
        net, regularizers=[tr.regularizers.VulnerabilitySuppression(1, features=[hidden(net)[n]])]
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_layers_that_a_user_names_tell_runs_apart(name):
    """Keras numbers layers per process: their place counts, in a user's arguments as well."""
    runs = [snapshot.fingerprint(RUNS[name](unnamed(), n), None) for n in (1, 1, 2)]
    assert not snapshot.difference(runs[0], runs[1])
    assert name in snapshot.difference(runs[0], runs[2])


def test_another_excluded_layer_is_refused(tmp_path):
    batches = tr.data.Batches(np.ones((8, 4), "float32"), np.arange(8) % 2, 4)

    def train(number):
        net = unnamed()
        game = play(net, LearnedScores(0.5, exclude=hidden(net)[number]))
        resume = tr.training.Resume(tmp_path, delete_checkpoint=False)
        game.fit(batches, epochs=1, verbose=0, callbacks=[resume])

    train(1)
    train(1)
    with pytest.raises(ValueError, match="another run.*exclude"):
        train(2)


def scaled(factor):
    return lambda kernel, layer: factor * np.abs(kernel)


def test_rules_are_told_apart_by_what_they_do():
    rules = [scaled(1), scaled(2), lambda k, layer: k**2, lambda k, layer: abs(k)]
    rules += [functools.partial(np.maximum, 1), functools.partial(np.maximum, 2)]
    texts = [MagnitudePruning(OneShot(0.5), rule=rule)._identity() for rule in rules]
    assert len(set(texts)) == len(rules)
    again = MagnitudePruning(OneShot(0.5), rule=scaled(1))._identity()
    assert again == texts[0] and " at 0x" not in "".join(texts)


# Averages ---------------------------------------------------------------------------------------

AVERAGES = {
    "decay": lambda: optimizers.AdamW(0.05, weight_decay=0.1, use_ema=True, ema_momentum=0.5),
    "wrapped": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.05, use_ema=True)),
}


def held(net, masks):
    return all((net.get_layer(n).kernel.numpy()[~m] == 0).all() for n, m in masks.items())


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_hold_in_a_fit_without_the_callback(name):
    net = compiled(dense(), AVERAGES[name](), run_eagerly=True)
    fit(net, MagnitudePruning(OneShot(0.9)), epochs=1)
    masks = tr.pruning.masks_of(net)
    fit(net, epochs=1)
    assert held(net, masks) and tr.pruning.sparsity(net) >= 0.9


@pytest.mark.parametrize("kind", ["eager", "graph", "game"])
def test_averages_of_an_optimizer_that_comes_later(kind):
    net = dense()
    tr.pruning.prune(net, 0.9)
    masks = tr.pruning.masks_of(net)
    for name in masks:
        net.get_layer(name).kernel.constraint = None
    assert tr.pruning.freeze(net).sparsity >= 0.9
    optimizer = AVERAGES["decay"]()
    if kind == "game":
        fit(play(net, optimizer=optimizer), epochs=1)
    else:
        fit(compiled(net, optimizer, run_eagerly=kind == "eager"), epochs=1)
    assert held(net, masks)
    moved = net.get_layer("hidden").kernel.numpy()[masks["hidden"]]
    assert np.abs(moved).min() > 0


# One line ---------------------------------------------------------------------------------------


def nan(bias=False):
    net = dense()
    layer = net.get_layer("logits")
    variable = layer.bias if bias else layer.kernel
    variable.assign(np.full(variable.shape, np.nan, "float32"))
    return net


def begin(transform, net=None):
    transform.attach(dense() if net is None else net)
    transform.begin()


def trades(**options):
    return tr.training.TRADES(dense(), LINF, **options)


def weighed():
    game = tr.training.TRADES(dense(), LINF)
    game.compile("sgd", run_eagerly=True)
    x, y = data(8)
    game.fit(x, y, sample_weight=np.ones((8, 2), "float32"), verbose=0)


def both(callback):
    fit(play(dense(), LearnedScores(0.5)), callback)


V, T = ValueError, TypeError
BAD = {
    "wrapped average": (
        lambda: play(dense(), LearnedScores(0.5), AVERAGES["wrapped"]()), V, "must not average"
    ),
    "both": (lambda: both(MagnitudePruning(OneShot(0.9))), V, "`callbacks` .*LearnedScores"),
    "kept": (lambda: both(MagnitudePruning(Keep())), V, "`callbacks` .*transform"),
    "nan rank": (lambda: tr.pruning.prune(nan(), 0.5), V, "`model` must have finite .*'logits'"),
    "nan scores": (lambda: begin(LearnedScores(0.5), nan()), V, "weights must be finite"),
    "nan surgery": (lambda: begin(Surgery(0.5), nan(bias=True)), V, "weights must be finite"),
    "huge c": (lambda: Surgery(1e39), V, "`c` must be finite"),
    "huge threshold": (lambda: begin(Surgery(3e38, upper=9.0)), V, "`c` must give a threshold"),
    "lower none": (lambda: Surgery(1.0, lower=None), V, "`lower` and .*lower=None"),
    "lower text": (lambda: Surgery(1.0, lower="a"), V, "`lower` and .*lower='a'"),
    "gamma bool": (lambda: Surgery(1.0, gamma=True), V, "`gamma` must be >= 0"),
    **{f"seed {s}": (lambda s=s: Surgery(1.0, seed=s), V, "`seed`") for s in (None, "x", 1.7)},
    **{
        f"beta {v}": (lambda v=v: trades(beta=v), V, "`beta` must be >= 0")
        for v in (np.inf, np.nan, 1j, True, [1.0], np.ones(9), None, -1)
    },
    "beta tensor": (lambda: trades(beta=tf.constant(1.0)), V, "`beta` must be >= 0"),
    "decay": (lambda: trades(weight_decay=[0.1]), V, "`weight_decay` must be >= 0"),
    **{
        f"threat {v}": (lambda v=v: tr.training.trades_attack(v), T, "`threat` must be")
        for v in (0.3, None, tr.threats.Linf)
    },
    "ladder none": (lambda: Ladder(None), V, "`targets` must be an ascending list"),
    "ladder": (lambda: Ladder(0.5), V, "`targets` must be an ascending list"),
    **{
        f"{kind.__name__} {v}": (lambda k=kind, v=v: k(OneShot(0.5), exclude=v), T, "`exclude`")
        for kind in (MagnitudePruning, lambda c, exclude: Surgery(0.5, exclude=exclude))
        for v in (None, 5, [5])
    },
    "quality": (lambda: Threshold(True), V, "`quality` must be > 0"),
    "sample_weight": (weighed, V, r"`sample_weight` must have shape \(batch,\)"),
    "vgg16": (lambda: M.vgg16_bn(input_shape=(8, 8, 3)), V, "`input_shape` must be 16 x 16"),
    "vgg": (lambda: M.vgg_like(input_shape=(16, 16, 3)), V, "`input_shape` must be 32 x 32"),
    "all_cnn": (lambda: M.all_cnn(input_shape=(8, 8, 3)), V, "`input_shape` must be 9 x 9"),
    "lenet": (lambda: M.lenet5_caffe(input_shape=(15, 16, 1)), V, "`input_shape` must be 16 x 16"),
    "shape": (lambda: M.linear(input_shape=28), V, "`input_shape` must be .height, width"),
    **{
        f"widths {v}": (lambda v=v: M.lenet300_100(widths=v), V, "`widths` must hold integers")
        for v in ("ab", None, 300, (0, 10), (-5, 10), (1.5, 2))
    },
    "two widths": (lambda: M.digits_net(widths=(1, 2)), V, "`widths` must hold 3 integers"),
    **{
        f"stages {v}": (lambda v=v: M.vgg_like(stages=v), V, "`stages` must be pairs")
        for v in (((8, 0),), None, "ab", (8, 2), ((8, 2, 1),))
    },
    "mask": (lambda: M.digits_net(mask="relu"), T, "`mask` must be None or a factory"),
    **{
        f"classes {v}": (lambda v=v: M.linear(classes=v), V, "`classes` must be an integer >= 1")
        for v in (True, 0, -3, 2.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, error, match = BAD[name]
    with pytest.raises(error, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    game = trades(beta=np.float32(0.5), weight_decay=np.float64(0.25), epsilon=np.float32(0.0625))
    numbers = [game.get_config()[name] for name in ("beta", "weight_decay", "epsilon")]
    assert numbers == [0.5, 0.25, 0.0625] and {type(v) for v in numbers} == {float}
    surgery = Surgery(np.float32(1), np.float32(0), np.int64(1), np.int64(3), np.float32(0.5))
    assert surgery.get_config()["lower"] == 0.5 and type(surgery.stop) is int
    assert Threshold(np.float32(2)).quality == 2
    assert MagnitudePruning(OneShot(0.5), structured=np.array([2, 4])).settings.run == (2, 4)
    small = {"input_shape": (8, 8, 3), "blocks_per_stage": np.int64(1), "width": 0.1}
    net = M.wide_resnet28(np.int64(3), widen=np.float32(1.0), **small)
    assert net.output_shape == (None, 3) and len(M.vgg_like(
        input_shape=(2, 2, 1), stages=np.array([[4, 1]]), width=0.5
    ).layers) == 9  # fmt: skip
    assert M.all_cnn(input_shape=(9, 9, 3), width=0.1).output_shape == (None, 10)


# Warnings ---------------------------------------------------------------------------------------


def test_surgery_that_takes_a_whole_layer_warns():
    with pytest.warns(UserWarning, match="prunes every weight of layer 'hidden'.*smaller `c`"):
        begin(Surgery({"hidden": 50.0, "logits": 0.0}))


def test_more_than_runs_can_give_warns():
    message = "2:4 sparsity ends at 2 / 4 at most, not at 0.9"
    with pytest.warns(UserWarning, match=message):
        MagnitudePruning(OneShot(0.9), structured=(2, 4))
    with pytest.warns(UserWarning, match=message):
        report = tr.pruning.prune(dense(), 0.9, structured=(2, 4))
    assert report.sparsity == 0.5


def test_layers_too_thin_for_runs_are_named():
    net = M.digits_net(input_shape=(4, 4, 1), widths=(3, 4, 4))
    report = tr.pruning.prune(net, 0.5, structured=(2, 4))
    assert dict(report.left) == {"conv1": "it has 1 input channel, and a run of 4 keeps as many"}
    assert [row.name for row in report.rows] == ["conv2", "dense3", "logits"]


def test_a_report_counts_what_is_zero_now():
    """EarlyStopping puts the weights of the first epoch back, where 30 % were pruned."""
    net = compiled(dense(), optimizers.SGD(0.0), run_eagerly=True)
    prune = MagnitudePruning(Linear(0.9, updates=3, every=1))
    early = keras.callbacks.EarlyStopping("loss", 1e9, patience=9, restore_best_weights=True)
    with pytest.warns(UserWarning, match="EarlyStopping that may restore"):
        fit(net, prune, early, epochs=3)
    with pytest.warns(UserWarning, match="96 pruned weights are not zero.*not counted"):
        report = prune.report()
    assert report.sparsity == tr.pruning.sparsity(net) == pytest.approx(0.3, abs=0.01)
