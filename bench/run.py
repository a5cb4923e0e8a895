"""`make bench`: what an attack and a training step cost above the gradients they cannot avoid.

Each section compares contenders with a floor, made of the compiled gradients that the method needs
by definition, in one interleaved run; the figure is the median over rounds of time / floor. Results
go to bench/results.json with the machine they were measured on.

Two sections say what the pruning callback adds to an epoch of `fit` (`bench/pruning.py`), two what
it saves to cut dead units while ANP trains (`bench/shrinking.py`), one each what a step of AFD
costs (`bench/afd.py`) and what a step of every game does (`bench/games.py`), two what certificates
cost (`bench/verify.py`). The last ones compare whole evaluations with the fastest other library
instead of a floor.

    python -m bench.run [--rounds 5] [--images 250] [--prune-images 10000] [--verify-images 256]
        [--suite-images 1000]
"""

import datetime
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tfrobust as tr
from bench import afd, command, games, peers, pruning, shrinking, speed, timing, verify

HERE = pathlib.Path(__file__).parent
EPSILON = 0.3
BATCH = 128
BAR = 1.15
MORE = (pruning, shrinking, afd, games, verify)
FLAGS = {
    "images": (250, "attacked at once"),
    "steps": (40, "of PGD"),
    "suite_images": (1000, "of AutoAttack (20 minutes), 0: without it"),
}
TINY = {"images": 32, "steps": 4, "suite_images": 0}


def main():
    args = command.flags(
        __doc__, [sys.modules[__name__], *MORE], 5, output=str(HERE / "results.json")
    )
    x, y, source = command.images(args)
    model, origin = robust_model(x, y)
    sections = [
        attack_section(model, x[: args.images], y[: args.images], args),
        training_section(x[: args.train_images], y[: args.train_images], args),
        anp_section(x[: args.train_images], y[: args.train_images], args),
        *(part for bench in MORE for part in bench.sections(x, y, args)),
        *speed.sections(model, x[: args.images], y[: args.images], args),
    ]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": timing.machine(),
        "images": source,
        "model": origin,
        "settings": {**vars(args), "epsilon": EPSILON, "batch_size": BATCH},
        "sections": sections,
    }
    result["settings"].pop("output")
    path = tr.files.target(args.output, "output")
    text = json.dumps(result, indent=1) + "\n"
    tr.files.replace(path, lambda name: pathlib.Path(name).write_text(text))
    command.show(sections)
    print(f"model: {origin}; images: {source}; written to {path}")


def robust_model(x, y):
    """A robust LeNet: attacks on it run all their steps, since most images are never fooled."""
    path = HERE.parent / "saved_models" / "mnist_at" / "model.keras"
    if path.is_file():
        return keras.saving.load_model(path, compile=False), "saved_models/mnist_at/model.keras"
    model = tr.models.lenet5_caffe()
    attack = tr.attacks.PGD(tr.threats.Linf(EPSILON), steps=3, step_size=EPSILON / 2)
    game = tr.training.AdversarialTraining(model, attack)
    game.compile(keras.optimizers.Adam(1e-3))
    game.fit(x[:512], y[:512], batch_size=64, epochs=2, verbose=0)
    return model, "lenet5_caffe, 16 steps of adversarial training made for this run"


def input_gradient(model):
    @tf.function
    def gradient(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = model(x, training=False)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        return tape.gradient(loss, x)

    return gradient


def weight_step(model, passes):
    """One compiled update of all weights from `passes` training passes over the batch."""
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            losses = [
                tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
                )
                for _ in range(passes)
            ]
            loss = tf.add_n(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


def attack_section(model, x, y, args):
    images, labels = tf.constant(x), tf.constant(y)
    gradient = input_gradient(model)
    attack = tr.attacks.PGD(tr.threats.Linf(EPSILON), steps=args.steps, step_size=0.01)
    floor = f"{args.steps} compiled input gradients"

    def work():
        for _ in range(args.steps):
            last = gradient(images, labels)
        last.numpy()

    others, absent = peers.pgd(model, x, y, EPSILON, 0.01, args.steps)
    contenders = {floor: work, "tfrobust": lambda: np.asarray(attack(model, x, y)), **others}
    return section(
        f"PGD-{args.steps} on {len(x)} images", contenders, floor, args, absent, {"tfrobust": BAR}
    )


def epoch_floor(model, x, y, gradients, passes):
    gradient, step = input_gradient(model), weight_step(model, passes)
    batches = [
        (tf.constant(x[i : i + BATCH]), tf.constant(y[i : i + BATCH]))
        for i in range(0, len(x), BATCH)
    ]

    def work():
        for images, labels in batches:
            for _ in range(gradients):
                gradient(images, labels)
            last = step(images, labels)
        last.numpy()

    return work


def training_section(x, y, args):
    attack = tr.attacks.PGD(
        tr.threats.Linf(EPSILON), steps=7, step_size=EPSILON / 4, last_iterate=True
    )
    game = tr.training.AdversarialTraining(tr.models.lenet5_caffe(), attack)
    game.compile(keras.optimizers.Adam(1e-3))
    floor = "7 input gradients + 1 train step"
    others, absent = peers.madry(tr.models.lenet5_caffe(), x, y, EPSILON, EPSILON / 4, 7, BATCH)
    contenders = {
        floor: epoch_floor(tr.models.lenet5_caffe(), x, y, 7, 1),
        "tfrobust, the steps of fit": timing.steps_of(game, x, y, BATCH),
        "tfrobust, all of fit": fit(game, x, y),
        **others,
    }
    name = f"one epoch of PGD-7 training, {len(x)} images in batches of {BATCH}"
    bars = {"tfrobust, the steps of fit": BAR}
    return section(name, contenders, floor, args, absent, bars)


def anp_section(x, y, args):
    attack = tr.attacks.PGD(
        tr.threats.Linf(EPSILON), steps=7, step_size=EPSILON / 4, last_iterate=True
    )

    def net():
        return tr.models.lenet5_caffe(mask=tr.layers.BetaBernoulliMask)

    game = tr.training.ANP(
        net(), attack, train_size=60_000, regularizers=[tr.regularizers.VulnerabilitySuppression()]
    )
    game.compile()
    floor = "7 input gradients + 1 train step of two passes"
    contenders = {
        floor: epoch_floor(net(), x, y, 7, 2),
        "tfrobust ANP-VS, the steps of fit": timing.steps_of(game, x, y, BATCH),
    }
    name = f"one epoch of ANP-VS with PGD-7, {len(x)} images in batches of {BATCH}"
    return section(name, contenders, floor, args, {}, {"tfrobust ANP-VS, the steps of fit": BAR})


def fit(game, x, y):
    return lambda: game.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)


def section(name, contenders, floor, args, absent, bars):
    rows = timing.rows(timing.interleaved(contenders, args.rounds), floor, bars)
    return {"name": name, "floor": floor, "rows": rows, "absent": absent}


if __name__ == "__main__":
    main()
