"""Several attacks as one, and AutoAttack's ensembles of them (Croce and Hein, 2020).

    scores = tr.evaluate.robustness(model, data, [tr.attacks.AutoAttack(tr.threats.Linf(0.3))])

An image that one member breaks is not shown to the members after it.
"""

import keras
import tensorflow as tf

from tfrobust.attacks.attack import Attack, whole
from tfrobust.attacks.autopgd import APGD
from tfrobust.attacks.call import better, logits_of
from tfrobust.attacks.fab import FAB
from tfrobust.attacks.square import Square
from tfrobust.losses import margin

VERSIONS = ("standard", "plus", "rand")


@keras.saving.register_keras_serializable(package="tfrobust")
class WorstCase(Attack):
    """The strongest of several attacks for each image.

    Its runs are the runs of its members, one after the other. A member that does not fit the
    model's number of classes is left out; `skipped(classes)` says why.

    Args:
        attacks: List of `Attack` objects of one threat, in the order in which they are tried.
        on_failure: see `Attack`; default "clean".

    Example:

    >>> from tfrobust import threats
    >>> linf = threats.Linf(0.1)
    >>> both = WorstCase([APGD(linf), APGD(linf, loss="dlr_targeted", targets=9)])
    >>> both.runs, len(both.runs_of(classes=4))
    (10, 4)
    """

    def __init__(self, attacks, on_failure="clean"):
        attacks = list(attacks)
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(
                    "`attacks` must be a list of tr.attacks.Attack objects. "
                    f"Received: {type(attack).__name__}"
                )
        if not attacks or any(attack.threat != attacks[0].threat for attack in attacks):
            threats = sorted({repr(attack.threat) for attack in attacks})
            raise ValueError(
                "`attacks` must hold attacks of one threat. "
                f"Received: {', '.join(threats) or 'an empty list'}"
            )
        eot = max(attack.eot for attack in attacks)
        super().__init__(attacks[0].threat, eot=eot, on_failure=on_failure)
        self.attacks = attacks

    @property
    def members(self):
        """List of (attack, its runs as numbers of ours)."""
        found, first = [], 0
        for attack in self.attacks:
            found.append((attack, range(first, first + attack.runs)))
            first += attack.runs
        return found

    @property
    def runs(self):
        return sum(attack.runs for attack in self.attacks)

    @property
    def steps(self):
        """Steps of one run on average, by which a display tells how far it is."""
        return sum(a.runs * max(a.iterations, 1) for a in self.attacks) / self.runs

    @property
    def traces(self):
        return sum(attack.traces for attack in self.attacks)

    def runs_of(self, classes, goal=False):
        found, left_out = [], self.skipped(classes)
        for attack, numbers in self.members:
            if attack.name not in left_out:
                found += [numbers[run] for run in attack.runs_of(classes, goal)]
        return found

    def skipped(self, classes):
        """{name: reason} of the members that a model with so many classes cannot meet."""
        found = {}
        for attack in self.attacks:
            try:
                attack.check_classes(classes)
            except ValueError as error:
                found[attack.name] = str(error)
        return found

    def check_classes(self, classes):
        reasons = self.skipped(classes)
        if len(reasons) == len(self.attacks):
            raise ValueError(next(iter(reasons.values())))

    def attempt(self, model, x, y, index, epsilon, run, goal, eager_stop):
        attack, numbers = next((a, n) for a, n in self.members if run in n)
        own = numbers.index(run)
        return attack.attempt(model, x, y, index, epsilon, own, goal, eager_stop)

    def within(self, model, x, y, seed, index=None, epsilon=None, goal=None):
        x = tf.cast(x, tf.float32)
        logits = logits_of(model, x)
        state = {"best": x, "loss": margin(logits, y, goal), "fooled": margin(logits, y) > 0}
        for attack in self.attacks:
            x_adv = attack.within(model, x, y, seed, index, epsilon, goal)
            logits = logits_of(model, x_adv)
            fooled = margin(logits, y) > 0 if goal is None else margin(logits, goal) < 0
            state = better(state, x_adv, margin(logits, y, goal), fooled, freeze=False)
        return state["best"]

    def get_config(self):
        members = [keras.saving.serialize_keras_object(attack) for attack in self.attacks]
        return {"attacks": members, "on_failure": self.on_failure}

    @classmethod
    def from_config(cls, config):
        members = [keras.saving.deserialize_keras_object(a) for a in config["attacks"]]
        return cls(**{**config, "attacks": members})


@keras.saving.register_keras_serializable(package="tfrobust")
class AutoAttack(WorstCase):
    """AutoAttack with the members, order and budgets of its authors (Croce and Hein, 2020).

    | version | members in order |
    |---|---|
    | standard | APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square (5,000 queries) |
    | plus | APGD-CE and APGD-DLR (5 restarts), FAB (5 restarts), Square, APGD-T, FAB-T |
    | rand | APGD-CE and APGD-DLR, each gradient a mean of 20 (for models that are random) |

    APGD makes 100 steps, FAB 100; under L1 APGD makes 5 restarts with growing radii and APGD-T
    takes 5 targets. APGD-T needs four classes and APGD-DLR three; with fewer they are left out and
    APGD on the margin takes their place. Random numbers follow from the seed and the example, not
    from the clock and the batch as in the authors' release.

    Args:
        threat: `tr.threats.Linf`, `L2` or `L1`.
        version: "standard", "plus" or "rand".
        seed: Integer.
        on_failure: see `Attack`; default "clean".

    Example:

    >>> from tfrobust import threats
    >>> [attack.name for attack in AutoAttack(threats.Linf(8 / 255)).attacks]
    ['APGD-CE', 'APGD-T', 'FAB-T', 'Square', 'APGD-margin']
    """

    def __init__(self, threat, version="standard", seed=0, on_failure="clean"):
        if version not in VERSIONS:
            raise ValueError(
                f"`version` must be one of {', '.join(VERSIONS)}. Received: version={version!r}"
            )
        whole("seed", seed)
        super().__init__(_members(threat, version, seed), on_failure=on_failure)
        self.version, self.seed = version, int(seed)

    @property
    def name(self):
        return "AutoAttack" if self.version == "standard" else f"AutoAttack {self.version}"

    def runs_of(self, classes, goal=False):
        runs = super().runs_of(classes, goal)
        if self.skipped(classes):
            return runs
        return [run for run in runs if run < self.members[-1][1][0]]  # no need of the stand-in

    def get_config(self):
        return {
            "threat": keras.saving.serialize_keras_object(self.threat),
            "version": self.version,
            "seed": self.seed,
            "on_failure": self.on_failure,
        }

    @classmethod
    def from_config(cls, config):
        threat = config["threat"]
        if isinstance(threat, dict):
            threat = keras.saving.deserialize_keras_object(threat)
        return cls(**{**config, "threat": threat})


def _members(threat, version, seed):
    norm = getattr(threat, "norm", None)
    if norm == "l1" and version != "rand":
        apgd = {"steps": 100, "seed": seed, "restarts": 5, "large_radius": True}
        targets = 5
    else:
        apgd = {"steps": 100, "seed": seed, "restarts": 5 if version == "plus" else 1}
        targets = 9
    if version == "rand":
        apgd["eot"] = 20
    ce, dlr = (APGD(threat, loss=loss, **apgd) for loss in ("ce", "dlr"))
    few = APGD(threat, loss="margin", **apgd)
    if version == "rand":
        return [ce, dlr, few]
    once = {**apgd, "restarts": apgd["restarts"] if norm == "l1" else 1}
    apgd_t = APGD(threat, loss="dlr_targeted", targets=targets, **once)
    fab_t = FAB(threat, targets=9, seed=seed)
    square = Square(threat, queries=5000, seed=seed)
    if version == "standard":
        return [ce, apgd_t, fab_t, square, few]
    return [ce, dlr, FAB(threat, restarts=5, seed=seed), square, apgd_t, fab_t, few]
