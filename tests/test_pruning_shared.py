"""residual="shared": filters whose channels are summed are one unit, pruned and cut together."""

import keras
import numpy as np
import pytest
from keras import layers

import tfrobust as tr
from tests.bank_masks import images, randomize
from tests.bank_pruning import Watch, compiled
from tests.test_pruning_filters import BINDS, NETS, alive, conv, head, normed, same_logits
from tfrobust.pruning import Linear, MagnitudePruning, OneShot


def stream(first, last):
    """stem (3) -> inner (2) -> outer (3), stem + outer -> logits; the columns weigh as given."""
    inputs = keras.Input((2,))
    stem = layers.Dense(3, name="stem")(inputs)
    x = layers.ReLU()(layers.Dense(2, name="inner")(stem))
    x = layers.Add(name="sum")([stem, layers.Dense(3, name="outer")(x)])
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    model.get_layer("stem").set_weights([np.tile(np.array(first) / 2, (2, 1)), np.ones(3)])
    model.get_layer("inner").set_weights([np.tile(np.array([9.0, 8.0]) / 3, (3, 1)), np.ones(2)])
    model.get_layer("outer").set_weights([np.tile(np.array(last) / 2, (2, 1)), np.ones(3)])
    return model


def lives(model, *names):
    masks = tr.pruning.masks_of(model)
    return [alive(masks[name]).astype(int).tolist() for name in names]


@BINDS
@pytest.mark.parametrize(
    "fraction, options, expected",
    [
        # A channel weighs stem + outer: 1 + 3, 2 + 1.5, 3 + 0.25 in four weights, so the last goes
        # first although it is the best of the stem; the filters of inner weigh 9 and 8 in three.
        (0.2, {}, [[1, 1, 0], [1, 1], [1, 1, 0]]),
        (0.3, {}, [[1, 0, 0], [1, 1], [1, 0, 0]]),
        (0.5, {}, [[1, 0, 0], [1, 0], [1, 0, 0]]),
        (0.5, {"min_filters": 2}, [[1, 1, 0], [1, 1], [1, 1, 0]]),
        (0.3, {"scope": "layer"}, [[1, 1, 0], [1, 0], [1, 1, 0]]),
        (0.6, {"scope": "layer"}, [[1, 0, 0], [1, 0], [1, 0, 0]]),
        (0.3, {"exclude": "inner"}, [[1, 1, 0], [1, 1], [1, 1, 0]]),
    ],
)
def test_by_hand(fraction, options, expected):
    model = stream([1.0, 2.0, 3.0], [3.0, 1.5, 0.25])
    report = tr.pruning.prune(model, fraction, structured="filters", residual="shared", **options)
    assert lives(model, "stem", "inner", "outer") == expected
    assert report.groups == (("stem", "outer"),)
    assert report.to_dict()["groups"] == [["stem", "outer"]]
    for name, units in zip(("stem", "inner", "outer"), expected, strict=True):
        np.testing.assert_array_equal(model.get_layer(name).bias.numpy(), units)
    small = tr.shrink.compact(model)
    for name, units in zip(("stem", "inner", "outer"), expected, strict=True):
        assert small.get_layer(name).units == sum(units)
    assert small.get_layer("logits").kernel.shape[0] == sum(expected[0])
    x = images(16, (2,))
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_without_it_streams_stay():
    model = stream([1.0, 2.0, 3.0], [3.0, 1.5, 0.25])
    report = tr.pruning.prune(model, 0.5, structured="filters")
    assert lives(model, "stem", "inner", "outer") == [[1, 1, 1], [1, 0], [1, 1, 1]]
    assert report.groups == () and dict(report.left)["stem"].startswith("'sum' (Add)")


@pytest.mark.parametrize(
    "normalise, expected", [("none", [[1, 1, 1], [0, 1]]), ("fan_in", [[1, 1, 0], [1, 1]])]
)
def test_channels_count_by_their_weights_where_asked(normalise, expected):
    """The last channel of the stream weighs 3.25 in four weights, the first of inner 3 in three."""
    model = stream([1.0, 2.0, 3.0], [3.0, 1.5, 0.25])
    model.get_layer("inner").set_weights([np.tile(np.array([3.0, 9.0]) / 3, (3, 1)), np.ones(2)])
    options = {"structured": "filters", "residual": "shared"}
    tr.pruning.prune(model, 0.1, normalise=normalise, **options)
    assert lives(model, "stem", "inner") == expected


def growing(before, after):
    """A stream of 2 channels that goes on in one of 5: zeros are added on both sides."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 2))
    x = normed(conv(inputs, 2, name="stem"))
    x = layers.Add(name="sum1")([x, conv(x, 2, name="first")])
    y = layers.BatchNormalization()(conv(normed(x), before + 2 + after, name="second", strides=2))
    x = layers.AveragePooling2D(1, 2)(layers.ReLU()(x))
    x = keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [before, after]])
    x = layers.ReLU()(layers.Add(name="sum2")([x, y]))
    return randomize(keras.Model(inputs, head(x), name="net"))


@BINDS
@pytest.mark.parametrize("before, after", [(0, 3), (1, 2), (3, 0)])
def test_zero_channels_of_a_shortcut_leave_the_others_to_themselves(before, after):
    model = growing(before, after)
    for name in ("stem", "first", "second"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.abs(kernel) + 0.1)
    # The second channel of the small stream, and with it one of the large, weighs least of all.
    model.get_layer("stem").kernel.assign(np.asarray(model.get_layer("stem").kernel) * [1, 1e-3])
    model.get_layer("first").kernel.assign(np.asarray(model.get_layer("first").kernel) * [1, 1e-3])
    scale = np.ones(5)
    scale[before + 1] = 1e-3
    model.get_layer("second").kernel.assign(np.asarray(model.get_layer("second").kernel) * scale)
    options = {"structured": "filters", "residual": "shared", "normalise": "fan_in"}
    report = tr.pruning.prune(model, 0.01, scope="global", **options)
    assert report.groups == (("stem", "first", "second"),)
    wide = [1] * 5
    wide[before + 1] = 0
    assert lives(model, "stem", "first", "second") == [[1, 0], [1, 0], wide]
    small = tr.shrink.compact(model)
    same_logits(model, small)
    assert [small.get_layer(n).filters for n in ("stem", "first", "second")] == [1, 1, 4]
    # By layer the fraction holds in each: one of the two, and two of the three by themselves.
    tr.pruning.prune(model, 0.5, scope="layer", **options)
    assert [sum(units) for units in lives(model, "stem", "first", "second")] == [1, 1, 2]
    same_logits(model, tr.shrink.compact(model))


@BINDS
@pytest.mark.parametrize("name", ["residual", "pre_activation"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_streams_are_cut_exactly(name, scope):
    model = NETS[name]()
    report = tr.pruning.prune(
        model, 0.5, structured="filters", residual="shared", scope=scope, min_filters=2
    )
    assert [n for n, _ in report.left] == ["logits"]
    assert report.groups == (("stem", "outer1", "outer2"),)
    stem, *others = lives(model, "stem", "outer1", "outer2")
    assert others == [stem, stem] and 2 <= sum(stem) <= 8
    small = tr.shrink.compact(model)
    same_logits(model, small)
    assert small.get_layer("logits").kernel.shape[0] == sum(stem)
    for row in report.rows:
        assert small.get_layer(row.name).filters == row.filters_total - row.filters


# What cannot go --------------------------------------------------------------------------------


def with_image(x):
    y = conv(layers.ReLU()(conv(x, 4, name="inner")), 2, name="outer")
    return layers.Add(name="sum")([x, y])


def with_logits(x):
    a, b = (layers.Dense(4, name=n)(layers.Flatten()(conv(x, 4, name=n + "c"))) for n in "ab")
    return layers.Add(name="sum")([a, b])


def with_sigmoid(x):
    a, b = conv(x, name="inner"), layers.Activation("sigmoid", name="bent")(conv(x, name="outer"))
    return layers.Add(name="sum")([layers.ReLU()(a), b])


def with_other(x):
    y = layers.LayerNormalization(name="across")(conv(x, name="outer"))
    return layers.Add(name="sum")([conv(x, name="inner"), y])


def with_number(x):
    return conv(x, name="inner") + 1.0


@pytest.mark.parametrize(
    "build, kept",
    [
        (with_image, {"outer": "'sum' sums it with 'image', whose channels stay"}),
        (with_logits, {"a": "it makes the logits", "b": "it makes the logits"}),
        (
            with_sigmoid,
            {
                "outer": "a filter of zeros is no zero in front of 'sum'",
                "inner": "it shares channels with 'outer': a filter of zeros is no zero in front "
                "of 'sum'",
            },
        ),
        (
            with_other,
            {
                "inner": "'sum' sums it with 'across', whose channels stay",
                "outer": "'across' (LayerNormalization) joins its channels with others",
            },
        ),
        (with_number, {"inner": "(Add) joins its channels with others"}),
    ],
)
def test_what_is_summed_with_something_that_stays_stays(build, kept):
    inputs = keras.Input((8, 8, 2), name="image")
    x = build(inputs)
    if len(x.shape) > 2:
        x = head(conv(x, 4, name="reader"))
    model = randomize(keras.Model(inputs, x))
    report = tr.pruning.prune(model, 0.5, structured="filters", residual="shared")
    left = dict(report.left)
    assert set(left) - {"logits"} == set(kept)
    assert all(reason in left[name] for name, reason in kept.items())
    masks = tr.pruning.masks_of(model)
    assert all(masks[name].all() for name in left) and report.groups == ()
    same_logits(model, tr.shrink.compact(model))


@pytest.mark.parametrize("why", ["it is excluded", "it is frozen"])
def test_a_layer_that_must_not_go_keeps_its_whole_stream(why):
    model = NETS["residual"]()
    model.get_layer("outer1").trainable = why != "it is frozen"
    exclude = ["outer1"] if why == "it is excluded" else []
    report = tr.pruning.prune(
        model, 0.5, structured="filters", residual="shared", exclude=exclude, scope="layer"
    )
    left = dict(report.left)
    assert left.pop("outer1") == why and left.pop("logits")
    assert left == dict.fromkeys(("stem", "outer2"), f"it shares channels with 'outer1': {why}")
    assert [row.name for row in report.rows] == ["inner1", "inner2"]


@pytest.mark.parametrize(
    "options", [{"residual": "all", "structured": "filters"}, {"residual": "shared"}]
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=r"`residual` must be one of \('inside', 'shared'\)"):
        MagnitudePruning(OneShot(0.5), **options)


# In training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_goes_on_and_streams_stay_cut(tmp_path):
    """Weight decay, momentum and two updates; then a reload, `freeze`, and more training."""
    model = compiled(
        NETS["residual"](), keras.optimizers.Adam(0.01, weight_decay=0.1), run_eagerly=True
    )
    prune = MagnitudePruning(
        Linear(0.5, updates=2, every=1), structured="filters", scope="layer", residual="shared"
    )
    x, y = images(24), np.arange(24) % 5
    model.fit(x, y, batch_size=12, epochs=2, verbose=0, callbacks=[prune, Watch(prune)])
    assert prune.report().groups == (("stem", "outer1", "outer2"),)
    small = tr.shrink.compact(model)
    assert small.get_layer("stem").filters == small.get_layer("outer2").filters == 4
    same_logits(model, small)
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    assert tr.pruning.freeze(again).pruned == prune.report().pruned
    compiled(again, run_eagerly=True).fit(x, y, verbose=0)
    small = tr.shrink.compact(again)
    assert small.get_layer("stem").filters == small.get_layer("outer2").filters == 4
    same_logits(again, small)


def test_freeze_leaves_a_channel_that_lives_in_one_layer():
    """A filter of zeros in one layer of a stream: its normalization may still say something."""
    model = NETS["residual"]()
    layer = model.get_layer("outer1")
    layer.kernel.assign(np.asarray(layer.kernel) * ([0, 0] + [1] * 6))
    layer.bias.assign(np.asarray(layer.bias) * ([0, 0] + [1] * 6))
    norms = [n for n in model.layers if isinstance(n, layers.BatchNormalization)]
    before = [norm.beta.numpy() for norm in norms]
    tr.pruning.freeze(model)
    compiled(model, keras.optimizers.SGD(0.1), run_eagerly=True)
    model.fit(images(8), np.arange(8) % 5, verbose=0)
    for norm, beta in zip(norms, before, strict=True):
        assert (norm.beta.numpy() != beta).any() and (norm.beta.numpy() != 0).all()


def test_a_run_goes_on_only_with_the_same_streams():
    model = compiled(NETS["residual"](), run_eagerly=True)
    x, y = images(8), np.arange(8) % 5
    runs = {}
    for residual in ("shared", "inside"):
        prune = MagnitudePruning(OneShot(0.3), structured="filters", residual=residual)
        model.fit(x, y, verbose=0, callbacks=[prune])
        runs[residual] = prune
    state = runs["shared"].state
    assert '"residual": "shared"' in state[0]
    runs["shared"].state = state
    with pytest.raises(ValueError, match="must be those of the run that goes on"):
        runs["inside"].state = state
