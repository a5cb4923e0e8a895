"""What an evaluation hands back: rates with their intervals, curves, doubts."""

import dataclasses
import math

import numpy as np

# Every report shows these side by side, "not run" where they were not.
FAMILIES = ("FGSM", "PGD", "APGD", "AutoAttack")
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(count, n):
    """95 % interval of a binomial rate (Wilson, 1927): `(low, high)`.

    >>> [round(bound, 4) for bound in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"`count` must lie in [0, n] with n >= 1. Received: count={count}, n={n}")
    share, square = count / n, _Z * _Z / n
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclasses.dataclass(frozen=True)
class Rate:
    """`count` of `n` images, as a share in [0, 1] with its 95 % interval."""

    count: int
    n: int

    @property
    def value(self):
        return self.count / self.n

    @property
    def low(self):
        return wilson(self.count, self.n)[0]

    @property
    def high(self):
        return wilson(self.count, self.n)[1]

    def to_dict(self):
        values = {"accuracy": self.value, "low": self.low, "high": self.high}
        return {"count": self.count, "n": self.n, **values}

    @classmethod
    def from_dict(cls, values):
        return cls(values["count"], values["n"])

    def __str__(self):
        return f"{100 * self.value:.2f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One doubt about the figures.

    Attributes:
        code: Short name for programs.
        sentence: What was seen.
        advice: What to do about it.
        severity: "doubt" (the figures may be wrong) or "note" (they are incomplete).
    """

    code: str
    sentence: str
    advice: str
    severity: str = "doubt"

    def to_dict(self):
        return dataclasses.asdict(self)

    def __str__(self):
        return f"[{self.code}] {self.sentence} {self.advice}"


@dataclasses.dataclass(frozen=True)
class Distances:
    """Smallest changes that an attack found, over the images it attacked.

    Attributes:
        found, attacked: Images.
        mean: Over those found, in the norm of the threat.
        median: Over all attacked, or None if it was not found for half of them.
        mean_all: Sum over all images of the evaluation, 0 for those wrong without attack, divided
            by their number: Guo et al.'s r_2. None unless all were found.
    """

    found: int
    attacked: int
    mean: float | None
    median: float | None
    mean_all: float | None

    def __str__(self):
        shown = [
            f"{name} {value:.4g}"
            for name, value in (("mean", self.mean), ("median", self.median))
            if value is not None
        ]
        return f"smallest change {', '.join(shown)} ({self.found} of {self.attacked} found)"


@dataclasses.dataclass(frozen=True)
class AttackScore:
    """Robust accuracy under one attack: right without it and not fooled by it.

    Attributes:
        name, family: "APGD-T" and "APGD".
        rate: Over all images; in a cascade, after this attack and all before it.
        threat: Its repr, such as "Linf(epsilon=0.3)".
        runs: Restarts x targets.
        config: The attack's `get_config()`.
        illegal: Points outside the threat, which never count as success.
        parts: Tuple of (member, `Rate` after it and all before it) of an ensemble.
        queries, gradients: Mean number of passes spent on an attacked image, or None if unknown.
        distances: `Distances` of an attack that looks for the smallest change, or None.
        skipped: {member: reason} of an ensemble's members that did not fit the model.
    """

    name: str
    family: str
    rate: Rate
    threat: str
    runs: int = 1
    config: dict = dataclasses.field(default_factory=dict)
    illegal: int = 0
    parts: tuple = ()
    queries: float | None = None
    gradients: float | None = None
    distances: Distances | None = None
    skipped: dict = dataclasses.field(default_factory=dict)

    def to_dict(self):
        parts = [[name, rate.to_dict()] for name, rate in self.parts]
        return {**dataclasses.asdict(self), "rate": self.rate.to_dict(), "parts": parts}

    @classmethod
    def from_dict(cls, values):
        parts = tuple((name, Rate.from_dict(rate)) for name, rate in values.get("parts", ()))
        distances = values.get("distances")
        changed = {
            "rate": Rate.from_dict(values["rate"]),
            "parts": parts,
            "distances": distances and Distances(**distances),
        }
        return cls(**{**values, **changed})


@dataclasses.dataclass(frozen=True)
class Curve:
    """Robust accuracy under one attack at growing radii; the first is 0, the clean accuracy."""

    attack: str
    norm: str
    epsilons: tuple
    rates: tuple

    @property
    def accuracies(self):
        return tuple(rate.value for rate in self.rates)

    @property
    def auc(self):
        """Area under the curve over its grid, divided by the largest radius: a mean accuracy."""
        eps, values = np.array(self.epsilons), np.array(self.accuracies)
        return float(np.sum(np.diff(eps) * (values[1:] + values[:-1]) / 2) / eps[-1])

    def to_dict(self):
        rates = [rate.to_dict() for rate in self.rates]
        values = {"attack": self.attack, "norm": self.norm, "auc": self.auc}
        return {**values, "epsilons": list(self.epsilons), "rates": rates}

    @classmethod
    def from_dict(cls, values):
        rates = tuple(Rate.from_dict(rate) for rate in values["rates"])
        return cls(values["attack"], values["norm"], tuple(values["epsilons"]), rates)


@dataclasses.dataclass
class Scores:
    """What `robustness` measured.

    Attributes:
        n, classes: Images and classes.
        clean: `Rate` without attack.
        attacks: Tuple of `AttackScore`, in the order they were run; `scores[name]` is a rate.
        families: {family: `Rate`}: the worst case over the family's attacks for each image.
        joint: `Rate` of images that no attack broke.
        curve: `Curve` or None.
        per_class: For each class (images, right without attack, right under all attacks).
        flags: Tuple of `Flag`.
        cascade: Whether later attacks saw survivors only.
        seconds: Time spent, resumed parts included.
        records: Per-image arrays: `label`, `clean`, `joint`, one bool array per attack (True where
            the image stayed right), and what it cost: "NAME: run" (the run that broke it, or -1),
            "NAME: queries", "NAME: gradients", "NAME: distance". Not part of `to_dict()`.
    """

    n: int
    classes: int
    clean: Rate
    attacks: tuple
    families: dict
    joint: Rate
    curve: Curve | None = None
    per_class: tuple = ()
    flags: tuple = ()
    cascade: bool = False
    seconds: float = 0.0
    records: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name):
        known = {score.name: score.rate for score in self.attacks}
        if name not in known:
            raise KeyError(f"No attack named {name!r} was run: {', '.join(known) or 'none at all'}")
        return known[name]

    def to_dict(self):
        """Plain numbers and strings; `from_dict` brings them back."""
        return {
            "n": self.n,
            "classes": self.classes,
            "clean": self.clean.to_dict(),
            "attacks": [score.to_dict() for score in self.attacks],
            "families": {name: rate.to_dict() for name, rate in self.families.items()},
            "joint": self.joint.to_dict(),
            "curve": self.curve and self.curve.to_dict(),
            "per_class": [list(counts) for counts in self.per_class],
            "flags": [flag.to_dict() for flag in self.flags],
            "cascade": self.cascade,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values):
        return cls(
            n=values["n"],
            classes=values["classes"],
            clean=Rate.from_dict(values["clean"]),
            attacks=tuple(map(AttackScore.from_dict, values["attacks"])),
            families={name: Rate.from_dict(r) for name, r in values["families"].items()},
            joint=Rate.from_dict(values["joint"]),
            curve=values["curve"] and Curve.from_dict(values["curve"]),
            per_class=tuple(map(tuple, values.get("per_class", ()))),
            flags=tuple(Flag(**flag) for flag in values["flags"]),
            cascade=values["cascade"],
            seconds=values["seconds"],
        )

    def _lines(self):
        yield "clean", "", self.clean
        for score in self.attacks:
            for name, rate in score.parts[:-1]:
                yield f"  after {name}", "", rate
            yield score.name, score.threat, score.rate
        for family in FAMILIES[1:]:
            if family not in self.families:
                yield family, "", None
        if self.attacks:
            yield "worst case of all", "", self.joint

    def _notes(self):
        if self.cascade:
            yield "Cascade: each line is what is left after all attacks down to it."
        if self.curve:
            yield (
                f"Mean accuracy over {self.curve.attack} radii 0 to "
                f"{self.curve.epsilons[-1]:g}: {100 * self.curve.auc:.2f} %"
            )
        for score in self.attacks:
            spent = score.queries and f"{score.queries:,.0f} forward and {score.gradients:,.0f} "
            parts = [] if score.distances is None else [str(score.distances)]
            parts += [f"{spent}backward passes an image"] if spent else []
            if parts:
                yield f"{score.name}: {'; '.join(parts)}"
            for member, reason in score.skipped.items():
                yield f"{score.name} without {member}: {reason}"
        right = [(robust / n, label) for label, (n, _, robust) in enumerate(self.per_class) if n]
        if self.attacks and len(right) > 1:
            (low, worst), (high, best) = min(right), max(right)
            yield (
                f"By class from {100 * low:.1f} % (class {worst}) to {100 * high:.1f} % "
                f"(class {best}) in the worst case"
            )
        for flag in self.flags:
            yield f"{flag.severity}: {flag}"

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table

        table = Table(title=f"Accuracy on {self.n:,} images, in percent")
        for title, justify in (("attack", "left"), ("threat", "left")):
            table.add_column(title, justify=justify)
        for title in ("accuracy", "95 % interval"):
            table.add_column(title, justify="right")
        for name, threat, rate in self._lines():
            if rate is None:
                table.add_row(name, threat, "not run", "", style="dim")
                continue
            interval = f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"
            table.add_row(name, threat, f"{100 * rate.value:.2f}", interval)
        # Sentences hold brackets, which rich would read as markup.
        from rich.text import Text

        return Group(table, *(Text(note) for note in self._notes()))

    def __str__(self):
        lines = [f"{self.n} images, 95 % intervals in brackets"]
        for name, threat, rate in self._lines():
            label = f"{name} {threat}".strip()
            lines.append(f"  {label:<32} {'not run' if rate is None else rate}")
        lines += [f"  {note}" for note in self._notes()]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Accuracy of one predictor on images that were crafted against another.

    The rate is an upper bound on robust accuracy: the attacker never saw this predictor.

    Attributes:
        name: Name of the predictor, such as "int8 TFLite".
        attack: What crafted the images.
        source: What they were crafted against.
        clean: `Rate` on clean images, or None if none were given.
        robust: `Rate` of images right before and after.
    """

    name: str
    attack: str
    source: str
    clean: Rate | None
    robust: Rate
    kind: str = "transfer"

    def to_dict(self):
        rates = {"clean": self.clean and self.clean.to_dict(), "robust": self.robust.to_dict()}
        return {**dataclasses.asdict(self), **rates}

    @classmethod
    def from_dict(cls, values):
        clean = values["clean"] and Rate.from_dict(values["clean"])
        return cls(**{**values, "clean": clean, "robust": Rate.from_dict(values["robust"])})

    def __str__(self):
        clean = "" if self.clean is None else f"clean {self.clean}, "
        crafted = f"{self.attack} crafted on {self.source}".strip()
        return f"{self.name}: {clean}transfer of {crafted} {self.robust}"
