"""What `MagnitudePruning` costs an epoch of `fit`: an ordinary one, and one of PGD-7 training.

    python -m bench.pruning [--rounds 5] [--prune-images 10000] [--train-images 2560] [--tiny]

Seconds are those of the processor, all threads of this process together: a share of one percent is
less than what other programs do to a clock on the wall. The start and the end of `fit` are left
out. An update costs the same whatever the size of the epoch, so ordinary epochs, which are short,
take more images and have one update in five, and adversarial ones have one each.
"""

import sys
import time
import warnings

import keras

import tfrobust as tr
from bench import command, timing

BAR = 1.02
BATCH = 128
FLAGS = {
    "prune_images": (10_000, "of an ordinary epoch while pruning"),
    "train_images": (2560, "of an adversarial epoch"),
}
TINY = {"prune_images": 256, "train_images": 256}
EPOCHS = 5  # from one update to the next, as Sehwag et al. (2019) prune


def sections(x, y, args):
    """Yields the two sections; `args` has `rounds`, `prune_images` and `train_images`."""
    few, many = slice(args.train_images), slice(args.prune_images)
    yield section("ordinary training", natural, x[many], y[many], EPOCHS, args.rounds)
    yield section("PGD-7 training", adversarial, x[few], y[few], 1, args.rounds)


def natural():
    net = tr.models.lenet5_caffe()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(1e-3), loss=loss)
    return net


def adversarial():
    threat = tr.threats.Linf(0.3)
    attack = tr.attacks.PGD(threat, steps=7, step_size=0.075, last_iterate=True)
    game = tr.training.AdversarialTraining(tr.models.lenet5_caffe(), attack)
    game.compile(keras.optimizers.Adam(1e-3))
    return game


def section(name, build, x, y, epochs, rounds):
    often = f"one update in {epochs} epochs" if epochs > 1 else "an update in each epoch"
    floor = "fit without it"
    # The first, untimed round has the only update of OneShot.
    schedules = {
        floor: None,
        "between updates": tr.pruning.OneShot(0.9),
        often: tr.pruning.Linear(0.9, updates=rounds + 1, every=epochs),
    }
    contenders = {what: fit(build(), s, x, y, epochs) for what, s in schedules.items()}
    bars = {what: BAR for what in contenders if what != floor}
    times = timing.interleaved(contenders, rounds)
    many = f"{epochs} epochs of {len(x)} images" if epochs > 1 else f"an epoch of {len(x)} images"
    return {
        "name": f"tr.pruning.MagnitudePruning in {name}, {many}, processor seconds",
        "floor": floor,
        "rows": timing.rows(times, floor, bars),
        "absent": {},
    }


class Begin(keras.callbacks.Callback):
    """Stands before the callback that is measured."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.at = time.process_time()


class End(keras.callbacks.Callback):
    """Stands behind it."""

    def on_epoch_end(self, epoch, logs=None):
        self.at = time.process_time()


def fit(model, schedule, x, y, epochs):
    prune = [] if schedule is None else [tr.pruning.MagnitudePruning(schedule)]

    def work():
        begin, end = Begin(), End()
        with warnings.catch_warnings():  # of a schedule that goes on in the next round
            warnings.simplefilter("ignore")
            model.fit(
                x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[begin, *prune, end]
            )
        return end.at - begin.at

    return work


if __name__ == "__main__":
    command.alone(__doc__, sys.modules[__name__])
