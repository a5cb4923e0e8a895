"""What the benches share: their flags, the images they take, the table they print.

A bench is a module with `FLAGS`, {name: (default, help)}, `TINY`, the same names at their smallest,
and `sections(x, y, args)`, which yields what `timing.rows` made.
"""

import argparse

import keras
import tensorflow as tf

import tfrobust as tr


def alone(doc, bench, rounds=5):
    """`python -m bench.NAME`: runs and prints the sections of one bench."""
    args = flags(doc, [bench], rounds)
    x, y, source = images(args)
    print(source)
    for part in bench.sections(x, y, args):
        show([part])


def flags(doc, benches, rounds, **more):
    """The command line of some benches; `more` are further flags and their defaults."""
    cli = argparse.ArgumentParser(description=doc.split("\n")[0])
    known = {name: flag for bench in benches for name, flag in bench.FLAGS.items()}
    known |= {name: (default, None) for name, default in more.items()}
    for name, (default, text) in {"rounds": (rounds, "median of so many"), **known}.items():
        cli.add_argument(
            "--" + name.replace("_", "-"), type=type(default), default=default, help=text
        )
    cli.add_argument("--tiny", action="store_true", help="seconds only: does it run?")
    args = cli.parse_args()
    if args.tiny:
        vars(args).update(rounds=1)
        for bench in benches:
            vars(args).update(bench.TINY)
    keras.utils.set_random_seed(0)
    return args


def images(args):
    """MNIST test images for the largest flag, or digits stretched to 28 x 28 without MNIST."""
    count = max([value for name, value in vars(args).items() if "images" in name], default=128)
    try:
        data = tr.data.load("mnist")
        return data.x_test[:count], data.y_test[:count], "MNIST, first test images"
    except (OSError, ValueError):
        data = tr.data.load("digits")
        big = tf.image.resize(data.x_train, (28, 28)).numpy().clip(0, 1)
        return big[:count], data.y_train[:count], "scikit-learn digits resized to 28 x 28"


def show(sections):
    from rich.console import Console
    from rich.table import Table

    for part in sections:
        table = Table("", "seconds", "x floor", "bar", title=part["name"])
        for row in part["rows"]:
            bar = f"<= {row['bar']:.2f}" if row["bar"] else ""
            table.add_row(row["name"], f"{row['seconds']:.3f}", f"{row['ratio']:.3f}", bar)
        for name, reason in part["absent"].items():
            table.add_row(name, reason[:60], "", "")
        Console().print(table)
