"""Games and their options in files, on bad input, and averages of weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_pruning import dense
from tests.bank_resume import Kill, state, until_killed
from tests.test_trades import data, linear
from tests.test_training_options import FGSM, SGD, THREAT, assert_close, step, weights

SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.01, 10, 0.1)
ADAM = keras.optimizers.Adam


def anp_net(kind=tr.layers.VIBMask):
    inputs = keras.Input((4,))
    x = kind(name="mask")(keras.layers.Dense(5, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.2)(x)))


def pat():
    net = anp_net(tr.layers.BetaBernoulliMask)
    tr.layers.freeze_masks(net)
    return tr.training.AdversarialTraining(net, FGSM, (1, 2))


def gradalign_anp_awp():
    return tr.training.ANP(
        anp_net(), tr.training.fast_attack(THREAT), train_size=12,
        regularizers=[tr.training.GradAlign(0.2)], weight_attack=tr.training.AWP(SCHEDULE),
    )  # fmt: skip


def certified_anp():
    return tr.training.CertifiedANP(
        anp_net(), THREAT, train_size=12, epsilon=tr.training.Ramp(0.2, length=5),
        regularizers=[tr.training.BoxTightness()],
    )  # fmt: skip


def mixtrain():
    growth = tr.training.Growth(0.1, 2.0, every=2)
    return tr.training.MixTrain(linear(), THREAT, 2, 0.5, growth, epsilon=SCHEDULE)


GAMES = {
    "certified, masks": certified_anp,
    "MixTrain": mixtrain,
    "standard": lambda: tr.training.AdversarialTraining(anp_net(), None),
    "BP": lambda: tr.training.BP(anp_net(), train_size=12, validation_attack=FGSM),
    "PAT": pat,
    "MART": lambda: tr.training.MART(linear(), FGSM, beta=SCHEDULE, weight_decay=0.1),
    "Free AT": lambda: tr.training.FreeAT(linear(), THREAT, 2, batch_size=5, mix=(1, 2)),
    "ANP, Fast, GradAlign, AWP": gradalign_anp_awp,
}


def made(name, seed, games=GAMES):
    keras.utils.set_random_seed(seed)
    game = games[name]()
    game.compile({g: ADAM(0.05, use_ema=True, ema_momentum=0.7) for g in game.groups},
                 metrics=["accuracy"], run_eagerly=True)  # fmt: skip
    return game


def fit(game, *callbacks, epochs=3, **kwargs):
    batches = tr.data.Batches(*data(12), batch_size=5, seed=1)  # 5, 5 and 2
    options = {"epochs": epochs, "verbose": 0, "callbacks": list(callbacks), **kwargs}
    return until_killed(game.fit, batches, **options)


@pytest.mark.parametrize("name", GAMES)
def test_file_round_trip(tmp_path, name):
    game = made(name, 0)
    batch = tuple(tf.constant(v) for v in data(5))
    game.train_step(batch)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    assert type(again) is type(game)
    assert again.get_config().keys() == game.get_config().keys()
    for name_ in (
        "weight_attack",
        "validation_attack",
        "beta",
        "replays",
        "regularizers",
        "epsilon",
    ):
        assert again.get_config().get(name_) == game.get_config().get(name_)
    # Keras does not save the states of seed generators (tr.training.Resume does): copy them.
    for a, b in zip(game._noise_states(), again._noise_states(), strict=True):
        b.assign(a.value)
    for one in (game, again):
        one.train_step(batch)
    assert_close(state(again), state(game))


@pytest.mark.parametrize("name", ["MART", "Free AT"])
def test_weight_zero_is_an_absent_example_and_labels_have_forms(name):
    """Integers and one-hot rows alike; class weights are weights of examples in Keras."""
    x, y = data(5)
    each = np.array([1.25, 1.25, 0, 1.25, 1.25], "float32")
    loss, hot = keras.losses.CategoricalCrossentropy(from_logits=True), np.eye(3)[y]
    results = []
    for rows, labels, weight in (
        (slice(None), y, each), (slice(None), hot, each), ([0, 1, 3, 4], y, None),
    ):  # fmt: skip
        game = made(name, 0)
        step(game, x[rows], labels[rows], weight, SGD(0.5), loss if labels is hot else None)
        results.append(weights(game.classifier))
    assert_close(results[1], results[0], atol=1e-6)
    assert_close(results[2], results[0], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: tr.training.MART(linear(), THREAT, beta=-1), ValueError, "`beta` must be >= 0"),
        (lambda: tr.training.MART(linear(), None), TypeError, "`attack` must be"),
        (lambda: tr.training.TRADES(linear(), None), TypeError, "`attack` must be"),
        (lambda: tr.training.AWP(-0.1), ValueError, "`gamma` must be >= 0"),
        (lambda: tr.training.GradAlign(-1), ValueError, "`weight` must be >= 0"),
        (lambda: tr.training.fast_attack(0.1), TypeError, "`threat` must be a tr.threats.Threat"),
        (lambda: tr.training.FreeAT(linear(), THREAT, 0), ValueError, "`replays` must be"),
        (lambda: tr.training.FreeAT(linear(), THREAT, batch_size=0), ValueError, "`batch_size`"),
        (lambda: tr.training.FreeAT(linear(), THREAT, step_size=0), ValueError, "`step_size`"),
        (lambda: tr.training.FreeAT(linear(), None), TypeError, "`attack` must be"),
        (
            lambda: tr.training.AdversarialTraining(linear(), FGSM, weight_attack=0.01),
            TypeError,
            "`weight_attack` must be a tr.training.AWP",
        ),
        (
            lambda: tr.training.AdversarialTraining(linear(), None, epsilon=0.1),
            ValueError,
            "`epsilon` must be None without an attack",
        ),
        (
            lambda: made("Free AT", 0).fit(*data(6), batch_size=6, verbose=0),
            ValueError,
            r"`batch_size` must be that of `fit` or more. Received: 5 for a batch of 6",
        ),
    ],
)
def test_mistakes(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_vulnerability_without_an_attack_is_named():
    with pytest.warns(UserWarning, match="which are the same without an attack"):
        tr.training.AdversarialTraining(
            dense(), None, regularizers=[tr.regularizers.VulnerabilitySuppression()]
        )


# Averages and the best of validation ----


def averaged_anp(seed):
    keras.utils.set_random_seed(seed)
    game = tr.training.ANP(anp_net(), FGSM, train_size=12)
    game.compile({g: SGD(0.5, use_ema=True, ema_momentum=0.6) for g in game.groups},
                 run_eagerly=True)  # fmt: skip
    return game


def watchers(folder):
    """As the page on games has them."""
    return [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint(
            folder / "best.keras", monitor="val_robust_accuracy", save_best_only=True
        ),
        keras.callbacks.EarlyStopping("val_robust_accuracy", patience=2, restore_best_weights=True),
    ]


class Recorder(keras.callbacks.Callback):
    """Averages by hand, from the weights after each batch."""

    def __init__(self):
        super().__init__()
        self.average = None

    def on_train_batch_end(self, batch, logs=None):
        now = [v.numpy() for vs in self.model.group_variables().values() for v in vs]
        pairs = zip(self.average or now, now, strict=True)
        self.average = [0.6 * a + 0.4 * b for a, b in pairs]


@pytest.mark.parametrize("swapped", [False, True])
def test_averages_of_both_groups_are_what_is_validated_and_left(swapped):
    game, record = averaged_anp(0), Recorder()
    swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if swapped else []
    x, y = data(12)
    history = fit(game, record, *swap, epochs=2, validation_data=(x, y)).history
    now = [v.numpy() for vs in game.group_variables().values() for v in vs]
    assert_close(now, record.average, atol=1e-6)
    loss = game.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert (abs(loss - history["val_loss"][-1]) < 1e-5) == swapped


def test_early_stopping_leaves_averages_too():
    """Keras itself leaves the raw weights where a run stops before its last epoch."""
    game, record = averaged_anp(0), Recorder()
    stop = keras.callbacks.EarlyStopping("val_robust_accuracy", patience=0, min_delta=2.0)
    fit(game, record, keras.callbacks.SwapEMAWeights(swap_on_epoch=True), stop, epochs=9,
        validation_data=data(12))  # fmt: skip
    assert len(game.history.epoch) == 2
    now = [v.numpy() for vs in game.group_variables().values() for v in vs]
    assert_close(now, record.average, atol=1e-6)
    assert "_apply_to_ema_optimizers" not in vars(game.optimizer)


@pytest.mark.slow
def test_best_on_validation_with_averages_resumes_bit_for_bit(tmp_path):
    """Weights, averages, the best so far and the file of the best, after a kill."""

    def run(seed, name, *more, folder="whole"):
        (tmp_path / folder).mkdir(exist_ok=True)
        game = averaged_anp(seed)
        history = fit(game, *watchers(tmp_path / folder), *more, epochs=5,
                      validation_data=data(12))  # fmt: skip
        return game, history

    whole, history = run(0, "whole")
    resume = tr.training.Resume(tmp_path / "run")
    run(0, "killed", resume, Kill(7), folder="part")
    resumed, again = run(3, "resumed", tr.training.Resume(tmp_path / "run"), folder="part")
    assert again.history == history.history
    assert_close(state(resumed), state(whole))
    best = [keras.saving.load_model(tmp_path / f / "best.keras") for f in ("whole", "part")]
    assert_close(best[0].get_weights(), best[1].get_weights())
    x, y = data(12)
    value = best[0].evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]
    assert value == pytest.approx(max(history.history["val_robust_accuracy"]))
    assert best[0].classifier.output_shape == (None, 3)
