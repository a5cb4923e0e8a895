"""MART, Free AT, Fast AT, GradAlign, AWP and averages of weights: by hand, resumed, in files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.bank_pruning import dense
from tests.test_resume import Kill
from tests.test_trades import LABELS, data, linear, softmax
from tfrobust import losses, noise
from tfrobust.training import awp, gradalign

THREAT = tr.threats.Linf(0.2)
FGSM = tr.attacks.FGSM(THREAT)
SGD = keras.optimizers.SGD


def step(game, x, y, sample_weight=None, optimizer=None, loss=None):
    """One eager step; returns the logs."""
    game.compile(optimizer or SGD(1.0), loss=loss)
    batch = [tf.constant(v) for v in (x, y)]
    return game.train_step((*batch, *([] if sample_weight is None else [sample_weight])))


def weights(model):
    return [w.copy() for w in model.get_weights()]


def assert_close(ours, theirs, atol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# MART ----


def mart_by_hand(kernel, bias, x, x_adv, hot, row, beta):
    """The loss with float64 probabilities, labels `hot` in the cross-entropy, `row` elsewhere."""
    z, z_adv = x @ kernel + bias, x_adv @ kernel + bias
    if kernel.shape[1] == 1:
        z, z_adv = (np.concatenate([0 * v, v], 1) for v in (z, z_adv))
    p, q = softmax(z), softmax(z_adv)
    here = np.arange(len(x))
    other = np.where(np.eye(p.shape[1])[row] == 1, 0, q).max(1)
    kl = (p * np.log(p / q)).sum(1)
    return -(hot * np.log(q)).sum(1) - np.log(1 - other) + beta * kl * (1 - p[here, row])


@pytest.mark.parametrize("labels", LABELS)
def test_mart_by_hand(labels):
    """Loss against NumPy, gradient against its central differences."""
    outputs, loss = LABELS[labels]
    net, classes = linear(outputs), max(outputs, 2)
    x, y = data(classes=classes)
    row, hot, given = y, np.eye(classes)[y], y
    if labels == "smoothed":
        hot, given = 0.9 * hot + 0.1 / 3, hot
    each = np.array([1, 2, 0, 0.5, 1, 3], "float32")
    game = tr.training.MART(net, FGSM, beta=3.0)
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    x_adv = game.attacked(tf.constant(x), tf.constant(given)).numpy()

    def value(kernel, bias):
        return (each * mart_by_hand(kernel, bias, x, x_adv, hot, row, 3.0)).mean()

    logs = step(game, x, given, each, loss=loss)
    assert float(logs["loss"]) == pytest.approx(value(kernel, bias), rel=1e-5)
    moved = kernel - net.get_weights()[0]
    for place in np.ndindex(*kernel.shape):
        h = np.zeros_like(kernel)
        h[place] = 1e-5
        slope = (value(kernel + h, bias) - value(kernel - h, bias)) / 2e-5
        assert moved[place] == pytest.approx(slope, abs=1e-5)


def test_mart_of_a_threat_plays_the_authors_attack():
    game = tr.training.MART(linear(), THREAT)
    assert (game.attack.loss, game.attack.steps, game.attack.random_start) == ("ce", 10, 0.001)
    assert game.attack.last_iterate and game.attack.step_size == pytest.approx(0.05)
    assert losses.runner_up(tf.constant([[0.0, 500.0]]), [0]).numpy() == pytest.approx(500.0)


# Free AT ----


def free_by_hand(kernel, bias, batches, replays, epsilon, rows, rate):
    """SGD on a linear net in NumPy; delta belongs to rows, not to images."""
    delta = np.zeros((rows, kernel.shape[0]))
    for x, y in batches:
        n = len(x)
        for _ in range(replays):
            x_adv = np.clip(x + delta[:n], 0, 1)
            error = (softmax(x_adv @ kernel + bias) - np.eye(kernel.shape[1])[y]) / n
            upward = np.sign(error @ kernel.T)
            delta[:n] = np.clip(delta[:n] + epsilon * upward, -epsilon, epsilon)
            kernel, bias = kernel - rate * x_adv.T @ error, bias - rate * error.sum(0)
    return kernel, bias, delta


def test_free_at_by_hand():
    """Two batches, the last one smaller; delta is carried over by rows."""
    net, (x, y) = linear(), data(10)
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    game = tr.training.FreeAT(net, THREAT, replays=3, batch_size=6)
    game.compile(SGD(0.5))
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    for batch in batches:
        game.train_step(tuple(tf.constant(v) for v in batch))
    kernel, bias, delta = free_by_hand(kernel, bias, batches, 3, 0.2, 6, 0.5)
    assert_close(net.get_weights(), [kernel, bias], atol=2e-6)
    np.testing.assert_allclose(game.carried.numpy(), delta, atol=1e-6)
    assert np.abs(delta).max() == pytest.approx(0.2) and int(game.step.numpy()) == 6
    assert int(game.optimizer.iterations.numpy()) == 6


def test_free_at_in_l2_keeps_delta_in_the_ball():
    game = tr.training.FreeAT(linear(), tr.threats.L2(0.3), 3, batch_size=6, step_size=0.2)
    for _ in range(3):
        step(game, *data(), optimizer=SGD(0.1))
        length = np.linalg.norm(game.carried.numpy(), axis=1)
        assert (length <= 0.3 + 1e-6).all() and length.max() > 0.15


def test_fast_at_is_one_step_from_a_random_point():
    attack, (net, (x, y)) = tr.training.fast_attack(THREAT), (linear(), data())
    assert (attack.steps, attack.random_start, attack.last_iterate) == (1, True, True)
    assert attack.step_size == pytest.approx(0.25)
    kernel, bias = net.get_weights()
    start = tr.attacks.PGD(THREAT, 0, random_start=True, last_iterate=True)(net, x, y)
    gradient = (softmax(start @ kernel + bias) - np.eye(3)[y]) @ kernel.T
    want = np.clip(np.clip(start + 0.25 * np.sign(gradient), x - 0.2, x + 0.2), 0, 1)
    np.testing.assert_allclose(attack(net, x, y), want, atol=1e-6)


# GradAlign


def test_gradalign_of_a_linear_net_with_two_classes_is_zero():
    """Its gradients by the image all point along the difference of the two weight columns."""
    net, (x, y) = linear(2), data(classes=2)
    game = tr.training.AdversarialTraining(net, FGSM, regularizers=[tr.training.GradAlign(1.0)])
    assert float(step(game, x, y)["regularization"]) == pytest.approx(0.0, abs=1e-6)


def test_gradalign_by_hand_and_its_gradient():
    """Against NumPy on a linear net of three classes; the gradient against differences."""
    net, (x, y) = linear(3), data()
    game = tr.training.AdversarialTraining(net, FGSM, regularizers=[tr.training.GradAlign(1.0)])
    game.compile(SGD(0.0))
    batch = tr.training.Batch(*(tf.constant(v) for v in (x, y)), None, None, tf.constant(len(x)))
    (term,) = game.regularizers
    keys = noise.keys(game.draw(), "gradalign", np.arange(len(x)))
    beside = THREAT.random_start(tf.constant(x), keys).numpy().astype(np.float64)
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())

    def value(kernel):
        a, b = ((softmax(v @ kernel + bias) - np.eye(3)[y]) @ kernel.T for v in (x, beside))
        return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    with tf.GradientTape() as tape:
        got = term.penalty(game, batch)
        total = tf.reduce_sum(got)
    np.testing.assert_allclose(got, value(kernel), atol=1e-5)
    assert value(kernel).max() > 1e-3
    slopes = tape.gradient(total, net.trainable_variables[0]).numpy()
    for place in [(0, 0), (1, 2), (3, 1)]:
        h = np.zeros_like(kernel)
        h[place] = 1e-5
        want = (value(kernel + h) - value(kernel - h)).sum() / 2e-5
        assert slopes[place] == pytest.approx(want, abs=1e-4)


def test_gradalign_is_differentiable_through_convolution_and_pooling():
    net = bank.classifier()
    x, y = (tf.constant(v) for v in (bank.images(4), np.arange(4)))
    with tf.GradientTape() as tape:
        rows = [tf.reshape(gradalign.input_gradient(net, v, y), (4, -1)) for v in (x, x / 2)]
        total = tf.reduce_sum(gradalign.misalignment(*rows))
    gradients = tape.gradient(total, net.trainable_variables)
    assert all(g is None or np.isfinite(g).all() for g in gradients)
    assert np.abs(gradients[0]).max() > 0


# AWP ----


def at_by_hand(kernel, bias, x, y):
    error = (softmax(x @ kernel + bias) - np.eye(kernel.shape[1])[y]) / len(x)
    return x.T @ error, error.sum(0)


def test_awp_by_hand():
    net, (x, y) = linear(), data()
    kernel, bias = (w.astype(np.float64) for w in net.get_weights())
    kernel[1, 2] = 0.0  # as if pruned
    net.set_weights([kernel, bias])
    game = tr.training.AdversarialTraining(net, FGSM, weight_attack=tr.training.AWP(0.5))
    x_adv = game.attacked(tf.constant(x), tf.constant(y)).numpy()
    gradient = np.where(kernel == 0, 0, at_by_hand(kernel, bias, x_adv, y)[0])
    there = kernel + 0.5 * np.linalg.norm(kernel) * gradient / np.linalg.norm(gradient)
    assert there[1, 2] == 0
    at_kernel, at_bias = at_by_hand(there, bias, x_adv, y)  # biases are not attacked
    logs = step(game, x, y)
    assert_close(net.get_weights(), [kernel - at_kernel, bias - at_bias], atol=2e-6)
    log_p = np.log(softmax(x_adv @ there + bias))
    assert float(logs["loss"]) == pytest.approx(-log_p[np.arange(6), y].mean(), rel=1e-5)


class Watched(tr.training.AdversarialTraining):
    """Keeps what its passes see."""

    seen = None

    def forward(self, x, training=True):
        state = [v.numpy() for v in self.classifier.variables]
        result = super().forward(x, training)
        if training:
            self.seen.append((state, result.logits.numpy()))
        return result


def noisy(prune=False):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((4,))
    x = keras.layers.Dense(5, name="a")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = tr.layers.BetaBernoulliMask(initial_a=2.0, seed=1, name="mask")(x)
    x = keras.layers.Dropout(0.3, seed=2)(keras.layers.Activation("relu")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="b")(x))


def test_awp_leaves_no_trace_of_its_first_evaluation():
    """Masks, scales and biases are not attacked; noise, statistics and reports are as of one."""
    net = noisy()
    constraint = tr.pruning.MaskConstraint((4, 5))
    kernel = net.get_layer("a").kernel
    kernel.constraint = constraint
    constraint.mask.assign(np.arange(20).reshape(4, 5) % 3 > 0)
    kernel.assign(constraint(kernel))
    game = Watched(net, FGSM, weight_attack=tr.training.AWP(0.1))
    game.seen = []
    before = [v.numpy() for v in net.variables]
    game.compile(SGD(0.0), metrics=["accuracy"])
    logs = game.train_step(tuple(tf.constant(v) for v in data()))
    (first, _), (second, _) = game.seen
    for variable, a, b, old in zip(net.variables, first, second, before, strict=True):
        attacked = variable.name == "kernel"
        assert np.array_equal(a, b) != attacked, variable.path
        if variable.trainable:
            np.testing.assert_array_equal(variable.numpy(), old)
    pruned = ~constraint.mask.numpy()
    place = [v is kernel for v in net.variables].index(True)
    assert (second[place][pruned] == 0).all()
    gap, size = np.linalg.norm(second[place] - first[place]), np.linalg.norm(first[place])
    assert gap == pytest.approx(0.1 * size, rel=1e-4)
    assert float(game.trackers["robust_accuracy"].count.numpy()) == 6
    assert 0 <= float(logs["accuracy"]) <= 1
    wanted = tr.training.AdversarialTraining(noisy(), FGSM)
    wanted.compile(SGD(0.0))
    wanted.train_step(tuple(tf.constant(v) for v in data()))
    seeds = [v for v in net.variables if v.name == "seed_generator_state"]
    others = [v for v in wanted.classifier.variables if v.name == "seed_generator_state"]
    for a, b in zip(seeds, others, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("masks", [False, True])
def test_awp_of_anp_attacks_both_groups_at_one_point(masks):
    """Each group's gradient is taken at the attacked kernels; masks move there only if asked."""
    game = tr.training.ANP(
        noisy(), FGSM, train_size=50, weight_attack=tr.training.AWP(0.1, masks=masks)
    )
    chosen = [v.path for g, vs in game.group_variables().items()
              for v in game.weight_attack.chosen(game, vs)]  # fmt: skip
    assert len(chosen) == (4 if masks else 2)
    optimizer = {"weights": SGD(0.1), "masks": SGD(0.1)}
    logs = step(game, *data(), optimizer=optimizer)
    assert np.isfinite(float(logs["loss"])) and set(logs) == {"loss", "robust_accuracy", "kl"}


def test_awp_with_weights_that_follow_from_others():
    """Surgery: the classifier holds what follows from the shadows, before and after each step."""
    net, surgery = noisy(), tr.pruning.Surgery(c=0.5)
    game = Watched(net, FGSM, transform=surgery, weight_attack=tr.training.AWP(0.1))
    game.seen = []
    game.compile(SGD(0.1))
    surgery.begin()
    for _ in range(2):
        zeros = [v.numpy() == 0 for v in net.variables]
        game.train_step(tuple(tf.constant(v) for v in data()))
        for variable, zero, attacked in zip(net.variables, zeros, game.seen[-1][0], strict=True):
            if variable.name == "kernel":
                assert zero.any() and not attacked[zero].any()
    for w, own in zip(surgery._kept.targets, surgery._kept.own, strict=True):
        np.testing.assert_array_equal(w.numpy(), surgery.value(own))


def test_awp_survives_infinite_gradients():
    w = tf.constant([1.0, -2.0])
    assert not awp.step(w, tf.constant([np.inf, 1.0])).numpy().any()
    np.testing.assert_allclose(awp.step(w, tf.constant([3e38, -3e38])), [5**0.5 / 2**0.5] * 2
                               * np.array([1, -1]), rtol=1e-6)  # fmt: skip


# Every game and option: resumed, in a file, its arguments -----------------------------------------

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


GAMES = {
    "standard": lambda: tr.training.AdversarialTraining(anp_net(), None),
    "BP": lambda: tr.training.BP(anp_net(), train_size=12, validation_attack=FGSM),
    "PAT": pat,
    "MART": lambda: tr.training.MART(linear(), FGSM, beta=SCHEDULE, weight_decay=0.1),
    "Free AT": lambda: tr.training.FreeAT(linear(), THREAT, 2, batch_size=5, mix=(1, 2)),
    "ANP, Fast, GradAlign, AWP": gradalign_anp_awp,
}


def made(name, seed, run_eagerly=True):
    keras.utils.set_random_seed(seed)
    game = GAMES[name]()
    game.compile({g: ADAM(0.05, use_ema=True, ema_momentum=0.7) for g in game.groups},
                 metrics=["accuracy"], run_eagerly=run_eagerly)  # fmt: skip
    return game


def state(game):
    optimizers = [v for o in game.optimizers.values() for v in o.variables]
    return [np.asarray(v.numpy()) for v in (*game.variables, *optimizers)]


def fit(game, *callbacks, epochs=3, **kwargs):
    batches = tr.data.Batches(*data(12), batch_size=5, seed=1)  # 5, 5 and 2
    try:
        return game.fit(batches, epochs=epochs, verbose=0, callbacks=list(callbacks), **kwargs)
    except KeyboardInterrupt:
        return None


@pytest.mark.parametrize(
    "name", [n if n == "Free AT" else pytest.param(n, marks=pytest.mark.slow) for n in GAMES]
)
def test_resumed_equals_unbroken(tmp_path, name):
    """Killed in the second epoch, within it; averages of all groups replace the weights."""
    whole = made(name, 0)
    fit(whole, epochs=2)
    fit(made(name, 0), tr.training.Resume(tmp_path, save_freq=2), Kill(4), epochs=2)
    resumed = made(name, 5)
    fit(resumed, tr.training.Resume(tmp_path, save_freq=2), epochs=2)
    assert_close(state(resumed), state(whole))
    for optimizer in whole.optimizers.values():
        assert_close(
            [v.numpy() for v in optimizer._trainable_variables],
            [v.numpy() for v in optimizer._model_variables_moving_average],
        )


@pytest.mark.parametrize("name", GAMES)
def test_file_round_trip(tmp_path, name):
    game = made(name, 0)
    batch = tuple(tf.constant(v) for v in data(5))
    game.train_step(batch)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    assert type(again) is type(game)
    assert again.get_config().keys() == game.get_config().keys()
    for name_ in ("weight_attack", "validation_attack", "beta", "replays", "regularizers"):
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
