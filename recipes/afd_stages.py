"""Stages of the AFD recipes: one narrow net on MNIST for every method, judged alike.

Paper: Bashivan et al. (ICLR 2021 submission; arXiv 2006.04621). Threat: Linf, epsilon 0.3. All
methods take the same net, epochs, attack in training (PGD-7), ramp of epsilon and one-cycle SGD;
the paper's are 100 epochs, PGD-40 and steps of the learning rate. AFD's net has unit features, as
the authors' code.
"""

import argparse
import dataclasses
import json
import pathlib

import keras

import tfrobust as tr
from recipes import mnist, pruning_stages
from recipes.command import command_line, settings

NETS = {"resnet18": "mnist_rn18", "lenet5": "mnist_lenet"}  # the paper's two, and their cards
SUBSTITUTE = 100  # seed of the naturally trained net on which transfers are crafted


@dataclasses.dataclass(frozen=True)
class Method:
    """How a row of the tables is trained; `paper` is clean, PGD, FGSM, PGD BB, FGSM BB in %."""

    title: str
    kind: str
    options: dict = dataclasses.field(default_factory=dict)
    paper: tuple = (None,) * 5


METHODS = {
    "nt": Method("NT", "nt", paper=(98.80, 0.0, 2.90, 11.25, 20.48)),
    "at": Method("AT", "at", paper=(99.13, 95.16, 97.33, 98.41, 98.17)),
    "trades": Method("TRADES", "trades", paper=(98.84, 80.69, 91.75, 97.11, 86.40)),
    "match": Method("L2 matching", "match", paper=(None, 80.0, None, None, None)),
    "afd": Method("AFD", "afd", paper=(99.15, 96.13, 97.70, 98.31, 97.92)),
    "afd_wgan": Method("AFD, Wasserstein", "afd", {"divergence": "wasserstein"}),
    "afd_fc1_pd": Method("AFD, FC1-PD", "afd", {"discriminator": {"n_hidden": 0}}),
    "afd_fc3": Method("AFD, FC3", "afd", {"discriminator": {"projection": False}}),
    "afd_fc4_pd": Method("AFD, FC4-PD", "afd", {"discriminator": {"n_hidden": 3}}),
}
DEFAULTS = {
    "epochs": 10, "width": 0.5, "steps": 7, "rate": 0.1, "rate_discriminator": 0.1,
    "rate_encoder": 0.5, "weight": 1.0, "match": 1.0, "n": 1000,
}  # fmt: skip


def arguments(doc, methods, **more):
    """The flags of the training recipes."""
    told = {
        "width": "of the ResNet-18",
        "steps": "of PGD in training, of size epsilon / 4",
        "rate": "peak of the classifier's learning rate",
        "rate_discriminator": "peak of the discriminator's",
        "rate_encoder": "peak of the encoder's",
        "weight": "of the encoder's loss",
        "match": "weight of L2 matching",
        "n": "test images for PGD, transfers and AutoAttack",
    }
    numbers = {
        name: {"type": type(DEFAULTS[name]), "default": DEFAULTS[name], "help": text}
        for name, text in told.items()
    }
    args = mnist.arguments(
        doc,
        DEFAULTS["epochs"],
        net={"choices": list(NETS), "default": "resnet18", "help": "LeNet-5: unstable with AFD"},
        methods={"nargs": "+", "choices": list(METHODS), "default": list(methods)},
        seeds={"type": int, "nargs": "+", "help": "default: 0; of AT and AFD 0 1 2"},
        train_only={"action": "store_true", "help": "stop before judging"},
        **numbers,
        **more,
    )
    if args.smoke:
        args.net, args.width, args.n, args.steps = "lenet5", 0.125, 16, 2
        args.out = args.out / "saved_models"
        args.methods, args.seeds = [m for m in args.methods if m.startswith("afd")][:1], [0]
    return args


def run(args):
    """Trains and judges whatever has no card yet; returns the names of all."""
    data, names = small(mnist.mnist(args), args), []
    for method in args.methods:
        for seed in args.seeds or ([0, 1, 2] if method in ("at", "afd") else [0]):
            names.append(name_of(method, seed, args.net))
            if (args.out / names[-1] / "card.json").exists():
                print(f"{names[-1]}: has a card", flush=True)
                continue
            net, told = trained(method, seed, data, args)
            if not args.train_only:
                ship(names[-1], method, seed, net, told, data, args)
    return names


def small(data, args):
    """With --smoke 256 training images."""
    if not args.smoke:
        return data
    return tr.data.Dataset(data.x_train[:256], data.y_train[:256], data.x_test, data.y_test, 10)


def name_of(method, seed, net="resnet18"):
    return f"{NETS[net]}_{method}" + (f"_s{seed}" if seed else "")


def build(method, args):
    if args.net == "lenet5":
        net = tr.models.lenet5_caffe(widths=(32, 64, 64), width=args.width)
    else:
        net = tr.models.resnet18(version="mnist", width=args.width)
    return tr.models.unit_features(net) if METHODS[method].kind == "afd" else net


def player(method, net, args, iterations):
    """The compiled game."""
    kind, options = METHODS[method].kind, METHODS[method].options
    shared = {"weight_decay": 1e-4, "seed": args.seed}
    size, ramp = mnist.EPSILON / 4, mnist.rising_epsilon(iterations)
    attack = tr.attacks.PGD(mnist.THREAT, steps=args.steps, step_size=size)
    rates = {"weights": args.rate}
    if kind == "nt":  # nothing is attacked
        attack = tr.attacks.PGD(tr.threats.Linf(0.0), steps=0, random_start=False)
        game = tr.training.AdversarialTraining(net, attack, mix=(1, 0), **shared)
    elif kind == "at":
        game = tr.training.AdversarialTraining(net, attack, epsilon=ramp, **shared)
    elif kind == "match":
        layer = "relu_dense3" if args.net == "lenet5" else "pool"
        match = tr.regularizers.RepresentationMatching(layer, args.match)
        game = tr.training.AdversarialTraining(
            net, attack, mix=(1, 0), regularizers=[match], epsilon=ramp, **shared
        )
    elif kind == "trades":
        attack = tr.attacks.PGD(
            mnist.THREAT, steps=args.steps, step_size=size, random_start=0.001, loss="kl"
        )
        game = tr.training.TRADES(net, attack, beta=1.0, epsilon=ramp, **shared)
    else:
        shared |= {"discriminator_decay": 1e-4, "encoder_decay": 1e-4, "weight": args.weight}
        game = tr.training.AFD(net, attack, epsilon=ramp, **shared, **options)
        rates |= {"discriminator": args.rate_discriminator, "encoder": args.rate_encoder}
    cycle = {group: mnist.one_cycle(rate, iterations) for group, rate in rates.items()}
    game.compile({g: keras.optimizers.SGD(r, momentum=0.9) for g, r in cycle.items()})
    return game


def trained(method, seed, data, args):
    """(net, what it took): from its file, resumed, or from random weights."""
    one = argparse.Namespace(**{**vars(args), "method": method, "seed": seed, "resume": True})
    for name in ("methods", "seeds", "train_only", "n"):
        delattr(one, name)
    work = args.work / name_of(method, seed, args.net)
    if not args.resume and not (work / "net.keras").exists():
        one.resume = False
    pruning_stages.same_run(one, work)
    path = tr.files.target(work / "net.keras")
    if path.exists() and path.with_suffix(".json").exists():
        told = json.loads(path.with_suffix(".json").read_text())
        return keras.saving.load_model(path, compile=False), told
    keras.utils.set_random_seed(seed)
    batches = tr.data.Batches(data.x_train, data.y_train, mnist.BATCH, seed=seed)
    net = build(method, args)
    game = player(method, net, one, len(batches) * args.epochs)
    told = {"method": method, "parameters": net.count_params()}
    callbacks = []
    if METHODS[method].kind == "afd":
        watch = tr.training.CollapseWatch(window=200)
        trace = tr.diagnostics.DiscriminatorTrace(every=max(1, len(batches) // 10))
        callbacks = [watch, trace]
    clock = mnist.train(game, batches, args.epochs, work / "fit", one.resume, None, callbacks)
    told |= {"seconds": clock.done, "epochs": clock.epochs}
    if callbacks:
        told |= {"collapse": watch.found, "trace": trace.rows}
    tr.export.keras_file(net, path)
    text = json.dumps(told)
    tr.files.replace(path.with_suffix(".json"), lambda p: pathlib.Path(p).write_text(text))
    return net, told


def judged(name, net, substitute, data, args):
    """[Scores]: FGSM on all test images; PGD, transfers and AutoAttack on the first `args.n`."""
    work, smoke = args.work / name, args.smoke
    steps, restarts = (4, 2) if smoke else (40, 5)
    fgsm = tr.attacks.FGSM(mnist.THREAT)
    step = 0.4 / steps
    pgd = tr.attacks.PGD(mnist.THREAT, steps=steps, step_size=step)
    first = [
        tr.attacks.Transfer(substitute, fgsm),
        tr.attacks.Transfer(substitute, pgd),
        tr.attacks.PGD(mnist.THREAT, steps=steps, step_size=step, restarts=restarts),
        tr.attacks.APGD(mnist.THREAT, steps=5) if smoke else tr.attacks.AutoAttack(mnist.THREAT),
    ]
    test = data.x_test, data.y_test
    whole = tr.evaluate.robustness(net, test, [fgsm], state=work / "judge_all.npz")
    few = tr.evaluate.robustness(
        net, test, first, max_examples=args.n, state=work / "judge_first.npz"
    )
    print(whole, few, sep="\n", flush=True)
    return [whole, few]


def ship(name, method, seed, net, told, data, args):
    """Judges a net and writes its file and card."""
    substitute, _ = trained("nt", SUBSTITUTE, data, args)
    scores = judged(name, net, substitute, data, args)
    flags = [("--methods", method), ("--seeds", seed)]
    flags += [("--net", args.net)] * (args.net != "resnet18")
    flags += [(f"--{k.replace('_', '-')}", getattr(args, k)) for k, v in DEFAULTS.items()
              if getattr(args, k) != v]  # fmt: skip
    words = [str(word) for flag in flags for word in flag] + ["--smoke"] * args.smoke
    trace = None
    if told.get("trace"):
        trace = tr.diagnostics.DiscriminatorTrace()
        trace.rows = told["trace"]
    told = {key: value for key, value in told.items() if key != "trace"}
    entry = tr.report.Entry(
        scores=scores,
        trace=trace,
        footprint=tr.footprint.measure(net),
        files=[tr.export.keras_file(net, args.out / name / "model.keras")],
        seconds=told["seconds"][0],
        settings={**_flags(args), **told, "seed": seed},
    )
    card = tr.report.card(
        name,
        models={METHODS[method].title: entry},
        data={
            "name": "MNIST",
            "note": f"clean and FGSM on all test images, the others on the first {args.n}; "
            f"transfers from a naturally trained net of another seed ({SUBSTITUTE})",
        },
        threat=mnist.THREAT,
        command=command_line(words, "afd_table1"),
    )
    card.save(args.out / name)


def _flags(args):
    return {k: v for k, v in settings(args).items() if k not in ("methods", "seeds", "seed")}
