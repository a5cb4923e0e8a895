"""Adversarial feature desensitization: features from which nobody can tell who was attacked.

    net = tr.models.unit_features(tr.models.resnet18(version="mnist"))
    game = tr.training.AFD(net, tr.attacks.PGD(tr.threats.Linf(0.3), steps=40, step_size=0.01))
    game.compile(metrics=["accuracy"])
    game.fit(x_train, y_train, epochs=100, callbacks=[tr.training.CollapseWatch()])

Three optimizers: one for the classifier on clean images, one for a discriminator that tells clean
from attacked features, one for the encoder that fools it.
"""

import copy
import warnings

import keras
import tensorflow as tf

from tfrobust import contract, losses, noise, regularizers
from tfrobust.training import domain
from tfrobust.training.adversarial import check_mix
from tfrobust.training.game import Game
from tfrobust.training.numbers import check_number, number_config, value_at

ORDERS = ("sequential", "simultaneous")
STATISTICS = ("all", "clean_only")


@keras.saving.register_keras_serializable(package="tfrobust")
class AFD(Game):
    """Minimises, in turns, with h = E(x), h' = E(x') and the score Da, positive for clean:

    weights (encoder and decoder):  CE(f(x), y)
    discriminator:                  mean S(-Da(h, y)) + S(Da(h', y))
    encoder:                        weight * mean S(-Da(h', y))

    with S(u) = log(1 + e^u). The encoder is everything up to `feature_layer` and is moved by two
    optimizers with momenta of their own; the attack sees the classifier alone, in inference mode,
    and the true labels. Each turn sees the updates before it, on the same attacked images.

    Args:
        classifier: Functional classifier, logits out.
        attack: The training attack. One with `on_failure="clean"` hands out clean images where it
            fails, which the discriminator then meets under both names.
        feature_layer: Name of the layer whose output is h, default the input of the last Dense;
            maps are flattened.
        discriminator: None, a dict of options of `tr.training.feature_discriminator`, or a Keras
            model h `(batch, F)`, or [h, labels `(batch,)`] -> scores `(batch, 1)`. It meets clean
            and attacked features in one pass, and is frozen, `training=False`, in the encoder's.
        divergence: "bce", "hinge" or "wasserstein".
        generator_loss: "nonsaturating"; "saturating" (bce only): -S(Da(h')); "two_sided": clean
            features are to look attacked as well.
        weight: Float >= 0 or Keras schedule of the iteration (0 first: a warm-up), of the
            encoder's loss. With 0 the classifier trains as if alone.
        mix: Pair of weights of the clean and the adversarial loss of the first turn; the paper's
            is (1, 0). With weight 0, (0, 1) is adversarial training.
        update_order: "sequential", or "simultaneous": all gradients at the same parameters (the
            paper's Algorithm 1).
        discriminator_steps: Integer >= 1, turns of the discriminator before the encoder's.
        feature_norm: Divide h by its L2 norm for the discriminator. `tr.models.unit_features`
            lets the decoder see unit features too, as the authors' code does.
        bn_stats: "all": every training pass moves the averages of BatchNormalization;
            "clean_only": those of the first turn's loss alone.
        gradient_penalty: Float >= 0 of (||dDa/dh|| - 1)^2 between clean and attacked features,
            scored with their labels (the authors' code: without).
        on_failure: None (as the attack has it), "best_loss" or "clean"; see `Attack`.
        weight_decay, discriminator_decay, encoder_decay: Floats >= 0, decay / 2 * ||w||^2 in the
            three losses (coupled: Keras's optimizers decouple theirs).
        beta, train_size: None, or as in `ANP`: the classifier's masks are a group of their own,
            "masks", with the loss CE(f(x'), y) + beta / train_size * KL.
        regularizers, epsilon, share_noise, validation_attack, seed, transform: see `Game`.

    Without optimizers `compile` takes the paper's: SGD with momentum 0.9 at 0.1, 0.1 and 0.5
    (weights, discriminator, encoder), and Adam 1e-2 for masks. `fit` reports both losses of the
    game, `discriminator_accuracy` (0.5: it guesses), mean scores, how far features move and vary,
    the L2 norm `encoder_gradient` of what moves the encoder, and `clean_accuracy`;
    `CollapseWatch` judges them. 1 - `robust_accuracy` is about the share of attacked images that
    fool: it is taken in training mode, after the first turn. The authors' code can leave the
    encoder's turn out at random (`dis_iters`, off by default); here `weight` may be a schedule.

    Raises:
        TypeError, ValueError: arguments outside of these.

    Reference: Bashivan et al., Adversarial feature desensitization (2021),
    https://arxiv.org/abs/2006.04621. Robustness under PGD alone proves little here: see
    docs/afd.md.

    Example:

    >>> from tfrobust import attacks, models, threats
    >>> game = AFD(models.digits_net(), attacks.PGD(threats.Linf(0.1), steps=2))
    >>> game.compile(metrics=["accuracy"])
    >>> game.groups, game.discriminator.input_shape[0]
    (('weights', 'discriminator', 'encoder'), (None, 64))
    """

    def __init__(
        self,
        classifier,
        attack,
        feature_layer=None,
        discriminator=None,
        divergence="bce",
        generator_loss="nonsaturating",
        weight=1.0,
        mix=(1.0, 0.0),
        update_order="sequential",
        discriminator_steps=1,
        feature_norm=True,
        bn_stats="all",
        gradient_penalty=0.0,
        on_failure=None,
        discriminator_decay=0.0,
        encoder_decay=0.0,
        beta=None,
        train_size=None,
        **kwargs,
    ):
        domain.check_game(divergence, generator_loss)
        for name, value, known in (
            ("update_order", update_order, ORDERS),
            ("bn_stats", bn_stats, STATISTICS),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {list(known)}. Received: {name}={value!r}"
                )
        self.divergence, self.generator_loss = divergence, generator_loss
        self.weight, self.mix = check_number("weight", weight), check_mix(mix)
        self.update_order, self.bn_stats = update_order, bn_stats
        self.feature_norm = bool(feature_norm)
        self.discriminator_steps = contract.whole("discriminator_steps", discriminator_steps, 1)
        self.gradient_penalty, self.discriminator_decay, self.encoder_decay = (
            contract.nonnegative(name, value)
            for name, value in (
                ("gradient_penalty", gradient_penalty),
                ("discriminator_decay", discriminator_decay),
                ("encoder_decay", encoder_decay),
            )
        )
        self.beta = None if beta is None else check_number("beta", beta)
        self.train_size = None
        if beta is not None:
            self.train_size = contract.whole("train_size", train_size, 1)
        first = ("weights",) if beta is None else ("weights", "masks")
        game = (("discriminator",),) * self.discriminator_steps + (("encoder",),)
        if update_order == "simultaneous" and self.discriminator_steps > 1:
            raise ValueError(
                "`discriminator_steps` must be 1 with update_order='simultaneous'. "
                f"Received: discriminator_steps={discriminator_steps}"
            )
        both = (*first, "discriminator", "encoder")
        self._turns = (both,) if update_order == "simultaneous" else (first, *game)
        self._label = feature_layer
        super().__init__(classifier, _policy(attack, on_failure), **kwargs)
        if beta is not None and not self.masks():
            raise ValueError(
                "`classifier` must have masks with `beta`: call tr.layers.insert_masks(model, "
                f"tr.layers.BetaBernoulliMask). Received: model '{classifier.name}' without masks"
            )
        if beta is None and any(mask.trainable for mask in self.masks()):
            warnings.warn(
                "`beta` None leaves the masks to the losses of the encoder: nothing closes their "
                "gates. Give beta and train_size, or freeze them (mask.trainable = False).",
                stacklevel=2,
            )
        self._view = regularizers.representation(classifier, feature_layer)
        self.encoder = keras.Model(classifier.inputs[0], self._view.outputs[1])
        if not self.encoder.trainable_variables:
            raise ValueError(
                "`feature_layer` must have weights in front of it that can be trained. "
                f"Received: feature_layer={feature_layer!r}"
            )
        size, classes = self.features_of(self.encoder.output), contract.classes_of(classifier)
        self._options = discriminator if isinstance(discriminator, dict) else None
        self._default = discriminator is None or self._options is not None
        self.discriminator = (
            domain.feature_discriminator(size, classes, **(discriminator or {}))
            if self._default
            else domain.check_discriminator(discriminator, size)
        )

    @staticmethod
    def features_of(h):
        """Length of a flattened representation."""
        return int(tf.TensorShape(h.shape[1:]).num_elements())

    @property
    def turns(self):
        return self._turns

    def terms(self):
        return (*domain.FIGURES, *(("kl",) if self.beta is not None else ()))

    def group_variables(self):
        masks = {id(v) for mask in self.masks() for v in mask.trainable_variables}
        masks = masks if self.beta is not None else set()
        classifier = self.classifier.trainable_variables
        owned = {
            "weights": [v for v in classifier if id(v) not in masks],
            "discriminator": self.discriminator.trainable_variables,
            "encoder": [v for v in self.encoder.trainable_variables if id(v) not in masks],
        }
        if self.beta is not None:
            owned["masks"] = [v for v in classifier if id(v) in masks]
        return owned

    def default_optimizers(self):
        sgd, rates = keras.optimizers.SGD, {"weights": 0.1, "discriminator": 0.1, "encoder": 0.5}
        made = {group: sgd(rate, momentum=0.9) for group, rate in rates.items()}
        if self.beta is not None:
            made["masks"] = keras.optimizers.Adam(1e-2, epsilon=1e-8)
        return made

    # --- the passes ---------------------------------------------------------------------------

    def views(self, *images):
        """[(logits, h)] of training passes of the game; one noise for all if `share_noise`.

        Masks and dropout then draw what the next step's first turn draws, so that the game does
        not change the noise of the classifier's own loss.
        """
        moving = [] if self.bn_stats == "all" else list(_moving(self.classifier))
        noisy = self._noise_states() if self.share_noise else []
        averages, states = ([(v, tf.identity(v.value)) for v in vs] for vs in (moving, noisy))
        out = []
        for x in images:
            logits, h = self._view(x, training=True)
            out.append((logits, self.flat(h)))
            for variable, value in states:
                variable.assign(value)
        for variable, value in averages:
            variable.assign(value)
        return out

    def flat(self, h):
        """What the discriminator sees of a representation: float32 `(batch, F)`."""
        h = tf.reshape(tf.cast(h, tf.float32), [tf.shape(h)[0], self.features_of(h)])
        return domain.unit_rows(h) if self.feature_norm else h

    def judge(self, h, y, training=False):
        """Scores `(batch,)` of features; y integers `(batch,)`."""
        given = [h, y] if len(self.discriminator.inputs) == 2 else h
        return tf.reshape(tf.cast(self.discriminator(given, training=training), tf.float32), [-1])

    # --- the losses ---------------------------------------------------------------------------

    def objective(self, batch, turn):
        found = self._classify(batch, turn) if "weights" in turn else {}
        y = losses.as_labels(batch.y, contract.classes_of(self.classifier))
        both = "discriminator" in turn or self.generator_loss == "two_sided"
        if "discriminator" in turn or "encoder" in turn:
            seen = self.views(*([batch.x] if both else []), batch.x_adv)
        if "discriminator" in turn:
            found["discriminator"] = self._detect(batch, y, *seen)
        if "encoder" in turn:
            found["encoder"] = self._deceive(batch, y, seen)
        return found

    def _classify(self, batch, turn):
        """Losses of the weights and of the masks."""
        clean_share, share = (w / sum(self.mix) for w in self.mix)
        attacked = share or self.regularizers or "masks" in turn
        clean_too = clean_share or self.regularizers
        passes = self.passes(*[batch.x] * bool(clean_too), *[batch.x_adv] * bool(attacked))
        loss, terms = self.weight_penalty(), {}
        if attacked:
            adversarial = self.data_loss(batch, passes[-1].logits)
        if share:
            loss += share * adversarial
        if clean_share:
            loss += clean_share * self.data_loss(batch, passes[0].logits)
        if self.regularizers:
            loss += self.penalties(batch, *passes)
        if "masks" in turn:
            kl = tf.add_n([mask.kl() for mask in self.masks()])
            self.report("kl", kl)
            scale = value_at(self.beta, self.step.value) / self.train_size
            terms["masks"] = adversarial + self.per_replica(scale * kl)
        return {"weights": loss, **terms}

    def _detect(self, batch, y, clean, adversarial):
        """Loss of the discriminator; h and h' are constants for it."""
        h, h_adv = (tf.stop_gradient(h) for _, h in (clean, adversarial))
        scores = self.judge(tf.concat([h, h_adv], 0), tf.concat([y, y], 0), training=True)
        d, d_adv = tf.split(scores, 2)
        values = domain.discriminator_loss(self.divergence, d, d_adv)
        self.report("discriminator_loss", tf.reduce_mean(values), batch.count)
        if self.gradient_penalty:
            keys = noise.keys(self.draw(), "afd", tf.range(tf.shape(h)[0]))
            share = noise.uniform(keys, (1,))
            penalty = domain.gradient_penalty(lambda z: self.judge(z, y), h, h_adv, share)
            values += self.gradient_penalty * penalty
        for name, (value, count) in domain.differences(d, d_adv, h, h_adv).items():
            self.report(name, value, count)
        self.report("same_answer", *domain.same_answer(clean[0], y))
        right = tf.cast(losses.correct(clean[0], batch.y), tf.float32)
        self.report("clean_accuracy", tf.reduce_mean(right), batch.count)
        self.score(batch, clean[0], adversarial[0])
        own = self._decay(self.discriminator_decay, self.discriminator.trainable_variables)
        own += sum(tf.reduce_sum(tf.cast(v, tf.float32)) for v in self.discriminator.losses)
        return self.mean(values, batch) + self.per_replica(own)

    def _deceive(self, batch, y, seen):
        """Loss of the encoder, against the discriminator as it stands."""
        d_adv = self.judge(seen[-1][1], y)
        d = self.judge(seen[0][1], y) if self.generator_loss == "two_sided" else None
        values = domain.encoder_loss(self.divergence, self.generator_loss, d_adv, d)
        self.report("encoder_loss", tf.reduce_mean(values), batch.count)
        decay = self._decay(self.encoder_decay, self.group_variables()["encoder"])
        weight = value_at(self.weight, self.step.value)
        return weight * self.mean(values, batch) + self.per_replica(decay)

    def differentiated(self, batch, turn, sources, images=()):
        """As in `Game`; the gradient that the encoder is moved by is measured on its way."""
        values, gradients, by_images = super().differentiated(batch, turn, sources, images)
        if "encoder" in turn:
            found = [g for g in gradients["encoder"] if g is not None]
            if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # each has its summand
                context = tf.distribute.get_replica_context()
                found = context.all_reduce(tf.distribute.ReduceOp.SUM, found)
            scale = self.optimizers["encoder"].scale_loss(tf.constant(1.0))
            norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in found]) / scale
            skipped = tf.logical_and(scale != 1.0, ~tf.math.is_finite(norm))  # by a loss scale
            norm = tf.where(skipped, 0.0, norm)
            self.report("encoder_gradient", norm, tf.where(skipped, 0, batch.count))
        return values, gradients, by_images

    @staticmethod
    def _decay(decay, variables):
        if not decay:
            return tf.constant(0.0)
        squares = [tf.reduce_sum(tf.square(tf.cast(v.value, tf.float32))) for v in variables]
        return 0.5 * decay * tf.add_n(squares)

    def get_config(self):
        return {
            **super().get_config(),
            "feature_layer": self._label,
            "discriminator": (
                self._options and dict(self._options)
                if self._default
                else keras.saving.serialize_keras_object(self.discriminator)
            ),
            "divergence": self.divergence,
            "generator_loss": self.generator_loss,
            "weight": number_config(self.weight),
            "mix": list(self.mix),
            "update_order": self.update_order,
            "discriminator_steps": self.discriminator_steps,
            "feature_norm": self.feature_norm,
            "bn_stats": self.bn_stats,
            "gradient_penalty": self.gradient_penalty,
            "discriminator_decay": self.discriminator_decay,
            "encoder_decay": self.encoder_decay,
            "beta": None if self.beta is None else number_config(self.beta),
            "train_size": self.train_size,
        }


def _policy(attack, on_failure):
    """The attack with that policy, or as it is."""
    if attack is None:  # which other games may go without
        raise TypeError("`attack` must be a tr.attacks.Attack. Received: attack=None")
    if on_failure not in (None, "best_loss", "clean"):
        raise ValueError(
            "`on_failure` must be None, 'best_loss' or 'clean'. "
            f"Received: on_failure={on_failure!r}"
        )
    if on_failure is not None and hasattr(attack, "on_failure"):
        attack = copy.copy(attack)
        attack.on_failure = on_failure
    if on_failure is None and getattr(attack, "on_failure", None) == "clean":
        warnings.warn(
            "`attack` hands out clean images where it fails (on_failure='clean'): the more robust "
            "the classifier, the more equal pairs the discriminator is asked to tell apart. AFD "
            "takes on_failure='best_loss', or 'clean' to mean it.",
            stacklevel=4,
        )
    return attack


def _moving(model):
    """Moving averages of all BatchNormalization layers."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            yield from (layer.moving_mean, layer.moving_variance)
