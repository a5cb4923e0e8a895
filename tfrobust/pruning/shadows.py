"""Pruning whose zeros may return: dynamic surgery, and masks learned as scores.

Both keep what pruned entries were, or would be, in variables of their own (`WeightTransform`), and
the classifier has exact zeros at every step. They are played inside a game:

    surgery = tr.pruning.Surgery(c=1.0, stop=8_000)
    game = tr.training.TRADES(net, threat, transform=surgery)

    scores = tr.pruning.LearnedScores(0.9)                       # 1. which weights
    game = tr.training.AdversarialTraining(net, attack, transform=scores)
    game.compile("adam"); game.fit(...)
    tr.pruning.freeze(net)                                       # 2. the mask is decided
    game = tr.training.AdversarialTraining(net, attack)          # 3. fine-tuning
    game.compile("adam"); game.fit(...)
"""

import math
import warnings
from numbers import Real

import keras
import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.contract import is_number, nonnegative, whole
from tfrobust.layers.mask import Mask
from tfrobust.layers.transform import WeightTransform, assign, straight_through
from tfrobust.pruning.constraint import numpy
from tfrobust.pruning.places import exclusions, prunable
from tfrobust.pruning.schedule import fraction as checked_fraction
from tfrobust.pruning.select import amount

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)
LARGEST = float(np.finfo("float32").max)


class Shadowed(WeightTransform):
    """Base of transforms of the kernels that can be pruned.

    Args:
        exclude: As for `tr.pruning.MagnitudePruning`.
    """

    def __init__(self, exclude=(), **kwargs):
        super().__init__(**kwargs)
        restored = keras.saving.deserialize_keras_object
        exclude = exclusions(exclude, dict)
        self.exclude = tuple(restored(e) if isinstance(e, dict) else e for e in exclude)

    def targets(self, classifier):
        self._kept.kernels, _ = prunable(classifier, self.exclude)
        return [place.kernel for place in self._kept.kernels]

    def finite(self, number):
        """Kernel and bias of target `number`, as NumPy arrays.

        Raises:
            ValueError: they hold NaN or infinity.
        """
        place = self._kept.kernels[number]
        found = [place.kernel, getattr(place.layer, "bias", None)]
        values = [numpy(v) for v in found if isinstance(v, keras.Variable)]
        if not all(np.isfinite(v.astype(np.float32)).all() for v in values):
            raise ValueError(
                "`classifier` weights must be finite. "
                f"Received: layer '{place.name}' with NaN or infinity"
            )
        return values

    def figures(self):
        """`sparsity`: fraction of zeros in the kernels that are pruned, in [0, 1]."""
        kernels = self._kept.targets
        alive = tf.add_n([tf.math.count_nonzero(w.value, dtype=tf.float32) for w in kernels])
        return {"sparsity": 1.0 - alive / sum(math.prod(w.shape) for w in kernels)}

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        exclude = [e if isinstance(e, str) else serialize(e) for e in self.exclude]
        return {"name": self.name, "exclude": exclude}


@keras.saving.register_keras_serializable(package="tfrobust")
class Surgery(Shadowed):
    """Dynamic network surgery (Guo et al., 2016): pruned weights go on learning and may return.

    Each kernel has a shadow that every gradient moves, dL/dw taken at w = shadow * mask. Before
    iteration k < stop each layer, with probability (1 + gamma k)^(-power) of its own, sets

        mask = 0 where |shadow| <= lower T,  1 where |shadow| > upper T,  unchanged between,

    with T = max(mu + c sigma, 0) fixed before the first step: mu and sigma are mean and standard
    deviation of |w| over the layer's nonzero weights and biases. So c, not a fraction, says how
    much goes, and a warning tells where that is all of a layer. Weight decay of the optimizer acts
    on the shadows, weight penalties on the weights. Unlike the authors' code, biases are not
    pruned.

    Args:
        c: Float, or {layer name: float} for all kernels that are pruned; may be negative.
        gamma, power: Floats >= 0 of that probability; with gamma = 0 it is 1.
        stop: Integer >= 1, iterations after which the masks stay, or None.
        lower, upper: Floats with 0 < lower <= upper, the hysteresis around T.
        exclude: As for `tr.pruning.MagnitudePruning`.
        seed: Integer >= 0.

    Reference: Guo, Yao and Chen, Dynamic network surgery for efficient DNNs (2016),
    https://arxiv.org/abs/1608.04493, eq. 3.

    Example: plain training is a game without an attack.

    >>> from tfrobust import attacks, data, models, threats, training
    >>> net, digits = models.digits_net(), data.load("digits")
    >>> nobody = attacks.PGD(threats.Linf(0.0), steps=0, random_start=False)
    >>> game = training.AdversarialTraining(net, nobody, mix=(1, 0), transform=Surgery(c=0.5))
    >>> game.compile("adam")
    >>> history = game.fit(digits.x_train[:64], digits.y_train[:64], verbose=0)
    >>> 0.3 < history.history["sparsity"][0] < 0.9
    True
    """

    def __init__(
        self,
        c,
        gamma=1e-4,
        power=1.0,
        stop=None,
        lower=0.9,
        upper=1.1,
        exclude=(),
        seed=0,
        **kwargs,
    ):
        super().__init__(exclude=exclude, **kwargs)
        for value in c.values() if isinstance(c, dict) else [c]:
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"`c` must be a number, or one for each layer. Received: c={c!r}")
            if not is_number(value) or abs(float(value)) > LARGEST:
                raise ValueError(f"`c` must be finite in float32. Received: c={c!r}")
        if not (is_number(lower) and is_number(upper) and 0 < lower <= upper):
            raise ValueError(
                "`lower` and `upper` must be numbers with 0 < lower <= upper. "
                f"Received: lower={lower!r}, upper={upper!r}"
            )
        self.c = {k: float(v) for k, v in c.items()} if isinstance(c, dict) else float(c)
        self.gamma, self.power = nonnegative("gamma", gamma), nonnegative("power", power)
        self.stop = None if stop is None else whole("stop", stop, 1)
        self.lower, self.upper = float(lower), float(upper)
        self.seed = whole("seed", seed, 0)

    def targets(self, classifier):
        kernels = super().targets(classifier)
        names = {place.name for place in self._kept.kernels}
        if isinstance(self.c, dict) and set(self.c) != names:
            raise ValueError(
                f"`c` must have a number for each of {sorted(names)}. Received: {sorted(self.c)}"
            )
        return kernels

    def create(self, number, w):
        return {
            "shadow": self.own(w, f"shadow_{number}", trainable=True),
            "mask": self.own(w, f"mask_{number}", "bool"),
            "threshold": self.own(w, f"threshold_{number}", "float32", shape=()),
        }

    def reset(self, number, w, own):
        place, values = self._kept.kernels[number], self.finite(number)
        sizes = np.abs(np.concatenate([v.ravel() for v in values]).astype(np.float64))
        sizes = sizes[sizes > 0]
        c = self.c[place.name] if isinstance(self.c, dict) else self.c
        threshold = max(sizes.mean() + c * sizes.std(), 0.0) if sizes.size else 0.0
        largest = np.abs(values[0].astype(np.float64)).max()
        if not self.upper * threshold <= LARGEST:
            raise ValueError(
                f"`c` must give a threshold that float32 holds. Received: c={c:g}, threshold "
                f"{threshold:g} in layer '{place.name}'"
            )
        if 0 < largest <= self.lower * threshold:
            warnings.warn(
                f"`c`={c:g} prunes every weight of layer '{place.name}': its largest is "
                f"{largest:.3g}, the threshold {threshold:.3g}. Its output then says nothing "
                "of its input until some return, if they can. Take a smaller `c`.",
                stacklevel=2,
            )
        own["threshold"].assign(threshold)
        own["shadow"].assign(w.value)
        own["mask"].assign(np.ones(w.shape, bool))

    def value(self, own):
        shadow = tf.convert_to_tensor(own["shadow"].value)
        kept = tf.where(own["mask"].value, shadow, tf.zeros([], shadow.dtype))
        return straight_through(kept, shadow)

    def advance(self, number, own):
        step, mask = self.step.value, own["mask"].value
        size = tf.abs(tf.cast(own["shadow"].value, tf.float32))
        threshold = tf.convert_to_tensor(own["threshold"].value)
        renewed = (mask & (size > self.lower * threshold)) | (size > self.upper * threshold)
        chance = tf.pow(1.0 + self.gamma * tf.cast(step, tf.float32), -self.power)
        draw = noise.uniform(noise.keys(self.seed, "surgery", [number], run=step), ())[0]
        due = chance > draw
        if self.stop is not None:
            due &= step < self.stop
        assign(own["mask"], tf.where(due, renewed, mask))

    def get_config(self):
        names = ("c", "gamma", "power", "stop", "lower", "upper", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="tfrobust")
class LearnedScores(Shadowed):
    """HYDRA (Sehwag et al., 2020): which weights stay is learned on the (robust) loss itself.

    Each weight w0 has a score s, at first sqrt(6 / fan_in) w0 / max|w0|, so that the mask begins as
    that of magnitudes. In each layer w = w0 for the n - p largest |s| of n and 0 for the others,
    p = min(ceil(fraction n - 1e-9), n - 1), at every step. The gradient goes straight through the
    choice, dL/ds = dL/dw w0 sign(s). Weights and biases stand still; normalization trains along.

    After `fit`, `tr.pruning.freeze(classifier)` holds the zeros, and a game without `transform`
    fine-tunes what is left. Weight decay of the optimizer acts on the scores.

    Args:
        fraction: Float in [0, 1), pruned in every layer.
        exclude: As for `tr.pruning.MagnitudePruning`; these kernels stand still as well.

    Reference: Sehwag, Wang, Mittal and Jana, HYDRA: Pruning adversarially robust neural networks
    (2020), https://arxiv.org/abs/2002.10509, eq. 3 and section 3.

    Example:

    >>> from tfrobust import attacks, data, models, threats, training
    >>> net, digits = models.digits_net(), data.load("digits")
    >>> attack = attacks.PGD(threats.Linf(0.1), steps=1)
    >>> game = training.AdversarialTraining(net, attack, transform=LearnedScores(0.75))
    >>> game.compile("adam")
    >>> history = game.fit(digits.x_train[:64], digits.y_train[:64], verbose=0)
    >>> round(history.history["sparsity"][0], 4)
    0.75
    """

    def __init__(self, fraction, exclude=(), **kwargs):
        super().__init__(exclude=exclude, **kwargs)
        self.fraction = checked_fraction("fraction", fraction)

    def targets(self, classifier):
        learning = (*NORMALIZATIONS, Mask)
        layers = [n for n in classifier._flatten_layers() if isinstance(n, learning)]
        free = {id(v) for layer in layers for v in layer.trainable_variables}
        everything = classifier.trainable_variables
        self._kept.still = {id(v) for v in everything if id(v) not in free}
        return super().targets(classifier)

    def still(self, variable):
        return id(variable) in self._kept.still

    def create(self, number, w):
        return {
            "weights": self.own(w, f"weights_{number}"),
            "scores": self.own(w, f"scores_{number}", trainable=True),
        }

    def reset(self, number, w, own):
        place, (value, *_) = self._kept.kernels[number], self.finite(number)
        fan_in = place.size / place.filters
        largest = np.abs(value).max() or 1.0
        own["weights"].assign(value)
        own["scores"].assign((math.sqrt(6 / fan_in) * value / largest).astype(value.dtype))

    def value(self, own):
        w, scores = (tf.convert_to_tensor(own[name].value) for name in ("weights", "scores"))
        size = tf.abs(scores)
        gone = smallest(size, amount(self.fraction, math.prod(w.shape)))
        return straight_through(tf.where(gone, tf.zeros([], w.dtype), w), w * size)

    def get_config(self):
        return {**super().get_config(), "fraction": self.fraction}


def smallest(values, count):
    """Bool tensor: the `count` smallest of tensor `values` >= 0 by (value, index), in any shape.

    Floats >= 0 are ordered as their bits are. Halving the range of bits finds the edge ten times
    faster than sorting half a million scores.

    >>> smallest(tf.constant([3.0, 1.0, 2.0, 1.0, 1.0]), 2).numpy().tolist()
    [False, True, False, True, False]
    """
    if count <= 0:
        return tf.zeros_like(values, tf.bool)
    bits = tf.bitcast(tf.reshape(tf.cast(values, tf.float32), [-1]), tf.int32)

    def halve(i, edge):
        higher = edge + tf.bitwise.left_shift(1, 30 - i)
        below = tf.math.count_nonzero(bits < higher, dtype=tf.int32)
        return i + 1, tf.where(below < count, higher, edge)

    _, edge = tf.while_loop(lambda i, _: i < 31, halve, (tf.constant(0), tf.constant(0)))
    below, tied = bits < edge, bits == edge
    room = count - tf.math.count_nonzero(below, dtype=tf.int32)
    first = tied & (tf.cumsum(tf.cast(tied, tf.int32)) <= room)
    return tf.reshape(below | first, values.shape)
