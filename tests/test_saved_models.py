"""Every committed model loads, and the cheap figures of its card are derived again."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest

import tfrobust as tr
from tests import bank

ROOT = pathlib.Path(__file__).parents[1] / "saved_models"
FOLDERS = sorted(p.parent for p in ROOT.glob("*/card.json") if p.parent.name != "quickstart")
some_cards = pytest.mark.parametrize("folder", bank.thinned(FOLDERS, step=3), ids=lambda f: f.name)


def models():
    """(folder, title, its card, entry) of every net that a card ships."""
    for folder in FOLDERS:
        values = json.loads((folder / "card.json").read_text())
        for title, entry in values["models"].items():
            if any(file["format"] == "keras" for file in entry["files"]):
                yield folder, title, values, entry


def nets(quick=1):
    """Parametrizes over all shipped nets; the fast suite takes each `quick`-th."""
    return pytest.mark.parametrize(
        ("folder", "card", "entry"),
        [
            pytest.param(
                folder, card, entry, id=f"{folder.name}-{title}".replace(" ", "_"),
                marks=[pytest.mark.slow] if number % quick else [],
            )
            for number, (folder, title, card, entry) in enumerate(models())
        ],
    )  # fmt: skip


every_net, some_nets = nets(), nets(4)


def path_of(folder, entry, form, quantize=None):
    """The shipped file of that format."""
    names = [
        file["path"]
        for file in entry["files"]
        if (file["format"], file.get("quantize")) == (form, quantize)
    ]
    return folder / names[0] if names else None


def test_there_are_models():
    assert list(models())


@every_net
def test_sizes_of_the_card(folder, card, entry):
    net = keras.saving.load_model(path_of(folder, entry, "keras"), safe_mode=True)
    again = tr.footprint.measure(net)
    for name in ("flops", "parameters", "units", "macs"):
        assert entry["footprint"][name] == getattr(again, name)
    for file in entry["files"]:
        assert (folder / file["path"]).stat().st_size == file["bytes"] < 4 * 2**20


@every_net
def test_exported_files_answer_like_the_model(folder, card, entry):
    if (path := path_of(folder, entry, "tflite")) is None:
        pytest.skip("a start for other recipes, not exported")
    net = keras.saving.load_model(path_of(folder, entry, "keras"))
    x = np.random.default_rng(0).uniform(0, 1, (64, *net.input_shape[1:])).astype("float32")
    want = tr.attacks.forward(net, x)
    got = tr.export.predict(path, x)
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))
    contract = next(f for f in entry["files"] if f.get("quantize") == "int8")["input"]
    assert contract["dtype"] == "int8" and contract["scale"] > 0


@some_cards
def test_page_follows_from_the_json(folder):
    assert tr.report.load(folder).html() == (folder / "card.html").read_text()


@some_nets
@pytest.mark.skipif("TFROBUST_DATA_DIR" not in os.environ, reason="needs the data sets")
def test_clean_accuracy_of_the_card(folder, card, entry):
    data = tr.data.load(card["data"]["name"].lower().replace("-", ""))
    net = keras.saving.load_model(path_of(folder, entry, "keras"))
    count = entry["clean"]["n"]
    assert count == len(data.x_test) or f"--test-images {count}" in card["command"]
    right = ~tr.attacks.verdicts(net, data.x_test[:count], data.y_test[:count])
    assert abs(entry["clean"]["count"] - int(right.sum())) <= 1  # one image may lie on a boundary


def test_results_pages_follow_from_the_cards():
    from recipes import results

    plots = {k: v for page in results.PLOTTED for k, v in page.plots().items()}
    for name, text in {**results.pages(), **plots}.items():
        assert (ROOT.parent / name).read_text() == text, name
