"""What `certify` hands back: rates with their intervals, stage by stage, image by image."""

import dataclasses

import numpy as np

from tfrobust.evaluate import Rate

STATUS = ("broken", "undecided", "verified")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one bound or attack decided.

    Attributes:
        name: "clean", a method of `tr.bounds.METHODS`, "exact", or an attack's name.
        seen: Images that were undecided before.
        verified, broken: How many of them it decided.
        seconds: Time spent.
    """

    name: str
    seen: int
    verified: int
    broken: int
    seconds: float

    def to_dict(self):
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class CertifiedCurve:
    """Certified accuracy at growing radii; the first is 0, the clean accuracy."""

    norm: str
    epsilons: tuple
    rates: tuple

    @property
    def accuracies(self):
        return tuple(rate.value for rate in self.rates)

    def to_dict(self):
        rates = [rate.to_dict() for rate in self.rates]
        return {"norm": self.norm, "epsilons": list(self.epsilons), "rates": rates}

    @classmethod
    def from_dict(cls, values):
        rates = tuple(map(Rate.from_dict, values["rates"]))
        return cls(values["norm"], tuple(values["epsilons"]), rates)


@dataclasses.dataclass
class Certificate:
    """What is proved about a classifier.

    Attributes:
        n, classes: Images and classes.
        threat: Its repr, such as "Linf(epsilon=0.1)".
        epsilon: Its radius.
        clean: `Rate` of images that are right without attack (benign accuracy).
        attacked: `Rate` of images that no attack of the run broke (empirical robust accuracy), None
            if none was run. Verified images are not attacked: nothing can break them.
        verified: `Rate` of images that nothing in the ball can break (verified robust accuracy).
            Image by image verified <= attacked <= clean.
        stages: Tuple of `Stage`, in their order.
        curve: `CertifiedCurve` or None.
        seconds: Time spent, resumed parts included.
        records: Per-image arrays: `label`, `status` (index in `STATUS`), `stage` (of `stages`, that
            decided it, -1 for none), `margin` (best lower bound of the margin, -inf where no bound
            was computed). Not part of `to_dict()`.
    """

    n: int
    classes: int
    threat: str
    epsilon: float
    clean: Rate
    attacked: Rate | None
    verified: Rate
    stages: tuple = ()
    curve: CertifiedCurve | None = None
    seconds: float = 0.0
    records: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def status(self):
        """A name of `STATUS` for each image, NumPy `(n,)`."""
        return np.array(STATUS)[self.records["status"]]

    @property
    def undecided(self):
        """How many images are neither verified nor broken."""
        seen = self.clean if self.attacked is None else self.attacked
        return seen.count - self.verified.count

    def to_dict(self):
        """Plain numbers and strings; `from_dict` brings them back."""
        return {
            "n": self.n,
            "classes": self.classes,
            "threat": self.threat,
            "epsilon": self.epsilon,
            "clean": self.clean.to_dict(),
            "attacked": self.attacked and self.attacked.to_dict(),
            "verified": self.verified.to_dict(),
            "undecided": self.undecided,
            "stages": [stage.to_dict() for stage in self.stages],
            "curve": self.curve and self.curve.to_dict(),
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values):
        return cls(
            n=values["n"],
            classes=values["classes"],
            threat=values["threat"],
            epsilon=values["epsilon"],
            clean=Rate.from_dict(values["clean"]),
            attacked=values["attacked"] and Rate.from_dict(values["attacked"]),
            verified=Rate.from_dict(values["verified"]),
            stages=tuple(Stage(**stage) for stage in values["stages"]),
            curve=values["curve"] and CertifiedCurve.from_dict(values["curve"]),
            seconds=values["seconds"],
        )

    def _lines(self):
        yield "clean", self.clean
        yield "under attack", self.attacked
        yield "verified", self.verified
        if self.curve:
            for epsilon, rate in zip(self.curve.epsilons[1:], self.curve.rates[1:], strict=True):
                yield f"  verified at {epsilon:g}", rate

    def _notes(self):
        for stage in self.stages:
            yield (
                f"{stage.name}: {stage.verified} verified, {stage.broken} broken of {stage.seen} "
                f"in {stage.seconds:.1f} s"
            )
        if self.undecided:
            yield f"{self.undecided} of {self.n} images undecided: neither proved nor broken"
        yield "Holds for this float32 Keras model in inference, not for a quantized export of it."

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"{self.threat} on {self.n:,} images, in percent")
        table.add_column("", justify="left")
        for title in ("accuracy", "95 % interval"):
            table.add_column(title, justify="right")
        for name, rate in self._lines():
            if rate is None:
                table.add_row(name, "not run", "", style="dim")
                continue
            interval = f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"
            table.add_row(name, f"{100 * rate.value:.2f}", interval)
        return Group(table, *(Text(note) for note in self._notes()))

    def __str__(self):
        lines = [f"{self.threat} on {self.n} images, 95 % intervals in brackets"]
        for name, rate in self._lines():
            lines.append(f"  {name:<20} {'not run' if rate is None else rate}")
        lines += [f"  {note}" for note in self._notes()]
        return "\n".join(lines)
