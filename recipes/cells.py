"""What all results pages are made of: rates and intervals of cards as cells of a table."""

import pathlib
import statistics

import tfrobust as tr

ROOT = pathlib.Path(__file__).parents[1]
GAP = 5.0  # points of PGD minus AutoAttack beyond which gradients are suspected of being masked


def percent(value):
    """A rate as a number in per cent, None where it was not run."""
    return None if value is None else 100 * value["count"] / value["n"]


def rate(value, digits=2):
    """Per cent, or "not run".

    >>> rate({"count": 1, "n": 8}), rate({"count": 1, "n": 8}, 1), rate(None)
    ('12.50', '12.5', 'not run')
    """
    return "not run" if value is None else f"{percent(value):.{digits}f}"


def interval(value, digits=2, n=True):
    """Per cent with its 95 % interval (Wilson) and, if asked for, n; or "not run".

    >>> interval({"count": 90, "n": 100}), interval({"count": 90, "n": 100}, 1, n=False)
    ('90.00 (82.6 to 94.5, n = 100)', '90.0 (82.6 to 94.5)')
    """
    if value is None:
        return rate(value)
    low, high = tr.evaluate.wilson(value["count"], value["n"])
    size = f", n = {value['n']:,}" * n
    return f"{rate(value, digits)} ({100 * low:.1f} to {100 * high:.1f}{size})"


def spread(values, digits):
    """Mean, and +- the sample standard deviation where there are several.

    >>> spread([1.0, 3.0], 1), spread([2.0], 2), spread([None], 2)
    ('2.0 +- 1.4', '2.00', 'not run')
    """
    if any(v is None for v in values):
        return "not run"
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{average(values):.{digits}f}{deviation}"


def average(values):
    """Mean of those that are there, or None without any."""
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def gap(pgd, suite):
    """PGD minus AutoAttack in points, None where one was not run; rates of the same images."""
    return None if pgd is None or suite is None else percent(pgd) - percent(suite)


def mark(points):
    """Of a row whose gap is suspicious.

    >>> mark(5.01), mark(4.0), mark(None)
    (' **masked?**', '', '')
    """
    return " **masked?**" if points is not None and points > GAP else ""


def flagged(points):
    """A gap with its mark.

    >>> flagged(5.01), flagged(None)
    ('5.0 **masked?**', 'not run')
    """
    return "not run" if points is None else f"{points:.1f}{mark(points)}"


def doubts(title, entry, but=()):
    """["- Doubts about ..."] of an entry of a card, [] where its evaluation doubts nothing.

    Args:
        but: Codes of flags that are left out.

    >>> doubts("AT", {"flags": [{"code": "steps", "severity": "doubt", "sentence": "Too few."}]})
    ['- Doubts about AT: Too few.']
    """
    told = [
        flag["sentence"]
        for flag in entry["flags"]
        if flag["severity"] == "doubt" and flag["code"] not in but
    ]
    return [f"- Doubts about {title}: {' '.join(told)}"] if told else []
