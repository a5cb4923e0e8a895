"""What every room takes for granted about images, labels and models, and refuses otherwise.

Pixels are float32 in [0, 1] with shape `(batch, height, width, channels)` (or any rank from 2 up),
labels are integers `(batch,)`, a classifier is a functional Keras model that returns logits
`(batch, classes)`. The checks run before any work is lost and raise one-line errors.

>>> import numpy as np
>>> images(np.full((2, 8, 8, 1), 0.5)).dtype
dtype('float32')
>>> labels([3, 1], classes=10)
array([3, 1], dtype=int32)
"""

import hashlib
import math
from numbers import Integral, Real

import keras
import numpy as np


def digest(*arrays):
    """Hash of arrays, shapes and types included."""
    total = hashlib.blake2b(digest_size=16)
    for array in map(np.ascontiguousarray, arrays):
        total.update(f"{array.shape}{array.dtype.str}".encode())
        total.update(array)
    return total.hexdigest()


def is_number(value):
    """Whether `value` is one finite real number of Python or NumPy: no bool, no tensor.

    >>> [is_number(v) for v in (1, np.float32(0.5), True, "1", 1j, float("nan"), 10**400)]
    [True, True, False, False, False, False, False]
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def whole(name, value, least):
    """`value` as an int.

    Raises:
        ValueError: not an integer of Python or NumPy, or below `least`.

    >>> whole("batches", np.int64(3), 2)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}. Received: {name}={value!r}")
    return int(value)


def nonnegative(name, value):
    """`value` as a float.

    Raises:
        ValueError: not a finite number of Python or NumPy, or below 0.

    >>> nonnegative("weight", 2)
    2.0
    """
    if not is_number(value) or value < 0:
        raise ValueError(f"`{name}` must be >= 0. Received: {name}={value!r}")
    return float(value)


def built(model, name="model"):
    """`model`, a Keras 3 model with weights.

    Raises:
        TypeError: no Keras 3 model.
        ValueError: not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{name}` must be a Keras 3 model; models of tf_keras and wrappers of tfmot are not. "
            f"Received: {type(model).__module__}.{type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"`{name}` must be built: call it on a batch first. "
            f"Received: model '{model.name}' without weights"
        )
    return model


def images(x, name="x"):
    """Returns `x` as float32 pixels in [0, 1], shape `(batch, ...)`.

    Raises:
        TypeError: integer or non-numeric pixels.
        ValueError: no examples, rank below 2, values that are not finite or outside [0, 1].
    """
    x = np.asarray(x)
    if x.dtype.kind in "iub":
        raise TypeError(
            f"`{name}` must hold float pixels in [0, 1]: divide uint8 images by 255. "
            f"Received: dtype={x.dtype}"
        )
    if x.dtype.kind != "f":
        raise TypeError(f"`{name}` must be a numeric array of images. Received: dtype={x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"`{name}` must have shape (batch, ...). Received: shape={x.shape}")
    if len(x) == 0:
        raise ValueError(f"`{name}` must hold at least one example. Received: shape={x.shape}")
    x = np.ascontiguousarray(x, np.float32)  # first, for 1 + 1e-9 in float64 is 1
    low, high = float(x.min()), float(x.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinite pixels")
    if low < 0 or high > 1:
        raise ValueError(
            f"`{name}` must lie in [0, 1]. Received: values from {low:.8g} to {high:.8g}"
        )
    return x


def labels(y, classes=None, name="y", count=None):
    """Returns `y` as int32 labels of shape `(batch,)`; a trailing axis of one is dropped.

    Raises:
        TypeError: labels that are not integers.
        ValueError: one-hot rows, labels outside [0, classes), another length than `count`.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[-1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        advice = "turn one-hot rows into integers with np.argmax(y, -1)"
        advice = advice if y.ndim else "one for each image of a batch"
        raise ValueError(
            f"`{name}` must be integer labels of shape (batch,): {advice}. "
            f"Received: shape={y.shape}"
        )
    if y.dtype.kind not in "iub":
        whole = y.dtype.kind == "f" and np.isfinite(y) & (y == np.round(y))
        if not np.all(whole):
            odd = f", {y[~whole][0]}" if y.dtype.kind == "f" else ""
            raise TypeError(f"`{name}` must be integer labels. Received: dtype={y.dtype}{odd}")
    if count is not None and len(y) != count:
        raise ValueError(
            f"`{name}` must have one label for each of the {count} images. "
            f"Received: {len(y)} labels"
        )
    most = 2**31 if classes is None else classes
    if len(y) and not (y.min() >= 0 and y.max() < most):
        bounds = f"in [0, {most - 1}]"
        bounds += "" if classes is None else f" for a model with {classes} classes"
        raise ValueError(
            f"`{name}` must lie {bounds}. Received: labels from {int(y.min())} to {int(y.max())}"
        )
    return y.astype(np.int32)


def stream(data, wanted, name="data"):
    """An iterator over the batches of `data`.

    Args:
        data: `keras.utils.PyDataset`, `tf.data.Dataset`, or iterable of batches.
        wanted: What `data` may be, for the error.

    Raises:
        TypeError: nothing to go through.

    >>> list(stream([1, 2], "an iterable"))
    [1, 2]
    """
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # keras.utils.PyDataset
        return (data[i] for i in range(len(data)))
    try:
        return iter(data)
    except TypeError:
        raise TypeError(f"`{name}` must be {wanted}. Received: {type(data).__name__}") from None


def classes_of(model):
    """Number of classes of a classifier; a single logit counts as two."""
    return max(int(model.output_shape[-1]), 2)


def classifier(model, name="classifier"):
    """Returns `model` if it is a functional classifier with logits out, else raises.

    Raises:
        TypeError: not a functional Keras model.
        ValueError: several inputs or outputs, outputs that are not `(batch, classes)`, or a
            softmax / sigmoid at the end.
    """
    advice = "bring it into the contract with tr.models.prepare(model, pixel_range=...)"
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{name}` must be a functional keras.Model. Received: {type(model).__name__}"
        )
    no_game(model, name)
    if not hasattr(model, "operations") or isinstance(model, keras.Sequential):
        raise TypeError(
            f"`{name}` must be a functional keras.Model, not a {type(model).__name__}: "
            f"{advice if isinstance(model, keras.Sequential) else 'wrap it, x -> model(x)'}"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"`{name}` must have one input and one output. Received: "
            f"{len(model.inputs)} inputs, {len(model.outputs)} outputs"
        )
    if len(model.outputs[0].shape) != 2 or model.outputs[0].shape[-1] is None:
        raise ValueError(
            f"`{name}` must return logits of shape (batch, classes). "
            f"Received: output shape {tuple(model.outputs[0].shape)}"
        )
    check_logits(model, name)
    return model


def no_game(model, name="model"):
    """Refuses a game where the classifier in it is meant.

    Raises:
        TypeError: a model that holds another one as `classifier`.
    """
    if isinstance(getattr(model, "classifier", None), keras.Model):
        raise TypeError(
            f"`{name}` must be the classifier, not the game that trains it: pass game.classifier. "
            f"Received: {type(model).__name__}"
        )


def check_logits(model, name="model"):
    """Refuses a Keras model whose last layer turns logits into probabilities.

    Raises:
        ValueError: a softmax or sigmoid at the end.
    """
    last = model.outputs[0]._keras_history.operation
    while isinstance(last, keras.Model) and getattr(last, "outputs", None):
        last = last.outputs[0]._keras_history.operation
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if not activation and type(last).__name__ in ("Softmax", "Sigmoid"):  # a layer or keras.ops
        activation = type(last).__name__.lower()
    if activation in ("softmax", "sigmoid"):
        raise ValueError(
            f"`{name}` must return logits, but its last layer '{last.name}' applies "
            f"{activation}: bring it into the contract with "
            "tr.models.prepare(model, pixel_range=...)"
        )


def image_shape(model, name="model"):
    """Shape of one image, for rooms that must know every size of it.

    Raises:
        ValueError: a size is unknown, as in `keras.Input((None, None, 3))`.
    """
    shape = tuple(model.input_shape[1:])
    if None in shape:
        raise ValueError(
            f"`{name}` must have an input of known size, for example "
            f"keras.Input((32, 32, 3)). Received: input shape {(None, *shape)}"
        )
    return shape


def fits(model, x, name="x"):
    """Refuses images of another shape than the input of a functional model.

    Raises:
        ValueError: the shapes differ; a missing axis of one channel is Keras's to add.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must have one input and one output. Received: "
            f"{len(model.inputs)} inputs, {len(model.outputs)} outputs"
        )
    wanted = tuple(model.input_shape[1:])
    shapes = [s for s in (tuple(x.shape[1:]), (*x.shape[1:], 1)) if len(s) == len(wanted)]
    if not any(all(w in (None, n) for w, n in zip(wanted, s, strict=True)) for s in shapes):
        raise ValueError(
            f"`{name}` must have shape (batch, {', '.join(map(str, wanted))}), the model's "
            f"input. Received: shape={tuple(x.shape)}"
        )
