"""Data of any kind as chunks of a fixed size, checked as they come."""

import itertools
from collections.abc import Mapping

import numpy as np

from tfrobust import contract


def size(data, max_examples=None):
    """Number of images if it can be known before reading, else None."""
    known = None
    if _is_pair(data):
        known = len(data[0])
    elif hasattr(data, "cardinality"):
        batches = int(data.cardinality())
        spec = getattr(data, "element_spec", ())
        batch = spec[0].shape[0] if isinstance(spec, tuple) and spec and spec[0].shape else None
        if batches >= 0 and batch:
            known = batches * batch
    elif hasattr(data, "__getitem__") and hasattr(data, "batch_size"):
        try:
            known = len(data) * data.batch_size
        except TypeError:
            known = None
    if known is None or max_examples is None:
        return max_examples if known is None else known
    return min(known, max_examples)


def chunks(data, chunk, image_shape=None, classes=None, max_examples=None):
    """Yields `(first_index, x, y)` with `chunk` images each (the last may be smaller).

    Raises:
        TypeError, ValueError: no pair, no images, pixels or labels outside of the contract.
    """
    held_x, held_y, start = [], [], 0
    pairs = _pairs(data, image_shape, classes, chunk)
    if max_examples is not None:
        pairs = _first(pairs, max_examples)
    for x, y in pairs:
        held_x.append(x)
        held_y.append(y)
        while sum(map(len, held_y)) >= chunk:
            x, y = np.concatenate(held_x), np.concatenate(held_y)
            yield start, x[:chunk], y[:chunk]
            held_x, held_y, start = [x[chunk:]], [y[chunk:]], start + chunk
    if sum(map(len, held_y)):
        yield start, np.concatenate(held_x), np.concatenate(held_y)
    elif not start:
        raise ValueError("`data` must hold at least one example. Received: none")


def _first(pairs, count):
    for x, y in pairs:
        yield x[:count], y[:count]
        count -= len(y)
        if count <= 0:
            return


def _pairs(data, image_shape, classes, chunk):
    if _is_pair(data):
        x, y = _checked(*data, "", image_shape, classes)
        for first in range(0, len(x), chunk):
            yield x[first : first + chunk], y[first : first + chunk]
        return
    for number, batch in enumerate(_batches(data)):
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError(
                "`data` must give pairs (x, y) of batches. Received: batch of type "
                f"{type(batch).__name__}"
            )
        if len(np.shape(batch[0])) > 0 and len(batch[0]) == 0:
            continue
        yield _checked(*batch[:2], f" of batch {number}", image_shape, classes)


def _is_pair(data):
    """A pair of arrays, not a list of two batches."""
    return isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple)


def _batches(data):
    if hasattr(data, "x_test") or isinstance(data, Mapping):
        raise TypeError(
            "`data` must be a pair of arrays or a stream of batches, such as "
            f"(data.x_test, data.y_test). Received: {type(data).__name__}"
        )
    return contract.stream(
        data,
        "a pair (x, y) of arrays, or a tf.data.Dataset, keras.utils.PyDataset or iterable of "
        "batches",
    )


def _checked(x, y, where, image_shape, classes):
    x = contract.images(x, f"x{where}")
    y = contract.labels(y, classes, f"y{where}", count=len(x))
    pairs = itertools.zip_longest(image_shape or x.shape[1:], x.shape[1:], fillvalue=-1)
    if any(wanted not in (None, size) for wanted, size in pairs):
        raise ValueError(
            f"`x{where}` must have shape (batch, {', '.join(map(str, image_shape))}), the model's "
            f"input. Received: shape={x.shape}"
        )
    return x, y


def peek(iterator):
    """The first item and an iterator that still gives all of them."""
    first = next(iterator)
    return first, itertools.chain([first], iterator)
