"""The same attacks by tfrobust, foolbox, ART and torchattacks, with the same settings.

Each contender takes (model, x, y) and returns adversarial images, or (images, further figures).
"""

import functools

import keras
import numpy as np
import tensorflow as tf

import tfrobust as tr

EPSILON, STEP, STEPS, RESTARTS = 0.3, 0.01, 40, 5
SEARCHES, SEARCH_STEPS, SEARCH_SIZE = 9, 200, 0.05
DDN_STEPS, DEEPFOOL_STEPS = 100, 50
BATCH = 250  # images that other libraries get at once: their fastest of 125, 250, 500, 1,000
LINF, L2 = tr.threats.Linf(EPSILON), tr.threats.L2(1.0)


def in_batches(attack, x, y):
    """`attack(x, y)` on batches, as one NumPy array."""
    parts = [attack(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    return np.concatenate([np.asarray(part) for part in parts])


# --- foolbox --------------------------------------------------------------------------------


def foolbox(build, epsilon=None):
    """Contender that runs the foolbox attack made by `build(foolbox.attacks)`."""

    def contender(model, x, y):
        import foolbox as fb

        tf.random.set_seed(0)
        wrapped, attack = fb.TensorFlowModel(model, bounds=(0, 1)), build(fb.attacks)

        def run(x, y):  # labels as int64: eagerpy cannot mix integer types under NumPy 2
            goal = fb.criteria.Misclassification(tf.constant(y, tf.int64))
            found = attack(wrapped, tf.constant(x), goal, epsilons=epsilon)[1].numpy()
            none = ~found.any(axis=(1, 2, 3))  # its C&W returns black where it found nothing
            return np.where(none[:, None, None, None], x, found)

        return in_batches(run, x, y)

    return contender


def foolbox_pgd(attacks):
    attack = attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=True)
    return attack.repeat(RESTARTS)


def foolbox_search(attacks):
    return attacks.L2CarliniWagnerAttack(
        binary_search_steps=SEARCHES, steps=SEARCH_STEPS, stepsize=SEARCH_SIZE, abort_early=False
    )


# --- ART ------------------------------------------------------------------------------------


def art_pgd(model, x, y):
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    np.random.seed(0)
    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescentTensorFlowV2(
        classifier,
        norm=np.inf,
        eps=EPSILON,
        eps_step=STEP,
        max_iter=STEPS,
        num_random_init=RESTARTS,
        batch_size=BATCH,
        verbose=False,
    )
    return attack.generate(x, y)


# --- torchattacks ---------------------------------------------------------------------------


def torch_auto_attack(model, x, y):
    """torchattacks.AutoAttack, each member on what the members before it left.

    Its members are run in its order instead of by itself, which keeps the count after each. As
    shipped, APGD, APGD-T and FAB-T take 10 iterations and Square rescales its schedule; here they
    get what Croce and Hein (2020) prescribe, 100 iterations and no rescaling.
    """
    import torch
    import torchattacks

    from bench import torch_nets

    net = torch_nets.carried_over(model)
    gap = torch_nets.disagreement(model, net, x)
    if gap > 1e-4:
        raise ValueError(f"`net` must answer like the Keras model. Received: {gap:.1e} apart")
    suite = torchattacks.AutoAttack(
        net, norm="Linf", eps=EPSILON, version="standard", n_classes=10, seed=0
    )
    members = suite._autoattack.attacks
    for member in members:
        if hasattr(member, "steps"):
            member.steps = 100
        if hasattr(member, "rescale_schedule"):
            member.rescale_schedule = False
    left = {member.attack: 0 for member in members}

    def run(x, y):
        images, labels = torch_nets.tensors(x, y)
        x_adv, rows = images.clone(), torch.arange(len(images))
        for member in members:
            if len(rows):
                found = member(images[rows], labels[rows])
                with torch.no_grad():
                    right = net(found).argmax(1) == labels[rows]
                x_adv[rows[~right]] = found[~right]
                rows = rows[right]
            left[member.attack] += len(rows)
            print(f"  {member.attack}: {len(rows)} of {len(images)} left", flush=True)
        return torch_nets.arrays(x_adv)

    x_adv = in_batches(run, x, y)
    return x_adv, {"left": left, "robust_in_torch": left["Square"], "logits_apart": gap}


# --- tfrobust -------------------------------------------------------------------------------


def ours(build):
    """Contender that runs the attack made by `build()`, one object that keeps its graphs."""
    build = functools.cache(build)
    return lambda model, x, y: build()(model, x, y)


def our_minimum(build):
    """Contender that runs the minimum-norm attack made by `build()`."""
    build = functools.cache(build)
    return lambda model, x, y: build().minimum(model, x, y).x_adv


def our_pgd(**options):
    return tr.attacks.PGD(LINF, steps=STEPS, step_size=STEP, restarts=RESTARTS, **options)


def our_search():
    return tr.attacks.CarliniWagner(
        L2, search_steps=SEARCHES, steps=SEARCH_STEPS, step_size=SEARCH_SIZE, abort_early=False
    )


@functools.cache
def our_suite():
    return tr.attacks.AutoAttack(LINF, version="standard")


def our_auto_attack(model, x, y, state=None):
    """`tr.evaluate.robustness` with AutoAttack: no images, but the number of those left.

    Args:
        state: File of an evaluation that may have run before; the seconds are its own.
    """
    scores = tr.evaluate.robustness(
        model, (x, y), [our_suite()], progress=False, state=state, max_examples=len(x)
    )
    left = {member: rate.count for member, rate in scores.attacks[0].parts}
    more = {"robust": scores.joint.count, "left": left}
    return None, more if state is None else {**more, "seconds": round(scores.seconds, 1)}


# --- the table ------------------------------------------------------------------------------

PGD_SETTINGS = {"steps": STEPS, "step_size": STEP, "restarts": RESTARTS, "epsilon": EPSILON}
# Without early ends: foolbox judges progress by the sum over a batch, tfrobust by image.
SEARCH_SETTINGS = {
    "searches": SEARCHES,
    "steps": SEARCH_STEPS,
    "step_size": SEARCH_SIZE,
    "abort_early": False,
}
DDN_SETTINGS, DEEPFOOL_SETTINGS = {"steps": DDN_STEPS}, {"steps": DEEPFOOL_STEPS}
SUITE = {"version": "standard", "epsilon": EPSILON}

# attack, library: contender, settings, images (the first ones of the test set)
ROWS = {
    ("AutoAttack", "torchattacks"): (
        torch_auto_attack,
        {**SUITE, "iterations": 100, "rescaled": False},
        1000,
    ),
    ("AutoAttack", "tfrobust"): (our_auto_attack, SUITE, 1000),
    ("PGD", "foolbox"): (foolbox(foolbox_pgd, EPSILON), PGD_SETTINGS, 1000),
    ("PGD", "ART"): (art_pgd, PGD_SETTINGS, 1000),
    ("PGD", "tfrobust"): (ours(our_pgd), PGD_SETTINGS, 1000),
    ("PGD", "tfrobust, last iterate"): (
        ours(lambda: our_pgd(last_iterate=True)),
        {**PGD_SETTINGS, "last_iterate": True},
        1000,
    ),
    ("DDN", "foolbox"): (foolbox(lambda a: a.DDNAttack(steps=DDN_STEPS)), DDN_SETTINGS, 1000),
    ("DDN", "tfrobust"): (
        our_minimum(lambda: tr.attacks.DDN(L2, steps=DDN_STEPS)),
        DDN_SETTINGS,
        1000,
    ),
    ("DeepFool", "foolbox"): (
        foolbox(lambda a: a.L2DeepFoolAttack(steps=DEEPFOOL_STEPS)),
        DEEPFOOL_SETTINGS,
        1000,
    ),
    ("DeepFool", "tfrobust"): (
        our_minimum(lambda: tr.attacks.DeepFool(L2, steps=DEEPFOOL_STEPS)),
        DEEPFOOL_SETTINGS,
        1000,
    ),
    ("C&W", "foolbox"): (foolbox(foolbox_search), SEARCH_SETTINGS, 250),
    ("C&W", "tfrobust"): (our_minimum(our_search), SEARCH_SETTINGS, 250),
}
