"""What a step of each game and option costs beside a step of plain adversarial training.

Digits, `tr.models.digits_net()`, batch 128, PGD-7, Adam: one compiled training step of each, in
turns, by processor seconds (which other work on the machine disturbs less); the figure is the
median over rounds of seconds / seconds of plain AT.

    python -m bench.games [--rounds 9] [--batch 128]
"""

import argparse
import functools
import json
import statistics
import time

import keras
import tensorflow as tf

import tfrobust as tr

THREAT = tr.threats.Linf(0.1)
PLAIN = "AT, PGD-7"


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


def compiled(game):
    game.compile()
    return tf.function(lambda x, y: game.train_step((x, y)), jit_compile=False)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--rounds", type=int, default=9)
    cli.add_argument("--batch", type=int, default=128)
    args = cli.parse_args()
    keras.utils.set_random_seed(0)
    data = tr.data.load("digits")
    x, y = (tf.constant(v[: args.batch]) for v in (data.x_train, data.y_train))
    steps = {name: compiled(g) for name, g in games(len(data.x_train), args.batch).items()}
    seconds = {name: [] for name in steps}
    for turn in range(args.rounds + 2):  # the first two trace and warm up
        for name, step in steps.items():
            began = time.process_time()
            float(step(x, y)["loss"])
            if turn > 1:
                seconds[name].append(time.process_time() - began)
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, seconds[PLAIN], strict=True))
        milli = 1e3 * statistics.median(found)
        print(json.dumps({"name": name, "ms": round(milli, 2), "ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
