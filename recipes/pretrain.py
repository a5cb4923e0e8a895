"""A start for robust pruning: one of tfrobust's nets, trained adversarially or naturally.

Paper: Madry et al., 2018 (arXiv 1706.06083) for "robust"; plain cross-entropy for "nat".
Command: python -m recipes.pretrain --width 0.35 --epochs 10 --peak 1.5e-3
Time: 849 processor seconds of training (CIFAR-10, CIFAR-large at 0.35 of its width).
Expected: 35.5 % of the training images right under PGD-7 in the last epoch: a small net, a few
epochs, no augmentation. The card in saved_models/ has what the judge said.
"""

import keras

import tfrobust as tr
from recipes import mnist, pruning_stages
from recipes import pruning_judge as judge
from recipes.command import refuse_other_flags

NETS = ("cifar_large", "lenet5_caffe", "lenet300_100", "linear", "all_cnn", "vgg_like", "vgg16_bn",
        "resnet32", "wide_resnet28")  # fmt: skip


def build(name, shape, width):
    """A net of `tr.models` for images of that shape."""
    if name == "linear":  # has no hidden units
        if width != 1:
            raise SystemExit(f"`--width` is for nets with hidden units. Received: {width}")
        return tr.models.linear(input_shape=shape)
    return getattr(tr.models, name)(input_shape=shape, width=width)


def main():
    args = mnist.arguments(
        __doc__,
        epochs=14,
        data={"choices": list(pruning_stages.SETTINGS), "default": "cifar10"},
        net={"choices": NETS, "default": "cifar_large"},
        width={"type": float, "default": 1.0},
        loss={"choices": ["robust", "nat"], "default": "robust"},
        peak={"type": float, "default": 1e-3, "help": "largest learning rate"},
        train_only={"action": "store_true", "help": "stop before judging (--resume goes on)"},
        name={"help": "folder below --out (default: <data>_at, or <data>_natural)"},
        n={"type": int, "default": 1000, "help": "test images for PGD and AutoAttack"},
    )
    scene, data = pruning_stages.SETTINGS[args.data], pruning_stages.dataset(args)
    name = args.name or f"{args.data}_{'at' if args.loss == 'robust' else 'natural'}"
    if (args.out / name / "card.json").exists() and not args.resume:
        raise SystemExit(f"`--name` must be new, or add --resume. Received: {args.out / name}")
    if not args.width > 0:
        raise SystemExit(f"`--width` must be > 0. Received: {args.width}")
    refuse_other_flags(args.out / name, args)
    work = args.work / name
    pruning_stages.same_run(args, work)
    keras.utils.set_random_seed(args.seed)
    net = build(args.net, data.x_train.shape[1:], args.width)
    net.summary()
    if args.loss == "robust":
        clock = pruning_stages.from_scratch(
            net, scene, data, args.epochs, args.peak, args.seed, work / "fit", args.resume
        )
    else:
        rate = mnist.one_cycle(args.peak, pruning_stages.steps(data, args.epochs))
        game, batches = pruning_stages.player(net, "nat", scene, data, rate, args.seed)
        clock = mnist.train(game, batches, args.epochs, work / "fit", args.resume)
    told = {"seconds": clock.done, "epochs": clock.epochs}
    file = tr.export.keras_file(net, args.out / name / "model.keras")
    if not args.train_only:
        entry = judge.entry(net, name, scene, data, args, work, told)
    else:
        entry = tr.report.Entry(footprint=tr.footprint.measure(net), settings=told)
    entry.files = [file]
    title = {"robust": "AT", "nat": "natural"}[args.loss]
    judge.ship(name, {title: entry}, scene, args, work)


if __name__ == "__main__":
    main()
