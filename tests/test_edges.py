"""Legal but odd input gives the right answer: copies, odd numbers, images of several sizes."""

import concurrent.futures
import copy
import pickle
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfrobust as tr
from tests import bank
from tests.bank_graphs import FixedMask
from tfrobust import attacks, threats

X, Y = bank.images(16), np.arange(16) % 4


@pytest.fixture(scope="module")
def net():
    return bank.classifier()


def pgd(threat=None, **options):
    options = {"steps": 3, "random_start": False, **options}
    return attacks.PGD(threat or threats.Linf(0.1), **options)


# --- attacks --------------------------------------------------------------------------------


def test_an_attack_that_was_changed_after_its_first_call(net):
    attack = pgd()
    attack(net, X, Y)
    attack.threat, attack.loss = threats.L2(0.4), "margin"
    wanted = pgd(threats.L2(0.4), loss="margin")(net, X, Y)
    np.testing.assert_array_equal(attack(net, X, Y), wanted)


def test_copies_compile_for_themselves(net):
    attack = pgd()
    wanted, far = attack(net, X, Y), pgd(threats.Linf(0.3))(net, X, Y)
    for twin in (copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))):
        other = twin(attack)
        np.testing.assert_array_equal(other(net, X, Y), wanted)
        other.threat = threats.Linf(0.3)
        np.testing.assert_array_equal(other(net, X, Y), far)
        np.testing.assert_array_equal(attack(net, X, Y), wanted)


def test_images_of_several_sizes():
    image = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    net = keras.Model(image, layers.Dense(4)(x))
    attack = attacks.PGD(threats.Linf(0.1), steps=2)
    for size in (8, 12, 10, 8):
        x = bank.images(4, (size, size, 1))
        assert attack(net, x, Y[:4]).shape == x.shape
        assert tr.evaluate.robustness(net, (x, Y[:4]), [attack], progress=False).n == 4
    for room in (tr.footprint.measure, lambda net: tr.export.tflite(net, "never.tflite")):
        with pytest.raises(ValueError, match="`model` must have an input of known size"):
            room(net)


@pytest.mark.parametrize("epsilon", [1e-3, 8 / 255, 0.5, 12.0])
def test_rounding_of_many_pixels_stays_in_a_small_l1_ball(epsilon):
    image = keras.Input((32, 32, 3))
    net = keras.Model(image, layers.Dense(4)(layers.Flatten()(image)))
    x, y = bank.images(16, (32, 32, 3)), np.arange(16) % 4
    for attack in (attacks.FGSM(threats.L1(epsilon)), attacks.PGD(threats.L1(epsilon), steps=3)):
        moved = np.abs(attack(net, x, y).astype(float) - x).sum((1, 2, 3))
        assert (moved <= epsilon * (1 + 1e-5)).all()
        assert (moved >= 0.9 * epsilon).any()


def nan_gradient():
    """Finite logits; sqrt at 0 gives every pixel a gradient of infinity times 0."""
    image = keras.Input((8, 8, 1))
    x = layers.Flatten()(image)
    extra = keras.ops.sum(keras.ops.sqrt(x * 0.0), -1, keepdims=True)
    return keras.Model(image, layers.Dense(4)(x) + layers.Dense(4)(extra))


def test_gradient_of_nan_leaves_the_image_and_is_flagged():
    net = nan_gradient()
    y = attacks.forward(net, X).argmax(-1)
    fgsm = attacks.FGSM(threats.Linf(0.3))
    np.testing.assert_array_equal(fgsm(net, X, y), X)
    scores = tr.evaluate.robustness(net, (X, y), [fgsm], progress=False)
    assert scores.attacks[0].illegal == 0
    assert "no_gradient" in [flag.code for flag in scores.flags]


# --- evaluation -----------------------------------------------------------------------------


def test_numbers_of_numpy(net):
    attack = attacks.PGD(threats.Linf(np.float32(0.1)), np.int64(2), step_size=np.float32(0.05))
    scores = tr.evaluate.robustness(
        net, (X, Y), [attack], [np.float32(0.1)], batch_size=np.int64(8), max_examples=np.int32(12),
        progress=False,
    )  # fmt: skip
    assert scores.n == 12


def test_state_of_more_images_than_are_given(net, tmp_path):
    def judge(count):
        return tr.evaluate.robustness(
            net, (X[:count], Y[:count]), [], state=tmp_path / "s", batch_size=4, progress=False
        )

    judge(12)
    with pytest.raises(ValueError, match="`state` .* belongs to another evaluation: the data"):
        judge(8)
    assert judge(16).n == 16


@pytest.mark.parametrize("spoil", [lambda f: np.save(f, X), lambda f: np.savez(f, meta="[]")])
def test_another_file_in_place_of_a_state(spoil, net, tmp_path):
    with open(tmp_path / "s", "wb") as file:
        spoil(file)
    with pytest.raises(ValueError, match="`state` must be a file that an earlier evaluation"):
        tr.evaluate.robustness(net, (X, Y), [], state=tmp_path / "s", progress=False)


def test_two_threads_write_one_file(tmp_path):
    both = threading.Barrier(2, timeout=60)

    def write(letter):
        def save(name):
            with open(name, "w") as file:
                file.write(letter * 10)
                both.wait()
                file.write(letter * 10)
                file.flush()
                both.wait()

        tr.files.replace(tmp_path / "f", save)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert (tmp_path / "f").read_text() in ("a" * 20, "b" * 20)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_too_few_classes_are_refused_before_the_first_attack():
    seen = []

    class Watched(attacks.PGD):
        def __call__(self, *args, **kwargs):
            seen.append(1)
            return super().__call__(*args, **kwargs)

    last = attacks.APGD(threats.Linf(0.1), loss="dlr_targeted", targets=2)
    with pytest.raises(ValueError, match="needs a model with 4 classes or more"):
        tr.evaluate.robustness(
            bank.classifier(3), (X, Y % 3), [Watched(threats.Linf(0.1), steps=1), last]
        )
    assert not seen


def test_transfer_checks_labels():
    with pytest.raises(ValueError, match=r"`y` must lie in \[0, 3\]"):
        tr.evaluate.transfer(lambda x: np.zeros((len(x), 4)), X, Y + 1)


def test_half_a_card(tmp_path):
    (tmp_path / "card.json").write_text('{"schema": 1, "name": "half"}')
    with pytest.raises(ValueError, match="must be a whole card"):
        tr.report.load(tmp_path)
    with pytest.raises(TypeError, match="`latency` must be a number or a dict"):
        tr.report.Entry(latency="fast")


@pytest.mark.parametrize("inputs, outputs", [(2, 1), (1, 2)])
def test_attack_on_several_inputs_or_outputs(inputs, outputs):
    images = [keras.Input((8, 8, 1)) for _ in range(inputs)]
    x = layers.Flatten()(layers.Add()(images) if inputs > 1 else images[0])
    net = keras.Model(images, [layers.Dense(4)(x) for _ in range(outputs)])
    with pytest.raises(ValueError, match="must have one input and one output"):
        pgd()(net, X, Y)


# --- surgery --------------------------------------------------------------------------------


def shut(function):
    """A classifier with every second channel of its masks shut, and its logits after `compact`."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    net = keras.Model(image, layers.Dense(4)(layers.Flatten()(function(image))))
    for mask in tr.layers.masks(net):
        mask.gate.assign(np.arange(mask.gate.shape[0]) % 2)
    x = bank.images(8, (8, 8, 3))
    small = tr.shrink.compact(net)
    np.testing.assert_allclose(small(x), net(x), atol=1e-5)
    return net, small


def test_one_slope_for_all_channels():
    def function(x):
        x = layers.PReLU("ones", shared_axes=[1, 2, 3])(layers.Conv2D(6, 3)(x))
        return FixedMask()(x)

    net, small = shut(function)
    assert small.count_params() < net.count_params()


def test_operands_that_give_a_sum_its_shape_together():
    def function(x):
        wide = layers.GlobalAveragePooling2D(keepdims=True)(FixedMask()(layers.Conv2D(3, 1)(x)))
        x = FixedMask()(layers.Add()([layers.Conv2D(1, 1)(x), layers.Rescaling(0.0)(wide)]))
        return layers.Conv2D(2, 3, padding="same")(x)

    shut(function)


@pytest.mark.parametrize("factory", [lambda: layers.Dense(3), lambda: layers.Flatten()])
def test_factory_of_something_else(factory, net):
    with pytest.raises(TypeError, match="`factory` must return masks that keep the shape"):
        tr.layers.insert_masks(net, factory)


@pytest.mark.parametrize("name", ["initial_a", "initial_b", "alpha"])
@pytest.mark.parametrize("value", [np.nan, "x"])
def test_numbers_of_a_mask(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        tr.layers.BetaBernoulliMask(**{name: value})


def test_footprint_of_a_nested_model_of_any_size():
    inner = keras.Input((None, None, 3))
    backbone = keras.Model(inner, layers.Conv2D(4, 3)(inner))
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(backbone(image))
    net = keras.Model(image, layers.Dense(2)(x))
    assert tr.footprint.measure(net).macs == 36 * 27 * 4 + 8


def test_softmax_over_groups_is_not_stripped():
    image = keras.Input((8, 8, 1))
    x = layers.Reshape((2, 2))(layers.Dense(4)(layers.Flatten()(image)))
    net = keras.Model(image, layers.Flatten()(layers.Softmax()(x)))
    ready = tr.models.prepare(net, (0, 1))
    np.testing.assert_allclose(ready(X), net(X), atol=1e-6)


# --- games ----------------------------------------------------------------------------------


def game(net=None, kind=tr.training.AdversarialTraining, run_eagerly=False, **options):
    made = kind(net or bank.classifier(), pgd(steps=1), **options)
    made.compile(run_eagerly=run_eagerly)
    return made


def flat():
    """The smallest classifier: its steps are traced, as what is looked at inside of a graph."""
    image = keras.Input((8, 8, 1))
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(image)))


def stream(x, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


STREAMS = [
    ("uint8", stream((X * 255).astype("uint8")), TypeError, "divide uint8 images by 255"),
    ("grey levels", stream(X * 255), ValueError, r"`x` must lie in \[0, 1\]. Received: values"),
    ("NaN", stream(X * np.nan), ValueError, r"`x` must lie in \[0, 1\]"),
    ("label 4", stream(X, Y + 1), ValueError, r"`y` must lie in \[0, 3\]. .* from 1 to 4"),
    ("no labels", stream(X).map(lambda x, y: x), TypeError, "`x` must give pairs"),
    ("no batches", stream(X).unbatch(), ValueError, "`x` must have shape"),
    ("five columns", stream(X, np.eye(5)[Y]), ValueError, r"one-hot rows \(batch, 4\)"),
    ("one-hot", stream(X, np.eye(4)[Y]), ValueError, "`y` must be integer labels for Sparse"),
]


@pytest.mark.parametrize(
    ("data", "kind", "match"), [r[1:] for r in STREAMS], ids=[r[0] for r in STREAMS]
)
def test_streams_are_checked_before_a_weight_moves(data, kind, match):
    made = game(flat())
    before = made.classifier.get_weights()
    with pytest.raises(kind, match=match) as caught:
        made.fit(data, verbose=0)
    assert "\n" not in str(caught.value)
    for old, new in zip(before, made.classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(("x", "y"), [(X * 255, Y), (X, Y + 1), (X, Y[:, None] + 1), (X, Y[:3])])
def test_validation_data_is_checked_before_the_epoch(x, y):
    made = game(flat())
    with pytest.raises(ValueError, match="`validation_[xy]` must"):
        made.fit(X, Y, validation_data=(x, y), verbose=0)
    assert int(made.step.numpy()) == 0
    with pytest.raises(ValueError, match="`[xy]` must"):
        made.evaluate(x, y, verbose=0)


def test_each_regularizer_sees_its_own_features():
    def penalty(*features):
        parts = [tr.regularizers.VulnerabilitySuppression(features=f) for f in features]
        made = game(regularizers=parts, run_eagerly=True)
        return made.fit(X, Y, batch_size=16, verbose=0).history["regularization"][0]

    one, two, every = ["relu_conv1"], ["relu_dense3"], None
    assert penalty(one, two, every) == pytest.approx(sum(map(penalty, (one, two, every))), rel=1e-5)


def test_frozen_masks_in_anp():
    net = bank.classifier(mask=tr.layers.BetaBernoulliMask)
    made = game(net, tr.training.ANP, train_size=16, run_eagerly=True)
    made.fit(X, Y, verbose=0)
    for mask in made.masks():
        mask.trainable = False
    with pytest.warns(UserWarning, match="changed after `compile`"):
        made.fit(X, Y, verbose=0)
    made.compile(run_eagerly=True)
    before = [mask.get_weights()[0] for mask in made.masks()]
    made.fit(X, Y, verbose=0)
    for old, mask in zip(before, made.masks(), strict=True):
        np.testing.assert_array_equal(old, mask.get_weights()[0])


@pytest.mark.parametrize("mix", [(np.nan, 1.0), (1.0,), 3, (0, 0), (-1, 2)])
def test_mix(mix):
    with pytest.raises(ValueError, match="`mix` must be two weights"):
        game(mix=mix)


def test_attack_that_needs_more_classes_is_refused_by_the_game():
    with pytest.raises(ValueError, match="needs a model with 3 classes"):
        tr.training.AdversarialTraining(bank.classifier(2), pgd(loss="dlr"))
