"""ANP-VS on MNIST: one walk along the front, a robust net pruned to several FLOP gains.

Paper: Madaan et al., 2020 (arXiv 1908.04355); epsilon 0.3, LeNet-5-Caffe, beta-Bernoulli masks.
Stages: plain AT (10 epochs) -> masks and weights by ANP-VS until a FLOP gain is reached -> shrink
to a stock net -> robust fine-tuning of the small net -> judge, export, card. With --twins each
point gets its scratch twin: the same shrunk architecture from random weights, trained with the
same robust objective for the same total time.
Command: python -m recipes.mnist_anp_vs --data-dir DATA --twins
Time: about 30 minutes on 2 cores for each point, its twin as long again.
"""

import time

import keras
import numpy as np

import tfrobust as tr
from recipes import mnist, mnist_judge


class Front(keras.callbacks.Callback):
    """Saves the shrunk net each time the masks reach a FLOP gain, and stops `fit` at the last."""

    resumes = ("seconds", "reached")

    def __init__(self, net, gains, folder, every=20):
        super().__init__()
        self.net, self.folder, self.every = net, folder, every
        self.gains = sorted(gains)
        self.full = tr.footprint.measure(tr.models.lenet5_caffe()).flops
        self.seconds, self.reached = 0.0, []  # of the finished epochs; [seconds at each gain]

    def path(self, gain):
        return self.folder / f"shrunk_{gain:g}x.keras"

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds += time.perf_counter() - self._began

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every:
            return
        seconds = self.seconds + time.perf_counter() - self._began
        gain = self.full / tr.footprint.measure(self.net).flops
        kept = "-".join(str(k) for _, k, _ in tr.layers.kept(self.net))
        while len(self.reached) < len(self.gains) and gain >= self.gains[len(self.reached)]:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.path(self.gains[len(self.reached)])
            tr.export.keras_file(tr.shrink.compact(self.net), path)
            self.reached.append(round(seconds))
            print(f"{gain:.2f}x fewer FLOPs with units {kept} after {seconds:.0f} s", flush=True)
        if len(self.reached) == len(self.gains):
            self.model.stop_training = True


def learn_masks(start, data, gains, args):
    """ANP-VS from a robust net; returns {gain: (shrunk net, seconds of the mask stage)}."""
    keras.utils.set_random_seed(args.seed)
    net = tr.models.lenet5_caffe(
        mask=lambda name: tr.layers.BetaBernoulliMask(
            initial_a=2.0, seed=args.seed + 1, name=name
        )
    )
    mnist.copy_by_name(start, net)
    batches = tr.data.Batches(data.x_train, data.y_train, mnist.BATCH, seed=args.seed + 1)
    game = tr.training.ANP(
        net,
        mnist.training_attack(),
        beta=args.beta,
        train_size=len(data.x_train),
        regularizers=[tr.regularizers.VulnerabilitySuppression(args.suppress)],
        seed=args.seed,
    )
    game.compile(
        {
            "weights": keras.optimizers.Adam(5e-4, epsilon=1e-8),
            "masks": keras.optimizers.Adam(args.mask_rate, epsilon=1e-8),
        }
    )
    folder = args.work / "mnist_masks"
    front = Front(net, gains, folder)
    mnist.train(game, batches, 1 if args.smoke else args.mask_epochs, folder, args.resume, [front])
    if args.smoke:  # too short to prune: shut channels by hand
        for gain in front.gains[len(front.reached) :]:
            for mask in tr.layers.masks(net):
                live = round(mask.a_.shape[0] * gain**-0.6)
                mask.a_.assign(np.where(np.arange(mask.a_.shape[0]) < live, 2.0, -12.0))
            front.on_train_batch_end(0)
    if len(front.reached) < len(gains):
        raise SystemExit(
            f"the masks reached {len(front.reached)} of the gains {front.gains} in "
            f"{args.mask_epochs} epochs: raise --mask-epochs or --beta"
        )
    return {
        gain: (keras.saving.load_model(front.path(gain)), seconds)
        for gain, seconds in zip(front.gains, front.reached, strict=True)
    }


def main():
    more = {
        "gains": {"type": float, "nargs": "+", "default": [2.2, 6.6], "help": "FLOP gains"},
        "beta": {"type": float, "default": 80.0, "help": "weight of the KL of the masks"},
        "suppress": {"type": float, "default": 1.0, "help": "lambda of vulnerability suppression"},
        "mask_epochs": {"type": int, "default": 12, "help": "at most so many epochs of masks"},
        "mask_rate": {"type": float, "default": 1e-2, "help": "learning rate of the masks"},
        "peak": {"type": float, "default": 1e-3, "help": "learning rate of the fine-tuning"},
        "start_epochs": {"type": int, "default": 10, "help": "epochs of plain AT before"},
        "twins": {"action": "store_true", "help": "train the scratch twin of each point too"},
    }
    args = mnist.arguments(__doc__, epochs=20, **more)
    data = mnist.mnist(args)
    start, first = mnist.plain_at(data, args, 1 if args.smoke else args.start_epochs)
    for gain, (net, second) in learn_masks(start, data, args.gains, args).items():
        point(gain, net, first + second, data, args)


def point(gain, net, before, data, args):
    """Fine-tunes, judges and ships one point of the front, and its twin."""
    name = f"mnist_anp_vs_{int(gain)}x"
    clock = mnist.robust_fit(
        net, data, args.epochs, args.work / name, args, args.peak, suppress=args.suppress
    )
    total = before + clock.seconds
    mnist_judge.ship(name, "ANP-VS", net, data, args, total)
    if not args.twins:
        return
    epochs = max(1, round(total / (clock.seconds / clock.epochs)))
    name = f"mnist_scratch_{int(gain)}x"
    keras.utils.set_random_seed(args.seed + 1)
    twin = keras.models.clone_model(net)
    clock = mnist.robust_fit(
        twin, data, epochs, args.work / name, args, 2e-3, ramp=True, suppress=args.suppress
    )
    mnist_judge.ship(name, "scratch", twin, data, args, clock.seconds)


if __name__ == "__main__":
    main()
