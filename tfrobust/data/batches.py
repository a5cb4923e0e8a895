"""Batches whose order, and whose augmentation, follow from (seed, epoch) alone."""

import dataclasses
import zlib

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Gives batches in an order that follows from ``(seed, epoch)`` only.

    A game's `fit` and `tr.training.Resume` tell it the epoch; alone it counts the
    passes. Keras would shuffle the batches once more with Python's global random numbers:
    our games switch that off, a plain Keras model wants ``fit(batches, shuffle=False)``.
    Keras traces the step once, also for the smaller last batch.

    Args:
        x: Array of images ``(n, height, width, channels)``.
        y: Array of labels, first axis n: integers ``(n,)`` or ``(n, 1)``, or one-hot.
        batch_size: Int >= 1, images per batch.
        seed: Int >= 0.
        shuffle: Bool; False keeps the order of the arrays.
        drop_remainder: Bool; True leaves the smaller last batch of an epoch out. Wanted
            on several replicas, which would share a smaller batch unevenly.
        sample_weight: None, or array ``(n,)`` of weights, given as third member of each
            batch.
        augment: None, or a function of (images of a batch, `numpy.random.Generator`) that
            returns images of the same shape in [0, 1], such as `CropFlip()`. What it draws
            follows from (seed, epoch, batch), so a resumed `fit` sees the same images. `Resume`
            tells dataclasses apart by their fields, functions by their names alone.

    Example:

    >>> batches = Batches(np.zeros((10, 8, 8, 1), "float32"), np.arange(10), 4)
    >>> [len(y) for x, y in batches]
    [4, 4, 2]
    >>> batches.epoch = 7  # the order of epoch 7, whatever came before
    """

    def __init__(
        self,
        x,
        y,
        batch_size=128,
        seed=0,
        shuffle=True,
        drop_remainder=False,
        sample_weight=None,
        augment=None,
    ):
        super().__init__()
        x, y = _array(x, "x"), _array(y, "y")
        if len(x) == 0:
            raise ValueError("`x` must hold at least one image. Received: an empty array")
        if len(y) != len(x):
            raise ValueError(
                f"`y` must have one label per image, {len(x)} in all. Received: {len(y)} labels"
            )
        if sample_weight is not None:
            sample_weight = _array(sample_weight, "sample_weight").astype("float32")
            if sample_weight.shape != (len(x),):
                raise ValueError(
                    f"`sample_weight` must have the shape ({len(x)},). "
                    f"Received: sample_weight of shape {sample_weight.shape}"
                )
        if not is_int(batch_size) or batch_size < 1:
            raise ValueError(
                f"`batch_size` must be an integer >= 1. Received: batch_size={batch_size!r}"
            )
        if drop_remainder and batch_size > len(x):
            raise ValueError(
                f"`batch_size` must be at most {len(x)}, the number of images, with "
                f"drop_remainder=True. Received: batch_size={batch_size}"
            )
        permutation(1, seed)
        if augment is not None and not callable(augment):
            raise TypeError(
                "`augment` must be a function of (images, generator), or None. "
                f"Received: {augment!r}"
            )
        self.augment = augment
        self.x, self.y, self.sample_weight = x, y, sample_weight
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.shuffle, self.drop_remainder = bool(shuffle), bool(drop_remainder)
        self._epoch, self._told, self._order = 0, True, None
        self._next, self._in_order = 0, True

    @property
    def epoch(self):
        """The epoch whose order is given; setting it also fixes the pass to come."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch):
        self._epoch, self._told = int(epoch), True

    @property
    def in_order(self):
        """Whether the batches of this pass were asked for in ascending order."""
        return self._in_order

    def fingerprint(self):
        """What the order and the data depend on, as a dict of numbers."""
        crc = 0
        for part in (self.x[0], self.x[-1], self.y, self.sample_weight):
            crc = crc if part is None else zlib.crc32(np.ascontiguousarray(part).tobytes(), crc)
        names = ("batch_size", "seed", "shuffle", "drop_remainder")
        told = {"examples": len(self.x), "crc": crc, **{k: getattr(self, k) for k in names}}
        return told if self.augment is None else {**told, "augment": _name(self.augment)}

    def on_epoch_begin(self):
        if not self._told:
            self._epoch += 1
        self._told = False
        self._next, self._in_order = 0, True

    def __len__(self):
        whole, rest = divmod(len(self.x), self.batch_size)
        return whole + (rest > 0 and not self.drop_remainder)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must lie in [0, {len(self)}). Received: index={index}")
        self._in_order = self._in_order and index == self._next
        self._next = index + 1
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if self.shuffle:
            rows = self._rows()[rows]
        more = () if self.sample_weight is None else (self.sample_weight[rows],)
        return self._images(rows, index), self.y[rows], *more

    def _images(self, rows, index):
        images = self.x[rows]
        if self.augment is None:
            return images
        draws = np.random.default_rng([self.seed, self._epoch, 2, index])
        changed = np.asarray(self.augment(images, draws))
        if changed.shape != images.shape:
            raise ValueError(
                f"`augment` must return images of shape {images.shape}. Received: {changed.shape}"
            )
        return changed.astype(images.dtype, copy=False)

    def _rows(self):
        epoch, known = self._epoch, self._order
        if known is None or known[0] != epoch:
            # One assignment of one tuple: Keras reads batches from another thread.
            self._order = known = (epoch, permutation(len(self.x), self.seed, epoch))
        return known[1]


def _array(values, name):
    values = np.asarray(values)
    if values.ndim == 0 or values.dtype == object:
        raise TypeError(f"`{name}` must be an array. Received: {type(values.item(0)).__name__}")
    return values


def is_int(value):
    """Whether it is an integer, Python's or NumPy's, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def permutation(n, seed, epoch=0, stream=0):
    """An order of n things that follows from the three numbers."""
    if not is_int(seed) or seed < 0:
        raise ValueError(f"`seed` must be an integer >= 0. Received: seed={seed!r}")
    return np.random.default_rng([int(seed), int(epoch), stream]).permutation(n)


def _name(augment):
    """Of an augmentation, the same in every process."""
    if dataclasses.is_dataclass(augment):
        return repr(augment)
    return getattr(augment, "__qualname__", type(augment).__qualname__)
