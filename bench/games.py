"""What a step of each game and option costs beside a step of plain adversarial training.

Digits, `tr.models.digits_net()`, batch 128, PGD-7, Adam: one compiled training step of each, in
turns, by processor seconds (which other work on the machine disturbs less); the figure is the
median over rounds of seconds / seconds of plain AT.

    python -m bench.games [--rounds 9] [--games-batch 128]
"""

import functools
import sys
import time

import tensorflow as tf

import tfrobust as tr
from bench import command, timing

THREAT = tr.threats.Linf(0.1)
PLAIN = "AT, PGD-7"
FLAGS = {"games_batch": (128, "of a step of each game")}
TINY = {"games_batch": 16}


def games(count, batch):
    """{name: game} of everything that is compared."""
    at, net = tr.training.AdversarialTraining, tr.models.digits_net
    attack = functools.partial(tr.attacks.PGD, THREAT, 7, last_iterate=True)
    fast, align = tr.training.fast_attack(THREAT), tr.training.GradAlign(0.2)
    masked = functools.partial(net, mask=tr.layers.BetaBernoulliMask)
    return {
        PLAIN: at(net(), attack()),
        "standard": at(net(), None),
        "AT, mix (1, 2)": at(net(), attack(), (1, 2)),
        "AT + AWP": at(net(), attack(), weight_attack=tr.training.AWP(0.01)),
        "AT + GradAlign": at(net(), attack(), regularizers=[align]),
        "Fast AT": at(net(), fast),
        "Fast AT + GradAlign": at(net(), fast, regularizers=[align]),
        "MART": tr.training.MART(net(), attack()),
        "FreeAT, 8 replays": tr.training.FreeAT(net(), THREAT, 8, batch_size=batch),
        "ANP": tr.training.ANP(masked(), attack(), train_size=count),
        "BP": tr.training.BP(masked(), train_size=count),
    }


def compiled(game, **options):
    """A step `(x, y) -> logs` in one graph."""
    game.compile(**options)
    return tf.function(lambda x, y: game.train_step((x, y)), jit_compile=False)


def sections(x, y, args):
    """Yields the section, of digits; `args` has `rounds` and `games_batch`."""
    data, batch = tr.data.load("digits"), args.games_batch
    x, y = (tf.constant(v[:batch]) for v in (data.x_train, data.y_train))
    contenders = {
        name: functools.partial(seconds, compiled(game), x, y)
        for name, game in games(len(data.x_train), batch).items()
    }
    for contender in contenders.values():
        contender()  # Keras makes metrics in the first step, which is traced once more
    yield {
        "name": f"One compiled step of each game, digits, batch {batch}, processor seconds",
        "floor": PLAIN,
        "rows": timing.rows(timing.interleaved(contenders, args.rounds), PLAIN),
        "absent": {},
    }


def seconds(step, x, y):
    """Processor seconds of one step."""
    began = time.process_time()
    float(step(x, y)["loss"])
    return time.process_time() - began


if __name__ == "__main__":
    command.alone(__doc__, sys.modules[__name__], rounds=9)
