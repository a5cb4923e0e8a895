"""What sparsity does to robustness, on MNIST: Figures 1 and 2 and Table 1 of Guo et al.

Paper: Guo et al., 2018 (arXiv 1810.09619). Naturally trained references are pruned step by step, a
third of the remaining weights of each layer 16 times with retraining in between (784 weights end
at 2), and judged before every step: accuracy, r_inf under FGS and rFGS (epsilon 0.1) and, for a
check of both, under PGD-20; r_2 by DeepFool, and by C&W every fourth time. Linear nets also get
the closed forms, which know no pixel box. The others are then trained on from their reference
under an l1 penalty of several strengths, and their silent hidden units are counted.
Command: python -m recipes.sparsity_robustness --data-dir DATA    (paper: --references 10)
Time: about 40 minutes on one core, 25 of them for LeNet-5: `--nets lenet5` in one process and
`--nets linear_1v7 linear lenet300_100` in another share the work and write the same results.
Expected accuracy of the references: 99.2 ("1 vs 7"), 92.3, 98.2 and 99.0 %.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import time
import warnings

import keras
import numpy as np

import tfrobust as tr
from recipes import sparsity_plots
from recipes.counting import Counting

NAME = "sparsity_robustness"
EPSILON, BATCH, RHO, DECAY = 0.1, 100, 1 / 3, 5e-4
PENALTIES = (0.0, 1e-5, 1e-4, 1e-3)
DIGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_OR_SEVEN = keras.losses.BinaryCrossentropy(from_logits=True)  # the paper's softplus


def convolutional(name):
    return tr.models.lenet5_caffe(conv_activation="linear", name=name)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One architecture, and how long it is trained.

    Attributes:
        build: Callable name -> net.
        first, again, extra: Train steps of a reference, after each pruning, and under l1.
        rate: Learning rate of a reference; half of it after pruning and under l1.
        penalties: Strengths of the l1 penalty, the first 0.
        candidates: Classes that DeepFool looks at.
        pair: Two digits, where the net tells only these apart.
        rounds: How often it is pruned.
    """

    title: str
    build: object
    first: int
    again: int
    rate: float
    extra: int = 0
    penalties: tuple = ()
    candidates: int = 10
    pair: tuple = ()
    rounds: int = 16


PLANS = {
    "linear_1v7": Plan(
        'linear, "1" or "7"', lambda n: tr.models.linear(1, name=n), 2400, 400, 0.02, pair=(1, 7)
    ),
    "linear": Plan("linear, 10 classes", lambda n: tr.models.linear(name=n), 4800, 600, 0.02),
    "lenet300_100": Plan(
        "LeNet-300-100", lambda n: tr.models.lenet300_100(name=n), 6000, 600, 0.1, 1800, PENALTIES
    ),
    "lenet5": Plan("LeNet-5", convolutional, 2400, 200, 0.02, 600, PENALTIES, candidates=4),
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder with mnist.npz (default: TFROBUST_DATA_DIR)")
    parser.add_argument("--references", type=int, default=3, help="nets of each kind (paper: 10)")
    parser.add_argument("--nets", nargs="+", choices=PLANS, help="default: all, two in --smoke")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first reference")
    parser.add_argument("--deepfool", type=int, default=1000, help="images for DeepFool")
    parser.add_argument("--slow", type=int, default=100, help="images for C&W")
    parser.add_argument("--pgd", type=int, default=500, help="images for PGD-20")
    parser.add_argument("--smoke", action="store_true", help="tiny data, under a minute")
    parser.add_argument("--resume", action="store_true", help="do only what is missing")
    parser.add_argument("--work", default="runs", help="folder of checkpoints")
    parser.add_argument("--out", default="saved_models", help="folder of results")
    args = parser.parse_args()
    args.work, args.out = pathlib.Path(args.work), pathlib.Path(args.out)
    if args.smoke:
        args.references, args.deepfool, args.slow, args.pgd = 1, 16, 4, 16
        args.work, args.out = args.work / "smoke", args.work / "smoke" / "out"
    args.nets = args.nets or (["linear_1v7", "lenet5"] if args.smoke else list(PLANS))
    args.work = args.work / NAME
    return args


def images(args, plan):
    """MNIST, or two digits of it with labels 0 and 1; with --smoke 512 and 128 images."""
    data = tr.data.load("mnist", args.data_dir)
    parts = [(data.x_train, data.y_train), (data.x_test, data.y_test)]
    if plan.pair:
        parts = [(x[np.isin(y, plan.pair)], y[np.isin(y, plan.pair)]) for x, y in parts]
        parts = [(x, (y == plan.pair[1]).astype("int32")) for x, y in parts]
    if args.smoke:
        parts = [(x[:n], y[:n]) for (x, y), n in zip(parts, (512, 128), strict=True)]
    return parts


def attacks_of(plan, args):
    """{name: (attack, number of images)}."""
    linf, l2 = tr.threats.Linf(EPSILON), tr.threats.L2(1.0)
    steps = (2, 10) if args.smoke else (5, 200)
    cw = tr.attacks.CarliniWagner(
        l2, search_steps=steps[0], steps=steps[1], step_size=0.05, initial_const=1.0
    )
    return {
        "fgs": (tr.attacks.FGSM(linf), None),
        "rfgs": (tr.attacks.RFGSM(linf), 2000),
        "pgd": (tr.attacks.PGD(linf, steps=20), args.pgd),
        "deepfool": (tr.attacks.DeepFool(l2, candidates=plan.candidates), args.deepfool),
        "cw": (cw, args.slow),
    }


class Judge:
    """Measures a net on test images: one row of plain numbers.

    Args:
        plan, args: What is measured, on how many images.
        x, y: Test images and labels.
    """

    def __init__(self, plan, args, x, y):
        self.plan, self.x, self.y = plan, x, y
        self.attacks = attacks_of(plan, args)

    def __call__(self, net, number, slow):
        right = tr.attacks.correct(net, self.x, self.y)
        report = tr.pruning.report(net)
        row = {"round": number, "left": report.total - report.pruned, "of": report.total}
        row["accuracy"] = rounded(right.mean())
        for name, (attack, count) in self.attacks.items():
            if slow or name != "cw":
                measure = tr.diagnostics.r_2 if attack.threat.norm == "l2" else tr.diagnostics.r_inf
                row[name] = brief(measure(net, self.x[:count], self.y[:count], attack))
        if not self.plan.penalties:
            exact = tr.diagnostics.ClosedForm(net)
            row["exact_fgs"] = brief(exact.r_inf(self.x, self.y, EPSILON))
            row["exact_deepfool"] = brief(exact.r_2(self.x, self.y))
            row["bounds"] = [rounded(b) for b in exact.bounds(self.x, self.y, EPSILON)]
        else:
            row["silent"] = rounded(tr.diagnostics.activation_sparsity(net, self.x))
        return row


def brief(measure):
    told = {k: rounded(v) for k, v in measure.to_dict().items() if k not in ("name", "attack")}
    always = ("value", "error", "n")
    return {k: told[k] for k in (*always, "unfooled", "repaired") if k in always or told.get(k)}


def rounded(value):
    return round(float(value), 6) if isinstance(value, float | np.floating) else int(value)


@keras.saving.register_keras_serializable(package="recipes")
class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """`peak` to `peak` / 20 along a cosine: once over `first` steps, then every `again` steps."""

    def __init__(self, peak, first, again, share=0.5):
        self.peak, self.first, self.again, self.share = peak, first, again, share

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        later = step >= self.first
        place = keras.ops.where(
            later, keras.ops.mod(step - self.first, self.again) / self.again, step / self.first
        )
        peak = keras.ops.where(later, self.share * self.peak, self.peak)
        return peak * (0.05 + 0.475 * (1.0 + keras.ops.cos(np.pi * place)))

    def get_config(self):
        return {k: getattr(self, k) for k in ("peak", "first", "again", "share")}


class Rows(Counting):
    """Judges the net after the first training and after each retraining, then ends `fit`.

    Comes before the pruning callback, so that every row is taken before the next update. Rows that
    were measured with other settings are refused when `fit` goes on.

    Args:
        settings: What decides the figures, as plain JSON.
    """

    resumes = (*Counting.resumes, "settings", "rows")

    def __init__(self, judge, plan, title, path, settings):
        super().__init__()
        self.judge, self.plan, self.title, self.path = judge, plan, title, path
        self.rows, self._settings = [], settings

    @property
    def settings(self):
        return json.dumps(self._settings, sort_keys=True)

    @settings.setter
    def settings(self, text):
        if text != self.settings:
            were = json.loads(text)
            names = [k for k, v in json.loads(self.settings).items() if were.get(k) != v]
            raise SystemExit(
                "`--resume` must have the settings of the rows that are there, or leave it out. "
                f"Received: {self.path.parent} with other {', '.join(names)}"
            )

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch)
        number = (self.steps - self.plan.first) // self.plan.again
        if number < len(self.rows):  # -1 before the first
            return
        begun = time.perf_counter()
        row = self.judge(self.model, number, slow=number % 4 == 0)
        self.rows = [*self.rows, row]
        if number == 0:
            tr.files.replace(self.path, self.model.save_weights)
        tell(self.title, f"round {number:2d}/{self.plan.rounds}", row, time.perf_counter() - begun)
        self.model.stop_training = number == self.plan.rounds


def tell(title, what, row, seconds):
    sparsity = 1 - row["left"] / row["of"]
    print(
        f"{title}, {what}: {100 * sparsity:.2f} % pruned, accuracy {100 * row['accuracy']:.2f}, "
        f"r_inf {row['fgs']['value']:.4f}, r_2 {row['deepfool']['value']:.4f} "
        f"(judged in {seconds:.0f} s)",
        flush=True,
    )


def compiled(net, plan, rate, penalty=0.0):
    """Caffe's training policy, but for the learning rate: momentum and l2 decay of the kernels."""
    tr.regularizers.penalise_kernels(net, keras.regularizers.L1L2(penalty, DECAY / 2))
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    net.compile(optimizer, ONE_OR_SEVEN if plan.pair else DIGITS)


def chain(name, number, plan, args):
    """One reference, pruned and judged 16 times, and its l1 sweep: a dict for the results."""
    folder, begun = args.work / f"{name}_{args.seed + number}", time.perf_counter()
    (x, y), (x_test, y_test) = images(args, plan)
    judge = Judge(plan, args, x_test, y_test)
    title = f"{plan.title}, reference {number + 1}/{args.references}"
    keras.utils.set_random_seed(args.seed + number)
    net = plan.build(name)
    batches = tr.data.Batches(x, y[:, None] if plan.pair else y, BATCH, seed=args.seed + number)
    compiled(net, plan, Falling(plan.rate, plan.first, plan.again))
    schedule = tr.pruning.Geometric(RHO, plan.rounds, plan.again, plan.first, unit="steps")
    rows = Rows(judge, plan, title, tr.files.target(folder / "reference.weights.h5"),
                settings(args))  # fmt: skip
    others = [rows, tr.pruning.MagnitudePruning(schedule)]
    keeper = tr.training.Resume(folder, batches, others, delete_checkpoint=False)
    steps = plan.first + plan.rounds * plan.again
    net.fit(
        batches,
        epochs=-(-steps // len(batches)),
        shuffle=False,
        verbose=0,
        callbacks=[*others, keeper],
    )
    found = {"net": name, "seed": args.seed + number, "rows": rows.rows, "l1": []}
    found["parameters"] = net.count_params()
    for penalty in plan.penalties:
        found["l1"].append(penalised(name, number, plan, args, batches, judge, penalty, rows.path))
        tell(title, f"l1 {penalty:g}", found["l1"][-1], 0)
    found["seconds"] = round(time.perf_counter() - begun)
    return found


def penalised(name, number, plan, args, batches, judge, penalty, path):
    """The reference, trained on under an l1 penalty on its kernels: its row."""
    keras.utils.set_random_seed(args.seed + number)
    net = plan.build(name)
    net.load_weights(path)
    compiled(net, plan, Falling(plan.rate / 2, plan.extra, plan.extra), penalty)
    batches.epoch = 1000  # an order of its own
    epochs = max(1, plan.extra // len(batches))
    net.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    return {"penalty": penalty, **judge(net, 0, slow=False)}


def settings(args):
    """What decides the figures, for the results."""
    images = {"deepfool": args.deepfool, "cw": args.slow, "pgd": args.pgd, "rfgs": 2000}
    plans = {
        name: {k: v for k, v in vars(plan).items() if k != "build"} for name, plan in PLANS.items()
    }
    attacks = attacks_of(PLANS["linear"], args)
    return {
        "epsilon": EPSILON, "batch": BATCH, "rho": RHO, "images": images,
        "plans": plans, "optimizer": "SGD, momentum 0.9, decay of kernels", "decay": DECAY,
        "attacks": {name: attack.name for name, (attack, _) in attacks.items()},
    }  # fmt: skip


def write(args):
    """All finished chains, whoever made them, as results.json and figure.png."""
    told = settings(args)
    paths = sorted(args.work.glob("*.json"))
    chains = [found for path in paths if (found := finished(path, told)) is not None]
    seeds = range(args.seed, args.seed + args.references)
    chains = [c for c in chains if c.pop("settings") and c["seed"] in seeds]
    command = f"python -m recipes.{NAME} --references {args.references} --seed {args.seed}"
    command += f" --deepfool {args.deepfool} --slow {args.slow} --pgd {args.pgd}"
    results = {
        "recipe": NAME, "command": command + " --smoke" * args.smoke, "data": "MNIST",
        "version": tr.__version__, "settings": told,
        "nets": {n: [c for c in chains if c["net"] == n] for n in PLANS},
    }  # fmt: skip
    path = args.out / NAME / "results.json"
    save(path, json.dumps(results) + "\n")
    sparsity_plots.draw(results, path.with_name("figure.png"))
    return path


def finished(path, told):
    """What a file of an earlier run holds, None unless it was made with the same settings."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or a kill cut it off
        return None
    return found if found.get("settings") == json.loads(json.dumps(told)) else None


def save(path, text):
    tr.files.replace(tr.files.target(path), lambda name: pathlib.Path(name).write_text(text))


def main():
    warnings.filterwarnings("ignore", message="`attack` could not fool")  # the JSON says how many
    args = arguments()
    for number in range(args.references):  # whole sets of nets, so that a stop leaves all kinds
        for name in args.nets:
            done = args.work / f"{name}_{args.seed + number}.json"
            if not args.resume:
                shutil.rmtree(done.with_suffix(""), ignore_errors=True)
                done.unlink(missing_ok=True)
            if finished(done, settings(args)):
                print(f"{name}, reference {number + 1}: done before", flush=True)
                continue
            found = chain(name, number, shortened(name, args), args)
            save(done, json.dumps({**found, "settings": settings(args)}))
            write(args)
    print(f"wrote {write(args)}", flush=True)


def shortened(name, args):
    plan = PLANS[name]
    if not args.smoke:
        return plan
    return dataclasses.replace(
        plan, first=12, again=1, extra=2, penalties=plan.penalties[:2], rounds=3
    )


if __name__ == "__main__":
    main()
