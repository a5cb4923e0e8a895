"""ADMM: weights drawn to a sparse set by a penalty that any game, or plain `fit`, minimises."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_pruning import adversarial, compiled, data, dense, fit
from tests.bank_resume import Kill, resumed_equals_unbroken, until_killed
from tfrobust.pruning import ADMM, LearnedScores
from tfrobust.pruning.admm import Pull, squares

SGD = keras.optimizers.SGD
LARGE = np.array([[3.0, -0.5], [0.25, -2.0], [1.5, 0.75]], "float32")
STAYS = np.array([[1, 0], [0, 1], [1, 0]], bool)  # the three largest of six


class HalfSquares(keras.losses.Loss):
    """1/2 ||y - z||^2, summed: with the identity as input, 1/2 ||W - C||^2."""

    def __init__(self):
        super().__init__(reduction="sum")

    def call(self, y, z):
        return 0.5 * tf.reduce_sum(tf.square(z - y), -1)


def quadratic(c, rate):
    net = keras.Sequential([keras.Input((len(c),)), keras.layers.Dense(c.shape[1], use_bias=False)])
    net.set_weights([c])
    net.compile(SGD(rate), HalfSquares())
    return net


def solve(net, admm, c, epochs):
    eye = np.eye(len(c), dtype="float32")
    return net.fit(
        eye, c, batch_size=len(c), epochs=epochs, shuffle=False, verbose=0, callbacks=[admm]
    )


def penalised(net):
    return [v.path for v in net.trainable_variables if v.regularizer is not None]


# By hand ----------------------------------------------------------------------------------------


def test_a_quadratic_by_hand():
    """min 1/2 ||W - C||^2: each step of SGD(1 / (1 + rho)) is the exact minimum of its epoch.

    What stays is C at once. What goes is c (1 + rho)^-k after k updates, its dual u_k the sum of
    these, c (1 - (1 + rho)^-k) / rho, whose limit c / rho makes rho u the gradient at W = 0.
    """
    rho, epochs = 0.5, 4
    net, admm = quadratic(LARGE, 1 / (1 + rho)), ADMM(0.5, every=1, rho=rho, growth=1.0)
    found = solve(net, admm, LARGE, epochs).history["residual"]
    gone = np.where(STAYS, 0, LARGE)
    np.testing.assert_allclose(
        net.get_weights()[0], np.where(STAYS, LARGE, gone / 1.5**epochs), atol=1e-6
    )
    np.testing.assert_allclose(admm._u[0], gone * (1 - 1.5**-epochs) / rho, atol=1e-6)
    np.testing.assert_allclose(admm._z[0], np.where(STAYS, LARGE, 0), atol=1e-6)
    lost, kept = np.square(gone).sum(), np.square(LARGE[STAYS]).sum()
    wanted = [np.sqrt(lost / (lost + kept * 1.5 ** (2 * k))) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_fixed_point():
    """W = Z sparse and rho U the gradient: nothing moves any more, and pruning takes nothing."""
    net, admm = quadratic(LARGE, 1 / 4.0), ADMM(0.5, every=1, rho=3.0, growth=1.0)
    solve(net, admm, LARGE, 12)
    np.testing.assert_allclose(3.0 * admm._u[0], np.where(STAYS, 0, LARGE), atol=1e-5)
    before = net.get_weights()[0]
    assert admm.residual < 1e-6
    assert admm.prune().sparsity == 0.5
    np.testing.assert_allclose(net.get_weights()[0], before, atol=1e-5)
    np.testing.assert_array_equal(net.get_weights()[0] != 0, STAYS)


def test_updates_come_after_every_second_epoch_and_rho_grows():
    net, admm = quadratic(LARGE, 0.1), ADMM(0.5, every=2, rho=0.4, growth=1.5)
    history = solve(net, admm, LARGE, 5).history
    assert history["rho"] == pytest.approx([0.4, 0.6, 0.6, 0.9, 0.9])
    assert float(admm._factor.numpy()) == pytest.approx(0.9)
    solve(net, admm, LARGE, 1)  # goes on where it ended
    assert float(admm._factor.numpy()) == pytest.approx(1.35)


def test_rescaling_keeps_the_multiplier():
    """rho U of what goes: C = rho U at the fixed point, which rho may then leave behind."""
    net = quadratic(LARGE, 0.2)
    admm = ADMM(0.5, every=1, rho=2.0, growth=1.05, rescale=True)
    solve(net, admm, LARGE, 20)
    np.testing.assert_allclose(admm._rho * admm._u[0], np.where(STAYS, 0, LARGE), atol=1e-3)
    assert admm.residual < 1e-3


def test_the_penalty_is_half_rho_times_squares_beside_a_regularizer():
    w = keras.Variable(np.array([1.0, -2.0], "float32"))
    pull = Pull(w, keras.Variable(0.3), keras.regularizers.L1(0.1))
    pull.anchor.assign([0.5, 0.0])
    assert float(pull(w)) == pytest.approx(0.15 * (0.25 + 4) + 0.1 * 3)


# The set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"structured": "filters"}, {"structured": (2, 4)}, {"scope": "global"}], ids=str
)
def test_the_projection_is_what_prune_leaves(options):
    """One ranking chooses, in the projection and in hard pruning."""
    net, other = dense(), dense()
    admm = ADMM(0.5, every=1, rho=0.1, **options)
    fit(compiled(net), admm, epochs=1)
    other.set_weights(net.get_weights())
    admm._u = [u * 0 for u in admm._u]
    projected = admm._projected(admm._weights())
    tr.pruning.prune(other, 0.5, **{"scope": "layer", "rule": squares, **options})
    places = [place.name for place in admm._pruner.places]
    for name, z in zip(places, projected, strict=True):
        np.testing.assert_array_equal(other.get_layer(name).kernel, z)
    assert tr.pruning.sparsity(other) >= 0.39


def test_filters_go_by_their_l2_norm():
    """One large entry outweighs two of 0.6, whose l1 norm is larger."""
    c = np.array([[1.0, 0.6], [0.0, 0.6]], "float32")
    inputs = keras.Input((2,))
    x = keras.layers.Dense(2, use_bias=False, name="hidden")(inputs)
    net = keras.Model(inputs, keras.layers.Dense(2)(x))
    net.get_layer("hidden").set_weights([c])
    admm = ADMM(0.5, structured="filters")
    net.compile(SGD(0.0), "mse")
    net.fit(np.eye(2, dtype="float32"), c, verbose=0, callbacks=[admm])
    np.testing.assert_array_equal(admm._z[0], c * [1, 0])


def test_what_was_pruned_before_stays_pruned():
    net = dense()
    tr.pruning.prune(net, 0.6, exclude="last")
    zero = net.get_layer("hidden").kernel.numpy() == 0
    admm = ADMM(0.7, every=1, rho=1.0)
    fit(compiled(net), admm)
    assert (admm._z[0][zero] == 0).all() and (
        net.get_layer("hidden").kernel.numpy()[zero] == 0
    ).all()


# In games ---------------------------------------------------------------------------------------


def test_without_rho_it_is_the_game_bit_for_bit():
    games = [adversarial(dense(), keras.optimizers.Adam(0.05)) for _ in range(2)]
    fit(games[0], ADMM(0.5, every=1, rho=0.0))
    fit(games[1])
    for a, b in zip(games[0].get_weights(), games[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Weighs(tr.training.AdversarialTraining):
    """Notes the penalty that its loss has on top."""

    def weight_penalty(self):
        self.seen = super().weight_penalty()
        return self.seen


def test_draw_prune_fine_tune():
    """The residual falls, `prune` says nothing, zeros hold, and the penalty is gone."""
    net = dense()
    attack = tr.attacks.FGSM(tr.threats.Linf(0.1))
    game = Weighs(net, attack)
    game.compile(SGD(0.05, momentum=0.5), run_eagerly=True)
    residual = fit(game, admm := ADMM(0.75, every=2, rho=4.0, growth=1.0), epochs=8).history[
        "residual"
    ]
    assert residual[-1] < 0.05 < residual[1] < 0.1 < residual[0]
    assert float(game.seen) > 0 and penalised(net) == []
    report = admm.prune()  # without a warning
    masks = tr.pruning.masks_of(net)
    assert report.sparsity == 0.75 == tr.pruning.sparsity(net)
    fit(game)
    assert float(game.seen) == 0
    for name, mask in tr.pruning.masks_of(net).items():
        np.testing.assert_array_equal(mask, masks[name])


def test_the_penalty_leaves_compiled_steps_when_fit_ends():
    """A second `fit` without it is that of a net that never met it."""
    net, other = dense(), dense()
    game, plain = (adversarial(n, SGD(0.1)) for n in (net, other))
    fit(game, ADMM(0.5, every=1, rho=5.0), epochs=1)
    other.set_weights(net.get_weights())
    fit(game, epochs=1)
    fit(plain, epochs=1)
    for a, b in zip(net.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_it_multiplies_with_anp():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Dense(6, activation="relu")(keras.layers.Flatten()(inputs))
    x = tr.layers.BetaBernoulliMask(initial_a=2.0, seed=0)(x)
    net = keras.Model(inputs, keras.layers.Dense(4)(x))
    attack = tr.attacks.FGSM(tr.threats.Linf(0.1))
    game = tr.training.ANP(net, attack, train_size=24)
    game.compile({"weights": SGD(0.05), "masks": SGD(0.05)})
    admm = ADMM(0.5, every=1, rho=1.0, growth=1.3)
    residual = fit(game, admm, epochs=12).history["residual"]
    assert residual[-1] < residual[0]


def test_resumed_equals_unbroken(tmp_path):
    def train(seed, *callbacks):
        game = adversarial(dense(seed=seed), keras.optimizers.Adam(0.05), run_eagerly=True)
        admm = ADMM(0.5, every=1, rho=0.5, growth=1.3)
        batches = tr.data.Batches(*data(), 8, seed=3)
        until_killed(game.fit, batches, epochs=3, verbose=0, callbacks=[admm, *callbacks])
        weights = [v.numpy() for v in (*game.variables, *game.optimizer.variables)]
        return [*weights, *admm._z, *admm._u, admm._rho, admm._factor.numpy()]

    resumed_equals_unbroken(train, tmp_path, kill=4)


def test_state_of_other_options_is_refused():
    net = dense()
    one, other = ADMM(0.5), ADMM(0.6)
    fit(compiled(net), one, epochs=1)
    fit(compiled(net), other, epochs=1)
    with pytest.raises(ValueError, match="`fraction` and the options must be those"):
        other.state = one.state


def test_an_interrupted_penalty_is_replaced():
    net = dense(constraint=None)
    net.get_layer("hidden").kernel.regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(net, run_eagerly=True), ADMM(0.5), Kill(0))
    assert penalised(net) == ["hidden/kernel", "logits/kernel"]
    fit(compiled(net, run_eagerly=True), ADMM(0.5), epochs=1)
    assert isinstance(net.get_layer("hidden").kernel.regularizer, keras.regularizers.L2)
    assert penalised(net) == ["hidden/kernel"]


# Mistakes ---------------------------------------------------------------------------------------


def test_pruning_far_from_the_set_is_said():
    net, admm = dense(), ADMM(0.9, rho=1e-6)
    fit(compiled(net), admm, epochs=1)
    with pytest.warns(UserWarning, match="`residual` is 0.*: the weights are far from sparse"):
        admm.prune()
    assert tr.pruning.sparsity(net) >= 0.9


ERRORS = {
    "fraction": (lambda: ADMM(1.0), r"`fraction` must lie in \[0, 1\)"),
    "every": (lambda: ADMM(0.5, every=0), "`every` must be an integer >= 1"),
    "rho": (lambda: ADMM(0.5, rho=-1), "`rho` must be >= 0"),
    "growth": (lambda: ADMM(0.5, growth=0.5), "`growth` must be >= 1"),
    "structured": (lambda: ADMM(0.5, structured="rows"), "`structured` must be None"),
    "early": (lambda: ADMM(0.5).prune(), "pass this callback to `fit` first"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes(name):
    make, match = ERRORS[name]
    with pytest.raises(ValueError, match=match):
        make()


def test_it_does_not_share_kernels_with_a_transform():
    attack = tr.attacks.FGSM(tr.threats.Linf(0.1))
    game = tr.training.AdversarialTraining(dense(), attack, transform=LearnedScores(0.5))
    game.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="must not hold ADMM where `transform` makes the kernels"):
        fit(game, ADMM(0.5))
