"""Auto-PGD: projected gradient ascent that chooses its own step size (Croce and Hein, 2020).

>>> from tfrobust import threats
>>> APGD(threats.Linf(0.3), loss="dlr_targeted", targets=9).name
'APGD-T'
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.attacks.attack import Attack, whole
from tfrobust.attacks.call import better, per_row


def checkpoints(steps):
    """Window length that ends at each iteration, 0 where none does: int32 `(steps,)`.

    >>> [i + 1 for i, k in enumerate(checkpoints(100)) if k]
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    window = max(int(0.22 * steps), 1)
    ends, done = np.zeros(steps, np.int32), 0
    while done + window <= steps:
        done += window
        ends[done - 1] = window
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return ends


def _pixels_changed(call, x):
    return tf.math.count_nonzero(x - call.x, list(range(1, len(x.shape))), dtype=tf.float32)


class Momentum:
    """Steps of Linf and L2: full steepest steps with momentum, halved at checkpoints.

    u = P(x_i + eta e(g)), x_{i+1} = P(x_i + a (u - x_i) + (1 - a) (x_i - x_{i-1})), a = 0.75 after
    the first step. At a checkpoint the step is halved, with a return to the best point, where the
    loss rose in at most rho = 0.75 of the window's steps or the best loss has not moved since the
    last checkpoint (which did not halve). The first window is compared with the loss at the start.
    """

    rho, momentum, first_step = 0.75, 0.75, 2.0

    def numbers(self, steps, large_radius):
        del large_radius
        return {"windows": checkpoints(steps)}

    def radius(self, call, i):
        del i
        return call.epsilon

    def origin(self, call, threat, radius):
        """A random direction scaled to the full radius, then clipped to the box."""
        inside = threat.random_start(call.x, call.keys, radius)
        far = tf.maximum(per_row(threat.distance(inside, call.x), call.x), 1e-12)
        return threat.project(call.x + (inside - call.x) * (radius / far), call.x, radius)

    def fresh(self, call, state):
        del call
        rows = tf.zeros_like(state["now"])
        return {"last": state["x"], "rises": rows, "seen": state["now"], "reduced": rows < 1}

    def renewed(self, call, threat, i, state):
        del call, threat, i
        return state

    def move(self, call, threat, i, state, radius):
        x, eta = state["x"], per_row(state["eta"], call.x)
        u = threat.project(x + eta * threat.ascent(state["gradient"], x), call.x, radius)
        a = tf.where(i == 0, 1.0, self.momentum)
        moved = x + a * (u - x) + (1.0 - a) * (x - state["last"])
        return threat.project(moved, call.x, radius)

    def adapt(self, call, i, old, new):
        """(what changes at step i, rows that return to their best point)."""
        rises = new["rises"] + tf.cast(new["now"] > old["now"], tf.float32)
        window = call.numbers["windows"][i]
        due = window > 0
        few = rises <= self.rho * tf.cast(window, tf.float32)
        stuck = ~new["reduced"] & (new["seen"] >= new["top_loss"])
        back = due & (few | stuck)
        changed = {
            "last": old["x"],
            "eta": tf.where(back, new["eta"] / 2.0, new["eta"]),
            "reduced": tf.where(due, back, new["reduced"]),
            "seen": tf.where(due, new["top_loss"], new["seen"]),
            "rises": tf.where(due, 0.0, rises),
        }
        return changed, back


class Sparse:
    """Steps of L1 (Croce and Hein, 2021): few pixels at a time, as many as the best point needs.

    A step moves the pixels of largest gradient, at first 20 % of them, later ||best - x||_0 / 1.5,
    by eta / count each, and projects exactly on ball and box. Every 4 % of the steps eta, at first
    epsilon, is divided by 1.5 (down to epsilon / 10), unless the best point became sparser by 5 %:
    then it is epsilon again, from the best point. With `large_radius` 30 % of the steps are made
    at 3 epsilon, 30 % at 2 epsilon, the rest at epsilon, each from the last best point.
    """

    first_step, spare, floor, sparser = 1.0, 1.5, 10.0, 0.95

    def numbers(self, steps, large_radius):
        parts = [steps]
        if large_radius:
            parts = [int(0.3 * steps), int(0.3 * steps), steps - 2 * int(0.3 * steps)]
        windows, factor = np.zeros(steps, np.int32), np.ones(steps, np.float32)
        begins, window, first = np.zeros(steps, bool), max(int(0.04 * steps), 1), 0
        for place, count in enumerate(parts):
            windows[first : first + count][window - 1 :: window] = window
            factor[first : first + count] = len(parts) - place
            begins[first : first + 1] = first > 0
            first += count
        return {"windows": windows, "factor": factor, "begins": begins}

    def radius(self, call, i):
        return call.epsilon * call.numbers["factor"][i]

    def origin(self, call, threat, radius):
        wild = noise.normal(call.keys, call.x.shape[1:])
        return threat.project(call.x + wild, call.x, radius)

    def fresh(self, call, state):
        rows, size = tf.zeros_like(state["now"]), float(np.prod(call.x.shape[1:]))
        return {"pixels": rows + 0.2 * size, "spread": rows + size}

    def renewed(self, call, threat, i, state):
        """At another radius: the best point, projected, with nothing known of its loss."""
        begins, radius = call.numbers["begins"][i], self.radius(call, i)
        x = threat.project(state["top"], call.x, radius)
        spread = _pixels_changed(call, x)
        changed = {
            "x": x,
            "top_loss": tf.fill(tf.shape(spread), -np.inf),
            "gradient": state["top_gradient"],
            "eta": tf.fill(tf.shape(spread), radius),
            "pixels": spread / self.spare,
            "spread": spread,
        }
        return {**state, **{k: tf.where(begins, v, state[k]) for k, v in changed.items()}}

    def move(self, call, threat, i, state, radius):
        del i
        x, size = state["x"], tf.abs(state["gradient"])
        order = tf.sort(tf.reshape(size, (tf.shape(x)[0], -1)), direction="DESCENDING")
        last = tf.cast(tf.maximum(state["pixels"], 1.0), tf.int32) - 1
        bar = per_row(tf.gather(order, last, batch_dims=1), x)
        step = tf.where(size >= bar, tf.sign(state["gradient"]), 0.0)
        count = tf.reduce_sum(tf.abs(step), list(range(1, len(x.shape))), keepdims=True)
        step = per_row(state["eta"], x) * step / tf.maximum(count, 1.0)
        return threat.project(x + step, call.x, radius)

    def adapt(self, call, i, old, new):
        del old
        due, full = call.numbers["windows"][i] > 0, self.radius(call, i)
        spread = _pixels_changed(call, new["top"])
        back = due & (spread < self.sparser * new["spread"])
        smaller = tf.clip_by_value(new["eta"] / self.spare, full / self.floor, full)
        changed = {
            "eta": tf.where(back, full, tf.where(due, smaller, new["eta"])),
            "pixels": tf.where(due, spread / self.spare, new["pixels"]),
            "spread": tf.where(due, spread, new["spread"]),
        }
        return changed, back


RULES = {"linf": Momentum(), "l2": Momentum(), "l1": Sparse()}


@keras.saving.register_keras_serializable(package="tfrobust")
class APGD(Attack):
    """Auto-PGD; with `loss="dlr_targeted", targets=9` it is APGD-T.

    How it steps is the affair of `Momentum` (Linf, L2) and `Sparse` (L1) in this file. The start
    and every point are judged; what comes back is the first fooling point, else the highest loss.

    Args:
        threat: `tr.threats.Linf`, `L2` or `L1`.
        steps: Integer >= 1.
        large_radius: Make the first 60 % of the steps at larger radii (L1 only).
        loss, restarts, targets, **shared: see `Attack`.

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = APGD(threats.L1(0.25), steps=10)
    >>> attack.result(net, np.array([[0.6, 0.4]]), np.array([0])).fooled.tolist()
    [True]
    """

    norms = tuple(RULES)

    def __init__(self, threat, steps=100, loss="ce", large_radius=False, **shared):
        super().__init__(threat, loss=loss, **shared)
        whole("steps", steps, 1)
        if large_radius and threat.norm != "l1":
            raise ValueError(f"`large_radius` is for tr.threats.L1. Received: threat={threat!r}")
        self.steps, self.large_radius = int(steps), bool(large_radius)

    @property
    def rule(self):
        return RULES[self.threat.norm]

    @property
    def name(self):
        kinds = {"ce": "CE", "dlr": "DLR", "margin": "margin", "dlr_targeted": "T"}
        return f"APGD-{kinds[self.loss]}" if self.loss in kinds else "APGD"

    @property
    def iterations(self):
        return self.steps

    def numbers(self):
        return self.rule.numbers(self.steps, self.large_radius)

    def _judged(self, call, x, radius):
        """(loss, gradient, what `better` may take) at `x`: nothing outside of the threat."""
        loss, fooled, gradient = call.gradient(self.score(call), x)
        legal = radius <= call.epsilon
        return loss, gradient, (tf.where(legal, loss, -np.inf), fooled & legal)

    def start(self, call):
        rule, radius = self.rule, self.rule.radius(call, 0)
        x = rule.origin(call, self.threat, radius)
        loss, gradient, (value, fooled) = self._judged(call, x, radius)
        state = {
            **{"x": x, "now": loss, "gradient": gradient},
            **{"top": x, "top_loss": loss, "top_gradient": gradient},
            **{"best": x, "loss": value, "fooled": fooled},
            "eta": tf.fill(tf.shape(loss), rule.first_step * radius),
        }
        return {**state, **rule.fresh(call, state)}

    def step(self, call, i, state):
        rule, radius = self.rule, self.rule.radius(call, i)
        old = rule.renewed(call, self.threat, i, state)
        x = rule.move(call, self.threat, i, old, radius)
        loss, gradient, judged = self._judged(call, x, radius)
        top = loss > old["top_loss"]
        new = {
            **better(old, x, *judged, call.eager_stop),
            "now": loss,
            "top": tf.where(per_row(top, x), x, old["top"]),
            "top_loss": tf.where(top, loss, old["top_loss"]),
            "top_gradient": tf.where(per_row(top, x), gradient, old["top_gradient"]),
        }
        changed, back = rule.adapt(call, i, old, new)
        return {
            **new,
            **changed,
            "x": tf.where(per_row(back, x), new["top"], x),
            "now": tf.where(back, new["top_loss"], loss),
            "gradient": tf.where(per_row(back, x), new["top_gradient"], gradient),
        }

    def get_config(self):
        return {**super().get_config(), "steps": self.steps, "large_radius": self.large_radius}
