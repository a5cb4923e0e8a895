"""What the shell's commands do, one function of the parsed arguments each.

The arguments themselves, and the error line, are in `tfrobust_cli.py`, which answers `--help`
before TensorFlow is loaded.
"""

import importlib
import json
import logging
import os
import pathlib
import re
import sys
import zipfile

import keras
import numpy as np
import tensorflow as tf

import tfrobust as tr

CALIBRATION_IMAGES = 300


def start():
    """Makes TensorFlow say what it has to say about devices, and be quiet from then on."""
    tf.config.list_logical_devices()
    # Each attack compiles its own graph, which TensorFlow takes for retracing of one.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


# --- commands -------------------------------------------------------------------------------


def prepare(args):
    model = _load(args)
    tr.files.target(args.output, "--output")
    ready = tr.models.prepare(model, args.pixel_range)
    tr.export.keras_file(ready, args.output)
    low, high = args.pixel_range
    _say(
        f"{args.output}: takes pixels in [0, 1] (mapped to [{low:g}, {high:g}] inside) of shape "
        f"{tuple(ready.input_shape[1:])} and returns logits of {tr.contract.classes_of(ready)} "
        "classes"
    )


def evaluate(args):
    model = _load(args)
    _apart(args)
    scores = _scores(model, args, _attacks(model, args))
    _console().print(scores)
    if args.json:
        _write_json(args, {"command": args.command, **scores.to_dict()})


def verify(args):
    model = _load(args)
    _apart(args)
    proof = _certificate(model, args, args.method, [] if args.no_attack else None, args.state)
    _console().print(proof)
    if args.json:
        _write_json(args, {"command": args.command, **proof.to_dict()})


def shrink(args):
    model = _load(args)
    tr.files.target(args.output, "--output")
    small = tr.shrink.compact(model)
    saved = tr.export.keras_file(small, args.output)
    full, cut = tr.footprint.measure(_unmasked(model)), tr.footprint.measure(small)
    rows = [
        (name, getattr(full, total), getattr(cut, total))
        for name, total in (("units", "units"), ("parameters", "parameters"), ("FLOPs", "flops"))
    ]
    rows.append(("bytes of the file", os.path.getsize(args.model), saved.bytes))
    _table(
        ["", "before", "after", "smaller"],
        [(name, f"{a:,}", f"{b:,}", f"{a / b:.2f}x" if b else "") for name, a, b in rows],
        f"{args.model} -> {args.output}",
    )


def export(args):
    if args.quantize == "int8" and not args.data:
        raise ValueError(
            "--quantize int8 needs --data: training images from which it learns the ranges of "
            "activations. Received: no --data"
        )
    if args.quantize == "dynamic" and args.sparse:
        raise ValueError(
            "--sparse needs --quantize float32, float16 or int8 (with --data): sparse 8-bit "
            "kernels with float arithmetic do not run. Received: --quantize dynamic"
        )
    model, calibration = _load(args), None
    tr.files.target(args.output, "--output")
    if args.data:
        x = _dataset(args).x_train
        rows = np.random.default_rng(0).permutation(len(x))[:CALIBRATION_IMAGES]
        calibration = x[np.sort(rows)]
    quantize = None if args.quantize == "float32" else args.quantize
    exported = tr.export.tflite(model, args.output, quantize, calibration, args.sparse)
    milliseconds = tr.export.latency(exported)
    _say(f"{exported}; {milliseconds:.3g} ms per image on one thread")
    if args.json:
        _write_json(args, {**exported.to_dict(), "latency_ms": milliseconds})


def card(args):
    path, folder = pathlib.Path(args.model), pathlib.Path(args.output)
    model = _load(args)
    tr.files.target(folder / "card.json", "--output")
    attacks, proof = _attacks(model, args), None
    if args.verify:  # first: it is refused at once where a layer has no rule
        state = args.state and f"{args.state}.verify"
        proof = _certificate(model, args, args.verify, None, state)
    scores = _scores(model, args, attacks)
    entry = tr.report.Entry(scores, tr.footprint.measure(model), files=[path], certificate=proof)
    made = tr.report.card(
        args.name or (path.parent.name if path.stem == "model" else path.stem),
        entry,
        # Without folders of this machine.
        data={"name": pathlib.Path(args.data).stem, "note": f"first {scores.n:,} test images"},
        threat=_threat(args),
        command=args.command,
    )
    made.save(folder)
    _console().print(made)
    _say(f"Written: {folder / 'card.json'} and {folder / 'card.html'}")


# --- shared by the commands -----------------------------------------------------------------


def _load(args):
    """The model, read in safe mode; only modules named with --import may bring code."""
    path = pathlib.Path(args.model)
    if path.suffix != ".keras":
        raise ValueError(f"MODEL must be a .keras file. Received: {path}")
    if not path.is_file():
        raise OSError(f"MODEL must be an existing file. Received: {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"MODEL must be a file that model.save(...) wrote in Keras 3. Received: {path}, which "
            "is no .keras archive"
        )
    if args.imports:
        sys.path.insert(0, os.getcwd())
    for name in args.imports:
        importlib.import_module(name)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises what the reader or the layer's own code raises
        if os.environ.get("TFROBUST_DEBUG"):
            raise
        raise ValueError(_reason(path, str(error))) from error


def _reason(path, text):
    """Why a file does not load, in one line: what Keras says innermost, without its configs."""
    text = text.rpartition("Exception encountered: ")[2].strip()
    unknown = re.match(r"Could not locate (?:class|function) '([^']+)'", text)
    if unknown:
        module = re.search(r"Full object config: {'module': '([\w.]+)'", text)
        where = f" (the file says: {module[1]})" if module else ""
        return (
            f"MODEL holds {unknown[1]!r}, which is not Keras's own: name the module that defines "
            f"and registers it with --import{where}. Received: {path}"
        )
    for mark in ("Full object config", "If you trust", "\n\n"):
        text = text.partition(mark)[0].strip()
    return (
        "MODEL must load in Keras's safe mode; layers of your own come from modules named with "
        f"--import. Received: {path}: {text}"
    )


def _unmasked(model):
    """The same network as if it had never worn masks."""

    def visit(node, *args, **kwargs):
        if isinstance(node.layer, tr.layers.Mask):
            return args[0]
        return tr.graph.copy(node, *args, **kwargs)

    return tr.graph.rebuild(model, visit)


def _threat(args):
    norm, epsilon = args.threat
    return tr.threats.NORMS[norm](epsilon)


def _dataset(args):
    if args.data.endswith(".npz") and not os.path.isfile(args.data):
        raise OSError(
            f"--data must be an existing .npz file or one of {', '.join(tr.data.NAMES)}. "
            f"Received: {args.data}"
        )
    try:
        return tr.data.load(args.data, args.data_dir)
    except (ValueError, OSError) as error:
        text = str(error).replace("`name`", "--data").replace("`data_dir`", "--data-dir")
        raise type(error)(text.replace("name=", "")) from error


def _attacks(model, args):
    threat = _threat(args)
    classes = tr.contract.classes_of(tr.contract.classifier(model, "model"))
    return [
        getattr(tr.attacks, kind)(threat, **settings)
        for kind, settings in args.chosen(args, classes)
    ]


def _certificate(model, args, method, attacks, state):
    data = _dataset(args)
    return tr.verify.certify(
        model,
        (data.x_test, data.y_test),
        _threat(args),
        method=method,
        attacks=attacks,
        eps_grid=args.epsilons,
        state=state,
        max_examples=args.n,
        time_limit=args.time_limit,
    )


def _scores(model, args, attacks):
    data = _dataset(args)
    return tr.evaluate.robustness(
        model,
        (data.x_test, data.y_test),
        attacks,
        eps_grid=args.epsilons,
        state=args.state,
        max_examples=args.n,
        cascade=args.cascade,
        second_opinion=args.second_opinion,
    )


def _apart(args):
    """Refuses, before the work, a result file that cannot be written or is the state file."""
    if args.json:
        path = tr.files.target(args.json, "--json")
        if args.state and path == tr.files.target(args.state, "--state"):
            raise ValueError(f"`--json` must be another file than `--state`. Received: {args.json}")


def _write_json(args, content):
    path = tr.files.target(args.json, "--json")
    text = json.dumps(content, indent=1) + "\n"
    tr.files.replace(path, lambda name: pathlib.Path(name).write_text(text))


def _console():
    from rich.console import Console

    return Console()


def _say(sentence):
    """One line, however long, without rich's markup."""
    _console().print(sentence, soft_wrap=True, markup=False, highlight=False)


def _table(head, rows, title):
    from rich.markup import escape
    from rich.table import Table

    table = Table(*head, title=escape(title))
    for row in rows:
        table.add_row(*row)
    _console().print(table)
