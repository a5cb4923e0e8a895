"""An attack that breaks what it is told to, a net of one pixel, and short ways to the scores."""

import keras
import numpy as np

from tfrobust import evaluate, threats


class Recorder:
    """Obeys the attack contract: breaks the rows that `breaks(index, run)` names."""

    steps = 3

    def __init__(self, net, breaks, threat=None, runs=1, name="PGD-3", fail_at=None):
        self.net, self.breaks, self.runs, self.name = net, breaks, runs, name
        self.threat = threat or threats.Linf(1.0)
        self.calls, self.fail_at = [], fail_at

    def __call__(self, model, x, y, index=None, epsilon=None, run=None):
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((run, list(index), epsilon))
        rows = np.array([self.breaks(i, run) for i in index])
        return np.where(rows[:, None], 1 - x, x).astype("float32")

    def get_config(self):
        return {"runs": self.runs}


def flipper():
    """Two classes on one pixel: class 1 where x > 0.5, so that 1 - x always fools."""
    inputs = keras.Input((1,))
    net = keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs))
    net.get_layer("logits").set_weights([np.array([[-4.0, 4.0]]), np.array([2.0, -2.0])])
    x = np.linspace(0, 1, 40, dtype="float32").reshape(40, 1)
    y = (x[:, 0] > 0.5).astype(int)
    y[:5] = 1  # wrong without attack
    return net, x, y


def run(net, data, attack=(), **options):
    return evaluate.robustness(net, data, attack, progress=False, **options)


def codes(scores):
    return {flag.code for flag in scores.flags}
