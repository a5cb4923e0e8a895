"""The honest protocol of the ANP-VS tables: white box, transfer, AutoAttack, V, what is left.

The white box is the paper's (PGD-40 with one start) on all test images; AutoAttack on the first
`--n`. Transferred images are made on a net of another seed without masks: adversarially trained for
rows that are, standard for the others. V is measured on last iterates, white box and transferred.
"""

import numpy as np

import tfrobust as tr
from recipes import anp_vs_stages as stages
from recipes.command import settings

CLEAN_ROWS = ("standard", "bp_bbd", "bp_vib")  # their images come from a standard net


def white_box(run, last=False):
    """PGD-40 with one start; with `last` its last iterate, the paper's."""
    steps, step = (4, 10) if run.args.smoke else (40, 1)
    return tr.attacks.PGD(
        run.scene.threat,
        steps=steps,
        step_size=step * run.scene.judge_step,
        last_iterate=last,
    )


def source_images(run, row):
    """Test images that PGD-40 made on the source of a row: made once, kept in `--work`."""
    kind = "standard" if row in CLEAN_ROWS else "at"
    other = stages.Run(run.args, run.data, run.seed + 1)
    path = run.args.work / f"{run.args.data}_{kind}_images_s{other.seed}.npz"
    net = (stages.standard if kind == "standard" else stages.at)(other).net
    mark = f"{tr.contract.digest(*net.get_weights())} {len(run.data.x_test)}"
    if path.exists():
        with np.load(path) as kept:
            if str(kept["mark"]) == mark:
                return kept["x_adv"]
    x, y = run.data.x_test, run.data.y_test
    x_adv = white_box(run, last=True)(net, x, y)
    tr.files.replace(tr.files.target(path), lambda p: _save(p, mark, x_adv))
    return x_adv


def _save(path, mark, x_adv):
    with open(path, "wb") as file:
        np.savez(file, mark=mark, x_adv=x_adv)


def entries(run, title, row, found, name):
    """({title: `tr.report.Entry`}, net) of what a row trained; masked nets are shrunk first.

    Bayesian weights make two: the net of the mean weights, and averages over draws.

    Args:
        name: That of the card, for the state of its evaluations.
    """
    args, (x, y) = run.args, (run.data.x_test, run.data.y_test)
    masked = bool(tr.layers.masks(found.net))
    net = tr.shrink.compact(found.net) if masked else found.net
    state = args.work / f"{name}_judge_{tr.contract.digest(*net.get_weights())[:8]}"
    state.mkdir(parents=True, exist_ok=True)
    whole = tr.evaluate.robustness(
        net, (x, y), [tr.attacks.FGSM(run.scene.threat), white_box(run)], state=state / "all.npz"
    )
    first = tr.evaluate.robustness(
        net,
        (x, y),
        [run.scene.judge(args.smoke), run.scene.suite(args.smoke)],
        max_examples=args.n,
        state=state / f"first{args.n}.npz",
    )
    print(whole, first, sep="\n", flush=True)
    source, full = source_images(run, row), run.net()
    units = stages.units_of(full, net)
    options = {"features": list(units), "units": units}
    white = tr.diagnostics.vulnerability(net, x, y, white_box(run, last=True), **options)
    black = tr.diagnostics.vulnerability(net, x, x_adv=source, **options)
    figures = {
        "histogram": tr.diagnostics.vulnerability_histogram(white),
        "map": tr.diagnostics.vulnerability_map(net, x[:2], y[:2], white_box(run), units=units),
        "landscape": tr.diagnostics.loss_landscape(net, x[:64], y[:64], run.scene.threat, size=21),
    }
    sent = tr.evaluate.transfer(
        lambda images: tr.attacks.forward(net, images),
        source,
        y,
        x=x,
        name="black box",
        attack=white_box(run).name,
        source="a net of another seed",
    )
    columns = tr.footprint.paper_columns(found.net, full, per_weight=2 if found.weights else 1)
    made = tr.report.Entry(
        scores=[whole, first],
        footprint=tr.footprint.measure(net),
        seconds=found.seconds[0],
        vulnerability=white,
        vulnerability_black=black,
        transfer=[sent],
        **figures,
        settings={
            **{k: v for k, v in settings(args).items() if k not in ("rows", "seeds")},
            "row": row,
            "seed": run.seed,
            "seconds": found.seconds,
            "stages": found.epochs,
            "paper_columns": columns.to_dict(),
            "zeros": zeros(net),
        },
    )
    if found.weights is None:
        return {title: made}, net
    averaged = tr.report.Entry(scores=[random_scores(run, found, state)])
    return {title: made, f"{title}, averages over draws": averaged}, net


def random_scores(run, found, state):
    """Bayesian weights: averages over draws, attacked as averages (EOT)."""
    random = found.weights.sampled(seed=run.seed)
    draws, steps = (2, 4) if run.args.smoke else (20, 40)
    attack = tr.attacks.PGD(
        run.scene.threat, steps=steps, step_size=run.scene.judge_step * 40 / steps, eot=draws
    )
    scores = tr.evaluate.robustness(
        random,
        (run.data.x_test, run.data.y_test),
        [attack],
        max_examples=run.args.n,
        state=state / f"random{run.args.n}.npz",
    )
    print(scores, flush=True)
    return scores


def zeros(net):
    """Share of kernel entries that are exactly zero."""
    kernels = [w for w in net.get_weights() if np.ndim(w) > 1]
    return sum(int((w == 0).sum()) for w in kernels) / sum(w.size for w in kernels)
