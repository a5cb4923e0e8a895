"""One model's part of a card, and its plain-JSON form."""

import dataclasses
import math
import os

import numpy as np

from tfrobust import files
from tfrobust.diagnostics import (
    ZERO,
    ClassGradients,
    Dimensions,
    DiscriminatorTrace,
    FeatureMaps,
    Histogram,
    Landscape,
    Planes,
    VulnerabilityMap,
)
from tfrobust.evaluate import FAMILIES, Curve, Scores, Transfer
from tfrobust.footprint import Footprint
from tfrobust.regularizers import Vulnerability
from tfrobust.report import contradictions, representation
from tfrobust.verify import Certificate

BINS = 36
KEPT = 2  # images of a map that a card holds
UNKNOWN = ("quantize", "parity", "agreement", "images", "input", "output", "sparse")


@dataclasses.dataclass
class Entry:
    """What is known of one model; everything is optional.

    Attributes:
        scores: `tr.evaluate.Scores` or a list of them (say PGD on all images and APGD on the first
            1,000): each figure keeps its own n and interval, the last one of a family is shown.
        footprint: `tr.footprint.Footprint`.
        files: Paths, or what `tr.export` returned, whose input contract then stands on the card.
        latency: Milliseconds for one image, or {what: milliseconds}.
        seconds: Time spent on training.
        vulnerability: `tr.diagnostics.vulnerability(...)` under a white-box attack.
        vulnerability_black: The same under a transferred one; with it, or with a histogram, the
            card shows every layer.
        histogram: `tr.diagnostics.vulnerability_histogram(...)`.
        map: `tr.diagnostics.vulnerability_map(...)` or `pixel_map(...)`; its first two images.
        features: `tr.diagnostics.feature_maps(...)`; its first image.
        landscape: `tr.diagnostics.loss_landscape(...)`.
        certificate: `tr.verify.Certificate` or a list of them (say one for each threat), of the
            same model and the same images as `scores`.
        areas: {attack: `tr.evaluate.Curve`}, accuracy over epsilon under several attacks.
        sensitivity: {epsilon: `tr.diagnostics.representation_sensitivity(...)`}.
        angles: {attack: `tr.diagnostics.perturbation_angles(...)`} to one reference attack.
        dimensions: `tr.diagnostics.feature_dimensions(...)`.
        class_gradients: `tr.diagnostics.class_gradients(...)`.
        trace: `tr.diagnostics.DiscriminatorTrace` of the training.
        planes: `tr.diagnostics.tsne_planes(...)`.
        visualised: {what the class is: `tr.diagnostics.visualise_class(...)`}; its first image.
        transfer: `tr.evaluate.Transfer` or a list: accuracy of exported files under replay.
        curve: `tr.evaluate.Curve`, default the last one of `scores`.
        command: What trains this very model, if it differs from the card's command.
        note: One sentence about the model.
        settings: JSON-like dictionary of hyperparameters.

    Raises:
        TypeError: other objects than these.
        ValueError: an attack of `scores` broke images that `certificate` verifies.
    """

    scores: Scores | list | None = None
    footprint: Footprint | None = None
    files: list = ()
    latency: float | dict | None = None
    seconds: float | None = None
    vulnerability: Vulnerability | None = None
    transfer: Transfer | list | None = None
    curve: Curve | None = None
    command: str | None = None
    note: str | None = None
    settings: dict = dataclasses.field(default_factory=dict)
    vulnerability_black: Vulnerability | None = None
    histogram: Histogram | None = None
    map: VulnerabilityMap | None = None
    features: FeatureMaps | None = None
    landscape: Landscape | None = None
    certificate: Certificate | list | None = None
    areas: dict | None = None
    sensitivity: dict | None = None
    angles: dict | None = None
    dimensions: Dimensions | None = None
    class_gradients: ClassGradients | None = None
    trace: DiscriminatorTrace | None = None
    planes: Planes | None = None
    visualised: dict | None = None

    def __post_init__(self):
        self.scores = _listed("scores", self.scores, Scores)
        self.transfer = _listed("transfer", self.transfer, Transfer)
        self.certificate = _listed("certificate", self.certificate, Certificate)
        self.doubts = contradictions.check(self.certificate, self.scores)
        _one("footprint", self.footprint, Footprint)
        _one("vulnerability", self.vulnerability, Vulnerability)
        _one("curve", self.curve, Curve)
        _one("vulnerability_black", self.vulnerability_black, Vulnerability)
        _one("histogram", self.histogram, Histogram)
        _one("map", self.map, VulnerabilityMap)
        _one("features", self.features, FeatureMaps)
        _one("landscape", self.landscape, Landscape)
        for name in representation.FIELDS:
            setattr(self, name, representation.checked(name, getattr(self, name)))
        self.files = [self.files] if isinstance(self.files, str | os.PathLike) else self.files
        if isinstance(self.latency, int | float):
            self.latency = {"one image": float(self.latency)}
        if self.latency is not None and not isinstance(self.latency, dict):
            raise TypeError(f"`latency` must be a number or a dict. Received: {self.latency!r}")
        if self.curve is None:
            self.curve = next((s.curve for s in reversed(self.scores) if s.curve), None)

    def to_dict(self):
        """Plain JSON values; sizes of files are read now, paths are not kept."""
        longest = max(self.scores or self.certificate, key=lambda s: s.n, default=None)
        families = {name: None for name in FAMILIES}
        for scores in self.scores:
            families.update({name: rate.to_dict() for name, rate in scores.families.items()})
        flags = {flag: None for scores in self.scores for flag in scores.flags}
        if families["APGD"] or families["AutoAttack"]:  # one evaluation may make up for another
            flags = [flag for flag in flags if flag.code != "no_strong_attack"]
        proofs = [proof.to_dict() for proof in self.certificate]
        return {
            "note": self.note,
            "command": self.command,
            "settings": self.settings,
            "clean": longest and longest.clean.to_dict(),
            "families": families,
            "scores": [scores.to_dict() for scores in self.scores],
            "curve": self.curve and self.curve.to_dict(),
            "flags": [flag.to_dict() for flag in (*flags, *self.doubts)],
            "footprint": self.footprint and self.footprint.to_dict(),
            "files": [_file(file) for file in self.files],
            "latency_ms": {k: float(v) for k, v in (self.latency or {}).items()},
            "training_seconds": self.seconds,
            "vulnerability": self.vulnerability and _vulnerability(self.vulnerability),
            "transfer": [transfer.to_dict() for transfer in self.transfer],
            **({"certificate": proofs} if proofs else {}),
            **self.explanations(),
        }

    def explanations(self):
        """What only newer cards have: keys that are missing where nothing was given."""
        black, seen, shown = self.vulnerability_black, self.map, self.features
        found = {
            "vulnerability_black": black and _vulnerability(black),
            "histogram": self.histogram and self.histogram.to_dict(),
            "map": seen and packed(seen.first(KEPT).to_dict()),
            "features": shown and packed(shown.first(1).to_dict()),
            "landscape": self.landscape and packed(self.landscape.to_dict()),
        }
        for name in representation.FIELDS:
            values = representation.plain(name, getattr(self, name))
            found[name] = values and packed(values)
        return {name: values for name, values in found.items() if values}


def _one(name, value, kind):
    if value is not None and not isinstance(value, kind):
        raise TypeError(
            f"`{name}` must be a {kind.__module__.split('.')[1]}.{kind.__name__}. "
            f"Received: {type(value).__name__}"
        )
    return value


def _listed(name, value, kind):
    values = [] if value is None else value if isinstance(value, list | tuple) else [value]
    return [_one(name, item, kind) for item in values]


def _file(file):
    if hasattr(file, "to_dict"):
        values = file.to_dict()
        return {**values, "path": os.path.basename(values["path"])}
    path = os.fspath(file)
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise OSError(f"`files` must exist. Received: {path} ({error.strerror})") from error
    suffix = os.path.splitext(path)[1].lstrip(".")
    unknown = dict.fromkeys(UNKNOWN)
    named = {"path": os.path.basename(path), "format": suffix, "bytes": size}
    return {**named, **unknown, "gzip": files.gzipped(path)}


def _vulnerability(found):
    values = np.concatenate([np.ravel(v) for v in found.per_unit.values()]).astype(float)
    return {
        "network": float(found.network),
        "relative": float(found.relative),
        "units": int(found.units),
        "zeros": int((values <= ZERO).sum()),
        "layers": {name: float(np.mean(v)) for name, v in found.per_unit.items()},
        "histogram": _histogram(values[values > ZERO]),
    }


def _histogram(values):
    """Counts in decades cut into six: the same grid for every model and every card."""
    if not len(values):
        return {"first": 0, "counts": []}
    place = np.floor(6 * np.log10(values)).astype(int)
    first = int(max(place.min(), place.max() - 2 * BINS))
    place = np.maximum(place, first)
    return {"first": first, "counts": np.bincount(place - first).tolist()}


def packed(values):
    """Nested lists as their shape and one line of numbers: a card is read by people, too.

    >>> packed({"norm": "l2", "values": [[0.5, 1.0], [2.0, 0.25]]})
    {'norm': 'l2', 'values': {'shape': [2, 2], 'numbers': '0.5 1 2 0.25'}}
    """
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = packed(value)
        if isinstance(value, list) and value and isinstance(value[0], list):
            array = np.asarray(value, float)
            numbers = " ".join(f"{number:g}" for number in array.ravel())
            value = {"shape": list(array.shape), "numbers": numbers}
        found[name] = value
    return found


def unpacked(values):
    """What `packed` was given, with arrays for lists.

    >>> unpacked(packed({"values": [[0.5, 1.0]]}))["values"].tolist()
    [[0.5, 1.0]]
    """

    def array(value):
        if isinstance(value, dict) and set(value) == {"shape", "numbers"}:
            return np.array(value["numbers"].split(), float).reshape(value["shape"])
        return unpacked(value) if isinstance(value, dict) else value

    return {name: array(value) for name, value in values.items()}


def finite(value):
    """`value` as strict JSON, all the way down: infinities and NaN are None, paths text."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
