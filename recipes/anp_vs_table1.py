"""Table 1 (and 4) of ANP-VS: every method, one card for each row and seed.

Paper: Madaan et al., 2020 (arXiv 1908.04355). Rows stand on shared stages (`anp_vs_stages`), each
trained once and kept in `--work`; run again, the recipe does only what is missing, and a killed run
goes on where it was. `--epochs` is the budget: epochs of adversarial training of a row; other rows
spread theirs over their stages, and the processor seconds of all of them stand on the card.
Training attacks with PGD-7, steps of epsilon / 4, not the paper's 20 or 10 smaller steps.
Command: python -m recipes.anp_vs_table1 --data mnist --rows at anp_vs_bbd --seeds 0 1 2
"""

import argparse

import tfrobust as tr
from recipes import anp_vs_judge as judge
from recipes import anp_vs_stages as stages
from recipes import mnist, pruning_stages

ROWS = {
    "standard": ("Standard", stages.standard),
    "bp_bbd": ("BP (beta-Bernoulli)", stages.bp),
    "bp_vib": ("BP (VIB)", lambda run: stages.bp(run, "vib")),
    "at": ("AT", stages.at),
    "at_bnn": ("AT BNN", stages.at_bnn),
    "pretrained_at": ("Pretrained AT", stages.pretrained_at),
    "admm": ("ADMM", stages.admm),
    "trades": ("TRADES", stages.trades),
    "anp_vs_bbd": (
        "ANP-VS (beta-Bernoulli)",
        lambda run: stages.anp(run, suppress=run.args.suppress),
    ),
    "anp_vs_vib": (
        "ANP-VS (VIB)",
        lambda run: stages.anp(run, "vib", run.args.vib_beta, run.args.suppress),
    ),
}
MORE = {
    "at_vs": ("AT-VS", lambda run: stages.at(run, suppress=run.args.suppress)),
    "anp_bbd": ("ANP (beta-Bernoulli)", stages.anp),
    "pat": ("PAT (beta-Bernoulli)", stages.pat),
}


def options():
    return {
        "data": {"choices": list(stages.NETS), "default": "mnist"},
        "rows": {"nargs": "+", "choices": [*ROWS, *MORE], "default": list(ROWS)},
        "seeds": {"type": int, "nargs": "+", "default": [0]},
        "width": {"type": float, "help": "of the network (default: 1 for LeNet, 0.25 for VGG-16)"},
        "beta": {"type": float, "default": 100.0, "help": "of ANP with beta-Bernoulli masks"},
        "vib_beta": {"type": float, "default": 100.0, "help": "of ANP with VIB masks"},
        "bp_beta": {"type": float, "default": 1.0, "help": "of BP"},
        "suppress": {"type": float, "default": 1.0, "help": "lambda of VS, V a mean over units"},
        "gain": {"type": float, "default": 4.5, "help": "FLOP gain at which masks are cut"},
        "distill": {"type": float, "default": 0.45, "help": "share of the AT net in the labels"},
        "n": {"type": int, "default": 1000, "help": "test images for AutoAttack"},
    }


def prepared(args):
    """The flags completed, and the data."""
    if args.width is None:
        args.width = stages.NETS[args.data][1]
    if args.smoke:
        args.gain = 1.0  # masks hardly move in an epoch of 512 images
    return pruning_stages.dataset(args)


def main():
    args = mnist.arguments(__doc__, epochs=10, **options())
    data = prepared(args)
    for row in args.rows:
        for seed in args.seeds:
            one(row, seed, args, data)


def one(row, seed, args, data, **variant):
    """Trains, judges and ships one row of one seed, unless its card is there.

    Args:
        variant: Flags other than those of `args`, for sweeps: they become part of the name.
    """
    title, train = {**ROWS, **MORE}[row]
    args = argparse.Namespace(**{**vars(args), **variant})
    run = stages.Run(args, data, seed)
    suffix = "".join(f"_{name}{value:g}" for name, value in variant.items())
    folder = args.out / f"{args.data}_anp_{row}{suffix}_s{seed}"
    if (folder / "card.json").exists() and not args.smoke:
        print(f"{folder}: done before", flush=True)
        return
    found = train(run)
    entry, net = judge.entry(run, row, found)
    entry.files = [tr.export.keras_file(net, folder / "model.keras")]
    reference = tr.report.Entry(footprint=tr.footprint.measure(run.net()))
    card = tr.report.card(
        folder.name,
        models={title: entry, "full size": reference},
        data={
            "name": run.scene.title,
            "note": f"FGSM, PGD-40 and transfer on all test images, PGD-40 x 5 and AutoAttack on "
            f"the first {args.n}{run.scene.note}",
        },
        threat=run.scene.threat,
        command=command(args, row, seed, variant),
        reference="full size",
    )
    card.save(folder)
    print(f"{folder}: {title}, {entry.footprint.flops:,} FLOPs", flush=True)


def command(args, row, seed, variant):
    """The command of this one card: that of the recipe with these rows, seeds and variants."""
    lists, kept, skip = ("--rows", "--seeds", "--grid"), [], False
    for word in args.command.split()[3:]:
        if word.startswith("--"):
            skip = word in lists or word[2:].replace("-", "_") in variant
        if not skip:
            kept.append(word)
    more = [f"--{name.replace('_', '-')} {value:g}" for name, value in variant.items()]
    words = ["python -m recipes.anp_vs_table1", *kept, *more, f"--rows {row} --seeds {seed}"]
    return " ".join(words)


if __name__ == "__main__":
    main()
