"""Bounds: what a model can do at most, for *every* point of a threat's ball.

    lower, upper = tr.bounds.interval(model, x, tr.threats.Linf(0.1))     # of each logit
    certified = tr.bounds.certified(model, x, y, tr.threats.Linf(0.1))    # no attack can succeed
    margins = tr.bounds.margins(model, x, y, threat, method="crown-ibp")  # tighter, dearer

Boxes and linear functions are pushed through the layers, each by a rule dispatched on its class
(`rule`); register one for a layer of your own:

    tr.bounds.register(MyActivation, tr.bounds.Monotone)

`METHODS` lists the kinds of bounds from cheap to dear. They hold in inference (moving statistics,
no dropout, the mask that `expected()` gives). `Program` holds the same as tensor functions of a
`Region` and of the live weights, for certified training; `backward` and `forward` are linear
relaxations of it.
"""

import weakref

import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract
from tfrobust.bounds import backward, forward, joins  # noqa: F401  (joins registers its rules)
from tfrobust.bounds.methods import METHODS
from tfrobust.bounds.program import Program
from tfrobust.bounds.region import DUALS, Region
from tfrobust.bounds.rule import Box, Monotone, Pointwise, Rule, register, rule
from tfrobust.threats import Threat

__all__ = [
    "METHODS",
    "Box",
    "Monotone",
    "Pointwise",
    "Program",
    "Region",
    "Rule",
    "backward",
    "certified",
    "class_margins",
    "forward",
    "interval",
    "margins",
    "register",
    "rule",
]


def interval(model, x, threat, epsilon=None):
    """Bounds of every logit over all legal points of the threat around each image.

    Args:
        model: Functional Keras classifier.
        x: Float images in [0, 1], `(batch, ...)`.
        threat: `tr.threats.Linf`, or `L2` and `L1`: behind the first kernel their boxes are those
            of its rows' dual norms, before it those around the ball (|.|_inf <= |.|_2 <= |.|_1).
        epsilon: Float, radius instead of the threat's.

    Returns:
        `(lower, upper)`, NumPy arrays of the shape of the model's output.

    Raises:
        TypeError: a layer without a rule, or not a functional model.
        ValueError: images outside of [0, 1], a layer that is called with training=True, is not in
            float32 or has several results.

    Reference: Gowal et al. (2018), On the effectiveness of interval bound propagation for training
    verifiably robust models, https://arxiv.org/abs/1810.12715.

    Example: 1 - 2 x, with x in [0.4, 0.6].

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> image = keras.Input((1,))
    >>> net = keras.Model(image, keras.layers.Dense(1)(image))
    >>> net.set_weights([np.array([[-2.0]]), np.array([1.0])])
    >>> lower, upper = interval(net, np.array([[0.5]]), threats.Linf(0.1))
    >>> round(float(lower[0, 0]), 6), round(float(upper[0, 0]), 6)
    (-0.2, 0.2)
    """
    x = _images(model, x)
    both = _apply(_stacked, model, threat, x, epsilon)
    return both[:, 0], both[:, 1]


def margins(model, x, y, threat, epsilon=None, method="ibp"):
    """Lower bounds of the margin z_y - max z_k, k != y, over all legal points around each image.

    The comparison of logits is folded into the affine layers at the end of the model: exact for a
    linear model, never looser than comparing the bounds of `interval`.

    Args:
        model, x, threat, epsilon: as for `interval`; the linear relaxations (every method but
            "ibp") know L2 and L1 balls throughout.
        y: Integer labels `(batch,)`.
        method: Name of `METHODS`: "ibp", "crown-ibp", "crown" or "symbolic".

    Returns:
        NumPy `(batch,)`; above 0 (up to float32 rounding, which `certified` allows for) no legal
        point changes the answer y. -inf where a bound overflows.
    """
    return _least(model, x, y, threat, epsilon, method)[0]


def certified(model, x, y, threat, epsilon=None, method="ibp"):
    """Whether no legal point can change the answer: `margins` above what rounding may have added.

    Args:
        model, x, y, threat, epsilon, method: as for `margins`.

    Returns:
        NumPy bool `(batch,)`: margin > 1e-5 * max(1, the largest sum |w| |x| + |b| of any layer on
        the ball). Holds for the float32 Keras model, not for a quantized export of it.
    """
    margin, rounding = _least(model, x, y, threat, epsilon, method)
    return margin > rounding


def class_margins(model, x, y, threat, epsilon=None, method="ibp"):
    """Lower bounds of z_y - z_k for every class k, and what rounding may have added to them.

    Args:
        model, x, y, threat, epsilon, method: as for `margins`.

    Returns:
        `(margins, rounding)`: NumPy `(batch, classes)` with 0 at k = y and -inf for all other
        classes where a bound overflows, and `(batch,)`.

    Raises:
        ValueError: also a method that is not known, or a net too large for it.
    """
    x = _images(model, x)
    y = contract.labels(y, contract.classes_of(model), count=len(x))
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(METHODS)}. Received: method={method!r}"
        )
    chosen = METHODS[method]
    program = _programs(model)
    chosen.check(program)
    both = _apply(chosen, model, threat, x, epsilon, y, most=chosen.rows(program))
    return both[:, :-1], both[:, -1]


def _least(model, x, y, threat, epsilon, method):
    margins, rounding = class_margins(model, x, y, threat, epsilon, method)
    other = np.asarray(y).reshape(-1, 1) != np.arange(margins.shape[1])
    return np.where(other, margins, np.inf).min(-1), rounding


def _stacked(program, region):
    return tf.stack(program.interval(region), 1)


def _images(model, x):
    contract.classifier(model, "model")
    x = contract.images(x)
    contract.fits(model, x)
    return x if x.ndim == len(model.input_shape) else x[..., None]


def _radius(threat, epsilon):
    if not isinstance(threat, Threat):
        raise TypeError(
            "`threat` must be a tr.threats.Threat such as tr.threats.Linf(8/255). "
            f"Received: threat={threat!r}"
        )
    return threat.epsilon if epsilon is None else type(threat)(epsilon).epsilon


_compiled, _known = weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary()


def _programs(model):
    """The `Program` of a model, made once."""
    if model not in _known:
        _known[model] = Program(model)
    return _known[model]


def _apply(method, model, threat, x, epsilon, *others, most=None):
    """Runs `method(program, region, ...)` on padded rows, compiled once per model and norm."""
    radius = _radius(threat, epsilon)
    lower, upper = (bound.numpy() for bound in threat.box(x, radius))
    norm = threat.norm if threat.norm in DUALS else None
    known = _compiled.setdefault(model, {})
    if (method, norm) not in known:
        program = Program(model)

        @tf.function(reduce_retracing=True)
        def function(x, radius, lower, upper, *others):
            region = Region(Box(lower, upper))
            if norm is not None:
                region = Region(region.box, x, radius[0], norm)
            return method(program, region, *others)

        known[method, norm] = function
    arrays = x, np.full(len(x), radius, np.float32), lower, upper, *others
    return buckets.apply(lambda *rows: known[method, norm](*rows[:-1]), *arrays, most=most)
