"""What an epoch of ANP costs when units are dead, with them and without: `shrink_every=`.

    python -m bench.shrinking [--rounds 3] [--anp-images 512] [--tiny]

ANP with PGD-7 on LeNet-5-Caffe. A share of the units of every mask is shut by hand, as training
shuts them; the floor is the epoch of the net that still carries them, which is what `fit` does. The
other contender is the same game after `tr.training.shrunk`, as `fit_and_shrink` makes it between
two stretches. Seconds are those of the processor; the start of `fit` is left out.
"""

import argparse
import time

import keras
import numpy as np

import tfrobust as tr
from bench import timing

BATCH = 128
SHARES = (0.5, 0.8)


def sections(x, y, args):
    """Yields a section for each share of dead units; `args` has `rounds` and `anp_images`."""
    for share in SHARES:
        yield section(share, x[: args.anp_images], y[: args.anp_images], args.rounds)


def anp(share):
    """A game whose masks have shut a share of their units, evenly spread."""
    net = tr.models.lenet5_caffe(mask=tr.layers.BetaBernoulliMask)
    for mask in tr.layers.masks(net):
        units = mask.a_.shape[0]
        shut = np.floor(np.arange(units) * share) < np.floor((np.arange(units) + 1) * share)
        if mask.name == "mask_flatten":  # 16 places of 50 maps: a value dies with its map
            maps = net.get_layer("mask_conv2").keep()
            shut = ~np.tile(maps, units // len(maps))
        mask.a_.assign(np.where(shut, -9.0, 2.0))
    threat = tr.threats.Linf(0.3)
    attack = tr.attacks.PGD(threat, steps=7, step_size=0.075, last_iterate=True)
    game = tr.training.ANP(net, attack, train_size=60_000)
    game.compile()
    return game


def section(share, x, y, rounds):
    game = anp(share)
    smaller = tr.training.shrunk(game)
    floor = "dead units carried along"
    contenders = {floor: epoch(game, x, y), "cut by shrink_every": epoch(smaller, x, y)}
    rows = timing.rows(timing.interleaved(contenders, rounds), floor)
    flops = [tr.footprint.measure(net).flops for net in (tr.models.lenet5_caffe(), game.classifier)]
    return {
        "name": f"an epoch of ANP with PGD-7, {share:.0%} of the units dead, {len(x)} images, "
        f"processor seconds ({flops[0] / flops[1]:.1f} x fewer FLOPs)",
        "floor": floor,
        "rows": rows,
        "absent": {},
    }


class Steps(keras.callbacks.Callback):
    """Processor seconds of an epoch, scaled from all its steps but the first."""

    def on_train_batch_end(self, batch, logs=None):
        self.count = batch + 1
        if batch == 0:
            self.began = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        taken = time.process_time() - self.began
        self.seconds = taken * self.count / (self.count - 1)


def epoch(game, x, y):
    def work():
        steps = Steps()
        game.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[steps])
        return steps.seconds

    return work


def options(cli):
    cli.add_argument(
        "--anp-images", type=int, default=512, help="of an epoch of ANP with dead units"
    )


def main():
    from bench import run

    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--rounds", type=int, default=3)
    options(cli)
    cli.add_argument("--tiny", action="store_true", help="seconds only: does it run?")
    args = cli.parse_args()
    if args.tiny:
        args.rounds, args.anp_images = 1, 256
    x, y, source = run.images(args.anp_images)
    print(source)
    for part in sections(x, y, args):
        print(part["name"], flush=True)
        for row in part["rows"]:
            print(f"  {row['name']}: {row['seconds']:.2f} s, ratio {row['ratio']:.3f}")


if __name__ == "__main__":
    main()
