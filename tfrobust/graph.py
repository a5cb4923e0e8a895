"""The one walker and rebuilder of functional models: everything that reads or cuts a graph uses it.

`walk` lists the calls of a model in topological order with nested models and Sequential flattened;
`rebuild` runs through the same list, lets the caller decide what becomes of each call, and returns
a new model of fresh layers. Insert, prepare, shrink, count and bound are all written on these two:

    def visit(node, *args, **kwargs):
        if isinstance(node.layer, keras.layers.Dropout):
            return args[0]                              # remove
        return graph.copy(node, *args, **kwargs)        # keep: a fresh layer, weights copied

    plain = graph.rebuild(model, visit)

The original model is never touched. Layers keep their names; where two nested models use the same
one, the inner is prefixed with the name of its model. A layer that is called twice is refused.
"""

import dataclasses
import itertools

import keras
from keras.src.models import Functional


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer, or of a `keras.ops` operation, in a flattened model.

    Attributes:
        name: Name of the layer, unique in the flattened model.
        layer: The original `keras.layers.Layer` or `keras.Operation`.
        args, kwargs: Arguments of the call; a KerasTensor stands for the result of another node
            (or for an input of the model), whichever nested model it came from.
        outputs: The KerasTensors it returns.
    """

    name: str
    layer: keras.Operation
    args: tuple
    kwargs: dict
    outputs: tuple

    @property
    def inputs(self):
        """The KerasTensors among the arguments, in order."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        return tuple(x for x in flat if isinstance(x, keras.KerasTensor))


class Graph:
    """The calls of a model in topological order: what `walk` returns.

    Attributes:
        nodes: Tuple of `Node`, without the input layers.
        inputs, outputs: Tuples of KerasTensors of the whole model.
    """

    def __init__(self, nodes, inputs, outputs):
        self.nodes, self.inputs, self.outputs = tuple(nodes), tuple(inputs), tuple(outputs)
        self._producers = {id(t): node for node in self.nodes for t in node.outputs}
        self._consumers = {}
        for node in self.nodes:
            for tensor in {id(t): t for t in node.inputs}.values():
                self._consumers.setdefault(id(tensor), []).append(node)

    def producer(self, tensor):
        """The node that returns `tensor`, or None for an input of the model."""
        return self._producers.get(id(tensor))

    def consumers(self, tensor):
        """The nodes that take `tensor`, in topological order (the model's output is not a node)."""
        return tuple(self._consumers.get(id(tensor), ()))


def walk(model):
    """Lists the calls of a functional or Sequential model, nested models flattened.

    Args:
        model: Built functional or Sequential `keras.Model`; subclassed models have no graph.

    Returns:
        A `Graph`.

    Raises:
        TypeError: `model` is not functional (a subclass with its own `call`, or no model).
        ValueError: a Sequential without an input shape, or a layer or nested model used twice.

    Example:

    >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden")])
    >>> model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="logits")])
    >>> [node.name for node in walk(model).nodes]
    ['hidden', 'logits']
    """
    functional = _functional(model)
    nodes, resolved, names = [], {}, set()
    names.update(_name_of_input(t) for t in functional.inputs)
    seen = set()

    def resolve(x):
        return resolved.get(id(x), x) if isinstance(x, keras.KerasTensor) else x

    def visit(inner, prefix, training):
        for depth in sorted(inner._nodes_by_depth, reverse=True):
            for call in inner._nodes_by_depth[depth]:
                layer = call.operation
                if call.is_input:
                    continue
                if id(layer) in seen:
                    raise ValueError(
                        f"Layer '{layer.name}' is used more than once: shared layers cannot be "
                        "rebuilt. Give each place its own layer."
                    )
                seen.add(id(layer))
                args, kwargs = keras.tree.map_structure(
                    resolve, (call.arguments.args, call.arguments.kwargs)
                )
                if isinstance(layer, keras.Model):
                    nested = _functional(layer)
                    for ours, theirs in zip(nested.inputs, call.input_tensors, strict=True):
                        resolved[id(ours)] = resolve(theirs)
                    # `backbone(x, training=False)` means it for every layer inside.
                    own = kwargs.get("training")
                    visit(nested, layer.name, training if own is None else own)
                    for ours, theirs in zip(call.outputs, nested.outputs, strict=True):
                        resolved[id(ours)] = resolve(theirs)
                    continue
                if kwargs.get("training") is None and training is not None:
                    if getattr(layer, "_call_has_training_arg", False):
                        kwargs = {**kwargs, "training": training}
                name = _unique(layer.name, prefix, names)
                nodes.append(Node(name, layer, args, kwargs, tuple(call.outputs)))

    visit(functional, None, None)
    return Graph(nodes, functional.inputs, [resolve(t) for t in functional.outputs])


def rebuild(model, visit=None, edge=None, enter=None):
    """Builds a new functional model by calling `visit` for every node of `walk(model)`.

    Args:
        model: As for `walk`.
        visit: Callable `(node, *args, **kwargs) -> tensor or tensors`; it receives the arguments
            of the call with new symbolic tensors in place of the old and returns what replaces
            the node's result. Default: `copy`. Return `args[0]` to remove a node, None to leave
            out a node whose result nothing asks for.
        edge: Optional callable `(value, node, index) -> value`, asked for the new tensor of each
            `node.inputs[index]` (node None: output number `index` of the model); it may put layers
            on that edge. `value` is None where the tensor was left out.
        enter: Optional callable `(tensor) -> keras.Input`, makes the new input for each old one;
            default: same shape, dtype and name.

    Returns:
        A functional `keras.Model` with the same structure of inputs and outputs, not compiled.

    Raises:
        TypeError, ValueError: as `walk`; also a layer that cannot be made from its config.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
    >>> rebuild(model).get_layer("logits") is model.get_layer("logits")
    False
    """
    visit = visit or copy
    functional, graph, values = _functional(model), walk(model), {}

    def arguments(node, structure):
        positions = itertools.count()

        def value(x):
            if not isinstance(x, keras.KerasTensor):
                return x
            new, index = values.get(id(x)), next(positions)
            return new if edge is None else edge(new, node, index)

        return keras.tree.map_structure(value, structure)

    def new_input(tensor):
        values[id(tensor)] = (enter or same_input)(tensor)
        return values[id(tensor)]

    inputs = keras.tree.map_structure(new_input, functional.input)
    for node in graph.nodes:
        args, kwargs = arguments(node, (node.args, node.kwargs))
        results = keras.tree.flatten(visit(node, *args, **kwargs))
        values.update(zip(map(id, node.outputs), results, strict=False))
    new = iter(arguments(None, list(graph.outputs)))
    outputs = keras.tree.map_structure(lambda _: next(new), functional.output)
    return keras.Model(inputs, outputs, name=model.name)


def copy(node, *args, **kwargs):
    """Calls a fresh copy of the node's layer with the same weights: the default of `rebuild`."""
    layer = fresh(node)
    outputs = layer(*args, **kwargs)
    transfer(node.layer, layer)
    return outputs


def fresh(node, **changes):
    """A new, unbuilt layer from the config of the node's layer, `changes` applied to that config.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
    >>> fresh(walk(model).nodes[0], units=5).units
    5
    """
    layer = node.layer
    try:
        config = {**layer.get_config(), **changes}
        if "name" in config:
            config["name"] = node.name
        return type(layer).from_config(config)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"Layer '{node.name}' ({type(layer).__name__}) cannot be made again from its config: "
            f"{reason}"
        ) from error


def transfer(source, target):
    """Copies the weights of `source` into `target`, a built layer of the same shapes."""
    weights = getattr(source, "weights", None)
    if weights:
        target.set_weights(source.get_weights())
        if hasattr(target, "finalize_state"):  # Normalization works on values cached from weights
            target.finalize_state()


def split_activation(node):
    """Splits a fused `activation=` off a layer.

    Args:
        node: A `Node`.

    Returns:
        `(layer, activation)`: a fresh copy of the layer without activation and a fresh layer
        named `<name>_activation` that applies it, or None in its place if there is none to split.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu", name="d")])
    >>> [layer.name for layer in split_activation(walk(model).nodes[0])]
    ['d', 'd_activation']
    """
    function = fused_activation(node.layer)
    if function is None:
        return fresh(node), None
    name = f"{node.name}_activation"
    dtype = node.layer.dtype_policy
    if isinstance(function, keras.layers.Layer):
        config = {**function.get_config(), "name": name}
        activation = type(function).from_config(config)
    else:
        activation = keras.layers.Activation(function, name=name, dtype=dtype)
    return fresh(node, activation=None), activation


def fused_activation(layer):
    """The activation inside a Dense or convolution layer, None where it is linear.

    >>> fused_activation(keras.layers.Dense(2)) is None
    True
    """
    if isinstance(layer, keras.layers.Activation):
        return None
    function = getattr(layer, "activation", None)
    return None if function is None or function is keras.activations.linear else function


def dispatch(function, layer):
    """The rule for `layer` in a `functools.singledispatch` function on the classes of layers.

    A subclass of a stock layer does not inherit the stock layer's rule: its `call` may differ.
    """
    kind = type(layer)
    found = next((c for c in kind.__mro__ if c in function.registry), object)
    inherited = _stock(found) and not _stock(kind)
    return function.registry[object] if inherited else function.dispatch(kind)


def operations(module, names):
    """Classes of layers or `keras.ops` operations by name; those an older Keras lacks are left out.

    >>> [kind.__name__ for kind in operations(keras.layers, "Dense Denser")]
    ['Dense']
    """
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


def _stock(kind):
    return kind.__module__.startswith("keras.")


def _functional(model):
    """The Functional with the graph of `model` inside."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a functional or Sequential keras.Model. "
            f"Received: {type(model).__name__}"
        )
    if isinstance(model, keras.Sequential):
        if model._functional is None:
            raise ValueError(
                f"Sequential model '{model.name}' has no input shape yet: start it with "
                "keras.Input(shape) or call it on a batch."
            )
        return model._functional
    if not isinstance(model, Functional) or type(model).call is not Functional.call:
        raise TypeError(
            f"Model '{model.name}' ({type(model).__name__}) is subclassed and has no graph to "
            "walk: write it with the functional API or Sequential."
        )
    return model


def same_input(tensor, **changes):
    """A new `keras.Input` like an old one, the default `enter` of `rebuild`; `changes` replace."""
    like = {"batch_shape": tensor.shape, "dtype": tensor.dtype, "name": _name_of_input(tensor)}
    return keras.Input(**{**like, **changes})


def _name_of_input(tensor):
    return tensor._keras_history.operation.name


def _unique(name, prefix, names):
    """Takes `name`, else `prefix_name`, else a number behind it; remembers it in `names`."""
    candidate = name
    if candidate in names and prefix:
        candidate = f"{prefix}_{name}"
    base, count = candidate, 0
    while candidate in names:
        count += 1
        candidate = f"{base}_{count}"
    names.add(candidate)
    return candidate
