"""Table 2 of ANP-VS: accuracy against the radius and against the iterations of the attack.

Paper: Madaan et al., 2020 (arXiv 1908.04355), Table 2. The nets are those that anp_vs_table1 left;
each is attacked by PGD from one start, its radius 1/3, 1, 5/3 and 7/3 of the training radius at 40
iterations, then at the training radius with 100 to 1,000. Steps grow with radii above that of
training, or 40 of them would not cross the ball. More iterations must not help the net, and a large
radius must leave nothing: both stand in the table to be looked at. What is there is not done again.
Command: python -m recipes.anp_vs_table2 --rows at anp_vs_bbd
"""

import json

import keras

import tfrobust as tr
from recipes import anp_vs_rows, mnist, pruning_stages, results_anp_vs
from recipes.command import check, keep

RADII = (1 / 3, 1.0, 5 / 3, 7 / 3)
ITERATIONS = (100, 200, 500, 1000)


def main():
    options = {k: anp_vs_rows.options()[k] for k in ("data", "rows", "seeds", "n")}
    args = mnist.arguments(__doc__, epochs=0, **options)
    check(args, "n", "seeds")
    scene, data = pruning_stages.SETTINGS[args.data], pruning_stages.dataset(args)
    path = tr.files.target(args.out / f"{args.data}_anp_table2" / "results.json")
    found = json.loads(path.read_text())["rows"] if path.exists() else {}
    folders = [args.out / f"{args.data}_anp_{row}_s{s}" for row in args.rows for s in args.seeds]
    folders = [folder for folder in folders if (folder / "model.keras").exists()]
    if not folders:
        raise SystemExit(
            f"`--rows` must name nets that recipes.anp_vs_table1 left in {args.out}. "
            f"Received: {args.rows}"
        )
    for folder in folders:
        net = keras.saving.load_model(folder / "model.keras", compile=False)
        mark = {"n": args.n, "net": results_anp_vs.mark(folder)}
        if found.get(folder.name, {}).get("mark") != mark:
            found[folder.name] = {"mark": mark, **sweeps(net, scene, data, args)}
            told = {"recipe": "anp_vs_table2", "command": args.command, "rows": found}
            keep(path, told)
        print(folder.name, json.dumps(found[folder.name]), flush=True)
    print(f"wrote {path}")


def sweeps(net, scene, data, args):
    """{"epsilon": [[radius, right]], "iterations": [[steps, right]], "n": n}."""
    x, y = data.x_test[: args.n], data.y_test[: args.n]
    base, step = scene.threat.epsilon, scene.judge_step
    radii = [
        [round(base * r, 6), right(net, type(scene.threat)(base * r), 40, step * max(r, 1.0), x, y)]
        for r in RADII
        if base * r <= 1
    ]
    counts = [5, 10] if args.smoke else ITERATIONS
    return {
        "n": len(x),
        "epsilon": radii,
        "iterations": [[k, right(net, scene.threat, k, step, x, y)] for k in counts],
    }


def right(net, threat, steps, step, x, y):
    """How many images are right before and after PGD."""
    attack = tr.attacks.PGD(threat, steps=steps, step_size=min(step, threat.epsilon))
    ok = tr.attacks.correct(net, x, y)
    return int((ok & tr.attacks.correct(net, attack(net, x, y), y)).sum())


if __name__ == "__main__":
    main()
