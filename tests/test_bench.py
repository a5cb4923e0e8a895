"""The benchmark's arithmetic; the benchmark itself runs in `make bench`."""

import pytest

from bench import page, timing


def test_every_round_runs_every_contender_and_the_first_is_not_timed():
    calls = []
    contenders = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = timing.interleaved(contenders, rounds=3)
    assert "".join(calls) == "abababab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_before_the_median():
    # The machine slows down tenfold in round 3: the ratio does not notice.
    table = timing.rows({"floor": [1.0, 2.0, 10.0], "ours": [1.1, 2.2, 11.0]}, "floor")
    assert [row["ratio"] for row in table] == pytest.approx([1.0, 1.1])
    assert table[1]["seconds"] == 2.2


def test_the_page_follows_from_what_was_measured():
    made = page.page(
        page.read("agreement.json"), page.read("results.json"), page.read("scale.json")
    )
    assert page.PAGE.read_text() == made
    parts = page.read("agreement.json"), page.read("results.json"), page.read("no such file")
    assert "Not measured" in page.page(*parts)


def test_a_page_says_what_was_not_met():
    rows = {
        "PGD, tfrobust": {"robust": 905, "images": 1000, "clean": 990},
        "PGD, foolbox": {"robust": 900, "images": 1000, "clean": 990},
        "DDN, tfrobust": {"median": 1.0, "found": 98, "clean": 99, "images": 100},
    }
    models = {"net": rows}
    assert "not met" in next(page.asked(models))
    table = list(page.strength(models))
    assert "905" in table[0] and "900" in table[0]
    assert "1.0000 (1 not found)" in table[1]
