"""Certified training at its edges: one logit, pooled logits, NaN, radii, options that mislead."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank
from tests.bank_pruning import dense
from tests.bank_resume import resumed_equals_unbroken, state, until_killed

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


def normed():
    """z = W norm(x) with statistics, scales and kernel by hand."""
    image = keras.Input((4,))
    net = keras.Model(image, layers.Dense(3)(layers.BatchNormalization()(image)))
    rng = np.random.default_rng(0)
    gamma, beta = rng.normal(size=4), rng.normal(size=4)
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    net.layers[1].set_weights([gamma, beta, rng.uniform(size=4), rng.uniform(0.1, 0.2, size=4)])
    net.layers[2].set_weights([kernel, bias])
    return net


def test_batch_statistics_for_clean_images_moving_ones_for_bounds():
    net, x, y = normed(), 0.2 + 0.6 * bank.images(6, (4,)), np.arange(6) % 3
    weights = [w for layer in net.layers for w in layer.get_weights()]
    gamma, beta, mean, variance, kernel, bias = (w.astype(float) for w in weights)

    def logits(x, mean, variance):
        return (gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta) @ kernel + bias

    game = tr.training.CertifiedTraining(net, THREAT, kappa=0.3)
    game.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = game.fit(x, y, batch_size=6, verbose=0).history
    # What the bounds read is what the clean pass has left behind: statistics moved by 1 %.
    mean, variance = 0.99 * mean + 0.01 * x.mean(0), 0.99 * variance + 0.01 * x.var(0)
    at = logits(x, mean, variance)
    slopes = (gamma / np.sqrt(variance + 1e-3))[:, None] * kernel
    reach = 0.05 * np.abs(slopes.T[y][:, None] - slopes.T[None]).sum(-1)
    least = at[np.arange(6), y][:, None] - at - reach
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    worst = float(entropy(y, -least))
    clean = float(entropy(y, logits(x, x.mean(0), x.var(0))))
    assert logs["robust_loss"][0] == pytest.approx(worst, rel=1e-5)
    assert logs["loss"][0] == pytest.approx(0.3 * clean + 0.7 * worst, rel=1e-5)
    assert abs(clean - float(entropy(y, at))) > 0.01


def test_mixtrain_weighs_what_it_draws():
    """k = batch without replacement: mean of w (CE + 0.5 RCE)."""
    net, x, y = normed(), bank.images(6, (4,)), np.arange(6) % 3
    weight = np.array([1, 2, 0, 0.5, 1, 3], "float32")
    net.layers[1].trainable = False  # clean images have moving statistics, too
    game = tr.training.MixTrain(
        net, THREAT, k=6, alpha=1.0, weight=0.5, replacement=False, bound="ibp"
    )
    game.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = game.fit(x, y, sample_weight=weight, batch_size=6, verbose=0).history
    margins, _ = game.bounded(tf.constant(x), tf.constant(y))
    robust, clean = (tr.losses.cross_entropy(z, y).numpy() for z in (-margins, net(x)))
    assert logs["robust_loss"][0] == pytest.approx((weight * robust).mean(), rel=1e-5)
    assert logs["loss"][0] == pytest.approx((weight * (clean + 0.5 * robust)).mean(), rel=1e-5)


def test_a_killed_certified_training_goes_on(tmp_path):
    """The radius, the weight that grows, what is drawn and momentum, bit for bit."""
    x, y = bank.images(24, (4,)), np.arange(24) % 3

    def train(seed, *callbacks):
        keras.utils.set_random_seed(seed)
        image = keras.Input((4,))
        net = keras.Model(image, layers.Dense(3)(layers.Dense(5, activation="relu")(image)))
        game = tr.training.MixTrain(
            net, THREAT, k=2, alpha=0.7, bound="ibp", seed=3,
            epsilon=tr.training.Ramp(0.05, length=8, begin=1),
            weight=tr.training.Growth(0.1, 2.5, every=3, begin=2),
        )  # fmt: skip
        game.compile(keras.optimizers.SGD(0.1, momentum=0.9), run_eagerly=True)
        options = {"epochs": 4, "verbose": 0, "shuffle": False, "callbacks": list(callbacks)}
        until_killed(game.fit, tr.data.Batches(x, y, 8, seed=0), **options)
        return state(game)

    resumed_equals_unbroken(train, tmp_path, kill=5, save_freq=2)
