"""A watch over a pruning schedule: over-pruning shows early in robustness, late in accuracy."""

import inspect
import json
import math
import warnings

import keras
import numpy as np

from tfrobust import contract
from tfrobust.attacks import MinimumNorm, correct
from tfrobust.attacks.borrowed import Borrowed, plain
from tfrobust.diagnostics import checks
from tfrobust.diagnostics.measures import Measure, r_2
from tfrobust.pruning import MagnitudePruning, report
from tfrobust.pruning.figures import classifier_of
from tfrobust.pruning.magnitude import neighbours


class PruningWatch(keras.callbacks.Callback):
    """Measures accuracy and robustness before every update of a pruning schedule and at the end.

    Each row belongs to a sparsity after all the training it got: it is taken right before the next
    update, and the last one when `fit` ends. Where robustness has fallen by more than `drop` of
    the reference while benign accuracy has fallen by less than `benign_drop` of its own, a warning
    tells that the net is over-pruned though its accuracy looks well (Guo et al., 2018, section
    4.3). It also tells of a net that is dead: robustness has fallen, and accuracy is no better than
    that of the best constant answer.

    The reference is the first row: the net right before the first update, in the state that this
    `fit` brought it to. That is the unpruned net, if none of it was pruned earlier and if it is
    trained when pruning begins; else give the values of the net that you compare with. With few
    images 5 % is noise: compare `drop` with `error` over `robust`, the standard error.

    Pass it to `fit` beside the pruning callback. `tr.training.Resume` keeps the rows. They go on in
    the next `fit` of the same model; with another model they start anew.

    Args:
        prune: `tr.pruning.MagnitudePruning` of the same `fit`.
        x, y: Held-out images `(n, ...)` in [0, 1] and integer labels `(n,)`, not test images if
            they decide which sparsity is kept.
        attack: `tr.attacks.Attack`: robustness is era, the share of images that are right before
            and after it. An attack for the smallest change with an L2 threat (`DeepFool`): it is
            `tr.diagnostics.r_2`.
        drop: Float in (0, 1), relative loss of robustness that is warned of.
        benign_drop: Float in (0, 1), relative loss of accuracy that speaks for itself.
        reference: None, or (benign accuracy, robustness) of the net before pruning: accuracy and
            era in [0, 1], r_2 >= 0.

    Attributes:
        rows: List of dicts, in order: `sparsity` in [0, 1], `benign`, `robust`, its standard
            `error`, `over` (whether it is over-pruned).
        name: "era" or "r_2".

    Raises:
        TypeError, ValueError: arguments outside of these; when `fit` begins, images, labels or an
            attack that do not fit the model, `prune` missing among its callbacks, and a
            `tr.training.Resume` that holds the rows of another watch.

    Example:

    >>> from tfrobust import attacks, models, pruning, threats
    >>> net = models.digits_net()
    >>> net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 1)), np.arange(16) % 10
    >>> prune = pruning.MagnitudePruning(pruning.Linear(0.5, updates=2, every=1))
    >>> watch = PruningWatch(prune, x, y, attacks.FGSM(threats.Linf(0.001)), drop=0.99)
    >>> history = net.fit(x, y, epochs=2, verbose=0, callbacks=[prune, watch])
    >>> [round(row["sparsity"], 2) for row in watch.rows]
    [0.0, 0.25, 0.5]
    """

    resumes = ("state",)  # for tr.training.Resume

    def __init__(self, prune, x, y, attack, drop=0.05, benign_drop=0.01, reference=None):
        super().__init__()
        if not isinstance(prune, MagnitudePruning):
            raise TypeError(
                "`prune` must be the tr.pruning.MagnitudePruning of the same fit. "
                f"Received: {prune!r}"
            )
        smallest = isinstance(checks.attack(attack), MinimumNorm)
        if smallest and attack.threat.norm != "l2":
            raise ValueError(
                "`attack` must have a tr.threats.L2 threat when it looks for the smallest change. "
                f"Received: {attack!r}"
            )
        for name, value in (("drop", drop), ("benign_drop", benign_drop)):
            if not 0 < checks.number(name, value, 1.0) < 1:
                raise ValueError(f"`{name}` must lie in (0, 1). Received: {name}={value!r}")
        if reference is not None:
            if np.shape(reference) != (2,):
                raise ValueError(
                    f"`reference` must be (benign accuracy, robustness). Received: {reference!r}"
                )
            tops = 1.0, math.inf if smallest else 1.0
            reference = [checks.number("reference", *v) for v in zip(reference, tops, strict=True)]
        self.x = contract.images(x)
        self.y = contract.labels(y, count=len(self.x))
        self.attack, self.name = attack, "r_2" if smallest else "era"
        self.drop, self.benign_drop = float(drop), float(benign_drop)
        self.reference = None if reference is None else tuple(reference)
        self.rows, self._net, self._prune = [], None, prune
        prune.watchers.append(self._measure)

    def on_train_begin(self, logs=None):
        callbacks, net = neighbours(inspect.currentframe()), classifier_of(self.model)
        if callbacks and self._prune not in callbacks:
            raise ValueError(
                "`callbacks` must hold the MagnitudePruning that PruningWatch was given. "
                f"Received: {[type(callback).__name__ for callback in callbacks]}"
            )
        self.attack.checked(net, self.x, self.y)
        if self._net is not None and self._net is not net:
            self.rows = []
        self._net = net

    def on_train_end(self, logs=None):
        self._measure(self.model)

    def __repr__(self):
        last = f"last: {json.dumps(self.rows[-1])}" if self.rows else "no rows yet"
        return f"PruningWatch({self.name} under {self.attack!r}, {len(self.rows)} rows, {last})"

    @property
    def state(self):
        """The rows and what they belong to as text, for `tr.training.Resume`."""
        return json.dumps({"of": self._identity(), "rows": self.rows})

    @state.setter
    def state(self, text):
        kept, own = json.loads(text), self._identity()
        differ = [name for name, value in own.items() if kept["of"].get(name) != value]
        if differ:
            raise ValueError(
                "`PruningWatch` must be that of the run that goes on. Received: "
                + ", ".join(f"{name}={own[name]}, was {kept['of'].get(name)}" for name in differ)
            )
        self.rows = kept["rows"]

    def _identity(self):
        borrowed = isinstance(self.attack, Borrowed)  # whose attributes are another library's
        settings = self.attack.get_config() if borrowed else self.attack.__getstate__()
        attack = [type(self.attack).__name__, plain(settings)]
        reference = self.reference and list(self.reference)
        drops = {"drop": self.drop, "benign_drop": self.benign_drop}
        own = {"name": self.name, "attack": attack, "reference": reference, **drops}
        return {**own, "images": len(self.x)}

    def _measure(self, model):
        net = classifier_of(model)
        benign, robust = self._figures(net)
        row = {
            "sparsity": report(net).sparsity,
            "benign": benign,
            "robust": robust.value,
            "error": robust.error,
            "over": False,
        }
        before = self.reference or (
            (self.rows[0]["benign"], self.rows[0]["robust"])
            if self.rows
            else (benign, robust.value)
        )
        lost = [_lost(was, now) for was, now in zip(before, (benign, robust.value), strict=True)]
        dead = row["sparsity"] > 0 and benign <= np.bincount(self.y).max() / len(self.y)
        row["over"] = bool(lost[1] > self.drop and (lost[0] < self.benign_drop or dead))
        self.rows.append(row)
        if row["over"]:
            warnings.warn(
                f"Over-pruned at {100 * row['sparsity']:.1f} % zeros: {self.name} fell by "
                f"{100 * lost[1]:.1f} % ({self._told(before[1])} to {self._told(robust.value)}"
                f"{' %' if self.name == 'era' else ''}) where benign accuracy "
                f"{'rose' if lost[0] < 0 else 'fell'} by {100 * abs(lost[0]):.2f} % "
                f"({100 * before[0]:.2f} to {100 * benign:.2f} %). "
                "Prune less, or train longer between updates.",
                stacklevel=2,
            )

    def _told(self, robust):
        return f"{100 * robust:.1f}" if self.name == "era" else f"{robust:.4g}"

    def _figures(self, net):
        """(benign accuracy, `Measure` of the robustness)."""
        if self.name == "r_2":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`attack` could not fool")
                robust = r_2(net, self.x, self.y, self.attack)
            return robust.right / robust.n, robust
        right = correct(net, self.x, self.y)
        x_adv = self.attack.result(net, self.x, self.y).x_adv
        after = right & correct(net, x_adv, self.y, self.attack.eot)
        robust = Measure("era", repr(self.attack), after.astype(np.float64), int(right.sum()))
        return float(right.mean()), robust


def _lost(before, now):
    """Relative loss, 0 where there was nothing to lose."""
    return (before - now) / before if before > 0 else 0.0
