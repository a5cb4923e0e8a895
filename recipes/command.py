"""What a card tells of a run: the command and the flags, without folders of this machine."""

import json
import pathlib
import shlex
import sys

import tfrobust as tr

FOLDERS = ("--data-dir", "--work", "--out")
INFINITE, TINY = sys.float_info.max, sys.float_info.min
FREE = {"data_dir", "work", "out", "resume", "command", "train_only"}


# What flags may be: the least, the largest, in words. Lists are of such values.
RANGES = {
    **dict.fromkeys(("epochs", "n", "steps", "trials", "held"), (1, INFINITE, ">= 1")),
    **dict.fromkeys(("train_images", "test_images"), (1, INFINITE, ">= 1")),
    **dict.fromkeys(("seeds", "warm"), (0, INFINITE, ">= 0")),
    **dict.fromkeys(
        ("beta", "vib_beta", "bp_beta", "suppress", "grid", "weight", "match"),
        (0, INFINITE, "finite and >= 0"),
    ),
    **dict.fromkeys(
        ("width", "rate", "rate_discriminator", "rate_encoder"),
        (TINY, INFINITE, "finite and > 0"),
    ),
    "dropout": (0, 1, "in [0, 1]"),
    "cost_power": (-2, 2, "in [-2, 2]"),
}


def check(args, *names):
    """Ends where one of these flags, or all that `RANGES` knows, cannot be: before work is lost."""
    for name in names or RANGES:
        given = getattr(args, name, None)
        low, high, words = RANGES[name]
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not low <= value <= high:
                flag = name.replace("_", "-")
                raise SystemExit(f"`--{flag}` must be {words}. Received: {value}")


def keep(path, values):
    """Writes JSON under its name at once, not in pieces."""
    text = json.dumps(values, indent=1) + "\n"
    tr.files.replace(tr.files.target(path), lambda p: pathlib.Path(p).write_text(text))


def command_line(argv, recipe):
    """`python -m recipes.<recipe>` with the arguments that change the result.

    >>> command_line(["--epochs", "3", "--out=here", "--resume", "--data-dir", "d"], "mnist_at")
    'python -m recipes.mnist_at --epochs 3'
    """
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word.split("=")[0] in FOLDERS:
            skip = "=" not in word
        elif word not in ("--resume", "--train-only"):
            kept.append(word)
    return shlex.join(["python", "-m", f"recipes.{recipe}", *kept])


def settings(args):
    """The flags that decide the figures."""
    return {k: v for k, v in vars(args).items() if k not in FREE}


def refuse_other(folder, wanted):
    """Ends where `folder` has a card that was made by another command than the one wanted."""
    if not (folder / "card.json").exists():
        return
    made = tr.report.load(folder).to_dict()["command"]
    if made != wanted:
        raise SystemExit(
            f"`--out` must hold cards of these flags, or be another folder. Received: {folder} by "
            f"`{made}`, not `{wanted}`"
        )


def flags_of(card):
    """The flags that a card of pruning was made with, as its first entry tells them.

    What a net took stands beside them, its epochs in the place of the flag, which is `flag_epochs`
    then; cards from before that do not tell the flag.

    >>> told = {"rate": 0.001, "epochs": 10, "seconds": [1.0, 1.0], "flag_epochs": 6}
    >>> flags_of({"models": {"before pruning": {"settings": told}}})["epochs"]
    6
    """
    made = next(iter(card["models"].values()))["settings"]
    flags = {k: v for k, v in made.items() if k != "epochs" or "seconds" not in made}
    return flags | {k.removeprefix("flag_"): v for k, v in made.items() if k.startswith("flag_")}


def told(args, took):
    """The settings of an entry: all flags, what the net took, and flags of the same name apart."""
    flags = settings(args)
    return {**flags, **took, **{f"flag_{k}": flags[k] for k in flags if k in took}}


def refuse_other_flags(folder, args):
    """Ends where a card in `folder` was made with other flags, which it would lose."""
    if args.smoke or not (folder / "card.json").exists():
        return
    made = flags_of(tr.report.load(folder).to_dict())
    wanted = json.loads(json.dumps(settings(args)))
    other = [
        f"--{k} was {made[k]}, is {v}" for k, v in wanted.items() if k in made and made[k] != v
    ]
    if other:
        raise SystemExit(
            "`--out` must hold cards of these flags, or be another folder. Received: "
            f"{folder}, where {', '.join(other)}"
        )


def refuse_unlike(cards, names):
    """Ends where cards {title: card} that one table joins were made with other flags."""
    flags = {title: flags_of(card) for title, card in cards.items()}
    for name in names:
        values = {title: told.get(name) for title, told in flags.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            raise SystemExit(
                f"Cards of one table must be made with the same --{name}. Received: "
                + ", ".join(f"{title} {value}" for title, value in values.items())
            )
