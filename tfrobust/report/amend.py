"""Adding to a card that exists: a later attack, more images, a certificate, explanations."""

import copy

from tfrobust.evaluate import Scores
from tfrobust.report.card import Card, headline, standing_limits
from tfrobust.report.contradictions import check
from tfrobust.report.entry import Entry, finite
from tfrobust.verify import Certificate


def amended(card, model, scores=None, command=None, certificate=None, entry=None):
    """A new card on which one model has one more evaluation or certificate, or explanations.

    Where the same attacks with the same settings were on the card for as many images, the new
    figures replace the old ones. The last evaluation of a family is the one that is shown. A
    certificate replaces an older one of the same threat, as many images and the same stages.

    Args:
        card: `Card`.
        model: Name of the model on the card.
        scores: `tr.evaluate.Scores` or None.
        command: What made them; it is listed with the card's own.
        certificate: `tr.verify.Certificate` or None.
        entry: None, or an `Entry` whose `explanations()` (pictures of features and representations)
            are put on the card, in place of those it has of the same kind; its scores and
            certificates are not looked at.

    Returns:
        `Card`; its limits and a summary that was not given by hand are made anew.

    Raises:
        TypeError, ValueError: nothing to add, no such model, an attack that broke what is verified.

    Example:

    >>> from tfrobust import evaluate, report
    >>> rate = evaluate.Rate(9, 10)
    >>> found = evaluate.Scores(10, 2, rate, (), {"AutoAttack": evaluate.Rate(5, 10)}, rate)
    >>> old = report.card("net", {"net": report.Entry()}, command="python -m train")
    >>> new = amended(old, "net", found, "python -m judge")
    >>> new.to_dict()["models"]["net"]["families"]["AutoAttack"]["accuracy"]
    0.5
    """
    values = copy.deepcopy(card.to_dict())
    if model not in values["models"]:
        names = ", ".join(map(repr, values["models"]))
        raise ValueError(f"`model` must be one of {names}. Received: model={model!r}")
    given = {"scores": scores, "certificate": certificate, "entry": entry}
    if all(value is None for value in given.values()):
        raise ValueError("`scores`, `certificate` or `entry` must be given. Received: none of them")
    for (name, value), kind in zip(given.items(), (Scores, Certificate, Entry), strict=True):
        if not isinstance(value, kind | None):
            title = f"tr.{kind.__module__.split('.')[1]}.{kind.__name__}"
            raise TypeError(f"`{name}` must be a {title}. Received: {type(value).__name__}")
    part = values["models"][model]
    if entry is not None:
        part.update(entry.explanations())
    judged = part.setdefault("judged_by", [])
    if command and command not in judged:
        judged.append(command)
    if scores is None and certificate is None:
        return Card(finite(values))
    if scores is not None:
        _judged(part, scores)
    if certificate is not None:
        _certified(part, certificate)
    _flagged(part, scores, certificate)
    old = card.to_dict()
    own = [limit for limit in old["limits"] if limit not in standing_limits(old["models"])]
    values["limits"] = [*own, *standing_limits(values["models"])]
    if old["summary"] == headline(old):
        values["summary"] = headline(values)
    return Card(finite(values))


def _judged(part, scores):
    new = scores.to_dict()
    part["scores"] = [old for old in part["scores"] if _what(old) != _what(new)] + [new]
    part["families"].update(new["families"])
    if part["clean"] is None or new["clean"]["n"] > part["clean"]["n"]:
        part["clean"] = new["clean"]
    part["curve"] = new["curve"] or part["curve"]


def _certified(part, proof):
    new = proof.to_dict()
    kept = [old for old in part.get("certificate", ()) if _proves(old) != _proves(new)]
    part["certificate"] = [*kept, new]
    part["clean"] = part["clean"] or new["clean"]


def _flagged(part, scores, proof):
    """Adds doubts of what is new, alone and beside what is there; refuses contradictions."""
    new = list(scores.flags if scores else ())
    if part.get("certificate"):
        proofs = map(Certificate.from_dict, part["certificate"])
        new += check(proofs, [Scores.from_dict(found) for found in part["scores"]])
    if scores and proof:
        check([proof], [scores])  # these have records of each image
    found = {(flag["code"], flag["sentence"]): flag for flag in part["flags"]}
    for flag in new:
        found.setdefault((flag.code, flag.sentence), flag.to_dict())
    part["flags"] = list(found.values())
    if part["families"].get("APGD") or part["families"].get("AutoAttack"):
        part["flags"] = [flag for flag in part["flags"] if flag["code"] != "no_strong_attack"]


def _proves(proof):
    return proof["threat"], proof["epsilon"], proof["n"], [s["name"] for s in proof["stages"]]


def _what(scores):
    attacks = [(a["name"], a["threat"], a["config"]) for a in scores["attacks"]]
    return attacks, scores["n"], scores["cascade"]
