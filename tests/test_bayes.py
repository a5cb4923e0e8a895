"""Bayesian weights: Gaussians that any game trains, their mean and their draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust as tr
from tests.bank_pruning import data, dense
from tests.bank_resume import resumed_equals_unbroken, until_killed
from tests.test_shadows import ATTACK, BIAS, KERNEL, NOBODY, SGD, fit, linear, play
from tfrobust.layers import GaussianWeights
from tfrobust.layers.beta_bernoulli import distributions


def kl(mu, sigma, prior):
    return np.log(prior / sigma) + (sigma**2 + mu**2) / (2 * prior**2) - 0.5


def own(transform, name):
    return [np.asarray(part[name]) for part in transform._kept.own]


def sampled(net, draws=1, initial=0.3, **options):
    """The random net of one that has not moved from its start."""
    transform = GaussianWeights(100, initial=initial, **options)
    transform.attach(net)
    transform.begin()
    return transform.sampled(draws, seed=5)


# The KL -----------------------------------------------------------------------------------------


def test_kl_by_hand():
    """mu = 0.3, sigma = 0.2, prior 0.1: log(1/2) + (0.04 + 0.09) / 0.02 - 1/2 = 5.30685."""
    assert kl(0.3, 0.2, 0.1) == pytest.approx(5.306853, abs=1e-6)
    transform = GaussianWeights(10, prior=0.1, initial=0.2, beta=3.0)
    net = linear()
    net.set_weights([np.full((2, 3), 0.3), np.full(3, 0.3)])
    transform.attach(net)
    transform.begin()
    assert float(transform.kl()) == pytest.approx(9 * 5.306853, rel=1e-6)
    assert float(transform.penalty()) == pytest.approx(0.3 * 9 * 5.306853, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    mu=st.floats(-2, 2), log_sigma=st.floats(-8, 2), log_prior=st.floats(-4, 2)
)  # fmt: skip
def test_kl_is_that_of_distributions(mu, log_sigma, log_prior):
    sigma, prior = np.exp(log_sigma), np.exp(log_prior)
    tfd = distributions()
    q, p = (tfd.Normal(np.float64(a), np.float64(b)) for a, b in ((mu, sigma), (0.0, prior)))
    assert float(tfd.kl_divergence(q, p)) == pytest.approx(kl(mu, sigma, prior), abs=1e-9)
    assert kl(mu, sigma, prior) >= -1e-12


def test_kl_sums_all_layers():
    net, transform = dense(), GaussianWeights(10, prior=0.5, initial=0.1)
    transform.attach(net)
    transform.begin()
    paths = [w.path for w in transform._kept.targets]
    assert paths == ["hidden/kernel", "hidden/bias", "logits/kernel", "logits/bias"]
    total = sum(kl(w, 0.1, 0.5).sum() for w in own(transform, "mu"))
    assert float(transform.kl()) == pytest.approx(total, rel=1e-5)
    more = GaussianWeights(10, normalization=True)
    assert [w.path for w in more.targets(net)] == [v.path for v in net.trainable_variables]


# One step ---------------------------------------------------------------------------------------


def test_a_step_follows_finite_differences():
    """mu and r of SGD(1) against central differences of cross-entropy at w plus beta / N KL."""
    x, y = np.array([[1.0, 0.5], [0.2, 0.9]], "float32"), np.array([1, 2])
    net = linear()
    transform = GaussianWeights(50, prior=0.7, initial=0.4, beta=2.0, seed=3)
    game = play(net, transform)
    transform.begin()
    noise = [n.astype("float64") for n in own(transform, "noise")]
    assert all(np.abs(n).min() > 0 for n in noise)
    start = np.concatenate([KERNEL.ravel(), BIAS, np.full(9, np.log(0.4 / 0.7))])

    def loss(theta):
        mu, sigma = theta[:9], 0.7 * np.exp(theta[9:])
        w = mu + sigma * np.concatenate([n.ravel() for n in noise])
        z = x @ w[:6].reshape(2, 3) + w[6:]
        z -= np.log(np.exp(z).sum(1, keepdims=True))
        return -z[[0, 1], y].mean() + 2.0 / 50 * kl(mu, sigma, 0.7).sum()

    wanted = [(loss(start + 1e-5 * step) - loss(start - 1e-5 * step)) / 2e-5 for step in np.eye(18)]
    logs = game.fit(x, y, batch_size=2, verbose=0).history
    after = [np.concatenate([v.ravel() for v in own(transform, n)]) for n in ("mu", "log_ratio")]
    np.testing.assert_allclose(start - np.concatenate(after), wanted, atol=2e-5)
    assert logs["loss"][0] == pytest.approx(loss(start), rel=1e-5)
    moved = kl(after[0], 0.7 * np.exp(after[1]), 0.7).sum()
    assert logs["weights_kl"][0] == pytest.approx(moved, rel=1e-4)


def test_without_spread_it_is_weight_decay():
    """sigma -> 0: AT with a Gaussian prior on the weights, beta / (N prior^2) of decay."""
    nets = [linear(), linear()]
    transform = GaussianWeights(20, prior=0.5, initial=1e-9)
    x, y = np.random.default_rng(0).uniform(0, 1, (8, 2)).astype("float32"), np.arange(8) % 3
    games = [play(nets[0], transform, ATTACK, SGD(0.1))]
    games.append(
        tr.training.AdversarialTraining(nets[1], ATTACK, mix=(1, 1), weight_decay=1 / (20 * 0.25))
    )
    games[1].compile(SGD(0.1), run_eagerly=True)
    for game in games:
        game.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    for a, b in zip(nets[0].get_weights(), nets[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(nets[1].get_weights()[0] - KERNEL).max() > 0.1


class Spied(tr.training.AdversarialTraining):
    """Notes the first kernel that every pass, and every attack, meets."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.met = [], []

    def forward(self, x, training=True):
        self.seen.append(self.classifier.weights[0].numpy())
        return super().forward(x, training)

    def attacked(self, x, y, attack=None):
        self.met.append(self.classifier.weights[0].numpy())
        return super().attacked(x, y, attack)


def test_both_passes_share_a_draw_and_the_attack_meets_the_mean():
    net, transform = dense(), GaussianWeights(24, initial=0.05)
    game = Spied(net, ATTACK, mix=(1, 1), transform=transform)
    game.compile(SGD(0.0), run_eagerly=True)
    before = net.weights[0].numpy()
    fit(game, epochs=1, validation_data=data())
    clean, adversarial = game.seen[0::2], game.seen[1::2]
    assert len(clean) == 3 and len(game.met) == 3
    for a, b in zip(clean, adversarial, strict=True):
        np.testing.assert_array_equal(a, b)
    spread = np.stack(clean) - before
    assert np.abs(spread[0] - spread[1]).max() > 0.05
    assert 0.04 < spread.std() < 0.06  # 384 draws of deviation 0.05
    for met in game.met:
        np.testing.assert_array_equal(met, before)
    np.testing.assert_array_equal(net.weights[0], own(transform, "mu")[0])
    assert {type(layer).__module__.split(".")[0] for layer in net.layers} == {"keras"}


def test_vulnerability_is_that_of_the_draw_on_images_made_for_the_mean():
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, activation="tanh", name="hidden")(inputs)
    net = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    transform = GaussianWeights(50, initial=0.3)
    terms = [tr.regularizers.VulnerabilitySuppression(1.0, features=["hidden"])]
    game = tr.training.AdversarialTraining(net, ATTACK, transform=transform, regularizers=terms)
    game.compile(SGD(0.0), run_eagerly=True)
    x, y = np.random.default_rng(0).uniform(0.2, 0.8, (8, 2)).astype("float32"), np.arange(8) % 3
    transform.begin()
    x_adv = ATTACK.within(net, tf.constant(x), tf.constant(y), 0).numpy()  # the net holds mu
    mean = net.get_layer("hidden").get_weights()
    drawn = [w + 0.3 * n for w, n in zip(mean, own(transform, "noise"), strict=False)]
    values = [
        np.abs(np.diff([np.tanh(v @ kernel + bias) for v in (x, x_adv)], axis=0)).mean()
        for kernel, bias in (drawn, mean)
    ]
    logs = game.fit(x, y, batch_size=8, verbose=0).history
    assert logs["regularization"][0] == pytest.approx(values[0], rel=1e-4)
    assert values[0] != pytest.approx(values[1], rel=0.02)


def test_seeds_and_steps_draw_other_noise():
    def first(seed, steps):
        transform = GaussianWeights(10, seed=seed)
        transform.attach(linear())
        transform.begin()
        for _ in range(steps):
            transform.update()
        return own(transform, "noise")[0]

    np.testing.assert_array_equal(first(1, 2), first(1, 2))
    others = [first(1, 0), first(1, 1), first(2, 0)]
    assert all(np.abs(a - b).max() > 0.1 for a in others for b in others if a is not b)


def test_weights_of_an_attack_are_drawn_at_every_gradient():
    net, (x, y) = dense(), data(16)
    transform = GaussianWeights(24, initial=0.2, attack_weights="sampled")
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), 3, random_start=False, last_iterate=True)
    game = play(net, transform, attack)
    transform.begin()
    met = transform.attacked()
    a, b = met(x), met(x)
    assert np.abs(a - b).max() > 0.05
    np.testing.assert_array_equal(transform.attacked()(x), a)  # of the same step
    np.testing.assert_array_equal(net.weights[0], own(transform, "mu")[0])
    one, two = (game.attacked(tf.constant(x), tf.constant(y)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - attack.within(net, x, y, 0)).max() > 0.05
    transform.update()
    assert np.abs(transform.attacked()(x) - a).max() > 0.05
    for own_part in transform._kept.own:
        own_part["log_ratio"].assign_sub(tf.fill(own_part["log_ratio"].shape, 20.0))
    np.testing.assert_allclose(transform.attacked()(x), net(x), atol=1e-5)


@pytest.mark.slow
def test_the_sampled_attack_runs_in_a_compiled_step():
    transform = GaussianWeights(24, initial=0.2, attack_weights="sampled")
    game = tr.training.TRADES(dense(), tr.threats.Linf(0.1), transform=transform)
    game.compile(keras.optimizers.Adam(0.01))
    history = fit(game, epochs=4).history
    assert history["loss"][-1] < history["loss"][0]


def test_it_multiplies_with_masks():
    """ANP: masks stay what they are, with a KL of their own."""
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Dense(6, activation="relu")(keras.layers.Flatten()(inputs))
    x = tr.layers.BetaBernoulliMask(initial_a=2.0, seed=0)(x)
    net = keras.Model(inputs, keras.layers.Dense(4)(x))
    transform = GaussianWeights(24)
    game = tr.training.ANP(net, ATTACK, train_size=24, transform=transform)
    game.compile(run_eagerly=True)
    assert len(transform._kept.targets) == 4
    before = float(transform.kl()), [m.numpy() for m in game.group_variables()["masks"]]
    logs = fit(game, epochs=1).history
    assert logs["kl"][0] > 10 and logs["weights_kl"][0] != pytest.approx(before[0])
    pairs = zip(before[1], game.group_variables()["masks"], strict=True)
    assert all((a != b.numpy()).any() for a, b in pairs)


def test_pruned_weights_stay_zero():
    net = dense()
    tr.pruning.prune(net, 0.75)
    masks = list(tr.pruning.masks_of(net).values())
    transform = GaussianWeights(24, initial=0.3)
    fit(play(net, transform, ATTACK, keras.optimizers.Adam(0.1)), epochs=1)
    for mask, found in zip(masks, tr.pruning.masks_of(net).values(), strict=True):
        np.testing.assert_array_equal(mask, found)
    deviations = [d.numpy() for d in transform.sampled().layers[-1].deviations]
    assert (deviations[0][~masks[0]] == 0).all() and (deviations[0][masks[0]] > 0).all()
    for part, mask in zip(transform._kept.own[::2], masks, strict=True):
        assert (part["mu"].numpy()[~mask] == 0).all()


# Kept and resumed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack_weights", [pytest.param("mean", marks=pytest.mark.slow), "sampled"]
)
def test_resumed_equals_unbroken(tmp_path, attack_weights):
    def train(seed, *callbacks):
        transform = GaussianWeights(24, attack_weights=attack_weights)
        game = play(dense(seed=seed), transform, ATTACK, keras.optimizers.Adam(0.05))
        batches = tr.data.Batches(*data(), 8, seed=3)
        until_killed(game.fit, batches, epochs=2, verbose=0, callbacks=list(callbacks))
        return [v.numpy() for v in (*game.variables, *game.optimizer.variables)]

    resumed_equals_unbroken(train, tmp_path, kill=1)


def test_a_game_goes_on_after_loading(tmp_path):
    transform = GaussianWeights(24, prior=0.2, initial=0.1, beta=0.5, seed=4)
    game = play(dense(), transform, ATTACK, keras.optimizers.Adam(0.05))
    fit(game, epochs=1)
    game.save(tmp_path / "game.keras")
    again = keras.saving.load_model(tmp_path / "game.keras")
    assert again.transform.get_config() == transform.get_config()
    for model in (game, again):
        fit(model, epochs=1)
    for a, b in zip(game.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# The random net ---------------------------------------------------------------------------------


def test_draws_have_the_mean_and_variance_of_a_linear_net():
    """Logits of x ~ N(x mu, sigma^2 (|x|^2 + 1))."""
    net, x = linear(), np.array([[0.6, 0.8], [0.0, 0.0]], "float32")
    random = tf.function(sampled(net, initial=0.3))
    logits = np.stack([random(x) for _ in range(400)])
    deviation = 0.3 * np.sqrt(np.array([[2.0], [1.0]]))
    assert np.abs(logits.mean(0) - net(x)).max() < 4.5 * deviation.max() / 20
    np.testing.assert_allclose(logits.std(0) / deviation, 1, atol=4.5 / np.sqrt(800))
    shared = logits[:, 0] - logits[:, 1]  # one draw for all rows: the bias drops out
    np.testing.assert_allclose(shared.std(0), 0.3, atol=0.06)


@pytest.mark.parametrize("classes", [3, 1])
def test_an_ensemble_averages_probabilities(classes):
    inputs = keras.Input((2,))
    net = keras.Model(inputs, keras.layers.Dense(classes)(inputs))
    x = np.array([[0.6, 0.8], [0.1, 0.9]], "float32")
    single, many = sampled(net, initial=1.0), sampled(net, draws=4, initial=1.0)
    logits = np.stack([single(x) for _ in range(4)])  # the same seed, the same draws
    if classes == 1:
        p = (1 / (1 + np.exp(-logits))).mean(0)
        wanted = np.log(p / (1 - p))
    else:
        p = np.exp(logits)
        wanted = np.log((p / p.sum(-1, keepdims=True)).mean(0))
    np.testing.assert_allclose(many(x), wanted, atol=1e-5)


def test_the_random_net_is_saved_whole(tmp_path):
    net, (x, _) = dense(), data(4)
    random = sampled(net)
    random.save(tmp_path / "random.keras")
    again = keras.saving.load_model(tmp_path / "random.keras")
    for _ in range(2):
        np.testing.assert_array_equal(random(x), again(x))
    before = net(x).numpy()
    random.layers[-1].net.set_weights([w * 0 for w in net.get_weights()])
    np.testing.assert_array_equal(net(x), before)  # a copy


def test_expectation_over_transformation_sees_the_draws():
    net, (x, y) = dense(), data(16)
    random = sampled(net, initial=0.4)
    attack = tr.attacks.FGSM(tr.threats.Linf(0.2), eot=4)
    first, second = attack.result(random, x, y), attack.result(random, x, y)
    np.testing.assert_array_equal(first.x_adv, second.x_adv)
    np.testing.assert_array_equal(
        first.fooled, tr.attacks.verdicts(random, first.x_adv, y, draws=4)
    )
    mean = tr.attacks.FGSM(tr.threats.Linf(0.2)).within(net, tf.constant(x), tf.constant(y), 0)
    assert np.abs(first.x_adv - mean).max() > 0.01


@pytest.mark.slow
def test_evaluation_judges_averages_and_says_that_the_net_is_random():
    net, (x, y) = dense(), data()
    attack = tr.attacks.PGD(tr.threats.Linf(0.2), steps=2, eot=4)
    scores = tr.evaluate.robustness(sampled(net), (x, y), [attack], progress=False)
    assert scores.joint.count <= scores.clean.count
    plain = tr.evaluate.robustness(net, (x, y), [attack], progress=False)
    codes = [{flag.code for flag in s.flags} for s in (scores, plain)]
    assert "stochastic_output" in codes[0] - codes[1]


# Mistakes ---------------------------------------------------------------------------------------

ERRORS = {
    "size": (lambda: GaussianWeights(0), "`train_size` must be an integer >= 1"),
    "prior": (lambda: GaussianWeights(9, prior=0.0), "`prior` must be a number > 0"),
    "initial": (lambda: GaussianWeights(9, initial=-1), "`initial` must be a number > 0"),
    "beta": (lambda: GaussianWeights(9, beta=-1), "`beta` must be >= 0"),
    "attack": (lambda: GaussianWeights(9, attack_weights="no"), "`attack_weights` must be one of"),
    "seed": (lambda: GaussianWeights(9, seed=True), "`seed` must be an integer >= 0"),
    "draws": (lambda: sampled(linear(), draws=0), "`draws` must be an integer >= 1"),
    "early": (lambda: GaussianWeights(9).sampled(), "call `fit` of a game"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes(name):
    make, match = ERRORS[name]
    with pytest.raises(ValueError, match=match):
        make()


def test_weights_that_are_not_finite_are_refused():
    net = linear()
    net.set_weights([KERNEL * np.nan, BIAS])
    with pytest.raises(ValueError, match="`classifier` weights must be finite"):
        play(net, GaussianWeights(9), NOBODY).transform.begin()
