"""Weights as functions of others: surgery with regrowth and learned scores, in robust games."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_pruning import LOGITS, data, dense
from tests.bank_resume import resumed_equals_unbroken, until_killed
from tfrobust.pruning import LearnedScores, Surgery, shadows

SGD = keras.optimizers.SGD
NOBODY = tr.attacks.PGD(tr.threats.Linf(0.0), steps=0, random_start=False)
ATTACK = tr.attacks.FGSM(tr.threats.Linf(0.1))
KERNEL = np.array([[1.0, -0.2, 0.5], [0.45, -2.0, 0.1]], "float32")
BIAS = np.array([0.0, 0.3, -0.1], "float32")


def linear():
    inputs = keras.Input((2,))
    net = keras.Model(inputs, keras.layers.Dense(3, name="logits")(inputs))
    net.set_weights([KERNEL, BIAS])
    return net


def play(net, transform, attack=NOBODY, optimizer=None, **compiling):
    mix = (1, 0) if attack is NOBODY else (1, 1)
    game = tr.training.AdversarialTraining(net, attack, mix=mix, transform=transform)
    game.compile(optimizer or SGD(1.0), run_eagerly=True, **compiling)
    return game


def fit(game, *callbacks, epochs=2, batch_size=8, shuffle=False, **kwargs):
    x, y = data()
    return game.fit(
        x, y, batch_size=batch_size, epochs=epochs, shuffle=shuffle, verbose=0,
        callbacks=list(callbacks), **kwargs,
    )  # fmt: skip


def gradient(kernel, bias, x, y):
    """Of the mean cross-entropy of a linear net, by kernel and bias."""
    z = np.exp(x @ kernel + bias)
    error = (z / z.sum(1, keepdims=True) - np.eye(3)[y]) / len(x)
    return x.T @ error, error.sum(0)


class Watch(keras.callbacks.Callback):
    """What the classifier is, after each step, and that it is what the transform says."""

    def on_train_begin(self, logs=None):
        self.kernels, self.masks = [], []
        self.look()

    def on_train_batch_end(self, batch, logs=None):
        self.look()

    def look(self):
        kept = self.model.transform._kept
        self.kernels.append([w.numpy() for w in kept.targets])
        for w, own in zip(kept.targets, kept.own, strict=True):
            if "mask" in own:
                assert (w.numpy()[~own["mask"].numpy()] == 0).all()
                alive = own["mask"].numpy()
                np.testing.assert_array_equal(w.numpy()[alive], own["shadow"].numpy()[alive])
        self.masks.append([w != 0 for w in self.kernels[-1]])


# Surgery ----------------------------------------------------------------------------------------


def test_surgery_by_hand():
    """Sizes 1, .2, .5, .45, 2, .1 and .3, .1 of the biases (0 does not count): mean 0.58125."""
    net, transform = linear(), Surgery(c=-0.2, gamma=0.0)
    game = play(net, transform)
    x, y = np.array([[1.0, 0.5], [0.2, 0.9]], "float32"), np.array([1, 2])
    sizes = np.array([1, 0.2, 0.5, 0.45, 2, 0.1, 0.3, 0.1])
    threshold = 0.58125 - 0.2 * np.sqrt((sizes**2).mean() - 0.58125**2)
    assert threshold == pytest.approx(0.46084, abs=1e-5)
    mask = np.array([[1, 0, 1], [1, 1, 0]])  # 0.45 > 0.9 * 0.4608 > 0.2
    shadow, bias = KERNEL.astype("float64"), BIAS.astype("float64")
    seen = []
    for _ in range(4):
        game.fit(x, y, batch_size=2, verbose=0)
        by_kernel, by_bias = gradient(shadow * mask, bias, x, y)
        shadow, bias = shadow - by_kernel, bias - by_bias
        size = np.abs(shadow)
        mask = np.where(size <= 0.9 * threshold, 0, np.where(size > 1.1 * threshold, 1, mask))
        np.testing.assert_allclose(net.get_weights()[0], shadow * mask, atol=1e-5)
        np.testing.assert_allclose(net.get_weights()[1], bias, atol=1e-5)
        seen.append(mask)
    assert not seen[0][0, 1] and seen[1][0, 1]  # it came back
    assert float(transform._kept.own[0]["threshold"].numpy()) == pytest.approx(threshold, rel=1e-6)


def test_surgery_prunes_and_regrows_in_a_robust_game():
    watch = Watch()
    game = play(dense(), Surgery(c=0.5, gamma=0.0), ATTACK, SGD(1.0, momentum=0.9))
    history = fit(game, watch, validation_data=data()).history
    masks = [np.concatenate([m.ravel() for m in masks]) for masks in watch.masks]
    assert len(masks) == 7 and 0.2 < history["sparsity"][0] < 0.9
    steps = list(zip(masks, masks[1:], strict=False))
    assert any((now & ~then).any() for then, now in steps)
    assert any((then & ~now).any() for then, now in steps)
    assert tr.pruning.sparsity(game.classifier) == pytest.approx(1 - masks[-1].mean())
    assert "val_robust_accuracy" in history and "val_sparsity" not in history


@pytest.mark.parametrize("options", [{"stop": 1}, {"power": 1e4, "gamma": 1.0}])
def test_masks_stay_when_surgery_is_over(options):
    watch = Watch()
    fit(play(dense(), Surgery(c=0.5, **{"gamma": 0.0, **options})), watch)
    for masks in watch.masks[1:]:
        for mask, first in zip(masks, watch.masks[0], strict=True):
            np.testing.assert_array_equal(mask, first)


def test_the_share_of_surgeries_is_the_probability():
    """(1 + k)^(-1/2) at k = 3 is a half: a hundred layers, each with a draw of its own."""
    transform = Surgery(c=0.0, gamma=1.0, power=0.5, seed=3)
    transform.attach(linear())
    own = transform._kept.own[0]
    own["threshold"].assign(100.0)
    done = 0
    for number in range(100):
        own["mask"].assign(np.ones((2, 3), bool))
        transform.step.assign(3)
        transform.advance(number, own)
        done += not own["mask"].numpy().any()
    assert abs(done - 50) < 4 * np.sqrt(25)


# Scores -----------------------------------------------------------------------------------------


def test_scores_by_hand():
    """Two steps: s - lr dL/dw w0 sign(s), and the three smallest |s| of six are off."""
    net, transform = linear(), LearnedScores(0.5)
    game = play(net, transform)
    x, y = np.array([[1.0, 0.5], [0.2, 0.9]], "float32"), np.array([2, 0])
    scores = np.sqrt(6 / 2) * KERNEL.astype("float64") / 2.0
    for _ in range(2):
        w = np.where(np.abs(scores) >= np.sort(np.abs(scores).ravel())[3], KERNEL, 0)
        game.fit(x, y, batch_size=2, verbose=0)
        scores = scores - gradient(w, BIAS, x, y)[0] * KERNEL * np.sign(scores)
        np.testing.assert_allclose(transform._kept.own[0]["scores"], scores, atol=1e-5)
    np.testing.assert_array_equal(net.get_weights()[1], BIAS)
    w = np.where(np.abs(scores) >= np.sort(np.abs(scores).ravel())[3], KERNEL, 0)
    np.testing.assert_array_equal(net.get_weights()[0], w)


def test_sparsity_is_exact_at_every_step_and_weights_stand_still():
    net, watch = dense(), Watch()
    before = net.get_layer("hidden").get_weights(), net.get_layer("norm").get_weights()
    optimizer = keras.optimizers.Adam(0.5, weight_decay=0.01, clipnorm=1.0)
    history = fit(play(net, LearnedScores(0.6, "last"), ATTACK, optimizer), watch).history
    for (kernel,) in watch.kernels:
        assert (kernel == 0).sum() == 77  # ceil(0.6 * 128)
        assert (kernel == np.where(kernel != 0, before[0][0], 0)).all()
    assert any((a != b).any() for (a,), (b,) in zip(watch.masks, watch.masks[1:], strict=False))
    assert history["sparsity"] == pytest.approx([77 / 128] * 2)
    np.testing.assert_array_equal(net.get_layer("hidden").get_weights()[1], before[0][1])
    assert (net.get_layer("norm").get_weights()[0] != before[1][0]).any()  # gamma learns


def test_scores_then_freeze_then_fine_tuning():
    net = dense()
    fit(play(net, LearnedScores(0.75), ATTACK), epochs=1)
    masks = tr.pruning.masks_of(net)
    assert tr.pruning.freeze(net).sparsity == 0.75
    fit(play(net, None, ATTACK, SGD(0.1, momentum=0.9, weight_decay=0.1)))
    for name, mask in tr.pruning.masks_of(net).items():
        np.testing.assert_array_equal(mask, masks[name])


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_are_those_of_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    values = np.abs(rng.normal(0, 10.0 ** rng.integers(-30, 30), (7, 11))).astype("float32")
    values[rng.random(values.shape) < 0.3] = rng.choice([0.0, values.max()])
    for count in (0, 1, 30, 76, 77):
        chosen = np.zeros(77, bool)
        chosen[np.argsort(values.ravel(), kind="stable")[:count]] = True
        np.testing.assert_array_equal(
            shadows.smallest(tf.constant(values), count).numpy().ravel(), chosen
        )


# One mechanism ----------------------------------------------------------------------------------

MAKE = {"surgery": lambda: Surgery(c=0.3, gamma=0.0), "scores": lambda: LearnedScores(0.5)}


@pytest.mark.parametrize("name", MAKE)
def test_gradients_are_those_of_a_stateless_scope(name):
    """The chain rule at the border equals a pass with w(theta) in place of the variables."""
    net, transform = dense(), MAKE[name]()
    transform.attach(net)
    transform.begin()
    x, y = data()
    variables = net.trainable_variables
    with tf.GradientTape() as tape:
        loss = LOGITS(y, net(x, training=False))
    ours = transform.pull(tape.gradient(loss, variables), variables)
    kept = transform._kept
    with tf.GradientTape() as tape:
        mapping = [(w, transform.value(own)) for w, own in zip(kept.targets, kept.own, strict=True)]
        with keras.StatelessScope(state_mapping=mapping):
            logits = net(x, training=False)
        loss = LOGITS(y, logits)
    sources = [source for _, source in ours]
    assert {v.name for v in sources} >= {"shadow_0" if name == "surgery" else "scores_0", "gamma"}
    for (got, source), want in zip(ours, tape.gradient(loss, sources), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-7, err_msg=source.path)
        assert np.abs(got).max() > 0


@pytest.mark.parametrize("name", MAKE)
def test_attack_validation_and_prediction_see_the_transformed_net(name):
    net = dense()
    game = play(net, MAKE[name](), ATTACK)
    fit(game, epochs=1)
    x, y = data()
    plain = dense(seed=7)
    plain.set_weights(net.get_weights())
    x_adv = ATTACK.within(plain, x, y, tr.noise.fold(tf.constant(0, tf.uint32), game.step.value))
    np.testing.assert_array_equal(game.attacked(tf.constant(x), tf.constant(y)), x_adv)
    np.testing.assert_array_equal(game(x), plain(x))
    other = play(plain, None, ATTACK)
    assert game.evaluate(x, y, verbose=0) == other.evaluate(x, y, verbose=0)
    assert 0.3 < tr.pruning.sparsity(net) < 0.9


@pytest.mark.parametrize("name", ["scores", pytest.param("surgery", marks=pytest.mark.slow)])
def test_one_graph_for_all_steps(name):
    traced = []

    class Counting(tr.training.TRADES):
        def objective(self, batch, turn):
            traced.append(1)
            return super().objective(batch, turn)

    threat = tr.threats.Linf(0.1)
    game = Counting(dense(), tr.training.trades_attack(threat, steps=1), transform=MAKE[name]())
    game.compile(keras.optimizers.Adam(0.05))
    watch = Watch()
    fit(game, watch, epochs=2)
    fit(game, watch, epochs=1)
    assert len(traced) == 1
    assert any((a[0] != b[0]).any() for a, b in zip(watch.masks, watch.masks[1:], strict=False))


@pytest.mark.parametrize("name", MAKE)
def test_resumed_equals_unbroken(tmp_path, name):
    def train(seed, *callbacks):
        game = play(dense(seed=seed), MAKE[name](), ATTACK, keras.optimizers.Adam(0.05))
        batches = tr.data.Batches(*data(), 8, seed=3)
        until_killed(game.fit, batches, epochs=2, verbose=0, callbacks=list(callbacks))
        return [v.numpy() for v in (*game.variables, *game.optimizer.variables)]

    resumed_equals_unbroken(train, tmp_path, kill=1)


@pytest.mark.parametrize("name", ["surgery", pytest.param("scores", marks=pytest.mark.slow)])
def test_round_trip_goes_on(tmp_path, name):
    game = play(dense(), MAKE[name](), ATTACK, keras.optimizers.Adam(0.05))
    fit(game, epochs=1)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    assert again.get_config()["transform"] == game.get_config()["transform"]
    for model in (game, again):
        fit(model, epochs=1)
    for a, b in zip(game.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    game.classifier.save(tmp_path / "net.keras")
    net = keras.saving.load_model(tmp_path / "net.keras")
    assert tr.pruning.sparsity(net) == tr.pruning.sparsity(game.classifier) > 0.3
    assert {type(layer).__module__.split(".")[0] for layer in net.layers} == {"keras"}


@pytest.mark.slow
def test_weights_that_were_loaded_begin_anew():
    net = dense()
    game = play(net, LearnedScores(0.5))
    assert not tr.pruning.sparsity(net)  # nothing happens before training
    loaded = dense(seed=3).get_weights()
    for _ in range(2):
        net.set_weights(loaded)
        fit(game, epochs=1)
        kernel = net.get_layer("hidden").get_weights()[0]
        assert (kernel == np.where(kernel != 0, loaded[0], 0)).all()
        assert game.transform.step.numpy() == 3
    fit(game, epochs=1)
    assert game.transform.step.numpy() == 6


def test_a_constraint_of_the_kernel_holds_for_what_is_used():
    net = dense(constraint=keras.constraints.NonNeg())
    fit(play(net, Surgery(c=0.0, gamma=0.0)))
    assert net.get_layer("hidden").get_weights()[0].min() == 0


@keras.saving.register_keras_serializable(package="tests")
def small(layer):
    return layer.units < 5


@pytest.mark.parametrize("exclude", ["first", ("hidden",), small])
def test_config(exclude):
    for transform in (Surgery({"logits": 0.5}, exclude=exclude), LearnedScores(0.5, exclude)):
        again = type(transform).from_config(transform.get_config())
        assert again.get_config() == transform.get_config()
        assert again.exclude == transform.exclude
    if exclude == "first":
        transform.attach(dense())
        assert [w.path for w in transform._kept.targets] == ["logits/kernel"]


ERRORS = {
    "c": (lambda: Surgery(c="1"), TypeError, "`c` must be a number"),
    "nan": (lambda: Surgery(c=float("nan")), ValueError, "`c` must be finite"),
    "names": (
        lambda: play(dense(), Surgery(c={"hidden": 1.0})), ValueError,
        r"`c` must have a number for each of \['hidden', 'logits'\]",
    ),
    "gamma": (lambda: Surgery(1.0, gamma=-1), ValueError, "`gamma` must be >= 0"),
    "lower": (lambda: Surgery(1.0, lower=2.0), ValueError, "`lower` and `upper` must be"),
    "stop": (lambda: Surgery(1.0, stop=0), ValueError, "`stop` must be an integer >= 1"),
    "all": (lambda: LearnedScores(1.0), ValueError, r"`fraction` must lie in \[0, 1\)"),
    "a number": (lambda: play(dense(), 0.5), TypeError, "`transform` must be a tr.layers.Weight"),
    "average": (
        lambda: play(dense(), LearnedScores(0.5), optimizer=SGD(0.1, use_ema=True)), ValueError,
        "`optimizer` must not average weights",
    ),
    "exclude": (
        lambda: play(dense(), LearnedScores(0.5, "nope")), ValueError, "`exclude` must name layers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes(name):
    make, error, match = ERRORS[name]
    with pytest.raises(error, match=match):
        make()


def test_a_transform_serves_one_classifier():
    transform = LearnedScores(0.5)
    play(dense(), transform)
    with pytest.raises(ValueError, match="`transform` must be a new LearnedScores"):
        play(dense(), transform)


# Gradients of pruned entries --------------------------------------------------------------------


@pytest.mark.parametrize("clip", [{"clipnorm": 1e-3}, {"global_clipnorm": 1e-3}])
def test_pruned_entries_do_not_count_in_the_norm(clip):
    """A step along the gradient of what is left, of exactly the length that clipping allows."""
    net = dense()
    tr.pruning.prune(net, 0.75)
    masks = [net.get_layer(n).kernel.constraint.mask.numpy() for n in ("hidden", "logits")]
    game = play(net, None, ATTACK, SGD(1.0, momentum=0.5, **clip))
    before = [v.numpy() for v in net.trainable_variables]
    fit(game, epochs=1, batch_size=24)
    moved = [v.numpy() - b for v, b in zip(net.trainable_variables, before, strict=True)]
    lengths = [np.linalg.norm(m) for m in moved]
    if "clipnorm" in clip:
        assert lengths[0] == pytest.approx(1e-3, rel=1e-4) == lengths[-2]
    else:
        assert np.linalg.norm(lengths) == pytest.approx(1e-3, rel=1e-4)
    momenta = [m.numpy() for m in game.optimizer.variables[2:] if m.shape == (16, 8)]
    assert (momenta[0][~masks[0]] == 0).all() and momenta[0].any()
