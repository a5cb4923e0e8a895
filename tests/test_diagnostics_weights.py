"""Gradient conflict, CLEVER and the watch over a pruning schedule."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank, bank_pruning
from tfrobust.diagnostics.weibull import right_end

L2, LINF = tr.threats.L2(1.0), tr.threats.Linf(0.1)


# --- gradient conflict ------------------------------------------------------------------------


def test_conflict_by_hand():
    """Gradients (3, -1, pruned, 0) and (1, 2, pruned, 5): one of two in conflict, cosine 1/20."""
    inputs = keras.Input((4,))
    net = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="logits")(inputs))
    net.set_weights([np.array([[1.0], [1.0], [0.0], [1.0]])])
    a, b = np.float32([3, -1, 7, 0]), np.float32([1, 2, -7, 5])

    def loss(slope):
        def of(model, x, y):
            weights = model.layers[-1].kernel[:, 0]
            return tf.fill(tf.shape(x)[:1], tf.reduce_sum(weights * slope))

        return of

    x, y = bank.images(10, (4,)), np.zeros(10, int)
    found = tr.diagnostics.gradient_conflict(net, loss(a), loss(b), x, y, batch_size=4)
    assert (found.opposite, found.both, found.coordinates, found.left_out) == (1, 2, 3, 1)
    assert found.share == 0.5
    np.testing.assert_allclose(found.cosine, 1 / np.sqrt(10 * 30), rtol=1e-6)
    assert found.rows[0].name == "logits" and "50.0 % of 2" in str(found)
    assert found.to_dict()["rows"][0]["share"] == 0.5


def test_the_gradient_is_that_of_the_whole_set_whatever_the_batches():
    net, x, y = bank.classifier(seed=1), bank.images(20), np.arange(20) % 4
    tr.pruning.prune(net, 0.5)
    found = [
        tr.diagnostics.gradient_conflict(net, "ce", tr.attacks.FGSM(LINF), x, y, batch_size=size)
        for size in (20, 8)
    ]
    np.testing.assert_allclose(found[0].cosine, found[1].cosine, rtol=1e-4)
    assert abs(found[0].opposite - found[1].opposite) <= 2
    total = found[0]
    assert total.left_out == tr.pruning.report(net).pruned
    assert sum(row.both for row in total.rows) == total.both
    assert [row.name for row in total.rows] == ["conv1", "conv2", "dense3", "logits"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tr.losses.cross_entropy(net(x, training=False), y))
    ce = tape.gradient(loss, net.trainable_variables)
    x_adv = tr.attacks.FGSM(LINF)(net, x, y)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tr.losses.cross_entropy(net(x_adv, training=False), y))
    adv = tape.gradient(loss, net.trainable_variables)
    kept = [np.asarray(v) != 0 if v.name == "kernel" else np.ones(v.shape, bool)
            for v in net.trainable_variables]  # fmt: skip
    a, b = (np.concatenate([g.numpy()[k] for g, k in zip(part, kept, strict=True)])
            for part in (ce, adv))  # fmt: skip
    np.testing.assert_allclose(total.cosine, a @ b / np.linalg.norm(a) / np.linalg.norm(b), 1e-4)


@pytest.mark.parametrize(
    ("loss", "kind", "match"),
    [
        (3, TypeError, "`loss_b` must be one of"),
        (lambda m, x, y: tf.reduce_sum(m(x)), ValueError, "one number per image"),
        ("cross", ValueError, "`loss_b` must be one of"),
        ("kl", ValueError, "`loss_b` must be one of"),
        (keras.losses.SparseCategoricalCrossentropy(), TypeError, "`loss_b` must be one of"),
        (lambda m, x, y: tf.reduce_mean(m(x))[None], ValueError, "one number per image"),
    ],
)
def test_bad_losses(loss, kind, match):
    with pytest.raises(kind, match=match):
        tr.diagnostics.gradient_conflict(
            bank.classifier(), "ce", loss, bank.images(4), [0, 1, 2, 3]
        )


# --- CLEVER -----------------------------------------------------------------------------------


def test_the_right_end_of_known_distributions():
    rng = np.random.default_rng(0)
    uniform = rng.uniform(2, 3, (400, 8)).max(-1)
    end, p = right_end(uniform)
    assert 2.995 < end < 3.02 and p > 0.01
    assert right_end(np.full(50, 4.2)) == (4.2, pytest.approx(np.nan, nan_ok=True))
    end, p = right_end(4.2 * (1 + 1e-8 * rng.normal(size=50)))
    assert end == pytest.approx(4.2, rel=1e-7) and np.isnan(p)
    two = np.repeat([1.0, 2.0], 200)  # no Weibull distribution: the largest sample
    assert right_end(two)[0] == 2.0 and np.isnan(right_end(two)[1])


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_clever_of_a_linear_model_is_the_exact_distance(norm):
    net, x, y = bank.linear()
    exact = tr.diagnostics.ClosedForm(net)
    threat = tr.threats.NORMS[norm](1.0 if norm != "l1" else 3.0)
    found = tr.diagnostics.clever(net, x, y, threat, batches=3, samples=4)
    want = np.minimum(exact.distance(x, y, norm), threat.epsilon)
    np.testing.assert_allclose(found.scores, want, rtol=1e-4)
    assert found.capped == int((want == threat.epsilon).sum()) and found.fitted == 0


def test_clever_of_the_curve_is_near_and_capped():
    net, x, y = (part if number == 0 else part[1:4] for number, part in enumerate(bank.curve()))
    threat = tr.threats.L2(0.15)
    options = {"batches": 16, "samples": 64, "seed": 1}
    found = tr.diagnostics.clever(net, x, y, threat, **options)
    exact = bank.CURVE_DISTANCE["l2"][1:4]
    assert (found.scores <= threat.epsilon).all()
    # The steepest place of the ball is at least as steep as the way to the boundary.
    assert (found.scores <= exact * 1.02).all()
    assert (found.scores > 0.3 * np.minimum(exact, 0.15)).all()
    first = x[:1], y[:1], threat
    same = tr.diagnostics.clever(net, *first, **options)
    np.testing.assert_array_equal(found.scores[:1], same.scores)
    aimed = [tr.diagnostics.clever(net, *first, goal=[k], **options).scores[0] for k in (1, 2, 3)]
    np.testing.assert_allclose(min(aimed), found.scores[0], rtol=1e-6)
    assert "estimate" in str(found) and found.to_dict()["n"] == 3


def test_wrong_images_score_0_and_flat_ones_the_radius(capsys):
    net, x, y = bank.linear()
    found = tr.diagnostics.clever(
        net, x[:2], [int(y[0]), (int(y[1]) + 1) % 10], L2, batches=2, samples=2, progress=True
    )
    assert found.scores[0] > 0 and found.scores[1] == 0
    assert "image 1/2" in capsys.readouterr().out
    flat = keras.models.clone_model(net)
    flat.set_weights([np.zeros((64, 10)), np.eye(10)[3]])
    assert tr.diagnostics.clever(flat, x[:1], [3], L2, batches=2, samples=2).scores == [1.0]


@pytest.mark.parametrize(
    ("changed", "kind", "match"),
    [
        ({"threat": 0.3}, TypeError, "`threat`"),
        ({"threat": tr.threats.L2(0.0)}, ValueError, "radius > 0"),
        ({"batches": 1}, ValueError, "`batches`"),
        ({"goal": np.array([9, 9, 1, 1, 1, 9])}, ValueError, "`goal` must differ"),
    ],
)
def test_bad_clever(changed, kind, match):
    net, x, y = bank.linear()
    with pytest.raises(kind, match=match):
        tr.diagnostics.clever(net, x, y, **{"threat": L2, **changed})


# --- the watch --------------------------------------------------------------------------------


def watched(attack=None, updates=3, unit="epochs", **options):
    schedule = tr.pruning.Linear(0.6, updates=updates, every=1, unit=unit)
    prune = tr.pruning.MagnitudePruning(schedule)
    x, y = bank_pruning.data()
    attack = attack or tr.attacks.FGSM(tr.threats.Linf(0.02))
    return prune, tr.diagnostics.PruningWatch(prune, x, y, attack, **options)


@pytest.mark.filterwarnings("ignore:Over-pruned")
@pytest.mark.parametrize(("unit", "game"), [("epochs", True), ("steps", False)])
def test_a_row_before_each_update_and_at_the_end(unit, game):
    prune, watch = watched(unit=unit)
    net = bank_pruning.dense()
    make = bank_pruning.adversarial if game else bank_pruning.compiled
    model = make(net, run_eagerly=True)
    bank_pruning.fit(model, prune, watch, epochs=3)
    reached = [row["sparsity"] for row in watch.rows]
    np.testing.assert_allclose(reached, [0.0, 0.2, 0.4, 0.6], atol=0.02)
    x, y = bank_pruning.data()
    right = ~tr.attacks.verdicts(net, x, y)
    assert watch.rows[-1]["benign"] == right.mean()
    fooled = watch.attack.result(net, x, y).fooled
    assert watch.rows[-1]["robust"] == (right & ~fooled).mean() <= right.mean()
    assert watch.name == "era"


class Scripted(tr.diagnostics.PruningWatch):
    """A watch with given figures."""

    figures = ()

    def _figures(self, net):
        benign, robust = self.figures[len(self.rows)]
        return benign, tr.diagnostics.Measure("era", "", np.array([robust, robust]), 0)


@pytest.mark.parametrize(
    ("last", "options", "over"),
    [
        ((0.98, 0.80), {}, False),
        ((0.98, 0.75), {}, True),  # 6 % down, accuracy stays
        ((0.96, 0.70), {}, False),  # accuracy tells it too
        ((0.96, 0.70), {"benign_drop": 0.03}, True),
        ((0.98, 0.75), {"drop": 0.1}, False),
        ((0.98, 0.80), {"reference": (0.98, 0.9)}, True),
    ],
)
def test_it_warns_when_robustness_falls_before_accuracy(last, options, over):
    prune = tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5))
    watch = Scripted(prune, *bank_pruning.data(), tr.attacks.FGSM(LINF), **options)
    start = options.get("reference", (0.98, 0.80))
    watch.figures = [start, last]
    net = bank_pruning.compiled(bank_pruning.dense(), run_eagerly=True)
    if over:
        with pytest.warns(UserWarning, match="Over-pruned at 50.0 % zeros: era fell by"):
            bank_pruning.fit(net, prune, watch, epochs=1)
    else:
        bank_pruning.fit(net, prune, watch, epochs=1)
    assert [row["over"] for row in watch.rows] == [False, over]


@pytest.mark.filterwarnings("ignore:Over-pruned")
def test_resume_keeps_the_rows(tmp_path):
    x, y = bank_pruning.data()

    def run(epochs, folder):
        prune, watch = watched(tr.attacks.DeepFool(L2, steps=5), updates=4)
        net = bank_pruning.compiled(bank_pruning.dense(), run_eagerly=True)
        batches = tr.data.Batches(x, y, 8, seed=0)
        keeper = tr.training.Resume(folder, batches, [prune, watch], delete_checkpoint=False)
        net.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=[prune, watch, keeper])
        return watch

    whole = run(4, tmp_path / "whole")
    with pytest.warns(UserWarning, match="did not reach"):
        run(2, tmp_path / "parts")
    parts = run(4, tmp_path / "parts")
    assert whole.name == "r_2" and len(whole.rows) == 5
    assert parts.rows == whole.rows


@pytest.mark.parametrize(
    ("changed", "kind", "match"),
    [
        ({"prune": None}, TypeError, "`prune`"),
        ({"attack": "fgsm"}, TypeError, "`attack`"),
        ({"attack": tr.attacks.DeepFool(LINF)}, ValueError, "L2 threat"),
        ({"drop": 5}, ValueError, "`drop` must lie in"),
        ({"reference": 0.9}, ValueError, "`reference`"),
    ],
)
def test_bad_watch(changed, kind, match):
    prune = tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5))
    given = {"prune": prune, "attack": tr.attacks.FGSM(LINF), **changed}
    x, y = bank_pruning.data()
    with pytest.raises(kind, match=match):
        tr.diagnostics.PruningWatch(x=x, y=y, **given)
