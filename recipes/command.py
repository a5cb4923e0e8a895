"""What a card tells of a run: the command and the flags, without folders of this machine."""

import shlex

import tfrobust as tr

FOLDERS = ("--data-dir", "--work", "--out")
FREE = {"data_dir", "work", "out", "resume", "command", "train_only"}


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
