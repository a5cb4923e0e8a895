"""What an attack is given and what it hands back: tensors only, so that nothing retraces."""

import contextlib
import dataclasses
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import buckets, losses
from tfrobust.attacks.backward import Passes
from tfrobust.attacks.kept import Kept, version


def logits_of(model, x):
    """Float32 logits of a Keras model in inference mode, or of any callable."""
    out = model(x, training=False) if isinstance(model, keras.layers.Layer) else model(x)
    return losses.as_logits(out)


def per_row(values, x):
    """`(batch,)` values, broadcast over the axes of x."""
    return tf.reshape(values, (-1,) + (1,) * (len(x.shape) - 1))


@dataclasses.dataclass
class Call:
    """One run of an attack on one batch, as its author sees it.

    Attributes:
        x, y: Clean images and integer labels.
        keys: uint32 `(batch,)`, the noise key of each example in this run.
        epsilon: Scalar, the radius (infinite where the smallest change of any size is wanted).
        run: Scalar int, which restart or target.
        active: Bool `(batch,)`; rows that are False are padding.
        eager_stop: Bool: a row is done at its first success (evaluation), or the attack goes on
            to the highest loss or smallest change (training, minimal distances).
        numbers: The attack's tensor parameters.
        goal: Labels `(batch,)` that the attacker wants to see, or None: any wrong one will do.
        aim: Class `(batch,)` that a targeted loss points at in this run, or None.
        clean: Logits `(batch, classes)` of the clean images for a loss that compares with them
            (`losses.from_clean`), or None.
        draws: Forward passes that are averaged for each answer of the model.
        queries, gradients: Passes per row so far, forward and backward.
    """

    model: Any
    x: Any
    y: Any
    keys: Any
    epsilon: Any
    run: Any
    active: Any
    eager_stop: bool
    numbers: dict
    goal: Any = None
    aim: Any = None
    clean: Any = None
    draws: int = 1
    queries: int = 0
    gradients: int = 0

    def likely(self, rank):
        """The class `(batch,)` that is `rank`-th most likely on the clean image, `y` left out."""
        clean = self.logits(self.x)
        hot = tf.one_hot(self.y, clean.shape[-1], on_value=1e30, off_value=0.0)
        order = tf.argsort(clean - hot, direction="DESCENDING")
        return tf.gather(order, tf.minimum(rank, clean.shape[-1] - 2), axis=1)

    def remembered(self):
        """What the steps to come compare with: entries of their state."""
        kept = {"aim": self.aim, "clean": self.clean}
        return {name: value for name, value in kept.items() if value is not None}

    def recall(self, state):
        """Takes it out of the state: tensors of a loop's body belong to that body."""
        self.aim, self.clean = state.get("aim"), state.get("clean")

    def tally(self):
        """(queries, gradients) traced so far."""
        return self.queries, self.gradients

    def charged(self, counts, before, rows, iterations):
        """`counts` plus what was traced since the tally `before`, for `rows` that are 1."""
        added = [now - then for then, now in zip(before, self.tally(), strict=True)]
        return tuple(c + n * rows for c, n in zip(counts, [*added, iterations], strict=False))

    @contextlib.contextmanager
    def repeated(self, times):
        """Counts what is traced once inside an inner loop as often as it runs, a tensor's times."""
        before, self.queries, self.gradients = self.tally(), 0, 0
        yield
        self.queries, self.gradients = (
            then + times * now for then, now in zip(before, self.tally(), strict=True)
        )

    def logits(self, x, copies=1):
        """Float32 logits `(batch * copies, classes)`, averaged over `draws` passes.

        Args:
            x: Images; `copies` says how many of them belong to each row.
        """
        self.queries += copies * self.draws
        if self.draws == 1:
            return logits_of(self.model, x)
        _, total = tf.while_loop(
            lambda i, _: i < self.draws,
            lambda i, total: (i + 1, total + logits_of(self.model, x)),
            (tf.constant(1), logits_of(self.model, x)),
        )
        return total / self.draws

    def fooled(self, logits, copies=1):
        """Bool `(batch * copies,)`: another class, or the goal, is strictly above the rest."""
        wanted = self.y if self.goal is None else self.goal
        gap = losses.margin(logits, tf.repeat(wanted, copies))
        return gap > 0 if self.goal is None else gap < 0

    def gradient(self, score, x):
        """(loss, fooled, gradient by the input) of each row at `x`, all three averaged."""
        self.queries += self.draws
        self.gradients += self.draws

        def once():
            with Passes(x) as passes:
                logits = logits_of(self.model, x)
                loss = score(logits)
            return logits, loss, passes.gradient(loss)

        if self.draws == 1:
            logits, loss, gradient = once()
            return loss, self.fooled(logits), gradient
        first = once()
        _, logits, loss, gradient = tf.while_loop(
            lambda i, *_: i < self.draws,
            lambda i, *sums: (i + 1, *(a + b for a, b in zip(sums, once(), strict=True))),
            (tf.constant(1), *first),
        )
        return loss / self.draws, self.fooled(logits), gradient / self.draws

    def pullback(self, x):
        """(logits, back): `back(weights)` is the gradient by `x` of each row's weighted logits.

        One forward pass serves any number of gradients; with `draws` each of them is an average
        of its own.
        """
        if self.draws > 1:
            return self.logits(x), lambda weights: self.gradient(
                lambda logits: tf.reduce_sum(weights * logits, -1), x
            )[2]
        self.queries += 1
        with Passes(x) as passes:
            logits = logits_of(self.model, x)

        def back(weights):
            self.gradients += 1
            return passes.gradient(logits, weights)

        return logits, back


def better(state, x, loss, fooled, freeze):
    """`state` with its best point replaced where `x` is better.

    Fooling points come first, then the highest loss; with `freeze` the first fooling point stays.

    Args:
        state: Dictionary with `best` (images), `loss` and `fooled` (rows).
    """
    wins = (fooled & ~state["fooled"]) | ((fooled == state["fooled"]) & (loss > state["loss"]))
    if freeze:
        wins = wins & ~state["fooled"]
    return {
        **state,
        "best": tf.where(per_row(wins, x), x, state["best"]),
        "loss": tf.where(wins, loss, state["loss"]),
        "fooled": fooled | state["fooled"],
    }


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack did to each of n images; NumPy arrays.

    Attributes:
        x_adv: Images of the input's shape, legal for the threat.
        fooled: Bool `(n,)`, by a fresh pass on `x_adv`: the largest wrong logit is strictly above
            the true one (with a goal: the goal is strictly above all others).
        distance: Norm of the change where fooled, else infinite.
        queries, gradients: Forward and backward passes spent on each image.
        iterations: Steps that each image took.
    """

    x_adv: np.ndarray
    fooled: np.ndarray
    distance: np.ndarray
    queries: np.ndarray
    gradients: np.ndarray
    iterations: np.ndarray


def compiled(function):
    """`tf.function` that leaves Python as it is, which traces several times faster.

    A model or attack of a user's that branches on tensors with Python's `if` gets AutoGraph.
    """
    graphs = [tf.function(function, reduce_retracing=True, autograph=False)]

    def call(*args):
        try:
            return graphs[-1](*args)
        except tf.errors.OperatorNotAllowedInGraphError:
            if len(graphs) > 1:
                raise
            graphs.append(tf.function(function, reduce_retracing=True))
            return graphs[-1](*args)

    return call


_forward = Kept()


def forward(model, x, draws=1):
    """Logits of many images as NumPy `(n, classes)`, compiled once per bucket.

    Args:
        model: Keras classifier or callable images -> logits.
        x: Images `(n, ...)`.
        draws: Passes to average, for models whose answers are random.
    """
    x, known = np.asarray(x), _forward.of(model)
    place = version(model), x.shape[1:]
    if place not in known:
        reference = weakref.ref(model)
        known[place] = compiled(lambda images: logits_of(reference(), images))
    passes = (buckets.apply(lambda images, real: known[place](images), x) for _ in range(draws))
    return sum(passes) / draws if draws > 1 else next(passes)


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


def verdicts(model, x, y, goal=None, draws=1):
    """True where the answer for `x` is not `y` (or is `goal`): a margin strictly above 0.

    A model with random generators answers alike every time: they stay where they are.
    """
    logits = _judged(model, x, draws)
    if goal is not None:
        return losses.margin(logits, tf.constant(goal)).numpy() < 0
    return losses.margin(logits, tf.constant(y)).numpy() > 0


def correct(model, x, y, draws=1):
    """True where the answer for `x` is `y` as accuracy counts: see `tr.losses.correct`.

    Only where logits are equal to the last bit it differs from `~verdicts(...)`: a tie is no
    success of an attack, and no knowledge of the model either.
    """
    return losses.correct(_judged(model, x, draws), tf.constant(y)).numpy()


def _judged(model, x, draws):
    with unmoved(model):
        logits = forward(model, x, draws)
    if np.isnan(logits).any():
        rows = np.flatnonzero(np.isnan(logits).any(-1))
        raise ValueError(f"`model` must return finite logits. Received: NaN in row {rows[0]}")
    return tf.constant(logits)


@contextlib.contextmanager
def unmoved(model, shift=0):
    """Leaves the states of the model's random generators as they were; `shift` sets them apart."""
    states = []
    if isinstance(model, keras.Model):
        found = model.non_trainable_variables
        states = [(v, v.numpy()) for v in found if v.name == "seed_generator_state"]
    for variable, value in states:
        variable.assign(value + np.array([0, shift], value.dtype))
    try:
        yield
    finally:
        for variable, value in states:
            variable.assign(value)
