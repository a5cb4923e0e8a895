"""Auto-PGD: projected gradient ascent that chooses its own step size (Croce and Hein, 2020).

>>> from tfrobust import threats
>>> APGD(threats.Linf(0.3), loss="dlr_targeted", targets=9).name
'APGD-T'
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust.attacks.attack import Attack, Best, whole
from tfrobust.attacks.gradient import rows_open, value_and_gradient


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


def _column(values, x):
    return tf.reshape(values, (-1,) + (1,) * (len(x.shape) - 1))


@keras.saving.register_keras_serializable(package="tfrobust")
class APGD(Attack):
    """Auto-PGD for Linf and L2 threats; with `loss="dlr_targeted", targets=9` it is APGD-T.

    Steps carry momentum (x + 0.75 of the new step + 0.25 of the last move), start at size
    2 * epsilon and are halved, with a return to the best point, at checkpoints where the loss
    rose in too few steps of the window (rho = 0.75) or the best loss has not moved
    (Croce and Hein, 2020, Algorithm 1). The first window is compared with the loss at the start.

    Args:
        threat: `tr.threats.Linf` or `tr.threats.L2`.
        steps: Integer >= 1.
        loss, restarts, targets, seed: see `Attack`.
    """

    rho, momentum = 0.75, 0.75

    def __init__(self, threat, steps=100, loss="ce", restarts=1, targets=0, seed=0):
        super().__init__(threat, loss=loss, restarts=restarts, targets=targets, seed=seed)
        if threat.norm not in ("linf", "l2"):
            raise ValueError(
                f"`threat` must be tr.threats.Linf or tr.threats.L2 for APGD. Received: {threat!r}"
            )
        whole("steps", steps, 1)
        self.steps = int(steps)

    @property
    def name(self):
        kinds = {"ce": "APGD-CE", "dlr": "APGD-DLR", "dlr_targeted": "APGD-T"}
        return kinds.get(self.loss, "APGD")

    def numbers(self):
        return {"windows": checkpoints(self.steps)}

    def perturb(self, call):
        score, threat, epsilon = self.score(call), self.threat, call.epsilon
        windows = call.numbers["windows"]
        start = self._start(call)
        loss, fooled, gradient = value_and_gradient(call, score, start)
        zero = loss * 0.0

        def body(i, x, last, gradient, loss, eta, rises, seen, reduced, bx, bg, bl, hx, hl, hf):
            size = _column(eta, x)
            u = threat.project(x + size * threat.ascent(gradient, x), call.x, epsilon)
            a = tf.where(i == 0, 1.0, self.momentum)
            moved = x + a * (u - x) + (1.0 - a) * (x - last)
            x, last = threat.project(moved, call.x, epsilon), x
            new_loss, fooled, gradient = value_and_gradient(call, score, x)
            hit = Best(hx, hl, hf).updated(x, new_loss, fooled, call.eager_stop)
            rises = rises + tf.cast(new_loss > loss, tf.float32)
            better = new_loss > bl
            bx = tf.where(_column(better, x), x, bx)
            bg = tf.where(_column(better, x), gradient, bg)
            bl = tf.where(better, new_loss, bl)

            window = windows[i]
            due = window > 0
            few = rises <= self.rho * tf.cast(window, tf.float32)
            stuck = ~reduced & (seen >= bl)
            halve = due & (few | stuck)
            eta = tf.where(halve, eta / 2.0, eta)
            x = tf.where(_column(halve, x), bx, x)
            gradient = tf.where(_column(halve, x), bg, gradient)
            loss = tf.where(halve, bl, new_loss)
            reduced = tf.where(due, halve, reduced)
            seen = tf.where(due, bl, seen)
            rises = tf.where(due, 0.0, rises)
            return (
                i + 1, x, last, gradient, loss, eta, rises, seen, reduced,
                bx, bg, bl, hit.x, hit.loss, hit.fooled,
            )  # fmt: skip

        state = (
            tf.constant(0), start, start, gradient, loss, zero + 2.0 * epsilon, zero, loss,
            tf.ones_like(fooled), start, gradient, loss, start, loss, fooled,
        )  # fmt: skip
        out = tf.while_loop(
            lambda i, *state: (i < tf.shape(windows)[0]) & rows_open(call, state[-1]), body, state
        )
        if not self.targets:
            return out[12]
        # A target beyond the number of wrong classes would only repeat an earlier one.
        spare = call.run % self.targets >= call.logits(call.x).shape[-1] - 1
        return tf.where(spare, call.x, out[12])

    def _start(self, call):
        """A random direction scaled to the full radius, then clipped to the box."""
        x, threat = call.x, self.threat
        inside = threat.random_start(x, call.keys, call.epsilon)
        far = tf.maximum(_column(threat.distance(inside, x), x), 1e-12)
        return threat.project(x + (inside - x) * (call.epsilon / far), x, call.epsilon)

    def get_config(self):
        return {**super().get_config(), "steps": self.steps}
