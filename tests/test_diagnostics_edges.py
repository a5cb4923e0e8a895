"""Dead, diverged and unfit models, and bad input, in everything that explains."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrobust as tr
from tests import bank, bank_pruning
from tests.test_diagnostics import inner, linear, mlp

D = tr.diagnostics
L2, LINF = tr.threats.L2(1.0), tr.threats.Linf(0.1)
FGSM, DEEPFOOL = tr.attacks.FGSM(LINF), tr.attacks.DeepFool(L2, steps=3)


# --- a dead net: all logits alike -------------------------------------------------------------


def dead(classes):
    return linear(np.zeros((4, classes)))


@pytest.mark.parametrize("classes", [1, 4])
def test_a_dead_net_is_right_on_one_class_only(classes):
    net, x, y = dead(classes), inner(8, 4), np.arange(8) % max(classes, 2)
    share = 1 / max(classes, 2)
    assert not tr.attacks.verdicts(net, x, y).any()  # no attack has won
    np.testing.assert_array_equal(tr.attacks.correct(net, x, y), y == 0)
    found = D.r_inf(net, x, y, FGSM)
    assert (found.value, found.right, found.repaired) == (share, 8 * share, 0)
    exact = D.ClosedForm(net)
    np.testing.assert_array_equal(exact.right(x, y), y == 0)
    found = exact.r_inf(x, y, 0.1)
    assert (found.value, found.repaired) == (share, 0)
    game = tr.training.AdversarialTraining(net, FGSM)
    game.compile("sgd", metrics=None if classes == 1 else ["accuracy"], run_eagerly=True)
    scores = game.evaluate(x, y, verbose=0, return_dict=True)
    assert scores["robust_accuracy"] == scores.get("accuracy", share) == share


def test_the_game_takes_one_hot_labels_and_one_column():
    logits = tf.constant([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    for y in ([0, 1], [[0], [1]], [[1.0, 0, 0], [0, 0.9, 0.1]]):
        assert tr.losses.correct(logits, tf.constant(y)).numpy().tolist() == [True, True]
    one = tf.constant([[0.5], [-0.5], [0.0]])
    assert tr.losses.correct(one, tf.constant([1, 1, 0])).numpy().tolist() == [True, False, True]


class Dying(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        for variable in self.model.trainable_variables:
            variable.assign(tf.zeros_like(variable))


def watch(prune=None, x=None, y=None, attack=FGSM, **options):
    prune = prune or tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5))
    data = bank_pruning.data()
    return D.PruningWatch(prune, data[0] if x is None else x, data[1] if y is None else y,
                          attack, **options)  # fmt: skip


def compiled():
    return bank_pruning.compiled(bank_pruning.dense(), run_eagerly=True)


def test_the_watch_sees_that_a_net_died():
    prune = tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5))
    seen = watch(prune, reference=(np.float32(0.75), 0.5))
    net = compiled()
    with pytest.warns(UserWarning, match=r"era fell by 50.0 % \(50.0 to 25.0 %\)"):
        bank_pruning.fit(net, prune, seen, Dying(), epochs=1)
    assert not seen.rows[0]["over"]  # at chance without a zero: not trained yet
    assert (seen.rows[-1]["benign"], seen.rows[-1]["robust"]) == (0.25, 0.25)
    assert seen.rows[-1]["over"] and '"over": true' in repr(seen)


# --- closed forms without a way out -----------------------------------------------------------


def test_closed_forms_without_a_way_out():
    net, x, y = linear(np.ones((4, 3)), [0.0, 2.0, 1.0]), inner(6, 4), np.arange(6) % 3
    exact = D.ClosedForm(net)
    with pytest.warns(UserWarning, match="No change of any size takes 2 of 2 right images"):
        found = exact.r_2(x, y)
    assert (found.value, found.unfooled, found.highest) == (0.0, 2, None)
    assert "Infinity" not in json.dumps(found.to_dict()) and "2 not fooled" in str(found)
    np.testing.assert_array_equal(exact.distance(x, y), np.where(y == 1, np.inf, 0.0))
    np.testing.assert_array_equal(exact.deepfool(x, y), x.astype(np.float64))
    np.testing.assert_array_equal(exact.fgs(x, y, 0.1), x.astype(np.float64))
    assert exact.bounds(x, y, 0.1) == (np.inf, np.inf)
    assert exact.r_inf(x, y, 0).value == 1 / 3
    assert repr(found).startswith("Measure(value=0.0, error=0.0, n=6, name='r_2'")


# --- bad models -------------------------------------------------------------------------------


def diverged():
    net = bank.classifier(seed=1)
    net.get_layer("conv2").kernel.assign(tf.fill(net.get_layer("conv2").kernel.shape, np.nan))
    return net


@keras.saving.register_keras_serializable(package="tests")
class Steep(keras.layers.Layer):
    """x, with gradients that are NaN."""

    def call(self, x):
        return tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: np.nan * upstream))(x)


def steep():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3)(Steep()(keras.layers.Dense(3)(inputs))))


def chain(*layers, size=4):
    return keras.Sequential([keras.Input((size,)), *layers])


Dense, X, Y = keras.layers.Dense, inner(6, 4), np.arange(6) % 3


def branching():
    inputs = keras.Input((4,))
    x = Dense(4, activation="relu")(inputs)
    return keras.Model(inputs, Dense(3)(x + inputs))


def scaled():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Dense(3)(inputs * 3.0))


def shared():
    inputs, twice = keras.Input((4,)), Dense(4, name="twice")
    return keras.Model(inputs, Dense(3)(twice(twice(inputs))))


class Own(Dense):
    def call(self, x):
        return 2 * super().call(x)


def clever(net=None, **changed):
    net = net or linear(np.eye(4)[:, :3])
    return D.clever(net, X, Y, **{"threat": L2, "batches": 2, "samples": 2, **changed})


def conflict(net=None, a="ce", b="ce", x=X, y=Y, **options):
    return D.gradient_conflict(net or linear(np.eye(4)[:, :3]), a, b, x, y, **options)


def frozen():
    net = mlp(0, (4, 3, 3))
    net.trainable = False
    return net


def exact(net=None):
    return D.ClosedForm(net or linear(np.eye(4)[:, :3]))


def images(call):
    return lambda: call(bank.images(4), np.arange(4))


def fit_with(seen, *others):
    bank_pruning.fit(compiled(), seen, *others, epochs=1)


def fit(**options):
    prune = tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5))
    fit_with(watch(prune, **options), prune)


def penalise(model, kind=keras.regularizers.L1):
    return tr.regularizers.penalise_kernels(model, kind(0.1))


def legacy():
    import tf_keras

    return tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(2,))])


PRODUCT, RELU = D.lipschitz_product, keras.layers.ReLU
BAD = {
    "clever, NaN": (lambda: clever(steep()), ValueError, "`model` must have finite gradients"),
    "clever, NaN weights": (lambda: clever(linear([[np.nan] * 3] * 4)), ValueError, "finite we"),
    "clever, batches 2.0": (lambda: clever(batches=2.0), ValueError, "`batches` must be an int"),
    "clever, samples 0": (lambda: clever(samples=0), ValueError, "`samples` must be an int"),
    "clever, candidates": (lambda: clever(candidates="2"), ValueError, "`candidates` must be"),
    "clever, seed": (lambda: clever(seed=None), ValueError, "`seed` must be an integer"),
    "conflict, NaN": (lambda: conflict(steep()), ValueError, "finite gradients of `loss_a`"),
    "conflict, 2 classes": (
        lambda: conflict(linear(np.eye(4)[:, :2]), b="dlr", y=Y % 2),
        ValueError, "`loss_b` 'dlr' needs a model with 3 classes",
    ),
    "conflict, frozen": (lambda: conflict(frozen()), ValueError, "trainable weights"),
    "conflict, batch 2.5": (lambda: conflict(batch_size=2.5), ValueError, "`batch_size`"),
    "conflict, images": (lambda: conflict(x=X[:, :3]), ValueError, "`x` must have shape"),
    "sparsity, NaN": (
        images(lambda x, y: D.activation_sparsity(diverged(), x)), ValueError, "finite weights in",
    ),
    "product, NaN": (lambda: PRODUCT(linear([[np.nan]])), ValueError, "must have finite weights"),
    "product, slope": (
        lambda: PRODUCT(chain(Dense(3), RELU(negative_slope=2.0, name="up"), Dense(2))),
        ValueError, "Received: ReLU 'up'",
    ),
    "product, threshold": (
        lambda: PRODUCT(chain(Dense(3), RELU(threshold=0.5, name="jump"), Dense(2))),
        ValueError, "Received: ReLU 'jump'",
    ),
    "product, activation": (
        lambda: PRODUCT(chain(Dense(3, activation="selu", name="selu"), Dense(2))),
        ValueError, "Received: Dense 'selu'",
    ),
    "product, convolution": (
        lambda: PRODUCT(keras.Sequential([
            keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, activation="relu", name="conv"),
            keras.layers.Flatten(), Dense(2),
        ])),
        ValueError, "Received: Conv2D 'conv'",
    ),
    "product, subclass": (lambda: PRODUCT(chain(Own(3, name="own"))), ValueError, "Own 'own'"),
    "product, softmax": (
        lambda: PRODUCT(chain(Dense(3, activation="relu", name="top"))), ValueError, "Dense 'top'",
    ),
    "product, shared": (lambda: PRODUCT(shared()), ValueError, "Layer 'twice' is used more"),
    "product, branch": (lambda: PRODUCT(branching()), ValueError, "a branch at Add"),
    "product, scaled": (lambda: PRODUCT(scaled()), ValueError, "Received: Multiply"),
    "product, unbuilt": (lambda: PRODUCT(keras.Sequential([Dense(2)])), ValueError, "input shape"),
    "product, norm": (lambda: PRODUCT(mlp(0), ["l2"]), TypeError, "`norm` must be one of"),
    "product, None": (lambda: PRODUCT(None), TypeError, "`model` must be"),
    "exact, shared": (lambda: exact(shared()), ValueError, "Layer 'twice' is used more"),
    "exact, scaled": (lambda: exact(scaled()), ValueError, "`model` must be linear"),
    "exact, unbuilt": (lambda: exact(keras.Sequential([Dense(2)])), ValueError, "input shape"),
    "exact, NaN": (lambda: exact(linear([[np.nan]])), ValueError, "must have finite weights"),
    "exact, None": (lambda: D.ClosedForm(None), TypeError, "`model` must be"),
    "exact, norm": (lambda: exact().distance(X, Y, ["l2"]), TypeError, "`norm` must be one of"),
    "exact, epsilon": (lambda: exact().r_inf(X, Y, np.nan), ValueError, "`epsilon` must be fin"),
    "exact, epsilon -1": (lambda: exact().bounds(X, Y, -1), ValueError, "`epsilon` must be fin"),
    "exact, epsilon None": (lambda: exact().fgs(X, Y, None), TypeError, "`epsilon` must be a n"),
    "exact, grey": (lambda: exact().r_2(255 * X, Y), ValueError, r"`x` must lie in \[0, 1\]"),
    "exact, bytes": (lambda: exact().r_2(X.astype("uint8"), Y), TypeError, "float pixels"),
    "exact, shape": (lambda: exact().r_2(X[:, :3], Y), ValueError, "`x` must have shape"),
    "exact, labels": (lambda: exact().right(X, Y + 1), ValueError, r"`y` must lie in \[0, 2\]"),
    "r_inf, no attack": (lambda: D.r_inf(mlp(0), X, Y, None), TypeError, "`attack` must be"),
    "r_inf, a list": (lambda: D.r_inf(mlp(0), X, Y, [FGSM]), TypeError, "`attack` must be"),
    "r_inf, a class": (lambda: D.r_inf(mlp(0), X, Y, type(FGSM)), TypeError, "`attack` must be"),
    "r_inf, no model": (lambda: D.r_inf(None, X, Y, FGSM), TypeError, "`model` must be"),
    "r_2, no model": (lambda: D.r_2(None, X, Y, DEEPFOOL), TypeError, "`model` must be"),
    "r_2, a class": (lambda: D.r_2(mlp(0), X, Y, type(DEEPFOOL)), TypeError, "`attack` must be"),
    "watch, reference": (lambda: watch(reference=(1.2, 0.5)), ValueError, "`reference` must lie"),
    "watch, era": (lambda: watch(reference=(0.9, 2.0)), ValueError, "`reference` must lie in"),
    "watch, NaN": (lambda: watch(reference=(0.9, np.nan)), ValueError, "`reference` must lie in"),
    "watch, r_2": (
        lambda: watch(attack=DEEPFOOL, reference=(0.9, -1.0)), ValueError, "`reference` must be",
    ),
    "watch, drop": (lambda: watch(drop="5 %"), TypeError, "`drop` must be a number"),
    "watch, alone": (lambda: fit_with(watch()), ValueError, "`callbacks` must hold the Magn"),
    "watch, images": (lambda: fit(x=bank.images(24)), ValueError, "`x` must have shape"),
    "watch, labels": (lambda: fit(y=np.arange(24)), ValueError, r"`y` must lie in \[0, 3\]"),
    "penalty, None": (lambda: penalise(None), TypeError, "`model` must be a Keras 3 model"),
    "penalty, tf_keras": (lambda: penalise(legacy()), TypeError, "`model` must be a Keras 3 mo"),
    "penalty, unbuilt": (
        lambda: penalise(keras.Sequential([Dense(2)])), ValueError, "`model` must be built",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "match"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, match):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of tf_keras
        with pytest.raises(kind, match=match) as error:
            call()
    assert "\n" not in str(error.value)


def test_what_the_product_still_bounds():
    relu, leaky = keras.layers.ReLU(max_value=1.0), keras.layers.ReLU(negative_slope=0.5)
    net = chain(Dense(3), relu, Dense(3), leaky, keras.layers.Activation("relu"), Dense(2))
    weights = [np.asarray(w) for w in net.get_weights() if w.ndim == 2]
    want = np.prod([np.linalg.norm(w, 2) for w in weights[:2]])
    want *= np.linalg.norm(weights[2][:, 0] - weights[2][:, 1])
    np.testing.assert_allclose(D.lipschitz_product(net)[0, 1], want, rtol=1e-6)


# --- the watch from fit to fit ----------------------------------------------------------------


def test_rows_go_on_with_the_same_model_and_start_anew_with_another():
    prune = tr.pruning.MagnitudePruning(tr.pruning.OneShot(0.5))
    seen = watch(prune, drop=0.99)
    net = compiled()
    for model, count in ((net, 2), (net, 3), (compiled(), 2)):
        bank_pruning.fit(model, prune, seen, epochs=1)
        assert len(seen.rows) == count
    assert "2 rows, last: {" in repr(seen) and "no rows yet" in repr(watch())


@pytest.mark.parametrize(
    "changed", [{"drop": 0.1}, {"reference": (0.9, 0.8)}, {"attack": tr.attacks.PGD(LINF, steps=7)},
                {"attack": DEEPFOOL}, {"x": bank_pruning.data()[0][:8], "y": np.arange(8) % 4}],
    ids=["drop", "reference", "attack", "name", "images"],
)  # fmt: skip
def test_a_resumed_watch_must_be_the_same(changed):
    kept = watch()
    kept.rows = [{"sparsity": 0.0}]
    again = watch(drop=np.float64(0.05))
    again.state = kept.state
    assert again.rows == kept.rows
    with pytest.raises(ValueError, match="`PruningWatch` must be that of the run"):
        watch(**changed).state = kept.state


def test_the_warning_tells_what_rose():
    seen = watch(reference=(0.90, 0.64))
    robust = D.Measure("era", "", np.array([0.52, 0.52]), 2)
    seen._figures = lambda net: (0.92, robust)
    wanted = (
        r"era fell by 18.8 % \(64.0 to 52.0 %\) where benign accuracy rose by 2.22 % "
        r"\(90.00 to 92.00 %\)"
    )
    with pytest.warns(UserWarning, match=wanted):
        seen._measure(bank_pruning.dense())


@pytest.mark.parametrize("game", [False, True], ids=["fit", "game"])
def test_a_penalty_counts_in_steps_that_were_traced_before(game):
    net = bank_pruning.dense()
    model = (bank_pruning.adversarial if game else bank_pruning.compiled)(
        net, keras.optimizers.SGD(0.0)
    )
    data = bank_pruning.data()

    def losses():
        trained = model.fit(*data, batch_size=24, verbose=0, shuffle=False).history["loss"][0]
        return np.array([trained, model.evaluate(*data, verbose=0, return_dict=True)["loss"]])

    before = losses()
    penalise(model)
    size = sum(0.1 * np.abs(k).sum() for k in net.trainable_variables if k.name == "kernel")
    grown = losses() - before
    # The game's validation loss is without penalties; averages of the normalization moved.
    np.testing.assert_allclose(grown, [size, 0.0 if game else size], rtol=0.02, atol=0.3)
