"""Stages shared by the MNIST recipes: attack, training, judging, saving. Threat: Linf, epsilon 0.3.

Every stage runs in a folder of its own below `--work`, is resumed from there with `--resume`, and
keeps the seconds it took, so that networks can be compared at equal training time.
"""

import argparse
import pathlib
import shutil
import sys
import time

import keras
import numpy as np

import tfrobust as tr
from recipes.command import command_line

EPSILON = 0.3
THREAT = tr.threats.Linf(EPSILON)
BATCH = 128
SAVED = pathlib.Path("saved_models")


def arguments(doc, epochs, **more):
    """The flags that all MNIST recipes share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder with mnist.npz (default: TFROBUST_DATA_DIR)")
    parser.add_argument("--epochs", type=int, default=epochs, help="epochs of the main stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="tiny data, under a minute")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--work", default="runs", help="folder of checkpoints")
    parser.add_argument("--out", default=str(SAVED), help="folder of saved models")
    for name, keywords in more.items():
        parser.add_argument("--" + name.replace("_", "-"), **keywords)
    args = parser.parse_args()
    args.command = command_line(sys.argv[1:], pathlib.Path(sys.argv[0]).stem)
    args.work, args.out = pathlib.Path(args.work), pathlib.Path(args.out)
    if args.smoke:
        # Nothing that a real run left is touched.
        args.epochs, args.out, args.work = 1, args.work / "smoke", args.work / "smoke_runs"
    return args


def loaded(name, args):
    """A data set, or one line that says what is missing."""
    try:
        return tr.data.load(name, args.data_dir)
    except OSError as error:
        raise SystemExit(str(error)) from None


def mnist(args):
    """MNIST; with --smoke the first 512 training and 128 test images."""
    data = loaded("mnist", args)
    if not args.smoke:
        return data
    return tr.data.Dataset(
        data.x_train[:512], data.y_train[:512], data.x_test[:128], data.y_test[:128], 10
    )


def training_attack():
    """PGD-7 with steps of epsilon / 4 from a random start."""
    return tr.attacks.PGD(THREAT, steps=7, step_size=EPSILON / 4)


def judges(args):
    """Attacks in three lists: the paper's and ours for all images, APGD for the first 1,000."""
    steps, restarts = (4, 2) if args.smoke else (40, 5)
    paper = [tr.attacks.PGD(THREAT, steps=steps, step_size=0.4 / steps)]
    ours = [
        tr.attacks.FGSM(THREAT),
        tr.attacks.PGD(THREAT, steps=steps, step_size=0.4 / steps, restarts=restarts),
    ]
    steps = 10 if args.smoke else 100
    first = [
        tr.attacks.APGD(THREAT, steps=steps),
        tr.attacks.APGD(THREAT, steps=steps, loss="dlr_targeted", targets=9),
    ]
    return paper, ours, first


def rising_epsilon(iterations, epsilon=EPSILON):
    """From a sixth of epsilon to all of it, over the first fifth of the iterations."""
    return keras.optimizers.schedules.PolynomialDecay(epsilon / 6, max(iterations // 5, 1), epsilon)


def one_cycle(peak, iterations):
    """Learning rate: linear to `peak` over a tenth of the iterations, then a cosine to zero."""
    warm = max(iterations // 10, 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(iterations - warm, 1), warmup_target=peak, warmup_steps=warm
    )


class Clock(keras.callbacks.Callback):
    """Counts the seconds of training, wall and processor; `tr.training.Resume` keeps them.

    Budgets are compared in processor seconds (all threads), which other work on the machine
    disturbs far less than wall seconds.
    """

    resumes = ("done", "epochs")

    def __init__(self):
        super().__init__()
        self.done, self.epochs = [0.0, 0.0], 0  # wall, processor: of the finished epochs

    def on_epoch_begin(self, epoch, logs=None):
        self._began = _now()

    def so_far(self):
        """[wall, processor] seconds up to now, inside an epoch."""
        return [d + n - b for d, n, b in zip(self.done, _now(), self._began, strict=True)]

    def on_epoch_end(self, epoch, logs=None):
        self.done, self.epochs = self.so_far(), self.epochs + 1


def _now():
    return [time.perf_counter(), time.process_time()]


def train(game, batches, epochs, folder, resume, clock=None, callbacks=()):
    """Plain `fit` with a checkpoint every epoch; returns the `Clock`."""
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    clock = clock or Clock()
    others = [clock, *callbacks]
    keeper = tr.training.Resume(folder, batches, others, delete_checkpoint=False)
    game.fit(batches, epochs=epochs, callbacks=[*others, keeper], verbose=2, shuffle=False)
    wall, processor = clock.done
    print(
        f"{folder.name}: {clock.epochs} epochs, {wall:.0f} s, {processor:.0f} processor seconds",
        flush=True,
    )
    return clock


def soft_labels(parent, data, share, temperature=2.0):
    """Training labels mixed with a parent's answers to clean images, `(n, classes)`.

    (1 - share) * one-hot + share * softmax(logits / temperature): distillation from the network
    that was pruned (Hinton et al., 2015). With share < 1/2 the largest entry is the true label.
    """
    logits = tr.attacks.forward(parent, data.x_train) / temperature
    answers = np.exp(logits - logits.max(-1, keepdims=True))
    answers /= answers.sum(-1, keepdims=True)
    return ((1 - share) * np.eye(10)[data.y_train] + share * answers).astype("float32")


def robust_fit(net, data, epochs, folder, args, peak, ramp=False, suppress=0.0, labels=None):
    """Adversarial training of `net`: the objective of plain AT, fine-tuning and scratch twins."""
    y = data.y_train if labels is None else labels
    batches = tr.data.Batches(data.x_train, y, BATCH, seed=args.seed)
    iterations = len(batches) * epochs
    game = tr.training.AdversarialTraining(
        net,
        training_attack(),
        epsilon=rising_epsilon(iterations) if ramp else None,
        regularizers=[tr.regularizers.VulnerabilitySuppression(suppress)],
        seed=args.seed,
    )
    kinds = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
    game.compile(
        keras.optimizers.Adam(one_cycle(peak, iterations)),
        loss=kinds[labels is not None](from_logits=True),
    )
    return train(game, batches, epochs, folder, args.resume)


def plain_at(data, args, epochs):
    """Plain adversarial training of LeNet-5-Caffe from random weights: (net, [wall, processor])."""
    keras.utils.set_random_seed(args.seed)
    net = tr.models.lenet5_caffe()
    clock = robust_fit(net, data, epochs, args.work / "mnist_at", args, peak=2e-3, ramp=True)
    return net, clock.done


def copy_by_name(source, target):
    """Copies the weights of every layer of `source` to the layer of that name in `target`."""
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


def units_of(net):
    """Hidden units of LeNet-5-Caffe at each recorded feature, as {layer: count}."""
    full = tr.models.lenet5_caffe()
    names = tr.regularizers.feature_layers(net)
    shapes = [full.get_layer(name).output.shape[1:] for name in names]
    return {name: int(np.prod(shape)) for name, shape in zip(names, shapes, strict=True)}
