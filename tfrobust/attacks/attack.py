"""The attack template: what every attack shares is here, so that an author writes `perturb` only.

    class MyAttack(Attack):
        def perturb(self, call): ...   # -> x_adv, from a `Call` with model, x, y, keys, epsilon

`Attack.__call__` checks the input, pads to a fixed bucket, runs one compiled graph per
(model, attack, bucket) and returns points that are legal for the threat. Inside `fit` the same
`perturb` is traced into the train step. The model always runs with `training=False`.
"""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract, losses, noise
from tfrobust.threats import Threat


def logits_of(model, x):
    """Float32 logits of a Keras model in inference mode, or of any callable."""
    out = model(x, training=False) if isinstance(model, keras.layers.Layer) else model(x)
    return losses.as_logits(out)


@dataclasses.dataclass
class Call:
    """One run of an attack: tensors only, so that nothing retraces.

    Attributes:
        logits: Callable, images -> float32 logits `(batch, classes)`.
        x, y: Clean images and integer labels.
        keys: uint32 `(batch,)`, the noise key of each example in this run.
        epsilon: Scalar, the radius.
        run: Scalar int, which restart or target.
        active: Bool `(batch,)`; rows that are False are padding.
        eager_stop: Bool: freeze a row at its first fooling point and stop when all are fooled
            (evaluation), or go on to the highest loss (training).
        numbers: The attack's tensor parameters.
    """

    logits: Callable
    x: Any
    y: Any
    keys: Any
    epsilon: Any
    run: Any
    active: Any
    eager_stop: bool
    numbers: dict


@dataclasses.dataclass
class Best:
    """Best point so far of each example: fooling points first, then the highest loss."""

    x: Any
    loss: Any
    fooled: Any

    def updated(self, x, loss, fooled, freeze):
        """Takes the new point where it is better; rows already fooled stay when `freeze`."""
        better = (fooled & ~self.fooled) | ((fooled == self.fooled) & (loss > self.loss))
        if freeze:
            better = better & ~self.fooled
        pick = tf.reshape(better, (-1,) + (1,) * (len(x.shape) - 1))
        return Best(
            tf.where(pick, x, self.x),
            tf.where(better, loss, self.loss),
            self.fooled | fooled,
        )


class Attack:
    """Base of all attacks.

    Args:
        threat: `tr.threats.Threat`, norm and radius.
        loss: Name in `tr.losses.NAMES` or callable `(logits, y, target) -> (batch,)`, maximised.
        restarts: Integer >= 1, independent runs; an example is broken if any run breaks it.
        targets: Integer >= 0. With t > 0 each restart makes t runs, the r-th of which aims the
            loss at the r-th most likely wrong class of the clean image; any wrong class counts.
            Runs beyond the number of wrong classes return the clean image.
        seed: Integer, seed of all randomness.

    Call arguments:
        model: Keras classifier (called with `training=False`) or callable images -> logits.
        x: Float images in [0, 1], `(batch, ...)`.
        y: Integer labels `(batch,)`.
        index: Integers `(batch,)`, global index of each example (default: 0, 1, ...).
        epsilon: Float, radius instead of the threat's (a sweep does not retrace).
        run: Integer: perform only this run. Default: all of them, each on the rows that the
            earlier ones did not break.

    Returns:
        `x_adv` of the same shape, float32, legal for the threat. Rows that were not broken
        carry their point of highest loss.
    """

    def __init__(self, threat, loss="ce", restarts=1, targets=0, seed=0):
        if not isinstance(threat, Threat):
            raise TypeError(
                "`threat` must be a tr.threats.Threat such as tr.threats.Linf(8/255). "
                f"Received: threat={threat!r}"
            )
        whole("restarts", restarts, 1)
        whole("targets", targets, 0)
        whole("seed", seed)
        losses.get(loss)
        if loss == "dlr_targeted" and not targets:
            raise ValueError("`targets` must be >= 1 with loss='dlr_targeted'. Received: targets=0")
        self.threat, self.loss = threat, loss
        self.restarts, self.targets, self.seed = int(restarts), int(targets), int(seed)
        self._compiled = weakref.WeakKeyDictionary()
        self.traces = 0

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name != "traces" and not name.startswith("_"):
            vars(self).get("_compiled", {}).clear()  # the graphs hold what was true before

    def __getstate__(self):
        # A copy compiles its own graphs: those here belong to this object.
        return {k: v for k, v in vars(self).items() if k not in ("_compiled", "traces")}

    def __setstate__(self, state):
        vars(self).update(state, _compiled=weakref.WeakKeyDictionary(), traces=0)

    # --- what an author of an attack writes -----------------------------------------------

    def numbers(self):
        """Numeric parameters, Python numbers or arrays by name; `perturb` gets them as tensors."""
        return {}

    def perturb(self, call):
        """Returns adversarial images for one `Call`; traced into a graph."""
        raise TypeError(f"{type(self).__name__} must define perturb()")

    # --- what all attacks share ------------------------------------------------------------

    @property
    def name(self):
        return type(self).__name__

    @property
    def runs(self):
        """Number of independent sequential runs: restarts x targets."""
        return self.restarts * max(self.targets, 1)

    def score(self, call):
        """The attack's loss as a function of logits alone, with its target fixed for this call."""
        loss, target = losses.get(self.loss), None
        if self.targets:
            clean = call.logits(call.x)
            hot = tf.one_hot(call.y, clean.shape[-1], on_value=1e30, off_value=0.0)
            order = tf.argsort(clean - hot, direction="DESCENDING")
            rank = tf.minimum(call.run % self.targets, clean.shape[-1] - 2)
            target = tf.gather(order, rank, axis=1)
        return lambda logits: loss(logits, call.y, target)

    def _run(self, model, x, y, index, seed, epsilon, run, active, eager_stop, numbers):
        call = Call(
            logits=lambda images: logits_of(model, images),
            x=x,
            y=y,
            keys=noise.keys(seed, self._stream(), index, run),
            epsilon=epsilon,
            run=run,
            active=active,
            eager_stop=eager_stop,
            numbers=numbers,
        )
        x_adv = self.perturb(call)
        x_adv = tf.where(tf.math.is_finite(x_adv), x_adv, x)  # of a gradient that is NaN
        return tf.stop_gradient(self.threat.project(x_adv, x, epsilon))

    def _stream(self):
        return f"{type(self).__name__}:{self.loss if isinstance(self.loss, str) else 'custom'}"

    def within(self, model, x, y, seed, index=None, epsilon=None):
        """The attack inside somebody else's graph (a train step): goes on to the highest loss.

        Args:
            seed: Integer tensor, usually the iteration.
        """
        x = tf.cast(x, tf.float32)
        if isinstance(model, keras.Model):
            y = losses.as_labels(y, contract.classes_of(model))
        index = tf.range(tf.shape(x)[0]) if index is None else index
        epsilon = self.threat.radius(epsilon)
        numbers = {k: tf.convert_to_tensor(v) for k, v in self.numbers().items()}
        active = tf.ones(tf.shape(x)[:1], tf.bool)
        best = None
        for run in range(self.runs):
            seed_run = noise.fold(tf.cast(seed, tf.uint32), self.seed)
            arguments = (x, y, index, seed_run, epsilon, run, active, False, numbers)
            x_adv = self._run(model, *arguments)
            if self.runs == 1:
                return x_adv
            logits = logits_of(model, x_adv)
            loss, fooled = losses.margin(logits, y), losses.margin(logits, y) > 0
            best = (
                Best(x_adv, loss, fooled)
                if best is None
                else best.updated(x_adv, loss, fooled, freeze=False)
            )
        return best.x

    def _function(self, model, shape):
        """The compiled single run for images of this shape, kept as long as the model lives."""
        known = self._compiled.setdefault(model, {})
        if shape not in known:
            reference = weakref.ref(model)

            @tf.function(reduce_retracing=True)
            def function(x, y, index, seed, epsilon, run, active, numbers):
                self.traces += 1
                return self._run(
                    reference(), x, y, index, seed, epsilon, run, active, True, numbers
                )

            known[shape] = function
        return known[shape]

    def __call__(self, model, x, y, index=None, epsilon=None, run=None):
        if tf.inside_function():
            return self.within(model, x, y, self.seed, index, epsilon)
        x = contract.images(x)
        y = contract.labels(y, self._classes(model, x), count=len(x))
        index = np.arange(len(x)) if index is None else np.asarray(index)
        if index.shape != y.shape or index.dtype.kind not in "iu":
            raise ValueError(
                f"`index` must hold integers of shape {y.shape}. "
                f"Received: shape={index.shape}, dtype={index.dtype}"
            )
        radius = self.threat.epsilon if epsilon is None else type(self.threat)(epsilon).epsilon
        if run is not None:
            whole("run", run)
            if not 0 <= run < self.runs:
                raise ValueError(f"`run` must lie in [0, {self.runs - 1}]. Received: run={run}")
            return self._one_run(model, x, y, index, radius, run)
        x_adv, open_rows = x.copy(), np.arange(len(x))
        for number in range(self.runs):
            part = self._one_run(
                model, x[open_rows], y[open_rows], index[open_rows], radius, number
            )
            if self.runs > 1:
                broken = self.fooled(model, part, y[open_rows])
                take = broken if number else np.ones(len(open_rows), bool)
                x_adv[open_rows[take]] = part[take]
                open_rows = open_rows[~broken]
            else:
                x_adv = part
            if not len(open_rows):
                break
        return x_adv

    def _classes(self, model, x):
        """Number of classes of a model that this attack can be run on."""
        if isinstance(model, keras.Model) and getattr(model, "outputs", None):
            contract.fits(model, x)
            contract.check_logits(model)
            classes = contract.classes_of(model)
        else:
            classes = classes_of_callable(model, x)
        self.check_classes(classes)
        return classes

    def check_classes(self, classes):
        """Refuses a model with fewer classes than the loss looks at."""
        need = losses.MIN_CLASSES.get(self.loss, 2) if isinstance(self.loss, str) else 2
        if classes < need:
            raise ValueError(
                f"`loss` {self.loss!r} needs a model with {need} classes or more. "
                f"Received: {classes} classes"
            )

    def _one_run(self, model, x, y, index, epsilon, run):
        function = self._function(model, x.shape[1:])
        numbers = {k: tf.convert_to_tensor(v) for k, v in self.numbers().items()}
        common = (
            tf.constant(self.seed & 0xFFFFFFFF, tf.uint32),
            tf.constant(epsilon, tf.float32),
            tf.constant(run, tf.int32),
        )
        return buckets.apply(
            lambda x, y, index, real: function(x, y, index, *common, real, numbers),
            x,
            y,
            index.astype(np.uint32),
        )

    def fooled(self, model, x_adv, y):
        """Fresh verdict on given points: bool `(batch,)`, margin strictly above 0."""
        return verdicts(model, x_adv, y)

    def get_config(self):
        loss = (
            self.loss
            if isinstance(self.loss, str)
            else keras.saving.serialize_keras_object(self.loss)
        )
        return {
            "threat": keras.saving.serialize_keras_object(self.threat),
            "loss": loss,
            "restarts": self.restarts,
            "targets": self.targets,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("threat", "loss"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

    def __repr__(self):
        return f"{self.name}({self.threat!r})"


def classes_of_callable(model, x):
    """Number of classes of a callable images -> logits, asked with the first image."""
    if not callable(model):
        raise TypeError(
            "`model` must be a Keras classifier or a callable images -> logits. "
            f"Received: {type(model).__name__}"
        )
    logits = model(tf.constant(x[:1]))
    if not tf.is_tensor(logits):
        raise TypeError(
            "`model` must return a TensorFlow tensor of logits, made by TensorFlow operations. "
            f"Received: {type(logits).__name__}"
        )
    if logits.shape.rank != 2 or logits.shape[0] != 1:
        raise ValueError(
            "`model` must return logits of shape (batch, classes). "
            f"Received: shape {tuple(logits.shape)} for one image"
        )
    return max(int(logits.shape[-1]), 2)


def whole(name, value, low=None):
    """Refuses what is not an integer of at least `low`."""
    kinds = int | np.integer | float | np.floating
    if isinstance(value, bool) or not isinstance(value, kinds) or value % 1 != 0:
        wrong = True
    else:
        wrong = low is not None and value < low
    if wrong:
        least = "" if low is None else f" >= {low}"
        raise ValueError(f"`{name}` must be an integer{least}. Received: {name}={value!r}")


_forward = weakref.WeakKeyDictionary()


def forward(model, x):
    """Logits of many images as NumPy `(n, classes)`, compiled once per bucket."""
    if model not in _forward:
        reference = weakref.ref(model)
        _forward[model] = tf.function(
            lambda images: logits_of(reference(), images), reduce_retracing=True
        )
    return buckets.apply(lambda images, real: _forward[model](images), np.asarray(x))


def verdicts(model, x, y):
    """True where the model's answer for `x` is not `y`: margin strictly above 0."""
    logits = forward(model, x)
    if np.isnan(logits).any():
        rows = np.flatnonzero(np.isnan(logits).any(-1))
        raise ValueError(f"`model` must return finite logits. Received: NaN in row {rows[0]}")
    return losses.margin(tf.constant(logits), tf.constant(y)).numpy() > 0
