"""Adding to a card that exists: a later attack, more images, or what explains a model."""

import copy

from tfrobust.evaluate import Scores
from tfrobust.report.card import Card, headline, standing_limits
from tfrobust.report.entry import Entry, finite


def amended(card, model, scores=None, command=None, entry=None):
    """A new card on which one model has one more evaluation, or more that explains it.

    Where the same attacks with the same settings were on the card for as many images, the new
    figures replace the old ones. The last evaluation of a family is the one that is shown.

    Args:
        card: `Card`.
        model: Name of the model on the card.
        scores: `tr.evaluate.Scores`, or None.
        command: What made the scores; it is listed with the card's own.
        entry: `Entry` whose `explanations()` (pictures of features and representations) are put
            on the card, in place of those it has of the same kind; its scores are not looked at.

    Returns:
        `Card`; its limits and a summary that was not given by hand are made anew.

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
    part = values["models"][model]
    if entry is not None:
        if not isinstance(entry, Entry):
            raise TypeError(f"`entry` must be a tr.report.Entry. Received: {type(entry).__name__}")
        part.update(entry.explanations())
    if scores is None and entry is not None:
        return Card(finite(values))
    if not isinstance(scores, Scores):
        raise TypeError(f"`scores` must be a tr.evaluate.Scores. Received: {type(scores).__name__}")
    new = scores.to_dict()
    part["scores"] = [old for old in part["scores"] if _what(old) != _what(new)] + [new]
    part["families"].update(new["families"])
    if part["clean"] is None or new["clean"]["n"] > part["clean"]["n"]:
        part["clean"] = new["clean"]
    part["curve"] = new["curve"] or part["curve"]
    known = {(flag["code"], flag["sentence"]) for flag in part["flags"]}
    part["flags"] += [f for f in new["flags"] if (f["code"], f["sentence"]) not in known]
    if part["families"].get("APGD") or part["families"].get("AutoAttack"):
        part["flags"] = [flag for flag in part["flags"] if flag["code"] != "no_strong_attack"]
    judged = part.setdefault("judged_by", [])
    if command and command not in judged:
        judged.append(command)
    old = card.to_dict()
    own = [limit for limit in old["limits"] if limit not in standing_limits(old["models"])]
    values["limits"] = [*own, *standing_limits(values["models"])]
    if old["summary"] == headline(old):
        values["summary"] = headline(values)
    return Card(finite(values))


def _what(scores):
    attacks = [(a["name"], a["threat"], a["config"]) for a in scores["attacks"]]
    return attacks, scores["n"], scores["cascade"]
