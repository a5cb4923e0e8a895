"""How each row of the ANP-VS tables is trained: stages that rows share, each done once and kept.

A stage is one `fit` below `--work`, named by what it trains and its seed. It is resumed where a
kill left it and taken as it is when it is done, so that every table takes the same standard net,
the same adversarially trained one and the same masks, and each row counts the seconds of all
stages that it stands on.
"""

import dataclasses
import json
import pathlib

import keras
import numpy as np

import tfrobust as tr
from recipes import mnist, pruning_stages
from recipes.command import settings

KINDS = {"bbd": "BetaBernoulliMask", "vib": "VIBMask"}
NETS = {"mnist": ("lenet5_caffe", 1.0), "cifar10": ("vgg16", 0.25)}
SPARSITY = {"mnist": 0.80, "cifar10": 0.75}  # of the paper's ADMM rows


@dataclasses.dataclass
class Trained:
    """A net, the [wall, processor] seconds of all its stages, and their epochs by name."""

    net: keras.Model
    seconds: list
    epochs: dict
    weights: object = None  # `tr.layers.GaussianWeights`, where the net is the mean of many


class Run:
    """The stages of one seed.

    Args:
        args: Flags of the recipe: data, epochs, width, seed, beta, suppress, gain, smoke, work.
        data: `tr.data.Dataset`.
        seed: Integer.
    """

    def __init__(self, args, data, seed):
        self.args, self.data, self.seed = args, data, seed
        self.scene = pruning_stages.SETTINGS[args.data]
        self.epochs = args.epochs

    def part(self, share):
        """So many epochs of the budget, at least one."""
        return max(1, round(share * self.epochs))

    def net(self, mask=None):
        """The network of the data set, from random weights of this seed."""
        keras.utils.set_random_seed(self.seed)
        name, _ = NETS[self.args.data]
        return getattr(tr.models, name)(mask=mask, width=self.args.width)

    def masked(self, start, kind):
        """`start` with masks of a kind, open at first."""
        names, options = iter(range(1000)), {"initial_a": 2.0} if kind == "bbd" else {}
        layer = getattr(tr.layers, KINDS[kind])
        net = self.net(
            lambda name: layer(seed=1000 * self.seed + next(names), name=name, **options)
        )
        mnist.copy_by_name(start, net)
        return net

    def batches(self, labels=None):
        y = self.data.y_train if labels is None else labels
        return tr.data.Batches(self.data.x_train, y, mnist.BATCH, seed=self.seed)

    def stage(self, name, before, net, epochs, game_of, rate=2e-3, callbacks=(), labels=None):
        """Trains `net` in the game that `game_of(net, steps)` makes: `Trained`.

        Args:
            before: `Trained` that the stage starts from, or None.
            rate: Largest learning rate of a cycle; None leaves the optimizers to the game.
        """
        folder = self.args.work / f"{self.args.data}_{name}_s{self.seed}"
        seconds, done = (before.seconds, before.epochs) if before else ([0.0, 0.0], {})
        if (told := self.told(folder, epochs, done)) is not None:
            net.load_weights(folder / "net.weights.h5")
        else:
            steps = pruning_stages.steps(self.data, epochs)
            game = game_of(net, steps)
            kinds = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
            optimizer = None
            if rate is not None:
                optimizer = keras.optimizers.Adam(mnist.one_cycle(rate, steps))
            game.compile(optimizer, loss=kinds[labels is not None](from_logits=True))
            clock = mnist.train(
                game, self.batches(labels), epochs, folder / "fit", True, callbacks=callbacks
            )
            tr.files.replace(tr.files.target(folder / "net.weights.h5"), net.save_weights)
            told = {"seconds": clock.done, "epochs": clock.epochs}
            self.keep(folder, epochs, done, told)
        total = [a + b for a, b in zip(seconds, told["seconds"], strict=True)]
        return Trained(net, total, {**done, name: told["epochs"]})

    def told(self, folder, epochs, before):
        """What `keep` wrote, None where the stage is not done; refuses other flags."""
        flags, path = self.flags(epochs, before), folder / "stage.json"
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        if kept["flags"] != flags:
            differ = [k for k, v in flags.items() if kept["flags"].get(k) != v]
            raise SystemExit(
                f"`--work` must hold stages of the same flags, or be a new folder. Received: "
                f"{folder} with other {', '.join(differ)}"
            )
        return kept

    def keep(self, folder, epochs, before, told):
        text = json.dumps({**told, "flags": self.flags(epochs, before)}, indent=1) + "\n"
        path = tr.files.target(folder / "stage.json")
        tr.files.replace(path, lambda p: pathlib.Path(p).write_text(text))

    def flags(self, epochs, before):
        """What a stage of this run depends on."""
        free = {"rows", "seeds", "seed", "n", "grid", "suppress", "beta", "vib_beta", "bp_beta"}
        own = {k: v for k, v in settings(self.args).items() if k not in free}
        return json.loads(json.dumps({**own, "stage_epochs": epochs, "before": before}))

    # --- games ------------------------------------------------------------------------------------

    def suppression(self, weight):
        return [tr.regularizers.VulnerabilitySuppression(weight)] if weight else []

    def ramp(self, steps, wanted):
        epsilon = self.scene.threat.epsilon
        return mnist.rising_epsilon(steps, epsilon) if wanted else None

    def adversarial(self, suppress=0.0, ramp=False, **options):
        """A maker of adversarial training on this scene."""
        return lambda net, steps: tr.training.AdversarialTraining(
            net,
            self.scene.training,
            epsilon=self.ramp(steps, ramp),
            regularizers=self.suppression(suppress),
            seed=self.seed,
            **options,
        )


# --- rows: functions of a run ---------------------------------------------------------------------


def standard(run):
    game = lambda net, steps: tr.training.AdversarialTraining(net, None, weight_decay=1e-4)  # noqa: E731
    return run.stage("standard", None, run.net(), run.epochs, game)


def at(run, share=1.0, suppress=0.0):
    """Adversarial training from random weights; epsilon rises over the first fifth."""
    name = "at" + f"_{share:g}" * (share != 1) + f"_vs{suppress:g}" * bool(suppress)
    make = run.adversarial(suppress, ramp=True)
    return run.stage(name, None, run.net(), run.part(share), make)


def pretrained_at(run):
    """Adversarial training from the standard net."""
    start = standard(run)
    net = run.net()
    net.set_weights(start.net.get_weights())
    return run.stage("pretrained_at", start, net, run.epochs, run.adversarial(), rate=1e-3)


def trades(run):
    scene = run.scene
    steps = scene.training.steps
    attack = tr.training.trades_attack(scene.threat, steps, scene.threat.epsilon / 4)

    def make(net, count):
        return tr.training.TRADES(
            net, attack, beta=scene.beta, epsilon=run.ramp(count, True), seed=run.seed
        )

    return run.stage("trades", None, run.net(), run.epochs, make)


def at_bnn(run):
    """Gaussian weights with the release's prior for LeNet: N(0, 1), sigma 0.0486 at the start."""
    priors = {"mnist": (1.0, 0.0486), "cifar10": (0.1, 0.00672)}[run.args.data]
    weights = tr.layers.GaussianWeights(
        len(run.data.x_train), prior=priors[0], initial=priors[1], beta=0.01, seed=run.seed
    )
    found = run.stage(
        "at_bnn", None, run.net(), run.epochs, run.adversarial(ramp=True, transform=weights)
    )
    return dataclasses.replace(found, weights=weights)


def admm(run):
    """Half of the budget AT, a quarter ADMM, a quarter fine-tuning of what is left."""
    start, fraction = at(run, 0.5), SPARSITY[run.args.data]
    net = run.net()
    net.set_weights(start.net.get_weights())
    pull = tr.pruning.ADMM(fraction, every=1, rho=1e-3, growth=3.0)
    drawn = run.stage(
        "admm", start, net, run.part(0.25), run.adversarial(), rate=5e-4, callbacks=[pull]
    )
    tr.pruning.prune(drawn.net, fraction)
    tr.pruning.freeze(drawn.net)
    return run.stage("admm_tuned", drawn, drawn.net, run.part(0.25), run.adversarial(), rate=1e-3)


def bp(run, kind="bbd", beta=None):
    """Masks and weights on clean images, from the standard net."""
    start = standard(run)
    beta = run.args.bp_beta if beta is None else beta
    net, size = run.masked(start.net, kind), len(run.data.x_train)
    return run.stage(
        f"bp_{kind}_{beta:g}",
        start,
        net,
        run.epochs,
        lambda net, steps: tr.training.BP(net, beta=beta, train_size=size, seed=run.seed),
        rate=None,
    )


def pat(run, kind="bbd", beta=None):
    """The masks of BP, frozen; then adversarial training of what they leave."""
    learned = bp(run, kind, beta)
    beta = run.args.bp_beta if beta is None else beta
    tr.layers.freeze_masks(learned.net)
    return run.stage(
        f"pat_{kind}_{beta:g}", learned, learned.net, run.epochs, run.adversarial(), rate=1e-3
    )


def anp(run, kind="bbd", beta=None, suppress=0.0):
    """Half of the budget AT, masks until the FLOP gain, shrink, fine-tune the small net.

    The fine-tuning takes as many epochs as the budget has, which are short ones.
    """
    start, beta = at(run, 0.5), run.args.beta if beta is None else beta
    name = f"anp_{kind}_{beta:g}" + f"_vs{suppress:g}" * bool(suppress)
    net, size = run.masked(start.net, kind), len(run.data.x_train)
    stop = Stop(net, run.args.gain, run.net())

    def make(net, steps):
        return tr.training.ANP(
            net,
            run.scene.training,
            beta=beta,
            train_size=size,
            regularizers=run.suppression(suppress),
            seed=run.seed,
        )

    learned = run.stage(name, start, net, run.part(0.5), make, rate=None, callbacks=[stop])
    small = tr.shrink.compact(learned.net)
    make = run.adversarial(suppress)
    labels = mnist.soft_labels(start.net, run.data, run.args.distill) if run.args.distill else None
    return run.stage(f"{name}_tuned", learned, small, run.epochs, make, labels=labels)


class Stop(keras.callbacks.Callback):
    """Ends `fit` when the masks have reached a FLOP gain."""

    def __init__(self, net, gain, full, every=20):
        super().__init__()
        self.net, self.every = net, every
        self.most = tr.footprint.measure(full).flops / gain

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every == 0 and tr.footprint.measure(self.net).flops <= self.most:
            self.model.stop_training = True


def units_of(full, net):
    """Units of the unshrunk network at each feature of `net`: {layer: count}."""
    names = tr.regularizers.feature_layers(net)
    return {name: int(np.prod(full.get_layer(name).output.shape[1:])) for name in names}
