"""From raw digits to a robust, shrunk, exported classifier with a card, in a few minutes on a CPU.

Trains three classifiers on scikit-learn's 8 x 8 digits (embedded, no download): a standard one, an
adversarially trained one, and one pruned by ANP-VS; shrinks the last to stock Keras layers, exports
it, judges all three and writes saved_models/quickstart/.
Papers: Madry et al., 2018 (arXiv 1706.06083); Madaan et al., 2020 (arXiv 1908.04355).
Command: python -m recipes.quickstart
Time: under 5 minutes on 2 cores. Expected: see the table it prints; 360 test images make wide
intervals.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import keras
import numpy as np
import rich

import tfrobust as tr
from recipes.command import command_line
from recipes.progress import Line

EPSILON = 0.15
THREAT = tr.threats.Linf(EPSILON)
EPS_GRID = [0.03, 0.06, 0.09, 0.12, 0.15, 0.2, 0.25, 0.35, 0.5]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, 32 test images")
    parser.add_argument("--out", default="saved_models/quickstart")
    args = parser.parse_args()
    args.epochs = 1 if args.smoke else args.epochs

    began = time.perf_counter()
    data = tr.data.load("digits")
    if args.smoke:
        data = dataclasses.replace(data, x_test=data.x_test[:32], y_test=data.y_test[:32])
    rich.print(f"[bold]tfrobust quickstart[/]  {data}, threat {THREAT}")
    nets, seconds, units = train_all(data, args)

    folder = pathlib.Path(args.out)
    small = nets["ANP-VS, shrunk"]
    files = [
        tr.export.keras_file(small, folder / "model.keras"),
        tr.export.tflite(small, folder / "model.tflite"),
        tr.export.tflite(
            small, folder / "model_int8.tflite", quantize="int8", calibration=data.x_train[:300]
        ),
    ]
    entries = {
        name: tr.report.Entry(
            scores=judge(net, data, args),
            footprint=tr.footprint.measure(net),
            files=files if net is small else [],
            latency=latency(net, files, folder) if net is small else latency(net, [], folder),
            seconds=seconds[name],
            vulnerability=vulnerability(net, data, units),
            transfer=replay(small, files[1:], data) if net is small else None,
        )
        for name, net in nets.items()
    }
    card = tr.report.card(
        "quickstart",
        models=entries,
        data={
            "name": "digits",
            "note": "scikit-learn's 8 x 8 digits, 1,437 training and 360 test images",
        },
        threat=THREAT,
        reference="standard",
        command=command_line(sys.argv[1:], "quickstart"),
        limits=["360 test images: intervals are several points wide."],
    )
    card.save(folder)
    rich.print(card)
    rich.print(
        f"\nOpen [bold]{folder / 'card.html'}[/] for the whole story; "
        f"model.keras, model.tflite and model_int8.tflite lie beside it. "
        f"All of it took {time.perf_counter() - began:.0f} s."
    )


def train_all(data, args):
    """{name: net}, {name: seconds}, units of the unshrunk net."""
    attack = tr.attacks.PGD(THREAT, steps=7)
    batches = tr.data.Batches(data.x_train, data.y_train, batch_size=64, seed=args.seed)
    nets, seconds = {}, {}

    def fit(model, title, epochs, batches=batches):
        start = time.perf_counter()
        model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[Line(title)])
        return time.perf_counter() - start

    def robust(net, title, epochs, rate):
        game = tr.training.AdversarialTraining(net, attack)
        steps = epochs * len(batches)
        game.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
            metrics=["accuracy"],
        )
        return fit(game, title, epochs)

    keras.utils.set_random_seed(args.seed)
    nets["standard"] = tr.models.digits_net()
    nets["standard"].compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    seconds["standard"] = fit(nets["standard"], "1/4 standard", args.epochs // 2 or 1)

    nets["adversarial training"] = tr.models.digits_net()
    seconds["adversarial training"] = robust(
        nets["adversarial training"], "2/4 adversarial training", args.epochs, 2e-3
    )

    masked = tr.layers.insert_masks(
        nets["adversarial training"],
        lambda name: tr.layers.BetaBernoulliMask(initial_a=2.0, seed=args.seed, name=name),
    )
    game = tr.training.ANP(
        masked,
        attack,
        beta=12.0,
        train_size=len(data.x_train),
        regularizers=[tr.regularizers.VulnerabilitySuppression(1.0)],
    )
    game.compile(
        {"weights": keras.optimizers.Adam(5e-4), "masks": keras.optimizers.Adam(2e-2)},
        metrics=["accuracy"],
    )
    pruning = fit(game, "3/4 ANP-VS: learn masks", args.epochs)
    for name, kept, count in tr.layers.kept(masked):
        rich.print(f"     {name:<24} keeps {kept} of {count} channels")
    small = tr.shrink.compact(masked)
    tuning = robust(small, "4/4 fine-tune the small net", args.epochs, 2e-3)
    nets["ANP-VS, shrunk"] = small
    seconds["ANP-VS, shrunk"] = seconds["adversarial training"] + pruning + tuning

    full = nets["standard"]
    names = tr.regularizers.feature_layers(full)
    units = {n: int(np.prod(full.get_layer(n).output.shape[1:])) for n in names}
    return nets, seconds, units


def judge(net, data, args):
    """FGSM, PGD-40 x 5, APGD-CE and APGD-T on all test images, and the curve."""
    steps = 5 if args.smoke else 40
    attacks = [
        tr.attacks.FGSM(THREAT),
        tr.attacks.PGD(THREAT, steps=steps, restarts=1 if args.smoke else 5),
        tr.attacks.APGD(THREAT, steps=10 if args.smoke else 100),
        tr.attacks.APGD(THREAT, steps=10 if args.smoke else 100, loss="dlr_targeted", targets=9),
    ]
    return tr.evaluate.robustness(
        net,
        (data.x_test, data.y_test),
        attacks,
        eps_grid=EPS_GRID,
        curve_attack=tr.attacks.PGD(THREAT, steps=20),
    )


def vulnerability(net, data, units):
    """V on PGD-40 pairs of the test images, over the units of the unshrunk net."""
    attack = tr.attacks.PGD(THREAT, steps=40, last_iterate=True)
    return tr.diagnostics.vulnerability(net, data.x_test, data.y_test, attack, units=units)


def latency(net, files, folder):
    """Milliseconds for one image through TensorFlow Lite on one thread."""
    if files:
        values = tr.export.latencies([file.path for file in files[1:]])
        return dict(zip(("TFLite float32", "TFLite int8"), values, strict=True))
    path = folder / ".latency.tflite"
    tr.export.tflite(net, path)
    values = tr.export.latencies([path])
    path.unlink()
    return {"TFLite float32": values[0]}


def replay(net, files, data):
    """Adversarial images of the Keras twin, replayed on the exported files."""
    attack = tr.attacks.PGD(THREAT, steps=40, last_iterate=True)
    x_adv = attack(net, data.x_test, data.y_test)
    return [
        tr.evaluate.transfer(
            lambda images, path=file.path: tr.export.predict(path, images),
            x_adv,
            data.y_test,
            x=data.x_test,
            name=f"TFLite {file.quantize or 'float32'}",
            attack=attack.name,
        )
        for file in files
    ]


if __name__ == "__main__":
    main()
