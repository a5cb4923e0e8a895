"""AutoAttack on the nets in saved_models/ whose card lacks it, put on the card beside PGD.

Paper: Croce and Hein, 2020 (arXiv 2003.01690), version "standard" with its authors' budgets.
Command: python -m recipes.autoattack --data-dir DATA
Time: 3 to 8 minutes a net for 1,000 MNIST images on 2 cores; a killed run goes on where it was.
"""

import argparse
import pathlib

import keras

import tfrobust as tr

SAVED = pathlib.Path("saved_models")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder of <name>.npz files")
    parser.add_argument(
        "--only", nargs="*", help="names of folders, judged again (default: what waits)"
    )
    parser.add_argument("--n", type=int, default=1000, help="first N test images")
    parser.add_argument("--work", default="runs", help="folder of state files")
    parser.add_argument("--out", default=str(SAVED), help="folder of saved models")
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, cards stay as they are")
    args = parser.parse_args()
    for folder in sorted(path.parent for path in pathlib.Path(args.out).glob("*/card.json")):
        if args.only is None or folder.name in args.only:
            judge(folder, args)


def waiting(values, again):
    """(title, file) of the first shipped net without AutoAttack (with `again`: of any), or None."""
    for title, entry in values["models"].items():
        files = [file["path"] for file in entry["files"] if file["path"].endswith(".keras")]
        if files and (again or entry["families"].get("AutoAttack") is None):
            return title, files[0]
    return None


def judge(folder, args):
    """Attacks the net of one folder and writes its card again."""
    card = tr.report.load(folder)
    values = card.to_dict()
    found = waiting(values, again=args.only is not None)
    if found is None:
        return
    title, file = found
    data = tr.data.load(values["data"]["name"].lower().replace("-", ""), args.data_dir)
    net = keras.saving.load_model(folder / file, compile=False)
    attack, state = attack_of(values, args), pathlib.Path(args.work) / "autoattack"
    state.mkdir(parents=True, exist_ok=True)
    scores = tr.evaluate.robustness(
        net,
        (data.x_test, data.y_test),
        [attack],
        state=state / f"{folder.name}{'_smoke' * args.smoke}.npz",
        max_examples=32 if args.smoke else args.n,
    )
    print(f"{folder.name}: {title}", scores, sep="\n", flush=True)
    if not args.smoke:
        command = "python -m recipes.autoattack"
        tr.report.amended(card, title, scores, command).save(folder)


def attack_of(values, args):
    """AutoAttack in the card's threat; with --smoke its members with tiny budgets."""
    threat = tr.threats.NORMS[values["threat"]["norm"]](values["threat"]["epsilon"])
    if not args.smoke:
        return tr.attacks.AutoAttack(threat)
    return tr.attacks.WorstCase(
        [
            tr.attacks.APGD(threat, steps=5),
            tr.attacks.APGD(threat, steps=5, loss="dlr_targeted", targets=2),
            tr.attacks.FAB(threat, steps=5, targets=2),
            tr.attacks.Square(threat, queries=50),
        ]
    )


if __name__ == "__main__":
    main()
