"""Pruning of networks that were trained for certificates, by what they are fine-tuned with.

Paper: Sehwag et al., 2019 (arXiv 1906.06110), the verifiable half of section 4: "none", "nat"
(cross-entropy), "adv" (PGD adversarial training) or "verif" (the certified training that made the
start, at its full radius). One card for each; "nat" also says how fast natural training without
pruning unlearns the certificates (Figure 3) and how far the two gradients conflict (Figure 4).
Certified on all test images by intervals, then CROWN-IBP, attacked by PGD-40 in between; with
`--n 1000` the nets of "verif" under AutoAttack too, which lies between these two.
Time: weights with Nat 60, Adv 400, Verif 200 processor seconds for each ratio, filters as long.
Expected: the net of the command below keeps 94.2 of 95.9 % verified with 90 % of its weights gone.
Command: python -m recipes.verifiable_pruning --start saved_models/mnist_certified_0.1_cnn_small_ibp
"""

import argparse
import dataclasses
import json
import pathlib
import re

import keras

import tfrobust as tr
from recipes import certified_training, mnist, pruning_stages, robust_pruning
from recipes import pruning_judge as judge
from recipes.command import refuse_other

MODES = ("none", "nat", "adv", "verif")
UNLEARNING = 5  # epochs of natural training in Figure 3


def options():
    shared = robust_pruning.options()
    unused = ("scope", "normalise", "distill", "budget")
    return {
        **{name: keywords for name, keywords in shared.items() if name not in unused},
        "start": {"required": True, "help": "folder of recipes.certified_training"},
        "finetune": {"choices": MODES, "nargs": "+", "default": list(MODES)},
        "n": {"type": int, "default": 0, "help": "test images for PGD x 5 and AutoAttack on Verif"},
        "k": {"type": int, "help": "of MixTrain in fine-tuning (default: as in the start)"},
    }


def main():
    args = mnist.arguments(__doc__, epochs=6, **options())
    args.scope, args.normalise, args.distill, args.budget = "layer", "none", 0.0, "epochs"
    args.ratios = sorted(round(r, 4) for r in args.ratios or default_ratios(args.structured))
    if wrong := [r for r in args.ratios if not 0 < r < 1]:
        raise SystemExit(f"`--ratios` must lie in (0, 1). Received: {wrong}")
    if args.smoke:
        args.settle, args.epochs = 1, 2
    data, start = pruning_stages.dataset(args), pruning_stages.start_of(args)
    scene = scene_of(args)
    for mode in args.finetune:
        own = argparse.Namespace(**{**vars(args), "finetune": mode})
        own.command = command(args.command, mode)
        if mode == "nat" and args.structured == "weights" and args.k is None:
            unlearning(scene, data, own)
        run(scene, data, own, *start)


def command(words, mode):
    """The command with this one kind of fine-tuning.

    >>> command("python -m recipes.verifiable_pruning --finetune nat adv --start s", "adv")
    'python -m recipes.verifiable_pruning --start s --finetune adv'
    """
    kept = re.sub(rf" --finetune((=| )({'|'.join(MODES)}))+", "", words)
    return f"{kept} --finetune {mode}"


def default_ratios(structured):
    return [0.5, 0.75, 0.9, 0.95] if structured == "weights" else [0.5, 0.75, 0.9]


def scene_of(args):
    """The settings of the start: its radius, and the game that made it."""
    told = tr.report.load(pruning_stages.start_folder(args)).to_dict()
    told = next(iter(told["models"].values()))["settings"]
    if "method" not in told or "epsilon" not in told:
        raise SystemExit(
            "`--start` must be a net of recipes.certified_training: its card tells no method. "
            f"Received: {args.start}"
        )
    were = argparse.Namespace(**told)
    were.k = args.k or were.k
    radius = were.grow * were.epsilon
    # The weight of MixTrain as the start ended with it.
    last = float(certified_training.weights(were, 10)(10 * were.epochs))

    def verify(net, seed):
        own = argparse.Namespace(**{**vars(were), "seed": seed})
        return certified_training.player(net, own, own.method, radius, last)

    return dataclasses.replace(certified_training.scene_of(were), verify=verify)


def name_of(args):
    """Folder of a run."""
    few = f"_k{args.k}" if args.k else ""
    return robust_pruning.name_of(args, args.finetune + few)


def run(scene, data, args, before, seconds, epochs):
    """Prunes with one kind of fine-tuning, and judges what is left at the ratios."""
    name = name_of(args)
    work = args.work / name
    if not args.smoke:
        refuse_other(args.out / name, args.command)
    pruning_stages.same_run(args, work, start=before)
    entries = {}
    if not args.train_only:  # before hours of training
        starts, text = args.work / "judged_starts", pathlib.Path(args.start).name
        starts.mkdir(parents=True, exist_ok=True)
        told = {"seconds": seconds, "epochs": epochs}
        entries[robust_pruning.START] = certified_training.judged(
            before, text, scene, data, args, starts, told, attack=False
        )
    nets = robust_pruning.pruned(scene, data, args, work, before, seconds, epochs)
    if args.train_only:
        return
    attack = bool(args.n) and args.finetune == "verif"
    for ratio, (net, took) in nets.items():
        title = pruning_stages.label(ratio)
        entry = certified_training.judged(net, f"{ratio:g}", scene, data, args, work, took, attack)
        if ships(args, ratio):
            judge.add_files(entry, net, title, scene, data, args, args.out / name)
        entries[f"{title}%"] = entry
    judge.ship(name, entries, scene, args, work)


def ships(args, ratio):
    """Whether a net is put beside its card: one of each kind of pruning, kept by Verif."""
    return args.finetune == "verif" and ratio == {"weights": 0.9, "filters": 0.75}[args.structured]


def unlearning(scene, data, args):
    """Figures 3 and 4 of the paper: writes unlearning.json beside the card of "nat"."""
    path = tr.files.target(args.out / name_of(args) / "unlearning.json")
    if path.exists() and args.resume:
        return
    net = pruning_stages.start_net(args)
    count = 64 if args.smoke else 2000
    look = pruning_stages.looker(scene, data, count)
    rows = [{"epoch": 0, **look(net)}]
    conflict = tr.diagnostics.gradient_conflict(
        net, "ce", worst_loss(scene.verify(net, args.seed)), data.x_train, data.y_train
    )
    print(conflict, flush=True)
    rate = keras.optimizers.schedules.CosineDecay(args.rate, pruning_stages.steps(data, UNLEARNING))
    game, batches = pruning_stages.player(net, "nat", scene, data, rate, args.seed)

    def after(epoch, logs):
        del logs
        rows.append({"epoch": epoch + 1, **look(net)})
        print(rows[-1], flush=True)

    epochs, callback = 1 if args.smoke else UNLEARNING, keras.callbacks.LambdaCallback(after)
    game.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback])
    told = {"rows": rows, "images": len(data.x_test[:count])}
    told["conflict"] = conflict.to_dict()
    text = json.dumps(told, indent=1, default=float) + "\n"
    tr.files.replace(path, lambda p: pathlib.Path(p).write_text(text))


def worst_loss(game):
    """`(model, x, y) -> (batch,)`, the cross-entropy that a certified game of it bounds."""

    def loss(model, x, y):
        del model  # the game's
        return tr.losses.cross_entropy(-game.bounded(x, y)[0], y)

    return loss


if __name__ == "__main__":
    main()
