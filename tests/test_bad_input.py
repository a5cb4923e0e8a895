"""Bad input ends in one typed line that names the argument, and leaves nothing half-written."""

import keras
import numpy as np
import pytest

import tfrobust as tr
from tests import bank

COUNT, CLASSES = 16, 4
X, Y = bank.images(COUNT), np.arange(COUNT) % CLASSES
PGD = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2)


@keras.saving.register_keras_serializable(package="tests")
class Unknown(keras.layers.Layer):
    def call(self, x):
        return x * 2


@pytest.fixture(scope="module")
def net():
    return bank.classifier(CLASSES)


@pytest.fixture(scope="module")
def softmax(net):
    return keras.Model(net.input, keras.layers.Softmax()(net.output))


@pytest.fixture(scope="module")
def unknown():
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3)(image)
    x = Unknown(name="mine")(tr.layers.BetaBernoulliMask()(x))
    return keras.Model(image, keras.layers.Dense(CLASSES)(keras.layers.Flatten()(x)))


def judge(net, x=X, y=Y, attacks=(PGD,), **options):
    return tr.evaluate.robustness(net, (x, y), attacks, progress=False, **options)


def call(net):
    return lambda x: net(x)


move = tr.regularizers.vulnerability


def train(net, x=X, y=Y, **options):
    game = tr.training.AdversarialTraining(net, PGD)
    game.compile("adam")
    return game.fit(x, y, verbose=0, **options)


GREY = (X * 255).astype(np.uint8)
HOT = np.eye(CLASSES)[Y]

ARRAYS = [
    ("evaluate, x above 1", lambda n: judge(n, X * 2), ValueError, r"`x` must lie in \[0, 1\]"),
    ("evaluate, uint8", lambda n: judge(n, GREY), TypeError, "divide uint8 images by 255"),
    ("evaluate, NaN", lambda n: judge(n, X * np.nan), ValueError, "`x` must be finite"),
    ("evaluate, label 4", lambda n: judge(n, y=Y + 1), ValueError, r"`y` must lie in \[0, 3\]"),
    ("evaluate, one-hot", lambda n: judge(n, y=HOT), ValueError, "`y` must be integer labels"),
    ("evaluate, empty", lambda n: judge(n, X[:0], Y[:0]), ValueError, "at least one example"),
    ("attack, x below 0", lambda n: PGD(n, X - 1, Y), ValueError, r"`x` must lie in \[0, 1\]"),
    ("attack, uint8", lambda n: PGD(n, GREY, Y), TypeError, "divide uint8 images by 255"),
    ("attack, label -1", lambda n: PGD(n, X, Y - 1), ValueError, r"`y` must lie in \[0, 3\]"),
    ("attack, one-hot", lambda n: PGD(n, X, HOT), ValueError, "`y` must be integer labels"),
    ("attack, empty", lambda n: PGD(n, X[:0], Y[:0]), ValueError, "at least one example"),
    ("attack, grey levels", lambda n: PGD(n, X, Y, epsilon=8), ValueError, "write 8/255, not 8"),
    ("attack, image size", lambda n: PGD(n, X[:, 1:], Y), ValueError, r"shape \(batch, 8, 8, 1\)"),
    ("attack, index", lambda n: PGD(n, X, Y, index=Y / 2), ValueError, "`index` must hold int"),
    ("attack, run", lambda n: PGD(n, X, Y, run=0.5), ValueError, "`run` must be an integer"),
    ("evaluate, infinite label", lambda n: judge(n, y=Y + np.inf), TypeError, "Received: dtype"),
    ("evaluate, no list", lambda n: judge(n, attacks=None), TypeError, "`attacks` must be a list"),
    ("curve, a number", lambda n: judge(n, eps_grid=0.1), TypeError, "`eps_grid` must be a list"),
    ("callable, label 4", lambda n: judge(call(n), y=Y + 1), ValueError, r"lie in \[0, 3\]"),
    ("callable, label -1", lambda n: judge(call(n), y=Y - 1), ValueError, "`y.*must lie in"),
    ("callable, attack", lambda n: PGD(call(n), X, Y + 1), ValueError, r"`y` must lie in \[0, 3\]"),
    ("callable, NumPy", lambda n: judge(lambda x: np.ones((len(x), 4))), TypeError, "a TensorFlow"),
    ("callable, rank", lambda n: judge(lambda x: n(x)[:, 0]), ValueError, "must return logits"),
    ("vulnerability, uint8", lambda n: move(n, GREY, X), TypeError, "divide uint8 images by 255"),
    ("vulnerability, length", lambda n: move(n, X, X[:1]), ValueError, "the shape of `x`"),
    ("threat, grey levels", lambda n: tr.threats.Linf(8), ValueError, "write 8/255, not 8"),
    ("curve, grey levels", lambda n: judge(n, eps_grid=[8]), ValueError, "write 8/255, not 8"),
    ("fit, x above 1", lambda n: train(n, X * 2), ValueError, r"`x` must lie in \[0, 1\]"),
    ("fit, uint8", lambda n: train(n, GREY), TypeError, "divide uint8 images by 255"),
    ("fit, label 4", lambda n: train(n, y=Y + 1), ValueError, r"`y` must lie in \[0, 3\]"),
    ("fit, empty", lambda n: train(n, X[:0], Y[:0]), ValueError, "at least one example"),
]


@pytest.mark.parametrize(
    ("call", "kind", "message"), [row[1:] for row in ARRAYS], ids=[row[0] for row in ARRAYS]
)
def test_arrays(call, kind, message, net):
    before = [w.copy() for w in net.get_weights()]
    with pytest.raises(kind, match=message) as caught:
        call(net)
    assert "\n" not in str(caught.value) and "Received" in str(caught.value)
    assert PGD(net, X, Y).shape == X.shape  # the attack is as good as before
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True))


def test_game_refuses_grey_levels(net):
    with pytest.raises(ValueError, match="write 8/255, not 8"):
        tr.training.AdversarialTraining(net, PGD, epsilon=8)


SOFTMAX = {
    "evaluate": judge,
    "game": lambda net: tr.training.AdversarialTraining(net, PGD),
    "insert": lambda net: tr.layers.insert_masks(net, tr.layers.BetaBernoulliMask),
    "shrink": lambda net: tr.shrink.compact(net),
    "footprint": lambda net: tr.footprint.measure(net),
}


@pytest.mark.parametrize("room", SOFTMAX)
def test_softmax_output_is_sent_to_prepare(room, softmax):
    with pytest.raises(ValueError, match=r"must return logits.*tr\.models\.prepare"):
        SOFTMAX[room](softmax)


def test_loss_of_probabilities(net):
    game = tr.training.AdversarialTraining(net, PGD)
    with pytest.raises(ValueError, match="`loss` must take logits"):
        game.compile("adam", "sparse_categorical_crossentropy")


def test_unknown_layer_in_shrink_is_named(unknown):
    with pytest.raises(ValueError, match=r"no rule for layer 'mine' \(Unknown\)"):
        tr.shrink.compact(unknown)


@pytest.mark.parametrize("question", ["keep", "expected", "kl"])
def test_mask_before_build(question):
    mask = tr.layers.BetaBernoulliMask(name="early")
    with pytest.raises(ValueError, match="Mask 'early' has no channels yet"):
        getattr(mask, question)()


def arrays(count=COUNT):
    return {"x_train": X[:count], "y_train": Y[:count], "x_test": X, "y_test": Y}


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[400] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [half, flipped, lambda path: path.write_bytes(b"PK\x03\x04")])
def test_corrupt_npz(spoil, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    spoil(tmp_path / "mine.npz")
    with pytest.raises(OSError, match="must be a readable .npz file"):
        tr.data.load(str(tmp_path / "mine.npz"))


def test_empty_npz(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(0))
    with pytest.raises(ValueError, match="`x_train` must hold at least one image"):
        tr.data.load(str(tmp_path / "mine.npz"))


WRITES = {
    "tflite": lambda net, place: tr.export.tflite(net, place / "net.tflite"),
    "keras": lambda net, place: tr.export.keras_file(net, place / "net.keras"),
    "card": lambda net, place: tr.report.card("card", tr.report.Entry()).save(place / "card"),
    "state": lambda net, place: judge(net, state=place / "run.state"),
    "resume": lambda net, place: train(
        net, shuffle=False, callbacks=[tr.training.Resume(place / "backup")]
    ),
}


@pytest.mark.parametrize("room", WRITES)
def test_unwritable_folder(room, net, tmp_path):
    # A file where a folder should be: refused for every user, root included.
    (tmp_path / "file").write_text("in the way")
    before = [w.copy() for w in net.get_weights()]
    with pytest.raises(OSError, match="can be written"):
        WRITES[room](net, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True))
