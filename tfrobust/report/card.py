"""The card itself: plain data in, `card.json` and `card.html` out."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys

from tfrobust import files
from tfrobust.evaluate import FAMILIES
from tfrobust.footprint import compare
from tfrobust.report import page
from tfrobust.report.certified import proof_of
from tfrobust.report.entry import Entry, finite
from tfrobust.report.terminal import Table
from tfrobust.report.threat import described, named
from tfrobust.threats import Threat

SCHEMA = 1
PACKAGES = ("tfrobust", "tensorflow", "keras", "numpy", "tensorflow-probability")
UNPROVED = "not break, and nothing is proven about any image."
CERTIFIED = (
    "Verified accuracy is proved for the float32 Keras model in inference, up to rounding, and for "
    "the test images counted here. It does not hold for an int8 TFLite file or another export of "
    "the model, nor for images that are not among them.",
    "An undecided image is neither proved nor broken: the bounds are too loose or the attack is "
    "too weak for it. The share that no attack could break lies between verified and under attack.",
)


class Card:
    """A card as plain data. Make one with `card(...)` or `load(path)`."""

    def __init__(self, values):
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(
                f"`values` must be a card of schema {SCHEMA}. Received: schema="
                f"{values.get('schema') if isinstance(values, dict) else type(values).__name__}"
            )
        missing = {"name", "models", "limits", "versions"} - set(values)
        if missing:
            raise ValueError(f"`values` must be a whole card. Received: none of {sorted(missing)}")
        self._values = values

    @property
    def name(self):
        return self._values["name"]

    def to_dict(self):
        return self._values

    def html(self):
        """The page: one file, nothing from outside, light and dark."""
        return page.render(self._values)

    def save(self, folder):
        """Writes `card.json` and `card.html` into `folder`, each whole or not at all.

        Raises:
            OSError: the folder cannot be made or written.
        """
        folder = pathlib.Path(folder)
        targets = [files.target(folder / name, "folder") for name in ("card.json", "card.html")]
        text = json.dumps(self._values, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        for path, content in zip(targets, (text, self.html()), strict=True):
            files.replace(
                path, lambda name, c=content: pathlib.Path(name).write_text(c, encoding="utf-8")
            )
        return self

    def __rich__(self):
        return Table(self._values)

    def __repr__(self):
        return f"Card({self.name}: {', '.join(self._values['models'])})"


def load(path):
    """Reads a card back.

    Args:
        path: `card.json` or the folder that holds it.

    Raises:
        OSError: no such file. ValueError: not a card.
    """
    path = pathlib.Path(path)
    path = path / "card.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"`path` must name a card. Received: {path} ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"`path` must name a card in JSON. Received: {path}") from error
    return Card(values)


def card(
    name,
    models,
    data=None,
    threat=None,
    command=None,
    summary=None,
    limits=(),
    reference=None,
    date=None,
):
    """Puts everything that is known of one or several models on a card.

    Args:
        name: What the card is called.
        models: {name: `Entry`} in the order of the tables, or one `Entry`.
        data: Name of the data set, or {"name": ..., "note": ...}, where the note says what a
            reader must know ("JPEG re-encoded", "first 1,000 test images").
        threat: `tr.threats.Threat` of the headline.
        command: What makes these figures again, default the running command.
        summary: First sentence, default made from the figures.
        limits: Sentences about what the figures do not show; our standing ones are added.
        reference: Name of the model that gains are counted from, default the one of most FLOPs.
        date: ISO date, default today.

    Returns:
        `Card`.

    Example:

    >>> from tfrobust import footprint
    >>> card("sizes", {"full": Entry(footprint=footprint.lenet_counts()),
    ...                "small": Entry(footprint=footprint.lenet_counts((7, 21, 147, 46)))})
    Card(sizes: full, small)
    """
    models = {name: models} if isinstance(models, Entry) else models
    if not isinstance(models, dict) or not models:
        raise ValueError("`models` must be a dictionary {name: tr.report.Entry}, not empty.")
    for key, entry in models.items():
        if not isinstance(entry, Entry):
            raise TypeError(
                f"`models` must hold tr.report.Entry. Received: {key!r}: {type(entry).__name__}"
            )
    if threat is not None and not isinstance(threat, Threat):
        raise TypeError(f"`threat` must be a tr.threats.Threat. Received: {threat!r}")
    parts = {str(key): entry.to_dict() for key, entry in models.items()}
    measured = {key: e.footprint for key, e in models.items() if e.footprint is not None}
    if reference is None:
        reference = max(measured, key=lambda key: measured[key].flops, default=None)
    elif reference not in measured:
        raise ValueError(
            "`reference` must name a model with a footprint: "
            f"{sorted(measured)}. Received: reference={reference!r}"
        )
    for key, small in measured.items():
        parts[str(key)]["gain"] = compare(measured[reference], small).to_dict()
    values = {
        "schema": SCHEMA,
        "name": str(name),
        "summary": summary,
        "date": date or datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command or _command(),
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "data": None if data is None else _data(data),
        "threat": threat and described(threat),
        "reference": reference,
        "models": parts,
        "limits": [*limits, *standing_limits(parts)],
    }
    values["summary"] = summary or headline(values)
    return Card(finite(values))


def _data(data):
    data = {"name": data} if isinstance(data, str) else data
    if not isinstance(data, dict) or "name" not in data:
        raise TypeError(
            f"`data` must be a name or a dictionary with 'name' and 'note'. Received: {data!r}"
        )
    return {"name": data["name"], "note": None, **data}


def _command():
    """The running command without folders: `python -m recipes.mnist_anp_vs --seed 1`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        start = ["python", os.path.basename(sys.argv[0])]
    return shlex.join([*start, *sys.argv[1:]])


def _versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def strongest(part):
    """`(family, rate)` of the lowest robust accuracy of one model, or `(None, None)`."""
    rates = {name: rate for name, rate in part["families"].items() if rate}
    name = min(rates, key=lambda key: rates[key]["accuracy"], default=None)
    return name, rates.get(name)


def headline(values):
    """One sentence on the smallest model that was attacked; of equals, the most robust."""
    threat = values["threat"]

    def order(part):
        flops = part["footprint"]["flops"] if part["footprint"] else float("inf")
        rate = strongest(part)[1] or proof_of(part, threat)["verified"]
        return flops, -rate["accuracy"]

    known = {key: part for key, part in values["models"].items() if part["clean"]}
    judged = {k: p for k, p in known.items() if strongest(p)[0]} or {
        k: p for k, p in known.items() if proof_of(p, threat)
    }
    if not judged:
        return None
    key = min(judged, key=lambda k: order(judged[k]))
    part, (family, rate) = judged[key], strongest(judged[key])
    text = f"{key} names the right class on {100 * part['clean']['accuracy']:.1f} % of clean images"
    if family:
        text += (
            f" and on {100 * rate['accuracy']:.1f} % of {rate['n']:,} when {family} attacks them"
        )
        if threat:
            text += f" ({threat['name']})"
    gain = part.get("gain", {}).get("xflops")
    if gain and gain > 1.005:
        text += f", with {gain:.1f} times fewer FLOPs than {values['reference']}"
    proof = proof_of(part, threat)
    if proof:
        share = f"{100 * proof['verified']['accuracy']:.1f} % of {proof['n']:,}"
        text += f"; on {share} it is proved that no attack within {named(proof)}, can succeed"
    return text + "."


def standing_limits(parts):
    """What the figures of these models do not show, whatever they are."""
    proved = any(part.get("certificate") for part in parts.values())
    found = [
        "Robust accuracy is an upper bound: it counts the images that the attacks named here did "
        + ("not break; only verified images are proved." if proved else UNPROVED),
        "It holds for the threat named on this card only, not for other norms, larger radii, "
        "rotations, blur or physical changes.",
    ]
    if proved:
        found += CERTIFIED
    missing = [f for f in FAMILIES if all(p["families"].get(f) is None for p in parts.values())]
    if missing and any(part["scores"] for part in parts.values()):
        found.append(f"Not run: {', '.join(missing)}.")
    if any(part["transfer"] for part in parts.values()):
        found.append(
            "Exported files were judged by replaying images crafted on their Keras twin; an "
            "attacker with access to the file may do better."
        )
    if any(part["latency_ms"] for part in parts.values()):
        found.append(
            "Latency is the median of one image on one thread of the machine named below; compare "
            "the models of this card with each other only."
        )
    return found


def table(models):
    """A rich table of models: accuracies side by side, then what they cost.

    Args:
        models: A `Card`, or {name: `Entry`}.

    Returns:
        Something that `rich.print` shows; it splits in two on narrow terminals.
    """
    if isinstance(models, dict):
        models = card("models", models, command="-", date="-")
    return Table(models.to_dict())
