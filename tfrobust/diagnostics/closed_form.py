"""Linear classifiers, whose nearest adversarial images are formulas: oracles for every attack.

    exact = tr.diagnostics.ClosedForm(net)          # Flatten -> Dense, or Dense alone
    exact.r_2(x, y), exact.r_inf(x, y, 0.1), exact.bounds(x, y, 0.1)

There is no pixel box here: with one, no distance is smaller and no accuracy under attack lower.
"""

import functools
import warnings

import keras
import numpy as np

from tfrobust import contract
from tfrobust.diagnostics import checks
from tfrobust.diagnostics.measures import Measure

DUAL = {"l2": 2, "linf": 1, "l1": np.inf}


class ClosedForm:
    """A linear classifier z = W^T x + b in float64, and its adversaries.

    With v = w_y - w_k and f = z_y - z_k, the boundary to class k is |f| / ||v||_q away in the norm
    p with 1/p + 1/q = 1; the nearest of them is DeepFool's answer after one step, x - f v / ||v||^2
    in L2. FGS goes to x + epsilon sgn(sum_k (p_k - 1{k = y}) w_k). Pruned inputs have w = 0 and
    sgn(0) = 0: they are not touched. A single logit z counts as the pair (0, z), so that w is v.

    Args:
        model: Keras classifier of one Dense layer without activation, behind nothing but Flatten
            and Reshape.

    Attributes:
        weights: `(inputs, classes)`.
        bias: `(classes,)`.

    Raises:
        TypeError: no functional or Sequential model.
        ValueError: the model is not of that form, or its weights are not finite.

    Reference: Guo et al., Sparse DNNs with improved adversarial robustness (2018), section 3.1,
    https://arxiv.org/abs/1810.09619. They absorb b in w; here norms leave it out, for no attack
    can move the constant that b belongs to.

    Example:

    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> net.set_weights([np.array([[3.0], [-4.0]])])
    >>> exact = ClosedForm(net)
    >>> x, y = np.array([[0.5, 0.25]]), np.array([1])                 # 3 a - 4 b = 0.5
    >>> [round(float(exact.distance(x, y, norm)[0]), 4) for norm in ("linf", "l2", "l1")]
    [0.0714, 0.1, 0.125]
    >>> exact.deepfool(x, y).round(2).tolist(), exact.fgs(x, y, 0.1).round(2).tolist()
    ([[0.44, 0.33]], [[0.4, 0.35]])
    """

    def __init__(self, model):
        *before, last = checks.chain(model)
        if type(last) is not keras.layers.Dense or not all(map(_passes, before)):
            raise ValueError(
                "`model` must be linear: one Dense layer behind nothing but Flatten. "
                f"Received: layers {[type(layer).__name__ for layer in (*before, last)]}"
            )
        if last.activation is not keras.activations.linear:
            raise ValueError(
                "`model` must be linear: its Dense layer must have no activation. "
                f"Received: {last.activation}"
            )
        self._fits = functools.partial(contract.fits, model)
        weights = np.asarray(last.kernel, np.float64)
        bias = np.asarray(last.bias, np.float64) if last.use_bias else np.zeros(weights.shape[1])
        if weights.shape[1] == 1:
            weights, bias = np.pad(weights, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        self.weights, self.bias = weights, bias

    def logits(self, x):
        """float64 `(n, classes)`; `x` may lie outside of [0, 1] here."""
        return np.asarray(x, np.float64).reshape(len(x), -1) @ self.weights + self.bias

    def right(self, x, y):
        """Bool `(n,)`: the first of the largest logits is that of y; `x` as in `logits`."""
        y = contract.labels(y, self.weights.shape[1], count=len(x))
        return self.logits(x).argmax(-1) == y

    def fgs(self, x, y, epsilon):
        """The fast gradient sign images, float64 of the shape of `x`, not clipped."""
        x, y = self._checked(x, y)
        epsilon = checks.number("epsilon", epsilon)
        logits = self.logits(x)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p[np.arange(len(y)), y] = 0.0  # p_y - 1 is minus the sum of the others: no rounding
        total = p.sum(-1)
        p[np.arange(len(y)), y] = -total
        return x + epsilon * np.sign(p @ self.weights.T).reshape(x.shape)

    def deepfool(self, x, y):
        """The nearest L2 points on a boundary of class y, float64.

        Wrong images stay, and those that no change of any size takes to another class.
        """
        x, y = self._checked(x, y)
        gaps, ways = self._gaps(x, y), self._ways(y)
        length = np.linalg.norm(ways, axis=-1)
        far = self._far(gaps, length)
        rows = np.flatnonzero(self.right(x, y) & np.isfinite(far.min(-1)))
        best = rows, far[rows].argmin(-1)
        move = np.zeros((len(x), len(self.weights)))
        move[rows] = (gaps[best] / length[best] ** 2)[:, None] * ways[best]
        return x - move.reshape(x.shape)

    def distance(self, x, y, norm="l2"):
        """Smallest change that reaches another class, `(n,)`; 0 where the image is wrong.

        Infinite where all classes have the same weights.

        Args:
            x, y: Images `(n, ...)` and integer labels `(n,)`.
            norm: "l2", "linf" or "l1".
        """
        x, y = self._checked(x, y)
        length = np.linalg.norm(self._ways(y), ord=DUAL[checks.norm(norm)], axis=-1)
        return np.where(self.right(x, y), self._far(self._gaps(x, y), length).min(-1), 0.0)

    def r_inf(self, x, y, epsilon):
        """`Measure` of the accuracy on `fgs(x, y, epsilon)`, as `tr.diagnostics.r_inf` has it."""
        before, after = self.right(x, y), self.right(self.fgs(x, y, epsilon), y)
        return Measure(
            *("r_inf", f"FGS in closed form, epsilon {epsilon:g}", after.astype(np.float64)),
            right=int(before.sum()),
            repaired=int((after & ~before).sum()),
        )

    def r_2(self, x, y):
        """`Measure` of the mean margin, as `tr.diagnostics.r_2` has it.

        Images whose distance is infinite count 0, which a warning tells; `highest` is None then.
        """
        far, right = self.distance(x, y), int(self.right(x, y).sum())
        lost = np.isinf(far)
        if lost.any():
            warnings.warn(
                f"No change of any size takes {lost.sum()} of {right} right images to another "
                "class: they count 0 in r_2. All classes of this model have the same weights.",
                stacklevel=2,
            )
        return Measure(
            *("r_2", "DeepFool in closed form", np.where(lost, 0.0, far), right),
            unfooled=int(lost.sum()),
            highest=None if lost.any() else float(far.mean()),
        )

    def bounds(self, x, y, epsilon):
        """What Theorems 3.1 and 3.2 say of this sample: (bound of r_2, bound of r_inf).

        With v_k = w_k - mean of w, q_k the share of all images that are of class k and right, and
        m_k the mean of v_k.x (and of its bias) over them,

            r_2 <= sum_k q_k m_k / ||v_k||_2      r_inf <= sum_k q_k m_k / (epsilon ||v_k||_1).

        No assumption on the classes is needed in this form; with equal classes and accuracy t it
        is the printed one, q_k = t / c. For two classes the first holds with equality (Theorem
        3.1). The second holds for the step -epsilon sgn(v_y); for FGS if FGS is at least as
        successful as that step in every class, and repairs no error. Infinite where a class with
        v_k = 0 has right images, and the second for epsilon = 0.
        """
        x, y = self._checked(x, y)
        epsilon = checks.number("epsilon", epsilon)
        v = self.weights - self.weights.mean(-1, keepdims=True)
        scores = self.logits(x)
        own, right = scores[np.arange(len(y)), y] - scores.mean(-1), self.right(x, y)
        length = [
            scale * np.linalg.norm(v, ord=q, axis=0)[y] for q, scale in ((2, 1), (1, epsilon))
        ]
        return tuple(float(np.where(right, self._far(own, far), 0.0).mean()) for far in length)

    # --- parts --------------------------------------------------------------------------------

    def _checked(self, x, y):
        self._fits(contract.images(x))
        return np.asarray(x, np.float64), contract.labels(y, self.weights.shape[1], count=len(x))

    def _gaps(self, x, y):
        """z_y - z_k `(n, classes)`, infinite for k = y."""
        logits = self.logits(x)
        gaps = logits[np.arange(len(y)), y][:, None] - logits
        gaps[np.arange(len(y)), y] = np.inf
        return gaps

    def _ways(self, y):
        """w_y - w_k `(n, classes, inputs)`."""
        columns = self.weights.T
        return (columns[:, None] - columns[None])[y]

    def _far(self, gaps, length):
        """gap / length, infinite where the length is 0: two classes have the same weights."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(length > 0, gaps / length, np.inf)


def _passes(layer):
    """Whether a layer only renames the places of numbers, in the order of the image."""
    kept = getattr(layer, "data_format", "channels_last") == "channels_last"
    return type(layer) in (keras.layers.Flatten, keras.layers.Reshape) and kept
