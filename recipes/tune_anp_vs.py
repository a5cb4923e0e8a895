"""A search over beta, lambda and the learning rates of ANP-VS with keras-tuner.

Trials are short and judged on a validation split of the training images by a cheap attack (FGSM
from a random start); the objective is robust accuracy, and the FLOPs of the shrunk net stand beside
it. The trials on the Pareto front of the two are judged again by PGD-40 on the same split, and the
table says how far the cheap attack was off. No test image is looked at.
Command: python -m recipes.tune_anp_vs --data mnist --trials 12 --epochs 3
"""

import json
import pathlib

import keras
import keras_tuner
import numpy as np

import tfrobust as tr
from recipes import anp_vs_stages as stages
from recipes import anp_vs_table1 as table1
from recipes import mnist, pruning_stages


class Search(keras_tuner.HyperModel):
    """Masks and weights by ANP-VS from a start that all trials share."""

    def __init__(self, run, start, validation):
        super().__init__()
        self.run, self.start, self.validation = run, start, validation

    def build(self, hp):
        net = self.run.masked(self.start, "bbd")
        threat = self.run.scene.threat
        game = tr.training.ANP(
            net,
            self.run.scene.training,
            beta=hp.Float("beta", 4.0, 400.0, sampling="log"),
            train_size=len(self.run.data.x_train),
            regularizers=[
                tr.regularizers.VulnerabilitySuppression(
                    hp.Float("lambda", 0.1, 100.0, sampling="log")
                )
            ],
            validation_attack=tr.training.fast_attack(threat),
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
        cheap = right(small, model.validation_attack, x, y)
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
    options = {k: v for k, v in table1.options().items() if k in ("data", "width")}
    options["trials"] = {"type": int, "default": 12}
    options["held"] = {"type": int, "default": 2000, "help": "training images held out"}
    args = mnist.arguments(__doc__, epochs=3, **options)
    if args.width is None:
        args.width = stages.NETS[args.data][1]
    if args.smoke:
        args.trials, args.held = 2, 64
    data = pruning_stages.dataset(args)
    held = data.x_train[-args.held :], data.y_train[-args.held :]
    data = tr.data.Dataset(
        data.x_train[: -args.held], data.y_train[: -args.held], data.x_test, data.y_test, 10
    )
    run = stages.Run(args, data, args.seed)
    start = stages.at(run).net
    tuner = keras_tuner.BayesianOptimization(
        Search(run, start, held),
        objective=keras_tuner.Objective("val_robust_accuracy", "max"),
        max_trials=args.trials,
        num_initial_points=min(args.trials, 4),
        seed=args.seed,
        directory=str(args.work),
        project_name=f"{args.data}_tune_anp_vs",
        overwrite=not args.resume,
    )
    tuner.search()
    write(tuner, run, held, args)


def write(tuner, run, held, args):
    """Judges the Pareto front again, prints the table and writes it."""
    trials = [t for t in tuner.oracle.trials.values() if t.score is not None]
    points = [(t.score, t.metrics.get_best_value("flops")) for t in trials]
    strong = tr.attacks.PGD(
        run.scene.threat, steps=4 if args.smoke else 40, step_size=run.scene.judge_step
    )
    front = []
    for i in pareto(points):
        trial = trials[i]
        game = tuner.hypermodel.build(trial.hyperparameters)
        game.fit(run.batches(), epochs=run.epochs, verbose=0)
        small = tr.shrink.compact(game.classifier)
        row = {
            **trial.hyperparameters.values,
            "flops": tr.footprint.measure(small).flops,
            "cheap": trial.score,
            "pgd": right(small, strong, *held),
        }
        front.append(row)
        print(json.dumps(row), flush=True)
    told = {"command": args.command, "held": len(held[0]), "trials": len(trials), "front": front}
    path = tr.files.target(args.out / f"{args.data}_tune_anp_vs" / "results.json")
    text = json.dumps(told, indent=1) + "\n"
    tr.files.replace(path, lambda p: pathlib.Path(p).write_text(text))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
