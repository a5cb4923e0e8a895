"""ANP-VS on MNIST: one walk along the front, a robust net pruned to several FLOP gains.

Paper: Madaan et al., 2020 (arXiv 1908.04355); epsilon 0.3, LeNet-5-Caffe, beta-Bernoulli masks.
Stages: plain AT (10 epochs) -> masks and weights by ANP-VS until a FLOP gain is reached -> shrink
to a stock net -> robust fine-tuning of the small net, its labels softened by the plain AT net it
was cut from -> judge, export, card. With --twins each point gets its scratch twin: the same shrunk
architecture from random weights, trained with the same robust objective for the same processor
seconds in all (its labels stay hard: it has no parent).
Command: python -m recipes.mnist_anp_vs --data-dir DATA --twins
Time: about 30 minutes on 2 cores for each point, its twin as long again.
"""

import pathlib

import keras
import numpy as np

import tfrobust as tr
from recipes import anp_vs_stages, mnist, mnist_judge


class Front(keras.callbacks.Callback):
    """Saves the shrunk net each time the masks reach a FLOP gain, and stops `fit` at the last."""

    resumes = ("reached",)

    def __init__(self, net, gains, folder, clock, every=20):
        super().__init__()
        self.net, self.folder, self.clock, self.every = net, folder, clock, every
        self.gains = sorted(gains)
        self.full = tr.footprint.measure(tr.models.lenet5_caffe()).flops
        self.reached = {}  # gain: [wall, processor] seconds

    def path(self, gain):
        return self.folder / f"shrunk_{gain:g}x.keras"

    def due(self, gain):
        """The gains up to this one that are not saved yet."""
        return [g for g in self.gains if g <= gain and f"{g:g}" not in self.reached]

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every:
            return
        gain = self.full / tr.footprint.measure(self.net).flops
        kept = "-".join(str(k) for _, k, _ in tr.layers.kept(self.net))
        for goal in self.due(gain):
            tr.export.keras_file(tr.shrink.compact(self.net), self.path(goal))
            self.reached[f"{goal:g}"] = self.clock.so_far()
            print(f"{gain:.2f}x fewer FLOPs, units {kept}, batch {batch}", flush=True)
        if not self.due(float("inf")):
            self.model.stop_training = True


def learn_masks(start, data, args):
    """ANP-VS from a robust net; returns {gain: (shrunk net, [wall, processor] seconds)}."""
    keras.utils.set_random_seed(args.seed)
    seeds = iter(range(1000 * args.seed, 1000 * args.seed + 1000))  # else all draw the same noise
    net = tr.models.lenet5_caffe(
        mask=lambda name: tr.layers.BetaBernoulliMask(initial_a=2.0, seed=next(seeds), name=name)
    )
    mnist.copy_by_name(start, net)
    batches = tr.data.Batches(data.x_train, data.y_train, mnist.BATCH, seed=args.seed + 1)
    game = tr.training.ANP(
        net,
        mnist.training_attack(),
        beta=args.beta,
        train_size=len(data.x_train),
        kl_weights=anp_vs_stages.cost_weights(net, args.cost_power),
        regularizers=[tr.regularizers.VulnerabilitySuppression(args.suppress)],
        seed=args.seed,
    )
    game.compile(
        {
            "weights": keras.optimizers.Adam(5e-4, epsilon=1e-8),
            "masks": keras.optimizers.Adam(args.mask_rate, epsilon=1e-8),
        }
    )
    folder, clock = args.work / "mnist_masks", mnist.Clock()
    front = Front(net, args.gains, folder / "front", clock)
    epochs = 1 if args.smoke else args.mask_epochs
    mnist.train(game, batches, epochs, folder, args.resume, clock, [front])
    if args.smoke:  # too short to prune: shut channels by hand
        clock.on_epoch_begin(1)
        for gain in front.due(float("inf")):
            for mask in tr.layers.masks(net):
                live = round(mask.a_.shape[0] * gain**-0.6)
                mask.a_.assign(np.where(np.arange(mask.a_.shape[0]) < live, 2.0, -12.0))
            front.on_train_batch_end(0)
    if missed := front.due(float("inf")):
        raise SystemExit(
            f"`--beta` is too small: in {args.mask_epochs} epochs the masks did not reach "
            f"{', '.join(f'{g:g}' for g in missed)} x fewer FLOPs (or raise --mask-epochs). "
            f"Received: {args.beta:g}"
        )
    return {
        gain: (keras.saving.load_model(front.path(gain)), front.reached[f"{gain:g}"])
        for gain in front.gains
    }


def main():
    more = {
        "start": {"help": "folder of a robust LeNet-5-Caffe (as recipes.mnist_at ships it)"},
        "start_epochs": {"type": int, "default": 10, "help": "epochs of plain AT without --start"},
        "gains": {"type": float, "nargs": "+", "default": [2.2, 6.4], "help": "FLOP gains"},
        "beta": {"type": float, "default": 100.0, "help": "weight of the KL of the masks"},
        "cost_power": {"type": float, "default": 0.5, "help": "0: the paper's equal KL weights"},
        "suppress": {"type": float, "default": 1.0, "help": "lambda of vulnerability suppression"},
        "distill": {"type": float, "default": 0.45, "help": "share of the parent in the labels"},
        "mask_epochs": {"type": int, "default": 12, "help": "at most so many epochs of masks"},
        "mask_rate": {"type": float, "default": 1e-2, "help": "learning rate of the masks"},
        "peak": {"type": float, "default": 2e-3, "help": "learning rate of the fine-tuning"},
        "twins": {"action": "store_true", "help": "train the scratch twin of each point too"},
    }
    args = mnist.arguments(__doc__, epochs=15, **more)
    if len({int(gain) for gain in args.gains}) < len(args.gains):
        raise SystemExit(f"`--gains` must differ in whole numbers. Received: {args.gains}")
    data = mnist.mnist(args)
    if args.start:
        start = keras.saving.load_model(pathlib.Path(args.start) / "model.keras")
        before = tr.report.load(args.start).to_dict()["models"]["AT"]["settings"]["seconds"]
    else:
        start, before = mnist.plain_at(data, args, 1 if args.smoke else args.start_epochs)
    points = learn_masks(start, data, args)
    for gain, (net, seconds) in reversed(points.items()):  # the smallest net, the quickest, first
        spent = [a + b for a, b in zip(before, seconds, strict=True)]
        point(gain, net, start, spent, data, args)
    if args.twins:
        for gain in reversed(points):
            scratch_twin(gain, data, args)


def point(gain, net, parent, before, data, args):
    """Fine-tunes, judges and ships one point of the front."""
    name = f"mnist_anp_vs_{int(gain)}x"
    labels = mnist.soft_labels(parent, data, args.distill) if args.distill else None
    folder = args.work / name
    clock = mnist.robust_fit(
        net, data, args.epochs, folder, args, args.peak, suppress=args.suppress, labels=labels
    )
    total = [a + b for a, b in zip(before, clock.done, strict=True)]
    mnist_judge.ship(name, "ANP-VS", net, data, args, total, epoch=clock.done[1] / clock.epochs)


def scratch_twin(gain, data, args):
    """The same shrunk architecture from random weights: same objective, same processor seconds."""
    folder = args.out / f"mnist_anp_vs_{int(gain)}x"
    told = tr.report.load(folder).to_dict()["models"]["ANP-VS"]["settings"]
    epochs = max(1, round(told["seconds"][1] / told["epoch_seconds"]))
    name = f"mnist_scratch_{int(gain)}x"
    keras.utils.set_random_seed(args.seed + 1)
    twin = keras.models.clone_model(keras.saving.load_model(folder / "model.keras"))
    clock = mnist.robust_fit(
        twin, data, epochs, args.work / name, args, 2e-3, ramp=True, suppress=args.suppress
    )
    mnist_judge.ship(
        name, "scratch", twin, data, args, clock.done, epoch=clock.done[1] / clock.epochs
    )


if __name__ == "__main__":
    main()
