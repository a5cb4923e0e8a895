"""Numbers about representations, class gradients and areas over epsilon."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank, bank_afd

D = tr.diagnostics


def identity(size=4, classes=3):
    """A classifier whose representation is the image itself."""
    inputs = keras.Input((size,))
    h = keras.layers.Activation("linear", name="h")(inputs)
    keras.utils.set_random_seed(0)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(h))


# Areas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilons", "rates", "area"),
    [
        ((0, 0.1, 0.7), (30, 30, 30), 0.3),
        ((0, 2, 4, 10), (100, 80, 60, 0), 0.5),
        ((0, 0.1, 0.5, 1.0), (100, 50, 10, 0), 0.1 * 0.75 + 0.4 * 0.3 + 0.5 * 0.05),
    ],
)
def test_areas_by_hand(epsilons, rates, area):
    """Constant, linear, on a grid that is not uniform: the area of `tr.evaluate.Curve`."""
    rates = tuple(tr.evaluate.Rate(count, 100) for count in rates)
    assert tr.evaluate.Curve("PGD", "linf", epsilons, rates).auc == pytest.approx(area)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: D.feature_dimensions(identity(), bank.images(1, (4,))), "two images or more"),
        (
            lambda: D.representation_sensitivity(
                identity(), bank.images(3, (4,)), bank.images(2, (4,))
            ),
            "`x_adv` must have the shape of `x`",
        ),
        (lambda: D.tsne(identity(), bank.images(9, (4,))), "the number of images"),
    ],
)
def test_what_is_refused(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


# Representations ---------------------------------------------------------------------------------


def test_sensitivity_by_hand():
    x = np.array([[0.3, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0]], "float32")
    moved = np.array([[0.3, 0.4, 0, 0.5], [0, 0, 0, 0], [0, 0, 0.5, 0]], "float32")
    found = D.representation_sensitivity(identity(), x, moved)
    np.testing.assert_allclose(found.values, [1, 1, 0], atol=1e-6)
    assert found.median == pytest.approx(1) and found.n == 3
    unit = tr.models.unit_features(identity())
    rng = np.random.default_rng(0).uniform(0, 1, (2, 40, 4)).astype("float32")
    assert D.representation_sensitivity(unit, *rng).values.max() <= 2
    found = D.representation_sensitivity(identity(), moved, x)  # the second is all zeros
    assert found.left_out == 1 and found.n == len(found.values) == 2
    with pytest.raises(ValueError, match="length > 0. Received: 1 images, all with features of 0"):
        D.representation_sensitivity(identity(), moved[1:2], x[1:2])


def test_dimensions_of_data_of_rank_two():
    rng = np.random.default_rng(0)
    x = 0.5 + 0.1 * rng.uniform(-1, 1, (60, 2)) @ rng.uniform(-1, 1, (2, 4))
    x[:, 3] = 0.0
    found = D.feature_dimensions(identity(), x)
    assert (found.units, found.features, found.dimensions, found.n) == (3, 4, 2, 60)
    assert found.lone == 0
    some = np.array([[0.5, 0, 0, 0], [0, 0.2, 0, 0], [0.1, 0.1, 0, 0], [0, 0, 0, 0]])
    assert D.feature_dimensions(identity(), some).lone == 2
    np.testing.assert_allclose(found.explained.sum(), 1)
    alike = D.feature_dimensions(identity(), np.full((5, 4), 0.5))
    assert alike.dimensions == 0 and alike.units == 4
    with pytest.raises(ValueError, match="`share`"):
        D.feature_dimensions(identity(), x, share=0)


def test_angles_by_hand():
    x = np.full((4, 4), 0.5, "float32")
    step = 0.25 * np.eye(4, dtype="float32")
    one, other = x + step[[0, 0, 0, 0]], x + step[[0, 1, 0, 0]] * np.array([[1], [1], [-1], [0]])
    found = D.perturbation_angles(identity(), x, one, other)
    np.testing.assert_allclose(found.values, [0, np.pi / 2, np.pi], atol=1e-6)
    assert found.left_out == 1 and found.to_dict()["n"] == 3


def test_tsne_parts_what_is_apart():
    x = np.concatenate([bank.images(12, (4,)) * 0.05, 1 - bank.images(12, (4,), seed=1) * 0.05])
    points = D.tsne(identity(), x, perplexity=5)
    np.testing.assert_array_equal(points, D.tsne(identity(), x, perplexity=5))
    near = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(near, np.inf)
    assert ((near.argmin(1) < 12) == (np.arange(24) < 12)).all()


# Class gradients ---------------------------------------------------------------------------------


def test_class_gradients_of_a_linear_net():
    net, x, y = identity(), bank.images(20, (4,)), np.arange(20) % 2
    found = D.class_gradients(net, x, y)
    kernel = net.get_layer("logits").kernel.numpy().astype("float64")
    p = tf.nn.softmax(net(x)).numpy().astype("float64")
    for true in (0, 1):
        for k in range(3):
            g = p[:, [k]] * (kernel[:, k] - p @ kernel.T)
            want = np.log(np.linalg.norm(g, axis=1)[y == true].mean())
            assert found.matrix[true, k] == pytest.approx(want, abs=1e-4)
    assert np.isnan(found.matrix[2]).all() and found.counts.tolist() == [10, 10, 0]


def test_probability_gradients_sum_to_zero():
    from tfrobust.diagnostics.class_gradients import probability_gradients

    gradients = probability_gradients(bank.classifier(), bank.images(5))
    assert len(gradients) == 4 and np.abs(gradients[0]).max() > 1e-3
    np.testing.assert_allclose(sum(gradients), 0, atol=1e-6)
    one = bank_afd.net(1)  # a single logit is two classes
    assert D.class_gradients(one, bank.images(4), [0, 1, 0, 1]).matrix.shape == (2, 2)


def test_a_flat_model_is_at_the_floor():
    net = identity()
    net.get_layer("logits").kernel.assign(np.zeros((4, 3)))
    matrix = D.class_gradients(net, bank.images(3, (4,)), [0, 1, 2]).matrix
    np.testing.assert_allclose(matrix, np.log(1e-30))
    x = bank.images(3, (4,))
    np.testing.assert_array_equal(D.visualise_class(net, x, [0, 1, 2], steps=2).images, x)


def test_visualised_image_of_a_linear_net():
    """It walks along the kernel's column, by 0.1 a step, as far as the box lets it."""
    net, x = identity(), np.full((1, 4), 0.5, "float32")
    found = D.visualise_class(net, x, [2], steps=2, step_size=0.1)
    column = net.get_layer("logits").kernel.numpy()[:, 2]
    np.testing.assert_allclose(
        found.images[0], 0.5 + 0.2 * column / np.linalg.norm(column), atol=1e-6
    )
    np.testing.assert_allclose(found.gradient[0], column, atol=1e-6)
    assert np.diff(found.logits[:, 0]).min() > 0 and found.logits.shape == (3, 1)


# The trace ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trace_is_the_mean_over_its_steps():
    game, trace, short = bank_afd.game(), D.DiscriminatorTrace(2), D.DiscriminatorTrace(3)
    logs = game.fit(
        *bank_afd.data(24), batch_size=6, epochs=1, verbose=0, callbacks=[trace, short]
    ).history
    assert trace.column("step").tolist() == [2, 4] and short.column("step").tolist() == [3]
    for name in ("discriminator_loss", "feature_shift", "robust_accuracy"):
        assert trace.column(name).mean() == pytest.approx(logs[name][0], rel=1e-4)
    kept = D.DiscriminatorTrace(2)
    kept.state = trace.state
    assert kept.rows == trace.rows
    other = tr.training.AdversarialTraining(bank_afd.net(), bank_afd.ATTACK)
    other.compile("sgd", run_eagerly=True)
    with pytest.raises(TypeError, match="DiscriminatorTrace in `fit` of tr.training.AFD only"):
        other.fit(*bank_afd.data(), verbose=0, callbacks=[trace])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert D.DiscriminatorTrace().rows == []
