"""The game: a `keras.Model` that wraps a classifier for `fit` and plays against an attack.

A game owns *groups* of variables, each with an optimizer and a loss of its own, and plays *turns*:
groups in one inner tuple of `turns` are updated together from one evaluation of `objective`,
successive tuples one after the other, seeing the updates before them.

    class MyGame(Game):
        turns = (("weights", "masks"),)
        def group_variables(self): return {"weights": [...], "masks": [...]}
        def objective(self, batch, turn): return {"weights": loss, "masks": other_loss}

The classifier is what is saved, shrunk, verified and exported; the game is scaffolding.
"""

import dataclasses
import functools
from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise, regularizers
from tfrobust.layers.mask import masks
from tfrobust.training import checks, update
from tfrobust.training.compiled import Compiled
from tfrobust.training.numbers import check_number, number_config, value_at
from tfrobust.training.ramp import Ramp


@dataclasses.dataclass
class Batch:
    """One batch with its adversarial images, which are constants for every loss.

    Attributes:
        x, y, sample_weight: As `fit` delivers them; `sample_weight` may be None.
        x_adv: Adversarial images, no gradient; `x` itself in a game without an attack.
        count: Number of examples, a tensor.
        boxes: Bounds of the values inside the classifier, where the game has computed them.
    """

    x: Any
    y: Any
    sample_weight: Any
    x_adv: Any
    count: Any
    boxes: Any = None


class Game(Compiled):
    """Base of all games.

    Args:
        classifier: Functional Keras classifier (logits out, pixels in [0, 1] in).
        attack: `tr.attacks.Attack` that makes the adversarial images, `training=False`. None where
            a game may go without (standard training, BP): nothing is computed for it then, and
            no `robust_accuracy` is reported.
        regularizers: Callables `(clean, adversarial) -> (batch,)` such as
            `tr.regularizers.VulnerabilitySuppression`, or objects with
            `penalty(game, batch) -> (batch,)` such as `tr.training.GradAlign`.
        epsilon: Float or Keras schedule of the iteration, radius in training (default: the
            threat's own). Schedules survive a resume, since they depend on the iteration only.
        weight_decay: Float >= 0; adds weight_decay / 2 * ||theta||^2 over the "weights" group.
        share_noise: Both passes of a batch draw the same masks and dropout.
        validation_attack: Attack for `val_robust_accuracy` (default: `attack`).
        seed: Integer, seed of the attack inside `fit`.
        threat: `tr.threats.Threat` of a game without an attack that still has a ball (certified
            training); else it is the attack's.
        transform: None, or a `tr.layers.WeightTransform` such as `tr.pruning.Surgery`: what the
            optimizers train in place of some of the classifier's variables.
        weight_attack: None, or `tr.training.AWP`: gradients are taken at attacked weights.

    `fit` reports `loss`, `robust_accuracy`, and the compiled metrics on clean images;
    `evaluate` and validation report `val_robust_accuracy` under `validation_attack`.
    """

    turns = (("weights",),)
    validated = ("robust_accuracy",)  # what validation reports beside the loss and the metrics

    def __init__(
        self,
        classifier,
        attack,
        regularizers=(),
        epsilon=None,
        weight_decay=0.0,
        share_noise=True,
        validation_attack=None,
        seed=0,
        transform=None,
        weight_attack=None,
        threat=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.parts(classifier, attack, validation_attack, regularizers, transform)
        self.threat = checks.threat(attack, threat)
        checks.without_attack(attack, self.threat, epsilon, regularizers)
        checks.weight_attack(weight_attack)
        self.classifier, self.attack = classifier, attack
        self.validation_attack = validation_attack or attack
        self.regularizers = [r for r in regularizers if getattr(r, "weight", 1.0)]
        self.epsilon = None if epsilon is None else check_number("epsilon", epsilon)
        checks.radius(self.threat, epsilon)
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.share_noise, self.seed = bool(share_noise), int(seed)
        self.step = self.add_weight(
            name="step", shape=(), dtype="int64", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self.transform = update.attached(transform, classifier)
        self.weight_attack, self._quiet = weight_attack, False
        names = ["robust_accuracy"] if self.validation_attack is not None else []
        names += ["regularization"] if self.regularizers else []
        names += [*self.terms(), *update.figures(transform)]
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self._trunk, self._own_features = self._build_trunk()
        self.built = True

    # --- what an author of a game writes ------------------------------------------------------

    def group_variables(self):
        """{group: trainable variables it owns}."""
        return {"weights": self.classifier.trainable_variables}

    def objective(self, batch, turn):
        """{group: scalar loss} for every group of `turn`, already scaled for replicas."""
        raise TypeError(f"{type(self).__name__} must define objective()")

    def default_optimizers(self):
        """{group: optimizer} used when `compile` is given none."""
        return {group: keras.optimizers.Adam(1e-3) for group in self.groups}

    def terms(self):
        """Names of further means that `objective` reports through `self.report(name, value)`."""
        return ()

    # --- parts for objectives -----------------------------------------------------------------

    @property
    def groups(self):
        return tuple(group for turn in self.turns for group in turn)

    def forward(self, x, training=True):
        """A pass through the classifier: `Pass(logits, features)`."""
        if self._trunk is None:
            return regularizers.Pass(self.classifier(x, training=training), [])
        logits, *features = self._trunk(x, training=training)
        return regularizers.Pass(logits, features)

    def passes(self, *images):
        """Training passes for several batches, with common random numbers if `share_noise`."""
        states = [tf.identity(v.value) for v in self._noise_states()]
        out = []
        for number, x in enumerate(images):
            if number and x is images[0] and self.share_noise:
                out.append(out[0])
                continue
            if number and self.share_noise:
                for variable, state in zip(self._noise_states(), states, strict=True):
                    variable.assign(state)
            out.append(self.forward(x))
        return out

    def data_loss(self, batch, logits):
        """The compiled loss on these logits (labels, smoothing and weights as `fit` has them)."""
        return self._compile_loss(batch.y, tf.cast(logits, tf.float32), batch.sample_weight)

    def mean(self, values, batch):
        """Weighted mean of per-example values, scaled for replicas as Keras scales the loss."""
        values = tf.cast(values, tf.float32)
        if batch.sample_weight is not None:
            values = values * tf.reshape(tf.cast(batch.sample_weight, tf.float32), [-1])
        return self.per_replica(tf.reduce_mean(values))

    def per_replica(self, loss):
        """Divides a hand-written term by the number of replicas, whose gradients are summed."""
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def whole(self, loss):
        """The inverse of `per_replica`, for what is reported as a mean over replicas."""
        return loss * tf.distribute.get_strategy().num_replicas_in_sync

    def penalties(self, batch, clean, adversarial):
        """Weighted mean of all regularizers on a pair of passes, reported as `regularization`."""
        if not self.regularizers:
            return 0.0
        terms = []
        for regularizer, own in zip(self.regularizers, self._own_features, strict=True):
            if own is None:
                values = regularizer.penalty(self, batch)
            else:
                values = regularizer(clean.only(own), adversarial.only(own))
            terms.append(self.mean(values, batch))
        penalty = tf.add_n(terms)
        self.report("regularization", self.whole(penalty), batch.count)
        return penalty

    def weight_penalty(self):
        """weight_decay / 2 * ||theta||^2 plus the classifier's own regularization losses."""
        terms = [tf.reduce_sum(tf.cast(term, tf.float32)) for term in self.classifier.losses]
        terms += update.penalties(self.transform)
        owned = self.group_variables()["weights"]
        if self.weight_decay and owned:
            squares = [tf.reduce_sum(tf.square(tf.cast(v.value, tf.float32))) for v in owned]
            terms.append(0.5 * self.weight_decay * tf.add_n(squares))
        return self.per_replica(tf.add_n(terms)) if terms else tf.constant(0.0)

    def report(self, name, value, count=1):
        """Adds to the mean that `fit` prints under `name`."""
        if not self._quiet:
            self.trackers[name].update_state(tf.stop_gradient(value), sample_weight=count)

    def attacked(self, x, y, attack=None):
        """Adversarial images of the current classifier in inference mode, or `x` without attack."""
        attack = attack or self.attack
        if attack is None:
            return x
        model = update.attacked(self.transform, self.classifier)
        return attack.within(model, x, y, self.draw(), epsilon=self.radius())

    def radius(self):
        """The radius of this iteration, or None: the threat's own."""
        return None if self.epsilon is None else value_at(self.epsilon, self.step.value)

    def ramp(self):
        """How far the radius has come: min(1, epsilon of this iteration / where a `Ramp` ends).

        Other schedules tell no end: the threat's radius stands for it.
        """
        whole = self.epsilon.final if isinstance(self.epsilon, Ramp) else self.threat.epsilon
        if self.epsilon is None or not whole:
            return tf.constant(1.0)
        return tf.minimum(1.0, self.radius() / whole)

    def draw(self):
        """A seed for this iteration, another one on each replica: scalar uint32."""
        seed = noise.fold(tf.cast(self.seed, tf.uint32), self.step.value)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            seed = noise.fold(seed, context.replica_id_in_sync_group)
        return seed

    # --- the steps ----------------------------------------------------------------------------

    def train_step(self, data):
        x, y, sample_weight = self.unpacked(data)
        self.play(Batch(x, y, sample_weight, self.attacked(x, y), tf.shape(x)[0]))
        results, attacked = self.get_metrics_result(), self.attack is not None
        return {k: v for k, v in results.items() if k != "robust_accuracy" or attacked}

    def unpacked(self, data):
        """(x, y, sample_weight) of what `fit` delivers, checked."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = checks.batch(self.classifier, x, y, sample_weight)
        checks.loss_fits(self.loss, y, self.classifier.output_shape[-1])
        return x, y, sample_weight

    def play(self, batch, images=()):
        """Plays every turn once: all groups are updated. Returns the gradients by `images`.

        Args:
            images: Tensors that the first turn's first loss is differentiated by, too.
        """
        variables, first = self.group_variables(), None
        sources = update.entered(self.transform, variables)
        for turn in self.turns:
            watched = images if first is None else ()
            evaluate = functools.partial(self.differentiated, batch, turn, sources, watched)
            if self.weight_attack is None:
                values, gradients, found = evaluate()
            else:
                values, gradients, found = self.weight_attack.played(self, evaluate, variables)
            for group in turn:
                pairs = update.pairs(self.transform, gradients[group], variables[group])
                if pairs:  # all masks may be frozen
                    self.optimizers[group].apply_gradients(pairs)
            if self.transform and turn is not self.turns[-1]:
                self.transform.write()
            if first is None:
                first, by_images = values[turn[0]], found
        self._loss_tracker.update_state(self.whole(first), sample_weight=batch.count)
        self.step.assign_add(1)
        update.leave(self.transform, self.report)
        return by_images

    def differentiated(self, batch, turn, sources, images=()):
        """({group: loss}, {group: gradients}, gradients by images) of one `objective`."""
        with noise.apart(self), tf.GradientTape(persistent=len(turn) > 1) as tape:
            tape.watch(images)
            values = self.objective(batch, turn)
            scaled = {g: self.optimizers[g].scale_loss(values[g]) for g in turn}
        count, gradients, by_images = len(images), {}, None
        for group in turn:
            found = tape.gradient(scaled[group], [*images, *sources[group]])
            by_images = found[:count] if by_images is None else by_images
            gradients[group] = found[count:]
        return values, gradients, by_images

    def score(self, batch, clean, adversarial):
        """Updates `robust_accuracy` and the compiled metrics from logits of this batch."""
        if batch.x_adv is not batch.x:  # else nothing was attacked
            right = tf.cast(losses.correct(adversarial, batch.y), tf.float32)
            self.report("robust_accuracy", tf.reduce_mean(right), batch.count)
        if self._compile_metrics is not None and not self._quiet:
            self._compile_metrics.update_state(batch.y, clean, sample_weight=batch.sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = checks.batch(self.classifier, x, y, sample_weight)
        attack, x_adv = self.validation_attack, x
        if attack is not None:
            x_adv = attack.within(self.classifier, x, y, tf.constant(self.seed))
        batch = Batch(x, y, sample_weight, x_adv, tf.shape(x)[0])
        clean = answers = self.classifier(x, training=False)
        if attack is not None:
            answers = self.classifier(x_adv, training=False)
        loss = self.whole(self.data_loss(batch, clean))
        self._loss_tracker.update_state(loss, sample_weight=batch.count)
        self.score(batch, clean, answers)
        self.inspect(batch)
        results = self.get_metrics_result()
        return {k: v for k, v in results.items() if k in self.validated or k not in self.trackers}

    def inspect(self, batch):
        """Reports what else validation tells, the names in `validated`."""

    def call(self, inputs, training=False):
        return self.classifier(inputs, training=training)

    # --- Keras plumbing -----------------------------------------------------------------------

    def _build_trunk(self):
        """(trunk, for each regularizer the positions of its features among the trunk's)."""
        if not self.regularizers:
            return None, ()
        own = [
            None
            if hasattr(r, "penalty")
            else getattr(r, "features", None) or regularizers.feature_layers(self.classifier)
            for r in self.regularizers
        ]
        names = list(dict.fromkeys(name for part in own for name in part or ()))
        places = tuple(None if part is None else tuple(map(names.index, part)) for part in own)
        if not names:
            return None, places
        return regularizers.with_features(self.classifier, names), places

    def _noise_states(self):
        return [
            v for v in self.classifier.non_trainable_variables if v.name == "seed_generator_state"
        ]

    def masks(self):
        """The masks of the classifier."""
        return masks(self.classifier)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        same, own = self.validation_attack is self.attack, self.attack is None
        return {
            **super().get_config(),
            "classifier": serialize(self.classifier),
            "attack": serialize(self.attack),
            "regularizers": [serialize(r) for r in self.regularizers],
            "threat": serialize(self.threat) if own else None,
            "epsilon": number_config(self.epsilon),
            "weight_decay": self.weight_decay,
            "share_noise": self.share_noise,
            "validation_attack": None if same else serialize(self.validation_attack),
            "seed": self.seed,
            "transform": serialize(self.transform),
            "weight_attack": serialize(self.weight_attack),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def restored(value):
            if isinstance(value, dict) and "class_name" in value:
                return keras.saving.deserialize_keras_object(value, custom_objects)
            return [restored(v) for v in value] if isinstance(value, list) else value

        return cls(**{name: restored(value) for name, value in config.items()})
