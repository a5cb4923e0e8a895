"""The page of a card: the template filled from the card's plain data alone."""

import functools
import pathlib

from tfrobust.diagnostics import vulnerability_curve
from tfrobust.evaluate import FAMILIES, AttackScore
from tfrobust.report import certified, explain, plots, representation
from tfrobust.report.entry import unpacked
from tfrobust.report.terminal import grouped, kind, latency, number, others, size, sparse

EXPLAINED = ("vulnerability_black", "histogram", "map", "features", "landscape")
GAME = tuple(representation.FIELDS)
PICTURES = ("layers", "histogram", "map", "features", "sparsity", "landscape", "certified", *GAME)
SIDES = {"white": "vulnerability", "black": "vulnerability_black"}
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
            "sparse": sparse,
            "told": certified.told,
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
    seldom = {name: others(part) for name, part in models.items()}
    pictures = {
        name: svg and markupsafe.Markup(svg)
        for name, svg in (
            ("curves", plots.curves(values)),
            ("vulnerability", plots.vulnerabilities(values)),
            ("units", plots.units(values)),
            *_explained(values),
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
            game=any(pictures[name] for name in GAME),
            zipped=any(file.get("gzip") for part in models.values() for file in part["files"]),
            files=[(name, file) for name, part in models.items() for file in part["files"]],
            transfers=[(name, t) for name, part in models.items() for t in part["transfer"]],
            moved={n: p["vulnerability"] for n, p in models.items() if p["vulnerability"]},
            explained={name: _parts(models, name) for name in (*EXPLAINED, *GAME)},
            flags=grouped(models),
            proofs=certified.rows(models),
            certified_curves=any(
                values["attacked"]
                for norms in certified.parts_of(models).values()
                for values in norms.values()
            ),
            attacks=_attacks(models),
            by_class=_by_class(models),
            order=list(models),
            others=seldom,
            other=any(name for name, _ in seldom.values()),
            judged_by=dict.fromkeys(c for p in models.values() for c in p.get("judged_by", ())),
            curve_attacks=sorted({p["curve"]["attack"] for p in models.values() if p["curve"]}),
        )
    )


def _parts(models, name):
    """{model: what it has under a name that older cards do not know}."""
    return {key: unpacked(part[name]) for key, part in models.items() if part.get(name)}


def _explained(values):
    """(name, SVG or None) of the pictures that explain the models."""
    models, colours = values["models"], plots.colours_of(values)
    painters = {
        "histogram": explain.histograms,
        "map": explain.maps,
        "features": explain.features,
        "landscape": explain.landscapes,
        **representation.PAINTERS,
    }
    found = {name: (painter, _parts(models, name)) for name, painter in painters.items()}
    sides = {
        key: {side: (part.get(name) or {}).get("layers") for side, name in SIDES.items()}
        for key, part in models.items()
        if part.get("vulnerability") or part.get("vulnerability_black")
    }
    if any(part.get("vulnerability_black") or part.get("histogram") for part in models.values()):
        found["layers"] = explain.layers, sides
    proved = certified.parts_of(models)
    if proved:
        found["certified"] = certified.picture, proved
    points = explain.points_of(models)
    if len(points) > 1:
        curves = {
            name: explain.curve_values(vulnerability_curve([p])) for name, p in points.items()
        }
        found["sparsity"] = explain.sparsity, curves
    for name in PICTURES:
        painter, parts = found.get(name, (None, None))
        if parts:
            picture = plots.inline(name, *painter(parts, plots.PAGE, colours))
            yield name, plots.rounded(picture)
        else:
            yield name, None


def _attacks(models):
    """Every attack with its settings once, and for each model that met it what came of it."""
    found = {}
    for name, part in models.items():
        for scores in part["scores"]:
            for score in map(AttackScore.from_dict, scores["attacks"]):
                plain = {
                    key: value
                    for key, value in score.config.items()
                    if not isinstance(value, dict | list) and value is not None
                }
                settings = ", ".join(f"{key} {value}" for key, value in plain.items())
                key = (score.name, score.threat, settings)
                found.setdefault(key, []).append(
                    {
                        "model": name,
                        "rate": score.rate.to_dict(),
                        "passes": {"forward": score.queries, "backward": score.gradients},
                        "notes": list(_notes(score, scores["cascade"])),
                    }
                )
    return [
        {
            **{"name": name, "threat": threat, "settings": settings, "rows": rows},
            "known": any(row["notes"] or any(row["passes"].values()) for row in rows),
        }
        for (name, threat, settings), rows in found.items()
    ]


def _notes(score, cascade):
    if cascade:
        yield "met only what the attacks before it had left"
    for name, rate in score.parts:
        yield f"{share(rate.value)} left after {name}"
    if score.distances is not None:
        yield str(score.distances)
    for member, reason in score.skipped.items():
        yield f"without {member}: {reason}"
    if score.illegal:
        yield f"{score.illegal:,} points outside of the threat, not counted"


def _by_class(models):
    """Worst-case accuracy of each class, from the evaluation that left least; None without one.

    Returns:
        {"cells": [(label, share, clean share), ...] of each model, "least", "most": images of a
        class, "range": {model: (lowest, median, highest)} as pairs (label, share)}.
    """
    cells, counts = {}, []
    for name, part in models.items():
        known = [s for s in part["scores"] if s["attacks"] and s.get("per_class")]
        if not known:
            continue
        rows = min(known, key=lambda scores: scores["joint"]["accuracy"])["per_class"]
        rows = [(label, *row) for label, row in enumerate(rows) if row[0]]
        cells[name] = [(label, robust / n, clean / n) for label, n, clean, robust in rows]
        counts += [n for _, n, _, _ in rows]
    if not counts:
        return None
    sorted_cells = {name: sorted(found, key=lambda cell: cell[1]) for name, found in cells.items()}
    return {
        "cells": cells,
        "labels": sorted({cell[0] for found in cells.values() for cell in found}),
        "range": {k: (v[0], v[(len(v) - 1) // 2], v[-1]) for k, v in sorted_cells.items()},
        "least": min(counts),
        "most": max(counts),
    }
