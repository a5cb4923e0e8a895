"""What all results pages are made of: rates and intervals of cards as cells of a table."""

import pathlib

import tfrobust as tr

ROOT = pathlib.Path(__file__).parents[1]
GAP = 5.0  # points of PGD minus AutoAttack beyond which gradients are suspected of being masked
MASKED = " **masked?**"  # the mark of such rows


def rate(value):
    """Per cent, or "not run".

    >>> rate({"count": 1, "n": 8}), rate(None)
    ('12.50', 'not run')
    """
    return "not run" if value is None else f"{100 * value['count'] / value['n']:.2f}"


def interval(value):
    """Per cent with its 95 % interval (Wilson) and n."""
    low, high = tr.evaluate.wilson(value["count"], value["n"])
    return f"{rate(value)} ({100 * low:.1f} to {100 * high:.1f}, n = {value['n']:,})"


def flagged(gap):
    """PGD minus AutoAttack in points, on the same images.

    >>> flagged(5.01), flagged(4.0), flagged(None)
    ('5.0 **masked?**', '4.0', 'not run')
    """
    return "not run" if gap is None else f"{gap:.1f}" + MASKED * (gap > GAP)


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
