"""The command line of tfrobust: its arguments, and the one line with which bad input ends.

    tfrobust prepare theirs.keras -o m.keras --pixel-range 0,255
    tfrobust evaluate m.keras --data mnist --threat linf:0.3 --attack autoattack --json out.json
    tfrobust verify m.keras --data mnist --threat linf:0.1 --method crown-ibp
    tfrobust shrink m.keras -o small.keras
    tfrobust export small.keras -o small.tflite --quantize int8 --data mnist
    tfrobust card small.keras --data mnist --threat linf:0.3 --verify auto -o saved_models/small

Bad input ends with one line, `tfrobust: error: ...`, and exit code 2; TFROBUST_DEBUG=1 shows the
traceback. Only the standard library is imported here, so that `tfrobust --help` answers at once:
what the commands do is in `tfrobust/cli.py`, which is imported when one runs.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import shlex
import sys
import warnings

EOT = {"eot": "eot"}
STEPS = {"steps": "steps", **EOT}
MOVES = {"step_size": "step_size", **STEPS}
APGD = {"apgd_steps": "steps", **EOT}
QUERIES = {"queries": "queries", **EOT}
# Name: class in tr.attacks, settings of its own, and which options it takes as which argument.
ATTACKS = {
    "fgsm": ("FGSM", {}, EOT),
    "r+fgsm": ("RFGSM", {}, EOT),
    "bim": ("BIM", {}, MOVES),
    "mim": ("MIM", {}, MOVES),
    "pgd": ("PGD", {}, {"restarts": "restarts", **MOVES}),
    "apgd-ce": ("APGD", {"loss": "ce"}, APGD),
    "apgd-dlr": ("APGD", {"loss": "dlr"}, APGD),
    "apgd-t": ("APGD", {"loss": "dlr_targeted", "targets": 9}, APGD),
    "apgd-margin": ("APGD", {"loss": "margin"}, APGD),
    "fab": ("FAB", {}, STEPS),
    "fab-t": ("FAB", {"targets": 9}, STEPS),
    "deepfool": ("DeepFool", {}, STEPS),
    "ddn": ("DDN", {}, STEPS),
    "cw": ("CarliniWagner", {}, STEPS),
    "square": ("Square", {}, QUERIES),
    "boundary": ("Boundary", {}, STEPS),
    "hopskipjump": ("HopSkipJump", {}, STEPS),
    "noise": ("Noise", {}, {"queries": "tries", **EOT}),
    "autoattack": ("AutoAttack", {}, {}),
    "autoattack-plus": ("AutoAttack", {"version": "plus"}, {}),
    "autoattack-rand": ("AutoAttack", {"version": "rand"}, {}),
}
METHODS = ("auto", "ibp", "crown-ibp", "symbolic", "crown", "exact")
PIXELS = "--pixel-range"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


class Version(argparse.Action):
    def __call__(self, *unused):
        print("tfrobust", importlib.metadata.version("tfrobust"))
        raise SystemExit(0)


def main(argv=None):
    """Runs one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parser().parse_args(_joined(argv))
        args.command = shlex.join(["tfrobust", *argv])
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with warnings.catch_warnings():
            warnings.showwarning = _warning
            with _native_stderr_shut():
                rooms = importlib.import_module("tfrobust.cli")
                rooms.start()
            getattr(rooms, args.room)(args)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("TFROBUST_DEBUG"):
            raise
        return _complain(error, 2)
    return 0


def parser():
    """The command line as an `argparse` parser."""
    top = Parser(
        prog="tfrobust",
        description="Judge, shrink, export and document robust image classifiers.",
        epilog="TFROBUST_DATA_DIR names a folder of <name>.npz data sets.",
    )
    top.add_argument("--version", nargs=0, action=Version, help="print the version")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(room=name)
        sub.add_argument("model", metavar="MODEL.keras")
        sub.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="import a module with your own layers first (a file never runs code by itself)",
        )
        return sub

    sub = command("prepare", "Make any classifier take pixels in [0, 1] and return logits.")
    _output(sub, "OUT.keras")
    sub.add_argument(
        PIXELS,
        required=True,
        type=pixel_range,
        metavar="LOW,HIGH",
        help="the pixels that the model itself was trained on: 0,255 or 0,1 or -1,1",
    )

    sub = command("evaluate", "Clean and robust accuracy on the test images of a data set.")
    _judging(sub)
    sub.add_argument("--json", metavar="FILE", help="write the scores here as well")

    sub = command("verify", "How many test images no attack in the ball can break, proved.")
    _on_data(sub)
    sub.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="cheaper ones come first by themselves (default: %(default)s)",
    )
    sub.add_argument(
        "--no-attack", action="store_true", help="leave out the PGD that tries to break the rest"
    )
    sub.add_argument(
        "--epsilons", type=fractions, metavar="LIST", help="radii of a curve: 0.05,0.1"
    )
    _time_limit(sub)
    sub.add_argument("--state", metavar="FILE", help="go on here after a kill")
    sub.add_argument("--json", metavar="FILE", help="write the certificate here as well")

    sub = command("shrink", "Cut closed gates and pruned channels out of a masked model.")
    _output(sub, "SMALL.keras")

    sub = command("export", "Write a TensorFlow Lite file and compare it with the model.")
    _output(sub, "MODEL.tflite")
    sub.add_argument(
        "--quantize", choices=("float32", "float16", "dynamic", "int8"), default="float32"
    )
    sub.add_argument(
        "--sparse",
        action="store_true",
        help="store pruned kernels without their zeros: smaller, not faster; not with dynamic",
    )
    _data(sub, required=False, help="training images for calibration (int8 needs them)")
    sub.add_argument("--json", metavar="FILE", help="write sizes, parity and input contract here")

    sub = command("card", "Evaluate and write card.json and card.html into a folder.")
    _judging(sub)
    _output(sub, "FOLDER")
    sub.add_argument("--name", help="title of the card (default: the file's name)")
    sub.add_argument(
        "--verify",
        choices=METHODS,
        metavar="METHOD",
        help="prove for the same images that no attack breaks them, and show it, at --epsilons "
        f"too: one of {', '.join(METHODS)}; goes on in FILE.verify of --state",
    )
    _time_limit(sub)
    return top


def _output(sub, metavar):
    sub.add_argument("-o", "--output", required=True, metavar=metavar)


def _data(sub, required, help):
    sub.add_argument(
        "--data", required=required, help=f"digits, mnist, ..., or a path to an .npz: {help}"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="folder of <name>.npz files")


def _on_data(sub):
    _data(sub, required=True, help="its test images")
    sub.add_argument(
        "--threat",
        required=True,
        type=threat_parts,
        metavar="NORM:EPSILON",
        help="linf:8/255, l2:0.5 or l1:12, in units of pixels in [0, 1]",
    )
    sub.add_argument(
        "--n", default=1000, type=images, help="first N test images, or 'all' (default: 1000)"
    )


def _time_limit(sub):
    sub.add_argument(
        "--time-limit", type=fraction, default=60.0, metavar="SECONDS", help="of exact, an image"
    )


def _judging(sub):
    _on_data(sub)
    sub.add_argument(
        "--attack",
        type=attack_names,
        action="extend",
        metavar="LIST",
        help=f"of {', '.join(ATTACKS)} (default: pgd, apgd-ce and apgd-t, or apgd-margin with "
        "fewer than four classes)",
    )
    own = "(default: each attack's own)"
    sub.add_argument("--steps", type=count, metavar="N", help=f"of {_takers('steps')} {own}")
    sub.add_argument(
        "--step-size", type=fraction, metavar="SIZE", help=f"of {_takers('step_size')}, in pixels"
    )
    sub.add_argument("--restarts", type=count, metavar="N", help=f"of {_takers('restarts')}")
    sub.add_argument("--apgd-steps", type=count, metavar="N", help="(default: 100)")
    sub.add_argument("--queries", type=count, metavar="N", help=f"of {_takers('queries')} {own}")
    sub.add_argument(
        "--eot", type=count, metavar="N", help="average every gradient over N draws (random models)"
    )
    sub.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    sub.add_argument(
        "--cascade", action="store_true", help="each attack meets the survivors of those before it"
    )
    sub.add_argument(
        "--second-opinion",
        type=count,
        default=0,
        metavar="N",
        help="attack N survivors again by SPSA and noise, without gradients",
    )
    sub.add_argument(
        "--epsilons", type=fractions, metavar="LIST", help="radii of an accuracy curve: 0.1,0.2"
    )
    sub.add_argument("--state", metavar="FILE", help="go on here after a kill")
    sub.set_defaults(chosen=chosen)


# --- arguments ------------------------------------------------------------------------------


def chosen(args, classes):
    """List of (class in tr.attacks, its keyword arguments) for a model with so many classes."""
    last = "apgd-t" if classes > 3 else "apgd-margin"
    names = args.attack or ["pgd", "apgd-ce", last]
    options = ("steps", "step_size", "restarts", "apgd_steps", "queries", "eot")
    given = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    for key in given:
        shown = f"--{key.replace('_', '-')}"
        takers = [name for name in names if key in ATTACKS[name][2]]
        if not takers:
            raise ValueError(
                f"{shown} must come with an attack that takes it: {_takers(key)}. "
                f"Received: --attack {','.join(names)}"
            )
        if key == "eot" and takers != names:
            raise ValueError(
                f"{shown} must come with attacks that take it; autoattack-rand averages over 20 "
                f"draws by itself. Received: --attack {','.join(names)}"
            )
    found = []
    for name in names:
        kind, settings, takes = ATTACKS[name]
        own = {takes[key]: value for key, value in given.items() if key in takes}
        found.append((kind, {"seed": args.seed, **settings, **own}))
    return found


def _takers(option):
    return ", ".join(name for name, (*_, takes) in ATTACKS.items() if option in takes)


def fraction(text):
    """A number or a quotient of two: "8/255", "0.3"."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected a number such as 0.3 or 8/255. Received: {text!r}"
        ) from None


def fractions(text):
    return [fraction(part) for part in text.split(",")]


def pixel_range(text):
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH such as 0,255. Received: {text!r}")
    return tuple(fractions(text))


def threat_parts(text):
    """Norm and radius of `NORM:EPSILON`: "Linf:0.3" is ("linf", 0.3)."""
    norm, colon, epsilon = text.partition(":")
    norm = norm.strip().lower()
    if norm not in ("linf", "l2", "l1") or not colon:
        raise argparse.ArgumentTypeError(
            f"expected linf:EPSILON, l2:EPSILON or l1:EPSILON. Received: {text!r}"
        )
    return norm, fraction(epsilon)


def attack_names(text):
    names = [name.strip().lower() for name in text.split(",")]
    unknown = [name or repr(name) for name in names if name not in ATTACKS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"expected names of {', '.join(ATTACKS)}. Received: {', '.join(unknown)}"
        )
    return names


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1. Received: {text!r}")
    return int(text)


def images(text):
    return None if text == "all" else count(text)


def _joined(argv):
    """`--pixel-range -1,1` as one word: argparse would take -1,1 for an option."""
    words = list(argv)
    for place, word in enumerate(words[:-1]):
        if word == PIXELS:
            words[place : place + 2] = [f"{PIXELS}={words[place + 1]}"]
            break
    return words


# --- messages -------------------------------------------------------------------------------


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


def _warning(message, category, *where, **more):
    del category, where, more
    print(f"tfrobust: warning: {_line(message)}", file=sys.stderr)


def _complain(message, code):
    print(f"tfrobust: error: {_line(message)}", file=sys.stderr)
    return code


def _line(message):
    return " ".join(str(message).split())


if __name__ == "__main__":
    sys.exit(main())
