"""Batches: an order and an augmentation that follow from seed, epoch and batch."""

import keras
import numpy as np
import pytest

from tests.test_data import indexed
from tfrobust import data


def order(batches):
    return np.concatenate([batch[1] for batch in batches])


def test_order_follows_from_seed_and_epoch_only():
    x, y = indexed()
    one, two = data.Batches(x, y, 8, seed=5), data.Batches(x, y, 8, seed=5)
    first = order(one)
    one.epoch = 4
    fourth = order(one)
    two.epoch = 4
    np.testing.assert_array_equal(order(two), fourth)
    assert not np.array_equal(first, fourth)
    assert not np.array_equal(first, order(data.Batches(x, y, 8, seed=6)))
    np.testing.assert_array_equal(np.sort(fourth), y)
    for images, labels in one:
        np.testing.assert_allclose(images[:, 0, 0, 0] * 50, labels, atol=1e-5)


def test_alone_it_counts_the_passes():
    batches = data.Batches(*indexed(), 8)
    epochs = []
    for _ in range(3):
        batches.on_epoch_begin()
        epochs.append(batches.epoch)
        batches.on_epoch_end()
    batches.epoch = 7
    batches.on_epoch_begin()
    assert epochs == [0, 1, 2] and batches.epoch == 7


@pytest.mark.parametrize("drop, sizes", [(False, [16, 16, 16, 2]), (True, [16, 16, 16])])
def test_last_batch(drop, sizes):
    batches = data.Batches(*indexed(), 16, drop_remainder=drop)
    assert [len(y) for _, y in batches] == sizes and len(batches) == len(sizes)


def test_without_shuffle_the_arrays_order_stays():
    batches = data.Batches(*indexed(), 16, shuffle=False)
    np.testing.assert_array_equal(order(batches), np.arange(50))


def test_sample_weight_goes_with_its_example():
    x, y = indexed()
    for images, labels, weights in data.Batches(x, y, 16, sample_weight=y / 2):
        np.testing.assert_array_equal(weights, labels / 2)
        assert weights.dtype == np.float32 and len(images) == len(weights)


def test_augmentation_follows_from_seed_epoch_and_batch():
    x, y = indexed()
    reads = []
    for _ in range(2):
        batches = data.Batches(x, y, 8, seed=5, augment=data.CropFlip(1))
        batches.epoch = 3
        order = range(len(batches)) if not reads else reversed(range(len(batches)))
        reads.append({i: batches[i][0] for i in order})
    for i, images in reads[0].items():
        np.testing.assert_array_equal(images, reads[1][i])
        assert images.dtype == x.dtype
    batches.epoch = 4
    assert any(not np.array_equal(batches[i][0], reads[0][i]) for i in range(len(batches)))
    plain = data.Batches(x, y, 8, seed=5)
    assert "augment" not in plain.fingerprint()
    assert batches.fingerprint()["augment"] == "CropFlip(pad=1, flip=True)"


@pytest.mark.parametrize("pad, flip", [(0, False), (0, True), (2, False), (3, True)])
def test_crop_and_flip_give_views_of_the_padded_image(pad, flip):
    x = np.random.default_rng(0).uniform(0.1, 1, (40, 5, 7, 3)).astype("float32")
    got = data.CropFlip(pad, flip)(x, np.random.default_rng(1))
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = set()
    for image, padded in zip(got, wide, strict=True):
        views = {
            (i, j, mirrored): padded[i : i + 5, j : j + 7][:, :: -1 if mirrored else 1]
            for i in range(2 * pad + 1)
            for j in range(2 * pad + 1)
            for mirrored in ((False, True) if flip else (False,))
        }
        found = [place for place, view in views.items() if np.array_equal(view, image)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 1 or (pad, flip) == (0, False)
    assert {mirrored for *_, mirrored in seen} == ({False, True} if flip else {False})


def test_augmentation_keeps_shapes_or_is_refused():
    x, y = indexed()
    with pytest.raises(ValueError, match="`augment` must return images of shape"):
        data.Batches(x, y, 8, augment=lambda images, draws: images[1:])[0]
    with pytest.raises(ValueError, match="`pad` must be an integer >= 0"):
        data.CropFlip(-1)
    with pytest.raises(ValueError, match="`images` must have the shape"):
        data.CropFlip()(np.zeros((2, 4)), np.random.default_rng(0))


BAD = [
    ({"augment": 3}, TypeError, "`augment` must be a function"),
    ({"x": np.zeros((0, 4, 4, 1)), "y": np.zeros(0)}, ValueError, "at least one image"),
    ({"y": np.arange(49)}, ValueError, "`y` must have one label per image, 50"),
    (
        {"sample_weight": np.ones((50, 1))},
        ValueError,
        r"`sample_weight` must have the shape \(50,\)",
    ),
    ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
    ({"batch_size": 2.5}, ValueError, "`batch_size` must be an integer >= 1"),
    ({"batch_size": 51, "drop_remainder": True}, ValueError, "at most 50, the number of images"),
    ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
    ({"x": None}, TypeError, "`x` must be an array"),
]


@pytest.mark.parametrize("change, kind, message", BAD)
def test_batches_refuse(change, kind, message):
    x, y = indexed()
    with pytest.raises(kind, match=message):
        data.Batches(**{"x": x, "y": y, **change})


def test_an_index_past_the_end_is_refused():
    with pytest.raises(IndexError, match="`index` must lie in"):
        data.Batches(*indexed(), 16)[4]


def tiny_model():
    class Recorder(keras.Model):
        """Counts how often Keras traces the step."""

        traces = 0

        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(50, kernel_initializer="zeros")

        def call(self, x):
            return self.dense(keras.ops.reshape(x, (-1, 16)))

        def train_step(self, batch):
            type(self).traces += 1
            return super().train_step(batch)

    model = Recorder()
    model(np.zeros((1, 4, 4, 1), "float32"))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Spy(data.Batches):
    """Notes which examples were asked for in which epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = {}

    def __getitem__(self, index):
        batch = super().__getitem__(index)
        self.asked.setdefault(self.epoch, []).append(batch[1])
        return batch


def test_fit_traces_once_whatever_the_last_batch_and_keeps_the_order():
    model, batches = tiny_model(), Spy(*indexed(), 16, seed=2)
    model.fit(batches, epochs=3, shuffle=False, verbose=0)
    assert type(model).traces == 1
    assert batches.in_order
    reference = data.Batches(*indexed(), 16, seed=2)
    for epoch in (1, 2):  # epoch 0 also holds the batches Keras takes for its signature
        reference.epoch = epoch
        np.testing.assert_array_equal(np.concatenate(batches.asked[epoch]), order(reference))


def test_keras_own_shuffle_is_noticed():
    import random

    random.seed(1)
    model, batches = tiny_model(), data.Batches(*indexed(), 4)
    model.fit(batches, epochs=1, verbose=0)
    assert not batches.in_order
