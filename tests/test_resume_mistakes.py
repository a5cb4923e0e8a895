"""Files that a killed `fit` leaves: torn, foreign or broken ones, and runs that cannot resume."""

import functools
import random

import keras
import numpy as np
import pytest

import tfrobust as tr
from tests.bank_resume import anp_vs, digits, masked_net, plain, state, train


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with an ANP-VS run that stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    train(functools.partial(anp_vs, run_eagerly=True), 0, folder, kill=8)
    return folder


# The file ---------------------------------------------------------------------------------------


def test_a_torn_write_leaves_the_previous_state(tmp_path, monkeypatch):
    """A kill in the middle of a write: the next start finds the whole file before it."""
    from tfrobust.training import snapshot

    train(plain, 0, tmp_path, kill=8)
    before = (tmp_path / "resume.npz").read_bytes()

    def torn(stream, **arrays):
        stream.write(b"half of an arch")
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot.np, "savez", torn)
    train(plain, 0, tmp_path)
    assert (tmp_path / "resume.npz").read_bytes() == before
    (tmp_path / ".77.resume.npz").write_text("left over by kill -9")
    tr.training.Resume(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["resume.npz"]


def test_foreign_files_stay_when_the_run_ends(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    train(plain, 0, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_an_oserror(tmp_path, content):
    (tmp_path / "resume.npz").write_bytes(content)
    with pytest.raises(OSError, match=r"`directory` must hold a readable state.*resume\.npz") as e:
        train(plain, 0, tmp_path)
    assert "\n" not in str(e.value)


def other_data(game):
    return digits(seed=1)[0]


def other_size(game):
    return digits(batch_size=32)[0]


def same_data(game):
    return digits()[0]


def adversarial(seed):
    keras.utils.set_random_seed(seed)
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2)
    game = tr.training.AdversarialTraining(masked_net(), attack)
    game.compile("sgd")
    return game


OTHERS = [
    ("another game", adversarial, same_data, r'model: "ANP" there, "AdversarialTraining" here'),
    ("another beta", lambda seed: anp_vs(seed, beta=5.0), same_data, r"config\.beta: 4\.0 there"),
    ("another order", anp_vs, other_data, r"data\.seed: 0 there, 1 here"),
    ("another batch size", anp_vs, other_size, r"data\.batch_size: 16 there, 32 here"),
]


@pytest.mark.parametrize("make, data, message", [o[1:] for o in OTHERS], ids=[o[0] for o in OTHERS])
def test_another_run_is_refused(killed, make, data, message):
    game = make(0)
    before = state(game)
    early = keras.callbacks.EarlyStopping("val_loss")
    slower = keras.callbacks.ReduceLROnPlateau("loss")
    with pytest.raises(ValueError, match=f"`directory` must be empty or hold.*{message}") as error:
        game.fit(data(game), verbose=0, callbacks=[tr.training.Resume(killed), early, slower])
    assert "\n" not in str(error.value)
    for a, b in zip(before, state(game), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (killed / "resume.npz").exists()


# What is refused --------------------------------------------------------------------------------


def test_arguments():
    with pytest.raises(TypeError, match="`directory` must be the path"):
        tr.training.Resume("")
    with pytest.raises(TypeError, match="`directory` must be the path"):
        tr.training.Resume(None)


@pytest.mark.parametrize("save_freq", [0, -1, True, 1.5, "batch", None])
def test_save_freq(tmp_path, save_freq):
    with pytest.raises(ValueError, match="`save_freq` must be"):
        tr.training.Resume(tmp_path, save_freq=save_freq)


def test_an_unwritable_folder_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="`directory` must be a folder that can be written") as e:
            tr.training.Resume(path)
        assert "\n" not in str(e.value)


def test_data_must_be_batches(tmp_path):
    with pytest.raises(TypeError, match=r"`data` must be tr\.data\.Batches. Received: ndarray"):
        tr.training.Resume(tmp_path, np.zeros(3))


def test_arrays_that_keras_shuffles_are_refused(tmp_path):
    game = anp_vs(0)
    train_, _ = digits()
    with pytest.raises(ValueError, match=r"`x` must be tr\.data\.Batches for Resume"):
        game.fit(train_.x, train_.y, verbose=0, callbacks=[tr.training.Resume(tmp_path)])


def test_steps_per_epoch_is_refused(tmp_path):
    game = anp_vs(0)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be left out"):
        game.fit(
            digits()[0], steps_per_epoch=2, verbose=0, callbacks=[tr.training.Resume(tmp_path)]
        )


def test_a_plain_model_must_not_shuffle_batches(tmp_path):
    random.seed(1)
    net, batches = plain(0), digits()[0]
    with pytest.raises(ValueError, match="`shuffle` must be False in `fit` of a plain Keras model"):
        net.fit(batches, verbose=0, callbacks=[tr.training.Resume(tmp_path, batches)])


def test_an_unbuilt_model_is_refused(tmp_path):
    net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = digits()[0]
    with pytest.raises(ValueError, match="The model must be built before `fit` with Resume"):
        net.fit(
            batches, shuffle=False, verbose=0, callbacks=[tr.training.Resume(tmp_path, batches)]
        )


def test_a_plain_model_must_name_callbacks_that_have_a_state(tmp_path):
    net, batches, early = plain(0), digits()[0], keras.callbacks.EarlyStopping("loss")
    with pytest.raises(ValueError, match=r"must name all .*Received: none of EarlyStopping"):
        resume = tr.training.Resume(tmp_path, batches)
        net.fit(batches, shuffle=False, verbose=0, callbacks=[early, resume])


def test_states_come_back_as_they_were_or_are_refused():
    from tfrobust.training import snapshot

    arrays, told = {}, {"rows": [{"step": 3, "loss": 0.5, "list": []}], "best": None, "who": "a"}
    packed = snapshot.packed({**told, "weights": [np.ones(2, "float32")]}, "state", arrays)
    back = snapshot.unpacked(packed, arrays)
    np.testing.assert_array_equal(back.pop("weights")[0], np.ones(2, "float32"))
    assert back == told
    for bad in (object(), {1: 2}, [{"a": {1}}], np.array(["text"])):
        with pytest.raises(TypeError, match="must hold numbers, strings, None, arrays, lists"):
            snapshot.packed(bad, "state", {})
