"""DeepFool: straight to the nearest linearised boundary, again and again (Moosavi et al., 2016).

>>> from tfrobust import threats
>>> DeepFool(threats.Linf(0.1)).name
'DeepFool'
"""

import keras
import tensorflow as tf

from tfrobust.attacks import hyperplane
from tfrobust.attacks.attack import whole
from tfrobust.attacks.call import per_row
from tfrobust.attacks.descent import Walk, lies


@keras.saving.register_keras_serializable(package="tfrobust")
class DeepFool(Walk):
    """DeepFool (Moosavi-Dezfooli et al., 2016).

    With f_k = z_k - z_y and w_k its gradient, each step goes to the class whose plane is nearest,
    by |f_k| / ||w_k||_q + 1e-4 along w_k / ||w_k||_2 (L2, q = 2) or sign(w_k) (Linf, q = 1). The
    point is the image plus 1 + overshoot times the sum of the steps, clipped to the box. An image
    is done at its first fooling point, which need not be the nearest.

    Args:
        threat: `tr.threats.L2` or `Linf`.
        steps: Integer >= 1, at most so many.
        candidates: Integer >= 2: only the wrong classes among so many largest logits of the image
            are looked at, each for one gradient a step.
        overshoot: Float >= 0.
        **shared: see `Attack` (restarts, targets, seed, eot, on_failure).

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> found = DeepFool(threats.Linf(0.5)).minimum(net, np.array([[0.6, 0.4]]), np.array([0]))
    >>> found.distance.round(4).tolist(), found.iterations.tolist()
    ([0.10209999978542328], [2])
    """

    norms = ("l2", "linf")
    stride = 5

    def __init__(self, threat, steps=50, candidates=10, overshoot=0.02, **shared):
        super().__init__(threat, steps, **shared)
        whole("candidates", candidates, 2)
        self.candidates = int(candidates)
        self.overshoot = lies("overshoot", overshoot, "[0, inf)")

    def open(self, call, state):
        return call.active & tf.math.is_inf(state["distance"])

    def start(self, call):
        state = {**super().start(call), "total": tf.zeros_like(call.x)}
        if call.aim is not None:
            return state
        logits = call.logits(call.x)
        count = logits.shape[-1]
        wrong = logits - 1e30 * tf.one_hot(call.y, count)
        return {**state, "classes": tf.math.top_k(wrong, min(self.candidates, count) - 1).indices}

    def step(self, call, i, state):
        del i
        x, norm = state["x"], self.threat.norm
        fooled, f, w = hyperplane.nearest(call, x, norm, state.get("classes"))
        state = self.closer(call, state, x, fooled)
        length = hyperplane.DUAL[norm].distance(w, 0.0)
        size = tf.math.divide_no_nan(tf.abs(f), length) + 1e-4
        total = state["total"] + per_row(size, x) * self.threat.ascent(w, x)
        moved = tf.clip_by_value(call.x + (1.0 + self.overshoot) * total, 0.0, 1.0)
        return {**state, "total": total, "x": tf.where(per_row(fooled, x), x, moved)}

    def get_config(self):
        return {
            **super().get_config(),
            "candidates": self.candidates,
            "overshoot": self.overshoot,
        }
