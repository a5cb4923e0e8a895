"""Puts masks into a classifier that was written without them."""

import inspect

import keras
from keras import layers

from tfrobust import contract, graph

SLOTS = ("after_activation", "before_activation")
_READERS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
_MAKERS = _READERS + (
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Conv2DTranspose,
)
_LIFTS = (layers.Flatten, layers.Reshape) + tuple(
    getattr(layers, f"Global{kind}Pooling{rank}D") for kind in ("Average", "Max") for rank in "123"
)


def insert_masks(model, factory, slot="after_activation"):
    """Returns a copy of a classifier with masks on the channels between its Conv and Dense layers.

    "after_activation" puts a mask just before each Conv or Dense layer but the first, behind
    normalization, activation and pooling, so that a closed gate is exactly a removable channel.
    It goes before a Flatten or global pool, and in front of a squeeze-and-excite branch, so that
    one gate shuts one channel everywhere. On a residual stream only the readers see the gate, the
    sum does not. "before_activation" is the slot of the ANP-VS paper: directly behind each Conv or
    Dense layer but the last, before normalization; a fused `activation=` is split off.

    Args:
        model: Functional classifier (see `tr.models.prepare`); it is not changed.
        factory: Callable that returns a new mask, called as `factory(name="mask_<layer>")`, or
            without arguments if it takes no name: `tr.layers.BetaBernoulliMask`, a partial, a
            function.
        slot: "after_activation" or "before_activation".

    Returns:
        A functional `keras.Model`, weights copied, not compiled.

    Raises:
        TypeError: `factory` does not return new layers, or needs other arguments.
        ValueError: an unknown `slot`, or a model without inner channels.

    Example:

    >>> from tfrobust.layers import BetaBernoulliMask
    >>> inputs = keras.Input((8, 8, 1))
    >>> x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    >>> net = keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x)))
    >>> [layer.name for layer in insert_masks(net, BetaBernoulliMask).layers][1:]
    ['conv', 'mask_conv', 'flat', 'logits']
    """
    if slot not in SLOTS:
        raise ValueError(f"`slot` must be one of {SLOTS}. Received: slot={slot!r}")
    if not callable(factory):
        raise TypeError(f"`factory` must be a callable that returns a mask. Received: {factory!r}")
    contract.classifier(model, "model")
    return (_after if slot == "after_activation" else _before)(model, factory)


def _after(model, factory):
    walked = graph.walk(model)
    edges = {}  # (name of a node, index of its input) -> id of the tensor to be gated
    for node in walked.nodes:
        for index in range(len(node.inputs)):
            if _reads(node):
                place = _lift(walked, node, index)
                if place:
                    reader, position = place
                    edges[reader.name, position] = reader.inputs[position]
    make = _Maker(walked, factory, len(edges))
    gated = {}

    def edge(value, node, index):
        tensor = edges.get((node.name, index)) if node is not None else None
        if tensor is None:
            return value
        if id(tensor) not in gated:
            gated[id(tensor)] = make.put(_origin(walked, tensor), value)
        return gated[id(tensor)]

    return graph.rebuild(model, edge=edge)


def _before(model, factory):
    walked = graph.walk(model)
    places = {n.name for n in walked.nodes if _reads(n) and _feeds_reader(walked, n.outputs[0])}
    make = _Maker(walked, factory, len(places))

    def visit(node, *args, **kwargs):
        if node.name not in places:
            return graph.copy(node, *args, **kwargs)
        layer, activation = graph.split_activation(node)
        x = layer(*args, **kwargs)
        graph.transfer(node.layer, layer)
        x = make.put(node.name, x)
        return x if activation is None else activation(x)

    return graph.rebuild(model, visit)


class _Maker:
    """Calls the factory with unique names, and checks what it returns."""

    def __init__(self, walked, factory, count):
        if not count:
            raise ValueError(
                "`model` has no channels between two Conv or Dense layers to put a mask on. "
                f"Received: layers {[node.name for node in walked.nodes]}"
            )
        self.factory, self.made = factory, []
        self.names = {node.name for node in walked.nodes}
        self.takes_name = _takes_name(factory)

    def __call__(self, place):
        base = name = f"mask_{place}"
        count = 0
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self.names.add(name)
        mask = self.factory(name=name) if self.takes_name else self.factory()
        if not isinstance(mask, keras.layers.Layer) or any(mask is m for m in self.made):
            raise TypeError(
                "`factory` must return a new mask layer at every call. "
                f"Received: {type(mask).__name__}, the same one twice or no layer"
            )
        self.made.append(mask)
        return mask

    def put(self, place, x):
        """A new mask on `x`, which must leave its shape alone."""
        mask = self(place)
        gated = mask(x)
        if gated.shape != x.shape:
            raise TypeError(
                f"`factory` must return masks that keep the shape {tuple(x.shape)}. "
                f"Received: {type(mask).__name__}, which makes it {tuple(gated.shape)}"
            )
        return gated


def _takes_name(factory):
    """Whether to call `factory(name=...)`, or `factory()` if it takes no name."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a callable written in C
        return False
    for arguments in ({"name": "mask"}, {}):
        try:
            signature.bind(**arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise TypeError(
        "`factory` must take `name` alone, as `lambda name: ...` does, or nothing. "
        f"Received: a factory of {signature}"
    )


def _reads(node):
    """Whether this layer has kernel rows that a closed gate makes superfluous."""
    return isinstance(node.layer, _READERS) and getattr(node.layer, "groups", 1) == 1


def _lift(walked, node, index):
    """(node, index) of the edge to gate for a reader: above Flatten, pools and squeeze-excite.

    None if nothing learned lies above it: pixels are not masked.
    """
    source = node.inputs[index]
    above = _ancestors(walked, source)
    if not any(isinstance(n.layer, _MAKERS) for n in above):
        return None
    producer = walked.producer(source)
    if isinstance(producer.layer, _LIFTS):
        return _lift(walked, producer, 0)
    main = _main_operand(walked, producer)
    return (node, index) if main is None else _lift(walked, producer, main)


def _main_operand(walked, node):
    """Index of the operand of a product that layers compute the others from (squeeze-excite)."""
    if type(node.layer).__name__ != "Multiply" or len(node.inputs) < 2:
        return None
    for index, tensor in enumerate(node.inputs):
        root, below = walked.producer(tensor), _ancestors(walked, tensor)
        others = [_ancestors(walked, t) for t in node.inputs if t is not tensor]
        learned = [any(isinstance(n.layer, _MAKERS) for n in other - below) for other in others]
        if others and all(root in other for other in others) and all(learned):
            return index
    return None


def _feeds_reader(walked, tensor):
    """Whether the channels of `tensor` reach a Conv or Dense layer as channels, not as a gate."""
    for node in walked.consumers(tensor):
        if isinstance(node.layer, _READERS):
            return True
        main = _main_operand(walked, node)
        if main is not None and node.inputs[main] is not tensor:
            continue
        if any(_feeds_reader(walked, out) for out in node.outputs):
            return True
    return False


def _origin(walked, tensor):
    """Name of the layer that makes the channels of `tensor`, else of the join they come from."""
    node = walked.producer(tensor)
    while not isinstance(node.layer, _MAKERS) and len(node.inputs) == 1:
        above = walked.producer(node.inputs[0])
        if above is None:
            break
        node = above
    return node.name


def _ancestors(walked, tensor):
    """All nodes that `tensor` is computed from."""
    found, waiting = set(), [tensor]
    while waiting:
        node = walked.producer(waiting.pop())
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(node.inputs)
    return found
