"""Iterated gradient attacks: one loop whose threat, loss, start and step size are parts.

>>> from tfrobust import threats
>>> PGD(threats.Linf(0.3), steps=40, step_size=0.01, restarts=5).name
'PGD-40x5'
"""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tfrobust import contract, losses, noise
from tfrobust.attacks.attack import Attack, whole
from tfrobust.attacks.call import better


def undecided(call, x):
    """A state that any judged point improves."""
    rows = tf.zeros(tf.shape(x)[:1])
    return {"x": x, "best": call.x, "loss": rows - np.inf, "fooled": rows > 0}


def checked_start(value, loss, elsewhere=False):
    """`random_start` as a bool or a float, or an error or warning of one line.

    Args:
        loss: The attack's loss.
        elsewhere: Whether the attack has an origin of its own, away from the image.
    """
    if isinstance(value, bool | np.bool_):
        if losses.from_clean(loss) and not (value or elsewhere):
            warnings.warn(
                f"`random_start` False with loss={loss!r} goes nowhere: the gradient of KL is zero "
                "at the image. Start beside it, for example at random_start=0.001.",
                stacklevel=4,
            )
        return bool(value)
    if not isinstance(value, float | np.floating) or not 0 < value < 1:
        raise ValueError(
            "`random_start` must be True, False, or a float in (0, 1), the deviation of Gaussian "
            f"noise in pixel units. Received: random_start={value!r}"
        )
    return float(value)


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
        random_start: Start at a random point of the ball (True), at the image (False), or at the
            projected x + random_start N(0, 1), a float in (0, 1): TRADES takes 0.001.
        last_iterate: Return the last iterate instead (as foolbox, ART and cleverhans do).
        loss, restarts, **shared: see `Attack` (targets, seed, eot, on_failure).

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
        **shared,
    ):
        super().__init__(threat, loss=loss, restarts=restarts, **shared)
        whole("steps", steps, 0)
        number = isinstance(step_size, int | float | np.number)
        if step_size is not None and not (number and 0 < step_size < np.inf):
            raise ValueError(f"`step_size` must be a number > 0. Received: step_size={step_size!r}")
        self.steps = int(steps)
        self.step_size = None if step_size is None else float(step_size)
        elsewhere = type(self).origin is not PGD.origin
        self.random_start = checked_start(random_start, loss, elsewhere)
        self.last_iterate = bool(last_iterate)

    @property
    def name(self):
        return f"PGD-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    def numbers(self):
        ratio = 2.5 / max(self.steps, 1)
        if self.step_size is not None and self.threat.epsilon:
            ratio = self.step_size / self.threat.epsilon
        return {"ratio": np.float32(ratio)}

    @property
    def iterations(self):
        return self.steps

    def origin(self, call):
        """Where the first gradient is taken."""
        if self.random_start is False:
            return call.x
        if self.random_start is not True:
            x = call.x + self.random_start * noise.normal(call.keys, call.x.shape[1:])
            return self.threat.project(x, call.x, call.epsilon)
        return self.threat.random_start(call.x, call.keys, call.epsilon)

    def heading(self, call, state, gradient):
        """What the next step ascends, and the entries of the state that this changed."""
        del call, state
        return gradient, {}

    def start(self, call):
        x = self.origin(call)
        return {"best": x} if self.last_iterate else undecided(call, x)

    def step(self, call, i, state):
        x = state["best"] if self.last_iterate else state["x"]
        loss, fooled, gradient = call.gradient(self.score(call), x)
        heading, changed = self.heading(call, state, gradient)
        size = call.numbers["ratio"] * call.epsilon
        moved = x + size * self.threat.ascent(heading, x)
        moved = self.threat.project(moved, call.x, call.epsilon)
        if self.last_iterate:
            return {**changed, "best": moved}
        return {**better(state, x, loss, fooled, call.eager_stop), **changed, "x": moved}

    def finish(self, call, state):
        if self.last_iterate:
            return state["best"]
        logits = call.logits(state["x"])
        loss, fooled = self.score(call)(logits), call.fooled(logits)
        return better(state, state["x"], loss, fooled, call.eager_stop)["best"]

    def get_config(self):
        return {
            **super().get_config(),
            "steps": self.steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "last_iterate": self.last_iterate,
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class BIM(PGD):
    """Basic iterative method (Kurakin et al., 2017): PGD from the image itself.

    Args:
        threat: `tr.threats.Threat`.
        steps: Integer >= 0.
        step_size: Float > 0 in pixel units; default 0.2 * epsilon.
        **shared: see `PGD` and `Attack`.
    """

    share = 0.2

    def __init__(self, threat, steps=10, step_size=None, **shared):
        super().__init__(threat, steps=steps, step_size=step_size, random_start=False, **shared)

    @property
    def name(self):
        return f"{type(self).__name__}-{self.steps}"

    def numbers(self):
        found = super().numbers()
        return found if self.step_size is not None else {"ratio": np.float32(self.share)}

    def get_config(self):
        return {k: v for k, v in super().get_config().items() if k != "random_start"}


@keras.saving.register_keras_serializable(package="tfrobust")
class MIM(BIM):
    """Momentum iterative method (Dong et al., 2018): steps follow an accumulated gradient.

    g_{k+1} = decay * g_k + grad / ||grad||_1 and x_{k+1} = P(x_k + step_size * ascent(g_{k+1})).
    With `decay=0` it is BIM. Momentum makes the points transfer better to other models.

    Args:
        threat: `tr.threats.Threat`.
        steps, step_size, **shared: see `BIM`.
        decay: Float >= 0, how much of the accumulated gradient is kept.
    """

    def __init__(self, threat, steps=10, step_size=None, decay=1.0, **shared):
        super().__init__(threat, steps=steps, step_size=step_size, **shared)
        self.decay = contract.nonnegative("decay", decay)

    def numbers(self):
        return {**super().numbers(), "decay": np.float32(self.decay)}

    def start(self, call):
        return {**super().start(call), "velocity": tf.zeros_like(call.x)}

    def heading(self, call, state, gradient):
        axes = list(range(1, len(gradient.shape)))
        length = tf.reduce_sum(tf.abs(gradient), axes, keepdims=True)
        velocity = call.numbers["decay"] * state["velocity"]
        velocity += gradient / tf.maximum(length, 1e-30)
        return velocity, {"velocity": velocity}

    def get_config(self):
        return {**super().get_config(), "decay": self.decay}


class SingleStep(PGD):
    """One step whose end point is returned as it is."""

    length = 1.0

    def __init__(self, threat, loss="ce", random_start=False, **shared):
        super().__init__(
            threat, steps=1, random_start=random_start, last_iterate=True, loss=loss, **shared
        )

    @property
    def name(self):
        return type(self).__name__

    def numbers(self):
        return {"ratio": np.float32(self.length)}

    def get_config(self):
        fixed = ("steps", "step_size", "last_iterate")
        return {k: v for k, v in super().get_config().items() if k not in fixed}


@keras.saving.register_keras_serializable(package="tfrobust")
class FGSM(SingleStep):
    """Fast gradient sign method (Goodfellow et al., 2015): one full step from x, clipped to [0, 1].

    With an L2 or L1 threat it takes that norm's steepest step of length epsilon.

    Args:
        threat: `tr.threats.Threat`.
        loss: see `Attack`.
        random_start: True takes the step from a random point of the ball and projects ("fast"
            FGSM-RS of Wong et al., 2020, with a full step); a float as in `PGD`.
        **shared: see `Attack`.
    """


@keras.saving.register_keras_serializable(package="tfrobust")
class RFGSM(SingleStep):
    """R+FGSM (Tramer et al., 2018), Guo et al.'s rFGS: a random step, then a gradient step.

    x1 = clip(x + a sign(N(0, 1))), x' = clip(x1 + (epsilon - a) sign(grad at x1)), with
    a = share * epsilon. In other norms both steps are of that norm's unit length.

    Args:
        threat: `tr.threats.Threat`.
        loss: see `Attack`.
        share: Float in [0, 1]; 0 is FGSM, 1 is noise alone.
        **shared: see `Attack`.
    """

    def __init__(self, threat, loss="ce", share=0.5, **shared):
        super().__init__(threat, loss=loss, **shared)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"`share` must lie in [0, 1]. Received: share={share!r}")
        self.share = float(share)

    @property
    def name(self):
        return "R+FGSM"

    def numbers(self):
        return {"ratio": np.float32(1.0 - self.share), "share": np.float32(self.share)}

    def origin(self, call):
        inside = self.threat.random_start(call.x, call.keys, call.epsilon)
        away = self.threat.ascent(inside - call.x, call.x)
        moved = call.x + call.numbers["share"] * call.epsilon * away
        return self.threat.project(moved, call.x, call.epsilon)

    def get_config(self):
        config = {**super().get_config(), "share": self.share}
        return {k: v for k, v in config.items() if k != "random_start"}
