"""The feature game's second player: its losses, and the discriminator that AFD builds by default.

A score d is positive for what looks clean and negative for what looks attacked. All losses are
values per example, `(batch,)`, so that sample weights reach them.
"""

import keras
import tensorflow as tf

from tfrobust import layers, losses
from tfrobust.contract import whole

DIVERGENCES = ("bce", "hinge", "wasserstein")
GENERATORS = ("nonsaturating", "saturating", "two_sided")


def discriminator_loss(divergence, clean, adversarial):
    """What the discriminator minimises, `(batch,)`, from scores of clean and attacked features.

    bce: S(-d) + S(d') with S(u) = log(1 + e^u), which is BCE(1, d) + BCE(0, d'), a sum of two
    terms (`BinaryCrossentropy` over both halves is half of it); its least value over all
    discriminators is 2 log 2 - 2 JS(p, q). hinge: max(0, 1 - d) + max(0, 1 + d').
    wasserstein: d' - d.

    >>> zero = tf.zeros(1)
    >>> round(float(discriminator_loss("bce", zero, zero)[0]), 6)
    1.386294
    """
    if divergence == "bce":
        return tf.nn.softplus(-clean) + tf.nn.softplus(adversarial)
    if divergence == "hinge":
        return tf.nn.relu(1.0 - clean) + tf.nn.relu(1.0 + adversarial)
    return adversarial - clean


def encoder_loss(divergence, generator, adversarial, clean=None):
    """What the encoder minimises, `(batch,)`: attacked features are to look clean.

    bce: S(-d') (nonsaturating), or -S(d') (saturating), the same sign of the gradient in another
    size: sigmoid(-d') against sigmoid(d'). hinge, wasserstein: -d'. "two_sided" adds what makes
    clean features look attacked: S(d), or d.

    >>> round(float(encoder_loss("bce", "nonsaturating", tf.zeros(1))[0]), 6)
    0.693147
    """
    bce = divergence == "bce"
    if generator == "saturating":
        return -tf.nn.softplus(adversarial)
    values = tf.nn.softplus(-adversarial) if bce else -adversarial
    if generator == "two_sided":
        values += tf.nn.softplus(clean) if bce else clean
    return values


def check_game(divergence, generator):
    """Names of a divergence and a generator loss that go together."""
    for name, value, known in (
        ("divergence", divergence, DIVERGENCES),
        ("generator_loss", generator, GENERATORS),
    ):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {list(known)}. Received: {name}={value!r}")
    if generator == "saturating" and divergence != "bce":
        raise ValueError(
            "`generator_loss` must be 'nonsaturating' or 'two_sided' with "
            f"divergence={divergence!r}. Received: generator_loss='saturating'"
        )


def feature_discriminator(
    features, classes, n_hidden=2, projection=True, width=None, slope=0.2, name="discriminator"
):
    """Builds the spectrally normalized projection discriminator of AFD.

    phi(h): `n_hidden` times SNDense(width) -> LeakyReLU(slope); score = SNDense(1)(phi) +
    <SNEmbedding(y), phi>, without the second term if not `projection`. It is 2-Lipschitz in h
    (1-Lipschitz without projection), once its power iterations have settled. Table A6 of the
    paper: FC1-PD is n_hidden=0, FC3 is n_hidden=2 without projection, FC3-PD the default; its text
    can also be read as n_hidden=3.

    Args:
        features: Integer >= 1, length of h.
        classes: Integer >= 2.
        n_hidden: Integer >= 0.
        projection: Bool, whether the label is looked at.
        width: Units of each hidden layer, default `features`.
        slope: Of the LeakyReLU, a float in [0, 1].

    Returns:
        Functional model, [features `(batch, features)`, labels `(batch,)`] or features alone ->
        scores `(batch, 1)`.

    Reference: Bashivan et al., Adversarial feature desensitization (2021),
    https://arxiv.org/abs/2006.04621; Miyato and Koyama, cGANs with projection discriminator
    (2018), https://arxiv.org/abs/1802.05637.

    >>> feature_discriminator(64, 10).count_params()
    9218
    """
    features, n_hidden = whole("features", features, 1), whole("n_hidden", n_hidden, 0)
    classes = whole("classes", classes, 2)
    width = features if width is None else whole("width", width, 1)
    if isinstance(slope, bool) or not isinstance(slope, int | float) or not 0 <= slope <= 1:
        raise ValueError(f"`slope` must lie in [0, 1]. Received: slope={slope!r}")
    plain = {"dtype": "float32"}
    h = x = keras.Input((features,), name="features", **plain)
    y = keras.Input((), dtype="int32", name="labels")
    for number in range(1, n_hidden + 1):
        # U(-1/sqrt(fan_in), 1/sqrt(fan_in)); the head and the rows are Glorot-uniform.
        start = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        x = layers.SNDense(width, kernel_initializer=start, name=f"hidden{number}", **plain)(x)
        x = keras.layers.LeakyReLU(float(slope), name=f"leaky{number}", **plain)(x)
    score = layers.SNDense(1, name="head", **plain)(x)
    if not projection:
        return keras.Model(h, score, name=name)
    rows = layers.SNEmbedding(classes, x.shape[-1], name="rows", **plain)(y)
    product = keras.layers.Dot(1, name="projection", **plain)([rows, x])
    score = keras.layers.Add(name="score", **plain)([score, product])
    return keras.Model([h, y], score, name=name)


def check_discriminator(model, features):
    """Refuses a discriminator of the user's that does not take these features."""
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        raise TypeError(
            "`discriminator` must be None, a dict of options of tr.training.feature_discriminator, "
            f"or a built Keras model features -> score. Received: {model!r}"
        )
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    fit = shapes[0] == (None, features) and all(len(s) == 1 for s in shapes[1:])
    out = tuple(model.outputs[0].shape)
    if not fit or len(shapes) > 2 or len(model.outputs) != 1 or out not in ((None, 1), (None,)):
        raise ValueError(
            f"`discriminator` must take features (batch, {features}), or those and labels "
            f"(batch,), and return scores (batch, 1). Received: inputs {shapes}, output {out}"
        )
    return model


def unit_rows(h):
    """h / ||h||_2 by rows; a row of zeros stays zero, and so does its gradient."""
    square = tf.reduce_sum(tf.square(h), -1, keepdims=True)
    some = square > 1e-24
    return tf.where(some, h * tf.math.rsqrt(tf.where(some, square, 1.0)), 0.0)


def gradient_penalty(judge, h, h_adv, share):
    """(||d score / d h|| - 1)^2, `(batch,)`, at share * h + (1 - share) * h_adv.

    `judge` scores the points between with the labels of their ends; the authors' code, without.
    """
    between = share * h + (1.0 - share) * h_adv
    with tf.GradientTape() as tape:
        tape.watch(between)
        scores = judge(between)
    square = tf.reduce_sum(tf.square(tape.gradient(scores, between)), -1)
    return tf.square(tf.sqrt(square + 1e-12) - 1.0)


def differences(clean, adversarial, h, h_adv):
    """{figure: (value, count)} that tell how the game stands; means over any split agree.

    `feature_variance` is taken from disjoint pairs of neighbours, half their mean square
    difference, so that replicas and a single device report the same.
    """
    count = tf.cast(tf.shape(h)[0], tf.float32)
    ties = 0.25 * (tf.sign(clean) - tf.sign(adversarial)) + 0.5
    length = tf.norm(h, axis=-1)
    moved = tf.math.divide_no_nan(tf.norm(h - h_adv, axis=-1), length)
    lit = tf.cast(length > 0, tf.float32)  # where no feature is, no relative shift is either
    shift = tf.math.divide_no_nan(tf.reduce_sum(moved), tf.reduce_sum(lit))
    even = tf.shape(h)[0] // 2 * 2
    pairs = tf.square(h[0:even:2] - h[1:even:2]) / 2
    half = tf.cast(even, tf.float32) / 2
    variance = tf.reduce_sum(pairs) / tf.maximum(half * tf.cast(tf.shape(h)[1], tf.float32), 1.0)
    return {
        "discriminator_accuracy": (tf.reduce_mean(ties), count),
        "score_clean": (tf.reduce_mean(clean), count),
        "score_adversarial": (tf.reduce_mean(adversarial), count),
        "feature_shift": (shift, tf.reduce_sum(lit)),
        "feature_variance": (variance, half),
    }


def same_answer(logits, y):
    """(share, count) of pairs of neighbours of two classes that get one prediction.

    1 in all batches: the net answers alike to all images. y are integers `(batch,)`.

    >>> logits = tf.constant([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> [float(value) for value in same_answer(logits, tf.constant([0, 1, 1, 0, 0]))]
    [0.5, 2.0]
    """
    even = tf.shape(y)[0] // 2 * 2
    answers = tf.argmax(losses.as_logits(logits), -1)
    same, other = answers[0:even:2] == answers[1:even:2], y[0:even:2] != y[1:even:2]
    count = tf.reduce_sum(tf.cast(other, tf.float32))
    both = tf.reduce_sum(tf.cast(tf.logical_and(same, other), tf.float32))
    return tf.math.divide_no_nan(both, count), count


FIGURES = (
    "discriminator_loss",
    "encoder_loss",
    "discriminator_accuracy",
    "score_clean",
    "score_adversarial",
    "feature_shift",
    "feature_variance",
    "same_answer",
    "encoder_gradient",
    "clean_accuracy",
)
