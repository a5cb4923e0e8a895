"""Bayesian weights: every weight of Dense and convolution layers is a Gaussian, N(mu, sigma^2).

With adversarial training this is Adv-BNN, the "AT BNN" of the ANP-VS tables:

    weights = tr.layers.GaussianWeights(train_size=60_000, prior=0.08)
    game = tr.training.AdversarialTraining(net, attack, transform=weights)
    game.compile("adam"); game.fit(...)
    net                               # the mean weights, a plain classifier: shrink, export, ...
    random = weights.sampled()        # new weights at every call: attack and judge it with eot=20
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.contract import is_number, nonnegative, whole
from tfrobust.layers.beta_bernoulli import distributions
from tfrobust.layers.mask import Mask, draw
from tfrobust.layers.transform import WeightTransform, assign

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)
ATTACK_WEIGHTS = ("mean", "sampled")


def deviates(key, number, w):
    """N(0, 1) of the shape of variable `w`, the `number`-th, from a scalar uint32 key."""
    seed = tf.bitcast(tf.stack([noise.fold(key, number), key]), tf.int32)
    return tf.random.stateless_normal(w.shape, seed)


@keras.saving.register_keras_serializable(package="tfrobust")
class GaussianWeights(WeightTransform):
    """Learns q(w) = N(mu, sigma^2) for each weight instead of w, with sigma = prior exp(r).

    The passes of a step, clean and adversarial, share one draw w = mu + sigma e, e ~ N(0, 1); the
    next step has a new one. The loss of the weights gets beta / N KL(q || N(0, prior^2)) on top,

        KL = sum over all weights of  log(prior / sigma) + (sigma^2 + mu^2) / (2 prior^2) - 1 / 2

    in nats, and gradients reach mu (at first the weights of the classifier) and r. Between steps
    the classifier holds mu: validation, saving, shrinking and export see a plain net. The random
    one is `sampled()`. BatchNormalization's statistics come from the random passes. Two numbers a
    weight are stored, and two passes are counted for one, where tables say Memory 200 % and xFLOPs
    0.5; `tr.footprint` measures what ships, the mean.

    Draws depend on (seed, step) alone: a resumed `fit` repeats them, and all replicas train the
    same weights. Kernels and biases of all layers but masks and normalization are replaced; what is
    frozen stays as it is, and pruned entries (`tr.pruning.freeze`) stay zero. Weight decay of the
    optimizer pulls mu to 0 and sigma to the prior. Take none of the game's: the KL is one.

    Args:
        train_size: Integer N, number of training examples.
        prior: Float > 0, standard deviation of the prior of each weight. Adv-BNN: 0.08.
        initial: Float > 0, sigma at the start; default `prior`. The ANP-VS release takes prior 1
            and 0.0486 for LeNet, prior 0.1 and 0.00672 for VGG-16.
        beta: Float >= 0, weight of KL / N. Adv-BNN: 1; the ANP-VS release: 0.01.
        attack_weights: "mean": attacks in training see mu (the ANP-VS release); "sampled": new
            weights at every gradient (Adv-BNN), an expectation over the draws in the long run.
        normalization: Bool: gamma and beta of normalization layers are Gaussians as well.
        seed: Integer >= 0.

    Reference: Liu, Li, Wu and Hsieh, Adv-BNN: Improved adversarial defense through robust Bayesian
    neural network (2019), https://arxiv.org/abs/1810.01279. Their released VGG counts the KL of
    the last layer only; here it is the sum over all.

    Example:

    >>> from tfrobust import attacks, data, models, threats, training
    >>> net, digits = models.digits_net(), data.load("digits")
    >>> weights = GaussianWeights(train_size=64, prior=0.08)
    >>> attack = attacks.PGD(threats.Linf(0.1), steps=1)
    >>> game = training.AdversarialTraining(net, attack, transform=weights)
    >>> game.compile("adam")
    >>> history = game.fit(digits.x_train[:64], digits.y_train[:64], verbose=0)
    >>> history.history["weights_kl"][0] > 0
    True
    >>> random = weights.sampled()
    >>> x_adv = attacks.PGD(threats.Linf(0.1), steps=2, eot=5)(random, digits.x_test[:8],
    ...                                                        digits.y_test[:8])
    """

    def __init__(
        self,
        train_size,
        prior=0.08,
        initial=None,
        beta=1.0,
        attack_weights="mean",
        normalization=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        initial = prior if initial is None else initial
        for name, value in (("prior", prior), ("initial", initial)):
            if not is_number(value) or not float(np.finfo("float32").tiny) <= value < 1e18:
                raise ValueError(
                    f"`{name}` must be a number > 0 whose square float32 holds. "
                    f"Received: {name}={value!r}"
                )
        if attack_weights not in ATTACK_WEIGHTS:
            raise ValueError(
                f"`attack_weights` must be one of {ATTACK_WEIGHTS}. "
                f"Received: attack_weights={attack_weights!r}"
            )
        self.train_size = whole("train_size", train_size, 1)
        self.seed = whole("seed", seed, 0)
        self.prior, self.initial = float(prior), float(initial)
        self.beta = nonnegative("beta", beta)
        self.attack_weights, self.normalization = attack_weights, bool(normalization)

    # --- what a transform is ----------------------------------------------------------------------

    def targets(self, classifier):
        kinds = Mask if self.normalization else (Mask, *NORMALIZATIONS)
        layers = [n for n in classifier._flatten_layers() if isinstance(n, kinds)]
        fixed = {id(v) for layer in layers for v in layer.trainable_variables}
        found = [v for v in classifier.trainable_variables if id(v) not in fixed]
        if not found:
            raise ValueError(
                "`classifier` must have trainable weights outside of masks and normalization. "
                f"Received: model '{classifier.name}' without"
            )
        return found

    def attach(self, classifier):
        super().attach(classifier)
        if self.attack_weights == "sampled":
            self._kept.live = _random(classifier, self._kept.targets, seed=self.seed)

    def create(self, number, w):
        return {
            "mu": self.own(w, f"mu_{number}", trainable=True),
            "log_ratio": self.own(w, f"log_ratio_{number}", trainable=True),
            "noise": self.own(w, f"noise_{number}", "float32"),
        }

    def reset(self, number, w, own):
        if not np.isfinite(np.asarray(w, np.float32)).all():
            raise ValueError(
                f"`classifier` weights must be finite. Received: '{w.path}' with NaN or infinity"
            )
        own["mu"].assign(w.value)
        own["log_ratio"].assign(np.full(w.shape, np.log(self.initial / self.prior), "float32"))

    def deviation(self, own):
        """sigma of each weight, from what belongs to it."""
        return self.prior * tf.exp(tf.cast(own["log_ratio"].value, tf.float32))

    def value(self, own):
        return tf.cast(own["mu"].value, tf.float32) + self.deviation(own) * own["noise"].value

    def rest(self, own):
        return tf.convert_to_tensor(own["mu"].value)

    def advance(self, number, own):
        key = noise.keys(self.seed, "gaussian weights", [0], run=self.step.value)[0]
        assign(own["noise"], deviates(key, number, own["noise"]))

    def kl(self):
        """KL(q || prior) in nats, summed over all weights: scalar."""
        tfd, parts = distributions(), self._kept.own
        mu, sigma = (  # one vector: a few large operations instead of many small ones
            tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in values], 0)
            for values in ([own["mu"].value for own in parts], map(self.deviation, parts))
        )
        q, prior = tfd.Normal(mu, sigma), tfd.Normal(0.0, self.prior)
        return tf.reduce_sum(tfd.kl_divergence(q, prior))

    def penalty(self):
        return self.beta / self.train_size * self.kl()

    def figures(self):
        """`weights_kl`: the KL of all weights in nats, before it is weighed."""
        return {"weights_kl": self.kl()}

    def attacked(self):
        if self.attack_weights == "mean":
            return super().attacked()
        layer = self._kept.live.layers[-1]
        for variable, own in zip(layer.deviations, self._kept.own, strict=True):
            assign(variable, self.deviation(own))
        key = noise.keys(self.seed, "gaussian attack", [0], run=self.step.value)[0]
        state = layer.seed_generator.state
        key = tf.cast(tf.bitwise.right_shift(key, tf.constant(1, tf.uint32)), state.dtype)
        state.assign(tf.stack([key, tf.zeros_like(key)]))
        return self._kept.live

    # --- afterwards -------------------------------------------------------------------------------

    def sampled(self, draws=1, seed=0):
        """The random classifier as it is now: a functional model that draws weights at each call.

        Attack it with `eot=20`, which makes `tr.evaluate.robustness` judge by averages over draws
        as well: the machinery for every model that is random. It saves as `.keras` on its own.

        Args:
            draws: Integer >= 1. Above 1 each answer is the log of the softmax, averaged over so
                many draws: an ensemble in one model.
            seed: Integer >= 0.

        Raises:
            ValueError: training has not begun.
        """
        if self._kept.classifier is None or not self.begun.numpy():
            raise ValueError(
                "Nothing is learned yet: call `fit` of a game with this transform before sampled()."
            )
        classifier = self._kept.classifier
        copy = type(classifier).from_config(classifier.get_config())
        copy.set_weights(classifier.get_weights())
        model = _random(copy, self._kept.targets, draws, seed, classifier)
        pairs = zip(model.layers[-1].deviations, self._kept.targets, self._kept.own, strict=True)
        for variable, w, own in pairs:
            sigma, mask = self.deviation(own), getattr(w.constraint, "mask", None)
            variable.assign(sigma if mask is None else tf.where(mask.value, sigma, 0.0))
        return model

    def get_config(self):
        names = ("train_size", "prior", "initial", "beta", "attack_weights", "normalization")
        names = ("name", *names, "seed")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="tfrobust")
class SampledWeights(keras.layers.Layer):
    """Runs a classifier in inference mode with weights w ~ N(its own, deviation^2) at every call.

    Args:
        classifier: Functional Keras classifier, its weights are the means.
        places: List of integers, which of `classifier.weights` are drawn.
        draws: Integer >= 1; above 1 the log of the softmax averaged over so many draws comes back.
        seed: Integer >= 0. Replicas draw different weights.

    Attributes:
        deviations: List of variables, standard deviations of the shapes of these weights.
    """

    def __init__(self, classifier, places, draws=1, seed=0, **kwargs):
        super().__init__(**kwargs)
        if isinstance(classifier, dict):
            classifier = keras.saving.deserialize_keras_object(classifier)
        self.net, self.places = classifier, [int(place) for place in places]
        self.draws, self.seed = whole("draws", draws, 1), whole("seed", seed, 0)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.deviations = [
            self.add_weight(
                shape=classifier.weights[place].shape, initializer="zeros", dtype="float32",
                trainable=False, autocast=False, name=f"deviation_{number}",
            )
            for number, place in enumerate(self.places)
        ]  # fmt: skip
        self.built = True

    def call(self, x):
        if self.draws == 1:
            return self._once(x)
        total = self._said(x)
        _, total = tf.while_loop(
            lambda i, _: i < self.draws,
            lambda i, total: (i + 1, keras.ops.logaddexp(total, self._said(x))),
            (tf.constant(1), total),
        )
        total = total - np.log(self.draws)
        return total[:, 1:] - total[:, :1] if self.net.output_shape[-1] == 1 else total

    def _said(self, x):
        """Log-probabilities of one draw; of a single logit for both classes."""
        logits = tf.cast(self._once(x), tf.float32)
        if logits.shape[-1] == 1:
            logits = tf.concat([tf.zeros_like(logits), logits], -1)
        return tf.nn.log_softmax(logits)

    def _once(self, x):
        seed = draw(self.seed_generator)
        key = noise.fold(tf.cast(seed[0], tf.uint32), seed[1])
        drawn = []
        for number, (place, s) in enumerate(zip(self.places, self.deviations, strict=True)):
            w = self.net.weights[place]
            value = tf.cast(w.value, tf.float32) + s.value * deviates(key, number, w)
            value = tf.cast(value, w.dtype)
            drawn.append((w, value if w.constraint is None else w.constraint(value)))
        with keras.StatelessScope(state_mapping=drawn) as scope:
            logits = self.net(x, training=False)
        for v in self.net.non_trainable_variables:  # generators that moved, if it has any
            if scope.get_current_value(v) is not None:
                v.assign(scope.get_current_value(v))
        return logits

    def compute_output_shape(self, input_shape):
        return self.net.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "classifier": keras.saving.serialize_keras_object(self.net),
            "places": self.places,
            "draws": self.draws,
            "seed": self.seed,
        }


def _random(classifier, targets, draws=1, seed=0, original=None):
    """A functional model of `SampledWeights`; `targets` are weights of `original`."""
    numbers = {id(v): n for n, v in enumerate((original or classifier).weights)}
    places = [numbers[id(w)] for w in targets]
    layer = SampledWeights(classifier, places, draws, seed, name="sampled_weights")
    inputs = keras.Input(classifier.input_shape[1:])
    return keras.Model(inputs, layer(inputs), name=f"{classifier.name}_sampled")
