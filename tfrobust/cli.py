"""The rooms from the shell: `tfrobust evaluate|shrink|export|card MODEL.keras`.

    tfrobust evaluate m.keras --data mnist --threat linf:0.3 --attack pgd,apgd-t --json out.json
    tfrobust shrink m.keras -o small.keras
    tfrobust export small.keras -o small.tflite --quantize int8 --data mnist
    tfrobust card small.keras --data mnist --threat linf:0.3 -o saved_models/small

Bad input ends with one line, `tfrobust: error: ...`, and exit code 2; TFROBUST_DEBUG=1 shows the
traceback. Only the standard library is imported before a command runs.
"""

import argparse
import contextlib
import importlib
import json
import logging
import os
import pathlib
import shlex
import sys
import warnings

ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t")
CALIBRATION_IMAGES = 300


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv=None):
    """Runs one command; returns the exit code."""
    try:
        args = parser().parse_args(argv)
        args.command = shlex.join(["tfrobust", *(sys.argv[1:] if argv is None else argv)])
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with warnings.catch_warnings():
            warnings.showwarning = _warning
            args.run(args)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("TFROBUST_DEBUG"):
            raise
        return _complain(" ".join(str(error).split()), 2)
    return 0


def parser():
    """The command line as an `argparse` parser."""
    top = Parser(
        prog="tfrobust",
        description="Judge, shrink, export and document robust image classifiers.",
        epilog="TFROBUST_DATA_DIR names a folder of <name>.npz data sets.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run, text):
        sub = commands.add_parser(run.__name__, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("model", metavar="MODEL.keras")
        sub.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="import a module with your own layers first (files always load in safe mode)",
        )
        return sub

    sub = command(evaluate, "Clean and robust accuracy on the test images of a data set.")
    _judging(sub)
    sub.add_argument("--json", metavar="FILE", help="write the scores here as well")

    sub = command(shrink, "Cut closed gates and pruned channels out of a masked model.")
    sub.add_argument("-o", "--output", required=True, metavar="SMALL.keras")

    sub = command(export, "Write a TensorFlow Lite file and compare it with the model.")
    sub.add_argument("-o", "--output", required=True, metavar="MODEL.tflite")
    sub.add_argument(
        "--quantize", choices=("float32", "float16", "dynamic", "int8"), default="float32"
    )
    _data(sub, required=False, help="training images for calibration (int8 needs them)")
    sub.add_argument("--json", metavar="FILE", help="write size, parity and input contract here")

    sub = command(card, "Evaluate and write card.json and card.html into a folder.")
    _judging(sub)
    sub.add_argument("-o", "--output", required=True, metavar="FOLDER")
    sub.add_argument("--name", help="title of the card (default: the file's name)")
    return top


def _data(sub, required, help):
    sub.add_argument(
        "--data", required=required, help=f"digits, mnist, ..., or a path to an .npz: {help}"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="folder of <name>.npz files")


def _judging(sub):
    _data(sub, required=True, help="its test images")
    sub.add_argument(
        "--threat",
        required=True,
        type=threat_parts,
        metavar="NORM:EPSILON",
        help="linf:8/255, l2:0.5 or l1:12, in units of pixels in [0, 1]",
    )
    sub.add_argument(
        "--attack",
        default="fgsm,pgd,apgd-ce,apgd-t",
        type=attack_names,
        metavar="LIST",
        help=f"of {', '.join(ATTACKS)} (default: %(default)s)",
    )
    sub.add_argument(
        "--n", default=1000, type=count, help="first N test images, or 'all' (default: %(default)s)"
    )
    sub.add_argument("--steps", type=int, default=40, help="PGD steps (default: %(default)s)")
    sub.add_argument("--step-size", type=fraction, help="of PGD, in pixel units")
    sub.add_argument("--restarts", type=int, default=1, help="of PGD (default: %(default)s)")
    sub.add_argument("--apgd-steps", type=int, default=100, help="(default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    sub.add_argument(
        "--epsilons", type=fractions, metavar="LIST", help="radii of an accuracy curve: 0.1,0.2"
    )
    sub.add_argument("--state", metavar="FILE", help="go on here after a kill")


# --- arguments ------------------------------------------------------------------------------


def fraction(text):
    """A number or a quotient of two.

    >>> fraction("8/255") == 8 / 255, fraction("0.3")
    (True, 0.3)
    """
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected a number such as 0.3 or 8/255. Received: {text!r}"
        ) from None


def fractions(text):
    return [fraction(part) for part in text.split(",")]


def threat_parts(text):
    """Norm and radius of `NORM:EPSILON`.

    >>> threat_parts("linf:0.3")
    ('linf', 0.3)
    """
    norm, colon, epsilon = text.partition(":")
    if norm not in ("linf", "l2", "l1") or not colon:
        raise argparse.ArgumentTypeError(
            f"expected linf:EPSILON, l2:EPSILON or l1:EPSILON. Received: {text!r}"
        )
    return norm, fraction(epsilon)


def attack_names(text):
    names = text.split(",")
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"expected names of {', '.join(ATTACKS)}. Received: {', '.join(unknown)}"
        )
    return names


def count(text):
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1 or 'all'. Received: {text!r}")
    return int(text)


# --- commands -------------------------------------------------------------------------------


def evaluate(args):
    tr, model = _load(args)
    if args.json:
        tr.files.target(args.json, "--json")
    scores = _scores(tr, model, args)
    _console().print(scores)
    if args.json:
        _write_json(tr, args, {"command": args.command, **scores.to_dict()})


def shrink(args):
    tr, model = _load(args)
    tr.files.target(args.output, "--output")
    small = tr.shrink.compact(model)
    saved = tr.export.keras_file(small, args.output)
    worn, bare = tr.footprint.measure(model), tr.footprint.measure(small)
    rows = [
        ("units", worn.units_total, worn.units),
        ("parameters", model.count_params(), small.count_params()),
        ("bytes of the file", os.path.getsize(args.model), saved.bytes),
    ]
    _table(
        ["", "before", "after", "smaller"],
        [(name, f"{a:,}", f"{b:,}", f"{a / b:.2f}x" if b else "") for name, a, b in rows]
        + [("FLOPs", "", f"{bare.flops:,}", "")],
        f"{args.model} -> {args.output}",
    )


def export(args):
    tr, model = _load(args)
    tr.files.target(args.output, "--output")
    calibration = None
    if args.data:
        import numpy as np

        x = tr.data.load(args.data, args.data_dir).x_train
        rows = np.random.default_rng(0).permutation(len(x))[:CALIBRATION_IMAGES]
        calibration = x[np.sort(rows)]
    quantize = None if args.quantize == "float32" else args.quantize
    exported = tr.export.tflite(model, args.output, quantize, calibration)
    milliseconds = tr.export.latency(exported)
    _console().print(f"{exported}; {milliseconds:.3g} ms per image on one thread", soft_wrap=True)
    if args.json:
        _write_json(tr, args, {**exported.to_dict(), "latency_ms": milliseconds})


def card(args):
    tr, model = _load(args)
    path, folder = pathlib.Path(args.model), pathlib.Path(args.output)
    tr.files.target(folder / "card.json", "--output")
    scores = _scores(tr, model, args)
    entry = tr.report.Entry(scores, tr.footprint.measure(model), files=[path])
    made = tr.report.card(
        args.name or (path.parent.name if path.stem == "model" else path.stem),
        entry,
        data={"name": _data_name(args), "note": f"first {scores.n:,} test images"},
        threat=_threat(tr, args),
        command=args.command,
    )
    made.save(folder)
    _console().print(scores, made)


# --- shared by the commands -----------------------------------------------------------------


def _load(args):
    """The package and the model; custom layers must be known before the file is read."""
    path = pathlib.Path(args.model)
    if path.suffix != ".keras":
        raise ValueError(f"MODEL must be a .keras file. Received: {path}")
    if not path.is_file():
        raise OSError(f"MODEL must be an existing file. Received: {path}")
    with _native_stderr_shut():
        import keras
        import tensorflow as tf

        import tfrobust as tr

        tf.config.list_logical_devices()

    # Each attack compiles its own graph, which TensorFlow takes for retracing of one.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.path.insert(0, os.getcwd())
    for name in args.imports:
        importlib.import_module(name)
    try:
        return tr, keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises what the reader or the layer's own code raises
        if os.environ.get("TFROBUST_DEBUG"):
            raise
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(
            f"MODEL must load in Keras's safe mode (name the module of your own layers with "
            f"--import). Received: {path}: {reason}"
        ) from error


@contextlib.contextmanager
def _native_stderr_shut():
    """TensorFlow's C++ start-up lines (drivers, CPU flags) are no news to a shell user."""
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _threat(tr, args):
    norm, epsilon = args.threat
    return tr.threats.NORMS[norm](epsilon)


def _data_name(args):
    """Without folders of this machine."""
    return pathlib.Path(args.data).stem


def _scores(tr, model, args):
    threat = _threat(tr, args)
    classes = tr.contract.classes_of(tr.contract.classifier(model, "model"))
    apgd = {"steps": args.apgd_steps, "seed": args.seed}
    build = {
        "fgsm": lambda: tr.attacks.FGSM(threat, seed=args.seed),
        "pgd": lambda: tr.attacks.PGD(
            threat,
            steps=args.steps,
            step_size=args.step_size,
            restarts=args.restarts,
            seed=args.seed,
        ),
        "apgd-ce": lambda: tr.attacks.APGD(threat, **apgd),
        "apgd-dlr": lambda: tr.attacks.APGD(threat, loss="dlr", **apgd),
        "apgd-t": lambda: tr.attacks.APGD(
            threat, loss="dlr_targeted", targets=min(9, classes - 1), **apgd
        ),
    }
    attacks = [build[name]() for name in args.attack]
    data = tr.data.load(args.data, args.data_dir)
    return tr.evaluate.robustness(
        model,
        (data.x_test, data.y_test),
        attacks,
        eps_grid=args.epsilons,
        state=args.state,
        max_examples=args.n,
    )


def _write_json(tr, args, content):
    path = tr.files.target(args.json, "--json")
    text = json.dumps(content, indent=1) + "\n"
    tr.files.replace(path, lambda name: pathlib.Path(name).write_text(text))


def _console():
    from rich.console import Console

    return Console()


def _table(head, rows, title):
    from rich.table import Table

    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _warning(message, category, *where, **more):
    del category, where, more
    print(f"tfrobust: warning: {message}", file=sys.stderr)


def _complain(message, code):
    print(f"tfrobust: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
