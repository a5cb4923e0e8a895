"""Attacks that see nothing but the answer, a class: Boundary and HopSkipJump.

>>> from tfrobust import threats
>>> Boundary(threats.L2(1.0)).name, HopSkipJump(threats.Linf(0.1), steps=10).name
('Boundary-25000', 'HopSkipJump-10')
"""

import math

import keras
import numpy as np
import tensorflow as tf

from tfrobust import contract, noise
from tfrobust.attacks.attack import whole
from tfrobust.attacks.call import per_row
from tfrobust.attacks.descent import Walk, lies


def all_axes(x):
    return list(range(1, len(x.shape)))


class Decision(Walk):
    """Base of attacks that walk along the boundary, from some fooling point, however far.

    Where they end depends on where they begin, so the nearest of several starts counts. Without a
    `pool` a start is the first of some noise images, of random brightness, that fools. With a pool
    every other start, from the first, is the nearest image of the pool whose class serves, then
    the second nearest and so on. Bisection then leads to the boundary. An image without a start
    stays as it is; with goals that is what to expect unless the pool has images of those classes.

    Args:
        threat: `tr.threats.Threat` with one of the class's `norms`.
        steps: Integer >= 1.
        starts: Integer >= 1, independent runs.
        pool: Images to start from, or None; they are classified once for each batch, which the
            queries of an image do not count.
        **shared: see `Attack` (seed, eot, on_failure).
    """

    white_box = False
    tries = 20

    def __init__(self, threat, steps, starts=5, pool=None, **shared):
        whole("starts", starts, 1)
        super().__init__(threat, steps, restarts=starts, **shared)
        self.pool = None if pool is None else contract.images(pool, "pool")

    @property
    def name(self):
        return f"{type(self).__name__}-{self.steps}"

    def numbers(self):
        return {} if self.pool is None else {"pool": self.pool}

    def open(self, call, state):
        return super().open(call, state) & state["found"]

    def checked(self, model, x, y, index=None, goal=None):
        if self.pool is not None and self.pool.shape[1:] != np.shape(x)[1:]:
            raise ValueError(
                f"`pool` must hold images of shape {tuple(np.shape(x)[1:])}. "
                f"Received: shape={self.pool.shape}"
            )
        return super().checked(model, x, y, index, goal)

    def start(self, call):
        x, found = self._noise(call)
        if self.pool is not None:
            x = tf.where(per_row(call.run % 2 == 0, x), self._neighbour(call, x), x)
            found = call.fooled(call.logits(x))
        state = {**self.nothing(call), "found": found}
        state = self.closer(call, state, x, found)
        x = self.to_boundary(call, x)
        return {**self.closer(call, state, x, found), "x": x}

    def _noise(self, call):
        """The first noise image that fools, and whether there is one."""

        def attempt(k, x, found):
            keys = noise.fold(call.keys, k)
            power = tf.pow(8.0, noise.uniform(noise.fold(keys, 0), (), -1.0, 1.0))
            wild = noise.uniform(noise.fold(keys, 1), x.shape[1:])
            wild = tf.pow(wild, per_row(tf.where(k == 0, 1.0, power), x))
            fooled = call.fooled(call.logits(wild))
            return k + 1, tf.where(per_row(fooled & ~found, x), wild, x), fooled | found

        with call.repeated(self.tries):
            _, x, found = tf.while_loop(
                lambda k, *_: k < self.tries,
                attempt,
                (tf.constant(0), call.x, tf.zeros_like(call.y, tf.bool)),
            )
        return x, found

    def _neighbour(self, call, x):
        """The pool's nearest image whose class serves, one further every other run, or `x`."""
        pool = call.numbers["pool"]
        labels = tf.argmax(call.logits(pool, copies=0), -1, call.y.dtype)
        serves = labels != call.y[:, None] if call.goal is None else labels == call.goal[:, None]
        size = math.prod(x.shape[1:])
        here, there = tf.reshape(call.x, (-1, size)), tf.reshape(pool, (-1, size))
        far = tf.reduce_sum(tf.square(there), -1) - 2.0 * tf.matmul(here, there, transpose_b=True)
        order = tf.argsort(tf.where(serves, far, np.inf), axis=-1)
        rank = tf.minimum(call.run // 2, tf.shape(order)[1] - 1)
        found = tf.gather(serves, order[:, rank], batch_dims=1)
        return tf.where(per_row(found, x), tf.gather(pool, order[:, rank]), x)

    def to_boundary(self, call, x):
        """Between the image and `x`, which fools, the nearest point that bisection finds to fool.

        L2: on the segment. Linf: `x` with its change clipped.
        """
        size, exponent = math.prod(x.shape[1:]), 1.5 if self.threat.norm == "l2" else 2.0
        times = min(max(math.ceil(exponent * math.log2(size)), 10), 20)
        reach = self.threat.distance(x, call.x)

        def between(share):
            if self.threat.norm == "l2":
                return call.x + per_row(share, x) * (x - call.x)
            most = per_row(share * reach, x)
            return tf.clip_by_value(x, call.x - most, call.x + most)

        def halve(k, low, high):
            middle = 0.5 * (low + high)
            fooled = call.fooled(call.logits(between(middle)))
            return k + 1, tf.where(fooled, low, middle), tf.where(fooled, middle, high)

        with call.repeated(times):
            _, _, high = tf.while_loop(
                lambda k, *_: k < times,
                halve,
                (tf.constant(0), tf.zeros_like(reach), tf.ones_like(reach)),
            )
        return tf.where(per_row(high < 1.0, x), between(high), x)

    def finish(self, call, state):
        return state["best"]

    def get_config(self):
        config = super().get_config()
        config["starts"] = config.pop("restarts")
        pool = None if self.pool is None else keras.saving.serialize_keras_object(self.pool)
        return {**config, "pool": pool}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("pool"), dict):
            config["pool"] = keras.saving.deserialize_keras_object(config["pool"])
        return super().from_config(config)


@keras.saving.register_keras_serializable(package="tfrobust")
class HopSkipJump(Decision):
    """HopSkipJump (Chen et al., 2020): estimates the boundary's normal from answers beside it.

    Step t asks at B_t = min(samples sqrt(t), max_samples) points x + delta u_b, u_b random of
    length 1 and delta the distance over the number of pixels (0.1 at first), and moves along
    sum_b (phi_b - mean phi) u_b, phi_b = 1 where the answer is wrong, else -1; where all are
    equal their mean is not subtracted. The move is distance / sqrt(t) long, or less by the
    smallest power of two that bisection among 2^-1 to 2^-30 finds to fool, else none. Then x goes
    back to the boundary by bisection, to within d^-1.5 of the way (Linf d^-2), d pixels, though
    at least 10 times and at most 20. An image spends the same number of queries in each step.

    Args:
        threat: `tr.threats.L2` or `Linf`.
        steps: Integer >= 1.
        samples, max_samples: Integers >= 2.
        starts, pool, **shared: see `Decision`.

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = HopSkipJump(threats.L2(0.5), steps=10)
    >>> found = attack.minimum(net, np.array([[0.6, 0.4]]), np.array([0]))
    >>> bool(abs(found.distance[0] - 0.1 * 2**0.5) < 0.01)
    True
    """

    norms = ("l2", "linf")
    stride, chunk = 2, 4

    def __init__(self, threat, steps=40, samples=100, max_samples=10000, **shared):
        super().__init__(threat, steps, **shared)
        whole("samples", samples, 2)
        whole("max_samples", max_samples, 2)
        self.samples, self.max_samples = int(samples), int(max_samples)

    def step(self, call, i, state):
        x, root = state["x"], tf.sqrt(tf.cast(i + 1, tf.float32))
        far = self.threat.distance(x, call.x)
        delta = tf.where(i == 0, 0.1, far / max(math.prod(x.shape[1:]), 100))
        count = tf.cast(tf.minimum(self.samples * root, self.max_samples), tf.int32)
        normal = self._normal(call, noise.fold(call.keys, i + 1), x, delta, count)
        way = self.threat.ascent(normal, x) * per_row(far / root, x)
        x = self.to_boundary(call, self._moved(call, x, way))
        return {**self.closer(call, state, x, state["found"]), "x": x}

    def _normal(self, call, keys, x, delta, count):
        """Towards the fooling side, estimated from `count` queries."""
        rows, shape = tf.shape(x)[0], x.shape[1:]
        draw = noise.normal if self.threat.norm == "l2" else lambda k, s: noise.uniform(k, s, -1, 1)

        def some(first, votes, ways, voted):
            copies = tf.minimum(self.chunk, count - first)
            wild = noise.fold(keys[:, None], first + tf.range(copies)[None, :])
            way = draw(tf.reshape(wild, (-1,)), shape)
            way *= per_row(tf.math.rsqrt(tf.reduce_sum(tf.square(way), all_axes(x)) + 1e-24), x)
            here, length = tf.repeat(x, copies, 0), per_row(tf.repeat(delta, copies), x)
            there = tf.clip_by_value(here + length * way, 0.0, 1.0)
            fooled = call.fooled(call.logits(there), copies)
            vote = tf.where(fooled, 1.0, -1.0)
            way = (there - here) / tf.maximum(length, 1e-12)

            def total(values):
                return tf.reduce_sum(tf.reshape(values, (rows, copies, *values.shape[1:])), 1)

            sums = total(vote), total(way), total(per_row(vote, x) * way)
            old = votes, ways, voted
            return first + copies, *(a + b for a, b in zip(old, sums, strict=True))

        with call.repeated(count):
            none = tf.zeros_like(x)
            _, votes, ways, voted = tf.while_loop(
                lambda first, *_: first < count,
                some,
                (tf.constant(0), tf.zeros_like(delta), none, none),
            )
        count = tf.cast(count, tf.float32)
        mean = tf.where(tf.abs(votes) == count, 0.0, votes / count)
        return voted - per_row(mean, x) * ways

    def _moved(self, call, x, way, halvings=30):
        """`x + way`, the way halved until it fools; `x` where that would take too often."""

        def at(power):
            moved = x + per_row(tf.pow(0.5, tf.cast(power, tf.float32)), x) * way
            return tf.clip_by_value(moved, 0.0, 1.0)

        def split(k, low, high):
            middle = (low + high) // 2
            fooled = call.fooled(call.logits(at(middle)))
            return k + 1, tf.where(fooled, low, middle + 1), tf.where(fooled, middle, high)

        times, rows = (halvings + 1).bit_length(), tf.zeros_like(call.y)
        with call.repeated(times):
            _, _, high = tf.while_loop(
                lambda k, *_: k < times, split, (tf.constant(0), rows, rows + halvings + 1)
            )
        return tf.where(per_row(high <= halvings, x), at(high), x)

    def get_config(self):
        return {
            **super().get_config(),
            "samples": self.samples,
            "max_samples": self.max_samples,
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class Boundary(Decision):
    """Boundary attack (Brendel et al., 2018): a random walk on the fooling side.

    A step goes a random way of `sphere_step` times the distance on the sphere around the image,
    then `source_step` times the distance towards the image, and counts where it fools and is
    nearer. Every tenth step notes whether the point on the sphere and the whole step fooled: of
    the last 100 points on the sphere more than half make both steps longer, less than a fifth
    both shorter; of the last 30 whole steps more than a quarter make the second step longer, less
    than a tenth shorter, all by `factor`, after which the notes begin anew. It ends where the
    second step is below 1e-7.

    Args:
        threat: `tr.threats.L2`.
        steps: Integer >= 1.
        sphere_step, source_step: Floats in (0, 1).
        factor: Float > 1.
        starts, pool, **shared: see `Decision`.

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = Boundary(threats.L2(0.5), steps=200)
    >>> found = attack.minimum(net, np.array([[0.6, 0.4]]), np.array([0]))
    >>> bool(abs(found.distance[0] - 0.1 * 2**0.5) < 0.02)
    True
    """

    norms = ("l2",)
    stride, noted = 500, 10
    least = 1e-7

    def __init__(
        self, threat, steps=25000, sphere_step=0.01, source_step=0.01, factor=1.5, **shared
    ):
        super().__init__(threat, steps, **shared)
        self.sphere_step = lies("sphere_step", sphere_step, "(0, 1)")
        self.source_step = lies("source_step", source_step, "(0, 1)")
        self.factor = lies("factor", factor, "(1, inf)")

    def open(self, call, state):
        return super().open(call, state) & (state.get("source_step", 1.0) >= self.least)

    def start(self, call):
        state = super().start(call)
        del state["x"]
        rows, none = tf.zeros_like(call.y, tf.float32), tf.zeros_like(call.y[:, None], tf.bool)
        return {
            **state,
            **{"sphere_step": rows + self.sphere_step, "source_step": rows + self.source_step},
            **{"spheres": tf.tile(none, (1, 100)), "spheres_noted": tf.zeros_like(call.y)},
            **{"hits": tf.tile(none, (1, 30)), "hits_noted": tf.zeros_like(call.y)},
        }

    def step(self, call, i, state):
        back = call.x - state["best"]
        far = tf.maximum(self.threat.distance(back, 0.0), 1e-12)
        unit = back / per_row(far, back)
        way = noise.normal(noise.fold(call.keys, i + 1), back.shape[1:])
        way -= unit * tf.reduce_sum(unit * way, all_axes(back), keepdims=True)
        way = self.threat.ascent(way, back) * per_row(state["sphere_step"] * far, back)
        shrink = tf.math.rsqrt(1.0 + tf.square(state["sphere_step"]))
        sphere = tf.clip_by_value(call.x + per_row(shrink, back) * (way - back), 0.0, 1.0)
        now = tf.maximum(self.threat.distance(sphere, call.x), 1e-12)
        length = tf.maximum(state["source_step"] * far + now - far, 0.0) / now
        x = sphere + per_row(length, back) * (call.x - sphere)
        fooled = call.fooled(call.logits(x))
        due = i % self.noted == 0
        with call.repeated(tf.cast(due, tf.int32)):
            on_sphere = tf.cond(due, lambda: call.fooled(call.logits(sphere)), lambda: fooled)
        both = self._factor(state, "spheres", on_sphere, due, (0.2, 0.5))
        second = self._factor(state, "hits", fooled, due, (0.1, 0.25))
        return {
            **self.closer(call, state, x, fooled),
            **{k: v for changed, _ in (both, second) for k, v in changed.items()},
            "sphere_step": state["sphere_step"] * both[1],
            "source_step": state["source_step"] * both[1] * second[1],
        }

    def _factor(self, state, name, new, due, bounds):
        """(notes with a new one where due, factor of the steps by their share that is True)."""
        notes, noted = state[name], state[f"{name}_noted"]
        size = notes.shape[1]
        place = tf.range(size) == (noted % size)[:, None]
        notes, noted = tf.where(due & place, new[:, None], notes), noted + tf.cast(due, tf.int32)
        share = tf.reduce_mean(tf.cast(notes, tf.float32), 1)
        full = due & (noted >= size)
        way = tf.where(share > bounds[1], 1.0, tf.where(share < bounds[0], -1.0, 0.0))
        way = tf.where(full, way, 0.0)
        changed = {name: notes, f"{name}_noted": tf.where(way == 0.0, noted, 0)}
        return changed, tf.pow(self.factor, way)

    def get_config(self):
        return {
            **super().get_config(),
            "sphere_step": self.sphere_step,
            "source_step": self.source_step,
            "factor": self.factor,
        }
