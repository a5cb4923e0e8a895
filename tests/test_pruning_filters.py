"""Whole filters: which go, what is silenced with them, and that `compact` cuts them exactly."""

import keras
import numpy as np
import pytest
from keras import layers

import tfrobust as tr
from tests import bank_graphs
from tests.bank_masks import images, randomize
from tests.bank_pruning import LOGITS, Watch, compiled
from tfrobust.pruning import Linear, MagnitudePruning, OneShot

BINDS = pytest.mark.filterwarnings("ignore:`min_filters`=. keeps filters")
NETS = {}


def net(function):
    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((8, 8, 2), name="image")
        return randomize(keras.Model(inputs, function(inputs), name="net"))

    NETS[function.__name__] = build
    return function


def conv(x, filters=8, name=None, **kwargs):
    return layers.Conv2D(filters, 3, padding="same", name=name, **kwargs)(x)


def normed(x, name=None, **kwargs):
    return layers.ReLU()(layers.BatchNormalization(name=name, **kwargs)(x))


def head(x):
    return layers.Dense(5, name="logits")(layers.Flatten()(x))


@net
def chain(x):
    x = normed(conv(x, name="a", use_bias=False))
    x = layers.MaxPooling2D()(normed(conv(x, name="b")))
    return head(layers.Dense(6, "relu", name="c")(layers.Flatten()(x)))


@net
def norm_behind_the_activation(x):
    x = layers.BatchNormalization(name="norm")(conv(x, name="a", activation="relu"))
    x = layers.BatchNormalization()(layers.Flatten()(conv(x, name="b", activation="tanh")))
    return layers.Dense(5, name="logits")(x)


@net
def norm_without_scale(x):
    x = normed(conv(x, name="a"), scale=False)
    x = normed(conv(x, name="b"), center=False)
    return head(layers.Activation("sigmoid")(conv(x, name="c")))


@net
def residual(x):
    x = normed(conv(x, name="stem"))
    for n in "12":
        y = normed(conv(x, name=f"inner{n}"))
        y = layers.BatchNormalization()(conv(y, name=f"outer{n}"))
        x = layers.ReLU()(layers.Add(name=f"sum{n}")([x, y]))
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(x))


@net
def pre_activation(x):
    x = conv(x, name="stem")
    for n in "12":
        y = conv(normed(x), name=f"inner{n}")
        y = conv(normed(y), name=f"outer{n}")
        x = layers.Add(name=f"sum{n}")([x, y])
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(normed(x)))


@net
def side_by_side(x):
    """Channels of two layers under one normalization, and one of them read once more."""
    a, b = conv(x, name="a"), conv(x, 4, name="b")
    y = normed(layers.Concatenate()([a, b]), name="norm")
    return head(layers.Concatenate()([conv(y, 4, name="c"), layers.MaxPooling2D(1)(a)]))


@net
def depthwise(x):
    x = normed(conv(x, name="a"))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(x)
    return head(conv(normed(x, name="norm"), 4, name="b"))


@net
def squeeze_and_excite(x):
    x = normed(conv(x, name="a"))
    s = layers.Dense(3, "relu", name="squeeze")(layers.GlobalAveragePooling2D()(x))
    s = layers.Dense(8, "sigmoid", name="excite")(s)
    x = layers.Multiply(name="gate")([x, layers.Reshape((1, 1, 8))(s)])
    return head(conv(x, 4, name="b"))


@net
def masked(x):
    """A mask of ours in the paper's slot."""
    x = normed(tr.layers.BetaBernoulliMask(name="mask", initial_a=3.0)(conv(x, name="a")))
    return head(normed(conv(x, 4, name="b")))


STAYS = {
    "residual": {"stem": "'sum1' (Add)", "outer1": "'sum1' (Add)", "outer2": "'sum2' (Add)"},
    "pre_activation": {"stem": "'sum1' (Add)", "outer1": "'sum1' (Add)", "outer2": "'sum2'"},
    "squeeze_and_excite": {"excite": "'gate' multiplies its channels"},
}


def same_logits(model, small):
    x = images(64)
    full, cut = (m(x, training=False).numpy() for m in (model, small))
    assert np.abs(full - cut).max() <= 1e-5 * max(1, np.abs(full).max())


def alive(mask):
    return mask.reshape(-1, mask.shape[-1]).any(axis=0)


@BINDS
@pytest.mark.parametrize(
    "name, scope", [(n, "global") for n in NETS] + [("chain", "layer"), ("side_by_side", "layer")]
)
def test_pruned_filters_are_cut_exactly(name, scope):
    """SAME borders see the pixels of the edge; every reader loses the rows of dead filters."""
    model = NETS[name]()
    report = tr.pruning.prune(model, 0.5, structured="filters", scope=scope)
    assert 0.5 <= report.sparsity < 0.75
    stays = dict(report.left)
    assert set(stays) == {"logits", *STAYS.get(name, ())}
    assert all(reason in stays[n] for n, reason in STAYS.get(name, {}).items())
    masks = tr.pruning.masks_of(model)
    assert all(masks[left].all() for left in stays)
    small = tr.shrink.compact(model)
    same_logits(model, small)
    for row in report.rows:
        assert small.get_layer(row.name).kernel.shape[-1] <= row.filters_total - row.filters
        assert row.pruned == row.filters * row.total // row.filters_total


@pytest.mark.parametrize("name", ["chain", pytest.param("masked", marks=pytest.mark.slow)])
def test_training_goes_on_and_the_cut_stays_exact(name, tmp_path):
    model = compiled(NETS[name](), keras.optimizers.Adam(0.01, weight_decay=0.1), run_eagerly=True)
    schedule = Linear(0.6, updates=2, every=1)
    prune = MagnitudePruning(schedule, structured="filters", scope="layer")
    x, y = images(24), np.arange(24) % 5
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[prune, Watch(prune)])
    assert history.history["sparsity"] == sorted(history.history["sparsity"])
    assert history.history["sparsity"][-1] >= 0.6
    same_logits(model, tr.shrink.compact(model))
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    assert tr.pruning.freeze(again).pruned == prune.report().pruned
    compiled(again, run_eagerly=True).fit(x, y, verbose=0)
    assert tr.pruning.report(again).pruned == prune.report().pruned
    same_logits(again, tr.shrink.compact(again))


def test_bias_gamma_and_beta_go_with_a_filter():
    model = NETS["depthwise"]()
    tr.pruning.prune(model, 0.5, structured="filters", exclude="b")
    dead = ~alive(tr.pruning.masks_of(model)["a"])
    assert dead.sum() == 4
    assert (model.get_layer("a").bias.numpy()[dead] == 0).all()
    twice = np.repeat(dead, 2)
    assert (model.get_layer("deep").bias.numpy()[twice] == 0).all()
    for vector in model.get_layer("norm").get_weights()[:2]:
        assert (vector[twice] == 0).all() and (vector[~twice] != 0).all()


@BINDS
def test_channels_under_one_norm_fall_silent_with_their_own_filter():
    model = NETS["side_by_side"]()
    tr.pruning.prune(model, 0.5, structured="filters", scope="layer")
    masks = tr.pruning.masks_of(model)
    gamma = model.get_layer("norm").gamma.numpy()
    np.testing.assert_array_equal(gamma != 0, np.r_[alive(masks["a"]), alive(masks["b"])])


# The ranking ------------------------------------------------------------------------------------


def by_hand(second=(1.5, 2.5)):
    """Two layers whose filters weigh 1, 2, 3 (in 2 entries) and 1.5, 2.5 (in 3 entries)."""
    inputs = keras.Input((2,))
    x = layers.Dense(3, name="a")(inputs)
    x = layers.Dense(2, name="b")(x)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    first, second = np.array([1.0, 2.0, 3.0]) / 2, np.array(second) / 3
    model.get_layer("a").set_weights([np.tile(first, (2, 1)), np.ones(3)])
    model.get_layer("b").set_weights([np.tile(second, (3, 1)), np.ones(2)])
    return model


def lives(model):
    masks = tr.pruning.masks_of(model)
    return alive(masks["a"]).tolist(), alive(masks["b"]).tolist()


@BINDS
@pytest.mark.parametrize(
    "fraction, options, expected",
    [
        # 12 weights in filters of 2, 2, 2, 3 and 3; in the order of l1: a0, b0, a1, b1, a2
        (0.1, {}, ([False, True, True], [True, True])),
        (0.2, {}, ([False, True, True], [False, True])),
        (0.5, {}, ([False, False, True], [False, True])),
        (0.1, {"normalise": "fan_in"}, ([False, True, True], [True, True])),
        (0.2, {"normalise": "fan_in"}, ([False, True, True], [False, True])),
        (0.3, {"scope": "layer"}, ([False, True, True], [False, True])),
        (0.5, {"scope": "layer"}, ([False, False, True], [False, True])),
        (0.5, {"min_filters": 2}, ([False, True, True], [True, True])),
    ],
)
def test_filters_go_by_their_l1_norm(fraction, options, expected):
    model = by_hand()
    tr.pruning.prune(model, fraction, structured="filters", **options)
    assert lives(model) == expected


@BINDS
def test_fan_in_has_an_order_of_its_own():
    """1, 2, 2.1, 2.5, 3 by l1, and a0 .5, b0 .7, b1 .83, a1 1, a2 1.5 by weight: 4 of 12 go."""
    plain, shared = by_hand(second=(2.1, 2.5)), by_hand(second=(2.1, 2.5))
    tr.pruning.prune(plain, 0.3, structured="filters")
    assert lives(plain) == ([False, False, True], [True, True])
    tr.pruning.prune(shared, 0.3, structured="filters", normalise="fan_in")
    assert lives(shared) == ([False, True, True], [False, True])


def test_what_min_filters_keeps_is_said():
    model = compiled(by_hand(), run_eagerly=True)
    model.get_layer("b").kernel.assign(model.get_layer("b").kernel * 100)
    prune = MagnitudePruning(OneShot(0.6), structured="filters", min_filters=1)
    with pytest.warns(UserWarning, match=r"`min_filters`=1 keeps filters in \['a'\]"):
        model.fit(np.ones((4, 2)), np.arange(4) % 2, verbose=0, callbacks=[prune])
    assert lives(model) == ([False, False, True], [False, True])
    with pytest.warns(UserWarning, match=r"\['b'\].*50\.0 % of the weights"):
        tr.pruning.prune(by_hand(), 0.9, structured="filters", exclude="a", min_filters=1)


@BINDS
def test_softmax_and_whole_layers_stay():
    inputs = keras.Input((8, 8, 2))
    x = layers.Dense(4, "softmax", name="soft")(conv(inputs, name="a"))
    x = layers.LayerNormalization(name="across")(conv(x, name="b"))
    model = keras.Model(inputs, head(conv(x, name="c")))
    report = tr.pruning.prune(model, 0.5, structured="filters")
    assert [row.name for row in report.rows] == ["a", "c"]
    stays = dict(report.left)
    assert stays["soft"] == "'soft' applies a softmax" and "'across' (Layer" in stays["b"]


def test_frozen_layers_stay():
    model = NETS["chain"]()
    model.get_layer("a").trainable = False
    report = tr.pruning.prune(model, 0.5)
    assert ("a", "it is frozen") in report.left
    assert tr.pruning.masks_of(model)["a"].all()


def test_a_model_without_a_graph_is_pruned_entry_by_entry():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(6, name="one"), layers.Dense(4, name="two")

        def call(self, x):
            return self.two(self.one(x))

    model = Own()
    model.compile("adam", LOGITS, run_eagerly=True)
    x = np.ones((8, 3), "float32")
    with pytest.raises(ValueError, match="`model` must be built: call it on a batch first"):
        tr.pruning.prune(model, 0.5)
    model(x)
    prune = MagnitudePruning(OneShot(0.5))
    model.fit(x, np.arange(8) % 4, verbose=0, callbacks=[prune, Watch(prune)])
    assert {row.name: row.pruned for row in prune.report().rows} == {"one": 9, "two": 12}
    with pytest.raises(TypeError, match="is subclassed and has no graph to walk"):
        tr.pruning.prune(model, 0.5, structured="filters")


@BINDS
def test_nested_models():
    name, build = next(row for row in bank_graphs.GRAPHS if row[0] == "nested")
    model = build()
    report = tr.pruning.prune(model, 0.5, structured="filters")
    assert report.sparsity >= 0.5
    same_logits(model, tr.shrink.compact(model))
