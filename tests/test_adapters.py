"""Attacks of cleverhans, foolbox and ART keep our contract and do what their libraries do."""

import json
import random
import sys
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrobust as tr
from tests import bank
from tests.bank_evaluate import run
from tests.test_eot import noisy, states
from tfrobust import attacks, contract, threats

LINF, L2, L1 = threats.Linf(0.1), threats.L2(0.7), threats.L1(3.0)
hans = attacks.from_cleverhans
parametrize = pytest.mark.parametrize
peer = pytest.importorskip  # the test ends here where the library is not installed


def fool(kind, threat, shared=(), **arguments):
    attack = getattr(peer("foolbox").attacks, kind)(**arguments)
    return attacks.from_foolbox(attack, threat, **dict(shared))


def art(kind, threat, **arguments):
    peer("art.attacks.evasion")
    return attacks.from_art(kind, threat, **arguments)


SHORT = {"max_iterations": 4, "binary_search_steps": 1, "initial_const": 10, "learning_rate": 0.2}
FEW = {"steps": 3, "spsa_samples": 8, "learning_rate": 0.1}
SINGLE = {
    **{f"fgm-{t.norm}": partial(hans, "fast_gradient_method", t) for t in (LINF, L2, L1)},
    "pgd": lambda: hans("projected_gradient_descent", L2, steps=3, rand_init=True),
    "madry": lambda: hans("madry_et_al", LINF, nb_iter=3, restarts=2),
    "bim": lambda: hans("basic_iterative_method", LINF, steps=3, step_size=0.05),
}
WHITE = {
    **SINGLE,
    "cw": lambda: hans("carlini_wagner_l2", L2, **SHORT),
    "foolbox-pgd": lambda: fool("LinfPGD", LINF, steps=3, rel_stepsize=0.5),
    "foolbox-deepfool": lambda: fool("L2DeepFoolAttack", L2, steps=5),
    "foolbox-of-another-norm": lambda: fool("L2DeepFoolAttack", L1, steps=5),
    "art-fgm": lambda: art("FastGradientMethod", LINF),
    "art-pgd": lambda: art("ProjectedGradientDescent", L2, steps=3, num_random_init=1),
}
CASES = {
    **WHITE,
    **{f"spsa-{t.norm}": partial(hans, "spsa", t, **FEW) for t in (LINF, L2, L1)},
    "foolbox-boundary": lambda: fool("BoundaryAttack", L2, steps=10),
    "art-square": lambda: art("SquareAttack", LINF, max_iter=10),
}


@pytest.fixture(scope="module")
def task():
    """Six images; the model is wrong about the first and the fourth as they are."""
    net, x = bank.classifier(), bank.images(6)
    y = attacks.forward(net, x).argmax(-1)
    y[::3] = (y[::3] + 1) % 4
    return net, x, y


def draws(between):
    """What the generators that everybody shares give before and after."""
    keras.utils.set_random_seed(3)

    def now():
        assert np.random.RandomState is np.random.mtrand.RandomState
        drawn = tf.random.uniform(()), keras.random.uniform(())
        return random.random(), np.random.rand(), *map(float, drawn)

    return now(), between(), now()


def honest(attack, found, net, x, y, epsilon):
    """What holds for every result."""
    far, wrong = attack.threat.distance(found.x_adv, x).numpy(), attacks.verdicts(net, x, y)
    assert found.x_adv.dtype == np.float32 and found.x_adv.shape == x.shape
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    assert far.max() <= epsilon * (1 + 1e-6) + 1e-7
    np.testing.assert_array_equal(found.fooled, attacks.verdicts(net, found.x_adv, y))
    np.testing.assert_array_equal(found.distance, np.where(found.fooled, far, np.inf))
    np.testing.assert_array_equal(found.x_adv[wrong], x[wrong])
    assert not (found.queries + found.gradients + found.iterations)[wrong].any()
    return wrong


@parametrize("case", bank.thinned(CASES))
def test_contract(case, task):
    attack, (net, x, y), kept = CASES[case](), task, []
    weights = contract.digest(*net.get_weights())
    assert draws(lambda: kept.append(attack.result(net, x, y))) == draws(lambda: None)
    (found,) = kept
    wrong = honest(attack, found, net, x, y, attack.threat.epsilon)
    assert wrong.sum() == 2 and found.fooled.sum() > 2 and (found.queries[~wrong] > 0).all()
    assert ((found.gradients > 0) == (~wrong & (case in WHITE))).all()
    np.testing.assert_array_equal(attack(net, x, y), found.x_adv)
    np.testing.assert_array_equal(attack(net, x, y, epsilon=0.0), x)
    assert contract.digest(*net.get_weights()) == weights


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.sampled_from([*SINGLE]), st.integers(1, 20), st.floats(0, 1), st.integers())
def test_any_batch_radius_seed_and_number_of_logits(case, count, share, seed):
    classes = (1, 4)[count % 2]
    attack, net, x = SINGLE[case](), bank.classifier(classes), bank.images(count)
    attack.seed, y, place = seed, np.arange(count) % max(classes, 2), np.arange(count) + 2**31
    epsilon = share * attack.threat.epsilon
    found = attack.result(net, x, y, index=place, epsilon=epsilon)
    honest(attack, found, net, x, y, epsilon)
    np.testing.assert_array_equal(attack(net, x, y, index=place, epsilon=epsilon), found.x_adv)


def of_all_generators(model_fn, x, eps):
    """Moves four pixels, each by a number of another generator."""
    drawn = random.random(), np.random.rand(), np.random.RandomState().rand()
    moved = x.numpy()
    moved[:, :4, 0, 0] = 0.5 + eps * np.array([*drawn, float(tf.random.uniform(()))])
    return moved


def test_every_generator_follows_from_seed_index_and_run(task):
    x = np.full((1, 8, 8, 1), 0.5, "float32")
    y = attacks.forward(task[0], x).argmax(-1)

    def pixels(seed=0, index=0, run=0):
        attack = hans(of_all_generators, LINF, seed=seed, restarts=2)
        return attack(task[0], x, y, index=[index], run=run)[0, :4, 0, 0].tolist()

    def between():
        with pytest.raises(TypeError):
            hans(lambda model_fn, x: of_all_generators(model_fn, x, "far"), LINF)(*task)

    assert draws(between) == draws(lambda: None)  # put back even after a failure
    drawn = pixels(), pixels(), pixels(seed=1), pixels(index=1), pixels(run=1)
    assert drawn[0] == drawn[1] and len({number for row in drawn for number in row}) == 16


def test_random_models_answer_alike_and_keep_their_states(task):
    model, attack = noisy(task[0]), hans("basic_iterative_method", LINF, steps=2, eot=3)
    before, found = states(model), attack(model, *task[1:])
    np.testing.assert_array_equal(found, attack(model, *task[1:]))
    assert (found != attack(*task)).any()  # it did see the noise
    np.testing.assert_array_equal(before, states(model))


@parametrize("threat", [LINF, L2, L1], ids=repr)
@parametrize("length", [1e3, -1e15, np.inf, np.nan])
def test_what_comes_back_is_projected(threat, length, task):
    found = hans(lambda model_fn, x: x + length * (x - 0.5), threat).result(*task)
    wrong = honest(attacks.FGSM(threat), found, *task, threat.epsilon)
    assert (found.x_adv != task[1])[~wrong].any() == np.isfinite(length)


@parametrize("threat", [LINF, L2, L1], ids=repr)
def test_legal_points_keep_their_last_bits(threat, task):
    net, x = task[:2]  # otherwise points on the decision boundary would be lost
    change = np.random.default_rng(0).normal(0, 1, x.shape).astype("float32")
    change *= 0.9 * threat.epsilon / threat.distance(x + change, x).numpy().reshape(-1, 1, 1, 1)
    point = np.nextafter(np.clip(x + change, 0.001, 0.999), np.float32(0.5))  # no sum with x
    attack = hans(lambda model_fn, x: np.resize(point, x.shape), threat)
    np.testing.assert_array_equal(attack(net, x, attacks.forward(net, x).argmax(-1)), point)


@parametrize(("batch_size", "sizes"), [(None, [16]), (3, [3, 3]), (1, [1] * 4)])
def test_batch_size_is_what_the_library_gets(batch_size, sizes, task):
    seen = []

    def watching(model_fn, x, y):
        seen.append((len(x), len(y), model_fn(x).shape))
        return x

    hans(watching, LINF, batch_size=batch_size)(*task)
    assert seen == [(size, size, (size, 4)) for size in sizes]


@parametrize("eot", [1, 2])
def test_passes_are_counted(eot, task):
    net, x, y = task[0], task[1][1:3], task[2][1:3]
    pgd = hans("projected_gradient_descent", LINF, steps=3, eot=eot).result(net, x, y)
    assert (pgd.queries == 3 * eot).all() and (pgd.gradients == 3 * eot).all()
    spsa = hans("spsa", threats.Linf(1e-4), steps=3, spsa_samples=8, eot=eot).result(net, x, y)
    judged = 3 if eot == 1 else 0  # it ends at the first success unless that may be luck
    assert (spsa.queries == eot * (3 * 8 + judged)).all() and not spsa.gradients.any()


STEPS = {"steps": 4, "step_size": 0.01}
EXACT = {"steps": 4, "abs_stepsize": 0.01, "random_start": False}
SMALL, NARROW = threats.L2(0.03), threats.Linf(0.03)
PAIRS = {
    "fgm-linf": (lambda: hans("fast_gradient_method", LINF), attacks.FGSM),
    "bim": (lambda: hans("basic_iterative_method", NARROW, **STEPS), attacks.BIM),
    "pgd": (lambda: hans("projected_gradient_descent", SMALL, **STEPS), attacks.BIM),
    "mim": (lambda: hans("momentum_iterative_method", NARROW, **STEPS), attacks.MIM),
    "foolbox-linf": (lambda: fool("LinfPGD", NARROW, **EXACT), attacks.BIM),
    "foolbox-l2": (lambda: fool("L2PGD", SMALL, **EXACT), attacks.BIM),
    "art-l2": (lambda: art("ProjectedGradientDescent", SMALL, **STEPS), attacks.BIM),
}


@parametrize("aimed", [False, True], ids=["any", "goal"])
@parametrize("pair", PAIRS)
def test_the_same_steps_as_ours(pair, aimed, task):
    theirs, kind = PAIRS[pair][0](), PAIRS[pair][1]
    more = {} if kind is attacks.FGSM else {**STEPS, "last_iterate": True}
    net, x = task[0], task[1] * 0.6 + 0.2  # away from the faces, where projections differ
    y = attacks.forward(net, x).argmax(-1)
    goal = (y + 1) % 4 if aimed else None
    found, ours = theirs(net, x, y, goal=goal), kind(theirs.threat, **more)(net, x, y, goal=goal)
    np.testing.assert_allclose(found, ours, atol=2e-6)
    assert (np.abs(found - x).reshape(6, -1).max(-1) > 1e-3).all()


def test_the_step_size_goes_along_with_epsilon(task):
    whole = hans("basic_iterative_method", LINF, steps=3, step_size=0.02)
    half = hans("basic_iterative_method", threats.Linf(0.05), steps=3, step_size=0.01)
    np.testing.assert_array_equal(whole(*task, epsilon=0.05), half(*task))


# Three of the six images of LIN10 have another class within, the others do not.
NEAR = {"linf": threats.Linf(0.04), "l2": threats.L2(0.3), "l1": threats.L1(1.3)}
SEARCH = {"steps": 12, "spsa_samples": 32, "learning_rate": 0.05}
SURE = {
    **{f"spsa-{norm}": partial(hans, "spsa", t, **SEARCH) for norm, t in NEAR.items()},
    "cw": lambda: hans("carlini_wagner_l2", NEAR["l2"], **{**SHORT, "max_iterations": 10}),
    "deepfool-l2": lambda: fool("L2DeepFoolAttack", NEAR["l2"], steps=5),
    "deepfool-linf": lambda: fool("LinfDeepFoolAttack", NEAR["linf"], steps=5),
    "art-square": lambda: art("SquareAttack", NEAR["linf"], max_iter=100),
}


@parametrize("case", SURE)
def test_on_linear_models_it_fools_what_can_be_fooled(case):
    attack, (net, x, y) = SURE[case](), bank.linear()
    exact = bank.LINEAR_DISTANCE[attack.threat.norm]
    np.testing.assert_array_equal(attack.result(net, x, y).fooled, exact < attack.threat.epsilon)


@parametrize("case", ["cw", "foolbox-deepfool", "foolbox-of-another-norm"])
def test_smallest_changes_are_judged_at_the_radius(case):
    attack, (net, x, y) = CASES[case](), bank.curve()
    free = attack.result(net, x, y, epsilon=1.0)
    radius = float(np.sort(free.distance)[:2].mean())
    found = attack.result(net, x, y, epsilon=radius)
    assert found.fooled[free.distance <= radius].all() and not found.fooled.all()
    nearest = attack.threat.project(free.x_adv, x, radius)
    np.testing.assert_allclose(found.x_adv, nearest, atol=1e-6)


@parametrize("repeat", [1, 2])
def test_brendel_and_bethge_get_one_image_at_a_time(repeat, task):
    base, (net, x, y) = peer("foolbox").attacks.base.MinimizationAttack, task

    class BrendelBethgeStandIn(base):  # its steps grow with the batch, as theirs do
        distance, steps = peer("foolbox").distances.l2, 7

        def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
            return inputs * (1 - 0.01 * len(inputs))

    inner = BrendelBethgeStandIn().repeat(repeat)
    attack, right = attacks.from_foolbox(inner, L2), ~attacks.verdicts(net, x, y)
    np.testing.assert_allclose(attack(net, x, y)[right], 0.99 * x[right], atol=1e-6)
    assert (attack.batch_size, attack.iterations) == (1, 7)
    with pytest.raises(ValueError, match="`batch_size` must be 1.*Received: batch_size=2"):
        attacks.from_foolbox(inner, L2, batch_size=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:At the first initialisation the optimizer")
@parametrize(("kind", "norm"), [("L2", "l2"), ("Linfinity", "linf")])
def test_brendel_and_bethge_find_the_boundary_whoever_is_beside(kind, norm):
    peer("numba")
    steps = {"steps": 60, "lr": 0.1, "lr_num_decay": 8}
    attack, (net, x, y) = fool(f"{kind}BrendelBethgeAttack", NEAR[norm], **steps), bank.linear()
    found, exact = attack.result(net, x, y), bank.LINEAR_DISTANCE[norm]
    np.testing.assert_array_equal(found.fooled, exact < NEAR[norm].epsilon)
    np.testing.assert_array_equal(attack(net, x[4:], y[4:], index=[4, 5]), found.x_adv[4:])


def test_in_an_evaluation_and_taken_up_again(task, tmp_path, monkeypatch):
    both = [attacks.FGSM(LINF), hans("fast_gradient_method", LINF), hans("spsa", LINF, steps=2)]

    def counts():
        scores = run(task[0], task[1:], both, state=tmp_path / "run.state")
        assert scores.clean.count == 4 and scores.joint.count <= scores["FGSM"].count
        return [scores[attack.name].count for attack in both]

    first = counts()
    assert first[0] == first[1] < first[2]
    monkeypatch.setattr(type(both[1]), "perturb", None)  # nothing is made again
    assert counts() == first


def test_in_a_worst_case(task):
    members = [hans("spsa", LINF, steps=2), attacks.FGSM(LINF), CASES["bim"]()]
    worst = attacks.WorstCase(members)
    found, each = worst.result(*task), [member.result(*task).fooled for member in members]
    assert worst.runs == 3 and len({row.sum() for row in each}) > 1
    np.testing.assert_array_equal(found.fooled, np.any(each, 0))
    assert json.loads(json.dumps(worst.get_config())) == worst.get_config()


@parametrize("case", ["fgm-linf", "cw", "spsa-linf", "foolbox-pgd", "art-pgd"])
def test_goals(case, task):
    attack, (net, x, y) = CASES[case](), task
    goal, epsilon = (y + 1) % 4, 3 * attack.threat.epsilon
    found, free = (attack.result(net, x, y, epsilon=epsilon, goal=g) for g in (goal, None))
    np.testing.assert_array_equal(found.fooled, attacks.verdicts(net, found.x_adv, y, goal))
    assert attacks.verdicts(net, x, y, goal).sum() < found.fooled.sum() <= free.fooled.sum()


AIMLESS = [partial(hans, of_all_generators), partial(fool, "FGSM"), partial(art, "DeepFool")]


@parametrize("make", AIMLESS, ids=["cleverhans", "foolbox", "art"])
def test_goals_of_attacks_without_a_targeted_form(make, task):
    for whole in (make(LINF), attacks.WorstCase([make(LINF), attacks.FGSM(LINF)])):
        with pytest.raises(ValueError, match=r"`goal` must be None: .* has no targeted form"):
            whole(*task, goal=(task[2] + 1) % 4)


def test_graphs_and_training_are_refused(task):
    net, attack = bank.classifier(), hans("fast_gradient_method", LINF)
    message = r"fast_gradient_method \(cleverhans\) runs eagerly and cannot be traced"
    for whole in (attack, attacks.WorstCase([attack])):
        with pytest.raises(TypeError, match=message):
            tf.function(lambda *a, whole=whole: whole(net, *a), autograph=False)(*task[1:])
    game = tr.training.AdversarialTraining(net, attack)
    game.compile("adam")
    with pytest.raises(TypeError, match=message):
        game.fit(*task[1:], verbose=0)


NAMES = {
    "spsa (cleverhans)": lambda steps: hans("spsa", LINF, nb_iter=steps),
    "LinfProjectedGradientDescentAttack (foolbox)": lambda n: fool("LinfPGD", LINF, steps=n),
    "SquareAttack (ART)": lambda steps: art("SquareAttack", LINF, max_iter=steps),
}


@parametrize("name", NAMES)
def test_names_and_configs(name):
    one, same, other = (NAMES[name](steps) for steps in (3, 3, 4))
    assert one.name == name and repr(one) == f"{name}({LINF!r})" and one.iterations == 3
    config = one.get_config()
    assert json.loads(json.dumps(config)) == config == same.get_config() != other.get_config()
    with pytest.raises(TypeError, match="call tr.attacks.from_[a-z]* again"):
        type(one).from_config(config)


def without(module, make, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        make(*arguments)


MINE = type("Mine", (threats.Linf,), {"norm": "mine"})(0.1)
PGD = "projected_gradient_descent"
PEERS = r'must be installed for this attack: pip install "tfrobust\[peers\]"$'
ERRORS = [
    (lambda: hans("fgsm", LINF), ValueError, "`function` must be one of .*function='fgsm'"),
    (lambda: hans(PGD, L1), ValueError, "`threat` must be Linf or L2 .*L1"),
    (lambda: hans(PGD, MINE), ValueError, "`threat` must be Linf, L2 or L1 .*Mine"),
    (lambda: hans(PGD, LINF, loss="ce"), TypeError, "`loss` is not an argument of .*nb_iter"),
    (lambda: hans(lambda f, x: x[1:], LINF)(*bank.linear()), ValueError, "images of shape .16, 8"),
    (lambda: hans(PGD, LINF, step_size=0.2), ValueError, "`eps_iter` must be at most epsilon"),
    (lambda: hans("spsa", LINF, batch_size=2), ValueError, "`batch_size` must be 1"),
    (lambda: hans("spsa", LINF, spsa_samples=15), ValueError, "`spsa_samples` must be even"),
    (lambda: hans("spsa", LINF, spsa_samples="8"), ValueError, "`spsa_samples` must be an int"),
    (
        lambda: peer("foolbox") and attacks.from_foolbox("PGD", LINF),
        TypeError,
        "`attack` must be a foolb",
    ),
    (lambda: fool("LinfPGD", L2), ValueError, "`threat` must have the norm .*, linf. .*L2"),
    (lambda: fool("LinfPGD", LINF, {"steps": 3}), TypeError, "`steps` is not an argument of fr"),
    (lambda: fool("LinfPGD", LINF, {"targets": 3}), TypeError, "`targets` is not an argument"),
    (lambda: art("Squares", LINF), ValueError, "`attack` must be the name .*attack='Squares'"),
    (lambda: art("SquareAttack", LINF, step=3), TypeError, "`step` is not an argument of ART's"),
    (lambda: art("SquareAttack", LINF, eps=0.1), TypeError, "`eps` must be left out"),
    (lambda: without("cleverhans.tf2.attacks.spsa", hans, "spsa", L2), ImportError, "cleverhans$"),
    (lambda: without("foolbox.attacks.base", attacks.from_foolbox, 0, L2), ImportError, PEERS),
    (lambda: without("art.attacks.evasion", attacks.from_art, "ZooAttack", L2), ImportError, PEERS),
]


@parametrize(("make", "error", "message"), ERRORS)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
