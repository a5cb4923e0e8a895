"""Square attack: a random search by windows that sees scores only (Andriushchenko et al., 2020).

>>> from tfrobust import threats
>>> Square(threats.Linf(0.3), queries=2000).name
'Square'
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.attacks.attack import whole
from tfrobust.attacks.descent import lies
from tfrobust.attacks.random_noise import Search

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries out of 10,000


def sizes(x):
    """(sizes of the axes along which a window extends, channels) of images of any rank.

    Rows of plain numbers are lines of one channel, `(batch, h, w)` are images of one channel.

    >>> sizes(np.zeros((5, 32, 24, 3))), sizes(np.zeros((5, 7)))
    (((32, 24), 3), ((7,), 1))
    """
    shape = tuple(x.shape[1:])
    return (shape[:-1], shape[-1]) if len(shape) > 2 else (shape, 1)


def grid(x):
    """`x` with the axes of `sizes`: `(batch, *spatial, channels)`."""
    spatial, channels = sizes(x)
    return tf.reshape(x, (-1, *spatial, channels))


@functools.cache
def bump(side, axes, power, decay):
    """Two halves of opposite sign, split along the first axis, of equal norm; together of norm 1.

    A half is a sum of centred boxes, the j-th with sides 2j + 1 and weight 1 / (j + 1)^decay.

    Args:
        side: Entries along each axis.
        axes: Number of axes.
        power: Exponent of the norm.
        decay: Exponent of the weights.

    >>> bump(3, axes=1, power=1, decay=2).round(3).tolist()
    [0.5, -0.083, -0.417]
    """
    found = np.zeros((side,) * axes)
    for sign, first, last in ((1.0, 0, side // 2), (-1.0, side // 2, side)):
        far = [np.abs(np.arange(n) - n // 2) for n in (last - first, *found.shape[1:])]
        far = functools.reduce(np.maximum, np.ix_(*far))
        weights = np.arange(1.0, side // 2 + 2) ** -decay
        half = np.cumsum(weights[::-1])[::-1][far]
        found[first:last] = sign * half / max((half**power).sum(), 1e-12) ** (1 / power)
    return found / (np.abs(found) ** power).sum() ** (1 / power)


class Window:
    """A random window of each image, the same side for all.

    Args:
        unit: Uniform numbers `(batch, axes)`, which place it anywhere in the image.
        side: Scalar int.
        spatial: Sizes of the axes.
    """

    def __init__(self, unit, side, spatial):
        self.side, self.places = side, []
        for axis, size in enumerate(spatial):
            free = tf.cast(size - side + 1, tf.float32)
            origin = tf.cast(tf.floor(unit[:, axis] * free), tf.int32)
            place = tf.range(size) - origin[:, None]
            shape = [1] * (len(spatial) + 1)
            shape[axis] = size
            self.places.append(tf.reshape(place, (-1, *shape)))

    @property
    def along(self):
        """For each axis, which coordinates lie inside."""
        return [(place >= 0) & (place < self.side) for place in self.places]

    @property
    def inside(self):
        """Bool `(batch, *spatial, 1)`."""
        return functools.reduce(tf.logical_and, self.along)


def per_channel(values, change):
    """`(batch, channels)` values, broadcast over the axes of windows."""
    return tf.reshape(values, (-1, *(1,) * (len(change.shape) - 2), values.shape[-1]))


class Signs:
    """Linf: a window takes one sign of full size in each channel; at first stripes do."""

    def side(self, wanted, shortest):
        return min(max(wanted, 1), max(shortest - 1, 1))

    def draws(self, axes, channels):
        return axes + channels

    def first(self, keys, spatial, channels, epsilon):
        stripes = (*(1,) * (len(spatial) - 1), spatial[-1], channels)
        return tf.where(noise.uniform(keys, stripes) < 0.5, -epsilon, epsilon)

    def move(self, unit, change, level, sides, epsilon):
        axes = len(change.shape) - 2
        window = Window(unit, tf.gather(sides, level), change.shape[1:-1])
        sign = tf.where(unit[:, axes:] < 0.5, -epsilon, epsilon)
        return tf.where(window.inside, per_channel(sign, change), change)


class Bumps:
    """L2, L1: a window takes a bump, and the norm that a second window and the box leave over.

    new = bump * sign + old / ||old|| in the first window, with the norm of both windows and a
    channel's share of what the ball leaves unused. At first there is a grid of bumps.

    Args:
        power: Exponent of the norm.
        decay: How sharp the bumps are.
    """

    def __init__(self, power, decay):
        self.power, self.decay = power, decay

    def side(self, wanted, shortest):
        return min(max(wanted, 3) | 1, (shortest - 1) | 1)  # odd

    def draws(self, axes, channels):
        return 2 * axes + channels + 1

    def mass(self, change):
        """Sum of powers in each channel: `(batch, 1, ..., channels)`."""
        powers = tf.square(change) if self.power == 2 else tf.abs(change)
        return tf.reduce_sum(powers, list(range(1, len(change.shape) - 1)), keepdims=True)

    def root(self, mass):
        return tf.sqrt(mass) if self.power == 2 else mass

    def first(self, keys, spatial, channels, epsilon):
        side = max(min(spatial) // 5, 1)
        counts = [size // side for size in spatial]
        change = tf.where(noise.uniform(keys, (*counts, channels)) < 0.5, -1.0, 1.0)
        for axis in range(len(spatial)):
            change = tf.repeat(change, side, axis + 1)
        grid = np.tile(bump(side, len(spatial), self.power, self.decay), counts)
        change *= tf.constant(grid[..., None], tf.float32)
        spare = [size - side * count for size, count in zip(spatial, counts, strict=True)]
        around = [(more // 2, more - more // 2) for more in spare]
        change = tf.pad(change, [(0, 0), *around, (0, 0)])
        total = tf.reduce_sum(self.mass(change), -1, keepdims=True)
        return change * (epsilon / self.root(total))

    def bumps(self, window, split, level, sides):
        """The bump of this level in each row's window, 0 elsewhere: `(batch, *spatial, 1)`."""
        axes, wide = len(window.places), max(sides) + 1
        table = np.zeros((len(sides), axes) + (wide,) * axes, np.float32)
        for row, side in enumerate(sides):
            found = bump(side, axes, self.power, self.decay)
            for axis in range(axes):
                table[(row, axis) + (slice(side),) * axes] = np.moveaxis(found, 0, axis)
        index = tf.reshape(level * axes + split, (-1,) + (1,) * (axes + 1))
        for place, along in zip(window.places, window.along, strict=True):
            index = index * wide + tf.where(along, place, wide - 1)
        return tf.gather(tf.constant(table.ravel()), index)

    def move(self, unit, change, level, sides, epsilon):
        spatial, channels = change.shape[1:-1], change.shape[-1]
        axes, side = len(spatial), tf.gather(sides, level)
        window, giver = (Window(unit[:, k * axes :], side, spatial) for k in (0, 1))
        split = tf.cast(unit[:, 2 * axes] * axes, tf.int32)
        sign = tf.where(unit[:, 2 * axes + 1 :] < 0.5, -1.0, 1.0)
        old = tf.where(window.inside, change, 0.0)
        rest = tf.where(window.inside | giver.inside, 0.0, change)
        new = self.bumps(window, split, level, sides) * per_channel(sign, change)
        new += old / tf.maximum(self.root(self.mass(old)), 1e-12)
        total = self.mass(change)
        spare = epsilon**self.power - tf.reduce_sum(total, -1, keepdims=True)
        share = tf.maximum(spare, 0.0) / channels + total - self.mass(rest)
        share = tf.maximum(share, 0.0) / tf.maximum(self.mass(new), 1e-24)
        return rest + new * self.root(share)


RULES = {"linf": Signs(), "l2": Bumps(2, 2), "l1": Bumps(1, 4)}


@keras.saving.register_keras_serializable(package="tfrobust")
class Square(Search):
    """Square attack: tries one window at a time and keeps what raises the loss.

    The side of the window is that of a square with a share p of the image; p starts at `p_init`
    and is halved after queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000. Windows, which
    may touch every border, are drawn for each image on its own; on images that are not square
    their side is below the shortest one, rows of plain numbers take intervals.

    Args:
        threat: `tr.threats.Linf`, `L2` or `L1` (Croce and Hein, 2021).
        queries: Integer >= 1, forward passes for each image and run.
        p_init: Float in (0, 1]; 0.8 in AutoAttack, 0.05 (Linf) and 0.1 (L2) in the paper.
        rescale: Stretch the halvings from 10,000 queries to `queries`. AutoAttack does not.
        loss, restarts, targets, **shared: see `Attack`.

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = Square(threats.Linf(0.25), queries=20)
    >>> attack.result(net, np.array([[0.6, 0.4]]), np.array([0])).fooled.tolist()
    [True]
    """

    norms = tuple(RULES)

    def __init__(self, threat, queries=5000, p_init=0.8, rescale=False, loss="margin", **shared):
        super().__init__(threat, loss=loss, **shared)
        whole("queries", queries, 1)
        self.queries, self.rescale = int(queries), bool(rescale)
        self.p_init = lies("p_init", p_init, "(0, 1]")

    @property
    def iterations(self):
        return self.queries - 1

    def numbers(self):
        stretch = self.queries / 10000 if self.rescale else 1.0
        return {"halved": np.float32(np.array(HALVED) * stretch)}

    @property
    def rule(self):
        return RULES[self.threat.norm]

    def sides(self, spatial):
        """Side of the window after each number of halvings."""
        shares = [self.p_init / 2**level for level in range(len(HALVED) + 1)]
        wanted = [round((p * math.prod(spatial)) ** (1 / len(spatial))) for p in shares]
        return [self.rule.side(side, min(spatial)) for side in wanted]

    def _changed(self, call, change):
        x = tf.clip_by_value(grid(call.x) + change, 0.0, 1.0)
        return tf.reshape(x, tf.shape(call.x))

    def start(self, call):
        change = self.rule.first(noise.fold(call.keys, 0), *sizes(call.x), call.epsilon)
        return self.judged(call, self.nothing(call), self._changed(call, change))

    def step(self, call, i, state):
        spatial, channels = sizes(call.x)
        past = tf.cast(i, tf.float32) >= call.numbers["halved"]
        draws = self.rule.draws(len(spatial), channels)
        unit = noise.uniform(noise.fold(call.keys, i + 1), (draws,))
        level, sides = tf.math.count_nonzero(past, dtype=tf.int32), self.sides(spatial)
        change = grid(state["best"] - call.x)
        change = self.rule.move(unit, change, level, sides, call.epsilon)
        return self.judged(call, state, self._changed(call, change))

    def get_config(self):
        return {
            **super().get_config(),
            "queries": self.queries,
            "p_init": self.p_init,
            "rescale": self.rescale,
        }
