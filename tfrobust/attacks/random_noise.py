"""Search by scores alone: `Search`, the base of it, and random points at the full radius.

>>> from tfrobust import threats
>>> Noise(threats.Linf(0.1)).name
'Noise-1000'
"""

import keras
import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.attacks.attack import Attack, whole
from tfrobust.attacks.call import better


class Search(Attack):
    """Base of attacks that see scores only: they propose points and keep the best one."""

    white_box = False
    stride = 100

    def nothing(self, call):
        """The state before the first proposal, which any point improves."""
        rows = tf.zeros_like(call.y, tf.float32)
        return {"best": call.x, "loss": rows - np.inf, "fooled": rows > 0.0}

    def judged(self, call, state, x):
        """`state` with `x` as the best point of rows where it is better: one query."""
        logits = call.logits(x)
        return better(state, x, self.score(call)(logits), call.fooled(logits), call.eager_stop)


@keras.saving.register_keras_serializable(package="tfrobust")
class Noise(Search):
    """The worst of many random points x + epsilon * ascent(N(0, 1)), projected to be legal.

    They are corners of the Linf ball, points of the L2 sphere, sparse points of the L1 sphere.

    Args:
        threat: `tr.threats.Threat`.
        tries: Integer >= 1.
        loss, **shared: see `Attack`.

    Example:

    >>> import keras, numpy as np
    >>> from tfrobust import threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> net.set_weights([np.eye(2)])
    >>> attack = Noise(threats.Linf(0.25), tries=20)
    >>> attack(net, np.array([[0.6, 0.4]]), np.array([0])).round(2).tolist()
    [[0.3499999940395355, 0.6499999761581421]]
    """

    def __init__(self, threat, tries=1000, loss="margin", **shared):
        super().__init__(threat, loss=loss, **shared)
        whole("tries", tries, 1)
        self.tries = int(tries)

    @property
    def name(self):
        return f"Noise-{self.tries}"

    @property
    def iterations(self):
        return self.tries

    def start(self, call):
        return self.nothing(call)

    def step(self, call, i, state):
        way = self.threat.ascent(noise.normal(noise.fold(call.keys, i), call.x.shape[1:]), call.x)
        x = self.threat.project(call.x + call.epsilon * way, call.x, call.epsilon)
        return self.judged(call, state, x)

    def get_config(self):
        return {**super().get_config(), "tries": self.tries}
