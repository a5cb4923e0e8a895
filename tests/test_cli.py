"""The rooms from the shell, and the one line with which bad input ends."""

import contextlib
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfrobust as tr
import tfrobust_cli

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained digits net, the same with a third of its channels gated shut, and bad files."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    data = tr.data.load("digits")
    net = tr.models.digits_net()
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(data.x_train, data.y_train, batch_size=64, verbose=0)
    net.save(folder / "net.keras")
    tr.pruning.prune(net, 0.9)
    net.save(folder / "pruned.keras")
    masked = tr.models.digits_net(mask=tr.layers.BetaBernoulliMask)
    for mask in tr.layers.masks(masked):
        a = mask.trainable_variables[0]
        a.assign(np.where(np.arange(a.shape[0]) % 3, 2.0, -9.0))
    masked.save(folder / "masked.keras")
    image = keras.Input((8, 8, 1))
    soft = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(image))
    keras.Model(image, soft).save(folder / "soft.keras")
    rows = data.y_train < 2
    x, y = data.x_train[rows], data.y_train[rows]
    np.savez(folder / "two.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    two = keras.layers.Dense(2)(keras.layers.Flatten()(image))
    keras.Model(image, two).save(folder / "two.keras")
    with contextlib.chdir(folder):
        twice = keras.layers.Lambda(lambda x: (pathlib.Path("ran").touch(), 2 * x)[1])(image)
        soft = keras.layers.Dense(10)(keras.layers.Flatten()(twice))
        keras.Model(image, soft).save("lambda.keras")
        pathlib.Path("ran").unlink()
    (folder / "broken.keras").write_bytes(b"not a zip")
    (folder / "file").write_text("in the way")
    return folder


def run(*words):
    return tfrobust_cli.main([str(word) for word in words])


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


def test_verify_prints_and_writes_the_certificate(folder, capsys, tmp_path):
    words = ["verify", folder / "net.keras", "--data", "digits", "--threat", "linf:0.01"]
    words += ["--method", "ibp", "--n", 32, "--epsilons", "0.005", "--json", tmp_path / "out.json"]
    assert run(*words, "--state", tmp_path / "state") == 0
    printed = capsys.readouterr().out
    assert "verified at 0.005" in printed and "under attack" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    proof = tr.verify.Certificate.from_dict({k: v for k, v in written.items() if k != "command"})
    assert proof.n == 32 and proof.verified.count <= proof.attacked.count <= proof.clean.count
    assert set(tfrobust_cli.METHODS) == {"auto", "exact", *tr.bounds.METHODS}


def test_shrink_writes_the_same_classifier(folder, capsys, tmp_path):
    assert run("shrink", folder / "masked.keras", "-o", tmp_path / "small.keras") == 0
    printed = capsys.readouterr().out
    flops = [
        tr.footprint.measure(net).flops
        for net in (
            tr.models.digits_net(),
            keras.saving.load_model(tmp_path / "small.keras"),
        )
    ]
    assert all(f"{count:,}" in printed for count in flops) and "parameters" in printed
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


@pytest.mark.filterwarnings("default:.sparse. does not make")
def test_export_without_zeros(folder, capsys, tmp_path):
    words = ["export", folder / "pruned.keras", "-o", tmp_path / "net.tflite"]
    assert run(*words, "--sparse", "--json", tmp_path / "out.json") == 0
    printed = capsys.readouterr()
    assert "float32 sparse" in printed.out and printed.err == ""
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["sparse"] and written["gzip"] < written["bytes"]
    dense = tr.footprint.measure(keras.saving.load_model(folder / "pruned.keras")).bytes
    assert written["bytes"] < dense / 2
    assert run("export", folder / "net.keras", *words[2:], "--sparse") == 0
    assert "does not make this file smaller" in capsys.readouterr().err


def test_card_is_written_whole(folder, capsys, tmp_path):
    words = ["card", folder / "net.keras", "--data", "digits", "--threat", "linf:0.1", "--n", 32]
    words += ["--attack", "fgsm", "--verify", "ibp", "--epsilons", "0.01"]
    assert run(*words, "--state", tmp_path / "state", "-o", tmp_path / "card") == 0
    printed = capsys.readouterr().out
    assert "not run" in printed and "undecided" in printed  # AutoAttack, PGD
    assert "worst case" not in printed and str(tmp_path / "card") in printed.replace("\n", "")
    card = tr.report.load(tmp_path / "card")
    part = card.to_dict()["models"]["net"]
    assert part["scores"][0]["n"] == 32 and part["files"][0]["path"] == "net.keras"
    proof = tr.verify.Certificate.from_dict(part["certificate"][0])
    assert proof.n == 32 and proof.curve.epsilons == (0.0, 0.01, 0.1)
    assert proof.verified.count <= part["scores"][0]["joint"]["count"]
    assert proof.stages[1].name == "ibp" and (tmp_path / "state.verify").exists()
    assert sorted(p.name for p in (tmp_path / "card").iterdir()) == ["card.html", "card.json"]


@pytest.mark.parametrize("pixels", ["0,255", "-1,1"])
def test_prepare_brings_a_model_into_the_contract(pixels, folder, capsys, tmp_path):
    words = ["prepare", folder / "soft.keras", "-o", tmp_path / "ready.keras"]
    assert run(*words, "--pixel-range", pixels) == 0
    assert "returns logits of 10 classes" in capsys.readouterr().out
    low, high = map(float, pixels.split(","))
    x = tr.data.load("digits").x_test[:20]
    ready = keras.saving.load_model(tmp_path / "ready.keras")
    wanted = keras.saving.load_model(folder / "soft.keras")(x * (high - low) + low)
    np.testing.assert_allclose(keras.ops.softmax(ready(x)), wanted, atol=1e-5)
    judge = [*JUDGE[:-1], " PGD,fgsm ", "--steps", "2", "--threat", "Linf:0.1"]
    assert run("evaluate", tmp_path / "ready.keras", *judge) == 0
    assert "PGD-2" in capsys.readouterr().out


@pytest.mark.parametrize("threat", ["l1:2", "linf:0.1"])
def test_default_attacks_fit_two_classes_and_every_norm(threat, folder, capsys):
    words = ["evaluate", folder / "two.keras", "--data", folder / "two.npz", "--threat", threat]
    assert run(*words, "--n", 8, "--steps", 2, "--apgd-steps", 2, "--cascade") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("PGD-2", "APGD-CE", "APGD-margin", "Cascade"))


@pytest.mark.slow
def test_autoattack_in_the_shell(folder, capsys):
    words = ["evaluate", folder / "net.keras", "--data", "digits", "--threat", "linf:0.1"]
    assert run(*words, "--n", 8, "--attack", "autoattack", "--second-opinion", 2) == 0
    assert "after FAB-T" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "parts"), [("linf:0.3", ("linf", 0.3)), ("L2:1/2", ("l2", 0.5)), ("l1:12", ("l1", 12))]
)
def test_threat_parts(text, parts):
    assert tfrobust_cli.threat_parts(text) == parts


def chosen(*words, classes=10):
    judge = ["evaluate", "m.keras", "--data", "digits", "--threat", "l2:1", *words]
    return tfrobust_cli.chosen(tfrobust_cli.parser().parse_args(judge), classes)


def test_every_attack_of_the_table_can_be_made():
    threat = tr.threats.L2(1.0)
    made = {}
    for name in tfrobust_cli.ATTACKS:
        ((kind, settings),) = chosen("--attack", name.upper(), "--seed", "3")
        made[name] = getattr(tr.attacks, kind)(threat, **settings)
        assert made[name].seed == 3
    configs = [(type(attack), str(attack.get_config())) for attack in made.values()]
    assert len(set(configs)) == len(made)
    shells = {type(attack) for attack in made.values()}
    kinds = {k for k in map(tr.attacks.__dict__.get, tr.attacks.__all__) if isinstance(k, type)}
    finished = {k for k in kinds if issubclass(k, tr.attacks.Attack) and k not in NOT_IN_THE_SHELL}
    assert finished == shells


# Bases of attacks, and those that are made of other objects than a threat.
NOT_IN_THE_SHELL = {
    getattr(tr.attacks, name, None)
    for name in ("Attack", "MinimumNorm", "WorstCase", "Borrowed", "Transfer")
}


def test_options_reach_the_attacks_that_take_them():
    words = ["--attack", "pgd,bim,apgd-t,square", "--steps", "7", "--apgd-steps", "9"]
    words += ["--step-size", "1/4", "--restarts", "2", "--queries", "50", "--eot", "3"]
    shared = {"seed": 0, "eot": 3}
    assert chosen(*words) == [
        ("PGD", {**shared, "steps": 7, "step_size": 0.25, "restarts": 2}),
        ("BIM", {**shared, "steps": 7, "step_size": 0.25}),
        ("APGD", {**shared, "steps": 9, "loss": "dlr_targeted", "targets": 9}),
        ("Square", {**shared, "queries": 50}),
    ]
    assert [settings.get("loss") for _, settings in chosen()] == [None, "ce", "dlr_targeted"]
    assert chosen(classes=3)[-1] == ("APGD", {"seed": 0, "loss": "margin"})


JUDGE = ["--data", "digits", "--threat", "linf:0.1", "--n", "16", "--attack", "fgsm"]
BAD = [
    ("no command", [], "arguments are required: COMMAND"),
    ("no such file", ["evaluate", "absent.keras", *JUDGE], "must be an existing file"),
    ("other suffix", ["evaluate", "file", *JUDGE], "must be a .keras file"),
    ("broken file", ["evaluate", "broken.keras", *JUDGE], "is no .keras archive"),
    ("softmax", ["evaluate", "soft.keras", *JUDGE], "tr.models.prepare"),
    ("grey levels", ["evaluate", "net.keras", *JUDGE, "--threat", "linf:8"], "write 8/255"),
    ("threat", ["evaluate", "net.keras", *JUDGE, "--threat", "0.3"], "expected linf:EPSILON"),
    ("fraction", ["evaluate", "net.keras", *JUDGE, "--threat", "linf:8/0"], "such as 0.3 or 8/255"),
    ("attack", ["evaluate", "net.keras", *JUDGE, "--attack", "pdg"], "Received: pdg"),
    ("no attack", ["evaluate", "net.keras", *JUDGE, "--attack", "fgsm,"], "Received: ''"),
    ("norm", ["evaluate", "net.keras", *JUDGE, "--attack", "ddn"], "must be tr.threats.L2 for DDN"),
    (
        "classes",
        ["evaluate", "two.keras", *JUDGE, "--data", "two.npz", "--attack", "apgd-t"],
        "4 classes or more",
    ),
    ("idle option", ["evaluate", "net.keras", *JUDGE, "--queries", "9"], "that takes it: square"),
    (
        "draws",
        ["evaluate", "net.keras", *JUDGE, "--attack", "pgd,autoattack", "--eot", "9"],
        "autoattack-rand averages over 20 draws",
    ),
    ("count", ["evaluate", "net.keras", *JUDGE, "--n", "0"], "integer >= 1"),
    (
        "no file",
        ["evaluate", "net.keras", *JUDGE, "--data", "no.npz"],
        "--data must be an existing",
    ),
    ("code", ["evaluate", "lambda.keras", *JUDGE], "arbitrary code execution"),
    ("method", ["verify", "net.keras", *JUDGE[:-2], "--method", "milp"], "invalid choice: 'milp'"),
    (
        "no box",
        ["verify", "net.keras", *JUDGE[:-2], "--method", "exact", "--threat", "l2:1"],
        "must be a tr.threats.Linf for complete verification",
    ),
    ("method on a card", ["card", "net.keras", *JUDGE, "--verify", "milp"], "choice: 'milp'"),
    ("softmax to verify", ["verify", "soft.keras", *JUDGE[:-2]], "tr.models.prepare"),
    ("range", ["prepare", "soft.keras", "-o", "m.keras", "--pixel-range", "255"], "LOW,HIGH"),
    ("no range", ["prepare", "soft.keras", "-o", "m.keras"], "required: --pixel-range"),
    (
        "empty range",
        ["prepare", "soft.keras", "-o", "m.keras", "--pixel-range", "1,0"],
        "`pixel_range` must be two numbers",
    ),
    ("data", ["evaluate", "net.keras", *JUDGE, "--data", "emnist"], "emnist"),
    ("other data", ["evaluate", "net.keras", *JUDGE, "--data", "small.npz"], "small.npz"),
    ("json", ["evaluate", "net.keras", *JUDGE, "--json", "file/out.json"], "`--json` must be"),
    ("card folder", ["card", "net.keras", *JUDGE, "-o", "file/card"], "`--output` must be"),
    ("module", ["evaluate", "net.keras", *JUDGE, "--import", "no_such_layers"], "no_such_layers"),
    ("shrink target", ["shrink", "masked.keras", "-o", "file/small.keras"], "`--output` must be"),
    ("shrink suffix", ["shrink", "masked.keras", "-o", "small.h5"], "must end in '.keras'"),
    ("masks", ["export", "masked.keras", "-o", "m.tflite"], "tr.shrink.compact"),
    (
        "sparse",
        ["export", "pruned.keras", "-o", "m.tflite", "--quantize", "dynamic", "--sparse"],
        "--sparse needs --quantize float32, float16 or int8",
    ),
    ("int8", ["export", "net.keras", "-o", "m.tflite", "--quantize", "int8"], "int8 needs --data"),
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
    names = {"__name__": "halving_layers"}
    exec(LAYER, names)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(names["Halve"]()(image))
    keras.Model(image, keras.layers.Dense(10)(x)).save("own.keras")
    del keras.saving.get_custom_objects()["mine>Halve"]  # as in a process that never saw it
    assert run("export", "own.keras", "-o", "own.tflite") == 2
    message = capsys.readouterr().err
    assert "'Halve'" in message and "--import (the file says: halving_layers)" in message
    assert "halving_layers" not in sys.modules  # the file's word alone runs nothing
    assert run("export", "own.keras", "-o", "own.tflite", "--import", "halving_layers") == 0


@keras.saving.register_keras_serializable(package="mine")
class Moody(keras.layers.Layer):
    def __init__(self, mood="good. ", **kwargs):
        super().__init__(**kwargs)
        self.mood = mood
        if mood != "good. ":
            raise ValueError(f"`mood` must be good. Received: mood={mood!r}")

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "mood": "bad. And worse"}


def test_the_innermost_reason_is_shown_whole(tmp_path, capsys):
    image = keras.Input((8, 8, 1))
    net = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(Moody()(image))))
    net.save(tmp_path / "own.keras")
    assert run("shrink", tmp_path / "own.keras", "-o", tmp_path / "small.keras") == 2
    printed = capsys.readouterr().err
    assert "`mood` must be good. Received: mood='bad. And worse'" in printed
    assert "--import" in printed and "config=" not in printed


def test_version(capsys):
    with pytest.raises(SystemExit):
        run("--version")
    assert capsys.readouterr().out == f"tfrobust {tr.__version__}\n"


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
