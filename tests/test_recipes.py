"""Every recipe walks its whole way on tiny data."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an MNIST of made-up images: a bright square whose place is the class."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 640).astype("uint8")
    x = rng.integers(0, 40, (640, 28, 28)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        row, column = divmod(int(label), 4)
        image[8 * row + 2 : 8 * row + 8, 7 * column : 7 * column + 6] = 250
    np.savez(folder / "mnist.npz", x_train=x[:512], y_train=y[:512], x_test=x[512:], y_test=y[512:])
    return folder


def run(recipe, *flags):
    command = [sys.executable, "-m", f"recipes.{recipe}", "--smoke", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_quickstart(tmp_path):
    out = run("quickstart", "--out", tmp_path / "quickstart")
    for word in ("standard", "adversarial training", "ANP-VS, shrunk", "APGD", "not run"):
        assert word in out
    made = {path.name for path in (tmp_path / "quickstart").iterdir()}
    assert made == {"model.keras", "model.tflite", "model_int8.tflite", "card.json", "card.html"}


@pytest.mark.slow
def test_mnist_front_with_twins(folder, tmp_path):
    flags = ("--data-dir", folder, "--work", tmp_path)
    out = run("mnist_anp_vs", "--twins", *flags)
    made = tmp_path / "smoke"
    names = {"mnist_anp_vs_2x", "mnist_anp_vs_6x", "mnist_scratch_2x", "mnist_scratch_6x"}
    assert {path.name for path in made.iterdir()} == names
    for gain in ("2x", "6x"):
        cards = [json.loads((made / f"mnist_{kind}_{gain}" / "card.json").read_text())
                 for kind in ("anp_vs", "scratch")]  # fmt: skip
        sizes = [next(iter(c["models"].values()))["footprint"]["flops"] for c in cards]
        assert sizes[0] == sizes[1]
    assert "processor seconds" in out
    assert run("mnist_anp_vs", "--twins", "--resume", *flags)


@pytest.mark.slow
def test_mnist_at(folder, tmp_path):
    run("mnist_at", "--data-dir", folder, "--work", tmp_path)
    assert (tmp_path / "smoke" / "mnist_at" / "card.html").exists()


def test_autoattack_of_saved_models(folder, tmp_path):
    flags = ("--data-dir", folder, "--work", tmp_path, "--only", "mnist_anp_vs_6x")
    out = run("autoattack", *flags)
    for word in ("mnist_anp_vs_6x", "after FAB-T", "worst case of all"):
        assert word in out
