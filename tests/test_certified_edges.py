"""Certified training at its edges: one logit, pooled logits, NaN, radii, options that mislead."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.bank_pruning import dense

THREAT = tr.threats.Linf(0.05)
layers = keras.layers


def net(head, shape=(6, 6, 1)):
    keras.utils.set_random_seed(0)
    image = keras.Input(shape)
    return keras.Model(image, head(layers.Conv2D(4, 3, activation="relu")(image)))


HEADS = {
    "one logit": lambda x: layers.Dense(1)(layers.Flatten()(x)),
    "pooled": lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(x)),
    "three": lambda x: layers.Dense(3)(layers.Flatten()(x)),
}


@pytest.mark.parametrize(
    ("head", "bound"), [("one logit", "ibp"), ("pooled", "ibp"), ("one logit", "crown-ibp")]
)
def test_a_graph_of_any_batch_bounds_as_eager_steps_do(head, bound):
    classifier = net(HEADS[head])
    game = tr.training.CertifiedTraining(classifier, THREAT, bound=bound, crown=0.5)
    x, y = bank.images(5, (6, 6, 1)), np.arange(5) % game.program.classes
    spec = [tf.TensorSpec((None, 6, 6, 1)), tf.TensorSpec((None,), tf.int64)]
    graph = tf.function(lambda x, y: game.bounded(x, y)[0], input_signature=spec)
    want, _ = game.bounded(tf.constant(x), tf.constant(y))
    np.testing.assert_allclose(graph(x, y), want, atol=1e-5)


def test_images_of_any_size_with_one_logit():
    classifier = net(lambda x: layers.Dense(1)(layers.GlobalAveragePooling2D()(x)), (None, None, 1))
    game = tr.training.CertifiedTraining(classifier, THREAT)
    game.compile(keras.optimizers.SGD(0.1))
    logs = game.fit(bank.images(6, (7, 7, 1)), np.arange(6)[:, None] % 2, verbose=0).history
    assert logs["robust_loss"][0] > logs["loss"][0]


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp", "symbolic"])
def test_validation_verifies_what_the_certificate_does(bound):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    classifier = keras.Model(inputs, layers.Dense(4)(layers.Dense(8, activation="relu")(inputs)))
    x = bank.images(40, (6,))
    y = classifier(x).numpy().argmax(-1)
    threat = tr.threats.Linf(0.02)
    # The radius and the share of CROWN are those of training; validation has the threat's own.
    ramp = tr.training.Ramp(0.02, length=100)
    game = tr.training.CertifiedTraining(classifier, threat, bound=bound, epsilon=ramp)
    game.compile(run_eagerly=True)
    logs = game.evaluate(x, y, verbose=0, return_dict=True)
    proof = tr.verify.certify(classifier, (x, y), threat, [bound], attacks=[], progress=False)
    assert 0 < proof.verified.count < 40
    assert logs["verified_accuracy"] == pytest.approx(proof.verified.value)


def test_nan_is_not_verified():
    margins = tf.constant([[0.0, np.nan], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    share = tf.function(tr.training.certified.verified, jit_compile=True)
    assert float(share(margins, tf.zeros(4, tf.int32))) == 0.25


@pytest.mark.parametrize("ends", [{"final": 8}, {"final": 0.1, "initial": 8}])
def test_a_ramp_to_8_is_refused(ends):
    ramp = tr.training.Ramp(**ends, length=3)
    with pytest.raises(ValueError, match=r"`epsilon` must lie in .*write 8/255"):
        tr.training.CertifiedTraining(dense(), THREAT, epsilon=ramp)
    with pytest.raises(ValueError, match=r"`epsilon` must lie in .*write 8/255"):
        tr.training.AdversarialTraining(dense(), tr.attacks.FGSM(THREAT), epsilon=ramp)


def test_crown_that_never_counts_is_told():
    with pytest.warns(UserWarning, match="`crown` is 0 from the first step"):
        tr.training.CertifiedTraining(dense(), THREAT, bound="crown-ibp", epsilon=0.05)
    ramp = tr.training.Ramp(0.05, length=3)
    tr.training.CertifiedTraining(dense(), THREAT, bound="crown-ibp", epsilon=ramp)


def test_penalties_look_in_the_ball_that_is_certified():
    x, y = bank.images(4, (6, 6, 1)), np.arange(4) % 3
    batch = tr.training.Batch(tf.constant(x), tf.constant(y), None, tf.constant(x), 4)
    classifier, align = net(HEADS["three"]), tr.training.GradAlign(1.0)
    certified = tr.training.CertifiedTraining(classifier, THREAT, epsilon=0.1)
    attacked = tr.training.AdversarialTraining(classifier, tr.attacks.FGSM(THREAT), epsilon=0.1)
    found = align.penalty(certified, batch)
    assert float(tf.reduce_max(found)) > 0
    np.testing.assert_array_equal(found, align.penalty(attacked, batch))
    # A radius that does not grow has nothing to fade with.
    assert tr.training.BoxTightness().faded(certified) == 1.0


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"train_size": True}, ValueError, "`train_size` must"),
        ({"kl_weights": [1]}, TypeError, "`kl_weights` must be a dictionary"),
        ({"kl_weights": {"mask": "1"}}, ValueError, "`kl_weights` must give weights"),
    ],
)
def test_what_masks_refuse(change, kind, words):
    masked = net(lambda x: HEADS["three"](tr.layers.BetaBernoulliMask(name="mask")(x)))
    with pytest.raises(kind, match=words) as caught:
        tr.training.CertifiedANP(masked, THREAT, **{"train_size": 9, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv2DTranspose(16, 3, padding="same"),
        lambda: layers.Conv2DTranspose(64, 4, 2, padding="same"),
        lambda: layers.SeparableConv2D(16, 3, depth_multiplier=8, padding="same"),
        lambda: layers.Conv2D(16, 3, padding="same", groups=2),
    ],
)
def test_initialization_keeps_the_width_of_boxes(layer):
    inputs = keras.Input((12, 12, 16))
    x = layers.ReLU()(layer()(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    tr.training.ibp_initialization(model)
    program = tr.bounds.Program(model)
    region = tr.bounds.Region.around(tr.threats.Linf(0.1), tf.fill((1, 12, 12, 16), 0.5))
    box = program.boxes(region, [program.output])[program.bent[0]]
    inner = box.radius[:, 3:-3, 3:-3]
    # A ReLU halves it: most of these have boxes on both sides of 0.
    assert float(tf.reduce_mean(inner)) / 2 == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"regularizers": ["l2"]}, TypeError, "`regularizers` must hold callables"),
        ({"bound": np.array(["ibp", "symbolic"])}, ValueError, "`bound` must be one of"),
    ],
)
def test_what_games_refuse(change, kind, words):
    with pytest.raises(kind, match=words):
        tr.training.CertifiedTraining(dense(), THREAT, **change)
