"""How a threat is written on a card."""

import math
import re

ALLOWS = {
    "linf": "every pixel may change by up to {epsilon}",
    "l2": "the whole image may move by up to {epsilon} in Euclidean distance",
    "l1": "the changes of all pixels may add up to {epsilon}",
}


def radius(epsilon):
    """A radius as people write it: grey levels where it is a whole number of them.

    >>> radius(8 / 255), radius(0.3)
    ('8/255', '0.3')
    """
    grey = epsilon * 255
    whole = abs(grey - round(grey)) < 1e-6 and 0 < grey < 255 and len(f"{epsilon:.10g}") > 6
    return f"{round(grey)}/255" if whole else f"{epsilon:g}"


def described(threat):
    """A `tr.threats.Threat` as plain values: norm, epsilon, name and what it allows."""
    epsilon = radius(threat.epsilon)
    allows = ALLOWS.get(threat.norm, "changes up to {epsilon} are allowed").format(epsilon=epsilon)
    kind = type(threat).__name__
    values = {"norm": threat.norm, "epsilon": threat.epsilon, "name": f"{kind}, epsilon {epsilon}"}
    return {**values, "text": f"{allows} (pixels lie in [0, 1])"}


def named(proof):
    """What a threat is called beside a certificate, of its plain values.

    >>> named({"threat": "Linf(epsilon=0.03137)", "epsilon": 8 / 255})
    'Linf, epsilon 8/255'
    """
    return f"{proof['threat'].partition('(')[0]}, epsilon {radius(proof['epsilon'])}"


def norm_of(threat):
    """The norm of a threat that was printed.

    >>> norm_of("Linf(epsilon=0.1)")
    'linf'
    """
    return threat.partition("(")[0].lower()


def threat_of(text):
    """(norm, radius) of a printed threat; a radius without end where it does not say.

    >>> threat_of("L2(epsilon=0.5)"), threat_of("Patch(size=3)")
    (('l2', 0.5), ('patch', inf))
    """
    found = re.fullmatch(r"\w+\(epsilon=([\d.e+-]+)\)", text)
    return norm_of(text), float(found[1]) if found else math.inf
