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
from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise, regularizers
from tfrobust.layers.mask import masks
from tfrobust.training import checks, update
from tfrobust.training.numbers import Schedule, check_number, number_config, value_at
from tfrobust.training.resume import arranged


@dataclasses.dataclass
class Batch:
    """One batch with its adversarial images, which are constants for every loss.

    Attributes:
        x, y, sample_weight: As `fit` delivers them; `sample_weight` may be None.
        x_adv: Adversarial images, no gradient.
        count: Number of examples, a tensor.
    """

    x: Any
    y: Any
    sample_weight: Any
    x_adv: Any
    count: Any


def _scaled(optimizer):
    """The optimizer with a loss scale of its own, against gradients that vanish in float16."""
    scaler = keras.optimizers.LossScaleOptimizer
    return optimizer if isinstance(optimizer, scaler) else scaler(optimizer)


class Game(keras.Model):
    """Base of all games.

    Args:
        classifier: Functional Keras classifier (logits out, pixels in [0, 1] in).
        attack: `tr.attacks.Attack` that makes the adversarial images, `training=False`.
        regularizers: Callables `(clean, adversarial) -> (batch,)` such as
            `tr.regularizers.VulnerabilitySuppression`.
        epsilon: Float or Keras schedule of the iteration, radius in training (default: the
            threat's own). Schedules survive a resume, since they depend on the iteration only.
        weight_decay: Float >= 0; adds weight_decay / 2 * ||theta||^2 over the "weights" group.
        share_noise: Both passes of a batch draw the same masks and dropout.
        validation_attack: Attack for `val_robust_accuracy` (default: `attack`).
        seed: Integer, seed of the attack inside `fit`.
        transform: None, or a `tr.layers.WeightTransform` such as `tr.pruning.Surgery`: what the
            optimizers train in place of some of the classifier's variables.

    `fit` reports `loss`, `robust_accuracy`, and the compiled metrics on clean images;
    `evaluate` and validation report `val_robust_accuracy` under `validation_attack`.
    """

    turns = (("weights",),)

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
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.parts(classifier, attack, validation_attack, regularizers, transform)
        self.classifier, self.attack = classifier, attack
        self.validation_attack = validation_attack or attack
        self.regularizers = [r for r in regularizers if getattr(r, "weight", 1.0)]
        self.epsilon = None if epsilon is None else check_number("epsilon", epsilon)
        if epsilon is not None and not isinstance(epsilon, Schedule):
            type(attack.threat)(epsilon)  # refuses 8 where 8/255 is meant
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.share_noise, self.seed = bool(share_noise), int(seed)
        self.step = self.add_weight(
            name="step", shape=(), dtype="int64", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self.transform = update.attached(transform, classifier)
        names = ("robust_accuracy", *self.terms(), *update.figures(transform))
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
        """Weighted mean of all regularizers on a pair of passes."""
        terms = []
        for regularizer, own in zip(self.regularizers, self._own_features, strict=True):
            values = regularizer(clean.only(own), adversarial.only(own))
            terms.append(self.mean(values, batch))
        return tf.add_n(terms)

    def weight_penalty(self):
        """weight_decay / 2 * ||theta||^2 plus the classifier's own regularization losses."""
        terms = [tf.reduce_sum(tf.cast(term, tf.float32)) for term in self.classifier.losses]
        owned = self.group_variables()["weights"]
        if self.weight_decay and owned:
            squares = [tf.reduce_sum(tf.square(tf.cast(v.value, tf.float32))) for v in owned]
            terms.append(0.5 * self.weight_decay * tf.add_n(squares))
        return self.per_replica(tf.add_n(terms)) if terms else tf.constant(0.0)

    def report(self, name, value, count=1):
        """Adds to the mean that `fit` prints under `name`."""
        self.trackers[name].update_state(tf.stop_gradient(value), sample_weight=count)

    def attacked(self, x, y, attack=None):
        """Adversarial images of the current classifier in inference mode."""
        epsilon = None if self.epsilon is None else value_at(self.epsilon, self.step.value)
        seed = noise.fold(tf.cast(self.seed, tf.uint32), self.step.value)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            seed = noise.fold(seed, context.replica_id_in_sync_group)
        return (attack or self.attack).within(self.classifier, x, y, seed, epsilon=epsilon)

    # --- the steps ----------------------------------------------------------------------------

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = checks.batch(self.classifier, x, y, sample_weight)
        checks.loss_fits(self.loss, y, self.classifier.output_shape[-1])
        batch = Batch(x, y, sample_weight, self.attacked(x, y), tf.shape(x)[0])
        variables, first = self.group_variables(), None
        for turn in self.turns:
            with noise.apart(self), tf.GradientTape(persistent=len(turn) > 1) as tape:
                values = self.objective(batch, turn)
                scaled = {g: self.optimizers[g].scale_loss(values[g]) for g in turn}
            gradients = {g: tape.gradient(scaled[g], variables[g]) for g in turn}
            del tape
            for group in turn:
                pairs = update.pairs(self.transform, gradients[group], variables[group])
                if pairs:  # all masks may be frozen
                    self.optimizers[group].apply_gradients(pairs)
            if self.transform and turn is not self.turns[-1]:
                self.transform.write()
            first = values[turn[0]] if first is None else first
        self._loss_tracker.update_state(self.whole(first), sample_weight=batch.count)
        self.step.assign_add(1)
        if self.transform:
            self.transform.update()
            for name, value in self.transform.figures().items():
                self.report(name, value)
        return self.get_metrics_result()

    def score(self, batch, clean, adversarial):
        """Updates `robust_accuracy` and the compiled metrics from logits of this batch."""
        right = tf.cast(losses.correct(adversarial, batch.y), tf.float32)
        self.report("robust_accuracy", tf.reduce_mean(right), batch.count)
        if self._compile_metrics is not None:
            self._compile_metrics.update_state(batch.y, clean, sample_weight=batch.sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = checks.batch(self.classifier, x, y, sample_weight)
        attack = self.validation_attack
        x_adv = attack.within(self.classifier, x, y, tf.constant(self.seed))
        batch = Batch(x, y, sample_weight, x_adv, tf.shape(x)[0])
        clean = self.classifier(x, training=False)
        loss = self.whole(self.data_loss(batch, clean))
        self._loss_tracker.update_state(loss, sample_weight=batch.count)
        self.score(batch, clean, self.classifier(x_adv, training=False))
        results = self.get_metrics_result()
        return {
            k: v for k, v in results.items() if k == "robust_accuracy" or k not in self.trackers
        }

    def call(self, inputs, training=False):
        return self.classifier(inputs, training=training)

    # --- Keras plumbing -----------------------------------------------------------------------

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """As `keras.Model.fit`; `tr.data.Batches` come in the order of (seed, epoch).

        Arrays are checked whole before the first step: pixels in [0, 1], integer labels in range.
        """
        checks.arrays(self.classifier, x, y)
        checks.validation(self.classifier, kwargs.get("validation_data"))
        checks.unchanged(self)
        checks.callbacks(callbacks)
        update.begin(self.transform)
        callbacks, kwargs["shuffle"] = arranged(x, callbacks, kwargs.get("shuffle", True))
        with checks.plainly():
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`."""
        update.begin(self.transform)
        with checks.plainly():
            return super().train_on_batch(*args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`, with the checks of `fit`."""
        checks.arrays(self.classifier, x, y)
        with checks.plainly():
            return super().evaluate(x, y, *args, **kwargs)

    def compile(self, optimizer=None, loss=None, metrics=None, **kwargs):
        """As `keras.Model.compile`; `optimizer` is one optimizer or {group: optimizer}.

        Without `loss`, sparse categorical cross-entropy from logits (binary for a single logit).

        Raises:
            ValueError: a missing or unknown group, or a loss that expects probabilities.
        """
        if optimizer is None:
            optimizer = self.default_optimizers()
        if not isinstance(optimizer, dict):
            if len(self.groups) > 1:
                raise ValueError(
                    "`optimizer` must be a dict with one optimizer for each of the groups "
                    f"{list(self.groups)}. Received: {optimizer!r}"
                )
            optimizer = {self.groups[0]: optimizer}
        if set(optimizer) != set(self.groups):
            raise ValueError(
                f"`optimizer` must have the keys {sorted(set(self.groups))}. "
                f"Received: {sorted(optimizer)}"
            )
        optimizer = {g: keras.optimizers.get(optimizer[g]) for g in dict.fromkeys(self.groups)}
        if len({id(o) for o in optimizer.values()}) < len(optimizer):
            raise ValueError("`optimizer` must hold a different optimizer object for each group.")
        loss = self._default_loss() if loss is None else loss
        options = getattr(loss, "_fn_kwargs", {})
        from_logits = getattr(loss, "from_logits", options.get("from_logits"))
        if isinstance(loss, str) or from_logits is False:
            raise ValueError(
                "`loss` must take logits, for example "
                f"keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: {loss!r}"
            )
        half = kwargs.get("auto_scale_loss", True) and self._half_precision()
        optimizers = {g: _scaled(o) if half else o for g, o in optimizer.items()}
        first = optimizers[self.groups[0]]
        checks.averages(optimizer, self.transform)
        super().compile(optimizer=first, loss=loss, metrics=metrics, **kwargs)
        self.optimizers = {**optimizers, self.groups[0]: self.optimizer}
        # Keras skips an optimizer that is built lazily when it restores weights.
        for group, variables in self.group_variables().items():
            if not self.optimizers[group].built:
                self.optimizers[group].build(update.trained(self.transform, variables))
        self._owned = checks.owned(self)
        self._compiled_with = {
            "optimizer": optimizer, "loss": loss, "metrics": metrics, **kwargs
        }  # fmt: skip

    def _half_precision(self):
        """Whether gradients pass through float16, whatever the global policy is by now."""
        layers = self.classifier._flatten_layers(include_self=False)
        return any(layer.compute_dtype == "float16" for layer in layers)

    def _default_loss(self):
        if self.classifier.output_shape[-1] == 1:
            return keras.losses.BinaryCrossentropy(from_logits=True)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def get_compile_config(self):
        if not self.compiled:
            return {}
        serialize = keras.saving.serialize_keras_object
        optimizers = {g: serialize(o) for g, o in self._compiled_with["optimizer"].items()}
        others = {k: v for k, v in self._compiled_with.items() if k != "optimizer"}
        return {"optimizer": optimizers, "others": serialize(others)}

    def compile_from_config(self, config):
        if not config:
            return
        deserialize = keras.saving.deserialize_keras_object
        optimizers = {g: deserialize(o) for g, o in config["optimizer"].items()}
        self.compile(optimizer=optimizers, **deserialize(config["others"]))

    def _build_trunk(self):
        """(trunk, for each regularizer the positions of its features among the trunk's)."""
        if not self.regularizers:
            return None, ()
        own = [
            getattr(r, "features", None) or regularizers.feature_layers(self.classifier)
            for r in self.regularizers
        ]
        names = list(dict.fromkeys(name for part in own for name in part))
        places = tuple(tuple(map(names.index, part)) for part in own)
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
        same = self.validation_attack is self.attack
        return {
            **super().get_config(),
            "classifier": serialize(self.classifier),
            "attack": serialize(self.attack),
            "regularizers": [serialize(r) for r in self.regularizers],
            "epsilon": number_config(self.epsilon),
            "weight_decay": self.weight_decay,
            "share_noise": self.share_noise,
            "validation_attack": None if same else serialize(self.validation_attack),
            "seed": self.seed,
            "transform": serialize(self.transform),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def restored(value):
            if isinstance(value, dict) and "class_name" in value:
                return keras.saving.deserialize_keras_object(value, custom_objects)
            return [restored(v) for v in value] if isinstance(value, list) else value

        return cls(**{name: restored(value) for name, value in config.items()})
