"""How each row of the ANP-VS tables is trained: stages that rows share, each done once and kept.

A stage is one `fit` below `--work`, named by what it trains, by the options that it depends on and
by its seed. It is resumed where a kill left it and taken as it is when it is done, so that every
table takes the same standard net, the same adversarially trained one and the same masks, and each
row counts the seconds of all stages that it stands on.

Adversarial rows have the paper's loss, (CE(x) + 2 CE(x'))/3 + weight decay, where they are not
another method; the attack in training is PGD-7 with steps of epsilon / 4.
"""

import dataclasses
import json

import keras
import numpy as np

import tfrobust as tr
from recipes import mnist, pruning_stages
from recipes.command import keep

KINDS = {"bbd": "BetaBernoulliMask", "vib": "VIBMask"}
MIX, DECAY = (1.0, 2.0), 1e-4
CLEAN = 5  # epochs on clean images for one of the budget, which is of adversarial ones


@dataclasses.dataclass(frozen=True)
class Setting:
    """What differs between the data sets.

    Args:
        net: Name of its builder in `tr.models`.
        defaults: Of the flags of the net, its start and the masks.
        takes: Those flags that the builder takes.
        batch: Images.
        whole: Training images of the data set, N in (beta / N) KL with `--train-images` too.
        sparsity: Of the paper's ADMM rows.
        prior: Of Gaussian weights, its sigma and theirs at the start.
        look: Batches between two looks at the FLOP gain of masks.
        augment: Of training images.
    """

    net: str
    defaults: dict
    takes: tuple
    batch: int
    whole: int
    sparsity: float
    prior: tuple
    look: int
    augment: object = None


NETS = {
    "mnist": Setting(
        "lenet5_caffe",
        {"width": 1.0, "warm": 0, "beta": 100.0, "vib_beta": 100.0},
        ("width",),
        mnist.BATCH,
        60_000,
        0.80,
        (1.0, 0.0486),
        20,
    ),
    "cifar10": Setting(
        "vgg16",
        {"width": 0.25, "dropout": 0.0, "warm": 16, "beta": 100.0, "vib_beta": 50.0},
        ("width", "dropout"),
        64,
        50_000,
        0.75,
        (0.1, 0.00672),
        5,
        tr.data.CropFlip(pad=4),
    ),
}


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
        args: Flags of the recipe: data, epochs, width, smoke, work, and what rows depend on.
        data: `tr.data.Dataset`.
        seed: Integer.
    """

    def __init__(self, args, data, seed):
        self.args, self.data, self.seed = args, data, seed
        self.scene, self.setting = pruning_stages.SETTINGS[args.data], NETS[args.data]
        self.epochs, self.warm = args.epochs, 1 if args.smoke and args.warm else args.warm

    def part(self, share):
        """So many epochs of the budget, at least one."""
        return max(1, round(share * self.epochs))

    def net(self, mask=None):
        """The network of the data set, from random weights of this seed."""
        keras.utils.set_random_seed(self.seed)
        options = {name: getattr(self.args, name) for name in self.setting.takes}
        return getattr(tr.models, self.setting.net)(mask=mask, **options)

    def copy(self, net):
        """A net of the same weights."""
        other = self.net()
        other.set_weights(net.get_weights())
        return other

    def masked(self, start, kind, **options):
        """`start` with masks of a kind, each with noise of its own."""
        names, layer = iter(range(1000)), getattr(tr.layers, KINDS[kind])
        net = self.net(
            lambda name: layer(seed=1000 * self.seed + next(names), name=name, **options)
        )
        mnist.copy_by_name(start, net)
        return net

    def batches(self):
        x, y, setting = self.data.x_train, self.data.y_train, self.setting
        return tr.data.Batches(x, y, setting.batch, seed=self.seed, augment=setting.augment)

    def stage(self, name, before, net, epochs, game_of, rate=2e-3, callbacks=()):
        """Trains `net` in the game that `game_of(net, steps)` makes: `Trained`.

        Args:
            before: `Trained` that the stage starts from, or None.
            rate: Largest learning rate of a cycle; None leaves the optimizers to the game.
        """
        folder = self.args.work / f"{self.args.data}_{name}_s{self.seed}"
        seconds, done = (before.seconds, before.epochs) if before else ([0.0, 0.0], {})
        flags, steps = self.flags(net, epochs, done), len(self.batches()) * epochs
        told = self.begun(folder, flags)
        game, weights = game_of(net, steps), folder / "game.weights.h5"
        if told is not None:
            game.load_weights(weights)
        else:
            optimizer = None
            if rate is not None:
                optimizer = keras.optimizers.Adam(mnist.one_cycle(rate, steps))
            game.compile(optimizer)
            clock = mnist.train(
                game, self.batches(), epochs, folder / "fit", True, callbacks=callbacks
            )
            tr.files.replace(tr.files.target(weights), game.save_weights)
            told = {"seconds": clock.done, "epochs": clock.epochs}
            keep(folder / "stage.json", told)
        total = [a + b for a, b in zip(seconds, told["seconds"], strict=True)]
        return Trained(net, total, {**done, name: told["epochs"]})

    def begun(self, folder, flags):
        """What a stage took, None where it is not done; refuses other flags, done or killed."""
        path = folder / "flags.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if differ := [k for k in flags.keys() | kept.keys() if kept.get(k) != flags.get(k)]:
                raise SystemExit(
                    f"`--work` must hold stages of the same flags, or be a new folder. Received: "
                    f"{folder} with other {', '.join(sorted(differ))}"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise SystemExit(
                f"`--work` must hold stages with their flags, or be a new folder. Received: "
                f"{folder} without {path.name}"
            )
        keep(path, flags)
        done = folder / "stage.json"
        return json.loads(done.read_text()) if done.exists() else None

    def flags(self, net, epochs, before):
        """What a stage depends on beside its name."""
        setting = self.setting
        return {
            "data": self.args.data,
            **{name: getattr(self.args, name) for name in setting.takes},
            "train_images": len(self.data.x_train),
            "batch": setting.batch,
            "augment": repr(setting.augment),
            "whole": setting.whole,
            "look": setting.look,
            "attack": repr(self.scene.training),
            "epochs": epochs,
            "before": before,
            "weights at the start": tr.contract.digest(*net.get_weights()),
        }

    # --- games ------------------------------------------------------------------------------------

    def suppression(self, weight, net):
        """VS as a mean over the units of the whole network: those that were cut do not move."""
        if not weight:
            return []
        units = units_of(self.net(), net)
        return [
            tr.regularizers.VulnerabilitySuppression(weight, "mean", [*units], [*units.values()])
        ]

    def ramp(self, steps, wanted):
        epsilon = self.scene.threat.epsilon
        return mnist.rising_epsilon(steps, epsilon) if wanted else None

    def adversarial(self, suppress=0.0, ramp=False, mix=MIX, weight_decay=DECAY, **options):
        """A maker of adversarial training on this scene."""
        return lambda net, steps: tr.training.AdversarialTraining(
            net,
            self.scene.training,
            mix=mix,
            weight_decay=weight_decay,
            epsilon=self.ramp(steps, ramp),
            regularizers=self.suppression(suppress, net),
            seed=self.seed,
            **options,
        )


# --- rows: functions of a run ---------------------------------------------------------------------


def standard(run):
    """Clean images alone, for the epochs that adversarial rows start from, or for the budget."""

    def make(net, steps):
        return tr.training.AdversarialTraining(net, None, weight_decay=DECAY)

    return run.stage("standard", None, run.net(), run.warm or run.epochs, make)


def beginning(run):
    """(Stage, net) that adversarial rows start from: the standard net, or random weights."""
    if not run.warm:
        return None, run.net()
    start = standard(run)
    return start, run.copy(start.net)


def at(run, share=1.0, suppress=0.0, name="at", **options):
    """Adversarial training; epsilon rises over the first fifth."""
    name += f"_{share:g}" * (share != 1) + f"_vs{suppress:g}" * bool(suppress)
    make = run.adversarial(suppress, ramp=True, **options)
    return run.stage(name, *beginning(run), run.part(share), make)


def pretrained_at(run):
    """The standard net trained on attacked images alone; epsilon rises as in AT."""
    start = standard(run)
    make = run.adversarial(ramp=True, mix=(0.0, 1.0))
    return run.stage("pretrained_at", start, run.copy(start.net), run.epochs, make)


def trades(run):
    scene = run.scene
    steps = scene.training.steps
    attack = tr.training.trades_attack(scene.threat, steps, scene.threat.epsilon / 4)

    def make(net, count):
        return tr.training.TRADES(
            net, attack, beta=scene.beta, epsilon=run.ramp(count, True), seed=run.seed
        )

    return run.stage("trades", *beginning(run), run.epochs, make)


def at_bnn(run):
    """Gaussian weights with the release's prior for LeNet: N(0, 1), sigma 0.0486 at the start."""
    prior, initial = run.setting.prior
    weights = tr.layers.GaussianWeights(
        run.setting.whole, prior=prior, initial=initial, beta=0.01, seed=run.seed
    )
    make = run.adversarial(ramp=True, weight_decay=0.0, transform=weights)
    found = run.stage("at_bnn", *beginning(run), run.epochs, make)
    return dataclasses.replace(found, weights=weights)


def admm(run):
    """Half of the budget AT, 0.3 of it ADMM, the rest fine-tuning of what is left."""
    start, fraction = at(run, 0.5), run.setting.sparsity
    net, make = run.copy(start.net), run.adversarial(mix=(0.0, 1.0))
    pull = tr.pruning.ADMM(fraction, every=1, rho=1e-3, growth=3.0)
    drawn = run.stage("admm", start, net, run.part(0.3), make, rate=5e-4, callbacks=[pull])
    tr.pruning.prune(drawn.net, fraction)
    tr.pruning.freeze(drawn.net)
    return run.stage("admm_tuned", drawn, drawn.net, run.part(0.2), make, rate=1e-3)


def bp(run, kind="bbd"):
    """Masks and weights on clean images, from the standard net."""
    start, beta = standard(run), run.args.bp_beta
    net, size = run.masked(start.net, kind), run.setting.whole

    def make(net, steps):
        return tr.training.BP(net, beta=beta, train_size=size, seed=run.seed)

    return run.stage(f"bp_{kind}_{beta:g}", start, net, CLEAN * run.epochs, make, rate=None)


def pat(run, kind="bbd"):
    """The masks of BP, frozen; then adversarial training of what they leave."""
    learned = bp(run, kind)
    tr.layers.freeze_masks(learned.net)
    name = f"pat_{kind}_{run.args.bp_beta:g}"
    return run.stage(name, learned, learned.net, run.epochs, run.adversarial(), rate=1e-3)


def anp(run, kind="bbd", suppress=0.0):
    """Half of the budget AT, masks until the FLOP gain, shrink, fine-tune the small net.

    The fine-tuning takes as many epochs as the budget has, which are short ones. With a gain of 0
    the masks learn for half of the budget whatever they reach.
    """
    args, start = run.args, at(run, 0.5)
    beta = args.beta if kind == "bbd" else args.vib_beta
    name = f"anp_{kind}_{beta:g}_{args.gain:g}x" + f"_vs{suppress:g}" * bool(suppress)
    name += f"_cost{args.cost_power:g}" * (args.cost_power != 0.5)
    net = run.masked(start.net, kind, **({"initial_a": 2.0} if kind == "bbd" else {}))
    goal = 1.0 if args.smoke else args.gain  # masks hardly move in an epoch of 512 images
    stop = Stop(net, goal, run.net(), run.setting.look)

    def make(net, steps):
        return tr.training.ANP(
            net,
            run.scene.training,
            beta=beta,
            train_size=run.setting.whole,
            kl_weights=cost_weights(net, args.cost_power),
            mix=MIX,
            weight_decay=DECAY,
            regularizers=run.suppression(suppress, net),
            seed=run.seed,
        )

    epochs = run.part(1.0 if goal else 0.5)
    learned = run.stage(name, start, net, epochs, make, rate=None, callbacks=[stop] if goal else [])
    flag = "--beta" if kind == "bbd" else "--vib-beta"
    if empty := [mask.name for mask in tr.layers.masks(learned.net) if not mask.keep().any()]:
        raise SystemExit(
            f"`{flag}` is too large: {', '.join(empty)} kept no unit. Received: {beta:g}"
        )
    if stop.gain() < goal:
        raise SystemExit(
            f"`{flag}` is too small: in {epochs} epochs the masks reached {stop.gain():.2f} of "
            f"{goal:g} x fewer FLOPs. Received: {beta:g}"
        )
    small = tr.shrink.compact(learned.net)
    return run.stage(f"{name}_tuned", learned, small, run.epochs, run.adversarial(suppress))


class Stop(keras.callbacks.Callback):
    """Ends `fit` when the masks have reached a FLOP gain."""

    def __init__(self, net, goal, full, every):
        super().__init__()
        self.net, self.goal, self.every = net, goal, every
        self.full = tr.footprint.measure(full).flops

    def gain(self):
        flops = tr.footprint.measure(self.net).flops
        return self.full / flops if flops else float("inf")

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self.every == 0 and self.gain() >= self.goal:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self.gain() >= self.goal:
            self.model.stop_training = True


def cost_weights(net, power):
    """{mask: weight}: (FLOPs that one unit costs) ** power, 1 in the mean over units."""
    costs = {name: cost**power for name, cost in tr.footprint.unit_costs(net).items()}
    count = {mask.name: int(mask.keep().size) for mask in tr.layers.masks(net)}
    mean = sum(costs[name] * count[name] for name in count) / sum(count.values())
    return {name: cost / mean for name, cost in costs.items()}


def units_of(full, net):
    """Units of the unshrunk network at each feature of V: {layer: count}.

    These are the activations and, as in the release, VGG's dense14 before its normalization too.
    """
    names = tr.regularizers.feature_layers(net)
    if "relu_dense14" in names:
        names.insert(names.index("relu_dense14"), "dense14")
    return {name: int(np.prod(full.get_layer(name).output.shape[1:])) for name in names}
