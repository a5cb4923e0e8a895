"""The rows of the ANP-VS tables: what each is, what it depends on, and its card.

A card is named by data, row, the options that differ from their defaults, and seed; the options of
a row are those that change it. A card that is there is kept if its flags are these, refused else.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from typing import NamedTuple

import tfrobust as tr
from recipes import anp_vs_judge as judge
from recipes import anp_vs_stages as stages
from recipes import pruning_stages
from recipes.command import check, refuse_other


class Row(NamedTuple):
    """A method: its title, `Run -> Trained`, and the options of the recipe that it depends on."""

    title: str
    train: Callable
    options: tuple = ()


MASKS = ("gain", "cost_power")
ROWS = {
    "standard": Row("Standard", stages.standard),
    "bp_bbd": Row("BP (beta-Bernoulli)", stages.bp, ("bp_beta",)),
    "bp_vib": Row("BP (VIB)", lambda run: stages.bp(run, "vib"), ("bp_beta",)),
    "at": Row("AT", stages.at),
    "at_bnn": Row("AT BNN", stages.at_bnn),
    "pretrained_at": Row("Pretrained AT", stages.pretrained_at),
    "admm": Row("ADMM", stages.admm),
    "trades": Row("TRADES", stages.trades),
    "anp_vs_bbd": Row(
        "ANP-VS (beta-Bernoulli)",
        lambda run: stages.anp(run, suppress=run.args.suppress),
        ("beta", "suppress", *MASKS),
    ),
    "anp_vs_vib": Row(
        "ANP-VS (VIB)",
        lambda run: stages.anp(run, "vib", run.args.suppress),
        ("vib_beta", "suppress", *MASKS),
    ),
}
MORE = {
    "at_madry": Row(
        "AT on attacked images alone",
        lambda run: stages.at(run, name="at_madry", mix=(0.0, 1.0), weight_decay=0.0),
    ),
    "at_vs": Row("AT-VS", lambda run: stages.at(run, suppress=run.args.suppress), ("suppress",)),
    "anp_bbd": Row("ANP (beta-Bernoulli)", stages.anp, ("beta", *MASKS)),
    "pat": Row("PAT (beta-Bernoulli)", stages.pat, ("bp_beta",)),
}
ALL = {**ROWS, **MORE}
SHARED = ("width", "dropout", "warm")  # of the net and its start, by data set
BY_DATA = (*SHARED, "beta", "vib_beta")
SWEPT = {"bp_bbd": "bp_beta", "pat": "bp_beta", "anp_vs_bbd": "beta"}  # Figure 3: row, its beta


def options():
    return {
        "data": {"choices": list(stages.NETS), "default": "mnist"},
        "rows": {"nargs": "+", "choices": list(ALL), "default": list(ROWS)},
        "seeds": {"type": int, "nargs": "+", "default": [0]},
        "width": {"type": float, "help": "of the network (default: 1 for LeNet, 0.25 for VGG-16)"},
        "dropout": {"type": float, "help": "share of VGG-16's dropout (default: 0; the paper: 1)"},
        "warm": {
            "type": int,
            "help": "epochs of standard training that adversarial rows start from (default: 0 on "
            "MNIST, 16 on CIFAR-10)",
        },
        "train_images": {"type": int, "help": "train on so many images (default: all)"},
        "test_images": {"type": int, "help": "judge on so many images (default: all)"},
        "beta": {"type": float, "help": "of ANP with beta-Bernoulli masks (default: 100)"},
        "vib_beta": {
            "type": float,
            "help": "of ANP with VIB masks (default: 100 on MNIST, 50 on CIFAR-10)",
        },
        "bp_beta": {"type": float, "default": 1.0, "help": "of BP"},
        "suppress": {"type": float, "default": 1.0, "help": "lambda of VS, V a mean over units"},
        "gain": {
            "type": float,
            "default": 4.5,
            "help": "FLOP gain at which masks are cut, 0: never",
        },
        "cost_power": {"type": float, "default": 0.5, "help": "0: the paper's equal KL weights"},
        "n": {"type": int, "default": 1000, "help": "test images for AutoAttack"},
    }


def prepared(args):
    """The flags completed and checked, and the data."""
    check(args)
    if getattr(args, "gain", 0) != 0 and not 1 <= args.gain < float("inf"):
        raise SystemExit(f"`--gain` must be 0 or a finite number >= 1. Received: {args.gain}")
    if "seeds" in args and args.seed:
        raise SystemExit(f"`--seeds` says the seeds of this recipe. Received: --seed {args.seed}")
    defaults = stages.NETS[args.data].defaults
    for name in BY_DATA:
        if getattr(args, name, None) is None:
            setattr(args, name, defaults.get(name))
        elif name not in defaults:
            raise SystemExit(f"`--{name}` has no meaning for {args.data}")
    data = pruning_stages.dataset(args)
    if (count := getattr(args, "test_images", None)) is not None:
        if not 1 <= count <= len(data.x_test):
            raise SystemExit(
                f"`--test-images` must lie in [1, {len(data.x_test)}]. Received: {count}"
            )
        data = dataclasses.replace(data, x_test=data.x_test[:count], y_test=data.y_test[:count])
    if "n" in args and not args.smoke and args.n > len(data.x_test):
        raise SystemExit(
            f"`--n` must be <= {len(data.x_test)}, all test images. Received: {args.n}"
        )
    if args.train_images is None:
        return data
    if args.train_images > len(data.x_train):
        raise SystemExit(
            f"`--train-images` must lie in [1, {len(data.x_train)}]. Received: {args.train_images}"
        )
    few = slice(args.train_images)
    return dataclasses.replace(data, x_train=data.x_train[few], y_train=data.y_train[few])


def changed(row, args):
    """{option: value} of those options of a row that are not at their defaults."""
    values = {name: getattr(args, name) for name in ALL[row].options}
    return {name: value for name, value in values.items() if value != default(args.data, name)}


def default(data, name):
    """What an option is where it is not given."""
    return stages.NETS[data].defaults.get(name, options()[name].get("default"))


def short(value):
    """A number as short as it can be told exactly.

    >>> short(10.0), short(0.1), short(100.0001), short(3)
    ('10', '0.1', '100.0001', '3')
    """
    told = f"{value:g}"
    return told if float(told) == value else repr(value)


def name_of(row, seed, args):
    """The folder of a card."""
    more = "".join(f"_{name}{short(value)}" for name, value in changed(row, args).items())
    return f"{args.data}_anp_{row}{more}_s{seed}"


def command(row, seed, args):
    """The command that makes this one card."""
    told = {"data": args.data, "rows": row, "seeds": seed, "epochs": args.epochs}
    defaults = stages.NETS[args.data].defaults
    told |= {k: getattr(args, k) for k in SHARED if getattr(args, k) != defaults.get(k)}
    told |= {name: getattr(args, name) for name in ("train_images", "test_images", "n")}
    told |= changed(row, args)
    told["smoke"] = "" if args.smoke else None
    words = ["python", "-m", "recipes.anp_vs_table1"]
    for name, value in told.items():
        if value is not None and value != options().get(name, {}).get("default"):
            words.append("--" + name.replace("_", "-"))
            words += [short(value) if isinstance(value, float) else str(value)] * (value != "")
    return shlex.join(words)


def every(wanted, args, data):
    """Trains, judges and ships what has no card yet.

    Args:
        wanted: [(row, seed, options other than those of `args`)].
    """
    refuse_mixed(args)
    runs = [
        (row, seed, argparse.Namespace(**{**vars(args), **variant}))
        for place, (row, seed, variant) in enumerate(wanted)
        if (row, seed, variant) not in wanted[:place]
    ]
    for row, seed, told in runs:  # before anything is trained
        if not args.smoke:
            refuse_other(args.out / name_of(row, seed, told), command(row, seed, told))
    for row, seed, told in runs:
        one(row, seed, told, data)


def refuse_mixed(args):
    """Ends where cards of one table would differ in more than their row."""
    defaults = stages.NETS[args.data].defaults
    for path in sorted(args.out.glob(f"{args.data}_anp_*/card.json")):
        were = next(iter(tr.report.load(path).to_dict()["models"].values())).get("settings", {})
        for name in ("epochs", "n", "train_images", "test_images", *SHARED):
            was, wanted = were.get(name, defaults.get(name)), getattr(args, name)
            if were and was != wanted and not args.smoke:
                flag = name.replace("_", "-")
                raise SystemExit(
                    f"`--{flag}` must be that of the other cards of the table, or `--out` another "
                    f"folder. Received: {wanted}, {path.parent} has {was}"
                )


def one(row, seed, args, data):
    """Trains, judges and ships one row of one seed, unless its card is there."""
    folder, run = args.out / name_of(row, seed, args), stages.Run(args, data, seed)
    if (folder / "card.json").exists() and not args.smoke:
        print(f"{folder}: done before", flush=True)
        return
    found = ALL[row].train(run)
    entries, net = judge.entries(run, ALL[row].title, row, found, folder.name)
    entry = entries[ALL[row].title]
    entry.files = [tr.export.keras_file(net, folder / "model.keras")]
    reference = tr.report.Entry(footprint=tr.footprint.measure(run.net()))
    card = tr.report.card(
        folder.name,
        models={**entries, "full size": reference},
        data={
            "name": run.scene.title,
            "note": f"FGSM, PGD-40 and transfer on {len(data.x_test):,} test images, PGD-40 x 5 "
            f"and AutoAttack on the first {args.n}{run.scene.note}",
        },
        threat=run.scene.threat,
        command=command(row, seed, args),
        reference="full size",
    )
    card.save(folder)
    print(f"{folder}: {ALL[row].title}, {entry.footprint.flops:,} FLOPs", flush=True)
