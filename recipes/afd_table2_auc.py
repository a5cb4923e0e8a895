"""Areas under accuracy over epsilon for eight attacks, and how large the representations are.

Paper: Bashivan et al. (ICLR 2021 submission), Table 2 with the grids of Table A2, Table A5 (units
and principal components), Table A7 (angles to PGD) and Figures 4, A7 and A8 (sensitivity, images
that classes like, t-SNE). Takes the nets that recipes.afd_table1 left in saved_models/mnist_rn18_*,
writes curves.json and features.json beside their cards, attack by attack, and their pictures onto
the cards: a run does only what is missing for these very weights (--again starts anew). The areas
are those of
`tr.evaluate`: per-example, an image broken at one radius stays broken at larger ones, and attacks
for the smallest change count at epsilon where that change is larger. (Foolbox clips the change to
epsilon and tests again, which is weaker.)
Command: python -m recipes.afd_table2_auc --n 500
Time: the areas take at most about 1,850 gradients for each image and net, half of them by C&W and
DeepFool; the rest is less.
"""

import argparse
import json
import pathlib

import numpy as np

import tfrobust as tr
from recipes import afd_cards, results_afd_features
from recipes.command import command_line, keep

RADII = (0, 0.1, 0.3, 0.35, 0.4, 0.45, 0.5)
SHARE = 0.025  # of epsilon, the step of PGD in L2 and L1
SEEN = 200  # test images of angles and t-SNE


def attacks_of(smoke):
    """{column: (attack, grid)}; steps scale along with epsilon."""
    t, a = tr.threats, tr.attacks
    few = (lambda n: 2) if smoke else (lambda n: n)
    search = 1 if smoke else 5
    return {
        "PGD Linf": (a.PGD(t.Linf(0.3), steps=few(40), step_size=0.033 * 0.3), RADII),
        "PGD L2": (a.PGD(t.L2(2.0), steps=few(50), step_size=SHARE * 2), (0, 2, 5, 10)),
        "PGD L1": (a.PGD(t.L1(10.0), steps=few(50), step_size=SHARE * 10), (0, 10, 50, 100, 200)),
        "FGSM": (a.FGSM(t.Linf(0.3)), RADII),
        "MIM": (a.MIM(t.Linf(0.3), steps=few(40), step_size=0.01), (0, 0.1, 0.3, 0.5, 0.8, 1.0)),
        "DDN": (a.DDN(t.L2(2.0), steps=few(100)), (0, 1, 2, 5)),
        "DeepFool": (a.DeepFool(t.Linf(0.3), steps=few(50)), RADII),
        "C&W": (
            a.CarliniWagner(t.L2(1.0), search_steps=search, steps=few(100), step_size=0.05),
            (0, 0.5, 1, 1.5, 2),
        ),
    }


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder with mnist.npz (default: TFROBUST_DATA_DIR)")
    parser.add_argument("--models", nargs="+", help="folders (default: all nets of Table 1)")
    parser.add_argument("--n", type=int, default=500, help="test images of a curve")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    parser.add_argument("--smoke", action="store_true", help="an untrained net, under a minute")
    parser.add_argument("--work", default="runs", help="folder of checkpoints")
    args = parser.parse_args()
    args.work = pathlib.Path(args.work) / "afd_table2"
    if args.smoke:
        args.n, args.models = 8, [_untrained(args.work / "smoke" / "saved_models")]
    found = [
        folder
        for method in afd_cards.TABLE1
        for folder, _, _ in afd_cards.cards(method, pathlib.Path("saved_models")).values()
    ]
    args.models = [pathlib.Path(path) for path in args.models or found]
    wrong = [str(path) for path in args.models if not (path / "model.keras").exists()]
    if wrong or not args.models:
        raise SystemExit(f"`--models` must be folders with model.keras. Received: {wrong}")
    for path in args.models:
        there = (path / "card.json").exists()
        count = len(tr.report.load(path).to_dict()["models"]) if there else 0
        if count != 1:
            raise SystemExit(f"`--models` must have a card of one net. Received: {path}, {count}")
    if not 4 <= args.n:
        raise SystemExit(f"`--n` must be at least 4. Received: {args.n}")
    return args


def _untrained(root):
    """A net and its card, for --smoke."""
    net = tr.models.unit_features(tr.models.lenet5_caffe(widths=(32, 64, 64), width=0.125))
    folder = root / "mnist_lenet_afd"
    entry = tr.report.Entry(
        files=[tr.export.keras_file(net, folder / "model.keras")],
        settings={"digest": tr.contract.digest(*net.get_weights())},
    )
    tr.report.card("smoke", models={"AFD": entry}).save(folder)
    return folder


def measured(path, again):
    return json.loads(path.read_text()) if path.exists() and not again else {}


def mark_of(net, args):
    """What a measurement belongs to."""
    return {"n": args.n, "net": tr.contract.digest(*net.get_weights())}


def curves(net, folder, data, args):
    """Areas of all attacks, into curves.json after each of them."""
    path, mark = folder / "curves.json", mark_of(net, args)
    told = {k: v for k, v in measured(path, args.again).items() if mark.items() <= v.items()}
    for name, (attack, grid) in attacks_of(args.smoke).items():
        if name in told:
            continue
        smallest = isinstance(attack, tr.attacks.MinimumNorm)
        file = f"{folder.name}_{mark['net'][:8]}_{name.replace(' ', '_')}.npz"
        scores = tr.evaluate.robustness(
            net,
            data,
            [attack] if smallest else [],
            eps_grid=list(grid),
            curve_attack=attack,
            max_examples=args.n,
            state=None if args.again else args.work / file,
        )
        rule = "smallest change > epsilon" if smallest else "attacked at each radius"
        told[name] = {**scores.curve.to_dict(), **mark, "rule": rule}
        areas = {key: tr.evaluate.Curve.from_dict(told[key]) for key in told}
        onto_card(folder, args, areas=areas)
        keep(path, told)
        print(f"{folder.name} {name}: area {scores.curve.auc:.4f}", flush=True)


def onto_card(folder, args, **found):
    """Results in their places on the one model of a card, and the command that gives them."""
    card = tr.report.load(folder)
    (model,) = card.to_dict()["models"]
    words = ["--n", str(args.n), "--models", f"saved_models/{folder.name}"]
    command = command_line(words + ["--smoke"] * args.smoke, "afd_table2_auc")
    entry = tr.report.Entry(**found)
    tr.report.amended(card, model, command=command, entry=entry).save(folder)


def features(net, folder, data, args):
    """Table A5 and the sensitivity at each epsilon, into features.json; pictures for the card."""
    path, mark = folder / "features.json", mark_of(net, args)
    if mark.items() <= measured(path, args.again).items():
        return
    x, y = (part[: args.n] for part in data)
    names = [one.name for one in net.layers]
    layer = next(n for n in ("features", "pool", "relu_dense3") if n in names)
    steps, shifts, moved = 2 if args.smoke else 40, {}, {}
    for epsilon in (0.1, 0.2, 0.3, 0.4):
        attack = tr.attacks.PGD(tr.threats.Linf(epsilon), steps=steps, last_iterate=True)
        moved[epsilon] = attack(net, x, y)
        shifts[epsilon] = tr.diagnostics.representation_sensitivity(net, x, moved[epsilon], layer)
    size = tr.diagnostics.feature_dimensions(net, x, layer)
    slopes = tr.diagnostics.class_gradients(net, x, y)
    few, labels = x[:SEEN], y[:SEEN]
    moved = {epsilon: images[:SEEN] for epsilon, images in moved.items()}
    others = {name: attacks_of(args.smoke)[name][0] for name in ("DDN", "DeepFool", "C&W")}
    angles = {
        name: tr.diagnostics.perturbation_angles(
            net, few, moved[0.3], attack(net, few, labels), layer
        )
        for name, attack in others.items()
    }
    near = min(30.0, len(few) / 4)
    planes = tr.diagnostics.tsne_planes(net, few, labels, moved, layer, perplexity=near)
    random = (labels[:1] + np.random.default_rng(0).integers(1, 10, 1)) % 10
    liked = {
        name: tr.diagnostics.visualise_class(net, few[:1], wanted, steps=steps)
        for name, wanted in (("true class", labels[:1]), ("random class", random))
    }
    onto_card(
        folder,
        args,
        sensitivity=shifts,
        dimensions=size,
        class_gradients=slopes,
        angles=angles,
        planes=planes,
        visualised=liked,
    )
    keep(
        path,
        {
            **mark,
            "layer": layer,
            "dimensions": size.to_dict(),
            "sensitivity": {str(epsilon): found.to_dict() for epsilon, found in shifts.items()},
            "angles": {name: found.to_dict() for name, found in angles.items()},
            "class_gradients": [[None if np.isnan(v) else v for v in row] for row in slopes.matrix],
        },
    )
    print(f"{folder.name}: {size.units} units, {size.dimensions} components", flush=True)


def main():
    import keras

    args = arguments()
    data = tr.data.load("mnist", args.data_dir)
    test = data.x_test, data.y_test
    args.n = min(args.n, len(data.x_test))
    for folder in args.models:
        net = keras.saving.load_model(folder / "model.keras", compile=False)
        curves(net, folder, test, args)
        features(net, folder, test, args)
    saved, net = args.models[0].parent, "lenet5" if args.smoke else "resnet18"
    print(
        *results_afd_features.areas(saved, net),
        *results_afd_features.representations(saved, net),
        sep="\n",
    )


if __name__ == "__main__":
    main()
