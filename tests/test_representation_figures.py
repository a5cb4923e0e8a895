"""Pictures of representations and of the feature game, and their place on cards."""

import json

import numpy as np
import pytest

import tfrobust as tr
from tests import bank, bank_afd
from tests.test_report import checked

D, R = tr.diagnostics, tr.report
NAMES = tuple(R.representation.FIELDS)


def curve(attack, *counts):
    rates = tuple(tr.evaluate.Rate(count, 10) for count in counts)
    return tr.evaluate.Curve(attack, "linf", (0.0, 0.1, 0.3), rates)


def trace():
    made = D.DiscriminatorTrace()
    made.rows = [
        {"step": 2 * k, "discriminator_accuracy": 0.9 - 0.1 * k, "encoder_loss": 0.7,
         "discriminator_loss": 1.2, "feature_shift": None if k else 0.2, "encoder_gradient": 0.1}
        for k in range(3)
    ]  # fmt: skip
    return made


@pytest.fixture(scope="module")
def results():
    """One result of each kind, of a net nobody trained."""
    net, x, y = bank_afd.net(normalized=False), bank.images(9), np.arange(9) % 4
    far, near = np.clip(x + 0.3, 0, 1), np.clip(x - 0.1, 0, 1)
    shift = {e: D.representation_sensitivity(net, x, v) for e, v in ((0.3, far), (0.1, near))}
    return {
        "areas": {"PGD": curve("PGD", 10, 5, 0), "C&W": curve("CW", 10, 10, 10)},
        "sensitivity": shift,
        "angles": {"DDN": D.perturbation_angles(net, x, far, near), "itself": D.Angles(x[:0], 9)},
        "dimensions": D.feature_dimensions(net, x),
        "class_gradients": D.class_gradients(net, x, y % 3),  # class 3 has no images
        "trace": trace(),
        "planes": D.tsne_planes(net, x, y, {0.3: far, 0.1: near}, perplexity=3),
        "visualised": {
            "true class": D.visualise_class(net, x, y, steps=2),
            "another": D.visualise_class(net, x, (y + 1) % 4, steps=2),
        },
    }


def test_planes_hold_the_same_images_in_order(results):
    planes = results["planes"]
    assert planes.epsilons == (0.1, 0.3) and planes.pairs.shape == (2, 2, 9, 2)
    net, x = bank_afd.net(normalized=False), bank.images(9)
    both = D.tsne(net, np.concatenate([x, np.clip(x - 0.1, 0, 1)]), perplexity=3)
    np.testing.assert_array_equal(planes.pairs[0].reshape(18, 2), both)
    np.testing.assert_array_equal(planes.clean, D.tsne(net, x, perplexity=3))
    with pytest.raises(TypeError, match="`x_adv` must be a dict {epsilon: images}. Received: list"):
        D.tsne_planes(net, x, np.zeros(9, int), [x])
    with pytest.raises(ValueError, match="`x_adv` must have the shape of `x`"):
        D.tsne_planes(net, x, np.zeros(9, int), {0.1: x[:3]}, perplexity=3)


@pytest.mark.parametrize("name", NAMES)
def test_one_result_several_and_cards_are_drawn(results, name, tmp_path):
    draw, found = getattr(R, f"plot_{name}"), results[name]
    one = draw(found, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
    two = draw({"a": found, "_b $x$": found})
    assert len(two.axes) >= len(one.axes)
    card = R.card("c", R.Entry(**{name: found}))
    again = draw([card, R.card("d", {"c": R.Entry(**{name: found})})])
    assert len(again.axes) == len(two.axes)
    with pytest.raises(ValueError, match="`found` must hold"):
        draw(R.card("empty", R.Entry()))
    with pytest.raises((TypeError, ValueError), match="`found` must hold"):
        draw({})
    for wrong in (3, {"a": 3}, {"a": {"b": 3}}, {"a": None}):
        with pytest.raises(TypeError) as error:
            draw(wrong)
        assert "Received: " in str(error.value) and "\n" not in str(error.value)


def test_drawn_values_are_those_given(results):
    """One curve by hand: medians over epsilon from 0; areas in legends; accuracy of the trace."""
    (axes,) = R.plot_sensitivity(results["sensitivity"]).axes
    told = [0.0, *(results["sensitivity"][e].median for e in (0.1, 0.3))]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), np.transpose([[0, 0.1, 0.3], told]))
    areas = R.plot_areas({"AFD": results["areas"]}).axes
    labels = [one.get_legend_handles_labels()[1] for one in areas[:2]]
    # (10 + 5) / 2 * 0.1 + (5 + 0) / 2 * 0.2, of 10 and of 0.3
    assert labels == [["0.42 AFD"], ["1.00 AFD"]]
    assert [one.get_title(loc="left") for one in areas[:2]] == ["PGD", "C&W"]
    first = R.plot_trace(results["trace"]).axes[0].lines[0]
    np.testing.assert_allclose(first.get_xydata(), [[0, 0.9], [2, 0.8], [4, 0.7]])
    bars = R.plot_angles(results["angles"]).axes[0].patches
    assert [bar.get_width() for bar in bars] == [pytest.approx(results["angles"]["DDN"].mean)]
    matrix = R.plot_class_gradients(results["class_gradients"]).axes[0].images[0].get_array()
    np.testing.assert_allclose(matrix[:3], results["class_gradients"].matrix[:3])
    found = results["dimensions"]
    line, dot = R.plot_dimensions(found).axes[0].lines[:2]
    np.testing.assert_allclose(line.get_ydata(), 100 * np.cumsum(found.explained), atol=1e-3)
    assert dot.get_xdata()[0] == found.dimensions


@pytest.mark.slow
def test_card_has_a_place_for_all_of_them(results, tmp_path):
    entries = {"AFD <1>": R.Entry(**results), "plain": R.Entry()}
    card = R.card("game", entries, command="make game", date="2026-01-01")
    card.save(tmp_path)
    again = R.load(tmp_path)
    page = again.html()
    assert page == (tmp_path / "card.html").read_text()
    checker = checked(page)
    assert len(checker.ids) == len(set(checker.ids))
    for words in ("What does an attack do to the representation?", "9 of 9 pairs left out",
                  "A discriminator that guesses", "t-SNE"):  # fmt: skip
        assert words in page
    assert {"trace-", "planes-", "areas-"} <= {f"{i.split('-')[0]}-" for i in checker.ids}
    part = json.loads((tmp_path / "card.json").read_text())["models"]["AFD <1>"]
    assert set(NAMES) <= set(part) and part["dimensions"]["features"] == 6
    assert part["areas"]["C&W"]["auc"] == 1.0
    found = R.entry.unpacked(part["trace"])
    assert found["values"].shape == (3, 6) and np.isnan(found["values"][1:, 4]).all()
    plain = R.card("plain", entries["plain"])
    assert "representation?" not in plain.html()
    assert not set(NAMES) & set(plain.to_dict()["models"]["plain"])


def test_amended_card_has_new_explanations_beside_its_old(results):
    card = R.card("game", R.Entry(trace=results["trace"]), command="make game")
    new = R.amended(card, "game", entry=R.Entry(dimensions=results["dimensions"]))
    part = new.to_dict()["models"]["game"]
    assert {"trace", "dimensions"} <= set(part)
    page = new.html()
    assert "A discriminator that guesses" in page and 'id="dimensions-' in page
    assert "dimensions" not in card.to_dict()["models"]["game"]
    with pytest.raises(TypeError, match=r"`entry` must be a tr\.report\.Entry"):
        R.amended(card, "game", entry=3)
    with pytest.raises(TypeError, match=r"`scores` must be a tr\.evaluate\.Scores"):
        R.amended(card, "game", 0.9)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"trace": 3}, r"`trace` must be a tr\.diagnostics\.DiscriminatorTrace. Received: int"),
        ({"areas": curve("PGD", 1, 1, 1)}, r"`areas` must be a dictionary of tr\.evaluate\.Curve"),
        ({"angles": {"DDN": 3}}, r"`angles` must hold tr\.diagnostics\.Angles. Received: int"),
        ({"sensitivity": {}}, "Received: dict without entries"),
    ],
)
def test_entry_refuses_other_things(wrong, match):
    with pytest.raises(TypeError, match=match):
        R.Entry(**wrong)
