"""The loss around an image, along the attacker's direction and a random one.

flat = tr.diagnostics.loss_landscape(net, x[:16], y[:16], tr.threats.Linf(0.3))
flat.values[flat.centre], flat.values.max()
tr.report.plot_landscape({"AT": other, "ANP-VS": flat}, "landscape.png")      # one z-axis
"""

import dataclasses
import warnings

import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract, losses, noise
from tfrobust.attacks.backward import Passes
from tfrobust.attacks.call import compiled, logits_of, unmoved
from tfrobust.diagnostics import checks
from tfrobust.diagnostics.maps import shortened
from tfrobust.threats import Threat

CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Landscape:
    """Mean cross-entropy over n images on a grid of changes x + s g + t r, clipped to [0, 1].

    Attributes:
        values: float64 `(size, size)`, nats; row i has s = steps[i] along the gradient, column j
            has t = steps[j] along the random direction.
        steps: float64 `(size,)`, distances in the norm of the threat, 0 in the middle.
        epsilon: The threat's radius.
        norm: The threat's norm, in which g and r have length 1.
        images: n.
    """

    values: np.ndarray = dataclasses.field(repr=False)
    steps: np.ndarray = dataclasses.field(repr=False)
    epsilon: float
    norm: str
    images: int

    @property
    def centre(self):
        """Index (row, column) of the unchanged images."""
        return (len(self.steps) // 2,) * 2

    @property
    def along_gradient(self):
        """The row of values `(size,)` for t = 0."""
        return self.values[:, self.centre[1]]

    def to_dict(self):
        """Plain numbers and lists, four digits of each."""
        return {
            **{"epsilon": self.epsilon, "norm": self.norm, "images": self.images},
            "steps": shortened(self.steps, 6),
            "values": shortened(self.values, 4),
        }


def loss_landscape(model, x, y, threat, size=41, reach=2.0, seed=0):
    """Mean CE(clip(x + s g + t r), y) for s, t in [-reach epsilon, reach epsilon] (Fig. 5).

    g is the threat's direction of steepest ascent of the cross-entropy at x, sign(grad) in Linf
    and grad / ||grad||_2 in L2. r is a sign drawn for every pixel, scaled to length 1 in the norm
    of the threat: +-1 in Linf, +-1 / sqrt(pixels) in L2. So s = epsilon is the edge of the ball in
    every norm. The network runs in inference mode. A smooth bowl says nothing about steps of other
    directions: it explains, it proves nothing.

    Args:
        model: Functional classifier.
        x, y: Images `(n, ...)` in [0, 1], eight or more, and integer labels `(n,)`.
        threat: `tr.threats.Threat` with a radius > 0.
        size: Odd integer >= 3, points on each axis.
        reach: Float > 0, half the width of the grid in units of epsilon.
        seed: Integer >= 0 of the random direction; image i has its own.

    Returns:
        `Landscape`.

    Raises:
        TypeError, ValueError: arguments outside of these ranges, a model that is not finite.

    Reference: Madaan et al., Adversarial neural pruning with latent vulnerability suppression
    (2020), https://arxiv.org/abs/1908.04355, Fig. 5.

    Example: a linear model with one logit, log(1 + exp(-z)) in the middle.

    >>> import keras
    >>> from tfrobust import threats
    >>> inputs = keras.Input((2,))
    >>> net = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    >>> net.set_weights([np.array([[3.0], [-4.0]])])
    >>> x, y = np.full((8, 2), 0.5), np.ones(8, int)                       # z = -0.5
    >>> found = loss_landscape(net, x, y, threats.Linf(0.1), size=3)
    >>> round(float(found.values[found.centre]), 4), found.along_gradient.round(2).tolist()
    (0.9741, [0.34, 0.97, 2.04])
    """
    checks.classifier(model)
    x = contract.images(x)
    contract.fits(model, x)
    y = contract.labels(y, contract.classes_of(model), count=len(x))
    if not isinstance(threat, Threat):
        raise TypeError(f"`threat` must be a tr.threats.Threat. Received: threat={threat!r}")
    if not threat.epsilon > 0:
        raise ValueError(f"`threat` must have a radius > 0. Received: threat={threat!r}")
    if contract.whole("size", size, 3) % 2 == 0:
        raise ValueError(f"`size` must be odd, with x in the middle. Received: size={size}")
    if not checks.number("reach", reach) > 0:
        raise ValueError(f"`reach` must be > 0. Received: reach={reach}")
    seed = contract.whole("seed", seed, 0)
    if len(x) < 8:
        warnings.warn(
            f"`x` holds {len(x)} images: with fewer than 8 the landscape is that of single images, "
            "not of the network.",
            stacklevel=2,
        )
    steps = np.linspace(-reach * threat.epsilon, reach * threat.epsilon, size)
    steps[size // 2] = 0.0
    with unmoved(model), buckets.expected():
        values = _losses(model, x, y, threat, steps, seed)
    checks.finite(values, "losses")
    grid = values.reshape(len(x), size, size).mean(0, dtype=np.float64)
    return Landscape(grid, steps, threat.epsilon, str(threat.norm), len(x))


def _losses(model, x, y, threat, steps, seed):
    """CE of every image at every point of the grid, float32 `(n * size * size,)`."""

    def ways(images, labels, keys):
        with Passes(images) as passes:
            loss = losses.cross_entropy(logits_of(model, images), labels)
        signs = tf.where(noise.uniform(keys, images.shape[1:]) < 0.5, -1.0, 1.0)
        length = threat.distance(signs, tf.zeros_like(signs))
        length = tf.reshape(length, (-1,) + (1,) * (len(images.shape) - 1))
        return threat.ascent(passes.gradient(loss), images), signs / length

    def at(images, labels, g, r, rows, s, t):
        def spread(values):
            return tf.reshape(values, (-1,) + (1,) * (len(images.shape) - 1))

        points = tf.gather(images, rows) + spread(s) * tf.gather(g, rows)
        points = tf.clip_by_value(points + spread(t) * tf.gather(r, rows), 0.0, 1.0)
        return losses.cross_entropy(logits_of(model, points), tf.gather(labels, rows))

    images, labels = tf.constant(x), tf.constant(y)
    fixed = images, labels, *compiled(ways)(
        images, labels, noise.keys(seed, "landscape", np.arange(len(x)))
    )  # fmt: skip
    rows, i, j = np.indices((len(x), len(steps), len(steps))).reshape(3, -1)
    step, found = compiled(at), []
    for start in range(0, len(rows), CHUNK):
        # One size of batch, one trace: the last one repeats the first point.
        part = np.resize(np.arange(start, min(start + CHUNK, len(rows))), CHUNK)
        s, t = (tf.constant(steps[index[part]], tf.float32) for index in (i, j))
        found.append(step(*fixed, tf.constant(rows[part], tf.int32), s, t))
    return np.concatenate([part.numpy() for part in found])[: len(rows)]
