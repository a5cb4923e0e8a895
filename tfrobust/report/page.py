"""The page of a card: the template filled from the card's plain data alone."""

import functools
import pathlib

from tfrobust.evaluate import FAMILIES
from tfrobust.report import plots
from tfrobust.report.terminal import grouped, kind, latency, number, size

TEMPLATES = pathlib.Path(__file__).resolve().parent.parent / "templates"


@functools.cache
def _environment():
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        {
            "number": number,
            "size": size,
            "kind": kind,
            "duration": duration,
            "share": share,
            "latency": latency,
        }
    )
    return found


def duration(seconds):
    """A time as people say it.

    >>> duration(61), duration(0.4), duration(7300)
    ('1 min 1 s', '0.4 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def share(value):
    """A share in [0, 1] in percent with one digit.

    >>> share(0.9238)
    '92.4'
    """
    return f"{100 * value:.1f}"


def render(values):
    """The whole page as text, from a card's plain data."""
    import markupsafe

    models = values["models"]
    pictures = {
        name: svg and markupsafe.Markup(svg)
        for name, svg in (
            ("curves", plots.curves(values)),
            ("vulnerability", plots.vulnerabilities(values)),
            ("units", plots.units(values)),
        )
    }
    return (
        _environment()
        .get_template("card.html.jinja")
        .render(
            card=values,
            models=models,
            families=FAMILIES,
            pictures=pictures,
            files=[(name, file) for name, part in models.items() for file in part["files"]],
            transfers=[(name, t) for name, part in models.items() for t in part["transfer"]],
            moved={n: p["vulnerability"] for n, p in models.items() if p["vulnerability"]},
            flags=grouped(models),
            attacks=_attacks(models),
            curve_attacks=sorted({p["curve"]["attack"] for p in models.values() if p["curve"]}),
        )
    )


def _attacks(models):
    """Every attack with its settings once, and who met it on how many images."""
    found = {}
    for name, part in models.items():
        for scores in part["scores"]:
            for attack in scores["attacks"]:
                plain = {
                    key: value
                    for key, value in attack["config"].items()
                    if not isinstance(value, dict) and value is not None
                }
                settings = ", ".join(f"{key} {value}" for key, value in plain.items())
                key = (attack["name"], attack["threat"], settings)
                found.setdefault(key, []).append((name, attack["rate"]))
    return [
        {"name": name, "threat": threat, "settings": settings, "rates": rates}
        for (name, threat, settings), rates in found.items()
    ]
