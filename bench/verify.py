"""What certificates cost: intervals beside `predict`, CROWN-IBP by classes, certified steps.

    python -m bench.verify [--rounds 5] [--verify-images 256]

Three sections. `certify` with interval bounds answers, bounds and compares: its floor is one
`predict` of the same images. CROWN-IBP takes one row of coefficients for each class but one: its
floor is the net with five classes. A step of certified training is measured against a plain one.
Memory is measured by `python -m bench.memory`.
"""

import functools
import sys

import keras
import numpy as np
import tensorflow as tf

import tfrobust as tr
from bench import command, games, timing

BAR = 3.0
STEP = 3.5  # a step with intervals, in plain steps
CLASSES = (5, 10, 20, 40)
ROOM = 1.15  # above (classes - 1) / 4
THREAT = tr.threats.Linf(0.1)
FLAGS = {"verify_images": (256, "of interval certificates")}
TINY = {"verify_images": 32}


def sections(x, y, args):
    """Three sections of `make bench`."""
    x, y = x[: args.verify_images], y[: args.verify_images]
    yield intervals(x, y, args.rounds)
    yield relaxations(x[:64], args.rounds)
    yield training(x[:128], y[:128], args.rounds)


def intervals(x, y, rounds):
    net, floor = tr.models.lenet5_caffe(), "predict"
    contenders = {
        floor: lambda: net.predict(x, batch_size=256, verbose=0),
        "certify, ibp": lambda: _quiet(
            tr.verify.certify(net, (x, y), THREAT, "ibp", attacks=[], progress=False)
        ),
        "bounds.margins, ibp": lambda: _quiet(tr.bounds.margins(net, x, y, THREAT)),
    }
    times = timing.interleaved(contenders, rounds)
    return {
        "name": f"Interval certificates of {len(x)} images, LeNet-5-Caffe",
        "floor": floor,
        "rows": timing.rows(times, floor, {"certify, ibp": BAR}),
        "absent": {},
    }


def training(x, y, rounds):
    """One compiled step of certified training beside a plain Keras step, processor seconds."""
    floor, net = "plain Keras step", tr.models.cnn_small
    steps = {
        floor: net(),
        "CertifiedTraining, ibp": tr.training.CertifiedTraining(net(), THREAT),
        "CertifiedTraining, crown-ibp": tr.training.CertifiedTraining(
            net(), THREAT, bound="crown-ibp", crown=0.5
        ),
        "MixTrain, k = 10": tr.training.MixTrain(net(), THREAT, k=10, alpha=1.0),
    }
    x, y = tf.constant(x), tf.constant(y)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    contenders = {
        name: functools.partial(
            games.seconds, games.compiled(one, optimizer="adam", loss=loss), x, y
        )
        for name, one in steps.items()
    }
    for contender in contenders.values():
        contender()  # the first step makes variables and is traced once more
    times = timing.interleaved(contenders, rounds)
    return {
        "name": f"One training step of {len(x)} images, cnn_small, processor seconds",
        "floor": floor,
        "rows": timing.rows(times, floor, {"CertifiedTraining, ibp": STEP}),
        "absent": {},
    }


def relaxations(x, rounds):
    contenders, bars = {}, {}
    for classes in CLASSES:
        net = tr.models.lenet5_caffe(classes=classes)
        y = np.arange(len(x)) % classes
        name = f"{classes} classes"
        contenders[name] = lambda net=net, y=y: _quiet(
            tr.bounds.margins(net, x, y, THREAT, method="crown-ibp")
        )
        bars[name] = ROOM * (classes - 1) / (CLASSES[0] - 1)
    floor = f"{CLASSES[0]} classes"
    bars.pop(floor)
    return {
        "name": f"CROWN-IBP of {len(x)} images, LeNet-5-Caffe, by the number of classes",
        "floor": floor,
        "rows": timing.rows(timing.interleaved(contenders, rounds), floor, bars),
        "absent": {},
    }


def _quiet(_):
    """Contenders return nothing: a float would be taken for their seconds."""


if __name__ == "__main__":
    command.alone(__doc__, sys.modules[__name__])
