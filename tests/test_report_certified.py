"""Certificates on cards: never against the attacks, the same page from JSON, their picture."""

import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from tests.test_report import checked, plain, rate
from tfrobust import evaluate, report, threats, verify
from tfrobust.report import certified

LINF = threats.Linf(0.1)


def curve(*counts, norm="linf", n=100):
    epsilons = tuple(0.05 * i for i in range(len(counts)))
    return verify.CertifiedCurve(norm, epsilons, tuple(rate(c, n) for c in counts))


def certificate(verified=90, attacked=94, clean=98, n=100, threat=LINF, drawn=None):
    stages = (
        verify.Stage("clean", n, 0, n - clean, 0.1),
        verify.Stage("ibp", clean, verified - 2, 0, 0.2),
        verify.Stage("PGD-40", clean - verified + 2, 0, clean - attacked, 1.0),
        verify.Stage("crown-ibp", attacked - verified + 2, 2, 0, 2.0),
    )
    return verify.Certificate(
        *(n, 10, repr(threat), threat.epsilon, rate(clean, n), rate(attacked, n)),
        *(rate(verified, n), stages, drawn, 61.0),
    )


def scores(left, n=100, threat=LINF, clean=98, cascade=False, curve=None):
    """An evaluation by attacks {name: (images left, threat or None for the usual one)}."""
    found = [
        evaluate.AttackScore(name, name.split("-")[0], rate(count, n), repr(own or threat))
        for name, (count, own) in left.items()
    ]
    families = {score.family: score.rate for score in found}
    joint = min((score.rate for score in found), key=lambda r: r.count, default=rate(clean, n))
    return evaluate.Scores(
        n, 10, rate(clean, n), tuple(found), families, joint, curve, cascade=cascade
    )


@pytest.fixture(scope="module")
def card():
    proofs = [
        certificate(drawn=curve(98, 95, 90, 40)),
        certificate(60, 70, threat=threats.L2(0.05), drawn=curve(98, 60, norm="l2")),
    ]
    under = evaluate.Curve("PGD-20", "linf", (0.0, 0.1, 0.3), (rate(98, 100),) * 3)
    both = scores({"PGD-40": (94, None), "AutoAttack": (92, None)}, curve=under)
    models = {
        "net <i>": report.Entry(both, certificate=proofs),
        "bare": report.Entry(certificate=certificate(50)),
        "attacked": report.Entry(scores({"PGD-40": (10, None)})),
    }
    return report.card("proved", models, threat=LINF)


def test_the_page_shows_what_is_proved(card):
    page = card.html()
    checker, text = checked(page), plain(page)
    assert len(checker.ids) == len(set(checker.ids)) and "What can no attack break?" in text
    low, high = evaluate.wilson(90, 100)
    for piece in (
        f"net &lt;i&gt; Linf, epsilon 0.1 98.0 {100 * evaluate.wilson(98, 100)[0]:.1f}",
        f"90.0 {100 * low:.1f} to {100 * high:.1f} 100 images",
        "90 verified 4 undecided 6 broken",
        "60 verified 10 undecided 30 broken",
        "without attack: 2 wrong ibp: 88 verified PGD-40: 4 broken crown-ibp: 2 verified",
        "L2, epsilon 0.05",
        "not for its int8 TFLite export",
        "only verified images are proved",
        "An undecided image is neither proved nor broken",
        "on 90.0 % of 100 it is proved that no attack within Linf, epsilon 0.1, can succeed.",
    ):
        assert piece in text, piece
    assert page.count("<svg") == 2 and "epsilon (L2)" in page
    assert "under PGD-20" in page and "Dashed: what an attack left" in text


def test_json_alone_makes_the_page_again(card, tmp_path):
    card.save(tmp_path)
    again = report.load(tmp_path)
    assert again.to_dict() == card.to_dict()
    assert again.html() == (tmp_path / "card.html").read_text(encoding="utf-8")
    part = again.to_dict()["models"]["net <i>"]["certificate"]
    assert verify.Certificate.from_dict(part[0]) == certificate(drawn=curve(98, 95, 90, 40))


def test_a_card_without_certificates_is_as_it_was(card, tmp_path):
    values = copy.deepcopy(card.to_dict())
    for part in values["models"].values():
        part.pop("certificate", None)
    (tmp_path / "card.json").write_text(json.dumps(values))
    page = report.load(tmp_path).html()
    assert "What can no attack break" not in page and page.count("<svg") == 1
    part = report.card("old", report.Entry(scores({"PGD-40": (94, None)}))).to_dict()
    assert "certificate" not in part["models"]["old"]
    assert "nothing is proven about any image" in part["limits"][0]


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_shows_every_certificate(card, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.table(card))
    text = console.export_text()
    joined = " ".join(text.split())
    for piece in ("90 verified", "4 undecided", "6 broken", "60.0", "verified", "certificates"):
        assert piece in text, piece
    assert "not for its int8 TFLite export" in joined
    assert "decided by without attack: 2 wrong; ibp: 88 verified" in joined
    assert max(map(len, text.splitlines())) <= width and "…" not in text


def test_a_card_of_certificates_alone_has_its_sentence():
    found = report.card("c", {"net": report.Entry(certificate=certificate())}).to_dict()
    assert found["models"]["net"]["clean"]["count"] == 98
    assert found["summary"] == (
        "net names the right class on 98.0 % of clean images; on 90.0 % of 100 it is proved that "
        "no attack within Linf, epsilon 0.1, can succeed."
    )
    other = {"net": report.Entry(certificate=certificate())}
    assert report.card("c", other, threat=threats.Linf(0.2)).to_dict()["summary"] is None


# --- contradictions ------------------------------------------------------------------------------

LESS, MORE, OTHER = threats.Linf(0.05), threats.Linf(0.2), threats.L2(0.1)
FALLING = evaluate.Curve("PGD-9", "linf", (0.0, 0.05), (rate(98, 100), rate(94, 100)))


@pytest.mark.parametrize(
    "proof, found, what",
    [
        (certificate(90), scores({"AutoAttack": (89, None)}), "AutoAttack left 89 of 100"),
        (certificate(90), scores({"PGD-40": (89, LESS)}), "PGD-40 left 89"),
        (certificate(90), scores({"PGD-40": (97, OTHER), "FGSM": (80, None)}), "FGSM left 80"),
        (certificate(90), scores({"APGD-T": (89, None)}, cascade=True), "APGD-T left 89"),
        (
            certificate(90, drawn=curve(98, 95, 90)),
            scores({"PGD-40": (96, LESS)}, curve=FALLING),
            "95 of 100 verified within linf 0.05, PGD-9 at 0.05 left 94",
        ),
        (
            certificate(90, drawn=curve(98, 95, 90, 80)),
            scores({"PGD-40": (79, threats.Linf(0.15))}),
            "80 of 100 verified within linf 0.15, PGD-40 left 79",
        ),
    ],
)
def test_an_attack_that_broke_what_is_verified_is_refused(proof, found, what):
    with pytest.raises(ValueError, match="must not verify what an attack broke") as caught:
        report.Entry(found, certificate=proof)
    assert what in str(caught.value) and "\n" not in str(caught.value)
    base = report.card("c", {"net": report.Entry(certificate=proof)})
    with pytest.raises(ValueError, match="must not verify"):
        report.amended(base, "net", found)
    base = report.card("c", {"net": report.Entry(found)})
    with pytest.raises(ValueError, match="must not verify"):
        report.amended(base, "net", certificate=proof)


@pytest.mark.parametrize(
    "found",
    [
        scores({"AutoAttack": (90, None)}),  # exactly what is verified
        scores({"PGD-40": (10, MORE)}),
        scores({"PGD-40": (10, OTHER)}),
        scores({"DDN": (10, OTHER), "PGD-40": (9, None)}, cascade=True),
        scores({"mine": (10, None)}, n=20, clean=20),  # other images: a doubt, see below
    ],
)
def test_what_can_be_is_accepted(found):
    assert report.Entry(found, certificate=certificate(90)).certificate[0].verified.count == 90


def test_figures_of_other_images_are_doubted():
    def codes(found):
        entry = report.Entry(found, certificate=certificate(90))
        return [flag["code"] for flag in entry.to_dict()["flags"]]

    assert codes(scores({"APGD-T": (92, None)}, clean=97)) == []  # one may lie on a boundary
    assert codes(scores({"APGD-T": (92, None)}, clean=95)) == ["certificate_apart"]
    assert codes(scores({"APGD-T": (850, None)}, n=1000, clean=980)) == []  # the intervals overlap
    assert codes(scores({"APGD-T": (700, None)}, n=1000, clean=980)) == ["certificate_apart"]
    page = report.card("c", report.Entry(scores({"APGD-T": (92, None)}, clean=95),
                                         certificate=certificate(90))).html()  # fmt: skip
    assert "98 of 100 images in the certificate and 95 in the evaluation" in plain(page)


def test_images_are_compared_one_by_one():
    """Counts agree, one image is both verified and broken: records tell, counts cannot."""
    status = np.array([verify.STATUS.index(s) for s in ("verified", "verified", "broken")])
    proof = certificate(2, 2, 3, n=3)
    proof.records.update(label=np.array([4, 1, 0]), status=status)
    found = scores({"FGSM": (2, None)}, n=3, clean=3)

    def with_records(left, labels=(4, 1, 0), evaluation=found):
        records = {"label": np.array(labels), "FGSM": np.array(left)}
        return dataclasses.replace(evaluation, records=records)

    report.Entry(with_records([True, True, False]), certificate=proof)
    wrong = with_records([False, True, True])
    with pytest.raises(ValueError, match="2 of the 3 images in both verified, FGSM left 1 of 2"):
        report.Entry(wrong, certificate=proof)
    report.Entry(with_records([False, True, True], (4, 1, 1)), certificate=proof)  # other images
    both = report.card("c", report.Entry())
    with pytest.raises(ValueError, match="FGSM left 1 of 2"):
        report.amended(both, "c", wrong, certificate=proof)
    few = with_records([True, False], (4, 1), scores({"FGSM": (1, None)}, n=2, clean=2))
    with pytest.raises(ValueError, match="2 of the 2 images in both verified, FGSM left 1 of 2"):
        report.Entry(few, certificate=proof)


# --- later certificates --------------------------------------------------------------------------


def test_a_card_takes_a_certificate_later():
    base = report.card("c", {"net": report.Entry(scores({"APGD-T": (92, None)}))}, threat=LINF)
    once = report.amended(base, "net", certificate=certificate(80), command="tfrobust verify")
    twice = report.amended(once, "net", certificate=certificate(85)).to_dict()
    part = twice["models"]["net"]
    assert [proof["verified"]["count"] for proof in part["certificate"]] == [85]
    assert part["judged_by"] == ["tfrobust verify"] and "85.0 % of 100" in twice["summary"]
    assert any("undecided" in limit for limit in twice["limits"])
    assert not any("nothing is proven" in limit for limit in twice["limits"])
    assert "certificate" not in base.to_dict()["models"]["net"]
    other = report.amended(once, "net", certificate=certificate(5, threat=MORE)).to_dict()
    assert len(other["models"]["net"]["certificate"]) == 2


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda c: report.Entry(certificate=0.9), TypeError, "`certificate` must be a verify.Cert"),
        (
            lambda c: report.amended(c, "bare"),
            ValueError,
            "`scores`, `certificate` or `entry`",
        ),
        (lambda c: report.amended(c, "bare", certificate={}), TypeError, "tr.verify.Certificate"),
        (lambda c: report.plot_certified(certificate()), ValueError, r"eps_grid=\["),
        (lambda c: report.plot_certified({}), ValueError, "at least one Certificate or"),
        (lambda c: report.plot_certified(3), TypeError, "`found` must be a Certificate or"),
        (lambda c: report.plot_certified(curve(9), attacked={"a": FALLING}), ValueError, "names"),
        (
            lambda c: report.plot_certified(curve(9, norm="l2"), attacked=FALLING),
            ValueError,
            "in the norm of `found`, l2. Received: linf",
        ),
        (lambda c: report.plot_certified(curve(9), "x.txt"), ValueError, "must end in"),
    ],
)
def test_bad_input(call, error, match, card):
    with pytest.raises(error, match=match) as caught:
        call(card)
    assert "\n" not in str(caught.value)


# --- picture -------------------------------------------------------------------------------------


def test_the_picture_draws_what_is_proved_and_what_is_attacked(tmp_path):
    found = {"a": certificate(drawn=curve(98, 95, 90)), "b": curve(90, 80, 10)}
    figure = report.plot_certified(found, tmp_path / "certified.png", {"b": FALLING})
    assert (tmp_path / "certified.png").stat().st_size > 1000
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["a, verified"].get_ydata(), [98, 95, 90])
    np.testing.assert_allclose(lines["b, verified"].get_xdata(), [0, 0.05, 0.1])
    np.testing.assert_allclose(lines["b, under PGD-9"].get_ydata(), [98, 94])
    points = [
        line for line in axes.get_lines() if line.get_marker() == "D" and len(line.get_xdata())
    ]
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [(0.1, 94.0)]
    assert lines["a, verified"].get_color() != lines["b, verified"].get_color()
    norms = report.plot_certified({"a": found["a"], "c": curve(9, 3, norm="l2")})
    assert [axes.get_xlabel() for axes in norms.axes] == ["epsilon (L2)", "epsilon (Linf)"]


def test_the_last_curve_of_a_norm_is_drawn():
    proofs = [certificate(drawn=curve(98, 90)), certificate(80, drawn=curve(98, 80)), certificate()]
    models = report.card("c", {"net": report.Entry(certificate=proofs)}).to_dict()["models"]
    assert len(certified.rows(models)) == 3
    (values,) = certified.parts_of(models)["net"].values()
    assert values["rates"][1]["count"] == 80 and values["attacked"] is None
