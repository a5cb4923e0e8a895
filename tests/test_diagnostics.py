"""r_inf and r_2, closed forms of linear models against the general attacks, silent units."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfrobust as tr
from tests import bank

LINF, L2 = tr.threats.Linf(0.1), tr.threats.L2(1.0)


def linear(weights, bias=None):
    """A linear classifier with the given columns (one of them: a single logit)."""
    weights = np.asarray(weights, np.float32)
    bias = np.zeros(weights.shape[1]) if bias is None else np.asarray(bias)
    inputs = keras.Input((len(weights),))
    net = keras.Model(inputs, keras.layers.Dense(weights.shape[1], name="logits")(inputs))
    net.set_weights([weights, bias])
    return net


def inner(count, size, seed=0):
    """Points of the box that no step of 0.1 leaves."""
    return np.random.default_rng(seed).uniform(0.3, 0.7, (count, size)).astype("float32")


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("classes", [1, 4])
def test_fgs_of_a_linear_model_is_its_closed_form(classes):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(9, classes))
    weights[2] = 0.0  # a pruned input
    net, x = linear(weights), inner(40, 9)
    y = rng.integers(0, max(classes, 2), 40)
    exact = tr.diagnostics.ClosedForm(net)
    np.testing.assert_allclose(tr.attacks.FGSM(LINF)(net, x, y), exact.fgs(x, y, 0.1), atol=1e-6)
    np.testing.assert_array_equal(exact.fgs(x, y, 0.1)[:, 2], x[:, 2])
    if classes == 1:
        far = tr.attacks.PGD(LINF, steps=8, step_size=0.02, random_start=False)
        right = exact.right(x, y)
        after = exact.right(exact.fgs(x, y, 0.1), y)
        np.testing.assert_array_equal(after, ~far.result(net, x, y).fooled)
        gap = (2 * y - 1) * (exact.logits(x)[:, 1] - exact.logits(x)[:, 0])
        np.testing.assert_array_equal(after, gap >= 0.1 * np.abs(weights).sum())
        assert 0 < right.sum() < 40


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("overshoot", [0.0, 0.02])
def test_deepfool_of_a_linear_model_is_its_closed_form(classes, overshoot):
    rng = np.random.default_rng(1)
    weights = 3 * rng.normal(size=(9, classes))
    net, x = linear(weights, -0.5 * weights.sum(0)), inner(40, 9)  # all boundaries in the middle
    exact = tr.diagnostics.ClosedForm(net)
    y = exact.logits(x).argmax(-1)
    attack = tr.attacks.DeepFool(L2, overshoot=overshoot, steps=1)
    with bank.eagerly():
        found = attack.minimum(net, x, y)
    # The attack adds 1e-4 to each step.
    far = exact.distance(x, y)
    ok = found.fooled & (far < 0.25)
    assert ok.sum() >= 30
    np.testing.assert_allclose(found.distance[ok], (1 + overshoot) * (far[ok] + 1e-4), rtol=1e-3)
    move, want = found.x_adv - x, exact.deepfool(x, y) - x
    scale = (1 + overshoot) * (1 + 1e-4 / far[ok])
    np.testing.assert_allclose(move[ok], scale[:, None] * want[ok], atol=2e-5)
    cw = tr.attacks.CarliniWagner(L2, search_steps=3, steps=60, step_size=0.05, initial_const=1.0)
    near = cw.minimum(net, x[:8], y[:8]).distance
    assert (near >= far[:8] - 1e-5).all() and np.isfinite(near).any()


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_box_makes_no_distance_smaller(norm):
    net, x, y = bank.linear()
    exact = tr.diagnostics.ClosedForm(net)
    free = exact.distance(x, y, norm)
    boxed = bank.LINEAR_DISTANCE[norm]
    assert (free <= boxed + 1e-4).all() and (free > 0.2 * boxed).all()
    boxed = tr.diagnostics.r_inf(net, x, y, tr.attacks.FGSM(LINF)).value
    assert boxed >= exact.r_inf(x, y, 0.1).value


def test_deepfool_ends_on_the_boundary_and_wrong_images_stay():
    net, x = linear(np.random.default_rng(2).normal(size=(9, 4))), inner(30, 9)
    y = np.arange(30) % 4
    exact = tr.diagnostics.ClosedForm(net)
    right, found = exact.right(x, y), exact.deepfool(x, y)
    np.testing.assert_array_equal(found[~right], x[~right])
    logits = exact.logits(found)
    rival = np.where(np.eye(4, dtype=bool)[y], -np.inf, logits).max(-1)
    np.testing.assert_allclose(rival[right], logits[np.arange(30), y][right], atol=1e-9)
    length = np.linalg.norm(found - x, axis=-1)
    np.testing.assert_allclose(length, exact.distance(x, y), atol=1e-9)
    np.testing.assert_allclose(exact.r_2(x, y).value, length.mean())


@pytest.mark.parametrize(
    "layers",
    [[keras.layers.Dense(3, activation="relu")], [keras.layers.Dense(3), keras.layers.Dense(2)]],
    ids=["activation", "two layers"],
)
def test_what_is_not_linear_is_refused(layers):
    net = keras.Sequential([keras.Input((4,)), *layers])
    with pytest.raises(ValueError, match="`model` must be linear"):
        tr.diagnostics.ClosedForm(net)


numbers = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@numbers
@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(0.01, 0.5))
def test_theorem_3_1_on_any_sample(seed, size, epsilon):
    """Binary: r_2 is the formula, r_inf at most its bound; no assumption on the classes."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(size, 1)) * (rng.random((size, 1)) < 0.7)
    weights[0] = 1.0
    x, y = rng.uniform(size=(30, size)), rng.integers(0, 2, 30)
    exact = tr.diagnostics.ClosedForm(linear(weights))
    r_2, bound = exact.bounds(x, y, epsilon)
    np.testing.assert_allclose(exact.r_2(x, y).value, r_2, rtol=1e-6, atol=1e-9)
    assert exact.r_inf(x, y, epsilon).value <= bound + 1e-9
    # By hand, in the paper's words: q_k, mu_k, k = +-1.
    w, sign = weights[:, 0].astype(np.float32).astype(np.float64), 2 * y - 1
    right = sign * (x @ w) > 0
    total = sum(
        (right & (sign == k)).mean() * k * w @ x[right & (sign == k)].mean(0)
        for k in (-1, 1)
        if (right & (sign == k)).any()
    )
    np.testing.assert_allclose(total / np.linalg.norm(w), r_2, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(total / (epsilon * np.abs(w).sum()), bound, rtol=1e-6, atol=1e-9)


@numbers
@given(st.integers(0, 10**6), st.integers(3, 6), st.floats(0.01, 0.5))
def test_theorem_3_2_on_any_sample(seed, classes, epsilon):
    """r_2 within its bound always; r_inf where FGS beats the weaker step and repairs nothing."""
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=(8, classes)), rng.normal(size=classes)
    x = rng.uniform(size=(60, 8))
    exact = tr.diagnostics.ClosedForm(linear(weights, bias))
    y = np.where(rng.random(60) < 0.8, exact.logits(x).argmax(-1), rng.integers(0, classes, 60))
    r_2, bound = exact.bounds(x, y, epsilon)
    assert exact.r_2(x, y).value <= r_2 + 1e-9
    v = exact.weights - exact.weights.mean(-1, keepdims=True)
    right = exact.right(x, y)
    weaker = exact.right(x - epsilon * np.sign(v.T[y]), y) & right
    assert weaker.mean() <= bound + 1e-9
    fgs = exact.right(exact.fgs(x, y, epsilon), y)
    first = all(fgs[y == k].sum() <= weaker[y == k].sum() for k in range(classes))
    second = not (fgs & ~right).any()
    if first and second:
        assert fgs.mean() <= bound + 1e-9


@pytest.mark.usefixtures("eagerly")
def test_measures_count_wrong_repaired_and_unfooled_images():
    net = linear([[1.0]], [-0.5])  # right above 0.5 for y = 1
    x, y = np.array([[0.9], [0.55], [0.2], [0.6]], "float32"), np.array([1, 1, 1, 0])
    found = tr.diagnostics.r_inf(net, x, y, tr.attacks.FGSM(LINF))
    assert (found.value, found.n, found.right, found.repaired) == (0.25, 4, 2, 0)
    np.testing.assert_allclose(found.error, np.std([1, 0, 0, 0], ddof=1) / 2)
    found = tr.diagnostics.r_2(net, x, y, tr.attacks.DeepFool(L2, overshoot=0.0))
    np.testing.assert_allclose(found.value, (0.4 + 0.05) / 4, atol=1e-3)
    assert "4" in str(found) and found.to_dict()["right"] == 2


@pytest.mark.usefixtures("eagerly")
def test_an_image_that_nothing_fools_counts_0_and_is_told():
    net = linear([[0.0, 1e-6]], [0.0, 1.0])  # no point of the box is of class 0
    x, y = np.array([[0.25], [0.5]], "float32"), np.array([1, 0])
    with pytest.warns(UserWarning, match="could not fool 1 of 1 right images"):
        found = tr.diagnostics.r_2(net, x, y, tr.attacks.DeepFool(L2, steps=3))
    assert (found.value, found.unfooled) == (0.0, 1)
    np.testing.assert_allclose(found.highest, 0.75 / 2)


def test_the_nearest_of_several_attacks_counts():
    net, x, y = bank.linear()
    weak = tr.attacks.DeepFool(L2, overshoot=1.0)
    strong = tr.attacks.DeepFool(L2, candidates=4)
    each = [tr.diagnostics.r_2(net, x, y, a).values for a in (weak, strong)]
    both = tr.diagnostics.r_2(net, x, y, [weak, strong])
    np.testing.assert_allclose(both.values, np.minimum(*each))
    assert (both.values >= bank.LINEAR_DISTANCE["l2"] - 1e-4).all()


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda *a: tr.diagnostics.r_inf(*a, tr.attacks.DeepFool(L2)), TypeError, "a radius"),
        (lambda *a: tr.diagnostics.r_2(*a, tr.attacks.FGSM(LINF)), TypeError, "smallest change"),
        (lambda *a: tr.diagnostics.r_2(*a, tr.attacks.DeepFool(LINF)), ValueError, "L2 threat"),
        (lambda *a: tr.diagnostics.r_2(*a, []), ValueError, "empty list"),
        (lambda n, x, y: tr.diagnostics.activation_sparsity(x, x), TypeError, "`model`"),
    ],
)
def test_bad_arguments(call, kind, match):
    with pytest.raises(kind, match=match):
        call(*bank.linear())


def test_silent_units_are_counted_by_hand():
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, activation="relu", use_bias=False)(inputs)
    net = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    net.layers[1].set_weights([np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])])
    x = np.array([[0.5, 0.0], [0.5, 1.0]], "float32")  # (1, 0, 0) and (1, 0, 1)
    assert tr.diagnostics.activation_sparsity(net, x) == 0.5


@pytest.mark.parametrize("game", [False, True], ids=["fit", "game"])
def test_an_l1_penalty_enters_the_loss_and_shrinks_kernels(game, tmp_path):
    def trained(penalty):
        net = bank.classifier(seed=1)
        names = tr.regularizers.penalise_kernels(net, keras.regularizers.L1(penalty))
        assert names == ["conv1", "conv2", "dense3", "logits"]
        x, y = bank.images(16), np.arange(16) % 4
        model = tr.training.AdversarialTraining(net, tr.attacks.FGSM(LINF)) if game else net
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        model.fit(x, y, epochs=3, verbose=0, shuffle=False)
        return net

    free, held = trained(0.0), trained(0.05)
    sizes = [sum(np.abs(k).sum() for k in n.trainable_variables if k.name == "kernel")
             for n in (free, held)]  # fmt: skip
    assert sizes[1] < 0.95 * sizes[0]
    np.testing.assert_allclose(sum(map(float, held.losses)), 0.05 * sizes[1], rtol=1e-4)
    held.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_allclose(sum(map(float, again.losses)), 0.05 * sizes[1], rtol=1e-4)
    tr.regularizers.penalise_kernels(again, None)
    assert not again.losses


def test_a_penalty_that_is_none_is_refused():
    with pytest.raises(TypeError, match="`regularizer` must be a keras.Regularizer"):
        tr.regularizers.penalise_kernels(bank.classifier(), 1e-4)
    net = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="layers with kernels"):
        tr.regularizers.penalise_kernels(net, keras.regularizers.L1(1e-4))


def mlp(seed, sizes=(6, 5, 4, 3)):
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input((sizes[0],))
    for size in sizes[1:-1]:
        x = keras.layers.Dense(size, activation="relu")(x)
    net = keras.Model(inputs, keras.layers.Dense(sizes[-1])(x))
    net.set_weights([rng.normal(size=w.shape) for w in net.get_weights()])
    return net


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_lemma_3_1_bounds_every_gradient(seed):
    import tensorflow as tf

    net = mlp(seed)
    x = tf.constant(np.random.default_rng(seed).normal(size=(20, 6)).astype("float32"))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        logits = tf.unstack(net(x), axis=-1)
    slopes = np.stack([tape.gradient(z, x) for z in logits], 1)  # (20, classes, inputs)
    for norm, q in (("l2", 2), ("linf", 1), ("l1", np.inf)):
        bound = tr.diagnostics.lipschitz_product(net, norm)
        found = np.linalg.norm(slopes[:, :, None] - slopes[:, None], q, axis=-1).max(0)
        assert (found <= bound * (1 + 1e-5) + 1e-6).all()
        np.testing.assert_array_equal(np.diag(bound), 0)
    assert (tr.diagnostics.lipschitz_product(net)
            <= tr.diagnostics.lipschitz_product(net, frobenius=True) + 1e-9).all()  # fmt: skip


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0.1, 0.5), min_size=2, max_size=3))
def test_theorem_3_3_products_fall_under_nested_masks(seed, rates):
    """The constants that the theorem builds on: Frobenius for l2, column sums for linf."""
    net, rng = mlp(seed), np.random.default_rng(seed)
    before = [tr.diagnostics.lipschitz_product(net, *a) for a in (("l2", True), ("linf",))]
    for rate in rates:
        for layer in net.layers[1:-1]:  # the last layer stays, as in the theorem
            kernel = np.asarray(layer.kernel)
            layer.kernel.assign(kernel * (rng.random(kernel.shape) >= rate))
        after = [tr.diagnostics.lipschitz_product(net, *a) for a in (("l2", True), ("linf",))]
        assert all((a <= b + 1e-9).all() for a, b in zip(after, before, strict=True))
        before = after


def test_lipschitz_product_refuses_what_it_does_not_bound():
    with pytest.raises(ValueError, match="Received: Conv2D"):
        tr.diagnostics.lipschitz_product(bank.classifier())
    with pytest.raises(ValueError, match="`norm`"):
        tr.diagnostics.lipschitz_product(mlp(0), "linf", frobenius=True)
