"""Accuracy against the radius of an attack, and the area under that curve.

    curve = tr.diagnostics.epsilon_curve(net, x, y, tr.attacks.FGSM(threat), [0, 0.1, 0.3, 0.5])
    curve.accuracy, curve.area

Areas on different grids cannot be compared, so the grid stays with the number.
"""

import dataclasses

import numpy as np

from tfrobust.attacks import MinimumNorm, correct
from tfrobust.diagnostics import checks


@dataclasses.dataclass(frozen=True)
class EpsilonCurve:
    """Robust accuracy of n images at each radius of a grid.

    Attributes:
        attack: What attacked, as text.
        epsilons: float64 `(k,)`, ascending, 0 first.
        accuracy: float64 `(k,)` in [0, 1]: right on the image and on the attacked one.
        n: Images.
        rule: "attacked at each radius", or "smallest change > epsilon".
    """

    attack: str
    epsilons: np.ndarray
    accuracy: np.ndarray
    n: int
    rule: str

    @property
    def area(self):
        """Area under the curve in [0, 1]: `area_under_curve`."""
        return area_under_curve(self.epsilons, self.accuracy)

    def to_dict(self):
        """Plain numbers and strings, the area among them."""
        arrays = {"epsilons": self.epsilons.tolist(), "accuracy": self.accuracy.tolist()}
        return {"attack": self.attack, **arrays, "n": self.n, "rule": self.rule, "area": self.area}

    def __str__(self):
        grid = ", ".join(f"{e:.4g}" for e in self.epsilons)
        return f"{self.attack}: area {self.area:.4f} over epsilon {grid} (n = {self.n:,})"


def area_under_curve(epsilons, accuracy):
    """Trapezoids under accuracy(epsilon), divided by the width of the grid: in [0, 1].

    Args:
        epsilons: `(k,)`, k >= 2, strictly ascending from 0.
        accuracy: `(k,)` in [0, 1].

    Raises:
        ValueError: a grid or accuracies outside of these.

    >>> area_under_curve([0, 0.1, 0.4], [1.0, 0.5, 0.5])
    0.5625
    """
    epsilons = grid(epsilons)
    accuracy = np.asarray(accuracy, np.float64)
    if accuracy.shape != epsilons.shape or not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise ValueError(
            f"`accuracy` must hold {len(epsilons)} values in [0, 1], one a radius. "
            f"Received: {np.array2string(accuracy, threshold=10)}"
        )
    width = np.diff(epsilons)
    return float(np.sum(width * (accuracy[1:] + accuracy[:-1])) / 2 / epsilons[-1])


def grid(epsilons):
    """Radii as float64, strictly ascending from 0."""
    given = epsilons
    epsilons = np.asarray(epsilons, np.float64)
    legal = epsilons.ndim == 1 and len(epsilons) > 1 and np.isfinite(epsilons).all()
    if not (legal and epsilons[0] == 0 and (np.diff(epsilons) > 0).all()):
        raise ValueError(
            f"`epsilons` must be radii in ascending order from 0. Received: epsilons={given!r}"
        )
    return epsilons


def epsilon_curve(model, x, y, attack, epsilons):
    """Measures accuracy at each radius of a grid.

    An attack with a radius is run at each of them (steps scale along), and each point stands for
    itself: a weak attack may find less at a larger radius. One for the smallest change is run once,
    and an image counts at epsilon where its smallest change is larger; other toolboxes clip that
    change to epsilon instead and test again, which is weaker.

    Args:
        model: Keras classifier or callable images -> logits.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`.
        attack: `tr.attacks.Attack`.
        epsilons: Radii in ascending order from 0, in the units of the attack's threat.

    Returns:
        `EpsilonCurve`.

    Raises:
        TypeError: no attack.
        ValueError: a grid, images or labels that cannot be.

    Reference: Bashivan et al., Adversarial feature desensitization (ICLR 2021 submission), Table 2;
    the area is theirs up to the grid, whose points they list in Table A2.

    Example: the boundary is 0.1 away from the first image and 0.3 from the second.

    >>> import keras
    >>> from tfrobust import attacks, threats
    >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> net.set_weights([np.array([[1.0]]), np.array([-0.5])])
    >>> x, y = np.array([[0.6], [0.8]], "float32"), np.array([1, 1])
    >>> curve = epsilon_curve(net, x, y, attacks.FGSM(threats.Linf(0.1)), [0, 0.2, 0.4])
    >>> curve.accuracy.tolist(), curve.area
    ([1.0, 0.5, 0.0], 0.5)
    """
    checks.attack(attack)
    epsilons = grid(epsilons)
    for radius in epsilons:
        type(attack.threat)(float(radius))  # refuses 8 where 8/255 is meant
    x, y, *_ = attack.checked(model, x, y)
    right = correct(model, x, y)
    if isinstance(attack, MinimumNorm):
        far = attack.minimum(model, x, y).distance
        held = [right & (far > radius) for radius in epsilons]
        rule = "smallest change > epsilon"
    else:
        held = [right]
        for radius in epsilons[1:]:
            x_adv = attack.result(model, x, y, epsilon=float(radius)).x_adv
            held.append(right & correct(model, x_adv, y, attack.eot))
        rule = "attacked at each radius"
    accuracy = np.array([one.mean() for one in held], np.float64)
    return EpsilonCurve(repr(attack), epsilons, accuracy, len(x), rule)
