"""A card that gets one more evaluation."""

import dataclasses

import pytest

from tfrobust import evaluate, report


def scores(name, count, n=1000):
    rate = evaluate.Rate(count, n)
    family = name.split("-")[0]
    attack = evaluate.AttackScore(name, family, rate, "Linf(epsilon=0.3)", config={"seed": 0})
    return evaluate.Scores(n, 10, evaluate.Rate(n - 5, n), (attack,), {family: rate}, rate)


def card(summary=None):
    entry = report.Entry(scores("PGD-40", 930))
    return report.card("net", {"net": entry}, command="python -m train", summary=summary)


def test_the_new_figure_stands_beside_the_old_ones():
    old = card()
    new = report.amended(old, "net", scores("AutoAttack", 890), "python -m judge").to_dict()
    part = new["models"]["net"]
    assert part["families"]["PGD"]["count"] == 930
    assert part["families"]["AutoAttack"]["count"] == 890
    assert part["judged_by"] == ["python -m judge"] and new["command"] == "python -m train"
    assert "89.0 %" in new["summary"] and "AutoAttack" in new["summary"]
    assert any("Not run" in limit and "AutoAttack" in limit for limit in old.to_dict()["limits"])
    assert not any("Not run" in limit and "AutoAttack" in limit for limit in new["limits"])
    assert old.to_dict()["models"]["net"]["families"]["AutoAttack"] is None


def test_again_replaces_and_a_summary_by_hand_stays():
    once = report.amended(card("by hand"), "net", scores("AutoAttack", 890), "a")
    twice = report.amended(once, "net", scores("AutoAttack", 880), "a").to_dict()
    part = twice["models"]["net"]
    assert len(part["scores"]) == 2 and part["families"]["AutoAttack"]["count"] == 880
    assert part["judged_by"] == ["a"] and twice["summary"] == "by hand"


def test_doubts_are_added_once():
    flag = evaluate.Flag("black_box_stronger", "3 images.", "Look.", "doubt")
    found = dataclasses.replace(scores("AutoAttack", 880), flags=(flag,))
    twice = report.amended(report.amended(card(), "net", found), "net", found).to_dict()
    assert [f["code"] for f in twice["models"]["net"]["flags"]].count("black_box_stronger") == 1


@pytest.mark.parametrize(
    "model, found, error, match",
    [
        ("other", scores("PGD-40", 1), ValueError, "`model` must be one of 'net'"),
        ("net", {}, TypeError, "`scores` must be"),
    ],
)
def test_bad_arguments(model, found, error, match):
    with pytest.raises(error, match=match):
        report.amended(card(), model, found)
