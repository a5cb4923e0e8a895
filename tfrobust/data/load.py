"""Data sets by name or from files, checked once: float images in [0, 1], integer labels."""

import dataclasses
import os
import zipfile
import zlib

import keras
import numpy as np

from tfrobust.data.batches import Batches, is_int, permutation

NAMES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
FOLDER = "TFROBUST_DATA_DIR"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Holds a training and a test set.

    Attributes:
        x_train, x_test: float32 images ``(n, height, width, channels)`` in [0, 1].
        y_train, y_test: int32 labels ``(n,)`` in ``[0, num_classes)``.
        num_classes: Int.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int

    def __repr__(self):
        return (
            f"Dataset({len(self.x_train)} train, {len(self.x_test)} test images of shape "
            f"{self.x_train.shape[1:]}, {self.num_classes} classes)"
        )

    def validation(self, size=0.1, seed=0):
        """Takes a validation set out of the training set.

        Checkpoints are chosen on these images, never on test images.

        Args:
            size: Float in (0, 1), a fraction of the training images, or an int >= 1,
                their number; at least one image must remain for training.
            seed: Int >= 0; the same seed takes the same images.

        Returns:
            ``(x_train, y_train), (x_val, y_val)``.

        Example:

        >>> (x, y), (x_val, y_val) = load("digits").validation(200)
        >>> len(x), len(x_val)
        (1237, 200)
        """
        n, taken = len(self.x_train), size
        if isinstance(size, float) and 0 < size < 1:
            taken = max(1, round(size * n))
        if not is_int(taken) or not 1 <= taken < n:
            raise ValueError(
                f"`size` must be a fraction in (0, 1) or a number of images in [1, {n}). "
                f"Received: size={size!r}"
            )
        order = permutation(n, seed, stream=1)
        val, train = np.sort(order[:taken]), np.sort(order[taken:])
        return (
            (self.x_train[train], self.y_train[train]),
            (self.x_train[val], self.y_train[val]),
        )

    def split(self, batch_size=128, validation=0.1, seed=0):
        """Cuts the data into batches for `fit`, validation and evaluation.

        Args:
            batch_size: Int >= 1, images per batch.
            validation: Fraction or number of training images, see `validation`.
            seed: Int >= 0, of the validation set and of the training order.

        Returns:
            ``train, val, test``, three `Batches`; only `train` is shuffled.
        """
        (x, y), (x_val, y_val) = self.validation(validation, seed)
        return (
            Batches(x, y, batch_size, seed),
            Batches(x_val, y_val, batch_size, shuffle=False),
            Batches(self.x_test, self.y_test, batch_size, shuffle=False),
        )


def load(name, data_dir=None):
    """Loads a data set.

    A file ``<name>.npz`` in `data_dir` (or in the folder that the environment variable
    TFROBUST_DATA_DIR names) comes first, then `keras.datasets`, which downloads.
    "digits" is scikit-learn's, 1,797 images of 8 x 8 pixels, needs no download, and is
    split into 1,437 training and 360 test images, every class alike.

    Args:
        name: "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", the name of a
            file in the folder (without ``.npz``), or the path of an ``.npz`` with the
            arrays x_train, y_train, x_test, y_test: uint8 images in [0, 255] or float
            images in [0, 1], shape ``(n, height, width)`` or
            ``(n, height, width, channels)``; integer labels ``(n,)`` or ``(n, 1)``.
        data_dir: None or path of a folder.

    Returns:
        A `Dataset`.

    Raises:
        OSError: The folder or file is missing, corrupt, or cannot be downloaded.
        ValueError: The name is unknown, or the arrays are not as above.

    Example:

    >>> load("digits")
    Dataset(1437 train, 360 test images of shape (8, 8, 1), 10 classes)
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise TypeError(f"`name` must be the name of a data set or a path. Received: {name!r}")
    path = os.fspath(name)
    if path.endswith(".npz") or os.path.basename(path) != path:
        return _from_file(path)
    folder = os.environ.get(FOLDER) or None if data_dir is None else os.fspath(data_dir)
    if folder is not None:
        if not os.path.isdir(folder):
            source = "data_dir" if data_dir is not None else FOLDER
            raise FileNotFoundError(
                f"`{source}` must be an existing folder of <name>.npz files. Received: {folder}"
            )
        path = os.path.join(folder, f"{name}.npz")
        if os.path.exists(path):
            return _from_file(path, NAMES.get(name))
    if name not in NAMES:
        where = f" (there is no {name}.npz in {folder})" if folder else ""
        raise ValueError(
            f"`name` must be one of {', '.join(NAMES)}, or the path of an .npz file. "
            f"Received: name={name!r}{where}"
        )
    arrays = _digits() if name == "digits" else _download(name)
    return _dataset(arrays, NAMES[name], name)


def _from_file(path, num_classes=None):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`name` must be the path of an .npz file. Received: {path}")
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            missing = [key for key in ARRAYS if key not in file.files]
            arrays = None if missing else [file[key] for key in ARRAYS]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"`name` must be a readable .npz file. Received: {path} ({reason})") from None
    if missing:
        raise ValueError(
            f"`name` must be an .npz with the arrays {', '.join(ARRAYS)}. "
            f"Received: {path} without {', '.join(missing)}"
        )
    return _dataset(arrays, num_classes, path)


def _digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32").reshape(-1, 8, 8, 1)
    # RandomState's numbers are frozen for ever; every fifth of a class is a test image.
    order = np.random.RandomState(0).permutation(len(labels))
    rank = np.empty(len(labels), int)
    for label in range(10):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    test = np.flatnonzero(rank % 5 == 4)
    extra = [i for i in order if rank[i] % 5 == 3][: 360 - len(test)]
    test = np.sort(np.concatenate([test, extra]).astype(int))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return images[train], labels[train], images[test], labels[test]


def _download(name):
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        reason = " ".join(str(error).split())
        raise OSError(
            f"`name` must be at hand or downloadable: put {name}.npz into a folder and pass "
            f"it as `data_dir` (or set {FOLDER}). Received: name={name!r} ({reason})"
        ) from None
    return x_train, y_train, x_test, y_test


def _dataset(arrays, num_classes, source):
    x_train, y_train, x_test, y_test = arrays
    x_train, x_test = _images(x_train, "x_train", source), _images(x_test, "x_test", source)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            "`x_test` must have images of the shape of `x_train`, "
            f"{x_train.shape[1:]}. Received: {x_test.shape[1:]} in {source}"
        )
    y_train = _labels(y_train, "y_train", len(x_train), num_classes, source)
    y_test = _labels(y_test, "y_test", len(x_test), num_classes, source)
    if num_classes is None:
        num_classes = max(2, int(max(y_train.max(), y_test.max())) + 1)
    return Dataset(x_train, y_train, x_test, y_test, num_classes)


def _images(x, name, source):
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or (x.shape[1] in (1, 3) and x.shape[3] > 4):
        raise ValueError(
            f"`{name}` must have the shape (n, height, width) or (n, height, width, channels), "
            f"channels last. Received: {x.shape} in {source}"
        )
    if x.size == 0:
        raise ValueError(f"`{name}` must hold at least one image. Received: {x.shape} in {source}")
    if x.dtype == np.uint8:
        x = x.astype("float32")
        x /= 255.0
        return x
    if x.dtype.kind != "f":
        raise ValueError(
            f"`{name}` must be uint8 in [0, 255] or float in [0, 1]. "
            f"Received: dtype {x.dtype} in {source}"
        )
    low, high = float(x.min()), float(x.max())
    if not (low >= 0.0 and high <= 1.0):  # also true of NaN
        raise ValueError(
            f"`{name}` must lie in [0, 1] (divide by 255, or store uint8). "
            f"Received: values in [{low:g}, {high:g}] in {source}"
        )
    return np.ascontiguousarray(x, "float32")


def _labels(y, name, n, num_classes, source):
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be integers of shape (n,) or (n, 1). "
            f"Received: {y.dtype} of shape {y.shape} in {source}"
        )
    if len(y) != n:
        raise ValueError(
            f"`{name}` must have one label per image, {n} in all. "
            f"Received: {len(y)} labels in {source}"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        upper = "" if num_classes is None else f" and < {num_classes}"
        raise ValueError(
            f"`{name}` must be >= 0{upper}. Received: labels in [{low}, {high}] in {source}"
        )
    return np.ascontiguousarray(y, "int32")
