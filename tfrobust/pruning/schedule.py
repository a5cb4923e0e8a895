"""When to prune and how much: schedules of our own, beside those of tfmot (`borrowed`).

    tr.pruning.Linear(0.9, updates=40, every=5)        # 2.25 % every five epochs, to 90 %
    tr.pruning.Geometric(1 / 3, updates=16, every=2)   # a third of what is left, 16 times
    tr.pruning.OneShot(0.5)                            # half of it before the first step

A schedule counts in train steps or in epochs, both from 0: update number j happens at
begin + j * every, *before* that step (or epoch) is trained. The count is the callback's own: it
goes on in a second `fit` and after a resume.
"""

import math

import keras
import numpy as np

from tfrobust.contract import is_number, whole
from tfrobust.pruning.select import amount

UNITS = ("epochs", "steps")


def fraction(name, value):
    """`value` as a float in [0, 1), or a ValueError."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"`{name}` must lie in [0, 1): the fraction of weights that is pruned, never all of "
            f"them. Received: {name}={value!r}"
        )
    return float(value)


class Schedule:
    """Base of our schedules: `updates` updates, at begin, begin + every, and so on.

    A schedule of your own defines `target(update)` and `get_config`, and `count` where a fraction
    does not say it exactly.

    Args:
        updates: Integer >= 1, number of updates.
        every: Integer >= 1, steps or epochs from one update to the next.
        begin: Integer >= 0, steps or epochs before the first update.
        unit: "epochs" or "steps".
    """

    def __init__(self, updates=1, every=1, begin=0, unit="epochs"):
        self.updates = whole("updates", updates, 1)
        self.every = whole("every", every, 1)
        self.begin = whole("begin", begin, 0)
        if unit not in UNITS:
            raise ValueError(f"`unit` must be one of {UNITS}. Received: unit={unit!r}")
        self.unit = unit

    def target(self, update):
        """The fraction in [0, 1) that is pruned after update number `update` (from 0)."""
        raise TypeError(f"{type(self).__name__} must define target()")

    def count(self, total, update, kernel=None):
        """How many of `total` entries are pruned after that update, an integer < total.

        `kernel` holds the entries (NumPy, pruned ones 0) where each kernel is ranked by itself.
        """
        return amount(self.target(update), total)

    @property
    def final(self):
        """The fraction in [0, 1) that is pruned in the end."""
        return self.target(self.updates - 1)

    @property
    def end(self):
        """The step or epoch before which the last update happens."""
        return self.begin + (self.updates - 1) * self.every

    def crossed(self, after, upto):
        """Number of the latest update in (after, upto], or None."""
        update = min((upto - self.begin) // self.every, self.updates - 1)
        return update if update >= 0 and self.begin + update * self.every > after else None

    def __call__(self, step):
        """(whether there is an update at `step`, fraction that is pruned from then on)."""
        update = min((step - self.begin) // self.every, self.updates - 1)
        due = update >= 0 and step == self.begin + update * self.every
        return due, self.target(update) if update >= 0 else 0.0

    def get_config(self):
        return {
            "updates": self.updates, "every": self.every, "begin": self.begin, "unit": self.unit
        }  # fmt: skip

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._shown())})"

    def _shown(self):
        return self.get_config().items()


@keras.saving.register_keras_serializable(package="tfrobust")
class Linear(Schedule):
    """Equal shares of the original count: (j + 1) / updates * final after update j.

    The iterative pruning of Sehwag et al. (2019), whose tables fit 40 updates of 2.5 % with five
    epochs of fine-tuning each; one run passes every ratio on the way.

    Args:
        final: Float in [0, 1), fraction that is pruned in the end.
        updates, every, begin, unit: See `Schedule`.

    Example:

    >>> schedule = Linear(0.9, updates=3, every=5)
    >>> [schedule(epoch) for epoch in (0, 4, 5, 10)]
    [(True, 0.3), (False, 0.3), (True, 0.6), (True, 0.9)]
    """

    def __init__(self, final, updates=40, every=5, begin=0, unit="epochs"):
        super().__init__(updates, every, begin, unit)
        self._final = fraction("final", final)

    def target(self, update):
        return self._final * (update + 1) / self.updates

    def get_config(self):
        return {"final": self._final, **super().get_config()}


@keras.saving.register_keras_serializable(package="tfrobust")
class Ladder(Schedule):
    """The fractions of a list, one after the other.

    Args:
        targets: Ascending floats in [0, 1), the fraction that is pruned after each update.
        every, begin, unit: See `Schedule`.

    Raises:
        ValueError: The list is empty, holds something else, or does not ascend.

    Example:

    >>> schedule = Ladder([0.5, 0.75, 0.9], every=4)
    >>> [schedule(epoch) for epoch in (0, 3, 4, 8)]
    [(True, 0.5), (False, 0.5), (True, 0.75), (True, 0.9)]
    """

    def __init__(self, targets, every=1, begin=0, unit="epochs"):
        many = np.iterable(targets)
        self.targets = [fraction("targets", target) for target in targets] if many else []
        if not self.targets or sorted(set(self.targets)) != self.targets:
            raise ValueError(f"`targets` must be an ascending list. Received: targets={targets!r}")
        super().__init__(len(self.targets), every, begin, unit)

    def target(self, update):
        return self.targets[update]

    def get_config(self):
        config = super().get_config()
        del config["updates"]
        return {"targets": self.targets, **config}


@keras.saving.register_keras_serializable(package="tfrobust")
class Geometric(Schedule):
    """The same share of what is left, again and again: floor(rho * nonzero) entries each time.

    The progressive rule of Guo et al. (2018): with rho = 1/3 and 16 updates, 784 entries become
    523, 349, ..., 3 and 2 (99.74 %; 1 - (1 - rho)^16, without the rounding, is 99.85 %).

    Args:
        rho: Float in (0, 1), fraction of the remaining entries that one update prunes.
        updates, every, begin, unit: See `Schedule`.

    Example:

    >>> schedule = Geometric(1 / 3)
    >>> [784 - schedule.count(784, update) for update in range(16)]
    [523, 349, 233, 156, 104, 70, 47, 32, 22, 15, 10, 7, 5, 4, 3, 2]
    """

    def __init__(self, rho=1 / 3, updates=16, every=1, begin=0, unit="epochs"):
        super().__init__(updates, every, begin, unit)
        self.rho = fraction("rho", rho)
        if self.rho == 0:
            raise ValueError(f"`rho` must lie in (0, 1). Received: rho={rho}")

    def target(self, update):
        return 1.0 - (1.0 - self.rho) ** (update + 1)

    def count(self, total, update, kernel=None):
        left = total
        for _ in range(update + 1):
            left -= math.floor(self.rho * left + 1e-9)
        return min(total - left, total - 1)

    def get_config(self):
        return {"rho": self.rho, **super().get_config()}


@keras.saving.register_keras_serializable(package="tfrobust")
class OneShot(Schedule):
    """Everything at once.

    Args:
        final: Float in [0, 1), fraction that is pruned.
        begin, unit: The step or epoch before which it happens.

    Example:

    >>> OneShot(0.5, begin=2)(2)
    (True, 0.5)
    """

    def __init__(self, final, begin=0, unit="epochs"):
        super().__init__(begin=begin, unit=unit)
        self._final = fraction("final", final)

    def target(self, update):
        return self._final

    def get_config(self):
        return {"final": self._final, "begin": self.begin, "unit": self.unit}


@keras.saving.register_keras_serializable(package="tfrobust")
class Threshold(Schedule):
    """Prunes |w| < quality * std(w) in each kernel, over the weights that are left.

    The rule of Han et al. (Learning both weights and connections for efficient neural networks,
    2015, https://arxiv.org/abs/1506.02626): the weights, not the schedule, say which fraction goes.
    They retrain with a tenth of the learning rate. For single weights, ranked layer by layer.

    Args:
        quality: Float > 0, standard deviations (of a layer's weights) below which weights go.
        updates, every, begin, unit: See `Schedule`.

    Example: the standard deviation of -2, -1, 1 and 3 is 1.92.

    >>> Threshold(1.0).count(4, 0, np.array([-2.0, -1.0, 1.0, 3.0]))
    2
    """

    final = None

    def __init__(self, quality, updates=1, every=1, begin=0, unit="epochs"):
        super().__init__(updates, every, begin, unit)
        if not is_number(quality) or quality <= 0:
            raise ValueError(f"`quality` must be > 0. Received: quality={quality!r}")
        self.quality = float(quality)

    def target(self, update):
        return None

    def count(self, total, update, kernel=None):
        left = kernel[kernel != 0].astype(np.float64)
        if not left.size:
            return 0
        small = int((np.abs(left) < self.quality * left.std()).sum())
        return min(total - left.size + small, total - 1)

    def get_config(self):
        return {"quality": self.quality, **super().get_config()}


@keras.saving.register_keras_serializable(package="tfrobust")
class Keep(Schedule):
    """Prunes nothing: what is exactly zero when training begins stays zero.

    `tr.pruning.freeze` as a callback: for fine-tuning a pruned model after `load_model`, and for a
    plain model around it whose optimizer averages weights (`use_ema`).

    >>> Keep().final
    0.0
    """

    def __init__(self):
        super().__init__()

    def target(self, update):
        return 0.0

    def get_config(self):
        return {}
