"""Reasons not to believe a robust accuracy, found before, during and after the attacks.

After Croce and Hein's AutoAttack checks and Carlini et al., "On Evaluating Adversarial Robustness"
(2019, https://arxiv.org/abs/1902.06705). `ADVICE` lists every code.
"""

import copy

import keras
import numpy as np
import tensorflow as tf

from tfrobust import attacks, losses
from tfrobust.evaluate.scores import FAMILIES, Flag

PROBED = 64  # images that the probes look at
ADVICE = {
    "probabilities": (
        "Attacks need logits: bring the model into the contract with tr.models.prepare(model)."
    ),
    "stochastic_output": (
        "Gradients and verdicts change from call to call: attack the average over many draws, with "
        "tr.attacks.AutoAttack(threat, version='rand') or eot=20."
    ),
    "dynamic_defence": (
        "A model that optimises while it answers needs an attack of its own (Croce et al., 2022); "
        "gradients through it may be useless."
    ),
    "batch_dependent": (
        "Check that BatchNormalization runs with training=False; an attack on one image is "
        "otherwise judged by its neighbours."
    ),
    "no_gradient": ("Gradient attacks stand still: add a score-based or decision-based attack."),
    "zero_ce_gradient": (
        "Cross-entropy saturates in float32: believe attacks on the margin or DLR loss (APGD-T) "
        "and not PGD or APGD-CE."
    ),
    "illegal_points": "They are not counted as success; correct the attack's projection.",
    "single_step_stronger": (
        "Iterated attacks must break more than one step: suspect masked gradients or a bad step "
        "size."
    ),
    "pgd_above_apgd": "Quote the lower figure; PGD's loss or step size misleads it here.",
    "no_strong_attack": (
        "Run APGD on cross-entropy and on targeted DLR (apgd-ce and apgd-t in the shell), or "
        "AutoAttack, before calling the model robust."
    ),
    "curve_above_chance": "Extend eps_grid until the accuracy falls to chance.",
    "masked_gradients": (
        "At this radius every image can be turned into plain grey, so an attack that follows true "
        "gradients reaches chance: suspect masked gradients."
    ),
    "loss_still_rising": "Give the attack more steps: it has not come to rest.",
    "black_box_stronger": (
        "Attacks without gradients should be weaker: the gradients mislead, so raise the budget of "
        "Square and look for what hides them."
    ),
    "member_skipped": "The ensemble is weaker than its name says on this model.",
    "certificate_apart": (
        "Certify and attack the same images of the same model: verified accuracy is a lower bound "
        "of what attacks leave there, and of nothing else."
    ),
    "few_images": "Use 1,000 or more for a figure that is compared with others.",
}


def flag(code, sentence, severity="doubt"):
    """A `Flag` with the advice that belongs to its code."""
    return Flag(code, sentence, ADVICE[code], severity)


def probe(model, x, y, logits, draws=1):
    """Flags that the first chunk gives away: output kind, randomness, batches, gradients."""
    flags = []
    layers = model._flatten_layers() if isinstance(model, keras.Model) else ()
    dynamic = [layer.name for layer in layers if getattr(layer, "declares_dynamic", False)]
    if dynamic:
        flags.append(flag("dynamic_defence", f"Layer {dynamic[0]} declares itself dynamic."))
    positive = logits.min() >= 0 and logits.max() <= 1
    if positive and np.abs(logits.sum(-1) - 1).max() <= 1e-5:
        flags.append(
            flag("probabilities", "The outputs lie in [0, 1] and sum to 1: probabilities.")
        )
    elif logits.shape[1] == 2 and positive and not logits[:, 0].any():
        text = "The single output lies in [0, 1] for all images: it looks like a probability."
        flags.append(flag("probabilities", text))
    some, found = x[:PROBED], logits[:PROBED]
    scale = max(1.0, float(np.abs(found).max()))
    again = [attacks.forward(model, some) for _ in range(4)]
    spread = max(float(np.abs(other - again[0]).max()) for other in again[1:])
    if spread > 1e-4 * scale:
        text = f"The same images gave logits {spread:.2g} apart in two calls."
        severity = "doubt" if draws == 1 else "note"
        return [*flags, flag("stochastic_output", text, severity)]
    half = some[: min(8, len(some))]
    # Two batches of the same bucket that differ in the companions only.
    pair = (np.concatenate([half, fill]) for fill in (np.repeat(half[:1], 8, 0), 1 - half))
    alone, beside = (attacks.forward(model, images)[: len(half)] for images in pair)
    gap = float(np.abs(alone - beside).max())
    if gap > 1e-3 * scale:
        text = f"Logits of an image move by {gap:.2g} with the other images of its batch."
        flags.append(flag("batch_dependent", text))
    right = found.argmax(-1) == y[:PROBED]
    if right.any():
        flags += _gradients(model, some[right], y[:PROBED][right])
    return flags


def _gradients(model, x, y):
    def lengths(loss):
        images = tf.constant(x)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            total = tf.reduce_sum(loss(attacks.logits_of(model, images), tf.constant(y)))
        gradient = tape.gradient(total, images)
        if gradient is None:
            return np.zeros(len(x))
        found = np.linalg.norm(gradient.numpy().reshape(len(x), -1).astype(float), axis=-1)
        return np.where(np.isfinite(found), found, 0.0)

    margin = lengths(losses.margin)
    blind = int((margin == 0).sum())
    if blind:
        text = f"{blind} of {len(x)} images have a margin whose gradient is 0 or not finite."
        return [flag("no_gradient", text)]
    # Cross-entropy's gradient is about 1 - p times the margin's; below 1e-6 float32 rounds p to 1.
    blind = int((lengths(losses.cross_entropy) <= 1e-6 * margin).sum())
    if blind > 0.1 * len(x):
        text = f"{blind} of {len(x)} images have a cross-entropy gradient that is 0 or rounding."
        return [flag("zero_ce_gradient", text)]
    return []


def probe_survivors(plan, x, y, right):
    """Flags that more effort on images of the first chunk gives away, `right` under all attacks."""
    flags, rows = [], np.flatnonzero(right)[:PROBED]
    iterated = [a for a in plan.attacks.values() if isinstance(a, attacks.PGD) and a.steps > 1]
    if len(rows) and iterated:
        flags += _unfinished(plan.model, iterated[0], x[rows], y[rows], rows)
    if len(rows) and plan.attacks and plan.second_opinion:
        threat, rows = next(iter(plan.attacks.values())).threat, rows[: plan.second_opinion]
        for attack in (
            attacks.Noise(threat, tries=1000),
            attacks.from_cleverhans("spsa", threat, nb_iter=50),
        ):
            count = int(attack.result(plan.model, x[rows], y[rows], index=rows).fooled.sum())
            if count:
                text = f"{attack.name} broke {count} of {len(rows)} images that all attacks left."
                flags.append(flag("black_box_stronger", text))
    return flags


def _unfinished(model, attack, x, y, index):
    longer = copy.copy(attack)
    longer.steps = 2 * attack.steps
    longer.step_size = float(attack.numbers()["ratio"] * attack.threat.epsilon) or None

    def height(images):
        logits = attacks.forward(model, images)
        return float(losses.margin(tf.constant(logits), tf.constant(y)).numpy().mean())

    start, end = height(x), height(attack(model, x, y, index=index, run=0))
    later = height(longer(model, x, y, index=index, run=0))
    if later - end <= 0.1 * abs(end - start):
        return []
    text = (
        f"Twice the steps of {attack.name} lift the margin of {len(x)} images that it left by "
        f"{later - end:.2g}, from {end:.3g} to {later:.3g} (without attack {start:.3g})."
    )
    return [flag("loss_still_rising", text)]


def _black_box(scores, table):
    """Images that only attacks without gradients broke."""
    records = scores.records
    blind = seen = ~records["clean"]
    for name, attack in table.items():
        broken = records["clean"] & ~records[name]
        for member, runs in getattr(attack, "members", ()):
            by = records[f"{name}: run"]
            mine = (by >= runs.start) & (by < runs.stop)
            broken = broken & ~mine
            if getattr(member, "white_box", True):
                seen = seen | mine
            else:
                blind = blind | mine
        if getattr(attack, "white_box", True):
            seen = seen | broken
        else:
            blind = blind | broken
    return int((blind & ~seen).sum())


def review(scores, table=None):
    """Flags that the finished figures give away.

    Args:
        table: {name: attack} of what was run.
    """
    flags, rates = [], {name: rate.value for name, rate in scores.families.items()}

    def percent(name):
        return f"{name} leaves {100 * rates[name]:.1f} %"

    for score in scores.attacks:
        if score.illegal:
            text = f"{score.name} returned {score.illegal} points outside of {score.threat}."
            flags.append(flag("illegal_points", text))
        for member, reason in score.skipped.items():
            text = f"{score.name} was run without {member}: {reason}."
            flags.append(flag("member_skipped", text, "note"))
    if table and scores.records:
        count = _black_box(scores, table)
        if count > 0.002 * scores.n:
            text = f"{count} of {scores.n} images were broken by attacks without gradients only."
            flags.append(flag("black_box_stronger", text))
    strong = [name for name in FAMILIES[2:] if name in rates]
    if scores.attacks and not strong:
        names = ", ".join(score.name for score in scores.attacks)
        flags.append(flag("no_strong_attack", f"Only {names} was run.", "note"))
    comparable = not scores.cascade and len({score.threat for score in scores.attacks}) == 1
    if comparable and "FGSM" in rates and rates.get("PGD", 0) > rates["FGSM"] + 0.01:
        text = f"{percent('PGD')}, the single step of {percent('FGSM')}."
        flags.append(flag("single_step_stronger", text))
    if comparable and "PGD" in rates and strong:
        best = min(strong, key=rates.get)
        if rates["PGD"] > rates[best] + 0.05:
            text = f"{percent('PGD')}, {percent(best)}."
            flags.append(flag("pgd_above_apgd", text))
    if scores.curve is not None:
        last, radius = scores.curve.rates[-1], scores.curve.epsilons[-1]
        if last.low > 1 / scores.classes:
            text = f"{100 * last.value:.1f} % are still right at epsilon {radius:g}."
            grey = scores.curve.norm == "linf" and radius >= 0.5
            flags.append(
                flag("masked_gradients", text) if grey else flag("curve_above_chance", text, "note")
            )
    if scores.n < 1000:
        flags.append(flag("few_images", f"Measured on {scores.n} images.", "note"))
    return flags
