"""Games in mixed precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests.bank_fit import STEP, anp_vs, data, net


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def policy(request):
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy("float32")


def test_mixed_precision_trains(policy):
    x, y = data()
    game = anp_vs()
    optimizers = {group: keras.optimizers.Adam(1e-2) for group in ("weights", "masks")}
    game.compile(optimizers, run_eagerly=policy == "mixed_bfloat16")
    assert game.classifier.compute_dtype == policy.removeprefix("mixed_")
    scaled = [isinstance(o, keras.optimizers.LossScaleOptimizer) for o in game.optimizers.values()]
    assert scaled == [policy == "mixed_float16"] * 2
    before = game.classifier.get_weights()
    history = game.fit(x, y, epochs=8, batch_size=20, verbose=0, validation_data=(x, y)).history
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
    for old, new in zip(before, game.classifier.get_weights(), strict=True):
        assert new.dtype == np.float32 or new.dtype == old.dtype
        assert np.isfinite(new).all()
    moved = [
        np.abs(a - b).max() > 0 for a, b in zip(before, game.classifier.get_weights(), strict=True)
    ]
    assert all(moved[: len(game.classifier.trainable_variables)])


def test_mixed_precision_follows_the_classifier_not_the_moment(policy):
    """A net of mixed precision wrapped after the global policy is back to float32."""
    classifier = net()
    keras.mixed_precision.set_dtype_policy("float32")
    game = tr.training.AdversarialTraining(classifier, STEP)
    game.compile("adam")
    scaled = isinstance(game.optimizers["weights"], keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


def test_attacks_stay_in_float32(policy):
    x, y = data()
    classifier = net()
    game = tr.training.AdversarialTraining(classifier, STEP)
    game.compile("adam")
    x_adv = game.attacked(tf.constant(x), tf.constant(y))
    assert x_adv.dtype == tf.float32
    with tf.GradientTape() as tape:
        images = tf.constant(x)
        tape.watch(images)
        loss = tf.reduce_sum(tr.losses.cross_entropy(classifier(images), y))
    assert loss.dtype == tf.float32 and tape.gradient(loss, images).dtype == tf.float32
    # Two sign steps of 2.5 / 2 epsilon end on the ball's surface, not on a float16 grid.
    change = np.abs(x_adv.numpy() - x)
    free = (x > 0.11) & (x < 0.89)
    np.testing.assert_allclose(change[free].max(), 0.1, atol=1e-6)


def test_masks_keep_float32_parameters_under_mixed_precision(policy):
    mask = tr.layers.BetaBernoulliMask(initial_a=1.2345, initial_b=0.7)
    x = np.ones((2, 3), "float32")
    mask.build((None, 3))
    gate = mask.expected().numpy()
    keras.mixed_precision.set_dtype_policy("float32")
    plain = tr.layers.BetaBernoulliMask(initial_a=1.2345, initial_b=0.7)
    plain.build((None, 3))
    np.testing.assert_array_equal(gate, plain.expected().numpy())
    inside = []
    expected = mask.expected
    mask.expected = lambda: inside.append(expected()) or inside[-1]
    mask(x)
    np.testing.assert_array_equal(inside[0].numpy(), gate)
