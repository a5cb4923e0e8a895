"""Data sets come out as [0, 1] floats and integers, or not at all; splits cover them."""

import os
import zipfile

import keras
import numpy as np
import pytest

from tfrobust import data
from tfrobust.data.load import FOLDER


def arrays(n=12, size=6, channels=None, dtype="uint8", classes=4, seed=0):
    rng = np.random.default_rng(seed)
    shape = (size, size) if channels is None else (size, size, channels)
    return {
        "x_train": rng.integers(0, 256, (n, *shape)).astype(dtype),
        "y_train": np.arange(n, dtype="int64") % classes,
        "x_test": rng.integers(0, 256, (5, *shape)).astype(dtype),
        "y_test": np.arange(5, dtype="uint8")[:, None] % classes,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    np.savez(tmp_path / "mnist.npz", **arrays(size=28))
    return tmp_path


# What is loaded ---------------------------------------------------------------------------------


def test_digits_are_all_there_once_and_stratified():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 8, 8, 1)
    assert digits.x_test.shape == (360, 8, 8, 1)
    assert digits.x_train.dtype == np.float32 and digits.y_train.dtype == np.int32
    ours = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 64)
    theirs = load_digits().data / 16.0
    np.testing.assert_array_equal(sorted(map(tuple, ours)), sorted(map(tuple, theirs)))
    counts = np.bincount(digits.y_test)
    assert counts.min() >= 35 and counts.max() <= 37
    again = data.load("digits")
    np.testing.assert_array_equal(again.x_test, digits.x_test)


def test_uint8_is_divided_by_255_and_gets_a_channel(folder):
    raw = arrays(size=28)
    loaded = data.load("mnist", data_dir=folder)
    assert loaded.x_train.shape == (12, 28, 28, 1) and loaded.x_train.dtype == np.float32
    np.testing.assert_array_equal(
        loaded.x_train[..., 0], raw["x_train"].astype("float32") / np.float32(255)
    )
    np.testing.assert_array_equal(loaded.y_test, [0, 1, 2, 3, 0])  # from (n, 1)
    assert loaded.y_test.dtype == np.int32 and loaded.num_classes == 10


def test_the_folder_comes_from_the_environment_and_argument_wins(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(folder))
    assert len(data.load("mnist").x_train) == 12
    other = tmp_path / "other"
    other.mkdir()
    np.savez(other / "mnist.npz", **arrays(n=20))
    assert len(data.load("mnist", data_dir=other).x_train) == 20


def test_own_file_by_path_and_by_name(folder):
    own = arrays(channels=3, classes=3)
    own["x_train"] = (own["x_train"] / 255).astype("float64")
    own["x_test"] = (own["x_test"] / 255).astype("float16")
    np.savez(folder / "own.npz", **own)
    for loaded in (data.load(folder / "own.npz"), data.load("own", data_dir=folder)):
        assert loaded.num_classes == 3
        assert loaded.x_train.shape == (12, 6, 6, 3)
        assert loaded.x_test.dtype == np.float32


def test_keras_datasets_come_last(folder, monkeypatch):
    raw = arrays(channels=3)
    monkeypatch.setattr(
        keras.datasets.cifar10,
        "load_data",
        lambda: ((raw["x_train"], raw["y_train"]), (raw["x_test"], raw["y_test"])),
    )
    assert data.load("cifar10", data_dir=folder).x_train.shape == (12, 6, 6, 3)


def test_a_failed_download_says_where_to_put_the_file(folder, monkeypatch):
    def fail():
        raise Exception("URL fetch failure on https://...: None --\n no network")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(OSError, match=r"put cifar10\.npz into a folder .* `data_dir`") as error:
        data.load("cifar10", data_dir=folder)
    assert "\n" not in str(error.value)


# What is refused --------------------------------------------------------------------------------


def truncated(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def garbled(path):
    """Flips bytes inside a member, so that its checksum fails."""
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("x_train.npy").header_offset
    whole = bytearray(path.read_bytes())
    for i in range(offset + 200, offset + 260):
        whole[i] ^= 0xFF
    path.write_bytes(bytes(whole))


def single(path):
    with open(path, "wb") as stream:
        np.save(stream, np.zeros(3))


CORRUPT = [
    ("truncated", truncated),
    ("garbled", garbled),
    ("text", lambda path: path.write_text("not an archive")),
    ("empty file", lambda path: path.write_bytes(b"")),
    ("npy", single),
]


@pytest.mark.parametrize("spoil", [c[1] for c in CORRUPT], ids=[c[0] for c in CORRUPT])
def test_a_corrupt_file_is_an_oserror_naming_it(folder, spoil):
    spoil(folder / "mnist.npz")
    with pytest.raises(OSError, match=r"readable \.npz file\. Received: .*mnist\.npz") as error:
        data.load("mnist", data_dir=folder)
    assert "\n" not in str(error.value)


def changed(**new):
    def change(file):
        file.update(new)
        return {key: value for key, value in file.items() if value is not None}

    return change


WRONG = [
    ("missing array", changed(y_test=None), r"without y_test"),
    ("lengths", changed(y_train=np.zeros(11, int)), r"`y_train` must have one label per image, 12"),
    (
        "empty",
        changed(x_train=np.zeros((0, 6, 6), "uint8"), y_train=np.zeros(0, int)),
        r"`x_train` must hold at least one image",
    ),
    ("flat", changed(x_test=np.zeros((5, 36), "uint8")), r"`x_test` must have the shape"),
    (
        "channels first",
        changed(x_train=np.zeros((12, 3, 32, 32), "uint8")),
        r"channels last. Received: \(12, 3, 32, 32\)",
    ),
    ("sizes differ", changed(x_test=np.zeros((5, 7, 7), "uint8")), r"shape of `x_train`"),
    ("not divided", changed(x_train=np.full((12, 6, 6), 255.0)), r"divide by 255"),
    ("negative", changed(x_train=np.full((12, 6, 6), -0.1)), r"`x_train` must lie in \[0, 1\]"),
    ("nan", changed(x_test=np.full((5, 6, 6), np.nan)), r"`x_test` must lie in \[0, 1\]"),
    ("int64 pixels", changed(x_train=np.zeros((12, 6, 6), int)), r"dtype int64"),
    ("one-hot", changed(y_train=np.eye(12)), r"`y_train` must be integers of shape"),
    ("negative label", changed(y_test=np.full(5, -1)), r"`y_test` must be >= 0"),
    ("pickle", changed(x_train=np.array([None] * 12)), r"readable \.npz"),
]


@pytest.mark.parametrize("change, message", [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_arrays_are_refused(tmp_path, change, message):
    np.savez(tmp_path / "own.npz", **change(arrays()))
    with pytest.raises((ValueError, OSError), match=message) as error:
        data.load(tmp_path / "own.npz")
    assert "\n" not in str(error.value)


def test_labels_beyond_the_names_classes_are_refused(tmp_path):
    np.savez(tmp_path / "mnist.npz", **arrays(n=30, classes=11))
    with pytest.raises(ValueError, match=r"`y_train` must be >= 0 and < 10\. .*\[0, 10\]"):
        data.load("mnist", data_dir=tmp_path)


def test_unknown_names_missing_files_and_folders(folder):
    with pytest.raises(ValueError, match="must be one of digits, mnist.*Received: name='imagenet'"):
        data.load("imagenet")
    with pytest.raises(ValueError, match=r"there is no imagenet\.npz in"):
        data.load("imagenet", data_dir=folder)
    with pytest.raises(FileNotFoundError, match=r"path of an \.npz file"):
        data.load(folder / "absent.npz")
    with pytest.raises(FileNotFoundError, match="`data_dir` must be an existing folder"):
        data.load("mnist", data_dir=folder / "absent")
    with pytest.raises(TypeError, match="`name` must be"):
        data.load(3)


def test_a_missing_environment_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=f"`{FOLDER}` must be an existing folder"):
        data.load("mnist")


# Splits -----------------------------------------------------------------------------------------


def indexed(n=50):
    """Images whose first pixel tells which one they are."""
    x = np.zeros((n, 4, 4, 1), "float32")
    x[:, 0, 0, 0] = np.arange(n) / n
    return x, np.arange(n, dtype="int32")


def dataset(n=50):
    x, y = indexed(n)
    return data.Dataset(x, y, x[:7], y[:7], n)


@pytest.mark.parametrize("size, expected", [(0.1, 5), (0.001, 1), (20, 20), (np.int64(3), 3)])
def test_validation_partitions_the_training_set(size, expected):
    (x, y), (x_val, y_val) = dataset().validation(size, seed=3)
    assert len(x_val) == expected and len(x) == 50 - expected
    np.testing.assert_array_equal(np.sort(np.concatenate([y, y_val])), np.arange(50))
    np.testing.assert_allclose(x_val[:, 0, 0, 0] * 50, y_val, atol=1e-5)
    again = dataset().validation(size, seed=3)[1][1]
    np.testing.assert_array_equal(again, y_val)


def test_validation_depends_on_its_seed():
    assert not np.array_equal(
        dataset().validation(20, seed=0)[1][1], dataset().validation(20, seed=1)[1][1]
    )


@pytest.mark.parametrize("size", [0, 50, 51, 1.0, 0.0, -1, True, "10"])
def test_validation_refuses_senseless_sizes(size):
    with pytest.raises(ValueError, match="`size` must be a fraction"):
        dataset().validation(size)


def test_split_covers_everything():
    train, val, test = dataset().split(batch_size=8, validation=10, seed=1)
    seen = np.concatenate([y for part in (train, val) for _, y in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(50))
    np.testing.assert_array_equal(np.concatenate([y for _, y in test]), np.arange(7))
    assert train.shuffle and not val.shuffle and not test.shuffle


def test_environment_data_if_there(monkeypatch):
    """The real MNIST, where the developer has it."""
    folder = os.environ.get(FOLDER)
    if not folder or not os.path.exists(os.path.join(folder, "mnist.npz")):
        pytest.skip(f"{FOLDER} is not set")
    mnist = data.load("mnist")
    assert mnist.x_train.shape == (60000, 28, 28, 1) and mnist.x_train.max() == 1.0
