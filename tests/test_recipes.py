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


@pytest.mark.slow  # tests/test_docs.py walks README's way in the fast suite
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


@pytest.mark.slow
def test_autoattack_of_saved_models(folder, tmp_path):
    flags = ("--data-dir", folder, "--work", tmp_path, "--only", "mnist_anp_vs_6x")
    out = run("autoattack", *flags)
    for word in ("mnist_anp_vs_6x", "after FAB-T", "worst case of all"):
        assert word in out


def test_the_page_on_sparsity_says_what_the_json_holds(tmp_path):
    """Two references by hand: r_2 2.0, 2.2, 1.8 and 2.2, 2.4, 2.0; accuracy 0.98, 0.99, 0.975."""
    from recipes import results_sparsity

    def chain(shift):
        rows = [
            {"round": n, "left": left, "of": 9, "accuracy": a, "fgs": {"value": 0.3, "n": 8},
             "deepfool": {"value": r + shift, "n": 4}, "silent": 0.5}
            for n, (left, a, r) in enumerate([(9, 0.98, 2.0), (6, 0.99, 2.2), (4, 0.975, 1.8)])
        ]  # fmt: skip
        return {"rows": rows, "l1": [{"penalty": 1e-4, **rows[1]}]}

    plan = {"title": "LeNet-300-100", "penalties": [1e-4]}
    results = {
        "command": "python -m recipes.made_up",
        "settings": {
            "epsilon": 0.1, "batch": 10, "optimizer": "SGD", "decay": 0.0,
            "images": {"rfgs": 8, "pgd": 8, "deepfool": 4, "cw": 2}, "attacks": {"cw": "CW"},
            "plans": {"lenet300_100": plan},
        },
        "nets": {"lenet300_100": [chain(0.0), chain(0.2)], "lenet5": []},
    }  # fmt: skip
    assert results_sparsity.pages(tmp_path) == {}
    path = tmp_path / results_sparsity.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(results))
    page = results_sparsity.pages(tmp_path)["docs/results/sparsity.md"]
    assert "| 66.67 | 99.00 +- 0.00 | 0.3000 +- 0.0000 | 2.3000 +- 0.1414 | 50.00 +- 0.00 |" in page
    assert "dense 2.1000, after the first round +9.5 %, highest 2.3000 (+9.5 %) with 66.67" in page
    assert "at the end -9.5 %; above its dense value at some round in 2 of 2 references" in page
    assert "yes, with 44.44 % of the weights left (r_2 -9.5 %, accuracy -0.51 %)" in page
    assert "| 0.0001 | 0.3000" in page and "found nothing" not in page and "nan" not in page


@pytest.mark.slow
def test_sparsity_and_robustness(folder, tmp_path):
    """One small run, finished by --resume, and the page that is built from its JSON."""
    from recipes import results_sparsity

    flags = ("--data-dir", folder, "--work", tmp_path, "--nets", "linear_1v7")
    out = run("sparsity_robustness", *flags)
    assert "round  3/3" in out and "70.28 % pruned" in out
    made = tmp_path / "smoke" / "out" / "sparsity_robustness"
    results = json.loads((made / "results.json").read_text())
    (chain,) = results["nets"]["linear_1v7"]
    assert [row["left"] for row in chain["rows"]] == [784, 523, 349, 233]
    assert "done before" in run("sparsity_robustness", "--resume", *flags)
    assert json.loads((made / "results.json").read_text()) == results
    assert results_sparsity.pages(tmp_path) == {}
    (tmp_path / "saved_models").mkdir()
    made.rename(tmp_path / "saved_models" / "sparsity_robustness")
    page = results_sparsity.pages(tmp_path)["docs/results/sparsity.md"]
    for row in chain["rows"]:
        assert f"| {100 * row['left'] / row['of']:.2f} | {100 * row['accuracy']:.2f} |" in page
        assert f"{row['exact_deepfool']['value']:.4f}" in page
    assert "nan" not in page and results["command"] in page
