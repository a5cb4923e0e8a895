"""One live line for a whole `fit`: epochs, training accuracy, time left (rich)."""

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
            TextColumn("{task.description:<27}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            speed_estimate_period=1e6,
        )
        self.task = self.bar.add_task(self.title, total=self.params["epochs"], figures="")
        self.bar.start()

    def on_epoch_end(self, epoch, logs=None):
        names = {"accuracy": "clean", "robust_accuracy": "robust"}
        shown = [f"{word} {100 * logs[n]:.0f} %" for n, word in names.items() if n in (logs or {})]
        self.bar.update(self.task, completed=epoch + 1, figures="  ".join(shown))

    def on_train_end(self, logs=None):
        self.bar.stop()
