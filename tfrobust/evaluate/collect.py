"""From the records of an evaluation to its `Scores`."""

import warnings

import numpy as np

from tfrobust.attacks import Attack
from tfrobust.evaluate import doubts
from tfrobust.evaluate.chunk import NEVER, at_radius
from tfrobust.evaluate.scores import AttackScore, Curve, Distances, Flag, Rate, Scores


def scores_of(plan, state):
    """`Scores` of a finished evaluation.

    Args:
        plan: What was asked for: attacks by name, grid, cascade, classes.
        state: `State` with the records of all chunks.
    """
    records, n = state.records, len(state.records["label"])

    def rate(right):
        return Rate(int(right.sum()), n)

    scored, families, before = [], {}, records["clean"]
    for name, attack in plan.attacks.items():
        family = family_of(name)
        families[family] = families.get(family, True) & records[name]
        target = before if plan.cascade else records["clean"]
        for key, right in _leading(attack, name, records, target):
            families.setdefault(key, right)
        scored.append(
            AttackScore(
                *(name, family, rate(records[name]), repr(attack.threat), int(attack.runs)),
                config=config_of(attack)["config"],
                illegal=state.notes["illegal"].get(name, 0),
                parts=_parts(attack, name, records, target, n, plan.classes),
                queries=_mean(records.get(f"{name}: queries"), target),
                gradients=_mean(records.get(f"{name}: gradients"), target),
                distances=_distances(records.get(f"{name}: distance"), target),
                skipped=attack.skipped(plan.classes) if hasattr(attack, "skipped") else {},
            )
        )
        before = records[name]
    curve = None
    if plan.grid:
        rates = tuple(rate(records[at_radius(epsilon)]) for epsilon in plan.grid)
        attack = plan.curve_attack
        name = getattr(attack, "name", type(attack).__name__)
        rates = (rate(records["clean"]), *rates)
        curve = Curve(name, attack.threat.norm, (0.0, *plan.grid), rates)
    scores = Scores(
        n=n,
        classes=plan.classes,
        clean=rate(records["clean"]),
        attacks=tuple(scored),
        families={name: rate(right) for name, right in families.items()},
        joint=rate(records["joint"]),
        curve=curve,
        per_class=_per_class(records, plan.classes),
        cascade=plan.cascade,
        seconds=state.seconds,
        records=dict(records),
    )
    found = tuple(Flag(**flag) for flag in state.notes["flags"])
    scores.flags = found + tuple(doubts.review(scores, plan.attacks))
    return scores


def family_of(name):
    """Attacks of one family share a column of the tables: APGD-CE and APGD-T are APGD."""
    return name.split("-")[0].split(" ")[0]


def config_of(attack):
    """What tells an attack from others, as JSON values."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
            config = attack.get_config() if hasattr(attack, "get_config") else {}
    except TypeError:  # a loss that Keras cannot write down, such as a functools.partial
        config = {"loss": type(attack.loss).__name__}
    own, simple = {}, str | int | float | bool | None
    if isinstance(attack, Attack):
        own = {k: v for k, v in vars(attack).items() if isinstance(v, simple) and k[0] != "_"}
        own["iterations"] = attack.iterations  # often an attribute of the class
    return {
        **{"class": type(attack).__name__, "threat": repr(attack.threat)},
        **{"config": config, "attributes": own},
    }


def _parts(attack, name, records, target, n, classes):
    """What is left after each member of an ensemble, in its order."""
    if not hasattr(attack, "members"):
        return ()
    by, made, found = records[f"{name}: run"], attack.runs_of(classes), []
    for member, runs in attack.members:
        if set(runs) & set(made):
            left = target & ((by == NEVER) | (by > runs[-1]))
            found.append((member.name, Rate(int(left.sum()), n)))
    return tuple(found)


def _leading(attack, name, records, target):
    """(family, rows left) of an ensemble's first members, which saw all that the ensemble did."""
    members = getattr(attack, "members", ())
    if members:
        family, end = family_of(members[0][0].name), 0
        for member, runs in members:
            if family_of(member.name) != family:
                break
            end = runs.stop
        by = records[f"{name}: run"]
        yield family, target & ((by == NEVER) | (by >= end))


def _mean(spent, target):
    return None if spent is None or not target.any() else float(spent[target].mean())


def _distances(found, target):
    if found is None:
        return None
    within = found[target]
    some = within[np.isfinite(within)]
    return Distances(
        found=len(some),
        attacked=len(within),
        mean=float(some.mean()) if len(some) else None,
        median=float(np.median(within)) if 2 * len(some) > len(within) else None,
        mean_all=float(some.sum() / len(found)) if len(some) == len(within) else None,
    )


def _per_class(records, classes):
    """(images, right without attack, right under all of them) of each class."""
    found = []
    for label in range(classes):
        rows = records["label"] == label
        clean, robust = (int(records[key][rows].sum()) for key in ("clean", "joint"))
        found.append((int(rows.sum()), clean, robust))
    return tuple(found)
