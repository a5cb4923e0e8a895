"""Gradient descent to the nearest fooling point: DDN and Carlini-Wagner; `Walk`, their base.

>>> from tfrobust import threats
>>> DDN(threats.L2(0.5)).name, CarliniWagner(threats.L2(0.5)).name
('DDN-100', 'CW-9x10000')
"""

import math

import keras
import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.attacks.attack import whole
from tfrobust.attacks.call import per_row
from tfrobust.attacks.minimum import MinimumNorm


def lies(name, value, span):
    """`value` as a float; refuses what is not a number in the interval, such as "(0, inf)"."""
    low, high = map(float, span[1:-1].split(","))
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        above = low <= value if span[0] == "[" else low < value
        below = value <= high if span[-1] == "]" else value < high
        if above and below:
            return float(value)
    raise ValueError(f"`{name}` must be a number in {span}. Received: {name}={value!r}")


class Walk(MinimumNorm):
    """Base of attacks that walk: each step judges the point `x` of the state and moves it.

    The first restart begins at the image, each later one at a random point at half the radius
    from it, epsilon's or, in `minimum`, that of the threat.

    Args:
        threat: `tr.threats.Threat` with one of the class's `norms`.
        steps: Integer >= 1.
        **shared: see `Attack`; `loss` only where `any_loss` says so.
    """

    norms = ("linf", "l2", "l1")
    any_loss = False

    def __init__(self, threat, steps, **shared):
        super().__init__(threat, **({} if self.any_loss else {"loss": "margin"}), **shared)
        whole("steps", steps, 1)
        self.steps = int(steps)

    @property
    def iterations(self):
        return self.steps

    def origin(self, call):
        """Where the walk begins."""
        if self.restarts == 1:
            return call.x
        epsilon = tf.where(tf.math.is_finite(call.epsilon), call.epsilon, self.threat.epsilon)
        way = self.threat.random_start(call.x, call.keys, 0.5 * epsilon) - call.x
        way /= tf.maximum(per_row(self.threat.distance(way, 0.0), way), 1e-12)
        away = tf.clip_by_value(call.x + 0.5 * epsilon * way, 0.0, 1.0)
        return tf.where(call.run < max(self.targets, 1), call.x, away)

    def start(self, call):
        return {**self.nothing(call), "x": self.origin(call)}

    def finish(self, call, state):
        fooled = call.fooled(call.logits(state["x"]))
        return self.closer(call, state, state["x"], fooled)["best"]

    def get_config(self):
        config = {**super().get_config(), "steps": self.steps}
        return config if self.any_loss else {k: v for k, v in config.items() if k != "loss"}


@keras.saving.register_keras_serializable(package="tfrobust")
class DDN(Walk):
    """Decoupled direction and norm (Rony et al., 2019): direction by gradient, norm by rule.

    Each step adds a_i times the unit gradient of the loss to the change, a_i from 1 down to 0.01
    along a cosine, and rescales the change to a radius that starts at 1 and shrinks by the factor
    1 - gamma where the point fools, else grows by 1 + gamma, at most to the farthest corner of
    the box. Every point is judged; the nearest fooling one is returned.

    Args:
        threat: `tr.threats.L2`.
        steps: Integer >= 1.
        gamma: Float in (0, 1).
        **shared: see `Attack` (loss, restarts, targets, seed, eot, on_failure).

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> found = DDN(threats.L2(0.5)).minimum(net, np.array([[0.6, 0.4]]), np.array([0]))
    >>> bool(abs(found.distance[0] - 0.1 * 2**0.5) < 0.002)
    True
    """

    norms = ("l2",)
    any_loss = True

    def __init__(self, threat, steps=100, gamma=0.05, **shared):
        super().__init__(threat, steps, **shared)
        self.gamma = lies("gamma", gamma, "(0, 1)")

    @property
    def name(self):
        return f"DDN-{self.steps}"

    def start(self, call):
        state = super().start(call)
        return {**state, "radius": tf.ones_like(state["distance"])}

    def step(self, call, i, state):
        x = state["x"]
        _, fooled, gradient = call.gradient(self.score(call), x)
        state = self.closer(call, state, x, fooled)
        share = 0.01 + 0.495 * (1.0 + tf.cos(math.pi * tf.cast(i, tf.float32) / self.steps))
        change = x - call.x + share * self._unit(call, i, gradient)
        corner = self.threat.distance(tf.maximum(call.x, 1.0 - call.x), 0.0)
        factor = tf.where(fooled, 1.0 - self.gamma, 1.0 + self.gamma)
        radius = tf.minimum(state["radius"] * factor, corner)
        change *= per_row(radius / tf.maximum(self.threat.distance(change, 0.0), 1e-12), x)
        return {**state, "radius": radius, "x": tf.clip_by_value(call.x + change, 0.0, 1.0)}

    def _unit(self, call, i, gradient):
        """The gradient with length 1, however small it was; a random direction where it is 0."""
        largest = tf.reduce_max(tf.abs(gradient), list(range(1, len(gradient.shape))), True)
        none = largest == 0.0

        def random():
            wild = noise.normal(noise.fold(call.keys, i), gradient.shape[1:])
            return tf.where(none, wild, gradient)

        some = tf.cond(tf.reduce_any(none), random, lambda: gradient)
        return self.threat.ascent(some / tf.where(none, 1.0, largest), gradient)

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="tfrobust")
class CarliniWagner(Walk):
    """Carlini and Wagner's L2 attack (2017).

    Adam minimises ||x' - x||_2^2 + c * max(0, confidence - margin(x')), margin = max_{k != y} z_k
    - z_y (with a goal t: z_t - max_{k != t} z_k), over x' = (tanh(w) + 1) / 2, which never leaves
    the box. A bracket search finds the c at which it just fools: after `steps` steps c goes down
    to the middle of its bracket where a fooling point was found, else up to the middle or, while
    nothing was found yet, tenfold; then Adam starts afresh. With 10 searches or more the last one
    takes the upper end. Every image keeps its own time: with `abort_early` its search ends where
    a tenth of the steps brought less than 0.01 %, and its next one begins at once.

    Args:
        threat: `tr.threats.L2`.
        search_steps: Integer >= 1, values of c that are tried.
        steps: Integer >= 1, steps of Adam for each of them.
        step_size: Float > 0, of Adam, in w.
        initial_const: Float > 0, the first c.
        confidence: Float >= 0, margin that a point must have to count.
        abort_early: Boolean.
        **shared: see `Attack` (restarts, targets, seed, eot, on_failure).

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = CarliniWagner(threats.L2(0.5), steps=100)
    >>> found = attack.minimum(net, np.array([[0.6, 0.4]]), np.array([0]))
    >>> bool(abs(found.distance[0] - 0.1 * 2**0.5) < 0.002)
    True
    """

    norms = ("l2",)
    stride = 100
    last_resort, unbounded, idle = 10, 1e10, 0.9999

    def __init__(
        self,
        threat,
        search_steps=9,
        steps=10000,
        step_size=0.01,
        initial_const=1e-3,
        confidence=0.0,
        abort_early=True,
        **shared,
    ):
        super().__init__(threat, steps, **shared)
        whole("search_steps", search_steps, 1)
        self.search_steps, self.abort_early = int(search_steps), bool(abort_early)
        self.step_size = lies("step_size", step_size, "(0, inf)")
        self.initial_const = lies("initial_const", initial_const, "(0, 1e10)")
        self.confidence = lies("confidence", confidence, "[0, inf)")

    @property
    def name(self):
        return f"CW-{self.search_steps}x{self.steps}"

    @property
    def iterations(self):
        return self.search_steps * self.steps

    def open(self, call, state):
        return super().open(call, state) & (state["search"] < self.search_steps)

    def start(self, call):
        rows = tf.zeros_like(call.y, tf.float32)
        whole_rows, none = tf.zeros_like(call.y), tf.zeros_like(call.x)
        return {
            **self.nothing(call),
            **{"origin": tf.atanh((2.0 * self.origin(call) - 1.0) * (1.0 - 1e-6)), "w": none},
            **{"mean": none, "square": none, "k": whole_rows, "search": whole_rows},
            **{"c": rows + self.initial_const, "low": rows, "high": rows + self.unbounded},
            **{"found": rows > 0.0, "before": rows + np.inf},
        }

    def step(self, call, i, state):
        del i
        x = tf.minimum(tf.sigmoid(2.0 * (state["origin"] + state["w"])), 1.0 - 2.0**-24)
        margin, fooled, slope = call.gradient(self.score(call), x)
        if self.confidence:
            fooled &= margin >= self.confidence
        state = self.closer(call, state, x, fooled)
        lacking = tf.maximum(self.confidence - margin, 0.0)
        change, c = x - call.x, state["c"]
        loss = tf.square(self.threat.distance(change, 0.0)) + c * lacking
        pull = per_row(tf.where(lacking > 0.0, c, 0.0), x)
        state = {**state, **self._adam((2.0 * change - pull * slope) * 2.0 * x * (1.0 - x), state)}
        state["found"] |= fooled
        return self._clock(state, loss)

    def _adam(self, gradient, state, first=0.9, second=0.999):
        mean = first * state["mean"] + (1.0 - first) * gradient
        square = second * state["square"] + (1.0 - second) * tf.square(gradient)
        k = per_row(tf.cast(state["k"] + 1, tf.float32), gradient)
        deviation = tf.sqrt(square / (1.0 - second**k)) + 1e-8
        w = state["w"] - self.step_size / (1.0 - first**k) * mean / deviation
        return {"w": w, "mean": mean, "square": square}

    def _clock(self, state, loss):
        """One step later: rows whose search is over take their next c and start afresh."""
        check = state["k"] % max(self.steps // 10, 1) == 0
        over = state["k"] + 1 == self.steps
        if self.abort_early:
            over |= check & (loss > self.idle * state["before"])
        c, search = state["c"], state["search"] + tf.cast(over, tf.int32)
        low = tf.where(over & ~state["found"], tf.maximum(state["low"], c), state["low"])
        high = tf.where(over & state["found"], tf.minimum(state["high"], c), state["high"])
        following = tf.where(high < self.unbounded, 0.5 * (low + high), 10.0 * c)
        if self.search_steps >= self.last_resort:
            following = tf.where(search == self.search_steps - 1, high, following)
        afresh = per_row(over, state["w"])
        return {
            **state,
            **{n: tf.where(afresh, 0.0, state[n]) for n in ("w", "mean", "square")},
            **{"low": low, "high": high, "c": tf.where(over, following, c), "search": search},
            "k": tf.where(over, 0, state["k"] + 1),
            "found": state["found"] & ~over,
            "before": tf.where(over, np.inf, tf.where(check, loss, state["before"])),
        }

    def finish(self, call, state):
        return state["best"]

    def get_config(self):
        return {
            **super().get_config(),
            "search_steps": self.search_steps,
            "step_size": self.step_size,
            "initial_const": self.initial_const,
            "confidence": self.confidence,
            "abort_early": self.abort_early,
        }
