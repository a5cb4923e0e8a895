"""The rooms from the shell, and the one line with which bad input ends."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfrobust as tr
from tfrobust import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained digits net, the same with a third of its channels gated shut, and bad files."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    data = tr.data.load("digits")
    net = tr.models.digits_net()
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(data.x_train, data.y_train, epochs=3, verbose=0)
    net.save(folder / "net.keras")
    masked = tr.models.digits_net(mask=tr.layers.BetaBernoulliMask)
    for mask in tr.layers.masks(masked):
        a = mask.trainable_variables[0]
        a.assign(np.where(np.arange(a.shape[0]) % 3, 2.0, -9.0))
    masked.save(folder / "masked.keras")
    image = keras.Input((8, 8, 1))
    soft = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(image))
    keras.Model(image, soft).save(folder / "soft.keras")
    (folder / "broken.keras").write_bytes(b"not a zip")
    (folder / "file").write_text("in the way")
    return folder


def run(*words):
    return cli.main([str(word) for word in words])


def test_evaluate_prints_and_writes_the_same_scores(folder, capsys, tmp_path):
    words = ["evaluate", folder / "net.keras", "--data", "digits", "--threat", "linf:8/255"]
    words += ["--attack", "fgsm,pgd", "--steps", 4, "--restarts", 2, "--n", 64]
    assert run(*words, "--json", tmp_path / "out.json") == 0
    printed = capsys.readouterr().out
    assert "FGSM" in printed and "PGD-4" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["n"] == 64 and "linf:8/255" in written["command"]
    data = tr.data.load("digits")
    threat = tr.threats.Linf(8 / 255)
    attacks = [tr.attacks.FGSM(threat), tr.attacks.PGD(threat, steps=4, restarts=2)]
    net = keras.saving.load_model(folder / "net.keras")
    scores = tr.evaluate.robustness(
        net, (data.x_test, data.y_test), attacks, max_examples=64, progress=False
    )
    again = tr.evaluate.Scores.from_dict(written)
    assert again.clean == scores.clean and again.joint == scores.joint


def test_shrink_writes_the_same_classifier(folder, capsys, tmp_path):
    assert run("shrink", folder / "masked.keras", "-o", tmp_path / "small.keras") == 0
    assert "parameters" in capsys.readouterr().out
    masked = keras.saving.load_model(folder / "masked.keras")
    small = keras.saving.load_model(tmp_path / "small.keras")
    x = tr.data.load("digits").x_test[:50]
    wanted = masked(x, training=False)
    np.testing.assert_allclose(small(x), wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    assert small.count_params() < masked.count_params()


def test_export_states_the_input_contract(folder, capsys, tmp_path):
    words = ["export", folder / "net.keras", "-o", tmp_path / "net.tflite", "--quantize", "int8"]
    assert run(*words, "--data", "digits", "--json", tmp_path / "out.json") == 0
    assert "zero point -128" in " ".join(capsys.readouterr().out.split())
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["input"]["dtype"] == "int8" and written["latency_ms"] > 0
    assert written["bytes"] == (tmp_path / "net.tflite").stat().st_size


def test_card_is_written_whole(folder, capsys, tmp_path):
    words = ["card", folder / "net.keras", "--data", "digits", "--threat", "linf:0.1", "--n", 32]
    assert run(*words, "--attack", "fgsm", "-o", tmp_path / "card") == 0
    assert "not run" in capsys.readouterr().out  # AutoAttack, PGD
    card = tr.report.load(tmp_path / "card")
    part = card.to_dict()["models"]["net"]
    assert part["scores"][0]["n"] == 32 and part["files"][0]["path"] == "net.keras"
    assert sorted(p.name for p in (tmp_path / "card").iterdir()) == ["card.html", "card.json"]


@pytest.mark.parametrize(
    ("text", "parts"), [("linf:0.3", ("linf", 0.3)), ("l2:1/2", ("l2", 0.5)), ("l1:12", ("l1", 12))]
)
def test_threat_parts(text, parts):
    assert cli.threat_parts(text) == parts


JUDGE = ["--data", "digits", "--threat", "linf:0.1", "--n", "16", "--attack", "fgsm"]
BAD = [
    ("no command", [], "arguments are required: COMMAND"),
    ("no such file", ["evaluate", "absent.keras", *JUDGE], "must be an existing file"),
    ("other suffix", ["evaluate", "file", *JUDGE], "must be a .keras file"),
    ("broken file", ["evaluate", "broken.keras", *JUDGE], "must load in Keras's safe mode"),
    ("softmax", ["evaluate", "soft.keras", *JUDGE], "tr.models.prepare"),
    ("grey levels", ["evaluate", "net.keras", *JUDGE, "--threat", "linf:8"], "write 8/255"),
    ("threat", ["evaluate", "net.keras", *JUDGE, "--threat", "0.3"], "expected linf:EPSILON"),
    ("fraction", ["evaluate", "net.keras", *JUDGE, "--threat", "linf:8/0"], "such as 0.3 or 8/255"),
    ("attack", ["evaluate", "net.keras", *JUDGE, "--attack", "pdg"], "Received: pdg"),
    ("count", ["evaluate", "net.keras", *JUDGE, "--n", "0"], "integer >= 1 or 'all'"),
    ("data", ["evaluate", "net.keras", *JUDGE, "--data", "emnist"], "emnist"),
    ("other data", ["evaluate", "net.keras", *JUDGE, "--data", "small.npz"], "small.npz"),
    ("json", ["evaluate", "net.keras", *JUDGE, "--json", "file/out.json"], "`--json` must be"),
    ("card folder", ["card", "net.keras", *JUDGE, "-o", "file/card"], "`--output` must be"),
    ("module", ["evaluate", "net.keras", *JUDGE, "--import", "no_such_layers"], "no_such_layers"),
    ("shrink target", ["shrink", "masked.keras", "-o", "file/small.keras"], "`--output` must be"),
    ("shrink suffix", ["shrink", "masked.keras", "-o", "small.h5"], "must end in '.keras'"),
    ("masks", ["export", "masked.keras", "-o", "m.tflite"], "tr.shrink.compact"),
    ("int8", ["export", "net.keras", "-o", "m.tflite", "--quantize", "int8"], "`calibration`"),
]


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_bad_input_is_one_line(words, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("tfrobust: error: ") and message in printed.err
    assert sorted(folder.iterdir()) == before


def test_debug_shows_the_traceback(folder, monkeypatch):
    monkeypatch.setenv("TFROBUST_DEBUG", "1")
    with pytest.raises(OSError, match="must be an existing file"):
        run("shrink", folder / "absent.keras", "-o", "small.keras")


LAYER = """
import keras
@keras.saving.register_keras_serializable(package="mine")
class Halve(keras.layers.Layer):
    def call(self, x):
        return x / 2
"""


def test_import_makes_own_layers_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halving_layers.py").write_text(LAYER)
    names = {}
    exec(LAYER, names)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(names["Halve"]()(image))
    keras.Model(image, keras.layers.Dense(10)(x)).save("own.keras")
    del keras.saving.get_custom_objects()["mine>Halve"]  # as in a process that never saw it
    assert run("export", "own.keras", "-o", "own.tflite") == 2
    assert "--import" in capsys.readouterr().err
    assert run("export", "own.keras", "-o", "own.tflite", "--import", "halving_layers") == 0


def test_help_answers_without_tensorflow():
    code = (
        "import sys, tfrobust_cli\n"
        "try:\n    tfrobust_cli.main(['evaluate', '--help'])\n"
        "except SystemExit as stop:\n    print('code', stop.code)\n"
        "print([name for name in ('tensorflow', 'keras', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--threat NORM:EPSILON" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["code 0", "[]"]
