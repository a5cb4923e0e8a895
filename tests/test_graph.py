"""graph.py: walking flattens, rebuilding copies, and what cannot be rebuilt is refused by name."""

import keras
import numpy as np
import pytest
from keras import layers

from tfrobust import graph


def _image_net():
    x = inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(x)
    y = layers.BatchNormalization(name="norm")(x)
    y = layers.ReLU(6.0, name="clip")(y + 3.0) * (1.0 / 6.0)
    x = layers.Multiply(name="gate")([x, y])
    x = keras.ops.take(x, np.array([0, 2, 3]), axis=-1)
    x = layers.Concatenate(name="join")([x, keras.activations.relu(x)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="net")


def _nested():
    """A backbone in a Sequential in a functional model, with clashing layer names."""
    backbone = _image_net()
    backbone = keras.Model(backbone.input, backbone.get_layer("join").output, name="backbone")
    body = keras.Sequential([keras.Input((6, 6, 2)), backbone], name="body")
    x = inputs = keras.Input((6, 6, 2), name="pixels")
    x = layers.Rescaling(2.0, offset=-1.0, name="scale")(x)
    x = body(x, training=False)
    x = layers.Conv2D(3, 1, name="conv")(x)
    return keras.Model(inputs, layers.Flatten(name="flat")(x))


def _same(a, b, shape=(4, 6, 6, 2), tolerance=1e-6):
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    np.testing.assert_allclose(a(x, training=False), b(x, training=False), rtol=0, atol=tolerance)


@pytest.mark.parametrize("build", [_image_net, _nested])
def test_rebuild_returns_a_fresh_model_with_the_same_function(build):
    keras.utils.set_random_seed(0)
    model = build()
    again = graph.rebuild(model)
    assert not {id(v) for v in model.variables} & {id(v) for v in again.variables}
    assert again.name == model.name
    _same(model, again)
    _same(model, graph.rebuild(again))


def test_walk_flattens_and_renames_only_on_a_clash():
    nodes = graph.walk(_nested()).nodes
    names = [n.name for n in nodes]
    assert len(names) == len(set(names))
    assert names[0] == "scale" and names[-1] == "flat"
    assert {"conv", "conv_1"} <= set(names) or {"conv", "backbone_conv"} <= set(names)
    assert not any(isinstance(n.layer, keras.Model) for n in nodes)


def test_training_flag_of_a_nested_call_reaches_the_layers_inside():
    nodes = {n.name: n for n in graph.walk(_nested()).nodes}
    assert nodes["norm"].kwargs["training"] is False


def test_producers_and_consumers():
    g = graph.walk(_image_net())
    (first,) = g.consumers(g.inputs[0])
    assert first.name == "conv" and g.producer(g.inputs[0]) is None
    assert {n.name for n in g.consumers(first.outputs[0])} == {"norm", "gate"}
    assert g.producer(g.outputs[0]).name == "logits"


def test_saved_rebuilt_model_loads(tmp_path):
    model = graph.rebuild(_nested())
    model.save(tmp_path / "m.keras")
    _same(model, keras.saving.load_model(tmp_path / "m.keras"))


def test_visit_replaces_removes_and_edge_inserts():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="a")(inputs)
    x = layers.Dropout(0.5, name="drop")(x)
    model = keras.Model(inputs, layers.Dense(2, name="b")(x))

    def visit(node, *args, **kwargs):
        return args[0] if node.name == "drop" else graph.copy(node, *args, **kwargs)

    def edge(value, node, index):
        if node is not None and node.name == "b":
            return layers.Rescaling(2.0, name="twice")(value)
        return value

    new = graph.rebuild(model, visit, edge)
    assert [n.name for n in graph.walk(new).nodes] == ["a", "twice", "b"]
    x = np.ones((2, 4), "float32")
    bias = model.get_layer("b").bias
    np.testing.assert_allclose(new(x) - bias, 2 * (model(x) - bias), atol=1e-6)


def test_structure_of_inputs_and_outputs_is_kept():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    s = layers.Add()([a, b])
    model = keras.Model({"a": a, "b": b}, {"sum": s, "out": layers.Dense(1)(s)})
    new = graph.rebuild(model)
    one = np.ones((1, 2), "float32")
    got = new({"a": one, "b": one})
    assert set(got) == {"sum", "out"}
    np.testing.assert_allclose(got["sum"], 2 * one)


def test_adapted_normalization_keeps_its_statistics():
    norm = layers.Normalization(name="norm")
    norm.adapt(np.random.default_rng(0).normal(5, 3, (64, 2)).astype("float32"))
    model = keras.Sequential([keras.Input((2,)), norm, layers.Dense(2)])
    _same(model, graph.rebuild(model), shape=(4, 2))


def test_mixed_precision_and_frozen_layers_survive():
    inputs = keras.Input((4,))
    x = layers.Dense(3, dtype="mixed_bfloat16", name="half")(inputs)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32", trainable=False, name="f")(x))
    new = graph.rebuild(model)
    assert new.get_layer("half").compute_dtype == "bfloat16"
    assert not new.get_layer("f").trainable


@pytest.mark.parametrize("activation", ["relu", layers.LeakyReLU(negative_slope=0.3)])
def test_split_activation(activation):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, activation=activation, name="d"), layers.Dense(2)]
    )

    def visit(node, *args, **kwargs):
        if node.name != "d":
            return graph.copy(node, *args, **kwargs)
        layer, activation = graph.split_activation(node)
        x = layer(*args, **kwargs)
        graph.transfer(node.layer, layer)
        return activation(x)

    new = graph.rebuild(model, visit)
    assert [n.name for n in graph.walk(new).nodes][:2] == ["d", "d_activation"]
    _same(model, new, shape=(4, 4))


def test_shared_layer_is_refused_by_name():
    shared = layers.Dense(4, name="twice")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match="'twice' is used more than once"):
        graph.rebuild(model)


def test_shared_nested_model_is_refused_by_name():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="tower")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inner(inputs)))
    with pytest.raises(ValueError, match="'tower' is used more than once"):
        graph.walk(model)


def test_layer_shared_with_another_model_is_fine():
    model = _image_net()
    features = keras.Model(model.input, model.get_layer("pool").output)
    assert len(graph.walk(features).nodes) == len(graph.walk(model).nodes) - 1
    graph.walk(model)


class _Own(keras.Model):
    def call(self, x):
        return x


class _Unserializable(layers.Layer):
    def __init__(self, table):
        super().__init__(name="odd")

    def call(self, x):
        return x


def test_what_has_no_graph_is_refused():
    with pytest.raises(TypeError, match="subclassed"):
        graph.walk(_Own())
    with pytest.raises(TypeError, match="Received: int"):
        graph.walk(3)
    with pytest.raises(ValueError, match="no input shape"):
        graph.walk(keras.Sequential([layers.Dense(2)]))


def test_layer_without_config_is_named():
    model = keras.Sequential([keras.Input((2,)), _Unserializable(np.zeros(3))])
    with pytest.raises(ValueError, match="'odd'"):
        graph.rebuild(model)
