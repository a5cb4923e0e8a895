"""Stages of robust pruning: the settings of a data set, the curve, the settling, the scratch net.

A curve is one walk up a ladder of ratios with training between the rungs; what each rung leaves is
measured before the next one, and the nets at the ratios of interest are put aside.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable

import keras
import numpy as np

import tfrobust as tr
from recipes import mnist
from recipes.command import settings
from recipes.counting import Counting

RUNG = 0.025  # of the prunable weights: 40 updates from 0 to 100 % (Sehwag et al., 2019)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a data set asks for: its threat, the attack of training, the step of the judge."""

    title: str
    threat: tr.threats.Linf
    training: tr.attacks.PGD
    judge_step: float
    glance: tr.attacks.PGD  # the attack of the curve
    beta: float = 1.0  # of TRADES
    note: str = ""  # what a reader must know of the data
    verify: Callable | None = None  # `(net, seed) -> game` that trains for certificates

    def judge(self, smoke):
        """PGD-40 with five starts."""
        steps, starts = (4, 2) if smoke else (40, 5)
        return tr.attacks.PGD(
            self.threat, steps=steps, step_size=self.judge_step * 40 / steps, restarts=starts
        )

    def suite(self, smoke):
        """AutoAttack; with `smoke` its first member on a tiny budget."""
        if smoke:
            return tr.attacks.APGD(self.threat, steps=5)
        return tr.attacks.AutoAttack(self.threat)


def setting(title, epsilon, train_steps, train_step, judge_step, glance_step, beta, note=""):
    threat = tr.threats.Linf(epsilon)
    return Setting(
        title,
        threat,
        tr.attacks.PGD(threat, steps=train_steps, step_size=train_step),
        judge_step,
        tr.attacks.PGD(threat, steps=20, step_size=glance_step),
        beta,
        note,
    )


SETTINGS = {
    "mnist": setting("MNIST", 0.3, 7, 0.075, 0.01, 0.03, 1.0),
    "cifar10": setting(
        "CIFAR-10", 8 / 255, 7, 2 / 255, 2 / 255, 2 / 255, 6.0, "; JPEG re-encoded images"
    ),
}


def dataset(args):
    """The data; with --smoke 512 training and 64 test images."""
    data = mnist.loaded(args.data, args)
    if not args.smoke:
        return data
    return tr.data.Dataset(
        data.x_train[:512], data.y_train[:512], data.x_test[:64], data.y_test[:64], 10
    )


def label(ratio):
    """A ratio in per cent, for names of entries and files.

    >>> label(0.9), label(0.975), label(0.29)
    ('90', '97.5', '29')
    """
    return f"{100 * ratio:g}"


def ladder(ratios):
    """Every 2.5 % up to the largest ratio, and the ratios themselves.

    >>> ladder([0.05, 0.06])
    [0.025, 0.05, 0.06]
    """
    rungs = {round(RUNG * k, 4) for k in range(1, 40)}
    return sorted({r for r in rungs if r < max(ratios)} | {round(r, 4) for r in ratios})


def digest(net):
    """Short hash of the weights of a net: files that depend on them carry it in their names."""
    return tr.contract.digest(*net.get_weights())[:10]


def same_run(args, folder, **nets):
    """Keeps the flags in `folder`; with --resume refuses others than those of the run there.

    Args:
        nets: Nets that the run goes on from, by a name; others are refused as well.
    """
    told, path = json.loads(json.dumps(trained_by(args))), folder / "settings.json"
    told |= {f"weights of {name}": digest(net) for name, net in nets.items()}
    if not args.resume:
        shutil.rmtree(folder, ignore_errors=True)
    elif path.exists():
        were = json.loads(path.read_text())
        if not any(" " in name for name in were):  # a run from before weights were told
            told = {k: v for k, v in told.items() if " " not in k}
        other = [k for k, v in told.items() if were.get(k) != v]
        if other:
            names = [k if " " in k else f"--{k}" for k in other]
            pairs = zip(names, other, strict=True)
            shown = ", ".join(f"{name} was {were.get(k)}, is {told[k]}" for name, k in pairs)
            raise SystemExit(f"`--resume` goes on with the flags of {folder}. Received: {shown}")
    elif folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"`--resume` needs {path}, the flags of what {folder} holds: it is gone")
    text = json.dumps(told, indent=1) + "\n"
    tr.files.replace(tr.files.target(path), lambda p: pathlib.Path(p).write_text(text))


def trained_by(args):
    """The flags that decide what is trained, not how many images judge it."""
    return {k: v for k, v in settings(args).items() if k != "n"}


def start_folder(args):
    return pathlib.Path(args.start or mnist.SAVED / f"{args.data}_at")


def start_net(args):
    """The robust net that `--start` names, by default saved_models/<data>_at."""
    folder = start_folder(args)
    if not (folder / "model.keras").exists():
        raise SystemExit(f"`--start` must be the folder of a saved net. Received: {folder}")
    try:
        return keras.saving.load_model(folder / "model.keras", compile=False)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"`--start` must hold a readable model.keras. Received: {folder} ({error})"
        ) from None


def start_of(args):
    """(robust net, [wall, processor] seconds that it took, its epochs)."""
    net, folder = start_net(args), start_folder(args)
    try:
        told = next(iter(tr.report.load(folder).to_dict()["models"].values()))["settings"]
        return net, told["seconds"], told["epochs"]
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise SystemExit(
            f"`--start` must hold a card.json that tells the seconds and epochs of its training, "
            f"as recipes.pretrain writes it. Received: {folder} ({type(error).__name__}: {error})"
        ) from None


class Curve(Counting):
    """Measures the net at the end of each rung, before the next update of the ladder.

    Args:
        net: The classifier that is pruned.
        rungs: Ratios of the ladder.
        every: Steps from one update to the next.
        look: Callable `(net) -> dict` of figures.
        keep: Callable `(net, ratio, seconds)`, called at every rung.
        clock: `mnist.Clock` of the same `fit`.
    """

    resumes = (*Counting.resumes, "rows", "spent")

    def __init__(self, net, rungs, every, look, keep, clock):
        super().__init__()
        self.net, self.rungs, self.every = net, rungs, every
        self.look, self.keep, self.clock = look, keep, clock
        self.rows, self.spent = [], [0.0, 0.0]

    def on_train_begin(self, logs=None):
        if self.model.steps_per_execution > self.every:
            raise ValueError(
                "`steps_per_execution` must be at most the steps of a rung: each is measured. "
                f"Received: {self.model.steps_per_execution}, rungs of {self.every} steps"
            )

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch)
        if self.steps // self.every > len(self.rows) < len(self.rungs):
            self.measure()

    def measure(self):
        """Adds a row for the rung that was trained last."""
        began = [time.perf_counter(), time.process_time()]
        ratio = self.rungs[len(self.rows)]
        done = self.clock.so_far()
        seconds = [d - s for d, s in zip(done, self.spent, strict=True)]
        row = {"ratio": ratio, **self.look(self.net), "seconds": seconds}
        self.keep(self.net, ratio, seconds)
        self.rows.append(row)
        print(tell(row), flush=True)
        ended = [time.perf_counter(), time.process_time()]
        self.spent = [s + e - b for s, e, b in zip(self.spent, ended, began, strict=True)]


def tell(row):
    figures = [
        f"{name} {row[name]:.3f}" for name in ("clean", "attacked", "verified") if name in row
    ]
    return f"pruned {row['ratio']:.1%}: {', '.join(figures)}"


def looker(scene, data, count):
    """Clean and attacked accuracy on the first `count` test images.

    In a scene with certified training also what is verified, by intervals ("by_ibp") and by
    CROWN-IBP on what these leave ("verified").
    """
    x, y = data.x_test[:count], data.y_test[:count]

    def look(net):
        right = tr.attacks.forward(net, x).argmax(-1) == y
        attacked = tr.attacks.forward(net, scene.glance(net, x, y)).argmax(-1) == y
        row = {"clean": float(right.mean()), "attacked": float((right & attacked).mean())}
        if scene.verify is not None:
            proved = tr.bounds.certified(net, x, y, scene.threat)
            row["by_ibp"], left = float(proved.mean()), ~proved & right & attacked
            if left.any():
                proved[left] = tr.bounds.certified(
                    net, x[left], y[left], scene.threat, method="crown-ibp"
                )
            row["verified"] = float(proved.mean())
        return row

    return look


def player(net, mode, scene, data, rate, seed, labels=None, epsilon=None):
    """What `fit` is called on: the net itself for "nat", a game for all others."""
    kinds = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
    loss = kinds[labels is not None](from_logits=True)
    game = net
    if mode == "trades":
        game = tr.training.TRADES(net, scene.threat, beta=scene.beta, seed=seed)
    elif mode == "verif":
        game = scene.verify(net, seed)
    elif mode != "nat":
        game = tr.training.AdversarialTraining(net, scene.training, epsilon=epsilon, seed=seed)
    game.compile(keras.optimizers.Adam(rate), loss=loss)
    y = data.y_train if labels is None else labels
    return game, tr.data.Batches(data.x_train, y, mnist.BATCH, seed=seed)


def steps(data, epochs):
    """Steps of so many epochs."""
    return -(-len(data.x_train) // mnist.BATCH) * epochs


def walk(net, scene, data, args, folder, labels=None):
    """Prunes up the ladder, fine-tuning between rungs; returns the rows of the curve.

    The net at each ratio of `args.ratios` is written to `folder`, cut where filters are pruned,
    and beside it as JSON what is masked in it before the cut.
    """
    rungs = args.ratios if args.smoke else ladder(args.ratios)
    look = looker(scene, data, 32 if args.smoke else 500)
    options = {"structured": "filters" if args.structured == "filters" else None}
    options |= {"scope": args.scope, "normalise": args.normalise}
    rows_file = folder / "curve.json"
    if args.resume and rows_file.exists():
        return json.loads(rows_file.read_text())
    folder.mkdir(parents=True, exist_ok=True)

    def keep(net, ratio, report):
        if ratio in args.ratios:
            cut = tr.shrink.compact(net) if args.structured == "filters" else net
            tr.export.keras_file(cut, folder / f"pruned_{ratio:g}.keras")
            text = json.dumps(report.to_dict(), indent=1) + "\n"
            path = folder / f"pruned_{ratio:g}.json"
            tr.files.replace(path, lambda name: pathlib.Path(name).write_text(text))

    if args.finetune == "none":
        rows = []
        for ratio in rungs:
            report = tr.pruning.prune(net, ratio, **options)
            rows.append({"ratio": ratio, **look(net), "seconds": [0.0, 0.0]})
            keep(net, ratio, report)
            print(tell(rows[-1]), flush=True)
    else:
        game, batches = player(net, args.finetune, scene, data, args.rate, args.seed, labels)
        every = max(1, len(batches) * args.epochs // len(rungs))
        prune = tr.pruning.MagnitudePruning(
            tr.pruning.Ladder(rungs, every=every, unit="steps"), **options
        )
        clock = mnist.Clock()
        curve = Curve(net, rungs, every, look, lambda n, r, s: keep(n, r, prune.report()), clock)
        mnist.train(game, batches, args.epochs, folder / "fit", True, clock, [curve, prune])
        print(prune.report(), flush=True)
        rows = curve.rows
    tr.files.replace(rows_file, lambda path: pathlib.Path(path).write_text(json.dumps(rows)))
    return rows


def masked(path):
    """What `walk` wrote beside a pruned net, for its settings on a card: {} where it is not there.

    `masked` is the fraction of zeros in the kernels that may be pruned (before filters are cut);
    `fewest` names layers with one filter left, where `min_filters` holds the ranking up.
    """
    if not path.exists():
        return {}
    told = json.loads(path.read_text())
    rows = [row for row in told["rows"] if row["filters"]]
    fewest = [row["name"] for row in rows if row["filters"] == row["filters_total"] - 1]
    return {"masked": told["sparsity"], "fewest": fewest}


def settle(net, scene, data, args, folder, labels=None):
    """Fine-tunes a pruned net at its ratio, zeros held, on a one-cycle rate; returns the clock."""
    tr.pruning.freeze(net)
    rate = mnist.one_cycle(args.peak, steps(data, args.settle))
    game, batches = player(net, args.finetune, scene, data, rate, args.seed + 100, labels)
    return mnist.train(game, batches, args.settle, folder, args.resume)


def from_scratch(net, scene, data, epochs, peak, seed, folder, resume):
    """Adversarial training of random weights: epsilon rises over the first fifth."""
    count = steps(data, epochs)
    epsilon, rate = mnist.rising_epsilon(count, scene.threat.epsilon), mnist.one_cycle(peak, count)
    game, batches = player(net, "robust", scene, data, rate, seed, epsilon=epsilon)
    return mnist.train(game, batches, epochs, folder, resume)


def fresh(net, seed):
    """The same architecture with new random weights."""
    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(net)


def zeros(net):
    """Share of kernel entries that are exactly zero."""
    kernels = [np.asarray(w) for w in net.get_weights() if np.ndim(w) > 1]
    return sum(int((w == 0).sum()) for w in kernels) / sum(w.size for w in kernels)
