"""Train steps as they are, whatever Keras calls: executions of several, batches that passed by."""

import keras


class Counting(keras.callbacks.Callback):
    """Counts train steps over all epochs, as `tr.pruning.MagnitudePruning` does.

    Subclasses name what `tr.training.Resume` keeps of them: `resumes = (*Counting.resumes, ...)`.

    Attributes:
        steps: Steps up to now.
    """

    resumes = ("before", "done")

    def __init__(self):
        super().__init__()
        self.before, self.done = 0, 0  # this epoch, and in it

    @property
    def steps(self):
        return self.before + self.done

    def on_train_batch_end(self, batch, logs=None):
        total = self.params.get("steps")  # an execution may reach beyond the end of the epoch
        self.done = batch + 1 if total is None else min(batch + 1, total)

    def on_epoch_end(self, epoch, logs=None):
        self.before, self.done = self.steps, 0
