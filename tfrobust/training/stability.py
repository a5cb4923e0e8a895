"""What helps bounds stay tight in training: penalties on boxes, and weights that keep them narrow.

    stable = tr.training.ReLUStability(1e-3)
    game = tr.training.CertifiedTraining(net, threat, regularizers=[stable])

The penalties are regularizers of any game. A game that computes bounds hands its own over;
elsewhere intervals around the images are computed, at the threat of the game's attack.
"""

import keras
import numpy as np
import tensorflow as tf
from keras.src.ops import numpy

from tfrobust import contract, graph
from tfrobust.bounds import Pointwise, Program, Region
from tfrobust.bounds.elementwise import Slopes
from tfrobust.bounds.kernels import Kernel
from tfrobust.training.numbers import Schedule

SUMS = (keras.layers.Add, keras.layers.Subtract, *graph.operations(numpy, "Add Subtract"))


class _OnBoxes:
    """Base: `weight * of(boxes of the kinks, box of the image)`.

    A kink is a value that a ReLU, leaky ReLU or PReLU reads.
    """

    def __init__(self, weight, **others):
        for name, value in {"weight": weight, **others}.items():
            setattr(self, name, contract.nonnegative(name, value))
        self._names = ("weight", *others)

    def penalty(self, game, batch):
        """`(batch,)` values for the weights of the game to lower."""
        boxes, program = batch.boxes, getattr(game, "program", None) or Program(game.classifier)
        if boxes is None:
            if game.threat is None:
                raise ValueError(
                    f"`attack` must be given: {type(self).__name__} bounds its ball. Received: None"
                )
            region = Region.around(game.threat, batch.x, game.radius())
            boxes = program.boxes(region, [program.output])
        found = [boxes[number] for number in kinks(program)]
        if not found:
            raise ValueError(
                f"`classifier` must have ReLUs for {type(self).__name__}. "
                f"Received: model '{game.classifier.name}' without"
            )
        return self.weight * self.faded(game) * self.of(found, boxes[0])

    def faded(self, game):
        return 1.0

    def get_config(self):
        return {name: getattr(self, name) for name in self._names}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfrobust")
class ReLUStability(_OnBoxes):
    """-weight * sum over pre-activations of tanh(1 + l u): most where l and u have one sign.

    A ReLU whose box has one sign is linear there, which makes complete verification fast; with l1
    and the removal of small weights it is the recipe of Xiao et al.

    Args:
        weight: Float >= 0; of the order 1e-3 for MNIST nets.

    Reference: Xiao et al., Training for faster adversarial robustness verification via inducing
    ReLU stability (2019), https://arxiv.org/abs/1809.03008, eq. 4.

    >>> ReLUStability(1e-3).get_config()
    {'weight': 0.001}
    """

    def __init__(self, weight=1e-3):
        super().__init__(weight)

    def of(self, boxes, image):
        del image
        return -tf.add_n([_each(tf.tanh(1.0 + box.lower * box.upper)) for box in boxes])


class _Fading(_OnBoxes):
    """Fades as the radius comes to where its ramp ends, where the game lets it grow."""

    def __init__(self, weight, tolerance):
        super().__init__(weight, tolerance=tolerance)
        if not self.tolerance:
            raise ValueError(f"`tolerance` must be > 0. Received: tolerance={tolerance}")

    def faded(self, game):
        return 1.0 - game.ramp() if isinstance(game.epsilon, Schedule) else 1.0

    def short(self, ratio):
        return tf.nn.relu(self.tolerance - ratio) / self.tolerance


@keras.saving.register_keras_serializable(package="tfrobust")
class BoxTightness(_Fading):
    """weight * mean over layers of relu(t - width of the image / width of the layer) / t.

    Widths are means over a batch of u - l before each ReLU. The weight fades to 0 as the radius
    comes to where its `tr.training.Ramp` ends (another schedule: to the threat's own).

    Args:
        weight: Float >= 0.
        tolerance: Float t > 0.

    Reference: Shi et al., Fast certified robust training with short warmup (2021),
    https://arxiv.org/abs/2103.17268, eq. 8.

    >>> BoxTightness().get_config()
    {'weight': 0.5, 'tolerance': 0.5}
    """

    def __init__(self, weight=0.5, tolerance=0.5):
        super().__init__(weight, tolerance)

    def of(self, boxes, image):
        width = tf.reduce_mean(image.radius)
        ratios = [width / tf.maximum(tf.reduce_mean(box.radius), 1e-12) for box in boxes]
        # At radius 0 nothing has a width.
        value = tf.where(width > 0, tf.add_n([self.short(r) for r in ratios]) / len(boxes), 0.0)
        return tf.fill([tf.shape(image.lower)[0]], value)


@keras.saving.register_keras_serializable(package="tfrobust")
class ReLUBalance(_Fading):
    """Keeps ReLUs that are surely on and surely off alike, so that neither kind takes over.

    weight * mean over layers of s(min(q, 1 / q)) for two ratios q, with s(r) = relu(t - r) / t. For
    the centres c of a layer's boxes before the ReLU, in the whole batch, and their mean m:

        sum of c where l > 0 / -sum of c where u < 0,
        sum of (c - m)^2 where l > 0 / sum of (c - m)^2 where u < 0.

    A layer without one of the kinds costs the most, 2; one without both, or whose ratio is 0 / 0,
    nothing. The weight fades as in `BoxTightness`.

    Args:
        weight: Float >= 0.
        tolerance: Float t > 0.

    Reference: Shi et al. (2021), https://arxiv.org/abs/2103.17268, eq. 9, as their release
    computes it.

    >>> ReLUBalance(0.2).get_config()
    {'weight': 0.2, 'tolerance': 0.5}
    """

    def __init__(self, weight=0.5, tolerance=0.5):
        super().__init__(weight, tolerance)

    def of(self, boxes, image):
        value = tf.add_n([self._layer(box) for box in boxes]) / len(boxes)
        return tf.fill([tf.shape(image.lower)[0]], value)

    def _layer(self, box):
        centre = box.centre
        spread = tf.square(centre - tf.reduce_mean(centre))
        on, off = (tf.cast(sure, tf.float32) for sure in (box.lower > 0, box.upper < 0))
        ratios = [
            [tf.reduce_sum(on * centre), -tf.reduce_sum(off * centre)],
            [tf.reduce_sum(on * spread), tf.reduce_sum(off * spread)],
        ]
        cost = tf.add_n([self.short(_alike(*ratio)) for ratio in ratios])
        known = tf.reduce_all(tf.reduce_max(ratios, -1) > 0)
        return tf.where(known, cost, 0.0)


def _alike(a, b):
    """min(a / b, b / a) of two numbers >= 0."""
    return tf.minimum(a, b) / tf.maximum(tf.maximum(a, b), 1e-12)


def _each(values):
    return tf.reduce_sum(tf.reshape(values, (tf.shape(values)[0], -1)), -1)


def kinks(program):
    """Numbers of the values of a `tr.bounds.Program` that ReLUs, leaky ReLUs and PReLUs read.

    They are told by what they do: f(2 x) = 2 f(x), with other slopes on either side of 0 (a PReLU
    counts whatever its slopes are by now).
    """
    found = []
    with tf.init_scope():  # numbers, also where a step is traced
        points = tf.constant([-2.0, -1.0, 1.0, 2.0])
        for rule, sources in program.steps:
            if isinstance(rule, Slopes):
                found.append(sources[0])
            elif isinstance(rule, Pointwise) and not rule.affine:
                a, b, c, d = rule(points).numpy()
                if a == 2 * b and d == 2 * c and b != -c:
                    found.append(sources[0])
    return found


def ibp_initialization(model, seed=0):
    """Draws kernels anew so that boxes keep their mean width from layer to layer.

    N(0, 2 pi / fan_in^2) for every kernel but the last: then E|w| fan_in / 2 = 1, the factor by
    which a layer and a ReLU after it widen boxes. Kernels that read the sum of a residual block
    (Add, Subtract; an average keeps the width) are halved. Biases and the last layer stay as they
    are.

    Args:
        model: Functional classifier (or a game around one), changed in place.
        seed: Integer >= 0.

    Returns:
        Names of the layers whose kernels were drawn.

    Raises:
        TypeError: a layer that `tr.bounds` does not know.

    Reference: Shi et al. (2021), https://arxiv.org/abs/2103.17268, section 3.1.

    Example:

    >>> from tfrobust import models
    >>> ibp_initialization(models.lenet300_100(input_shape=(8, 8, 1)))
    ['dense1', 'dense2']
    """
    classifier = getattr(model, "classifier", model)
    contract.classifier(classifier, "model")
    rng = np.random.default_rng(contract.whole("seed", seed, 0))
    program = Program(classifier)
    kernels = [n for n, (rule, _) in enumerate(program.steps, 1) if isinstance(rule, Kernel)]
    names = []
    for number in [n for n in kernels if n not in program.tail]:
        rule, sources = program.steps[number - 1]
        scale = 0.5 if _after_sum(program, sources[0]) else 1.0
        for variable in _kernels(rule.layer):
            spread = scale * np.sqrt(2 * np.pi) / _fan_in(rule.layer, variable)
            variable.assign(rng.normal(0, spread, variable.shape))
            scale = 0.5  # of a separable layer, which has one ReLU for two kernels
        names.append(rule.layer.name)
    return names


def _fan_in(layer, kernel):
    """Inputs that one output sums over (of a transposed convolution, on average)."""
    kind, shape = type(layer).__name__, kernel.shape
    if "Transpose" in kind:
        return np.prod(shape[:-2]) * shape[-1] / np.prod(layer.strides)
    return np.prod(shape[:-2] if "depthwise" in kernel.name or "Depthwise" in kind else shape[:-1])


def _kernels(layer):
    names = ("depthwise_kernel", "pointwise_kernel")
    found = [getattr(layer, name) for name in names if hasattr(layer, name)]
    return found or [layer.kernel]


def _after_sum(program, number):
    """Whether a value is the sum or difference of several, with no kernel or other join between."""
    while number:
        rule, sources = program.steps[number - 1]
        if isinstance(rule, Kernel):
            return False
        if len(sources) > 1:
            return isinstance(rule.layer, SUMS)
        number = sources[0]
    return False
