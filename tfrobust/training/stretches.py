"""Training that gets faster as units die: `fit` in stretches, with a smaller net in each.

    train = tr.data.Batches(x_train, y_train, batch_size=128, seed=0)
    game = tr.training.ANP(net, attack, beta=80.0, train_size=60_000)
    game.compile()
    game, history = tr.training.fit_and_shrink(game, train, epochs=30, shrink_every=2)
    small = tr.shrink.compact(game.classifier)

Each stretch is an ordinary `fit`. Between two of them the units whose gates are shut are cut from
the net, the optimizers and everything else that has their shape (`tr.training.shrunk`). Epochs,
schedules, the order of the data and the other callbacks go on as in one `fit`.
"""

import contextlib
import os

import keras

from tfrobust import contract
from tfrobust.data import Batches
from tfrobust.training import snapshot
from tfrobust.training.carry import around, cut, refuse, units
from tfrobust.training.resume import Resume, state_names

FILE, INSIDE = "stretch.npz", "within"


def fit_and_shrink(
    game,
    x=None,
    y=None,
    epochs=1,
    shrink_every=1,
    least=0.05,
    directory=None,
    callbacks=None,
    delete_checkpoint=True,
    **kwargs,
):
    """Fits a game and cuts, after every `shrink_every` epochs, the units whose masks are shut.

    A cut leaves the logits in inference as they are. The training that follows is not the one that
    would have been: noise is drawn for fewer units, and one that is gone neither adds noise nor
    opens again. With `VIBMask` that is felt: a shut unit passes more noise than signal, and its
    gradient can open it. A new net is traced anew, which costs some seconds.

    Args:
        game: Compiled `Game` whose classifier has masks.
        x, y: As for `fit`; `tr.data.Batches` come in the order of (seed, epoch).
        epochs: Integer, epochs in all.
        shrink_every: Integer >= 1, epochs of a stretch.
        least: Float in [0, 1): a cut that removes a smaller share of the masks' units waits.
        directory: None, or path of a folder for the run's state. Run the same script again after a
            kill, and it goes on from the last epoch that ended and gives the weights of the
            unbroken run bit for bit (on a CPU). Needs `tr.data.Batches`.
        callbacks: Keras callbacks. They see one long `fit`, but for `on_train_begin` and
            `on_train_end`, which every stretch calls; their state is carried over as by `Resume`.
        delete_checkpoint: Bool; False keeps the state when training ends.
        **kwargs: Further arguments of `fit`, such as `validation_data` and `verbose`.

    Returns:
        `(game, history)`: the game of the last stretch, whose `classifier` is the smaller net with
        its living masks, and a `keras.callbacks.History` of all epochs. It also has `units`, those
        open at the end of an epoch, and `units_trained`, those of the net that it trained.

    Raises:
        TypeError, ValueError: as `tr.training.shrunk`, before the first step; callbacks that hold
            weights or prune; arguments that cannot be.
        OSError: as `Resume`.

    Example: see the head of this file.
    """
    refuse(game)
    _check_numbers(epochs, shrink_every, least)
    if "initial_epoch" in kwargs:
        raise ValueError("`initial_epoch` must be left out: `directory` continues a run.")
    others = _checked(callbacks)
    stage = Stage(epoch=0, logs=[], states=None)
    kept = None
    if directory is not None:
        if not isinstance(x, Batches):
            raise ValueError(
                "`x` must be tr.data.Batches with `directory`: no file can keep the order of other "
                f"data. Received: {type(x).__name__}"
            )
        kept = Folder(directory, game, x, others, {"shrink_every": shrink_every, "least": least})
        game, stage = kept.open(game, stage)
    while stage.epoch < epochs and not stage.stopped:
        end = min(stage.epoch + shrink_every, epochs)
        carry, inside = Carry(others, stage.states), [] if kept is None else [kept.inside()]
        stopped = bool(inside) and kept.stopped_inside(inside[0])
        history = game.fit(
            x,
            y,
            epochs=end,
            initial_epoch=stage.epoch,
            callbacks=[Count(), *others, carry, *inside],
            **kwargs,
        )
        logs = [*stage.logs, [list(history.epoch), history.history]]
        stopped = stopped or game.stop_training or history.epoch[-1:] != [end - 1]
        stage = Stage(end, logs, carry.states, stopped)
        if end < epochs and not stopped:
            game = _smaller(game, least)
        if kept is not None:
            kept.save(game, stage)
    if kept is not None and delete_checkpoint:
        kept.remove()
    return game, stage.history(game)


class Stage:
    """Where a run is between two stretches."""

    def __init__(self, epoch, logs, states, stopped=False):
        self.epoch, self.logs, self.states = epoch, logs, states
        self.stopped = bool(stopped)

    def history(self, game):
        """One `keras.callbacks.History` of all stretches."""
        joined = keras.callbacks.History()
        joined.set_model(game)
        joined.on_train_begin()
        for epochs, values in self.logs:
            joined.epoch += epochs
            for name, column in values.items():
                joined.history.setdefault(name, []).extend(column)
        return joined


class Count(keras.callbacks.Callback):
    """Tells `fit`, and the callbacks behind this one, how many units there are."""

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["units"] = sum(int(mask.keep().sum()) for mask in self.model.masks())
            logs["units_trained"] = units(self.model.classifier)


class Carry(keras.callbacks.Callback):
    """Keeps the state of other callbacks, which Keras resets at the begin of every `fit`."""

    def __init__(self, others, states):
        super().__init__()
        self.others, self.states = [c for c in others if state_names(c)], states

    def on_train_begin(self, logs=None):
        if self.states is not None:
            for callback, state in zip(self.others, self.states, strict=True):
                for name, value in state.items():
                    setattr(callback, name, value)

    def on_train_end(self, logs=None):
        self.states = [{n: getattr(c, n, None) for n in state_names(c)} for c in self.others]


class Folder:
    """The state of a run between two stretches on disk, and that of `Resume` within one."""

    def __init__(self, directory, game, data, others, settings):
        self.within = Resume(os.path.join(directory, INSIDE))  # checks that it can be written
        self.path = self.within.path.parent.parent / FILE
        self.others = [c for c in others if state_names(c)]
        self.fingerprint = {
            **snapshot.fingerprint(game, data),
            "callbacks": [type(c).__name__ for c in self.others],
            "shrinking": settings,
        }

    def inside(self):
        self.within = Resume(self.within.path.parent)
        return self.within

    def stopped_inside(self, resume):
        """Whether a stretch was killed after a callback had ended it."""
        return resume.path.exists() and snapshot.read(resume.path)[0]["stopped"]

    def open(self, game, stage):
        """`(game, stage)` of the run in this folder, or those given, saved, if there is none."""
        if not self.path.exists():
            _revived(_described(game.classifier))  # before any work is lost
            self.save(game, stage)
            return game, stage
        meta, arrays = snapshot.read(self.path)
        difference = snapshot.difference(meta["fingerprint"], self.fingerprint)
        if difference:
            raise ValueError(
                "`directory` must be empty or hold an earlier part of this very run. "
                f"Received: {self.path.parent} with another run ({difference})"
            )
        with game.distribute_strategy.scope():
            game = around(game, _revived(meta["classifier"]))
        variables = self._variables(game)
        difference = snapshot.difference(
            {key: value["shape"] for key, value in meta["variables"].items()},
            {key: list(variable.shape) for key, variable in variables.items()},
        )
        if difference:
            raise ValueError(
                "`directory` must hold a run with the variables of this game. "
                f"Received: {self.path.parent} ({difference})"
            )
        for key, value in meta["variables"].items():
            variables[key].assign(snapshot.unpacked(value, arrays))
        states = meta["states"] and [
            {name: snapshot.unpacked(value, arrays) for name, value in state.items()}
            for state in meta["states"]
        ]
        return game, Stage(meta["epoch"], meta["logs"], states, meta["stopped"])

    def save(self, game, stage):
        arrays = {}
        variables = {
            key: snapshot.packed(variable, key, arrays)
            for key, variable in self._variables(game).items()
        }
        states = stage.states and [
            {
                name: snapshot.packed(value, f"callback {number} {name}", arrays)
                for name, value in state.items()
            }
            for number, state in enumerate(stage.states)
        ]
        logs = [[e, {n: list(map(float, c)) for n, c in v.items()}] for e, v in stage.logs]
        meta = {
            "format": snapshot.FORMAT,
            "fingerprint": self.fingerprint,
            "classifier": _described(game.classifier),
            "epoch": stage.epoch,
            "stopped": stage.stopped,
            "logs": logs,
            "states": states,
            "variables": variables,
        }
        snapshot.write(self.path, meta, arrays)

    def remove(self):
        with contextlib.suppress(OSError):
            self.within.path.parent.rmdir()
        with contextlib.suppress(OSError):
            self.path.unlink()
            self.path.parent.rmdir()  # stays if it holds anything that is not ours

    @staticmethod
    def _variables(game):
        """All that training changes but metrics, which are zero between two epochs."""
        found = snapshot.variables(game).items()
        return {key: variable for key, variable in found if not key.startswith("metric")}


def _smaller(game, least):
    """The game without its shut units, or itself where too few are shut to be worth a trace."""
    open_ = sum(int(mask.keep().sum()) for mask in game.masks())
    trained = units(game.classifier)
    if open_ == trained or 1 - open_ / trained < least:
        return game
    new, share = cut(game)
    # Shut units may have to stay: constants, partners in a sum.
    return new if share and share >= least else game


def _described(classifier):
    return keras.saving.serialize_keras_object(classifier)


def _revived(description):
    return keras.saving.deserialize_keras_object(description)


def _check_numbers(epochs, shrink_every, least):
    contract.whole("epochs", epochs, 1)
    contract.whole("shrink_every", shrink_every, 1)
    if not contract.is_number(least) or not 0 <= least < 1:
        raise ValueError(f"`least` must lie in [0, 1). Received: least={least!r}")


def _checked(callbacks):
    """The callbacks as a list, without those that hold what has the shape of a weight."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        raise TypeError("`callbacks` must be a list of callbacks. Received: a CallbackList")
    callbacks = keras.tree.flatten(callbacks) if callbacks else []
    for callback in callbacks:
        reason = ""
        if isinstance(callback, Resume):
            reason = "give `directory` instead"
        elif getattr(callback, "restore_best_weights", False):
            reason = "its best weights may have another shape: restore_best_weights=False"
        elif isinstance(
            callback, keras.callbacks.SwapEMAWeights | keras.callbacks.BackupAndRestore
        ):
            reason = "it holds weights of one shape"
        elif type(callback).__module__.startswith("tfrobust.pruning"):
            reason = "prune before or after, the masks of this game are its own"
        if reason:
            raise ValueError(
                f"`callbacks` must suit a net that gets smaller: {reason}. "
                f"Received: {type(callback).__name__}"
            )
    return callbacks
