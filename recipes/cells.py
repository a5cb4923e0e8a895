"""What all results pages are made of: rates and intervals of cards as cells of a table."""

import pathlib

import tfrobust as tr

ROOT = pathlib.Path(__file__).parents[1]


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
