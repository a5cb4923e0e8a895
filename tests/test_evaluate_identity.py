"""What tells models, attacks and figures apart: nothing is taken for something else."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import bank
from tests.bank_evaluate import codes, run
from tests.test_evaluate_attacks import Jitter
from tfrobust import attacks, losses, threats

LINF = threats.Linf(0.05)
PGD = attacks.PGD(LINF, steps=3)


@pytest.fixture(scope="module")
def base():
    net, x = bank.classifier(), bank.images(24)
    return net, x, attacks.forward(net, x).argmax(-1)


def around(net, before):
    """The same network behind an operation without a layer of its own."""
    image = keras.Input(net.input_shape[1:])
    return keras.Model(image, net(before(image)))


def test_a_state_belongs_to_the_connections_too(base, tmp_path):
    net, x, y = base
    same, inverted = around(net, lambda i: i * 1.0), around(net, lambda i: 1.0 - i)
    path = tmp_path / "s"
    assert run(same, (x, y), [PGD], state=path).clean.value == 1
    assert run(around(net, lambda i: i * 1.0), (x, y), [PGD], state=path).clean.value == 1
    with pytest.raises(ValueError, match="`state` .* another evaluation: the model"):
        run(inverted, (x, y), [PGD], state=path)
    assert run(inverted, (x, y), [PGD]).clean.value < 1


@keras.saving.register_keras_serializable(package="tests")
class Loud(keras.layers.Layer):
    """Multiplies by a number that anybody may change."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def test_a_layer_that_was_changed_is_traced_anew(base):
    net, x, y = base
    layer = Loud()
    changed = around(net, layer)
    assert run(changed, (x, y), [PGD]).clean.value == 1
    layer.factor = 0.0
    expected = (np.asarray(changed(x)).argmax(-1) == y).mean()
    assert run(changed, (x, y), [PGD]).clean.value == pytest.approx(expected) != 1


@dataclasses.dataclass(frozen=True)
class Biased:
    """Equal to any other of its kind."""

    label: int = dataclasses.field(compare=False)

    def __call__(self, x):
        return tf.one_hot(tf.fill(tf.shape(x)[:1], self.label), 4) + 0.0 * x[:, :1, 0, 0]


def test_equal_callables_are_not_the_same_model(base):
    _, x, _ = base
    y = np.zeros(len(x), int)
    assert not PGD.result(Biased(0), x, y, epsilon=0.0).fooled.any()
    assert PGD.result(Biased(1), x, y, epsilon=0.0).fooled.all()


def test_images_of_another_rank_in_turn(base):
    net, x, y = base
    assert PGD.result(net, x, y).x_adv.shape == x.shape
    flat = PGD.result(net, x[..., 0], y)
    assert flat.x_adv.shape == x.shape[:-1]


@pytest.mark.parametrize("name", ["clean", "joint", "label", "epsilon 0.1"])
def test_names_of_figures_are_refused(base, name):
    net, x, y = base
    attack = type(name, (attacks.PGD,), {"name": name})(LINF, steps=2)
    with pytest.raises(ValueError, match="`attacks` must not be named clean"):
        run(net, (x, y), [attack])


@keras.saving.register_keras_serializable(package="tests")
class Downhill(attacks.Attack):
    """Lowers the true logit; its steps are an attribute of the class, as in the guide."""

    iterations = 2

    def start(self, call):
        return {"best": call.x}

    def step(self, call, i, state):
        def score(logits):
            return -tf.gather(logits, call.y, batch_dims=1)

        _, _, gradient = call.gradient(score, state["best"])
        moved = state["best"] + 0.2 * call.epsilon * self.threat.ascent(gradient, call.x)
        return {"best": self.threat.project(moved, call.x, call.epsilon)}


def test_a_state_belongs_to_the_attributes_of_an_attack(base, tmp_path):
    net, x, y = base
    attack = Downhill(LINF)
    run(net, (x, y), [attack], state=tmp_path / "s")
    run(net, (x, y), [Downhill(LINF)], state=tmp_path / "s")
    attack.iterations = 9
    with pytest.raises(ValueError, match="the attacks"):
        run(net, (x, y), [attack], state=tmp_path / "s")


@keras.saving.register_keras_serializable(package="tests")
class Brighter(attacks.Attack):
    """One go, no steps."""

    def perturb(self, call):
        return call.x + 2 * call.epsilon


def test_an_attack_may_give_perturb_alone(base):
    net, x, y = base
    attack = Brighter(LINF)
    wanted = np.minimum(x + np.float32(0.05), 1.0)
    np.testing.assert_allclose(attack(net, x, y), wanted, atol=1e-6)
    inside = tf.function(lambda x, y: attack(net, x, y))(tf.constant(x), tf.constant(y))
    np.testing.assert_allclose(inside, wanted, atol=1e-6)
    broken = (attacks.forward(net, wanted).argmax(-1) != y).sum()
    assert run(net, (x, y), [attack]).joint.count == len(x) - broken


def half(logits, y, target=None):
    return 0.5 * losses.margin(logits, y, target)


def scaled(size, logits, y, target=None):
    return size * losses.margin(logits, y, target)


@pytest.mark.parametrize(
    "loss",
    [half, lambda *args: losses.margin(*args), functools.partial(scaled, 0.5)],
    ids=["function", "lambda", "partial"],
)
def test_losses_of_a_users_own_are_judged(base, loss, tmp_path):
    net, x, y = base
    attack = attacks.PGD(LINF, steps=3, loss=loss)
    plain = run(net, (x, y), [attacks.PGD(LINF, steps=3, loss="margin")])
    found = run(net, (x, y), [attack], state=tmp_path / "s")
    assert abs(found.joint.count - plain.joint.count) <= 1
    assert run(net, (x, y), [attack], state=tmp_path / "s").joint == found.joint


def test_a_random_model_gives_the_same_figures_again():
    keras.utils.set_random_seed(0)
    net, x = bank.classifier(), bank.images(40)
    y = attacks.forward(net, x).argmax(-1)
    image = keras.Input(net.input_shape[1:])
    noisy = keras.Model(image, net(Jitter(0.3)(image)))
    first, second = (run(noisy, (x, y), []) for _ in range(2))
    assert first.clean == second.clean and first.clean.value < 1
    assert "stochastic_output" in codes(first)


def test_one_output_that_looks_like_a_probability_is_doubted():
    x = bank.images(40)
    inner = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Flatten()])
    inner.add(keras.layers.Dense(1))
    y = (np.asarray(inner(x))[:, 0] > 0).astype(int)
    assert "probabilities" in codes(run(lambda z: tf.sigmoid(inner(z)), (x, y), []))
    assert "probabilities" not in codes(run(lambda z: inner(z), (x, y), []))
    image = keras.Input(x.shape[1:])
    nested = keras.Model(image, keras.layers.Dense(1, "sigmoid")(keras.layers.Flatten()(image)))
    for last in (keras.ops.sigmoid(inner(image)), nested(image)):
        with pytest.raises(ValueError, match="must return logits, but its last layer"):
            run(keras.Model(image, last), (x, y), [])


class Duck:
    """Speaks the evaluation's language without being one of ours; no name."""

    threat, runs = LINF, 1

    def __init__(self, count):
        self.count = count

    def __call__(self, model, x, y, index=None, epsilon=None, run=None):
        return x[: self.count]


def test_attacks_that_are_not_ours(base):
    net, x, y = base
    assert run(net, (x, y), [Duck(None)]).joint.value == 1
    with pytest.raises(ValueError, match=r"Duck must return images of shape \(24"):
        run(net, (x, y), [Duck(3)])
