"""Cards: what is on them, that JSON makes the page again, that nothing comes from outside."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from tfrobust import evaluate, footprint, regularizers, report, threats
from tfrobust.evaluate.scores import Distances
from tfrobust.export import Exported

THREAT = threats.Linf(0.3)


def rate(count, n=1000):
    return evaluate.Rate(count, n)


def scores(clean, attacks, n=1000, curve=None, flags=()):
    found = tuple(
        evaluate.AttackScore(
            name, name.split("-")[0], rate(count, n), repr(THREAT), 2, {"steps": 7}
        )
        for name, count in attacks.items()
    )
    families = {score.family: score.rate for score in found}
    joint = min((score.rate for score in found), key=lambda r: r.count, default=rate(clean, n))
    return evaluate.Scores(n, 10, rate(clean, n), found, families, joint, curve, flags=flags)


def vulnerability():
    values = {"relu1": np.array([[0.0, 1e-8, 1e-3], [0.02, 0.5, 0.5]]), "relu2": np.zeros(4)}
    return regularizers.Vulnerability(values, 0.085, 0.2, 10)


def exported(quantize, scale, gzip=None, sparse=False):
    ends = {"dtype": quantize or "float32", "shape": [1, 8, 8, 1], "scale": scale}
    point = None if scale is None else -128
    ends = {**ends, "zero_point": point}
    return Exported(
        "/secret/place/model.tflite", "tflite", quantize, 66_312, 2e-6, 0.995, 256, ends, ends,
        gzip, sparse,
    )  # fmt: skip


CURVE = evaluate.Curve("PGD-20", "linf", (0.0, 0.3, 0.6), (rate(990), rate(900), rate(0)))
FEW = evaluate.Flag("few_images", "Measured on 360 images.", "Use 1,000 or more.", "note")
ODD = evaluate.Flag("masked_gradients", "90.0 % are still right.", "Suspect <masking>.")


def models(**changes):
    small = footprint.lenet_counts((7, 21, 147, 46))
    return {
        "plain": report.Entry(
            scores(990, {"PGD-40": 3}, flags=(FEW,)), footprint.lenet_counts(), seconds=61
        ),
        "AT & <b>mask</b> $x_1$": report.Entry(
            scores=[
                scores(9700, {"FGSM": 9500, "PGD-40": 9200}, 10_000, CURVE, (FEW, ODD)),
                scores(980, {"APGD-CE": 890, "APGD-T": 884}),
            ],
            footprint=small,
            files=[exported(None, None, 12_345, True), exported("int8", 0.00390625, 23_456)],
            latency={"tflite int8": 0.052},
            vulnerability=vulnerability(),
            transfer=evaluate.Transfer("int8", "PGD-40", "Keras twin", rate(970), rate(910)),
            note="fine-tuned",
            settings={"epochs": 3},
        ),
        "_third": report.Entry(footprint=small),
    }


def make(**options):
    options = {"data": {"name": "digits", "note": "8 x 8"}, "threat": THREAT} | options
    return report.card("digits <i>", models(), **options)


@pytest.fixture(scope="module")
def page():
    return make(command="make demo").html()


class Checker(html.parser.HTMLParser):
    """Counts open tags, ids and references."""

    EMPTY = {"meta", "br", "path", "use", "rect", "line", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def checked(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def plain(text):
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", text, flags=re.S)).split())


def test_the_page_is_one_whole_file_with_nothing_from_outside(page):
    checker = checked(page)
    assert all(link.startswith("#") for link in checker.links)
    assert not {"script", "link", "img", "iframe"} & checker.tags
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link[1:] in checker.ids for link in checker.links)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 3


def test_names_are_escaped(page):
    assert "AT &amp; &lt;b&gt;mask&lt;/b&gt; $x_1$" in page
    assert "<b>mask" not in page and "Suspect &lt;masking&gt;." in page
    for text in ("AT &amp; &lt;b&gt;mask&lt;/b&gt; $x_1$", "_third"):
        assert text in re.findall(r"<svg.*?</svg>", page, flags=re.S)[1]


def test_figures_stand_side_by_side_with_n_and_interval(page):
    text = plain(page)
    assert "model clean FGSM PGD APGD AutoAttack" in text
    low, high = evaluate.wilson(884, 1000)
    assert f"88.4 {100 * low:.1f} to {100 * high:.1f} 1,000 images" in text
    assert "92.0" in text and "10,000 images" in text
    # plain: FGSM, APGD, AutoAttack; the second: AutoAttack; the third: all four and clean
    assert text.count("not run") == 3 + 1 + 5
    assert "Not run: AutoAttack." in text
    assert "make demo" in text and "tensorflow" in text and "8 x 8" in text
    assert "every pixel may change by up to 0.3" in text


def test_costs_files_and_contract(page):
    text = plain(page)
    for piece in (
        *("1,370", "221 83.9 % removed", "697 k 6.62 x fewer", "66.3 kB", "52 µs"),
        *("int8 1 x 8 x 8 x 1 scale 0.00390625, zero point -128", "1 min 1 s", "fine-tuned"),
        *("PGD-40 on Keras twin", "steps 7", "V / E|z|"),
        *(
            "tflite float32 sparse 66,312 12,345 in gzip float32 1 x",
            "tflite int8 66,312 23,456 in gzip int8 1 x",
        ),
    ):
        assert piece in text, piece
    assert "secret" not in page


def test_doubts_have_a_sentence_each_and_are_not_repeated(page):
    text = plain(page)
    assert text.count("Measured on 360 images.") == 1
    assert "few_images plain AT &amp; &lt;b&gt;mask&lt;/b&gt; $x_1$ Measured on 360" in text
    names = re.search(r"few_images.*?Measured", page, flags=re.S)[0]
    assert names.count("<b>") == 2 and names.count("swatch") == 2  # told apart, commas or not
    assert text.index("masked_gradients") < text.index("few_images")
    assert "90.0 % are still right. Suspect" in text
    clean = report.card("c", {"m": report.Entry(scores(990, {"APGD-T": 900}))})
    assert "raised a doubt" in clean.html()


def test_pictures_use_the_pages_colours(page):
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert not any(re.search(r"#0[0-9]01\d\d|#0[1-4]0[1-4]0[1-4]", picture) for picture in pictures)
    moved = next(p for p in pictures if "zeros" in p)
    assert "var(--zero)" in moved and "6 zeros (60 %)" in moved
    assert "147 / 800" in next(p for p in pictures if "units kept" in p)
    assert "var(--zero)" not in next(p for p in pictures if "epsilon" in p)


def test_histogram_counts_every_unit_once():
    found = report.Entry(vulnerability=vulnerability()).to_dict()["vulnerability"]
    assert found["zeros"] == 2 + 4
    assert sum(found["histogram"]["counts"]) == 10 - 6
    # six bins a decade: 1e-3 is the lower end of bin -18, 0.5 lies in bin -2
    assert found["histogram"]["first"] == -18
    assert found["histogram"]["counts"][-1] == 2 and len(found["histogram"]["counts"]) == 17
    empty = regularizers.Vulnerability({"a": np.zeros(3)}, 0.0, 0.0, 3)
    card = report.card("dead", {"m": report.Entry(vulnerability=empty)})
    assert "3 zeros (100 %)" in card.html()


def test_json_alone_makes_the_page_again(tmp_path):
    card = make()
    assert card.save(tmp_path / "deep" / "card") is card
    folder = tmp_path / "deep" / "card"
    assert sorted(f.name for f in folder.iterdir()) == ["card.html", "card.json"]
    for path in (folder, folder / "card.json"):
        again = report.load(path)
        assert again.to_dict() == card.to_dict()
        assert again.html() == (folder / "card.html").read_text(encoding="utf-8")
    assert evaluate.Scores.from_dict(again.to_dict()["models"]["plain"]["scores"][0]).n == 1000


def test_card_is_strict_json_even_with_infinities(tmp_path):
    nothing = footprint.Footprint([], "nothing")
    entry = report.Entry(footprint=nothing, settings={"beta": np.float32(2), "limit": np.inf})
    card = report.card(
        "odd", {"full": report.Entry(footprint=footprint.lenet_counts()), "e": entry}
    )
    card.save(tmp_path)
    values = json.loads((tmp_path / "card.json").read_text(), parse_constant=pytest.fail)
    assert values["models"]["e"]["gain"]["xflops"] is None
    assert values["models"]["e"]["settings"] == {"beta": 2.0, "limit": None}


def test_summary_speaks_of_the_smallest_attacked_model():
    text = make().to_dict()["summary"]
    assert "97.0 % of clean images and on 88.4 % of 1,000 when APGD attacks them" in text
    assert "6.6 times fewer FLOPs than plain" in text
    assert make(summary="Mine.").to_dict()["summary"] == "Mine."


def judged(classes=3, n=300):
    """An evaluation with an ensemble, a search for the smallest change, and figures by class."""
    each, config = n // classes, {"steps": 100, "attacks": [{"class_name": "APGD"}]}
    per_class = [(each, each - 2, each - 3 * (label + 1)) for label in range(classes)]
    found = [
        evaluate.AttackScore(
            *("AutoAttack", "AutoAttack", rate(270, n), repr(THREAT), 9, config),
            parts=(("APGD-CE", rate(276, n)), ("FAB-T", rate(270, n))),
            queries=5012.4,
            gradients=1234.0,
            skipped={"APGD-T": "needs 4 classes"},
        ),
        evaluate.AttackScore(
            *("DDN-100", "DDN", rate(240, n), "L2(epsilon=1)", 1, {"steps": 100}, 2),
            distances=Distances(295, 298, 1.25, 1.125, None),
        ),
    ]
    families = {score.family: score.rate for score in found}
    return evaluate.Scores(
        *(n, classes, rate(294, n), tuple(found), families, rate(240, n)),
        per_class=tuple(per_class),
        cascade=True,
    )


def test_what_came_of_an_attack_stands_beside_it():
    card = report.card("c", {"net, wide": report.Entry(judged())}, threat=THREAT)
    text = plain(card.html())
    for piece in (
        *("92.0 left after APGD-CE", "90.0 left after FAB-T", "without APGD-T: needs 4 classes"),
        *("5,012 forward", "1,234 backward", "smallest change mean 1.25, median 1.125 (295 of 298"),
        *("2 points outside of the threat", "met only what the attacks before it had left"),
        "DDN-100 L2(epsilon=1) steps 100 net, wide 80.0",
        "model clean FGSM PGD APGD AutoAttack others",
    ):
        assert piece in text, piece
    assert "class_name" not in text and "when DDN attacks" in text
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(card))
    shown = console.export_text()
    assert "others" in shown and "DDN" in shown and max(map(len, shown.splitlines())) <= 80


SPREAD = "lowest of 30 classes median highest a 10.0 98.0 class 29 52.0 98.0 class 15 97.0 98.0"


@pytest.mark.parametrize(
    "classes, shown", [(3, "model 0 1 2 a 97.0 98.0 94.0 98.0 91.0 98.0"), (30, SPREAD)]
)
def test_accuracy_by_class(classes, shown):
    entries = {"a": report.Entry(judged(classes, 100 * classes)), "b": report.Entry()}
    text = plain(report.card("c", entries).html())
    assert "By class" in text and shown in text and "100 images a class" in text


def test_a_card_from_before_these_figures_is_shown_as_it_was(tmp_path):
    values = make().to_dict()
    for part in values["models"].values():
        for file in part["files"]:
            del file["gzip"], file["sparse"]
        for found in part["scores"]:
            del found["per_class"]
            for attack in found["attacks"]:
                for key in ("parts", "queries", "gradients", "distances", "skipped"):
                    del attack[key]
    (tmp_path / "card.json").write_text(json.dumps(values))
    text = plain(report.load(tmp_path).html())
    assert "gzip" not in text and "tflite float32 66,312 float32 1 x" in text
    assert "By class" not in text and "passes an image" not in text and "others" not in text
    assert "PGD-40 Linf(epsilon=0.3) steps 7 plain 0.3 0.1 to 0.9 1,000 images" in text


def test_commands_of_later_judges_are_listed():
    card = report.amended(make(), "plain", judged(), "python -m judge")
    assert "Judged later by python -m judge" in plain(card.html())


def test_a_file_is_measured(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"12345")
    found = report.Entry(files=path).to_dict()["files"]
    assert found[0]["gzip"] == 25 and found[0]["sparse"] is None
    assert found[0]["bytes"] == 5 and found[0]["path"] == "model.keras"
    with pytest.raises(OSError, match="`files` must exist"):
        report.card("x", report.Entry(files=[tmp_path / "none.tflite"]))


def test_zeros_are_counted_beside_the_weights():
    rows = [footprint.Row("logits", "Dense", parameters=5000, nonzero=500)]
    card = report.card("c", {"m": report.Entry(footprint=footprint.Footprint(rows))})
    assert "5 k 500 not 0" in plain(card.html())
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(card))
    assert "500 not 0" in console.export_text()
    assert "not 0" not in plain(make().html())


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_table_is_whole(width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.table(make()))
    text = console.export_text()
    for piece in ("88.4", "86.3-90.2", "n 1,000", "not run", "6.62 x", "int8 66.3 kB", "_third"):
        assert piece in text, piece
    assert max(map(len, text.splitlines())) <= width
    console.print(report.table(models()))


def test_radius_is_written_as_people_write_it():
    for epsilon, text in ((8 / 255, "8/255"), (0.3, "Linf, epsilon 0.3"), (1.0, "epsilon 1")):
        card = report.card("x", report.Entry(), threat=threats.Linf(epsilon))
        assert text in card.to_dict()["threat"]["name"]


def test_nothing_is_written_where_a_card_cannot_go(tmp_path):
    (tmp_path / "taken").write_text("file")
    with pytest.raises(OSError, match="`folder`"):
        make().save(tmp_path / "taken")
    broken = make()
    del broken.to_dict()["limits"]
    with pytest.raises(Exception, match="limits"):
        broken.save(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: report.card("x", {}), ValueError, "`models`"),
        (lambda: report.card("x", {"a": 3}), TypeError, "tr.report.Entry"),
        (lambda: report.card("x", report.Entry(), threat=0.3), TypeError, "`threat`"),
        (lambda: report.card("x", report.Entry(), reference="y"), ValueError, "`reference`"),
        (lambda: report.card("x", report.Entry(), data=3), TypeError, "`data`"),
        (lambda: report.Entry(scores=0.93), TypeError, "`scores` must be a evaluate.Scores"),
        (lambda: report.Entry(footprint=3), TypeError, "`footprint`"),
        (lambda: report.load("no/such/folder"), OSError, "`path` must name a card"),
        (lambda: report.load(__file__), ValueError, "card in JSON"),
        (lambda: report.Card({"schema": 99}), ValueError, "schema 1"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_one_evaluation_makes_up_for_another():
    weak = evaluate.Flag("no_strong_attack", "Only PGD was run.", "Run APGD.", "note")
    pgd = scores(980, {"PGD-40": 900}, flags=(weak,))
    apgd = scores(98, {"APGD-CE": 88}, n=100)
    codes = [f["code"] for f in report.Entry([pgd]).to_dict()["flags"]]
    assert codes == ["no_strong_attack"]
    assert report.Entry([pgd, apgd]).to_dict()["flags"] == []
