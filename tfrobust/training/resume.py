"""Resume: a killed `fit` that goes on where it stopped and ends where it would have ended.

`keras.callbacks.BackupAndRestore` brings back weights, one optimizer and the epoch; the seed
states, further optimizers, metrics, callbacks and the order of the data start afresh, and the
weights at the end differ. `Resume` keeps all of it, so on a CPU the weights after kill -9 and
restart equal those of the unbroken run bit for bit.

    train = tr.data.Batches(x_train, y_train, batch_size=128, seed=0)
    game.fit(train, epochs=30, callbacks=[tr.training.Resume("backup")])

Run the same script again after a kill: that is all.
"""

import contextlib
import functools
import inspect
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from tfrobust import files
from tfrobust.data import Batches
from tfrobust.pruning.magnitude import neighbours
from tfrobust.training import hooks, snapshot

FILE = "resume.npz"


@functools.singledispatch
def state_names(callback):
    """Names of the attributes of a callback that change during `fit` and decide what it does.

    A callback of your own either has a class attribute `resumes = ("name", ...)` or registers:

        @state_names.register
        def _(callback: MyCallback):
            return ("wait", "best")

    Values may be numbers, strings, None, arrays, and lists or dicts (keys: strings) of these. Such
    a callback does not hear of the batches that `Resume` skips after a kill within an epoch;
    others hear of all.
    """
    return tuple(getattr(callback, "resumes", ()))


@state_names.register
def _(callback: keras.callbacks.EarlyStopping):
    return ("wait", "stopped_epoch", "best", "best_epoch", "best_weights")


@state_names.register
def _(callback: keras.callbacks.ReduceLROnPlateau):
    return ("best", "wait", "cooldown_counter")


@state_names.register
def _(callback: keras.callbacks.ModelCheckpoint):
    return ("best", "_batches_seen_since_last_saving")


@state_names.register
def _(callback: keras.callbacks.SwapEMAWeights):
    return ("_ema_weights_in_model",)


class Resume(keras.callbacks.BackupAndRestore):
    """Saves the whole state of a `fit` and, started again, goes on from it.

    Saved are the weights (masks are weights), every optimizer with its learning rate, every
    `SeedGenerator`, metrics, variables that the game or its attack hold, the history, and the
    state of the other callbacks (see `state_names`). The file is written under a temporary name
    and then moved: a kill during the write leaves the one before. The first state is saved
    before the first step, so not even the initial weights need a seed. Only layers that draw
    numbers without a `keras.random.SeedGenerator` of their own are beyond it.

    In a game's `fit` that is all; it puts this callback last and tells it about the data and the
    other callbacks. With a plain Keras model say both, and keep Keras from shuffling:
    ``net.fit(train, shuffle=False, callbacks=[early, Resume("backup", train, [early])])``.

    Args:
        directory: Path of a folder for one run's state; made if missing.
        data: None or `tr.data.Batches`, whose epoch this callback sets. Other data must come in
            an order that follows from the epoch alone.
        callbacks: The other callbacks of `fit`, whose state is kept; they come before this one.
        save_freq: "epoch", or an int n >= 1 to save also after every n batches.
        delete_checkpoint: Bool; True removes the state when `fit` ends. False keeps it, and
            the same `fit` in a new process then only restores the end.

    Raises:
        OSError: The folder cannot be written, or the file in it cannot be read.
        ValueError: The folder holds the run of another model, game, optimizer or data set,
            `steps_per_epoch` was given, or a callback with a state stands beside this one in `fit`
            of a plain model and is not among `callbacks`.

    Example:

    >>> import numpy as np, tempfile
    >>> x, y = np.zeros((8, 2), "float32"), np.zeros(8, "int32")
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     history = net.fit(
    ...         x, y, shuffle=False, epochs=2, verbose=0, callbacks=[Resume(folder)]
    ...     )
    >>> history.epoch
    [0, 1]
    """

    def __init__(
        self, directory, data=None, callbacks=(), save_freq="epoch", delete_checkpoint=True
    ):
        if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
            raise TypeError(f"`directory` must be the path of a folder. Received: {directory!r}")
        if save_freq != "epoch" and (type(save_freq) is not int or save_freq < 1):
            raise ValueError(
                f'`save_freq` must be "epoch" or an integer >= 1. Received: save_freq={save_freq!r}'
            )
        super().__init__(
            os.fspath(directory), save_freq=save_freq, delete_checkpoint=delete_checkpoint
        )
        self.path = pathlib.Path(self.backup_dir) / FILE
        self.watch(data, callbacks)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Makes a file, since os.access believes that root may write anywhere.
            files.replace(self.path.with_name("probe"), lambda name: open(name, "w").close())
            self.path.with_name("probe").unlink()
            for leftover in self.path.parent.glob(f".*.{FILE}"):  # of a kill during a write
                leftover.unlink()
        except OSError as error:
            raise OSError(
                f"`directory` must be a folder that can be written. Received: {self.backup_dir} "
                f"({error.strerror})"
            ) from None

    def watch(self, data=None, callbacks=()):
        """Tells the data whose epoch to set and the callbacks whose state to keep."""
        if data is not None and not isinstance(data, Batches):
            raise TypeError(f"`data` must be tr.data.Batches. Received: {type(data).__name__}")
        self.data = data
        self.others = [c for c in callbacks if c is not self and state_names(c)]

    # --- what Keras calls -----------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._logs, self._since, self._skipped = [], 0, 0
        self._restored = None
        model = self.model
        self._unwrap()  # of a fit that was interrupted while it skipped, in this process
        hooks.give_back(self.others)
        self._refuse_strangers(neighbours(inspect.currentframe()))
        if not model.built:
            raise ValueError(
                "The model must be built before `fit` with Resume: call it on a batch first. "
                f"Received: model '{model.name}' without weights"
            )
        if self.data is not None and self.params.get("steps") != len(self.data):
            raise ValueError(
                "`steps_per_epoch` must be left out with Resume: an epoch is one pass over the "
                f"data, {len(self.data)} batches. Received: {self.params.get('steps')} steps"
            )
        for optimizer in snapshot.optimizers(model).values():
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
        self._fingerprint = snapshot.fingerprint(model, self.data)
        if not self.path.exists():
            self._save(0, 0)
            return
        meta, arrays = snapshot.read(self.path)
        self._refuse_other(meta)
        self._restored = meta, arrays
        self._restore_variables(metrics=False)
        self._restore_callbacks()
        self._logs = meta["logs"]
        model._initial_epoch = self.params["epochs"] if meta["stopped"] else meta["epoch"]
        if meta["batch"] and not meta["stopped"]:
            self._skip(meta["batch"])

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self.data is not None:
            self.data.epoch = epoch
        self._restore_history()

    def on_train_batch_end(self, batch, logs=None):
        if self._skipped:
            if not self._left:  # the others speak from the next batch on
                hooks.give_back(self.others)
                self._restore_callbacks()  # what they forgot when the epoch began
            return
        steps = self.model.steps_per_execution
        if batch < steps:
            self._check_order()
        self._since += steps
        if self.save_freq != "epoch" and self._since >= self.save_freq:
            self._since = 0
            done = batch + 1
            total = self.params.get("steps")
            self._save(self._epoch, done if total is None else min(done, total))

    def on_epoch_end(self, epoch, logs=None):
        self._check_order()
        self._restored = None
        numbers = {k: float(v) for k, v in (logs or {}).items() if np.ndim(v) == 0}
        self._logs.append([epoch, numbers])
        self._since = 0
        self._save(epoch + 1, 0)

    def on_train_end(self, logs=None):
        self._restore_history()
        # Keras keeps the first epoch for the fits to come.
        self.model._initial_epoch = None
        self._unwrap()
        hooks.give_back(self.others)
        if self.delete_checkpoint:
            with contextlib.suppress(OSError):
                self.path.unlink()
                self.path.parent.rmdir()  # stays if it holds anything that is not ours

    # --- saving ---------------------------------------------------------------------------------

    def _save(self, epoch, batch):
        arrays = {}
        variables = {
            key: snapshot.packed(variable, key, arrays)
            for key, variable in snapshot.variables(self.model).items()
        }
        callbacks = [
            {
                "class": type(callback).__name__,
                "values": {
                    name: snapshot.packed(
                        getattr(callback, name, None), f"callback {number} {name}", arrays
                    )
                    for name in state_names(callback)
                },
            }
            for number, callback in enumerate(self.others)
        ]
        meta = {
            "format": snapshot.FORMAT,
            "fingerprint": self._fingerprint,
            "epoch": epoch,
            "batch": batch,
            "steps_per_execution": self.model.steps_per_execution,
            "stopped": bool(self.model.stop_training),
            "variables": variables,
            "callbacks": callbacks,
            "logs": self._logs,
        }
        snapshot.write(self.path, meta, arrays)

    # --- restoring ------------------------------------------------------------------------------

    def _refuse_strangers(self, callbacks):
        known = {id(callback) for callback in [self, *self.others]}
        names = [type(c).__name__ for c in callbacks if state_names(c) and id(c) not in known]
        if names:
            raise ValueError(
                "`callbacks` of Resume must name all callbacks of a plain model's `fit` that have "
                f"a state: Resume(directory, data, [...]). Received: none of {', '.join(names)}"
            )

    def _refuse_other(self, meta):
        difference = snapshot.difference(meta["fingerprint"], self._fingerprint)
        names = [[type(c).__name__, *state_names(c)] for c in self.others]
        known = [[state["class"], *state["values"]] for state in meta["callbacks"]]
        if not difference and names != known:
            difference = f"callbacks: {known} there, {names} here"
        if difference:
            raise ValueError(
                "`directory` must be empty or hold an earlier part of this very run. "
                f"Received: {self.backup_dir} with another run ({difference})"
            )

    def _restore_variables(self, metrics):
        meta, arrays = self._restored
        saved, variables = meta["variables"], snapshot.variables(self.model)
        if not metrics:  # made in the first step, and zero at the start of an epoch
            saved = {k: v for k, v in saved.items() if not k.startswith("metric")}
            variables = {k: v for k, v in variables.items() if not k.startswith("metric")}
        difference = snapshot.difference(
            {key: value["shape"] for key, value in saved.items()},
            {key: list(variable.shape) for key, variable in variables.items()},
        )
        if difference:
            raise ValueError(
                "`directory` must hold a run with the variables of this model. "
                f"Received: {self.backup_dir} ({difference})"
            )
        for key, value in saved.items():
            variables[key].assign(snapshot.unpacked(value, arrays))

    def _restore_callbacks(self):
        meta, arrays = self._restored
        for callback, state in zip(self.others, meta["callbacks"], strict=True):
            for name, value in state["values"].items():
                setattr(callback, name, snapshot.unpacked(value, arrays))

    def _skip(self, batches):
        """Lets the first `batches` of the epoch pass by untrained, and unheard by the others.

        The first execution trains all the same: that makes whatever Keras makes in the first
        step (metrics, for one). Then everything is set to the saved state.
        """
        model, train = self.model, self.model.train_function
        each = model.steps_per_execution
        if self._restored[0]["steps_per_execution"] != each:
            raise ValueError(
                "`steps_per_execution` must stay as it was when a run stops within an epoch. "
                f"Received: {each}, was {self._restored[0]['steps_per_execution']}"
            )
        self._skipped = self._left = -(-batches // each)
        hooks.take(self.others)

        def pass_by(iterator):
            if self._left == self._skipped:
                train(iterator)
                self._restore_variables(metrics=True)
            else:
                for _ in range(each):
                    if next(iterator, None) is None:
                        break
            self._left -= 1
            return model.get_metrics_result()

        def step(iterator):
            if self._left:
                return pass_by(iterator)
            self._skipped = 0
            self._unwrap()
            return train(iterator)

        step.trains = train
        model.train_function = step

    def _unwrap(self):
        step = self.model.train_function
        self.model.train_function = getattr(step, "trains", step)

    def _restore_history(self):
        if self._restored is None:
            return
        history = getattr(self.model, "history", None)
        if history is not None and not history.epoch:
            history.history = {}
            for epoch, logs in self._logs:
                history.epoch.append(epoch)
                for name, value in logs.items():
                    history.history.setdefault(name, []).append(value)

    def _check_order(self):
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        if self.data is not None and replicas == 1 and not self.data.in_order:
            raise ValueError(
                "`shuffle` must be False in `fit` of a plain Keras model with Resume: Keras would "
                "shuffle tr.data.Batches with Python's global random numbers. Received: True"
            )


def arranged(x, callbacks, shuffle):
    """(callbacks, shuffle) with which a game calls Keras's `fit` on the data `x`.

    `tr.data.Batches` are told the epoch and keep their own order. `Resume` comes last, so that
    it sees the other callbacks after they acted, and knows them and the data. Callbacks that
    monitor robust accuracy with mode "auto" maximise it.
    """
    batches = x if isinstance(x, Batches) else None
    arrays = isinstance(x, (np.ndarray, tf.Tensor))
    if batches is not None or isinstance(x, tf.data.Dataset):
        shuffle = False  # Keras warns of its own default
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks, shuffle
    callbacks = keras.tree.flatten(callbacks) if callbacks else []
    resumes = [c for c in callbacks if isinstance(c, Resume)]
    others = [c for c in callbacks if not isinstance(c, Resume)]
    for callback in others:  # Keras guesses the direction of compiled metrics only
        if getattr(callback, "mode", "") == "auto" and "robust_accuracy" in str(
            getattr(callback, "monitor", "")
        ):
            callback.mode = "max"
    if batches is not None:
        follow = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch)
        )
        others = [follow, *others]
    for resume in resumes:
        if shuffle and arrays:
            raise ValueError(
                "`x` must be tr.data.Batches for Resume: Keras shuffles arrays in an order that "
                f"no file can keep. Received: {type(x).__name__} with shuffle=True"
            )
        resume.watch(batches, others)
    return [*others, *resumes], shuffle
