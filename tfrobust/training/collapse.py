"""Collapse of the feature game: what happened, why, and what to do, while `fit` still runs.

watch = tr.training.CollapseWatch(window=200, action="restore")
game.fit(x, y, epochs=100, validation_data=held_out, callbacks=[watch])
watch.found        # [] for a run that stayed healthy
"""

import json
import math
import warnings

import keras
import numpy as np

from tfrobust import contract

ACTIONS = ("warn", "stop", "restore")
WATCHED = (
    "discriminator_loss",
    "encoder_loss",
    "discriminator_accuracy",
    "score_clean",
    "score_adversarial",
    "feature_variance",
    "same_answer",
    "clean_accuracy",
)
ROWS = 9  # complete rows of a tenth of a window each, so that the tenth may hold the onset

CAUSES = {
    "not finite": (
        "a loss or score is NaN or infinite",
        "go back to a checkpoint, lower the learning rates and give the optimizers "
        "global_clipnorm=1",
    ),
    "encoder": (
        "all images have the same features, or the same prediction",
        "lower the encoder's learning rate, or let `weight` rise from 0 by a schedule",
    ),
    "dead": (
        "the discriminator's answers or weights do not change",
        "see that it is trained (learning rate, `trainable`, dead activations) and make it anew",
    ),
    "won": (
        "the discriminator tells nearly all features apart and the encoder does not catch up",
        "lower the discriminator's learning rate, raise the encoder's (the paper's is 5 x), or "
        'take divergence="wasserstein"',
    ),
    "saturated": (
        "all scores lie beyond 20, where the sigmoid is flat",
        "bound the discriminator (`tr.training.feature_discriminator` is), or lower its learning "
        "rate",
    ),
    "accuracy": (
        "clean accuracy fell far below its best",
        "lower the encoder's learning rate or `weight`, and keep the best checkpoint",
    ),
}


class DiscriminatorCollapse(UserWarning):
    """The feature game came to an end before training did.

    Attributes:
        cause: A key of `tr.training.collapse.CAUSES`.
        step: Steps of the watch when it was seen.
    """

    def __init__(self, cause, step, back=""):
        what, cure = CAUSES[cause]
        super().__init__(f"Collapse seen at step {step}: {what} ({cause!r}). {back}Cure: {cure}.")
        self.cause, self.step = cause, step


def diagnosis(rows, best, divergence="bce"):
    """The cause of collapse that the last rows show, or None.

    Args:
        rows: `ROWS` dicts or more, one every tenth of a window: the figures of `WATCHED` and
            `weights`, a digest of the discriminator's.
        best: Best clean accuracy of `ROWS` rows so far.
        divergence: That of the game; only "bce" saturates.

    What is saturated also stands still, or wins: it is named first, for its cure is another.
    """
    if rows and not all(math.isfinite(rows[-1][name]) for name in WATCHED):
        return "not finite"
    rows = rows[-ROWS:]
    if len(rows) < ROWS:
        return None
    told = {name: np.array([row[name] for row in rows]) for name in WATCHED}
    accuracy = told["discriminator_accuracy"]
    guess = (np.abs(accuracy - 0.5) <= 0.005).all()
    if (told["feature_variance"] < 1e-6).all() and guess or (told["same_answer"] >= 0.999).all():
        return "encoder"
    scores = np.abs([told["score_clean"], told["score_adversarial"]])
    if divergence == "bce" and (scores > 20).all():
        return "saturated"
    still = [np.ptp(told[name]) < 1e-6 for name in ("score_clean", "score_adversarial")]
    if all(still) or len({row["weights"] for row in rows}) == 1:
        return "dead"
    half, loss = ROWS // 2, told["encoder_loss"]
    falls = loss[:half].mean() - loss[-half:].mean() > 0.05 * abs(loss[:half].mean())
    if (accuracy >= 0.99).all() and not falls:
        return "won"
    if told["clean_accuracy"].max() < best - 0.2:
        return "accuracy"
    return None


class CollapseWatch(keras.callbacks.Callback):
    """Watches `tr.training.AFD` and warns, stops or goes back when the game has collapsed.

    In windows of steps it looks for: NaN ("not finite"); equal features of all images and a
    discriminator that guesses, or one prediction for all ("encoder"); a discriminator whose
    answers, or weights, stand still ("dead"); one that is right in 99 % of cases while the
    encoder's loss does not fall ("won"), or whose sigmoid is flat ("saturated"); and clean accuracy
    20 points below its best ("accuracy").
    Each cause is told once, as a `DiscriminatorCollapse` warning that names the cure, at most
    `window` steps after its onset.

    A healthy run begins with a discriminator accuracy well above 0.5, which then declines.

    Args:
        window: Integer >= 10, steps; at least ten times `steps_per_execution`.
        action: "warn"; "stop" also ends `fit`; "restore" also brings back the epoch with the best
            `monitor`, or what was there before training: the game's weights and its optimizers, so
            that another `fit` goes on from there.
        monitor: Name among the logs of an epoch, larger is better. Validation, not test images.

    Attributes:
        found: List of {"cause", "step"} in order.
        best_epoch: Number of the epoch that "restore" would bring back, from 0; None: the start.
        rows: List of dicts, the figures of the last tenths of a window.

    Raises:
        TypeError: `fit` of something else than `AFD`.
        ValueError: arguments outside of these; a window shorter than ten executions; with
            "restore", a `monitor` that is not logged.

    Example:

    >>> CollapseWatch(window=100, action="restore").found
    []
    """

    resumes = ("state", "best_weights", "best_slots")

    def __init__(self, window=200, action="warn", monitor="val_robust_accuracy"):
        super().__init__()
        self.window = contract.whole("window", window, 10)
        if action not in ACTIONS:
            raise ValueError(
                f"`action` must be one of {list(ACTIONS)}. Received: action={action!r}"
            )
        self.action, self.monitor = action, monitor
        self.best_weights = self.best_slots = None
        self._begin()

    def _begin(self):
        self.found, self.rows, self.steps, self.best, self.best_epoch = [], [], 0, -math.inf, None
        self._accuracy, self._sums, self._seen, self._before = 0.0, {}, 0, {}

    @property
    def state(self):
        """All but the weights as text, for `tr.training.Resume`."""
        names = ("found", "rows", "steps", "best", "best_epoch")
        hidden = ("_accuracy", "_sums", "_seen", "_before")
        return json.dumps({name: getattr(self, name) for name in names + hidden})

    @state.setter
    def state(self, text):
        for name, value in json.loads(text).items():
            setattr(self, name, value)

    def on_train_begin(self, logs=None):
        trackers = getattr(self.model, "trackers", {})
        if not set(WATCHED) <= set(trackers):
            raise TypeError(
                "`callbacks` may hold CollapseWatch in `fit` of tr.training.AFD only. "
                f"Received: {type(self.model).__name__}"
            )
        if self.model.steps_per_execution * 10 > self.window:
            raise ValueError(
                "`window` must be at least 10 x steps_per_execution. "
                f"Received: window={self.window}, {self.model.steps_per_execution} steps"
            )
        self._begin()
        self.best_weights = self.best_slots = None
        if self.action == "restore":
            self._keep()

    def on_epoch_begin(self, epoch, logs=None):
        self._before = {}

    def on_train_batch_end(self, batch, logs=None):
        for name in WATCHED:
            tracker = self.model.trackers[name]
            now = (float(tracker.total), float(tracker.count))
            total, count = self._sums.get(name, (0.0, 0.0))
            before = self._before.get(name, (0.0, 0.0))
            self._sums[name] = (total + now[0] - before[0], count + now[1] - before[1])
            self._before[name] = now
        each = self.model.steps_per_execution
        self._seen, self.steps = self._seen + each, self.steps + each
        if self._seen >= self.window // 10 // each * each:
            self._row()

    def _row(self):
        row = {name: total / count if count else 0.0 for name, (total, count) in self._sums.items()}
        weights = [v.numpy() for v in self.model.discriminator.trainable_variables]
        row["weights"] = contract.digest(*weights)
        self.rows, self._sums, self._seen = [*self.rows[1 - ROWS :], row], {}, 0
        if len(self.rows) == ROWS:
            mean = float(np.mean([row["clean_accuracy"] for row in self.rows]))
            self._accuracy = max(self._accuracy, mean)
        cause = diagnosis(self.rows, self._accuracy, self.model.divergence)
        if cause is not None and all(one["cause"] != cause for one in self.found):
            self._act(cause)

    def _act(self, cause):
        self.found.append({"cause": cause, "step": self.steps})
        if self.action != "warn":
            self.model.stop_training = True
        back = ""
        if self.action == "restore":
            self.model.set_weights(self.best_weights)
            for variable, value in zip(self._slots(), self.best_slots, strict=True):
                variable.assign(value)
            epoch = self.best_epoch
            back = f"Back at {'the start' if epoch is None else f'the end of epoch {epoch}'}. "
        warnings.warn(DiscriminatorCollapse(cause, self.steps, back), stacklevel=2)

    def _slots(self):
        """What optimizers hold: momenta, iterations, learning rates."""
        return [v for optimizer in self.model.optimizers.values() for v in optimizer.variables]

    def _keep(self):
        self.best_weights = self.model.get_weights()
        self.best_slots = [keras.ops.convert_to_numpy(v) for v in self._slots()]

    def on_epoch_end(self, epoch, logs=None):
        if self.action != "restore" or self.found:
            return
        if self.monitor not in (logs or {}):
            raise ValueError(
                f"`monitor` must be among the logs of an epoch: {sorted(logs or {})}. "
                f"Received: monitor={self.monitor!r}"
            )
        value = float(logs[self.monitor])
        if value > self.best:
            self.best, self.best_epoch = value, epoch
            self._keep()
