"""One live line for a whole `fit`: epochs, loss, robust accuracy, time left (rich)."""

import keras
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Line(keras.callbacks.Callback):
    """Shows one line that fills up over all epochs of a `fit`.

    Args:
        title: What is being trained.
    """

    def __init__(self, title):
        super().__init__()
        self.title = title

    def on_train_begin(self, logs=None):
        self.bar = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} epochs"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(self.title, total=self.params["epochs"], figures="")
        self.bar.start()

    def on_epoch_end(self, epoch, logs=None):
        names = ("loss", "accuracy", "robust_accuracy")
        shown = [f"{name} {logs[name]:.3f}" for name in names if name in (logs or {})]
        self.bar.update(self.task, completed=epoch + 1, figures="  ".join(shown))

    def on_train_end(self, logs=None):
        self.bar.stop()
