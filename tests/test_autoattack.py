"""Ensembles: members in order, a cascade, what fits the classes; AutoAttack's settings."""

import keras
import numpy as np
import pytest

from tests import bank
from tfrobust import attacks, evaluate, threats

LINF = threats.Linf(0.1)


def small(threat=LINF, **more):
    """AutoAttack's members with tiny budgets."""
    return attacks.WorstCase(
        [
            attacks.APGD(threat, steps=5),
            attacks.APGD(threat, steps=5, loss="dlr_targeted", targets=3),
            attacks.FAB(threat, steps=5, targets=3),
            attacks.Square(threat, queries=50),
        ],
        **more,
    )


def labelled(net, count=40, wrong=5):
    x = bank.images(count)
    y = attacks.forward(net, x).argmax(-1)
    y[::wrong] = (y[::wrong] + 1) % 4
    return x, y


@pytest.mark.parametrize(
    "version, norm, wanted",
    [
        ("standard", "linf", "APGD-CE 1, APGD-T 9, FAB-T 9, Square 1, APGD-margin 1"),
        ("standard", "l2", "APGD-CE 1, APGD-T 9, FAB-T 9, Square 1, APGD-margin 1"),
        ("standard", "l1", "APGD-CE 5, APGD-T 25, FAB-T 9, Square 1, APGD-margin 5"),
        (
            "plus",
            "linf",
            "APGD-CE 5, APGD-DLR 5, FAB 5, Square 1, APGD-T 9, FAB-T 9, APGD-margin 5",
        ),
        ("rand", "linf", "APGD-CE 1, APGD-DLR 1, APGD-margin 1"),
    ],
)
def test_versions_have_their_members(version, norm, wanted):
    attack = attacks.AutoAttack(threats.NORMS[norm](0.5), version=version, seed=3)
    assert ", ".join(f"{a.name} {a.runs}" for a in attack.attacks) == wanted
    for member in attack.attacks:
        assert member.seed == 3
        if member.name.startswith("APGD"):
            assert member.steps == 100 and member.eot == (20 if version == "rand" else 1)
            assert member.large_radius == (norm == "l1")
        if member.name.startswith("FAB"):
            assert member.steps == 100
        if member.name == "Square":
            assert member.queries == 5000 and member.p_init == 0.8 and not member.rescale
    # With ten classes the stand-in is not run; with three APGD-T is not.
    names = {a.name: set(runs) for a, runs in attack.members}
    assert not names["APGD-margin"] & set(attack.runs_of(10))
    if version == "standard":
        three = set(attack.runs_of(3))
        assert names["APGD-margin"] <= three and not names["APGD-T"] & three
        assert list(attack.skipped(3)) == ["APGD-T"] and not attack.skipped(4)
        assert len(names["FAB-T"] & three) == 2


def test_ensemble_is_the_or_of_its_members_and_keeps_the_rest_clean():
    net = bank.classifier()
    x, y = labelled(net)
    attack = small()
    found = attack.result(net, x, y, epsilon=0.02)
    wrong = attacks.verdicts(net, x, y)
    np.testing.assert_array_equal(found.fooled, attacks.verdicts(net, found.x_adv, y))
    np.testing.assert_array_equal(found.x_adv[wrong], x[wrong])
    np.testing.assert_array_equal(found.x_adv[~found.fooled], x[~found.fooled])
    for member in attack.attacks[:2]:
        alone = member.result(net, x, y, epsilon=0.02).fooled
        assert (found.fooled >= alone).all()
    assert wrong.sum() < found.fooled.sum() < len(x)


def test_evaluation_shows_every_member_and_the_joint_figure():
    net = bank.classifier()
    x, y = labelled(net, wrong=1000)
    scores = evaluate.robustness(net, (x, y), [small(threats.Linf(0.02))], progress=False)
    (score,) = scores.attacks
    assert [name for name, _ in score.parts] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    counts = [scores.clean.count, *(rate.count for _, rate in score.parts)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == scores.joint.count
    assert score.queries > score.gradients > 0
    assert scores.families["APGD"] == score.parts[1][1]  # after APGD-CE and APGD-T
    assert "after APGD-CE" in str(scores)
    again = evaluate.Scores.from_dict(scores.to_dict())
    assert again.attacks[0].parts == score.parts and again.to_dict() == scores.to_dict()


def test_config_and_inside_a_graph():
    attack = small(on_failure="best_loss")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(attack))
    assert [a.get_config() for a in again.attacks] == [a.get_config() for a in attack.attacks]
    auto = attacks.AutoAttack(threats.L2(0.5), version="plus", seed=2)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(auto))
    assert twin.get_config() == auto.get_config() and twin.name == "AutoAttack plus"
    net = bank.classifier()
    x, y = labelled(net, 8)
    first = attacks.WorstCase(attack.attacks[:1])
    inside = first.within(net, x, y, seed=0).numpy()
    assert LINF.distance(inside, x).numpy().max() <= 0.1 * (1 + 1e-6) + 1e-7
    assert attacks.verdicts(net, inside, y).sum() >= attacks.verdicts(net, x, y).sum()


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: attacks.AutoAttack(LINF, version="fast"), ValueError, "`version` must be one of"),
        (lambda: attacks.AutoAttack(0.3), TypeError, "`threat` must be"),
        (lambda: attacks.WorstCase([]), ValueError, "`attacks` must hold attacks of one threat"),
        (
            lambda: attacks.WorstCase([attacks.FGSM(LINF), attacks.FGSM(threats.L2(1.0))]),
            ValueError,
            "one threat",
        ),
        (lambda: attacks.WorstCase(["pgd"]), TypeError, "`attacks` must be a list"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_run_what_fits_and_say_so(classes):
    net = bank.classifier(classes)
    x = bank.images(12)
    y = attacks.forward(net, x).argmax(-1)
    attack = attacks.AutoAttack(threats.Linf(0.3))
    scores = evaluate.robustness(net, (x, y), [attack], progress=False)
    assert scores.joint.count < 12
    assert [name for name, _ in scores.attacks[0].parts][-1] == "APGD-margin"
    assert "member_skipped" in {flag.code for flag in scores.flags}


@pytest.mark.slow
def test_linear_model_within_two_percent_of_the_exact_distance():
    for norm in ("linf", "l2"):
        net, x, y = bank.linear(30.0)
        attack = attacks.AutoAttack(threats.NORMS[norm](0.1))
        exact = bank.LINEAR_DISTANCE[norm]
        assert bank.fooled_at(attack, net, x, y, 1.02 * exact) == 6
