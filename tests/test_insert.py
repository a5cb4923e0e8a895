"""layers/insert.py: masks where a closed gate removes a channel; open, they change nothing."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from tests.bank_graphs import conv, unmasked
from tests.bank_masks import FixedMask, images, shut
from tfrobust import attacks, graph, shrink, threats, training
from tfrobust.layers import BetaBernoulliMask, insert_masks, masks
from tfrobust.layers.insert import SLOTS


def _order(model):
    return [node.name for node in graph.walk(model).nodes]


@pytest.mark.parametrize("slot", SLOTS)
def test_open_masks_change_nothing(slot):
    net, x = unmasked(), images(16)
    masked = insert_masks(net, FixedMask, slot)
    np.testing.assert_array_equal(net(x, training=False), masked(x, training=False))
    assert len(masks(masked)) > 3 and not masks(net)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(masked))
    assert _order(again) == _order(masked)


def test_places_after_activation():
    masked = insert_masks(unmasked(), FixedMask)
    order = _order(masked)
    assert [n for n in order if n.startswith("mask_")] == [
        "mask_stem",  # the stem feeds `wide` and the sum: only `wide` sees the gate
        "mask_deep",  # above the squeeze, so that one gate shuts the channel in both operands
        "mask_excite",
        "mask_sum",
        "mask_last",  # before the flatten
        "mask_hidden",
    ]
    assert order.index("mask_deep") < order.index("squeeze")
    assert order.index("pool") < order.index("mask_last") < order.index("flat")
    walked = graph.walk(masked)
    nodes = {n.name: n for n in walked.nodes}
    assert walked.producer(nodes["mask_deep"].inputs[0]).name == "swish"
    assert walked.producer(nodes["sum"].inputs[0]).name == "stem_relu"
    assert walked.producer(nodes["wide"].inputs[0]).name == "mask_stem"
    assert {n.name for n in walked.consumers(nodes["mask_deep"].outputs[0])} == {"squeeze", "gated"}


def test_places_before_activation_split_fused_activations():
    masked = insert_masks(unmasked(), FixedMask, "before_activation")
    order = _order(masked)
    names = ["stem", "wide", "excite", "narrow", "last", "hidden"]  # not `gate`, not the logits
    assert [n for n in order if n.startswith("mask_")] == [f"mask_{n}" for n in names]
    for name in names:
        assert order[order.index(name) + 1] == f"mask_{name}"
    assert order[order.index("mask_hidden") + 1] == "hidden_activation"


def test_a_closed_gate_removes_its_channel():
    masked = insert_masks(unmasked(), FixedMask)
    masked.get_layer("mask_deep").gate.assign([0.0] * 5 + [1.0] * 7)
    small = shrink.compact(masked)
    assert [small.get_layer(n).output.shape[-1] for n in ("wide", "deep", "gate")] == [7, 7, 7]
    masked.get_layer("mask_last").gate.assign([0.0] * 3 + [1.0] * 5)
    assert shrink.compact(masked).get_layer("last").filters == 5


def test_pixels_are_not_masked():
    inputs = keras.Input((8, 8, 2))
    x = layers.ZeroPadding2D(1)(layers.Normalization(mean=0.0, variance=1.0)(inputs))
    x = conv(layers.Concatenate()([x, x]), name="first")
    net = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    assert [m.name for m in masks(insert_masks(net, FixedMask))] == ["mask_first"]


def test_one_mask_for_all_readers_of_a_map():
    inputs = keras.Input((8, 8, 2))
    x = conv(inputs, name="stem")
    x = layers.Concatenate(name="both")([conv(x, name="a"), conv(x, name="b")])
    net = keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))
    names = [m.name for m in masks(insert_masks(net, FixedMask))]
    assert names == ["mask_stem", "mask_both"]


def test_factories():
    net = unmasked()
    made = insert_masks(net, functools.partial(BetaBernoulliMask, initial_a=2.0, seed=1))
    assert made.get_layer("mask_hidden").initial_a == 2.0
    assert len(masks(insert_masks(net, lambda: FixedMask()))) == 6
    with pytest.raises(TypeError, match="`factory` must return a new mask layer"):
        insert_masks(net, lambda: 3)
    one = FixedMask()
    with pytest.raises(TypeError, match="`factory` must return a new mask layer"):
        insert_masks(net, lambda: one)
    with pytest.raises(TypeError, match="`factory` must be a callable"):
        insert_masks(net, "beta")
    for other in (lambda place: FixedMask(name=place), lambda name, a: FixedMask(name=name)):
        with pytest.raises(
            TypeError, match="`factory` must take `name` alone.*Received: a factory"
        ):
            insert_masks(net, other)
    game = training.AdversarialTraining(net, attacks.FGSM(threats.Linf(0.1)))
    with pytest.raises(TypeError, match="pass game.classifier. Received: AdversarialTraining"):
        insert_masks(game, FixedMask)


def test_names_stay_unique():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="a")(inputs)
    x = layers.Identity(name="mask_a")(x)
    net = keras.Model(inputs, layers.Dense(2)(x))
    assert [m.name for m in masks(insert_masks(net, FixedMask))] == ["mask_a_1"]
    twice = insert_masks(insert_masks(net, FixedMask), FixedMask)
    assert [m.name for m in masks(twice)] == ["mask_a_1", "mask_a_2"]


def test_bad_arguments():
    with pytest.raises(ValueError, match="`slot` must be one of"):
        insert_masks(unmasked(), FixedMask, slot="behind")
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="no channels between two Conv or Dense layers"):
        insert_masks(keras.Model(inputs, layers.Dense(2)(inputs)), FixedMask)
    with pytest.raises(TypeError, match="tr.models.prepare"):
        insert_masks(keras.Sequential([inputs, layers.Dense(2)]), FixedMask)


def test_nested_backbone_is_masked_inside():
    inner = keras.Input((8, 8, 2))
    body = keras.Model(inner, conv(layers.ReLU()(conv(inner, name="one")), name="two"), name="body")
    inputs = keras.Input((8, 8, 2))
    net = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(body(inputs))))
    masked = shut(insert_masks(net, FixedMask))
    assert [m.name for m in masks(masked)] == ["mask_one", "mask_two"]
    assert shrink.compact(masked).get_layer("one").filters == 4
