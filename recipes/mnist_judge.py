"""Judging and shipping one MNIST net: all attacks, files, latency, card.

AutoAttack follows in its own recipe: python -m recipes.autoattack.

`ship` writes into saved_models/<name>/ model.keras, model.tflite, model_int8.tflite and the card.
"""

import tfrobust as tr
from recipes import mnist, pruning_judge
from recipes.command import settings

EPS_GRID = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]


def scores_of(net, data, args, folder):
    """FGSM and PGD-40 x 5 on all test images, the rest on the first 1,000."""
    paper, ours, first = mnist.judges(args)
    folder.mkdir(parents=True, exist_ok=True)
    if not args.resume:
        for path in folder.glob("judge_*"):
            path.unlink()
    test = (data.x_test, data.y_test)
    single = tr.evaluate.robustness(net, test, paper, state=folder / "judge_paper.npz")
    whole = tr.evaluate.robustness(net, test, ours, state=folder / "judge_all.npz")
    print(single, whole, sep="\n", flush=True)
    part = tr.evaluate.robustness(
        net,
        test,
        first,
        eps_grid=EPS_GRID,
        curve_attack=tr.attacks.PGD(mnist.THREAT, steps=20, step_size=0.03),
        max_examples=1000,
        state=folder / "judge_first.npz",
    )
    print(part, flush=True)
    return [single, whole, part]


def vulnerability_of(net, data):
    """V on PGD-40 pairs of the first 1,000 test images, over the units of the unshrunk network."""
    x, y = data.x_test[:1000], data.y_test[:1000]
    attack = tr.attacks.PGD(mnist.THREAT, steps=40, step_size=0.01, last_iterate=True)
    return tr.diagnostics.vulnerability(net, x, y, attack, units=mnist.units_of(net))


def exported_files(net, data, folder):
    """Writes three files; replays adversarial images on the two TFLite ones."""
    files = [
        tr.export.keras_file(net, folder / "model.keras"),
        tr.export.tflite(net, folder / "model.tflite"),
        tr.export.tflite(
            net, folder / "model_int8.tflite", quantize="int8", calibration=data.x_train[:500]
        ),
    ]
    first = data.x_test[:1000], data.y_test[:1000]
    return files, pruning_judge.replays(net, files[1:], mnist.THREAT, 0.01, *first)


def ship(name, title, net, data, args, seconds, epoch):
    """Judges `net`, writes its files and its card, prints the table.

    Args:
        seconds: [wall, processor] seconds of all training that led to this net.
        epoch: Processor seconds of one epoch of its last stage.
    """
    folder = args.out / name
    scores = scores_of(net, data, args, args.work / name)
    files, replays = exported_files(net, data, folder)
    full = tr.footprint.measure(tr.models.lenet5_caffe())
    entry = tr.report.Entry(
        scores=scores,
        footprint=tr.footprint.measure(net),
        files=files,
        latency=latencies(files[1:], args),
        seconds=seconds[0],
        vulnerability=vulnerability_of(net, data),
        transfer=replays,
        settings={**settings(args), "seconds": seconds, "epoch_seconds": epoch},
    )
    card = tr.report.card(
        name,
        models={title: entry, "LeNet-5-Caffe, full size": tr.report.Entry(footprint=full)},
        data={
            "name": "MNIST",
            "note": "60,000 training images; FGSM and PGD-40 on all 10,000 test images, "
            "APGD and the curve on the first 1,000",
        },
        threat=mnist.THREAT,
        command=args.command,
    )
    card.save(folder)
    print(f"{folder}: {title}, {entry.footprint.flops:,} FLOPs", flush=True)
    return card


def latencies(files, args):
    """Milliseconds for one image on one thread, beside a full-size net's file in the same run."""
    reference = args.work / "full.tflite"
    if not reference.exists():
        tr.export.tflite(tr.models.lenet5_caffe(), reference)
    values = tr.export.latencies([reference, *(file.path for file in files)])
    names = ["unpruned net, float32", "float32", "int8"]
    return dict(zip(names, values, strict=True))
