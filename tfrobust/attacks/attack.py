"""The attack template: what every attack shares is here, so that an author writes the steps only.

    class MyAttack(Attack):
        def perturb(self, call): ...   # one go: -> x_adv, from a `Call` with x, y, keys, epsilon

    class MyIteratedAttack(Attack):
        iterations = 100
        def start(self, call): ...             # -> {"best": images, "fooled": rows, ...}
        def step(self, call, i, state): ...    # -> the state after step i
        def finish(self, call, state): ...     # -> x_adv, default state["best"]

`Attack.__call__` checks the input, pads to a fixed bucket and runs compiled graphs, one loop of
`stride` steps at a time; rows that are done leave, and the rest move to a smaller bucket when a
quarter or less is left. What comes back is legal for the threat. Inside `fit` the same steps are
traced into the train step. The model always runs with `training=False`.
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust import contract, losses, noise
from tfrobust.attacks.call import (
    Call,
    Result,
    better,
    classes_of_callable,
    logits_of,
    per_row,
    verdicts,
)
from tfrobust.attacks.segments import Segments
from tfrobust.threats import Threat


class Attack:
    """Base of all attacks.

    Args:
        threat: `tr.threats.Threat`, norm and radius.
        loss: Name in `tr.losses.NAMES` or callable `(logits, y, target) -> (batch,)`, maximised.
        restarts: Integer >= 1, independent runs; an example is broken if any run breaks it.
        targets: Integer >= 0. With t > 0 each restart makes t runs, the r-th of which aims the
            loss at the r-th most likely wrong class of the clean image; any wrong class counts.
            Runs beyond the number of wrong classes are left out.
        seed: Integer, seed of all randomness.
        eot: Integer >= 1: every answer and gradient of the model is averaged over so many passes
            (expectation over transformation; Athalye et al., 2018), for models that are random.
            Above 1 every row takes all steps: a first success may be luck.
        on_failure: What comes back for images that were not broken: "best_loss", the point of
            highest loss, or "clean", the image itself; with "clean" images that are wrong as they
            are come back untouched as well.

    Call arguments:
        model: Keras classifier (called with `training=False`) or callable images -> logits.
        x: Float images in [0, 1], `(batch, ...)`.
        y: Integer labels `(batch,)`.
        index: Integers `(batch,)`, global index of each example (default: 0, 1, ...).
        epsilon: Float, radius instead of the threat's (a sweep does not retrace).
        run: Integer: perform only this run. Default: all of them, each on the rows that the
            earlier ones did not break.
        goal: Integer labels `(batch,)` that the attacker wants to see (a targeted attack);
            default None: any wrong label is a success.

    Returns:
        `x_adv` of the same shape, float32, legal for the threat. `result(...)` with the same
        arguments returns a `Result`: also success, distance and the passes spent on each image.
    """

    stride = 20
    white_box = True  # whether it follows gradients of the attacked model
    norms = None  # names of the norms that it has steps for, or None: any

    def __init__(
        self, threat, loss="ce", restarts=1, targets=0, seed=0, eot=1, on_failure="best_loss"
    ):
        if not isinstance(threat, Threat):
            raise TypeError(
                "`threat` must be a tr.threats.Threat such as tr.threats.Linf(8/255). "
                f"Received: threat={threat!r}"
            )
        if self.norms is not None and threat.norm not in self.norms:
            fit = " or ".join(f"tr.threats.{norm.capitalize()}" for norm in self.norms)
            raise ValueError(
                f"`threat` must be {fit} for {type(self).__name__}. Received: threat={threat!r}"
            )
        whole("restarts", restarts, 1)
        whole("targets", targets, 0)
        whole("eot", eot, 1)
        whole("seed", seed)
        if losses.from_clean(loss) and targets:
            raise ValueError(f"`targets` must be 0 with loss={loss!r}. Received: targets={targets}")
        if loss == "dlr_targeted" and not targets:
            raise ValueError("`targets` must be >= 1 with loss='dlr_targeted'. Received: targets=0")
        if on_failure not in ("best_loss", "clean"):
            raise ValueError(
                f"`on_failure` must be 'best_loss' or 'clean'. Received: on_failure={on_failure!r}"
            )
        self.threat, self.loss, self.on_failure = threat, loss, on_failure
        self.restarts, self.targets = int(restarts), int(targets)
        self.seed, self.eot = int(seed), int(eot)
        self._segments = Segments(self)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if "_segments" in vars(self):
            vars(self)["_segments"] = Segments(self)  # the graphs hold what was true before

    def __getstate__(self):
        # A copy compiles its own graphs: those here belong to this object.
        return {k: v for k, v in vars(self).items() if k != "_segments"}

    def __setstate__(self, state):
        vars(self).update(state)
        vars(self)["_segments"] = Segments(self)

    @property
    def traces(self):
        """Graphs traced so far."""
        return self._segments.traces

    # --- what an author of an attack writes -----------------------------------------------

    iterations = 0

    def numbers(self):
        """Numeric parameters, Python numbers or arrays by name; steps get them as tensors."""
        return {}

    def perturb(self, call):
        """Returns adversarial images in one go, for attacks without a state between steps."""
        raise TypeError(f"{type(self).__name__} must define perturb(), or start() and step()")

    def start(self, call):
        """The state before the first step: a dictionary of tensors with one row per image.

        `best` is what to return; rows whose `fooled` is True are done when the call wants the
        first success only.
        """
        return {"best": self.perturb(call)}

    def step(self, call, i, state):
        """The state after step `i`, a scalar tensor that counts from 0."""
        raise TypeError(f"{type(self).__name__} must define step()")

    def finish(self, call, state):
        """Adversarial images from the last state."""
        return state["best"]

    def open(self, call, state):
        """Bool `(batch,)`: rows that another step may serve."""
        if call.eager_stop and "fooled" in state:
            return call.active & ~state["fooled"]
        return call.active

    # --- what all attacks share ------------------------------------------------------------

    @property
    def name(self):
        return type(self).__name__

    @property
    def runs(self):
        """Number of independent sequential runs: restarts x targets."""
        return self.restarts * max(self.targets, 1)

    def runs_of(self, classes, goal=False):
        """The runs worth making on a model with so many classes: a list of numbers below `runs`.

        A target beyond the wrong classes would only repeat an earlier one; with a goal there is
        one target.
        """
        targets = max(self.targets, 1)
        useful = 1 if goal else min(targets, classes - 1)
        return [run for run in range(self.runs) if run % targets < useful]

    def score(self, call):
        """The attack's loss as a function of logits alone, its target fixed for this call."""
        loss = losses.get(self.loss)
        target = call.aim if call.clean is None else call.clean
        return lambda logits: loss(logits, call.y, target)

    def call(self, model, x, y, index, seed, run, **rest):
        keys = noise.keys(seed, self.stream, index, run)
        return Call(model=model, x=x, y=y, keys=keys, run=run, draws=self.eot, **rest)

    def begin(self, call):
        """The first state, with what the loss compares with: a class or the clean logits."""
        targeted = self.targets and call.goal is None
        call.aim = call.likely(call.run % self.targets) if targeted else call.goal
        if losses.from_clean(self.loss):
            if call.goal is not None:
                raise ValueError(f"`goal` must be None with loss={self.loss!r}: it has no aim.")
            call.clean = call.logits(call.x)
        return {**self.start(call), **call.remembered()}

    def loop(self, call, state, first, last, counts=()):
        """Steps from `first` to before `last` while a row is open, and what each row spent.

        Args:
            counts: Queries, gradients and iterations of each row so far, or nothing.
        """
        if not self.iterations:
            return state, counts

        def body(i, state, counts):
            rows, before = tf.cast(self.open(call, state), tf.int32), call.tally()
            call.recall(state)
            state = {**state, **self.step(call, i, state)}
            return i + 1, state, call.charged(counts, before, rows, 1)

        kept = call.tally()
        _, state, counts = tf.while_loop(
            lambda i, state, counts: (i < last) & tf.reduce_any(self.open(call, state)),
            body,
            (first, state, counts),
        )
        call.queries, call.gradients = kept  # what a step counts is known inside the loop only
        call.recall(state)
        return state, counts

    def legal(self, call, x_adv):
        """The nearest points of the threat; NaN, from a gradient that is NaN, becomes the image."""
        x_adv = tf.where(tf.math.is_finite(x_adv), x_adv, call.x)
        return tf.stop_gradient(self.threat.project(x_adv, call.x, call.epsilon))

    @property
    def stream(self):
        """Tells its random numbers from those of other attacks with the same seed."""
        return f"{type(self).__name__}:{self.loss if isinstance(self.loss, str) else 'custom'}"

    def tensors(self):
        """`numbers()` as tensors."""
        return {k: tf.convert_to_tensor(v) for k, v in self.numbers().items()}

    def within(self, model, x, y, seed, index=None, epsilon=None, goal=None):
        """The attack inside somebody else's graph (a train step): goes on to the highest loss.

        Args:
            seed: Integer tensor, usually the iteration.
        """
        x = tf.cast(x, tf.float32)
        if isinstance(model, keras.Model):
            y = losses.as_labels(y, contract.classes_of(model))
        index = tf.range(tf.shape(x)[0]) if index is None else index
        epsilon, numbers = self.threat.radius(epsilon), self.tensors()
        seed = noise.fold(tf.cast(seed, tf.uint32), self.seed)
        state = None
        for run in range(self.runs):
            call = self.call(
                *(model, x, y, index, seed, run),
                epsilon=epsilon,
                active=tf.ones(tf.shape(x)[:1], tf.bool),
                eager_stop=False,
                numbers=numbers,
                goal=goal,
            )
            found, _ = self.loop(call, self.begin(call), tf.constant(0), self.iterations)
            x_adv = self.legal(call, self.finish(call, found))
            if self.runs == 1 and self.on_failure == "best_loss":
                return x_adv
            logits = logits_of(model, x_adv)
            fooled = call.fooled(logits)
            loss = losses.margin(logits, y, goal)
            state = (
                {"best": x_adv, "loss": loss, "fooled": fooled}
                if state is None
                else better(state, x_adv, loss, fooled, freeze=False)
            )
        if self.on_failure == "clean":
            return tf.where(per_row(state["fooled"], x), state["best"], x)
        return state["best"]

    def __call__(self, model, x, y, index=None, epsilon=None, run=None, goal=None):
        if tf.inside_function():
            return self.within(model, x, y, self.seed, index, epsilon, goal)
        return self.result(model, x, y, index, epsilon, run, goal).x_adv

    def result(self, model, x, y, index=None, epsilon=None, run=None, goal=None):
        """Performs the attack and returns a `Result`; arguments as in a call of the attack."""
        x, y, index, goal, classes = self.checked(model, x, y, index, goal)
        radius = self.threat.epsilon if epsilon is None else type(self.threat)(epsilon).epsilon
        runs = self.runs_of(classes, goal is not None)
        if run is not None:
            whole("run", run)
            if not 0 <= run < self.runs:
                raise ValueError(f"`run` must lie in [0, {self.runs - 1}]. Received: run={run}")
            runs = [run] if run in runs else []
        x_adv, fooled = x.copy(), np.zeros(len(x), bool)
        counts, rows = np.zeros((3, len(x)), np.int64), np.arange(len(x))
        if self.on_failure == "clean":
            fooled = verdicts(model, x, y, goal, self.eot)
            rows = np.flatnonzero(~fooled)
        for place, number in enumerate(runs):
            if not len(rows):
                break
            wanted = None if goal is None else goal[rows]
            given = (model, x[rows], y[rows], index[rows], radius, number, wanted)
            part, spent = self.attempt(*given, eager_stop=self.eot == 1)
            counts[:, rows] += spent
            broken = verdicts(model, part, y[rows], wanted, self.eot)
            take = np.ones(len(rows), bool) if place == 0 else broken
            if self.on_failure == "clean":
                take = broken
            x_adv[rows[take]] = part[take]
            fooled[rows] = broken
            rows = rows[~broken]
        far = np.asarray(self.threat.distance(tf.constant(x_adv), tf.constant(x)))
        return Result(x_adv, fooled, np.where(fooled, far, np.inf), *counts)

    def attempt(self, model, x, y, index, epsilon, run, goal, eager_stop):
        """One run on checked rows: `(x_adv, counts)` with counts `(3, n)`, without a verdict."""
        return self._segments.run(model, x, y, index, epsilon, run, goal, eager_stop)

    def checked(self, model, x, y, index=None, goal=None):
        """The arguments of a call as arrays, and the number of classes; refuses what cannot work.

        Returns:
            (x, y, index, goal, classes).
        """
        x = contract.images(x)
        classes = self._classes(model, x)
        y = contract.labels(y, classes, count=len(x))
        index = np.arange(len(x)) if index is None else np.asarray(index)
        if index.shape != y.shape or index.dtype.kind not in "iu":
            raise ValueError(
                f"`index` must hold integers of shape {y.shape}. "
                f"Received: shape={index.shape}, dtype={index.dtype}"
            )
        if goal is not None:
            goal = contract.labels(goal, classes, "goal", count=len(x))
            if (goal == y).any():
                row = int(np.flatnonzero(goal == y)[0])
                raise ValueError(
                    f"`goal` must differ from `y`. Received: both {y[row]} in row {row}"
                )
        return x, y, index, goal, classes

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
            "eot": self.eot,
            "on_failure": self.on_failure,
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
