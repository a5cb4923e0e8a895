"""Variants of the feature game through whole steps: who moves what, statistics, maps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank_afd as bank

SLOW = pytest.mark.slow
GROUPS = (*bank.GROUPS, "masks")


@pytest.mark.parametrize("order", ["sequential", pytest.param("simultaneous", marks=SLOW)])
@pytest.mark.parametrize(
    "mover", ["masks", "encoder", *(pytest.param(g, marks=SLOW) for g in bank.GROUPS[:2])]
)
def test_masks_have_a_player_of_their_own(mover, order):
    """Nobody but "masks" moves a gate, and it moves nothing else."""
    net = bank.net(mask=lambda **named: tr.layers.BetaBernoulliMask(initial_a=2.0, seed=1, **named))
    game = bank.game(classifier=net, beta=4.0, train_size=12, update_order=order)
    game.compile(
        {group: keras.optimizers.SGD(0.1 * (group == mover)) for group in GROUPS}, run_eagerly=True
    )
    owned = game.group_variables()
    everything = [*game.classifier.trainable_variables, *game.discriminator.trainable_variables]
    before, mine = bank.values(everything), {id(v) for v in owned[mover]}
    assert {id(v) for v in owned["masks"]} == {id(v) for m in game.masks() for v in m.variables} & {
        id(v) for v in everything
    }
    logs = game.fit(*bank.data(), batch_size=12, verbose=0).history
    assert logs["kl"][0] > 0 and mine
    for variable, old in zip(everything, before, strict=True):
        assert np.array_equal(variable.numpy(), old) == (id(variable) not in mine), variable.path


@pytest.mark.parametrize(
    ("generator", "order"),
    [
        ("saturating", "sequential"),
        ("two_sided", "sequential"),
        pytest.param("two_sided", "simultaneous", marks=SLOW),
        pytest.param("saturating", "simultaneous", marks=SLOW),
    ],
)
def test_generator_losses_in_a_step(generator, order):
    """A step of the encoder alone is its rate times the gradient of the loss, written out here."""
    game = bank.game(generator_loss=generator, update_order=order, bn_stats="clean_only")
    rates = {"weights": 0.0, "discriminator": 0.0, "encoder": 0.5}
    game.compile({g: keras.optimizers.SGD(r) for g, r in rates.items()}, run_eagerly=True)
    x, y = bank.data()
    owned, norm = game.group_variables()["encoder"], game.classifier.get_layer("norm")
    x_adv = game.attacked(tf.constant(x), tf.constant(y))
    averages = bank.values([norm.moving_mean, norm.moving_variance])
    critic = game.discriminator.get_weights()
    game.judge(game.flat(game.encoder(x)), tf.constant(y), training=True)  # its power iteration
    with tf.GradientTape() as tape:
        d, d_adv = (
            game.judge(game.flat(game.encoder(v, training=True)), tf.constant(y))
            for v in (x, x_adv)
        )
        loss = -tf.math.log(1 + tf.exp(d_adv))
        if generator == "two_sided":
            loss = tf.math.log(1 + tf.exp(-d_adv)) + tf.math.log(1 + tf.exp(d))
        loss = tf.reduce_mean(loss)
    wanted = tape.gradient(loss, owned)
    norm.moving_mean.assign(averages[0])
    norm.moving_variance.assign(averages[1])
    game.discriminator.set_weights(critic)
    before = bank.values(owned)
    logs = game.fit(x, y, batch_size=12, verbose=0).history
    assert logs["encoder_loss"][0] == pytest.approx(float(loss), rel=1e-4)
    for new, old, gradient in zip(bank.values(owned), before, wanted, strict=True):
        np.testing.assert_allclose(new - old, -0.5 * gradient.numpy(), atol=2e-6)
    assert max(np.abs(gradient).max() for gradient in wanted) > 1e-3


def test_statistics_of_all_passes_by_hand():
    """Clean (its own loss), clean and attacked (discriminator), attacked (encoder), in order."""
    game = bank.game((0.0, 0.0, 0.0), bn_stats="all")
    x, y = bank.data(8)
    norm = game.classifier.get_layer("norm")
    norm.moving_mean.assign(np.full(6, 0.3, "float32"))
    hidden = keras.Model(game.classifier.input, game.classifier.get_layer("first").output)
    x_adv = game.attacked(tf.constant(x), tf.constant(y)).numpy()
    mean, variance = np.full(6, 0.3), np.ones(6)
    for images in (x, x, x_adv, x_adv):
        h = hidden(images).numpy().astype("float64")
        mean, variance = 0.9 * mean + 0.1 * h.mean(0), 0.9 * variance + 0.1 * h.var(0)
    game.fit(x, y, batch_size=8, verbose=0)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)


def test_maps_as_features():
    """feature_layer= a convolution: maps are flattened, layers behind it belong to the decoder."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(3, 3, strides=2, activation="relu", name="maps")(inputs)
    x = keras.layers.Dense(5, "relu", name="behind")(keras.layers.Flatten()(maps))
    net = keras.Model(inputs, keras.layers.Dense(4)(x))
    game = bank.game((0.0, 0.1, 0.1), classifier=net, feature_layer="maps")
    assert game.discriminator.input_shape[0] == (None, 27)
    paths = {v.path for v in game.group_variables()["encoder"]}
    assert paths == {v.path for v in net.get_layer("maps").trainable_variables}
    before, behind = bank.values(game.encoder.variables), bank.values(net.layers[-1].variables)
    logs = game.fit(*bank.data(), batch_size=6, verbose=0).history
    assert all(np.isfinite(values).all() for values in logs.values())
    assert not bank.same(before, bank.values(game.encoder.variables))
    assert bank.same(behind, bank.values(net.layers[-1].variables))
    rows = game.views(tf.constant(bank.data()[0]))[0][1]
    assert rows.shape == (12, 27)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["masks", "filters"])
def test_a_resnet_through_game_shrinking_and_export(how, tmp_path):
    """Unit features, ANP-AFD or pruned filters, then compact, .keras and TensorFlow Lite."""
    keras.utils.set_random_seed(0)
    net = tr.models.resnet18(version="mnist", width=0.25)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (16, 28, 28, 1)).astype("float32"), np.arange(16) % 10
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=1)
    options, callbacks = {}, []
    if how == "masks":
        net = tr.layers.insert_masks(net, tr.layers.BetaBernoulliMask)
        options = {"beta": 1.0, "train_size": 16}
    else:
        schedule = tr.pruning.OneShot(0.5)
        callbacks = [tr.pruning.MagnitudePruning(schedule, structured="filters", scope="layer")]
    net = tr.models.unit_features(net)
    game = tr.training.AFD(net, attack, **options)
    game.compile()
    game.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
    if how == "masks":  # gates that training would have closed
        for mask in game.masks():
            size = mask.a_.shape[0]
            mask.a_.assign(np.where(np.arange(size) % 2, -20.0, 5.0))
    small = tr.shrink.compact(net)
    flops = [tr.footprint.measure(model).flops for model in (net, small)]
    assert small.count_params() < net.count_params() and flops[1] <= flops[0]
    want = tr.attacks.forward(net, x)
    np.testing.assert_allclose(tr.attacks.forward(small, x), want, atol=1e-4)
    tr.export.keras_file(small, tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras", compile=False)
    np.testing.assert_allclose(tr.attacks.forward(again, x), want, atol=1e-4)
    tr.export.tflite(small, tmp_path / "small.tflite")
    np.testing.assert_allclose(tr.export.predict(tmp_path / "small.tflite", x), want, atol=1e-3)
