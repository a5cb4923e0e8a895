"""Stages of the AFD recipes: one narrow net on MNIST for every method, judged alike.

Paper: Bashivan et al. (ICLR 2021 submission; arXiv 2006.04621). Threat: Linf, epsilon 0.3. All
methods take the same net, epochs, attack in training (PGD-7), ramp of epsilon, weight decay and
one-cycle SGD; the paper's are 100 epochs, PGD-40 and steps of the learning rate, and for TRADES a
smaller rate and no decay. AFD's net has unit features, as the authors' code; `afd_plain` has not.

A card is kept if its flags are these, refused else; flags that a method does not use do not count.
Rates and weights are to be found with --pilot: it holds 5,000 training images out, trains on the
rest and tells accuracy on what it held out, under PGD and, since a net may hide its gradients from
PGD, under Square. It writes no card and looks at no test image.
"""

import argparse
import dataclasses
import json
import pathlib

import keras
import numpy as np

import tfrobust as tr
from recipes import mnist, pruning_stages
from recipes.command import check, command_line, refuse_other

NETS = {"resnet18": "mnist_rn18", "lenet5": "mnist_lenet"}  # the paper's two, and their cards
WIDTHS = {"resnet18": 0.5, "lenet5": 1.0}  # of 64 and of the paper's 32-64-64 units
SUBSTITUTE = 100  # seed of the naturally trained net on which transfers are crafted
HELD_OUT = 5000  # training images of a pilot that only judge
ASKED = 300  # of them under Square, which takes 500 forward passes an image


@dataclasses.dataclass(frozen=True)
class Method:
    """How a row of the tables is trained, and what was published.

    `options` are those of the game. `paper` is clean, PGD, FGSM, PGD BB, FGSM BB and AutoAttack
    (100 images) in %, as printed.
    """

    title: str
    kind: str
    options: dict = dataclasses.field(default_factory=dict)
    paper: tuple = ()
    source: str = "paper"
    unit: bool = True  # whether AFD's classifier, too, sees features of length 1


PD1, FC3, PD4 = {"n_hidden": 0}, {"projection": False}, {"n_hidden": 3}
METHODS = {
    "nt": Method("NT", "nt", paper=(
        "98.80 +- 0.11", "0.0", "2.90 +- 0.07", "11.25 +- 3.60", "20.48 +- 2.91", "0")),
    "at": Method("AT", "at", paper=(
        "99.13 +- 0.11", "95.16 +- 0.12", "97.33 +- 0.18", "98.41 +- 0.09", "98.17 +- 0.18", "88")),
    "trades": Method("TRADES", "trades", paper=(
        "98.84 +- 0.18", "80.69 +- 9.44", "91.75 +- 2.70", "97.11 +- 0.63", "86.40 +- 8.22", "2")),
    "match": Method("L2 matching", "match", paper=("-", "about 80", "-", "-", "-", "-")),
    "afd": Method("AFD", "afd", paper=(
        "99.15 +- 0.12", "96.13 +- 0.35", "97.70 +- 0.34", "98.31 +- 0.18", "97.92 +- 0.31", "92")),
    "afd_plain": Method("AFD, plain features", "afd", unit=False),
    "afd_wgan": Method("AFD, Wasserstein", "afd", {"divergence": "wasserstein"},
                       ("99.14", "97.68", "-", "-", "-", "-"), "NeurIPS text, trained on APGD"),
    "afd_fc1_pd": Method("AFD, FC1-PD", "afd", {"discriminator": PD1}),
    "afd_fc3": Method("AFD, FC3", "afd", {"discriminator": FC3}),
    "afd_fc4_pd": Method("AFD, FC4-PD", "afd", {"discriminator": PD4}),
}  # fmt: skip
DEFAULTS = {
    "epochs": 10, "steps": 7, "rate": 0.1, "rate_discriminator": 0.1, "rate_encoder": 0.5,
    "weight": 1.0, "match": 1.0, "n": 1000,
}  # fmt: skip
SHARED = ("epochs", "width", "n")  # what all rows of a table have in common
USES = {
    "nt": ("rate",),
    "at": ("steps", "rate"),
    "trades": ("steps", "rate"),
    "match": ("steps", "rate", "match"),
    "afd": ("steps", "rate", "rate_discriminator", "rate_encoder", "weight"),
}


def arguments(doc, methods, **more):
    """The flags of the training recipes."""
    told = {
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
        width={"type": float, "help": "of the net (default: 0.5, of LeNet-5 1)"},
        methods={
            "nargs": "+",
            "choices": list(METHODS),
            "help": f"default: {' '.join(methods)}; of LeNet-5 afd",
        },
        seeds={"type": int, "nargs": "+", "help": "default: 0; of AT and AFD 0 1 2"},
        train_only={"action": "store_true", "help": "stop before judging"},
        pilot={"action": "store_true", "help": f"judge on {HELD_OUT} training images, no card"},
        **numbers,
        **more,
    )
    check(args)
    if args.seed:
        raise SystemExit(f"`--seeds` says the seeds of this recipe. Received: --seed {args.seed}")
    if SUBSTITUTE in (args.seeds or []):
        raise SystemExit(f"`--seeds` must not hold {SUBSTITUTE}, that of the nets of transfers")
    args.methods = args.methods or (list(methods) if args.net == "resnet18" else ["afd"])
    if args.smoke:
        args.net, args.width, args.n, args.steps = "lenet5", 0.125, 16, 2
        args.out = args.out / "saved_models"
        games = [method for method in args.methods if method.startswith("afd")]
        args.methods, args.seeds = [*games, "afd"][:1], [0]
    args.width = WIDTHS[args.net] if args.width is None else args.width
    return args


def run(args):
    """Trains and judges whatever has no card yet; returns the names of all."""
    data, names = small(mnist.mnist(args), args), []
    rows = [
        (method, seed)
        for method in args.methods
        for seed in args.seeds or ([0, 1, 2] if method in ("at", "afd") else [0])
    ]
    if args.n > len(data.x_test):
        raise SystemExit(f"`--n` must be at most {len(data.x_test)}. Received: {args.n}")
    if args.pilot:
        return [pilot(method, seed, data, args) for method, seed in rows]
    refuse_mixed(args)
    for row in rows:  # before anything is trained
        if has_card(*row, args):
            refuse_other(args.out / name_of(*row, args.net), command(*row, args))
    for method, seed in rows:
        names.append(name_of(method, seed, args.net))
        if has_card(method, seed, args):
            print(f"{names[-1]}: has a card", flush=True)
            continue
        net, told = trained(method, seed, data, args)
        if not args.train_only:
            ship(names[-1], method, seed, net, told, data, args)
    return names


def has_card(method, seed, args):
    return (args.out / name_of(method, seed, args.net) / "card.json").exists()


def refuse_mixed(args):
    """Ends where the rows of a table would differ in more than their method."""
    for path in sorted(args.out.glob(f"{NETS[args.net]}_*/card.json")):
        (entry,) = tr.report.load(path).to_dict()["models"].values()
        were = entry.get("settings", {})
        flags = [*SHARED, *(["steps"] if "steps" in were else [])]
        for name in flags:
            if name in were and were[name] != getattr(args, name):
                raise SystemExit(
                    f"`--{name}` must be that of the other cards of the table, or `--out` another "
                    f"folder. Received: {getattr(args, name)}, {path.parent} has {were[name]}"
                )


def command(method, seed, args):
    """The command that makes this one card."""
    words = ["--methods", method, "--seeds", seed]
    words += ["--net", args.net] * (args.net != "resnet18")
    for name, value in changed(method, args).items():
        words += ["--" + name.replace("_", "-"), value]
    words += ["--n", args.n] * (args.n != DEFAULTS["n"]) + ["--smoke"] * args.smoke
    return command_line(map(str, words), "afd_table1")


def changed(method, args):
    """{flag: value} of those flags that this method trains by and that are not at their default."""
    known = {**DEFAULTS, "width": WIDTHS[args.net]}
    names = ("epochs", "width", *USES[METHODS[method].kind])
    return {name: getattr(args, name) for name in names if getattr(args, name) != known[name]}


def flags_of(method, seed, args):
    """What a method is trained by, and nothing else."""
    names = ("net", "epochs", "width", "smoke", *USES[METHODS[method].kind])
    told = {"method": method, "seed": seed, **{name: getattr(args, name) for name in names}}
    return {**told, **({"pilot": True} if args.pilot else {})}


def small(data, args):
    """With --smoke 256 training images."""
    if not args.smoke:
        return data
    return tr.data.Dataset(data.x_train[:256], data.y_train[:256], data.x_test, data.y_test, 10)


def name_of(method, seed, net="resnet18"):
    return f"{NETS[net]}_{method}" + (f"_s{seed}" if seed else "")


def work_of(method, seed, args):
    """Where it is trained; a pilot's folder says its flags, since there are many."""
    name = name_of(method, seed, args.net)
    if not args.pilot:
        return args.work / name
    more = "".join(f"_{name}{value:g}" for name, value in changed(method, args).items())
    return args.work / "pilot" / f"{name}{more}"


def pilot(method, seed, data, args):
    """Trains without the last training images and tells how it does on them."""
    held = min(HELD_OUT, len(data.x_train) // 4)
    x, y = data.x_train[-held:], data.y_train[-held:]
    rest = dataclasses.replace(data, x_train=data.x_train[:-held], y_train=data.y_train[:-held])
    net, told = trained(method, seed, rest, args)
    attack = tr.attacks.PGD(mnist.THREAT, steps=2 if args.smoke else 20, step_size=0.03)
    right = tr.attacks.correct(net, x, y)
    stays = right & tr.attacks.correct(net, attack(net, x, y), y)
    square = tr.attacks.Square(mnist.THREAT, queries=4 if args.smoke else 500)
    asked = stays[:ASKED].copy()
    if asked.any():
        few = np.flatnonzero(asked)
        asked[few] = tr.attacks.correct(net, square(net, x[few], y[few]), y[few])
    name = work_of(method, seed, args).name
    words = [
        f"held out {held}",
        f"clean {right.mean():.4f}",
        f"PGD-20 {stays.mean():.4f}",
        f"of the first {len(asked)} PGD-20 {stays[: len(asked)].mean():.4f}",
        f"then Square {asked.mean():.4f}",
        f"{told['seconds'][0]:.0f} s",
    ]
    words += [f"collapse: {found['cause']}" for found in told.get("collapse", [])]
    print(f"{name}: {', '.join(words)}", flush=True)
    return name


def build(method, args):
    if args.net == "lenet5":
        net = tr.models.lenet5_caffe(widths=(32, 64, 64), width=args.width)
    else:
        net = tr.models.resnet18(version="mnist", width=args.width)
    unit = METHODS[method].kind == "afd" and METHODS[method].unit
    return tr.models.unit_features(net) if unit else net


def player(method, net, args, iterations):
    """The compiled game."""
    kind, options = METHODS[method].kind, METHODS[method].options
    shared = {"weight_decay": 1e-4, "seed": args.seed}
    size, ramp, rates = mnist.EPSILON / 4, mnist.rising_epsilon(iterations), {"weights": args.rate}
    if kind != "nt":
        attack = tr.attacks.PGD(mnist.THREAT, steps=args.steps, step_size=size)
    if kind == "nt":  # nothing is attacked
        game = tr.training.AdversarialTraining(net, None, **shared)
    elif kind == "at":
        game = tr.training.AdversarialTraining(net, attack, epsilon=ramp, **shared)
    elif kind == "match":
        layer = "relu_dense3" if args.net == "lenet5" else "pool"
        match = tr.regularizers.RepresentationMatching(layer, args.match)
        game = tr.training.AdversarialTraining(
            net, attack, mix=(1, 0), regularizers=[match], epsilon=ramp, **shared
        )
    elif kind == "trades":
        attack = tr.training.trades_attack(mnist.THREAT, args.steps, size)
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
    one = argparse.Namespace(**flags_of(method, seed, args), resume=True)
    work = work_of(method, seed, args)
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
    state = f"judge_{tr.contract.digest(*net.get_weights())[:8]}"
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
    whole = tr.evaluate.robustness(net, test, [fgsm], state=work / f"{state}_all.npz")
    few = tr.evaluate.robustness(
        net, test, first, max_examples=args.n, state=work / f"{state}_first{args.n}.npz"
    )
    print(whole, few, sep="\n", flush=True)
    return [whole, few]


def ship(name, method, seed, net, told, data, args):
    """Judges a net and writes its file and card."""
    plain = argparse.Namespace(**{**vars(args), "rate": DEFAULTS["rate"]})
    substitute, _ = trained("nt", SUBSTITUTE, data, plain)
    scores = judged(name, net, substitute, data, args)
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
        settings={
            **flags_of(method, seed, args),
            **told,
            "n": args.n,
            "digest": tr.contract.digest(*net.get_weights()),
        },
    )
    card = tr.report.card(
        name,
        models={METHODS[method].title: entry},
        data={
            "name": "MNIST",
            "note": f"clean and FGSM on all test images, the others on the first {args.n}; "
            f"transfers from the same net, naturally trained from another seed ({SUBSTITUTE})",
        },
        threat=mnist.THREAT,
        command=command(method, seed, args),
    )
    card.save(args.out / name)
