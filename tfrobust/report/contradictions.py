"""Whether certificates fit the attacks beside them: nothing breaks a verified image."""

from tfrobust.evaluate import Rate
from tfrobust.evaluate.doubts import flag
from tfrobust.report.threat import norm_of, radius, threat_of
from tfrobust.verify import STATUS

SLACK = 1 + 1e-4  # threats print four digits of their radius


def check(proofs, scores):
    """Holds certificates against attacks on the same model: nothing breaks a verified image.

    An attack within the threat of a certificate, on as many images, must leave at least as many as
    are verified; where both carry their records, every image that they share is compared.

    Args:
        proofs: List of `tr.verify.Certificate`.
        scores: List of `tr.evaluate.Scores`.

    Returns:
        List of `Flag`, for figures that no run on the same images gives.

    Raises:
        ValueError: an attack broke what is verified.

    Example:

    >>> from tfrobust.evaluate import Rate, Scores
    >>> from tfrobust.verify import Certificate
    >>> proof = Certificate(10, 2, "Linf(epsilon=0.1)", 0.1, Rate(9, 10), None, Rate(7, 10))
    >>> [found.code for found in check([proof], [Scores(10, 2, Rate(6, 10), (), {}, Rate(6, 10))])]
    ['certificate_apart']
    """
    flags = []
    for proof in proofs:
        for found in scores:
            for what, rate, least in _contradictions(proof, found):
                raise ValueError(
                    "`certificate` must not verify what an attack broke: it is of another model or "
                    "of other images than `scores`, or a layer's rule in `tr.bounds` is wrong. "
                    f"Received: {least}, {what} left {rate.count} of {rate.n}"
                )
            flags += _apart(proof, found)
    return list(dict.fromkeys(flags))


def _contradictions(proof, scores):
    """(attack, its rate, what is verified against it) of everything that cannot be."""
    for (norm, epsilon), verified in _proved(proof):
        least = f"{verified.count} of {verified.n} verified within {norm} {radius(epsilon)}"
        for what, (kind, size), rate in _left(scores):
            within = kind == norm and size <= epsilon * SLACK
            if within and rate.n == verified.n and rate.count < verified.count:
                yield what, rate, least
    mine, theirs = proof.records, scores.records
    if not mine or not theirs:
        return
    n = min(proof.n, scores.n)
    if (mine["label"][:n] != theirs["label"][:n]).any():
        return
    safe = mine["status"][:n] == STATUS.index("verified")
    for what, (kind, size), _ in _left(scores):
        if what in theirs and kind == norm_of(proof.threat) and size <= proof.epsilon * SLACK:
            turned = int((safe & ~theirs[what][:n]).sum())
            if turned:
                share = Rate(int(safe.sum()) - turned, int(safe.sum()))
                yield what, share, f"{share.n} of the {n} images in both verified"


def _proved(proof):
    yield (norm_of(proof.threat), proof.epsilon), proof.verified
    if proof.curve:
        for epsilon, rate in zip(proof.curve.epsilons, proof.curve.rates, strict=True):
            if epsilon:
                yield (proof.curve.norm, epsilon), rate


def _left(scores):
    """(attack, (norm, radius), rate of what it left) of every attack of an evaluation."""
    threats = [threat_of(score.threat) for score in scores.attacks]
    if not scores.cascade or len(set(threats)) == 1:  # else a rate is not of one threat
        for score, threat in zip(scores.attacks, threats, strict=True):
            yield score.name, threat, score.rate
    if len(set(threats)) == 1:
        yield "joint", threats[0], scores.joint
    curve = scores.curve
    if curve:
        for epsilon, rate in zip(curve.epsilons, curve.rates, strict=True):
            if epsilon:
                yield f"{curve.attack} at {radius(epsilon)}", (curve.norm, epsilon), rate


def _apart(proof, scores):
    if proof.n == scores.n:
        if abs(proof.clean.count - scores.clean.count) > 1:  # one image may lie on a boundary
            yield flag(
                "certificate_apart",
                f"Right without attack are {proof.clean.count} of {proof.n} images in the "
                f"certificate and {scores.clean.count} in the evaluation.",
            )
        return
    for what, (kind, size), rate in _left(scores):
        within = kind == norm_of(proof.threat) and size <= proof.epsilon * SLACK
        if within and proof.verified.low > rate.high:
            yield flag(
                "certificate_apart",
                f"{100 * proof.verified.value:.1f} % of {proof.n:,} images are verified, and "
                f"{'attacks' if what == 'joint' else what} left {100 * rate.value:.1f} % of "
                f"{rate.n:,}.",
            )
            return
