"""A search over beta, lambda and the learning rates of ANP-VS with keras-tuner.

Trials are short and judged on a validation split of the training images by a cheap attack (FGSM
from a random start), with which they train as well; the objective is robust accuracy, and the FLOPs
of the shrunk net stand beside it. The trials on the Pareto front of the two are trained again with
the attack of the tables and judged by PGD-40 x 5 on the same split; the table says how far the
cheap attack was off, and which of them stay on the front. No test image is looked at.
Command: python -m recipes.tune_anp_vs --data mnist --trials 12 --epochs 3
Time: a trial is `--epochs` of training on a one-step attack, a finalist the same on PGD-7.
"""

import argparse
import dataclasses
import shutil

import keras
import keras_tuner
import numpy as np

import tfrobust as tr
from recipes import anp_vs_rows as rows
from recipes import anp_vs_stages as stages
from recipes import mnist, pruning_stages
from recipes.command import keep


class Search(keras_tuner.HyperModel):
    """Masks and weights by ANP-VS from a start that all trials share."""

    def __init__(self, run, start, validation, args):
        super().__init__()
        self.run, self.start, self.validation, self.args = run, start, validation, args
        self.attack = tr.training.fast_attack(run.scene.threat)

    def build(self, hp):
        return self.game(hp, self.attack)

    def game(self, hp, attack):
        """The game of some hyperparameters, trained with `attack`."""
        net = self.run.masked(self.start, "bbd", initial_a=2.0)
        game = tr.training.ANP(
            net,
            attack,
            beta=hp.Float("beta", 4.0, 400.0, sampling="log"),
            train_size=self.run.setting.whole,
            regularizers=self.run.suppression(hp.Float("lambda", 0.1, 100.0, sampling="log"), net),
            kl_weights=stages.cost_weights(net, self.args.cost_power),
            seed=self.run.seed,
        )
        rate = hp.Float("mask_rate", 3e-3, 3e-2, sampling="log")
        weights = hp.Float("weight_rate", 1e-4, 1e-3, sampling="log")
        game.compile(
            {
                "weights": keras.optimizers.Adam(weights, epsilon=1e-8),
                "masks": keras.optimizers.Adam(rate, epsilon=1e-8),
            }
        )
        return game

    def fit(self, hp, model, *args, **kwargs):
        x, y = self.validation
        model.fit(self.run.batches(), epochs=self.run.epochs, verbose=0)
        small = tr.shrink.compact(model.classifier)
        cheap = right(small, self.attack, x, y)
        return {"val_robust_accuracy": cheap, "flops": tr.footprint.measure(small).flops}


def right(net, attack, x, y):
    """Share of images that are right before and after the attack."""
    ok = tr.attacks.correct(net, x, y)
    return float((ok & tr.attacks.correct(net, attack(net, x, y), y)).mean())


def pareto(points):
    """Indices of points (accuracy, FLOPs) that no other beats in both, fewest FLOPs first.

    >>> pareto([(0.9, 5), (0.8, 3), (0.7, 4), (0.9, 6)])
    [1, 0]
    """
    kept, best = [], -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0])):
        if points[i][0] > best:
            kept.append(i)
            best = points[i][0]
    return kept


def main():
    shared = ("data", *rows.SHARED, "train_images", "cost_power")
    options = {k: v for k, v in rows.options().items() if k in shared}
    options["trials"] = {"type": int, "default": 12}
    options["held"] = {"type": int, "default": 2000, "help": "training images held out"}
    args = mnist.arguments(__doc__, epochs=3, **options)
    if args.smoke:
        args.trials, args.held = 2, 64
    data, args.work = rows.prepared(args), args.work / f"{args.data}_tune_anp_vs"
    if args.held >= len(data.x_train):
        raise SystemExit(f"`--held` must be less than {len(data.x_train)}. Received: {args.held}")
    lasting = {name: value for name, value in vars(args).items() if name != "trials"}
    pruning_stages.same_run(argparse.Namespace(**lasting), args.work / "flags")
    held = data.x_train[-args.held :], data.y_train[-args.held :]
    rest = slice(-args.held)
    data = dataclasses.replace(data, x_train=data.x_train[rest], y_train=data.y_train[rest])
    if not args.resume:  # as the tuner does with its own
        for folder in args.work.glob("trial_*"):
            shutil.rmtree(folder)
    run = stages.Run(args, data, args.seed)
    start = stages.at(run).net
    tuner = keras_tuner.BayesianOptimization(
        Search(run, start, held, args),
        objective=keras_tuner.Objective("val_robust_accuracy", "max"),
        max_trials=args.trials,
        num_initial_points=min(args.trials, 4),
        seed=args.seed,
        directory=str(args.work),
        project_name="search",
        overwrite=not args.resume,
    )
    tuner.search()
    write(tuner, run, held, args)


def write(tuner, run, held, args):
    """Judges the Pareto front again, prints the table and writes it."""
    trials = [t for t in tuner.oracle.trials.values() if t.score is not None]
    points = [(t.score, t.metrics.get_best_value("flops")) for t in trials]
    strong, front = run.scene.judge(args.smoke), []
    for i in pareto(points):
        trial = trials[i]
        game = tuner.hypermodel.game(trial.hyperparameters, run.scene.training)
        resume = tr.training.Resume(args.work / f"trial_{trial.trial_id}", delete_checkpoint=False)
        game.fit(run.batches(), epochs=run.epochs, verbose=0, shuffle=False, callbacks=[resume])
        small = tr.shrink.compact(game.classifier)
        front.append(
            {
                **trial.hyperparameters.values,
                "flops": tr.footprint.measure(small).flops,
                "cheap": trial.score,
                "pgd": right(small, strong, *held),
            }
        )
    best = pareto([(row["pgd"], row["flops"]) for row in front])
    front = [{**row, "on the front": i in best} for i, row in enumerate(front)]
    show(front)
    told = {"command": args.command, "held": len(held[0]), "trials": len(trials), "front": front}
    path = tr.files.target(args.out / f"{args.data}_tune_anp_vs" / "results.json")
    keep(path, told)
    print(f"wrote {path}")


def show(front):
    """The finalists as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*front[0], title="Finalists, on images held out of the training set")
    for row in front:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
