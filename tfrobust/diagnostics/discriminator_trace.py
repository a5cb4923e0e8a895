"""The course of the feature game: what its figures were, every k steps of `fit`."""

import json

import keras
import numpy as np

from tfrobust import contract
from tfrobust.training import AFD


class DiscriminatorTrace(keras.callbacks.Callback):
    """Records means of the game's figures over every `every` steps.

    Figure A5 of the paper: the discriminator's accuracy begins well above 0.5 and declines.

    Args:
        every: Integer >= 1, steps of a row.

    Attributes:
        rows: List of dicts: `step`, the last one of the row, and each figure that AFD reports
            (`discriminator_accuracy`, both losses, mean scores, `feature_shift`, ...). A rest of
            an epoch joins the next row. `tr.training.Resume` keeps them.

    Raises:
        TypeError: when `fit` begins on something else than `tr.training.AFD`.

    Example:

    >>> DiscriminatorTrace(every=50).rows
    []
    """

    resumes = ("state",)

    def __init__(self, every=100):
        super().__init__()
        self.every = contract.whole("every", every, 1)
        self._begin()

    def _begin(self):
        self.rows, self._sums, self._seen, self._before = [], {}, 0, {}

    @property
    def state(self):
        """The rows as text, for `tr.training.Resume`."""
        return json.dumps([self.rows, self._sums, self._seen, self._before])

    @state.setter
    def state(self, text):
        self.rows, self._sums, self._seen, self._before = json.loads(text)

    def column(self, name):
        """float64 `(rows,)` of one figure, or of "step"."""
        return np.array([row[name] for row in self.rows], np.float64)

    def distance(self):
        """float64 `(rows,)` in [0, 2], an estimate of the H-delta-H distance of both features.

        2 |TPR + TNR - 1| of the discriminator, on training batches: 0 where it guesses, 2 where it
        tells all apart. A weak discriminator makes it too small.

        >>> trace = DiscriminatorTrace()
        >>> trace.rows = [{"discriminator_accuracy": a} for a in (1.0, 0.75, 0.5, 0.25)]
        >>> trace.distance().tolist()
        [2.0, 1.0, 0.0, 1.0]
        """
        return 2 * np.abs(2 * self.column("discriminator_accuracy") - 1)

    def to_dict(self):
        """{"names": figures, "values": a list for each row}; None where nothing was counted."""
        names = list(self.rows[0]) if self.rows else []
        return {"names": names, "values": [[row[name] for name in names] for row in self.rows]}

    def on_train_begin(self, logs=None):
        if not isinstance(self.model, AFD):
            raise TypeError(
                "`callbacks` may hold DiscriminatorTrace in `fit` of tr.training.AFD only. "
                f"Received: {type(self.model).__name__}"
            )
        self._begin()

    def on_epoch_begin(self, epoch, logs=None):
        self._before = {}

    def on_train_batch_end(self, batch, logs=None):
        for name, tracker in self.model.trackers.items():
            now = (float(tracker.total), float(tracker.count))
            before, (total, count) = (
                kept.get(name, (0.0, 0.0)) for kept in (self._before, self._sums)
            )
            self._sums[name] = (total + now[0] - before[0], count + now[1] - before[1])
            self._before[name] = now
        self._seen += self.model.steps_per_execution
        if self._seen >= self.every:
            means = {
                k: total / count if count else None for k, (total, count) in self._sums.items()
            }
            self.rows.append({"step": int(self.model.step.numpy()), **means})
            self._sums, self._seen = {}, 0
