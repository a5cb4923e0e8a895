"""`make agreement`: are tfrobust's attacks as strong as foolbox's, ART's and torchattacks'?

Every attack meets the first MNIST test images with the same settings in each library; the saved
models judge all points afresh. Results go to bench/agreement.json, and a row that stands there
already, of the same weights, settings and library versions, is not run again. Seconds are those
of one run with all it compiles; `make bench` measures speed.

    python -m bench.agreement [--fresh] [--only PGD tfrobust] [--models mnist_at] [--images 1000]
"""

import argparse
import functools
import hashlib
import json
import pathlib
import time
import warnings
from importlib import metadata

import keras
import numpy as np

import tfrobust as tr
from bench import duels, timing

HERE = pathlib.Path(__file__).parent
SAVED = HERE.parent / "saved_models"
MODELS = ("mnist_at", "mnist_anp_vs_2x", "mnist_anp_vs_6x")
PACKAGES = {
    "foolbox": ("foolbox", "eagerpy", "tensorflow"),
    "ART": ("adversarial-robustness-toolbox", "tensorflow"),
    "torchattacks": ("torchattacks", "torch"),
    "tfrobust": ("tfrobust", "tensorflow"),
}


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--fresh", action="store_true", help="run every row again")
    cli.add_argument("--only", nargs="+", metavar="NAME", help="attacks or libraries")
    cli.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    cli.add_argument("--images", type=int, default=1000, help="at most so many in a row")
    cli.add_argument("--output", default=str(HERE / "agreement.json"))
    args = cli.parse_args()
    path = tr.files.target(args.output, "output")
    known = json.loads(path.read_text())["models"] if path.is_file() else {}
    result = {"machine": timing.machine(), "models": known}
    data = tr.data.load("mnist")
    for name in args.models:
        model = keras.saving.load_model(SAVED / name / "model.keras", compile=False)
        rows = known.setdefault(name, {})
        for row in wanted(rows, fingerprint(model), args):
            print(f"{name}: {row['attack']}, {row['library']}", flush=True)
            images = row["images"]
            x, y = data.x_test[:images], data.y_test[:images]
            contender = duels.ROWS[row["attack"], row["library"]][0]
            if contender is duels.our_auto_attack and images == 1000:
                # The evaluation of `python -m recipes.autoattack`, where that has run.
                state = pathlib.Path("runs") / "autoattack" / f"{name}.npz"
                state.parent.mkdir(parents=True, exist_ok=True)
                contender = functools.partial(contender, state=state)
            row.update(measured(contender, model, x, y, row["settings"].get("epsilon")))
            rows[f"{row['attack']}, {row['library']}"] = row
            text = json.dumps(result, indent=1) + "\n"
            tr.files.replace(path, lambda part, text=text: pathlib.Path(part).write_text(text))
    show(known)


def wanted(rows, weights, args):
    """What identifies each row that has still to be run."""
    for (attack, library), (_, settings, most) in duels.ROWS.items():
        brand = library.split()[0].rstrip(",")
        if args.only and not {attack, library, brand} & set(args.only):
            continue
        try:
            versions = {name: metadata.version(name) for name in PACKAGES[brand]}
        except metadata.PackageNotFoundError as error:
            print(f"{attack}, {library}: {error}", flush=True)
            continue
        row = {
            "attack": attack,
            "library": library,
            "settings": settings,
            "images": min(most, args.images),
            "weights": weights,
            "versions": versions,
        }
        old = rows.get(f"{attack}, {library}", {})
        if args.fresh or any(old.get(key) != value for key, value in row.items()):
            yield row


def fingerprint(model):
    """Short hash of a model's weights."""
    hashed = hashlib.sha256()
    for weight in model.get_weights():
        hashed.update(np.ascontiguousarray(weight).tobytes())
    return hashed.hexdigest()[:16]


def measured(contender, model, x, y, epsilon):
    """Figures of one contender: robust images where there is an epsilon, else L2 distances."""
    clean = ~tr.attacks.verdicts(model, x, y)
    start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' own
        found = contender(model, x, y)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    x_adv, more = found if isinstance(found, tuple) else (found, {})
    figures = {
        "seconds": round(seconds[0], 1),
        "processor_seconds": round(seconds[1], 1),  # of all threads: other work disturbs it less
        "clean": int(clean.sum()),
    }
    if x_adv is not None:
        figures |= judged(model, x, y, x_adv, clean, epsilon)
    return figures | more


def judged(model, x, y, x_adv, clean, epsilon):
    """Fresh verdicts on adversarial images; points outside of the ball or the box do not count."""
    fooled = tr.attacks.verdicts(model, x_adv, y)
    apart = np.abs(x_adv.astype("float64") - x).reshape(len(x), -1)
    legal = (x_adv.min((1, 2, 3)) >= 0) & (x_adv.max((1, 2, 3)) <= 1)
    if epsilon is not None:
        legal &= apart.max(1) <= epsilon * (1 + 1e-6) + 1e-7
        return {"robust": int((clean & ~(fooled & legal)).sum()), "illegal": int((~legal).sum())}
    distance = np.where(fooled & legal, np.sqrt((apart**2).sum(1)), np.inf)[clean]
    return {
        "median": round(float(np.median(distance)), 5),
        "found": int(np.isfinite(distance).sum()),
        "illegal": int((~legal).sum()),
    }


def goals(rows):
    """[(what, value, bar)] of one model's rows; a goal is met when value <= bar.

    Robust accuracies are compared in points. A best-so-far PGD may be as much stronger as it
    likes; the last iterate and AutoAttack have to agree on both sides. Where foolbox finds less
    than half of the images its median is infinite, and what was found is counted.
    """
    found = []

    def points(ours, theirs):
        return 100 * rows[ours]["robust"] / rows[ours]["images"] - (
            100 * rows[theirs]["robust"] / rows[theirs]["images"]
        )

    def compare(what, attack, ours, theirs, value, bar):
        ours, theirs = f"{attack}, {ours}", f"{attack}, {theirs}"
        if ours in rows and theirs in rows:
            found.append((what, round(value(ours, theirs), 3), bar))

    last, suite = "tfrobust, last iterate", "torchattacks"
    for peer in ("foolbox", "ART"):
        compare(f"PGD above {peer}'s, points", "PGD", "tfrobust", peer, points, 0.2)
    for peer in ("foolbox", "ART"):
        what = f"PGD's last iterate away from {peer}'s, points"
        compare(what, "PGD", last, peer, lambda a, b: abs(points(a, b)), 0.5)

    def ratio(ours, theirs):
        return rows[ours]["median"] / rows[theirs]["median"]

    def fewer(ours, theirs):
        return rows[theirs]["found"] - rows[ours]["found"]

    for attack in ("DDN", "C&W", "DeepFool"):
        if rows.get(f"{attack}, foolbox", {}).get("median") == float("inf"):
            what = f"{attack}, images found by foolbox less those by tfrobust"
            compare(what, attack, "tfrobust", "foolbox", fewer, 0)
        else:
            what = f"{attack}, median distance over foolbox's"
            compare(what, attack, "tfrobust", "foolbox", ratio, 1.02)
    what = "AutoAttack away from torchattacks', points"
    compare(what, "AutoAttack", "tfrobust", suite, lambda a, b: abs(points(a, b)), 0.3)
    return found


def show(models):
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, rows in models.items():
        table = Table("", "images", "robust or median L2", "seconds", title=name)
        for key, row in rows.items():
            value = row["robust"] if "robust" in row else f"{row['median']:.4f}"
            table.add_row(key, str(row["images"]), str(value), f"{row['seconds']:.0f}")
        console.print(table)
        for what, value, bar in goals(rows):
            console.print(f"  {what}: {value} (bar {bar}){'' if value <= bar else ' NOT MET'}")


if __name__ == "__main__":
    main()
