"""The feature game's losses, its discriminator, and who owns what in a step."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank_afd as bank
from tfrobust.training import domain

LOG2 = math.log(2)
D = tf.constant([-80.0, -3.0, -0.5, 0.0, 0.2, 7.0, 80.0])


def batch(x_adv=None, y=None, weight=None, count=12):
    x, labels = bank.data(count)
    x_adv = bank.data(count)[0][::-1] if x_adv is None else x_adv
    y = labels if y is None else y
    weight = None if weight is None else tf.constant(weight)
    given = (tf.constant(v) for v in (x, y))
    return tr.training.Batch(*given, weight, tf.constant(x_adv.copy()), tf.constant(count))


# The losses --------------------------------------------------------------------------------------


def test_losses_are_those_of_binary_cross_entropy():
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    rng = np.random.default_rng(0)
    d, d_adv = (tf.constant(rng.normal(0, 3, 40), tf.float32) for _ in range(2))
    total = tf.reduce_mean(domain.discriminator_loss("bce", d, d_adv))
    both = bce(np.repeat([1.0, 0.0], 40)[:, None], tf.concat([d, d_adv], 0)[:, None])
    assert float(total) == pytest.approx(2 * float(both), rel=1e-6)
    encoder = tf.reduce_mean(domain.encoder_loss("bce", "nonsaturating", d_adv))
    assert float(encoder) == pytest.approx(float(bce(np.ones((40, 1)), d_adv[:, None])), rel=1e-6)


def test_losses_at_equilibrium_and_far_out():
    zero = tf.zeros(3)
    np.testing.assert_allclose(domain.discriminator_loss("bce", zero, zero), 2 * LOG2, rtol=1e-6)
    np.testing.assert_allclose(domain.encoder_loss("bce", "nonsaturating", zero), LOG2, rtol=1e-6)
    same = domain.discriminator_loss("bce", D, D).numpy()
    np.testing.assert_allclose(same, 2 * np.logaddexp(0, D) - D, rtol=1e-5)
    assert np.isfinite(same).all() and same.min() >= 2 * LOG2 - 1e-6
    np.testing.assert_array_equal(domain.discriminator_loss("hinge", D[-2:], D[:2]), 0.0)
    np.testing.assert_allclose(domain.discriminator_loss("wasserstein", D, 2 * D), D)
    for kind in ("hinge", "wasserstein"):
        np.testing.assert_allclose(domain.encoder_loss(kind, "nonsaturating", D), -D)
        np.testing.assert_allclose(domain.encoder_loss(kind, "two_sided", D, 3 * D), 2 * D)


@pytest.mark.parametrize(
    ("generator", "slope"),
    [("nonsaturating", lambda d: -tf.sigmoid(-d)), ("saturating", lambda d: -tf.sigmoid(d))],
)
def test_gradients_of_the_encoder_by_hand(generator, slope):
    with tf.GradientTape() as tape:
        tape.watch(D)
        loss = tf.reduce_mean(domain.encoder_loss("bce", generator, D))
    np.testing.assert_allclose(tape.gradient(loss, D), slope(D) / len(D), atol=1e-7)


def test_two_sided_loss_moves_clean_features_too():
    with tf.GradientTape() as tape:
        tape.watch(D)
        loss = tf.reduce_sum(domain.encoder_loss("bce", "two_sided", tf.zeros(7), D))
    np.testing.assert_allclose(tape.gradient(loss, D), tf.sigmoid(D), atol=1e-7)


def test_penalty_of_a_linear_critic():
    w = tf.constant([[3.0], [4.0]])
    values = domain.gradient_penalty(lambda h: (h @ w)[:, 0], D[:2, None] * w[:, 0], w[:, 0], 0.3)
    np.testing.assert_allclose(values, [16.0, 16.0], rtol=1e-5)


def test_unit_rows_leave_zeros_alone():
    h = tf.constant([[3.0, 4.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(h)
        rows = domain.unit_rows(h)
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(tape.gradient(rows, h)).all()


# The discriminator -------------------------------------------------------------------------------


def scores(model, h, y):
    """Scores `(batch,)` of a model with or without labels."""
    h = tf.constant(h)
    return model([h, tf.constant(y)] if len(model.inputs) == 2 else h)[:, 0]


def settled(**options):
    keras.utils.set_random_seed(1)
    model = domain.feature_discriminator(8, 5, **options)
    settle(model)
    return model


def settle(model, passes=40):
    for layer in model.layers:
        for _ in range(passes if isinstance(layer, tr.layers.spectral.Spectral) else 0):
            layer.effective(training=True)


@pytest.mark.parametrize(
    ("options", "bound", "matrices"),
    [
        ({}, 2, 4),
        ({"projection": False}, 1, 3),
        ({"n_hidden": 0}, 2, 2),
        pytest.param({"n_hidden": 3, "width": 5}, 2, 5, marks=pytest.mark.slow),
    ],
    ids=["FC3-PD", "FC3", "FC1-PD", "three hidden"],
)
def test_variants_and_their_lipschitz_constants(options, bound, matrices):
    model = settled(**options)
    assert sum(isinstance(layer, tr.layers.spectral.Spectral) for layer in model.layers) == matrices
    h, other = np.random.default_rng(0).normal(size=(2, 300, 8)).astype("float32")
    y = tf.range(300) % 5
    one, two = (scores(model, z, y) for z in (h, other))
    assert (np.abs(one - two) <= 1.01 * bound * np.linalg.norm(h - other, axis=1)).all()
    # With unit features scores differ by 4 at the most, so the loss has a floor.
    z, z_adv = (domain.unit_rows(tf.constant(v)) for v in (h, other))
    d, d_adv = (scores(model, v, y) for v in (z, z_adv))
    floor = 2 * math.log1p(math.exp(-2 * 1.01))
    assert float(tf.reduce_min(domain.discriminator_loss("bce", d, d_adv))) >= floor > 0.24


def test_label_enters_through_the_inner_product_alone():
    model = settled()
    h = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    phi = keras.Model(model.inputs[0], model.get_layer("leaky2").output)(h).numpy()
    rows = model.get_layer("rows").effective().numpy()
    first, second = (model([h, np.full(4, k)])[:, 0] for k in (1, 3))
    np.testing.assert_allclose(first - second, phi @ (rows[1] - rows[3]), atol=1e-5)
    model.get_layer("rows").kernel.assign(np.zeros((5, 8)))
    np.testing.assert_array_equal(model([h, np.zeros(4)]), model([h, np.full(4, 4)]))


def train(model, h, h_adv, steps):
    h, h_adv = tf.constant(h), tf.constant(h_adv)
    optimizer = keras.optimizers.SGD(0.1, 0.9)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            d, d_adv = tf.split(model(tf.concat([h, h_adv], 0), training=True)[:, 0], 2)
            loss = tf.reduce_mean(domain.discriminator_loss("bce", d, d_adv))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, domain.differences(d, d_adv, h, h_adv)["discriminator_accuracy"][0]

    for _ in range(steps):
        loss, accuracy = step()
    return float(loss), float(accuracy)


@pytest.mark.slow
def test_far_gaussians_are_told_apart_and_equal_ones_are_not():
    rng = np.random.default_rng(0)
    h, h_adv, held, held_adv = rng.normal(size=(4, 300, 8)).astype("float32")
    far = train(domain.feature_discriminator(8, 2, projection=False), h, h_adv + 10 / 8**0.5, 200)
    assert far[1] > 0.99
    model = domain.feature_discriminator(8, 2, n_hidden=0, projection=False)
    train(model, h, h_adv, 60)
    both = [scores(model, v, None) for v in (held, held_adv)]
    accuracy = domain.differences(*both, tf.constant(held), held_adv)["discriminator_accuracy"][0]
    assert 0.4 <= float(accuracy) <= 0.6
    loss, accuracy = train(domain.feature_discriminator(8, 2, projection=False), h, h, 100)
    assert loss == pytest.approx(2 * LOG2, abs=1e-3) and accuracy == pytest.approx(0.5, abs=0.02)


def test_differences_by_hand():
    h = tf.constant([[0.0, 1.0], [0.0, 3.0], [4.0, 3.0]])
    found = domain.differences(
        tf.constant([1.0, -1.0, 0.0]), tf.constant([-1.0, -2.0, 0.0]), h, 2 * h
    )
    found = {name: float(value) for name, (value, _) in found.items()}
    assert found["discriminator_accuracy"] == pytest.approx((0.5 + 2.5 / 3) / 2)
    assert found["score_adversarial"] == -1.0 and found["feature_shift"] == 1.0
    assert found["feature_variance"] == 1.0  # the pair (1, 3): 2^2 / 2 over two features


def test_images_without_features_have_no_relative_shift():
    h = tf.constant([[0.0, 0.0], [0.0, 2.0]])
    shift, count = domain.differences(tf.zeros(2), tf.zeros(2), h, h + 1.0)["feature_shift"]
    assert float(shift) == pytest.approx(2**0.5 / 2) and float(count) == 1.0


# A step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", ["sequential", pytest.param("simultaneous", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("mover", bank.GROUPS)
def test_each_player_moves_its_own_variables_only(mover, order):
    game = bank.game([0.1 * (group == mover) for group in bank.GROUPS], update_order=order)
    owned = game.group_variables()
    everything = [*game.classifier.trainable_variables, *game.discriminator.trainable_variables]
    before = bank.values(everything)
    game.fit(*bank.data(), batch_size=12, verbose=0)
    mine = {id(v) for v in owned[mover]}
    for variable, old in zip(everything, before, strict=True):
        assert np.array_equal(variable.numpy(), old) == (id(variable) not in mine), variable.path
    # iteration, rate and one momentum each; the encoder's are its own
    assert [len(game.optimizers[g].variables) for g in bank.GROUPS] == [
        2 + len(owned[g]) for g in bank.GROUPS
    ]
    assert owned["encoder"] == owned["weights"][:4] and len(owned["weights"]) == 6


def test_the_encoders_turn_leaves_the_discriminator_as_it_is():
    game = bank.game()
    before = bank.values(game.discriminator.variables)
    with tf.GradientTape() as tape:
        loss = game.objective(batch(), ("encoder",))["encoder"]
    assert bank.same(before, bank.values(game.discriminator.variables))
    gradients = tape.gradient(loss, game.group_variables()["encoder"])
    assert all(np.abs(g).max() > 0 for g in gradients)
    game.objective(batch(), ("discriminator",))
    assert not bank.same(before, bank.values(game.discriminator.variables))  # power iterations


def test_losses_of_a_step_by_hand():
    """On unit features, with sample weights, a decay, and each divergence."""
    weight = np.linspace(0, 2, 12).astype("float32")
    for divergence in domain.DIVERGENCES:
        game = bank.game(divergence=divergence, weight=0.7, encoder_decay=0.1)
        given = batch(weight=weight)
        h, h_adv = (
            domain.unit_rows(game.encoder(v, training=True)) for v in (given.x, given.x_adv)
        )
        y = given.y
        encoder = game.objective(given, ("encoder",))["encoder"]
        d_adv = game.discriminator([h_adv, y])[:, 0]
        values = weight * domain.encoder_loss(divergence, "nonsaturating", d_adv)
        squares = sum(np.sum(v.numpy() ** 2) for v in game.encoder.trainable_variables)
        assert float(encoder) == pytest.approx(0.7 * np.mean(values) + 0.05 * squares, rel=1e-5)
        got = game.objective(given, ("discriminator",))["discriminator"]
        d, d_adv = (game.discriminator([v, y])[:, 0] for v in (h, h_adv))
        want = np.mean(weight * domain.discriminator_loss(divergence, d, d_adv))
        assert float(got) == pytest.approx(want, rel=1e-5)
        clean = game.objective(given, ("weights",))["weights"]
        logits = game.classifier(given.x, training=True)
        ce = tr.losses.cross_entropy(logits, y) * weight
        assert float(clean) == pytest.approx(np.mean(ce), rel=1e-5)


def test_one_step_does_what_its_loss_wants():
    game = bank.game(feature_norm=False)
    given, owned = batch(), game.group_variables()

    def score():
        return float(tf.reduce_mean(game.judge(game.views(given.x_adv)[0][1], given.y)))

    def moved(group, rate, turn):
        with tf.GradientTape() as tape:
            loss = game.objective(given, turn)[group]
        for v, g in zip(owned[group], tape.gradient(loss, owned[group]), strict=True):
            v.assign_sub(rate * g)
        return float(loss)

    before = score()
    moved("encoder", 0.01, ("encoder",))
    assert score() > before
    settle(game.discriminator)
    first = moved("discriminator", 0.01, ("discriminator",))
    assert moved("discriminator", 0.0, ("discriminator",)) < first


def test_gradient_of_the_encoder_is_what_moves_it():
    """Without momentum a step is rate times gradient; weight and decay are in both."""
    game = bank.game(weight=0.7, encoder_decay=0.1)
    rates = {"weights": 0.0, "discriminator": 0.0, "encoder": 0.5}
    game.compile({g: keras.optimizers.SGD(r) for g, r in rates.items()}, run_eagerly=True)
    owned = game.group_variables()["encoder"]
    before = bank.values(owned)
    logs = game.fit(*bank.data(), batch_size=12, verbose=0).history
    steps = [new - old for new, old in zip(bank.values(owned), before, strict=True)]
    norm = math.sqrt(sum(np.sum(step.astype("float64") ** 2) for step in steps)) / 0.5
    assert logs["encoder_gradient"][0] == pytest.approx(norm, rel=1e-4) and norm > 1e-3


def test_gradient_of_the_encoder_has_no_loss_scale_and_no_skipped_step():
    game = bank.game((0.0, 0.0, 0.0))
    want = game.fit(*bank.data(), batch_size=12, verbose=0).history["encoder_gradient"][0]
    made = {g: keras.optimizers.SGD(0.0) for g in ("weights", "discriminator")}
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=2.0**9)
    game = bank.game()
    game.compile({**made, "encoder": scaled}, run_eagerly=True)
    logs = game.fit(*bank.data(), batch_size=12, verbose=0).history
    assert logs["encoder_gradient"][0] == pytest.approx(want, rel=1e-4)
    scaled.dynamic_scale.assign(3e38)  # gradients overflow: the optimizer leaves this step out
    logs = game.fit(*bank.data(), batch_size=12, verbose=0).history
    assert logs["encoder_gradient"] == [0.0]


def test_encoder_moves_in_proportion_to_the_scores():
    """x' = x and a critic c * w h near 0: dL_E = -sigmoid(-d) c w / m, so O(c), not O(1)."""
    lengths = []
    for size in (1e-2, 1e-3):
        h = keras.Input((6,))
        critic = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(size))
        game = bank.game(attack=bank.NOTHING, discriminator=keras.Model(h, critic(h)))
        with tf.GradientTape() as tape:
            loss = game.objective(batch(x_adv=bank.data()[0]), ("encoder",))["encoder"]
        found = tape.gradient(loss, game.group_variables()["encoder"])
        lengths.append(float(tf.linalg.global_norm([g for g in found if g is not None])))
    assert lengths[0] == pytest.approx(10 * lengths[1], rel=0.02) and lengths[1] > 0


def test_nothing_attacked_is_an_equilibrium():
    """x' = x: no discriminator is below 2 log 2, and one that guesses does not move the encoder."""
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        game = bank.game(attack=bank.NOTHING)
        x, _ = bank.data()
        given = batch(x_adv=x)
        found = game.objective(given, ("discriminator",))
        assert float(found["discriminator"]) >= 2 * LOG2 - 1e-6
    for name in ("head", "rows"):
        kernel = game.discriminator.get_layer(name).kernel
        kernel.assign(np.zeros(kernel.shape))
    with tf.GradientTape() as tape:
        loss = game.objective(given, ("encoder",))["encoder"]
    assert float(loss) == pytest.approx(LOG2)
    for gradient in tape.gradient(loss, game.group_variables()["encoder"]):
        assert gradient is None or not np.asarray(gradient).any()
