"""Everything that has to do with tensorflow-model-optimization (tfmot), in one file.

Its schedules (`PolynomialDecay`, `ConstantSparsity`, subclasses of its `PruningSchedule`) drive our
callback. Its wrappers and callbacks do not work with Keras 3: `prune_low_magnitude` refuses the
model, and `UpdatePruningStep` is accepted by `fit` and does nothing. Importing tfmot sets
TF_USE_LEGACY_KERAS for the whole process; here it is imported late, and the variable put back.
"""

import operator
import os

import keras
import numpy as np
import tensorflow as tf

from tfrobust.pruning.schedule import Schedule, fraction
from tfrobust.pruning.select import amount

_ADVICE = "use tr.pruning.MagnitudePruning(schedule) in `callbacks`"
_WINDOW = 1024  # steps asked at once: a single question costs half a millisecond


def tfmot():
    """The module, imported after Keras and without a trace in the environment.

    >>> tfmot().sparsity.keras.ConstantSparsity(0.5, begin_step=0).target_sparsity
    0.5
    """
    # Who asks TensorFlow for Keras first, decides which one the whole process gets: not tfmot.
    operator.attrgetter("keras.Model")(tf)
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        import tensorflow_model_optimization
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tensorflow_model_optimization


def polynomial(initial, final, begin, end, power=3, every=100):
    """tfmot's `PolynomialDecay`: s(t) = final + (initial - final) (1 - (t - begin)/(end - begin))^power.

    Args:
        initial, final: Floats in [0, 1), fractions at `begin` and `end`.
        begin, end: Integers, train steps; end - begin is a multiple of `every`.
        power: Float > 0.
        every: Integer >= 1, train steps from one update to the next.

    >>> due, sparsity = polynomial(0.0, 0.9, 0, 100, every=10)(50)
    >>> bool(due), round(float(sparsity), 4)
    (True, 0.7875)
    """  # noqa: E501
    initial, final = fraction("initial", initial), fraction("final", final)
    keras_part = tfmot().sparsity.keras
    return keras_part.PolynomialDecay(initial, final, begin, end, power=power, frequency=every)


def constant(final, begin=0, end=-1, every=100):
    """tfmot's `ConstantSparsity`: the fraction `final` from train step `begin` on.

    >>> float(constant(0.5)(0)[1])
    0.5
    """
    final = fraction("final", final)
    return tfmot().sparsity.keras.ConstantSparsity(final, begin, end_step=end, frequency=every)


class Borrowed:
    """A tfmot schedule behind the interface of `Schedule`; an update is named by its step.

    Args:
        schedule: Callable of a step (scalar tensor) that returns (should_prune, sparsity).
    """

    unit = "steps"

    def __init__(self, schedule):
        self.schedule = schedule
        self._windows, self._together = {}, None
        name = type(schedule).__name__
        begin, end = getattr(schedule, "begin_step", None), getattr(schedule, "end_step", None)
        every = getattr(schedule, "frequency", None)
        final = getattr(schedule, "final_sparsity", None)
        numbers = all(isinstance(v, int | np.integer) for v in (begin, end, every))
        self.final, self.end = final, int(end) if numbers else None
        if final is None:
            self.final, self.end = getattr(schedule, "target_sparsity", None), begin
        if final is not None and numbers:
            if end == begin:
                raise ValueError(
                    f"`schedule` must end after it begins: the sparsity of {name} is 0/0 where "
                    f"they are equal. Received: begin_step={begin}, end_step={end}"
                )
            if (end - begin) % every:
                last = begin + (end - begin) // every * every
                raise ValueError(
                    f"`schedule` must have end_step - begin_step a multiple of frequency: {name} "
                    f"updates last at step {last} and never reaches {final:g} (take "
                    f"end_step={max(last, begin + every)}). Received: begin_step={begin}, "
                    f"end_step={end}, frequency={every}"
                )
            if final < getattr(schedule, "initial_sparsity", 0):
                raise ValueError(
                    "`schedule` must not lead to less sparsity: masks never give a weight back. "
                    f"Received: initial_sparsity={schedule.initial_sparsity}, "
                    f"final_sparsity={final}"
                )
        if self.final is not None:
            self.final = float(self.final)
        self.crossed(-1, 0)  # a schedule that cannot be asked is refused here

    def crossed(self, after, upto):
        """The step in (after, upto] with the largest target among updates, or None."""
        best, most = None, -1.0
        for number in range(max(after + 1, 0) // _WINDOW, upto // _WINDOW + 1):
            low = number * _WINDOW
            due, target = self._window(number)
            part = slice(max(after + 1 - low, 0), upto + 1 - low)
            steps = np.flatnonzero(due[part])
            if len(steps):
                values = target[part][steps]
                last = len(values) - 1 - int(np.argmax(values[::-1]))
                if values[last] >= most:
                    best, most = low + part.start + int(steps[last]), values[last]
        return best

    def target(self, update):
        due, target = self._window(update // _WINDOW)
        # 0.3 as float32 is a little more than 0.3: the shortest decimal is what the user wrote.
        return float(str(np.float32(target[update % _WINDOW])))

    def count(self, total, update, kernel=None):
        return amount(self.target(update), total)

    def _window(self, number):
        if number not in self._windows:
            steps = np.arange(number * _WINDOW, (number + 1) * _WINDOW)
            due, target = self._ask(steps)
            wrong = due & ~((target >= 0) & (target < 1))
            if wrong.any():
                step = int(steps[wrong][0])
                raise ValueError(
                    "`schedule` must give sparsities in [0, 1). "
                    f"Received: {target[wrong][0]} at step {step} from {self!r}"
                )
            self._windows = {number: (due, target)}
        return self._windows[number]

    def _ask(self, steps):
        """(due, target) for each step: in one call, where the schedule takes many steps."""
        ends = [self._ask_one(steps[0]), self._ask_one(steps[-1])]
        try:
            due, target = (np.asarray(v) for v in self.schedule(tf.constant(steps, tf.int64)))
            due = np.broadcast_to(due, steps.shape).astype(bool)
            target = np.broadcast_to(target, steps.shape).astype(np.float32)
            together = all(
                bool(due[i]) == end[0] and np.isclose(target[i], end[1], equal_nan=True)
                for i, end in zip((0, -1), ends, strict=True)
            )
        except Exception:  # written for one step: `if step > 100`, tf.cond and the like
            together = False
        if together:
            return due, target
        due, target = zip(*map(self._ask_one, steps), strict=True)
        return np.array(due), np.array(target, np.float32)

    def _ask_one(self, step):
        try:
            due, target = self.schedule(tf.constant(int(step), tf.int64))
            return bool(due), float(target)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise TypeError(
                "`schedule` must return (should_prune, sparsity) for a step. "
                f"Received: {self!r}, which failed at step {int(step)} ({reason})"
            ) from error

    def get_config(self):
        """Numbers that tell one schedule from another."""
        config = getattr(self.schedule, "get_config", dict)()
        config = config.get("config", config)
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in config.items()}

    def __repr__(self):
        return type(self.schedule).__name__


def adapted(schedule):
    """A schedule of ours as it is, one of tfmot behind our interface; refuses everything else."""
    refuse(schedule, "schedule")
    if isinstance(schedule, Schedule):
        return schedule
    if callable(schedule) and not isinstance(schedule, type | keras.layers.Layer):
        return Borrowed(schedule)
    raise TypeError(
        "`schedule` must be a schedule of tr.pruning (OneShot(0.9) prunes at once) or of tfmot. "
        f"Received: {schedule!r}"
    )


def refuse(value, name):
    """Refuses what tfmot made for its own Keras: callbacks, wrappers, wrapped models.

    Raises:
        TypeError: One line that names `MagnitudePruning`.
    """
    kinds = [kind for kind in type(value).__mro__ if kind.__module__.startswith(_FOREIGN)]
    callbacks = [k.__name__ for k in kinds if k.__name__ in _CALLBACKS]
    if callbacks:
        raise TypeError(
            f"`{name}` must not hold tfmot's {callbacks[0]}, which does nothing to a Keras 3 "
            f"model: {_ADVICE}. Received: {type(value).__name__}"
        )
    if any(k.__name__ == "PruneLowMagnitude" for k in kinds) or _wrapped(value):
        raise TypeError(
            f"`{name}` must be a plain Keras 3 model, not wrapped with prune_low_magnitude: "
            f"{_ADVICE}. Received: {type(value).__name__}"
        )
    if any(k.__name__ == "Model" for k in kinds):
        raise TypeError(
            f"`{name}` must be a Keras 3 model, not one of tf_keras: build it with `import keras`. "
            f"Received: {type(value).__name__} of {type(value).__module__}"
        )


_FOREIGN = ("tensorflow_model_optimization", "tf_keras")
_CALLBACKS = ("UpdatePruningStep", "PruningSummaries")


def _wrapped(model):
    layers = getattr(model, "layers", None)
    if not isinstance(layers, list | tuple):
        return False
    return any(type(layer).__name__ == "PruneLowMagnitude" for layer in layers)
