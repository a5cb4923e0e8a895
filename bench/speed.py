"""Whole evaluations beside other libraries': the floor is the fastest of them.

PGD with restarts shows what dropping broken images is worth: little on a robust model, where most
images need every run, and much on a plain one, where few survive the first.
"""

import pathlib
import statistics
import warnings

import keras

import tfrobust as tr
from bench import duels, timing

PLAIN = pathlib.Path("runs") / "bench" / "plain_lenet.keras"
# Our share of the fastest peer's seconds: 2.5, 10 and 1.5 times faster.
ROBUST, PLAINLY, SUITE = 0.4, 0.1, 0.667


def sections(robust, x, y, args):
    """PGD on a robust and on a plain model, AutoAttack on the robust one."""
    pgd, suite = ("foolbox", "ART", "tfrobust"), ("torchattacks", "tfrobust")
    name = f"PGD-{duels.STEPS}, {duels.RESTARTS} restarts, on {len(x)} images of a"
    plain = plain_model(x, y, keep=not args.tiny)
    parts = [
        section(f"{name} robust model", "PGD", pgd, robust, x, y, args.rounds, ROBUST),
        section(f"{name} plain model", "PGD", pgd, plain, x, y, args.rounds, PLAINLY),
    ]
    if args.suite_images:
        data = tr.data.load("mnist")
        x, y = data.x_test[: args.suite_images], data.y_test[: args.suite_images]
        name = f"AutoAttack standard on {len(x)} images of a robust model, with all compilation"
        parts.append(section(name, "AutoAttack", suite, robust, x, y, 1, SUITE, warm=False))
    return parts


def plain_model(x, y, keep=True):
    """LeNet-5-Caffe after one epoch of ordinary training, on the given images without MNIST.

    Args:
        keep: Take the file of an earlier run below runs/, or write it.
    """
    if keep and PLAIN.is_file():
        return keras.saving.load_model(PLAIN, compile=False)
    if keep:
        try:
            data = tr.data.load("mnist")
            x, y = data.x_train, data.y_train
        except (OSError, ValueError):
            keep = False
    model = tr.models.lenet5_caffe()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(x, y, batch_size=128, verbose=0)
    if keep:
        tr.export.keras_file(model, PLAIN)
    return model


def section(name, attack, libraries, model, x, y, rounds, bar, warm=True):
    """One section of `bench.run`: seconds of the same attack by each library."""
    contenders, absent = {}, {}
    for library in libraries:
        contender = duels.ROWS[attack, library][0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender(model, x[:2], y[:2])
        except Exception as error:  # whatever another library raises, our figures still count
            if library == "tfrobust":
                raise
            absent[library] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            contenders[library] = lambda run=contender: run(model, x, y)
    times = timing.interleaved(contenders, rounds, warm)
    peers = [library for library in times if library != "tfrobust"]
    floor = min(peers or times, key=lambda library: statistics.median(times[library]))
    bars = {"tfrobust": bar} if peers else {}
    return {
        "name": name,
        "floor": floor,
        "rows": timing.rows(times, floor, bars),
        "absent": absent,
    }
