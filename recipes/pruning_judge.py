"""Judging and shipping the nets of a pruning run: attacks, files, latency, card, curve."""

import json
import pathlib
import time

import tfrobust as tr
from recipes import command, pruning_stages


def entry(net, label, scene, data, args, folder, told):
    """Attacks `net`: FGSM on all test images, PGD-40 x 5 and AutoAttack on the first `args.n`.

    What was done before on this very net is taken up again; the start is judged once for all runs.

    Args:
        folder: Where half of a judgement is kept, under the label, the weights and `args.n`.
        told: What the net took: seconds, epochs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = f"judge_{label}_{pruning_stages.digest(net)}"
    test, began = (data.x_test, data.y_test), time.perf_counter()
    whole = tr.evaluate.robustness(
        net, test, [tr.attacks.FGSM(scene.threat)], state=folder / f"{state}_all.npz"
    )
    first = tr.evaluate.robustness(
        net,
        test,
        [scene.judge(args.smoke), scene.suite(args.smoke)],
        max_examples=args.n,
        state=folder / f"{state}_first{args.n}.npz",
    )
    fgsm = whole.attacks[0].rate
    print(f"{folder.name} {label}: {whole.n} images, clean {whole.clean}, FGSM {fgsm}")
    print(first)
    print(f"judged in {time.perf_counter() - began:.0f} s", flush=True)
    return tr.report.Entry(
        scores=[whole, first],
        footprint=tr.footprint.measure(net),
        seconds=told["seconds"][0],
        settings={**command.told(args, told), "zeros": pruning_stages.zeros(net)},
    )


def add_files(entry, net, label, scene, data, args, folder):
    """Exports `net`, replays attacks on its files, and times them beside that of the start."""
    sparse = pruning_stages.zeros(net) > 0.8  # below, sparse int8 files are the larger ones
    options = {"calibration": data.x_train[:500], "sparse": sparse}
    entry.files = [
        tr.export.keras_file(net, folder / f"model_{label}.keras"),
        tr.export.tflite(net, folder / f"model_{label}.tflite", **options),
        tr.export.tflite(net, folder / f"model_{label}_int8.tflite", quantize="int8", **options),
    ]
    steps, first = 4 if args.smoke else 40, slice(args.n or 1000)
    size = scene.judge_step * 40 / steps
    x, y = data.x_test[first], data.y_test[first]
    entry.transfer = replays(net, entry.files[1:], scene.threat, size, x, y, steps)
    unpruned = pruning_stages.start_net(args)
    start = args.work / f"start_{pruning_stages.digest(unpruned)}.tflite"
    if not start.exists():
        tr.export.tflite(unpruned, start)
    paths = [start, *(file.path for file in entry.files[1:])]
    names = ["unpruned net, float32", "float32", "int8"]
    entry.latency = dict(zip(names, tr.export.latencies(paths), strict=True))


def replays(net, files, threat, step_size, x, y, steps=40):
    """What images of PGD against `net` do to its TensorFlow Lite files."""
    # The last iterate: a first fooling point lies on the boundary, where rounding undoes it.
    attack = tr.attacks.PGD(threat, steps=steps, step_size=step_size, last_iterate=True)
    x_adv = attack(net, x, y)
    return [
        tr.evaluate.transfer(
            lambda images, path=file.path: tr.export.predict(path, images),
            x_adv,
            y,
            x=x,
            name=f"TFLite {file.quantize or 'float32'}",
            attack=attack.name,
        )
        for file in files
    ]


def ship(name, entries, scene, args, work):
    """Writes the card and the curve."""
    folder = args.out / name
    card = tr.report.card(
        name,
        models=entries,
        data={
            "name": scene.title,
            "note": (
                f"clean and FGSM on all test images, PGD and AutoAttack on the first {args.n}"
                if args.n
                else "all test images"
            )
            + scene.note,
        },
        threat=scene.threat,
        command=args.command,
        reference="before pruning" if "before pruning" in entries else None,
    )
    card.save(folder)
    curve = work / "ladder" / "curve.json"
    if curve.exists():
        path = tr.files.target(folder / "curve.json")
        text = json.dumps(json.loads(curve.read_text()), indent=1) + "\n"
        tr.files.replace(path, lambda p: pathlib.Path(p).write_text(text))
    print(f"{folder}: {', '.join(entries)}", flush=True)
