"""Brings a classifier from anywhere into our contract: pixels in [0, 1] in, logits out."""

import warnings

import keras
import numpy as np
from keras import layers

from tfrobust import contract, graph

_HEADS = (keras.activations.softmax, keras.activations.sigmoid)
_QUIET = (layers.Flatten, layers.Reshape, layers.Dropout, layers.Identity)
_SCALERS = (layers.Rescaling, layers.Normalization)


def prepare(model, pixel_range=None):
    """Returns a functional copy of a classifier that takes pixels in [0, 1] and returns logits.

    A softmax or sigmoid at the end is stripped (a layer, an operation, or the activation of the
    last layer), a Rescaling layer in front maps [0, 1] to the pixels that the model was made for,
    nested models are flattened, layers are fresh and weights copied. The model given is not
    changed.

    Args:
        model: Built functional or Sequential `keras.Model` with one input and an output of shape
            `(batch, classes)`; those of `keras.applications` included.
        pixel_range: Pair (low, high), the pixels `model` itself expects: (0, 255) for
            `keras.applications` with preprocessing inside, (-1, 1) for ResNetV2, (0, 1) for most
            networks trained on divided images. Without it (0, 255) is taken, with a warning unless
            the model's own first layers or its integer input say the same.

    Returns:
        A functional `keras.Model`, float32 images in, not compiled.

    Raises:
        TypeError: no model, or a subclassed one.
        ValueError: a wrong range, several inputs or outputs, an output that is not one row of
            classes, a shared layer, or a layer that cannot be made again from its config.

    Warns where a Rescaling or Normalization in front makes nothing sensible of `pixel_range`.

    Example:

    >>> net = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(),
    ...     layers.Dense(3, activation="softmax", name="probabilities")])
    >>> [layer.name for layer in prepare(net, (0, 255)).layers if "flat" not in layer.name]
    ['input_layer...', 'pixel_range', 'probabilities']
    """
    low, high = _range((0, 255) if pixel_range is None else pixel_range)
    contract.no_game(model)
    walked = graph.walk(model)
    _check(model, walked)
    _doubt(walked, low, high, pixel_range is not None)
    head = _head(walked)
    scaled = {}
    taken = {node.name for node in walked.nodes}
    name = "pixel_range" if "pixel_range" not in taken else "contract_pixel_range"

    def visit(node, *args, **kwargs):
        if node.name == head:
            return _stripped(node, args, kwargs)
        return graph.copy(node, *args, **kwargs)

    def edge(value, node, index):
        source = node.inputs[index] if node is not None else walked.outputs[index]
        if source is not walked.inputs[0] or (low, high) == (0, 1):
            return value
        if "image" not in scaled:
            rescaling = layers.Rescaling(high - low, offset=low, name=name, dtype="float32")
            scaled["image"] = rescaling(value)
        return scaled["image"]

    def enter(tensor):
        return graph.same_input(tensor, batch_shape=(None, *tensor.shape[1:]), dtype="float32")

    return contract.classifier(graph.rebuild(model, visit, edge, enter), "model")


def _range(pixel_range):
    values = np.asarray(pixel_range, dtype=object).reshape(-1)
    numbers = len(values) == 2 and all(isinstance(v, int | float | np.number) for v in values)
    if not numbers or not np.isfinite(values.astype(float)).all() or values[0] >= values[1]:
        raise ValueError(
            "`pixel_range` must be two numbers (low, high) with low < high, the pixels the model "
            f"expects. Received: pixel_range={pixel_range!r}"
        )
    return float(values[0]), float(values[1])


def _doubt(walked, low, high, given):
    """Warns where a wrong range would make every answer of the prepared model wrong in silence."""
    (image,) = walked.inputs
    shape = [size or 1 for size in image.shape[1:]]
    ends, names, tensor = np.stack([np.full(shape, low), np.full(shape, high)]), [], image
    while True:
        readers = walked.consumers(tensor)
        if len(readers) != 1 or not isinstance(readers[0].layer, _SCALERS):
            break
        ends = keras.ops.convert_to_numpy(readers[0].layer(ends.astype("float32")))
        names.append(readers[0].name)
        (tensor,) = readers[0].outputs
    least, most = float(ends.min()), float(ends.max())
    # Networks are fed about [0, 1], [-1, 1], some deviations from a mean, or grey levels.
    sensible = 0.1 <= most - least <= 300 and least <= 1 and most >= -1
    said = f"`pixel_range` ({low:g}, {high:g})"
    if names and not sensible:
        warnings.warn(
            f"{said} does not fit the model: layer '{names[-1]}' makes [{least:.3g}, {most:.3g}] "
            "of it, so that every answer may be wrong. Pass the range of the images that the model "
            "was trained on.",
            stacklevel=3,
        )
    elif not names and not given and "int" not in image.dtype:
        warnings.warn(
            f"{said} is a guess: the model now sees 255 times the pixel, and every answer is "
            "wrong if it was trained on images in [0, 1]. Pass pixel_range=(0, 1), or (0, 255) to "
            "confirm.",
            stacklevel=3,
        )


def _check(model, walked):
    if len(walked.inputs) != 1 or len(walked.outputs) != 1:
        raise ValueError(
            f"`model` must have one input and one output. Received: {len(walked.inputs)} inputs, "
            f"{len(walked.outputs)} outputs"
        )
    (image,), (output,) = walked.inputs, walked.outputs
    if len(image.shape) < 2 or keras.backend.standardize_dtype(image.dtype) == "string":
        raise ValueError(
            "`model` must take images of shape (batch, ...). "
            f"Received: input shape {tuple(image.shape)}, dtype {image.dtype}"
        )
    if len(model.outputs[0].shape) != 2 or model.outputs[0].shape[-1] is None:
        raise ValueError(
            "`model` must return one row of classes for an image, shape (batch, classes): add "
            f"pooling and a Dense layer. Received: output shape {tuple(output.shape)}"
        )


def _head(walked):
    """Name of the node that turns logits into probabilities, None if there is none."""
    node = walked.producer(walked.outputs[0])
    while node is not None:
        layer = node.layer
        if node.outputs[0].shape[-1] != walked.outputs[0].shape[-1]:
            return None  # a softmax over groups of classes is no softmax over classes
        if isinstance(layer, layers.Softmax) or getattr(layer, "activation", None) in _HEADS:
            return node.name
        if type(layer).__name__ in ("Softmax", "Sigmoid") and not isinstance(layer, layers.Layer):
            return node.name
        linear = getattr(layer, "activation", None) is keras.activations.linear
        quiet = isinstance(layer, _QUIET) or (isinstance(layer, layers.Activation) and linear)
        if not quiet:
            return None
        node = walked.producer(node.inputs[0])


def _stripped(node, args, kwargs):
    """The node without its softmax or sigmoid."""
    layer = node.layer
    if isinstance(layer, layers.Layer) and layer.weights:
        bare = graph.fresh(node, activation=None)
        logits = bare(*args, **kwargs)
        graph.transfer(layer, bare)
        return logits
    (x,) = [a for a in keras.tree.flatten((args, kwargs)) if isinstance(a, keras.KerasTensor)]
    if getattr(layer, "compute_dtype", x.dtype) == x.dtype:
        return x
    # A float32 softmax behind mixed precision also set the dtype of the result.
    return layers.Activation("linear", name=node.name, dtype=layer.dtype_policy)(x)
