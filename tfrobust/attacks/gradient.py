"""Iterated gradient attacks: one loop whose threat, loss, start and step size are parts.

>>> from tfrobust import threats
>>> PGD(threats.Linf(0.3), steps=40, step_size=0.01, restarts=5).name
'PGD-40x5'
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks.attack import Attack, Best, whole


def value_and_gradient(call, score, x):
    """(loss, fooled, gradient by the input) of each example at `x`."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = call.logits(x)
        loss = score(logits)
    return loss, losses.margin(logits, call.y) > 0, tape.gradient(loss, x)


def rows_open(call, fooled):
    """Whether any real row is still worth a step."""
    return tf.reduce_any(call.active & ~fooled) if call.eager_stop else True


@keras.saving.register_keras_serializable(package="tfrobust")
class PGD(Attack):
    """Projected gradient descent (Madry et al., 2018) in any threat's norm.

    x_0 = random point of the ball (or x); x_{k+1} = P(x_k + step_size * ascent(grad loss(x_k))).
    The start and every iterate are judged; of each example the first fooling point is returned,
    else the point of highest loss, so the result is never weaker than the last iterate.

    Args:
        threat: `tr.threats.Threat`.
        steps: Integer >= 0.
        step_size: Float > 0 in pixel units at the threat's epsilon; default 2.5 * epsilon / steps.
            With another epsilon at call time (a sweep, a ramp in training) it scales along.
        random_start: Start at a random point of the ball.
        last_iterate: Return the last iterate instead (as foolbox, ART and cleverhans do).
        loss, restarts, targets, seed: see `Attack`.

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = PGD(threats.Linf(0.25), steps=3, random_start=False)
    >>> attack(net, np.array([[0.6, 0.4]]), np.array([0])).round(2).tolist()
    [[0.38999998569488525, 0.6100000143051147]]
    """

    def __init__(
        self,
        threat,
        steps=40,
        step_size=None,
        random_start=True,
        last_iterate=False,
        loss="ce",
        restarts=1,
        targets=0,
        seed=0,
    ):
        super().__init__(threat, loss=loss, restarts=restarts, targets=targets, seed=seed)
        whole("steps", steps, 0)
        number = isinstance(step_size, int | float | np.number)
        if step_size is not None and not (number and 0 < step_size < np.inf):
            raise ValueError(f"`step_size` must be a number > 0. Received: step_size={step_size!r}")
        self.steps = int(steps)
        self.step_size = None if step_size is None else float(step_size)
        self.random_start, self.last_iterate = bool(random_start), bool(last_iterate)

    @property
    def name(self):
        return f"PGD-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    def numbers(self):
        ratio = 2.5 / max(self.steps, 1)
        if self.step_size is not None and self.threat.epsilon:
            ratio = self.step_size / self.threat.epsilon
        return {"steps": np.int32(self.steps), "ratio": np.float32(ratio)}

    def perturb(self, call):
        score, threat = self.score(call), self.threat
        size = call.numbers["ratio"] * call.epsilon
        x = threat.random_start(call.x, call.keys, call.epsilon) if self.random_start else call.x

        def stepped(x, gradient):
            return threat.project(x + size * threat.ascent(gradient, x), call.x, call.epsilon)

        if self.last_iterate:
            _, x = tf.while_loop(
                lambda i, x: i < call.numbers["steps"],
                lambda i, x: (i + 1, stepped(x, value_and_gradient(call, score, x)[2])),
                (tf.constant(0), x),
            )
            return x

        def body(i, x, best_x, best_loss, best_fooled):
            loss, fooled, gradient = value_and_gradient(call, score, x)
            best = Best(best_x, best_loss, best_fooled)
            best = best.updated(x, loss, fooled, call.eager_stop)
            return i + 1, stepped(x, gradient), best.x, best.loss, best.fooled

        start = tf.reduce_sum(call.x, range(1, len(call.x.shape))) * 0.0
        _, x, best_x, best_loss, best_fooled = tf.while_loop(
            lambda i, x, bx, bl, fooled: (i < call.numbers["steps"]) & rows_open(call, fooled),
            body,
            (tf.constant(0), x, call.x, start - np.inf, start > 0),
        )
        logits = call.logits(x)
        best = Best(best_x, best_loss, best_fooled)
        fooled = losses.margin(logits, call.y) > 0
        return best.updated(x, score(logits), fooled, call.eager_stop).x

    def get_config(self):
        return {
            **super().get_config(),
            "steps": self.steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "last_iterate": self.last_iterate,
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class FGSM(PGD):
    """Fast gradient sign method (Goodfellow et al., 2015): one full step from x, clipped to [0, 1].

    With an L2 or L1 threat it takes that norm's steepest step of length epsilon.

    Args:
        threat: `tr.threats.Threat`.
        loss, seed: see `Attack`.
    """

    def __init__(self, threat, loss="ce", seed=0):
        super().__init__(
            threat, steps=1, random_start=False, last_iterate=True, loss=loss, seed=seed
        )

    @property
    def name(self):
        return "FGSM"

    def numbers(self):
        return {"steps": np.int32(1), "ratio": np.float32(1.0)}

    def get_config(self):
        config = super().get_config()
        return {name: config[name] for name in ("threat", "loss", "seed")}
