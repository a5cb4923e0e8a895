"""The callback: prunes a classifier while plain `fit` trains it, alone or inside a game."""

import inspect
import json
import warnings

import keras

from tfrobust.contract import built
from tfrobust.layers.transform import WeightTransform
from tfrobust.pruning.borrowed import adapted, refuse
from tfrobust.pruning.constraint import optimizers_of
from tfrobust.pruning.figures import classifier_of
from tfrobust.pruning.places import kernels
from tfrobust.pruning.pruner import Pruner
from tfrobust.pruning.schedule import Keep, Threshold
from tfrobust.pruning.settings import Settings


class MagnitudePruning(keras.callbacks.Callback):
    """Prunes the smallest weights on a schedule, and keeps them exactly zero.

    At an update of the schedule, p = min(ceil(t n - 1e-9), n - 1) of n entries go: the smallest by
    (|w|, index), those that are pruned already first. So at least the fraction t is pruned, ties
    are broken the same way everywhere, and no entry ever returns. Each kernel gets a constraint
    (behind its own, if it has one) that holds w[mask == 0] == 0 after every step of any optimizer;
    it stays when training ends, so later training keeps the zeros too (`tr.pruning.release` takes
    it off; `tr.pruning.freeze` brings it back after loading). Biases and normalization are never
    pruned by themselves.

    With `structured="filters"` whole filters of convolutions and neurons of Dense layers go, by the
    sum of |w|, with their bias and the gamma and beta of the BatchNormalization behind them:
    `tr.shrink.compact` then cuts them out exactly. Layers that make the logits keep their filters.
    So do those whose channels are summed with others (residual streams), unless
    `residual="shared"`: then the filters that are summed in one channel go together, from all the
    layers of the stream at once, and what is summed with anything that stays, stays. The fraction
    is that of zeroed weights in the layers that are pruned.

    In plain `fit` the gradients are not masked: what Keras clips by (`clipnorm`, `global_clipnorm`)
    counts pruned entries too, and momenta grow there between updates, each of which clears them.
    Inside a game of `tr.training` it prunes the classifier, and the gradients are masked. It counts
    train steps (epochs) from 0, and an update at step s happens before that step; with
    `steps_per_execution` before the next execution. `tr.training.Resume` keeps its masks and
    counters. `fit` reports `sparsity`. Put it before callbacks that save or load weights; do not
    let `EarlyStopping` restore weights from before the last update.

    Args:
        schedule: Of tfmot (`PolynomialDecay`, `ConstantSparsity`, a subclass of its
            `PruningSchedule`), or `tr.pruning.Linear`, `Geometric`, `OneShot`, `Threshold`.
        structured: None (single weights), "filters", or (m, n): at least m zeros among each n
            consecutive input channels, (2, 4) for one; a last, shorter run is filled up with
            zeros. The schedule's fraction is of all weights: 0.5 for (2, 4), which is also the
            most that it reaches. Layers with too few input channels for a run stay.
        scope: "layer" (the fraction holds in each layer) or "global" (one ranking). Default:
            "global" for filters, else "layer".
        exclude: Layers that are not pruned: names, "first", "last", a predicate of a layer, or a
            list of these.
        normalise: "none" or "fan_in": whether the score of a filter is divided by its number of
            weights (for filters; "none" favours large fan-in).
        min_filters: Integer >= 1, filters that every layer keeps; a warning tells when that binds.
        rule: None, or a callable `(kernel, layer)` that returns scores >= 0 of the kernel's shape
            (NumPy); the lowest go. Default: |w|.
        residual: "inside" (only filters inside of residual blocks go) or "shared" (those of the
            streams as well, whole channels at a time: a channel is scored by the sum over its
            filters in all layers; for "layer" the fraction is that of the stream's channels). For
            filters only; `report()` lists the layers that go together in `groups`.

    Attributes:
        watchers: List of callables that get the model of `fit` right before every update (see
            `tr.diagnostics.PruningWatch`).

    Raises:
        TypeError, ValueError: An argument that cannot work, among them a tfmot schedule that never
            reaches its final sparsity, and tfmot's own callbacks in the same list; before the first
            step.

    Reference: Sehwag et al., Towards compact and robust deep neural networks (2019),
    https://arxiv.org/abs/1906.06110; Zhu and Gupta, To prune, or not to prune (2017),
    https://arxiv.org/abs/1710.01878 (tfmot's polynomial). tfmot counts its first step as 1 and
    keeps round(n (1 - t)) entries.

    Example:

    >>> import numpy as np
    >>> from tfrobust.pruning import OneShot
    >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10, name="logits")])
    >>> net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> prune = MagnitudePruning(OneShot(0.75))
    >>> x, y = np.ones((4, 8), "float32"), np.arange(4)
    >>> history = net.fit(x, y, verbose=0, callbacks=[prune])
    >>> history.history["sparsity"]
    [0.75]
    >>> print(prune.report())
    75.00 % of 80 weights pruned (logits 75.0 %)
    """

    resumes = ("state",)  # for tr.training.Resume
    async_safe = True  # `on_train_batch_end` only counts

    def __init__(
        self,
        schedule,
        structured=None,
        scope=None,
        exclude=(),
        normalise="none",
        min_filters=1,
        rule=None,
        residual="inside",
    ):
        super().__init__()
        self.settings = Settings(structured, scope, exclude, normalise, min_filters, rule, residual)
        self.schedule = adapted(schedule)
        self._keeps = isinstance(schedule, Keep)
        if self.settings.run and self.schedule.final is not None:
            most, size = self.settings.run
            if self.schedule.final < most / size - 1e-6 and not self._keeps:
                raise ValueError(
                    f"`schedule` must end at {most} / {size} or above for m:n sparsity. "
                    f"Received: {self.schedule.final:g}"
                )
            self.settings.within_reach(self.schedule.final)
        single = self.settings.structured is None and self.settings.scope == "layer"
        if isinstance(schedule, Threshold) and not single:
            raise ValueError(
                "`schedule` must give a fraction for structured or global pruning: a Threshold is "
                f"for single weights of each layer. Received: structured={structured!r}, "
                f"scope={self.settings.scope!r}"
            )
        self.watchers, self._pruner = [], None
        self._begin()

    def _begin(self):
        self._steps, self._done, self._epochs = 0, 0, 0  # steps before this epoch, and in it
        self._asked, self._target = -1, 0.0

    # --- what Keras calls -----------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._meet(neighbours(inspect.currentframe()))
        classifier = built(classifier_of(self.model))
        alone(self, classifier)
        if self._pruner is None or self._pruner.model is not classifier:
            self._pruner = Pruner(classifier, None if self._keeps else self.settings)
            self._begin()
        self._steps, self._done = self._steps + self._done, 0  # of a fit that was interrupted
        self._pruner.attach(self.model, self.model.distribute_strategy)
        if self._keeps:
            self._pruner.keep_zeros()
        self._project(slots=True)

    def on_epoch_begin(self, epoch, logs=None):
        if self.schedule.unit == "epochs":
            self._ask(self._epochs)

    def on_train_batch_begin(self, batch, logs=None):
        if self.schedule.unit == "steps":
            self._ask(self._steps + batch)

    def on_train_batch_end(self, batch, logs=None):
        self._done = max(self._done, batch + 1)

    def on_test_begin(self, logs=None):
        if self._pruner is not None and self._averages():
            self._project()  # averages may be in the model's place now

    def on_epoch_end(self, epoch, logs=None):
        steps = self.params.get("steps")
        self._steps += self._done if steps is None else min(self._done, steps)
        self._done, self._epochs = 0, self._epochs + 1
        end = self.schedule.end
        if self.schedule.unit == "steps" and end is not None and self._asked < end <= self._steps:
            self._ask(self._steps)  # the schedule ends with training, or within its last execution
        if self._averages():
            self._project()  # steps move averages where the constraint does not reach
        if logs is not None:
            logs["sparsity"] = self._pruner.sparsity

    def on_train_end(self, logs=None):
        self._project()
        final = self.schedule.final
        if final is not None and self._target < final - 1e-6:
            count = self._steps if self.schedule.unit == "steps" else self._epochs
            warnings.warn(
                f"`schedule` did not reach its final sparsity {final:g}: training ended after "
                f"{count} {self.schedule.unit} at {self._target:g}, its last update comes before "
                f"{self.schedule.unit[:-1]} {self.schedule.end}. Train longer, or end it "
                "sooner.",
                stacklevel=2,
            )

    def _meet(self, callbacks):
        """Looks at the other callbacks of this `fit`."""
        per_epoch = 1 if self.schedule.unit == "epochs" else self.params.get("steps") or 0
        end = self.schedule.end or 0
        for callback in callbacks:
            refuse(callback, "callbacks")
            early = isinstance(callback, keras.callbacks.EarlyStopping)
            if early and callback.restore_best_weights:
                if callback.start_from_epoch * per_epoch < end:
                    warnings.warn(
                        "`callbacks` has EarlyStopping that may restore weights from before the "
                        f"last update, which are less sparse. Give it a start_from_epoch behind "
                        f"{self.schedule.unit[:-1]} {end}.",
                        stacklevel=3,
                    )
            if type(callback) is keras.callbacks.BackupAndRestore:
                warnings.warn(
                    "`callbacks` has keras.callbacks.BackupAndRestore, which knows neither masks "
                    "nor counters: after a restart pruning begins anew. Take tr.training.Resume.",
                    stacklevel=3,
                )

    # --- pruning --------------------------------------------------------------------------------

    def _ask(self, now):
        """Carries out the latest update up to `now` that was not carried out before."""
        if now <= self._asked:
            return
        update = self.schedule.crossed(self._asked, now)
        self._asked = now
        if update is None:
            return
        target = self.schedule.target(update)
        if target is not None and target <= self._target:
            return
        for watcher in self.watchers:
            watcher(self.model)
        self._pruner.update(lambda n, kernel=None: self.schedule.count(n, update, kernel))
        self._target = self._pruner.sparsity if target is None else target
        self._project(slots=True)

    def _project(self, slots=False):
        self._pruner.project(optimizers_of(self.model), averages_only=not slots)

    def _averages(self):
        return any(optimizer.use_ema for optimizer in optimizers_of(self.model))

    def report(self):
        """`tr.pruning.Report`: the fraction of each layer and of all that is pruned and zero now.

        Warns where another callback brought pruned weights back, as EarlyStopping does when it
        restores weights from before the last update.

        Raises:
            ValueError: `fit` has not begun.
        """
        if self._pruner is None:
            raise ValueError("Nothing is pruned yet: pass this callback to `fit` first.")
        return self._pruner.report()

    # --- resume ---------------------------------------------------------------------------------

    @property
    def state(self):
        """All that decides what this callback does next, for `tr.training.Resume`."""
        if self._pruner is None:
            return None
        numbers = [self._steps, self._done, self._epochs, self._asked, self._target]
        return [self._identity(), numbers, self._pruner.masks]

    @state.setter
    def state(self, value):
        if value is None or self._pruner is None:
            return
        identity, numbers, masks = value
        if identity != self._identity():
            raise ValueError(
                "`schedule` and its options must be those of the run that goes on. "
                f"Received: {self._identity()}, was {identity}"
            )
        self._steps, self._done, self._epochs, self._asked = map(int, numbers[:4])
        self._target = float(numbers[4])
        self._pruner.masks = masks

    def _identity(self):
        schedule = {"schedule": repr(self.schedule), **self.schedule.get_config()}
        return json.dumps({**schedule, **self.settings.to_dict()}, default=str)


def alone(callback, classifier):
    """Refuses a game whose transform writes the kernels: both would say what is zero."""
    transform = getattr(callback.model, "transform", None)
    written = transform._kept.places if isinstance(transform, WeightTransform) else ()
    if any(id(place.kernel) in written for place in kernels(classifier)[0]):
        raise ValueError(
            f"`callbacks` must not hold {type(callback).__name__} where `transform` makes the "
            "kernels: fit with one, call tr.pruning.freeze(net), then fit with the other. "
            f"Received: transform={type(transform).__name__}"
        )


def neighbours(frame):
    """The callbacks of the list that called the one whose `inspect.currentframe()` this is.

    Keras gives a callback no other way to see them.
    """
    caller = frame.f_back.f_locals.get("self") if frame.f_back else None
    return list(caller.callbacks) if isinstance(caller, keras.callbacks.CallbackList) else []
