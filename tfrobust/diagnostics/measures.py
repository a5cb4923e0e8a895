"""r_inf and r_2: the robustness of a model as one mean over the whole test set (Guo et al., 2018).

    tr.diagnostics.r_inf(net, x, y, tr.attacks.FGSM(tr.threats.Linf(0.1)))
    tr.diagnostics.r_2(net, x, y, tr.attacks.DeepFool(tr.threats.L2(1.0)))

Both are means of one number per image, so they come with a standard error, and two models can be
compared image by image (`Measure.values`). They describe; a verdict is `tr.evaluate.robustness`.
"""

import dataclasses
import math
import warnings

import numpy as np

from tfrobust.attacks import MinimumNorm, correct
from tfrobust.diagnostics import checks


@dataclasses.dataclass(frozen=True, repr=False)
class Measure:
    """A mean over n images, and what stands behind it.

    Attributes:
        name: "r_inf" or "r_2".
        attack: What attacked, as text.
        values: float64 `(n,)`, the number of each image; the measure is its mean.
        right: Images that are right without attack.
        repaired: r_inf only: images that are wrong as they are and right after the attack.
        unfooled: r_2 only: images that are right and that the attack could not fool at any
            distance. They contribute 0, like wrong ones: the figure is never too good.
        highest: r_2 only: the mean if each unfooled image had its largest change inside the box;
            None where there is no box.
    """

    name: str
    attack: str
    values: np.ndarray
    right: int
    repaired: int = 0
    unfooled: int = 0
    highest: float | None = None

    @property
    def n(self):
        return len(self.values)

    @property
    def value(self):
        """The mean over all n images."""
        return float(self.values.mean())

    @property
    def error(self):
        """Standard error of the mean, s / sqrt(n) with s over n - 1; NaN for one image."""
        return float(self.values.std(ddof=1) / math.sqrt(self.n)) if self.n > 1 else math.nan

    def to_dict(self):
        """Plain numbers and strings, without the single images."""
        told = {name: getattr(self, name) for name in ("name", "attack", "value", "error", "n")}
        told["right"] = self.right
        if self.name == "r_2":
            return {**told, "unfooled": self.unfooled, "highest": self.highest}
        return {**told, "repaired": self.repaired}

    def __repr__(self):
        told = self.to_dict()
        first = [f"{name}={told.pop(name)!r}" for name in ("value", "error", "n")]
        return f"Measure({', '.join([*first, *(f'{k}={v!r}' for k, v in told.items())])})"

    def __str__(self):
        notes = [self.attack, f"n = {self.n:,}", f"{self.right:,} right without attack"]
        if self.unfooled:
            most = "" if self.highest is None else f": at most {self.highest:.4f}"
            notes.append(f"{self.unfooled:,} not fooled, counted 0{most}")
        if self.repaired:
            notes.append(f"{self.repaired:,} right after the attack only")
        return f"{self.name} {self.value:.4f} +- {self.error:.4f} ({', '.join(notes)})"


def r_inf(model, x, y, attack):
    """Accuracy on adversarial images: mean of 1{the answer to x' is y} over the whole set.

    The answer is the first of the largest logits, as in accuracy.

    An image that is wrong as it is counts as right where the attack happens to repair it, as the
    formula says (`Measure.repaired` tells how many): with that it may lie above "right before and
    after", which is what `tr.evaluate` counts.

    Args:
        model: Keras classifier or callable images -> logits.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`.
        attack: `tr.attacks.Attack` with a radius; Guo et al. take FGSM and RFGSM in Linf.

    Returns:
        `Measure`.

    Raises:
        TypeError: no attack, or one for the smallest change, which has no radius of its own.
        ValueError: images or labels that do not fit the model, logits that are NaN.

    Reference: Guo et al., Sparse DNNs with improved adversarial robustness (2018),
    https://arxiv.org/abs/1810.09619, eq. 1 and 5.

    Example: two images at 0.6 and 0.9, boundary at 0.5: epsilon 0.2 takes the first one.

    >>> import keras
    >>> from tfrobust import attacks, threats
    >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> net.set_weights([np.array([[1.0]]), np.array([-0.5])])
    >>> x = np.array([[0.6], [0.9]], "float32")
    >>> print(r_inf(net, x, np.array([1, 1]), attacks.FGSM(threats.Linf(0.2))))
    r_inf 0.5000 +- 0.5000 (FGSM(Linf(epsilon=0.2)), n = 2, 2 right without attack)
    """
    if isinstance(checks.attack(attack), MinimumNorm):
        raise TypeError(
            f"`attack` must have a radius, such as tr.attacks.FGSM. Received: {attack!r}, which "
            "looks for the smallest change: that is tr.diagnostics.r_2"
        )
    x, y, *_ = attack.checked(model, x, y)
    right = correct(model, x, y)
    after = correct(model, attack.result(model, x, y).x_adv, y, attack.eot)
    return Measure(
        *("r_inf", repr(attack), after.astype(np.float64), int(right.sum())),
        repaired=int((after & ~right).sum()),
    )


def r_2(model, x, y, attack):
    """Mean of 1{the answer to x is y} * ||x' - x||_2 over the whole set.

    x' is the nearest fooling point that the attack finds inside the pixel box, so the figure is an
    upper bound of the true mean margin. Wrong images contribute 0 and stay in the denominator. So
    do images that no attack of the list could fool at any distance, which a warning names
    (`Measure.unfooled`): nobody knows their distance, and the farthest corner of the box would
    outweigh all others. `Measure.highest` is the mean with that corner instead.

    Args:
        model: Keras classifier or callable images -> logits.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`.
        attack: `tr.attacks.DeepFool`, `CarliniWagner` or another attack for the smallest change
            with an L2 threat, whose epsilon does not matter; or a list of them, of which the
            nearest point counts.

    Returns:
        `Measure`.

    Raises:
        TypeError: an attack with a fixed radius.
        ValueError: another norm than L2.

    Reference: see `r_inf`.

    Example:

    >>> import keras
    >>> from tfrobust import attacks, threats
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> net.set_weights([np.array([[3.0], [-4.0]])])         # |3 a - 4 b| / 5
    >>> x = np.array([[0.5, 0.25], [0.5, 0.5]], "float32")     # 0.1 away, and wrong
    >>> found = r_2(net, x, np.array([1, 1]), attacks.DeepFool(threats.L2(1.0), overshoot=0.0))
    >>> round(found.value, 3), found.n, found.right
    (0.05, 2, 1)
    """
    attacks = list(attack) if isinstance(attack, list | tuple) else [attack]
    for one in attacks:
        if not isinstance(checks.attack(one), MinimumNorm):
            raise TypeError(
                "`attack` must look for the smallest change, such as tr.attacks.DeepFool. "
                f"Received: {one!r}"
            )
        if one.threat.norm != "l2":
            raise ValueError(f"`attack` must have a tr.threats.L2 threat. Received: {one!r}")
    if not attacks:
        raise ValueError("`attack` must be an attack or a list of them. Received: an empty list")
    x, y, *_ = attacks[0].checked(model, x, y)
    right = correct(model, x, y)
    found = [one.minimum(model, x, y).distance for one in attacks]
    distance = np.where(right, np.min(found, axis=0), 0.0).astype(np.float64)
    lost = np.isinf(distance)
    if lost.any():
        warnings.warn(
            f"`attack` could not fool {lost.sum()} of {right.sum()} right images at any distance: "
            "they count 0 in r_2. Give it more steps or a second attack, `attack=[first, second]`.",
            stacklevel=2,
        )
    corner = np.sqrt((np.maximum(x, 1.0 - x).reshape(len(x), -1) ** 2).sum(-1, dtype=np.float64))
    return Measure(
        *("r_2", " and ".join(map(repr, attacks)), np.where(lost, 0.0, distance)),
        right=int(right.sum()),
        unfooled=int(lost.sum()),
        highest=float(np.where(lost, corner, distance).mean()),
    )
