"""What an epoch of ANP costs when units are dead, with them and without: `shrink_every=`.

    python -m bench.shrinking [--rounds 3] [--anp-images 512] [--tiny]

ANP with PGD-7 on LeNet-5-Caffe. A share of the units of every mask is shut by hand, as training
shuts them; the floor is the epoch of the net that still carries them, which is what `fit` does. The
other contender is the same game after `tr.training.shrunk`, as `fit_and_shrink` makes it between
two stretches. Seconds are those of the processor; the start of `fit` is left out.
"""

import sys
import time

import numpy as np

import tfrobust as tr
from bench import command, timing

BATCH = 128
FLAGS = {"anp_images": (512, "of an epoch of ANP with dead units")}
TINY = {"anp_images": 256}
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
    contenders = {
        floor: timing.steps_of(game, x, y, BATCH, time.process_time),
        "cut by shrink_every": timing.steps_of(smaller, x, y, BATCH, time.process_time),
    }
    rows = timing.rows(timing.interleaved(contenders, rounds), floor)
    flops = [tr.footprint.measure(net).flops for net in (tr.models.lenet5_caffe(), game.classifier)]
    return {
        "name": f"an epoch of ANP with PGD-7, {share:.0%} of the units dead, {len(x)} images, "
        f"processor seconds ({flops[0] / flops[1]:.1f} x fewer FLOPs)",
        "floor": floor,
        "rows": rows,
        "absent": {},
    }


if __name__ == "__main__":
    command.alone(__doc__, sys.modules[__name__], rounds=3)
