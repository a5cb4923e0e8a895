"""Robust pruning: a robust net, pruned step by step with fine-tuning, and what each step cost.

Paper: Sehwag et al., 2019 (arXiv 1906.06110): 40 updates of 2.5 %, then fine-tuning with
"robust" (the loss of the pre-training, PGD adversarial training), "nat" (cross-entropy) or "none";
"trades" takes the loss of Zhang et al. (2019) instead.
One run walks the whole curve; the nets at `--ratios` are fine-tuned once more at a falling rate
("settled"), judged by PGD-40 x 5 and AutoAttack on the first 1,000 test images, and put on a card.
"scratch" trains the architectures that the robust run of the same seed left behind from random
weights instead, for the same number of epochs in all or (`--budget seconds`) the same time.
Command: python -m recipes.robust_pruning --structured filters --finetune robust
Time: 6 epochs of the ladder and 8 of settling at 3 ratios took 1,250 processor seconds (filters).
"""

import json
import pathlib

import keras

import tfrobust as tr
from recipes import mnist, pruning_stages
from recipes import pruning_judge as judge
from recipes.command import refuse_other_flags

MODES = ("none", "nat", "robust", "trades", "scratch")
START = "before pruning"
SCRATCH = 2e-3  # largest learning rate of a scratch run, that of recipes.mnist_at
UNUSED = {"rate": None, "settle": None, "distill": None}  # flags that scratch runs have no use for


def options():
    return {
        "data": {"choices": list(pruning_stages.SETTINGS), "default": "mnist"},
        "start": {"help": "folder of a robust net (default: saved_models/<data>_at)"},
        "structured": {"choices": ["weights", "filters"], "default": "weights"},
        "finetune": {"choices": list(MODES), "default": "robust"},
        "ratios": {"type": float, "nargs": "+", "help": "where nets are settled and judged"},
        "scope": {"choices": ["layer", "global"], "default": "layer", "help": "of the ranking"},
        "normalise": {"choices": ["none", "fan_in"], "default": "none"},
        "rate": {"type": float, "default": 1e-3, "help": "learning rate on the ladder"},
        "settle": {"type": int, "default": 3, "help": "epochs of each ratio after the ladder"},
        "peak": {"type": float, "default": 1e-3, "help": "largest learning rate of the settling"},
        "distill": {"type": float, "default": 0.0, "help": "share of the start in the labels"},
        "budget": {"choices": ["epochs", "seconds"], "default": "epochs", "help": "of scratch"},
        "train_only": {"action": "store_true", "help": "stop before judging (--resume goes on)"},
        "n": {"type": int, "default": 1000, "help": "test images for PGD and AutoAttack"},
    }


def main():
    args = mnist.arguments(__doc__, epochs=8, **options())
    if args.ratios is None:
        args.ratios = [0.5, 0.75, 0.9] + [0.95, 0.98] * (args.structured == "weights")
    args.ratios = sorted(round(r, 4) for r in args.ratios)
    wrong = [r for r in args.ratios if not 0 < r < 1]
    if wrong:
        raise SystemExit(f"`--ratios` must lie in (0, 1). Received: {wrong}")
    if args.normalise != "none" and args.structured != "filters":
        raise SystemExit("`--normalise` is for --structured filters. Received: fan_in")
    if args.smoke:
        args.settle, args.epochs = 1, 2
    scene, data = pruning_stages.SETTINGS[args.data], pruning_stages.dataset(args)
    name = name_of(args)
    work, start = args.work / name, name.split("_pruned")[0]
    before, seconds, epochs = pruning_stages.start_of(args)
    refuse_other_flags(args.out / name, args)
    twins = twins_of(args) if args.finetune == "scratch" else {}
    small = {f"twin {ratio:g}": net for ratio, (net, _) in twins.items()}
    pruning_stages.same_run(args, work, start=before, **small)
    if not args.train_only:  # before hours of training
        took = {"seconds": seconds, "epochs": epochs}
        starts = args.work / "judged_starts"
        entries = {START: judge.entry(before, start, scene, data, args, starts, took)}
    if args.finetune == "scratch":
        nets = scratch(twins, scene, data, args, work)
    else:
        nets = pruned(scene, data, args, work, before, seconds, epochs)
    if args.train_only:
        return
    for ratio, (net, told) in nets.items():
        entry = judge.entry(net, f"{ratio:g}", scene, data, args, work, told)
        ships = args.structured == "filters" or ratio == 0.9  # pruned weights take a full-size file
        title = pruning_stages.label(ratio)
        if args.finetune == "robust" and not args.seed and ships:
            judge.add_files(entry, net, title, scene, data, args, args.out / name)
        entries[f"{title}%"] = entry
    judge.ship(name, entries, scene, args, work)


def name_of(args, mode=None):
    mode = mode or args.finetune
    seed = f"_s{args.seed}" if args.seed else ""
    budget = "_seconds" if mode == "scratch" and args.budget == "seconds" else ""
    start = pathlib.Path(args.start or f"{args.data}_at").name.removesuffix("_at")
    return f"{start}_pruned_{args.structured}_{mode}{budget}{seed}"


def pruned(scene, data, args, work, before, seconds, epochs):
    """{ratio: (net, what it took)} of the ladder and the settling."""
    keras.utils.set_random_seed(args.seed)
    labels = mnist.soft_labels(before, data, args.distill) if args.distill else None
    net = keras.models.clone_model(before)
    net.set_weights(before.get_weights())
    rows = pruning_stages.walk(net, scene, data, args, work / "ladder", labels)
    spent, nets = {row["ratio"]: row["seconds"] for row in rows}, {}
    for ratio in args.ratios:
        path = tr.files.target(work / f"settled_{ratio:g}.keras")
        if args.resume and path.with_suffix(".json").exists():
            nets[ratio] = finished(path)
            continue
        net = keras.saving.load_model(work / "ladder" / f"pruned_{ratio:g}.keras", compile=False)
        walked = [s + t for s, t in zip(seconds, spent[ratio], strict=True)]
        told = {"seconds": walked, "epochs": epochs, "ladder_epochs": 0.0, "settle_epochs": 0}
        told |= pruning_stages.masked(work / "ladder" / f"pruned_{ratio:g}.json")
        if args.finetune != "none":
            folder = work / f"settle_{ratio:g}"
            clock = pruning_stages.settle(net, scene, data, args, folder, labels)
            rungs = [row["ratio"] for row in rows]
            told |= {
                "seconds": [a + b for a, b in zip(walked, clock.done, strict=True)],
                "epochs": epochs
                + args.epochs * (rungs.index(ratio) + 1) / len(rungs)
                + clock.epochs,
                "ladder_epochs": args.epochs * (rungs.index(ratio) + 1) / len(rungs),
                "settle_epochs": clock.epochs,
            }
        nets[ratio] = finish(net, told, path)
    return nets


def finish(net, told, path):
    """Puts a trained net and what it took aside."""
    tr.export.keras_file(net, path)
    text = json.dumps(told)
    tr.files.replace(path.with_suffix(".json"), lambda p: pathlib.Path(p).write_text(text))
    return net, told


def finished(path):
    """What `finish` put aside."""
    told = json.loads(path.with_suffix(".json").read_text())
    return keras.saving.load_model(path, compile=False), told


def twins_of(args):
    """{ratio: (net, what it took)}: the small architectures that the robust run left behind."""
    return {ratio: twin_of(args, ratio) for ratio in args.ratios}


def twin_of(args, ratio):
    """From the robust run of the same seed in --work, or what it shipped."""
    name = name_of(args, "robust")
    path = args.work / name / f"settled_{ratio:g}.keras"
    if path.exists():
        return finished(path)
    title = pruning_stages.label(ratio)
    for folder in (args.out / name, mnist.SAVED / name):
        file = folder / f"model_{title}.keras"
        if args.structured == "filters" and file.exists():
            told = tr.report.load(folder).to_dict()["models"][f"{title}%"]["settings"]
            return keras.saving.load_model(file, compile=False), told
    raise SystemExit(
        f"`--finetune scratch` needs the net of the robust run with the same seed, {path}. "
        "Run it first with --finetune robust"
    )


def scratch(twins, scene, data, args, work):
    """{ratio: (net, what it took)}: architectures like those of `twins` from random weights."""
    nets = {}
    for ratio, (small, told) in twins.items():
        done = work / f"settled_{ratio:g}.keras"
        if args.resume and done.with_suffix(".json").exists():
            nets[ratio] = finished(done)
            continue
        count = round(told["epochs"])
        if args.budget == "seconds":
            count = epochs_for(told["seconds"][1], small, scene, data, work, f"{ratio:g}")
        net = pruning_stages.fresh(small, args.seed + 1)
        clock = pruning_stages.from_scratch(
            net, scene, data, count, SCRATCH, args.seed, work / f"scratch_{ratio:g}", args.resume
        )
        told = {"seconds": clock.done, "epochs": clock.epochs, "peak": SCRATCH, **UNUSED}
        nets[ratio] = finish(net, told, tr.files.target(done))
    return nets


def epochs_for(seconds, small, scene, data, work, name):
    """Epochs of a scratch run that fill so many processor seconds, from what a second one adds.

    Measured once for a run: whoever goes on takes the number that is kept in `work`.
    """
    path = tr.files.target(work / f"epochs_{name}.json")
    if path.exists():
        return json.loads(path.read_text())
    net = pruning_stages.fresh(small, 0)
    clocks = [
        pruning_stages.from_scratch(net, scene, data, count, 1e-3, 0, work / "timing", False)
        for count in (1, 2)
    ]
    count = max(1, round(seconds / (clocks[1].done[1] - clocks[0].done[1])))
    tr.files.replace(path, lambda p: pathlib.Path(p).write_text(json.dumps(count)))
    return count


if __name__ == "__main__":
    main()
