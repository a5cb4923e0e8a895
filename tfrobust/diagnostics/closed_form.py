"""Linear classifiers, whose nearest adversarial images are formulas: oracles for every attack.

    exact = tr.diagnostics.ClosedForm(net)          # Flatten -> Dense, or Dense alone
    exact.r_2(x, y), exact.r_inf(x, y, 0.1), exact.bounds(x, y, 0.1)

There is no pixel box here: with one, no distance is smaller and no accuracy under attack lower.
"""

import keras
import numpy as np

from tfrobust import contract
from tfrobust.diagnostics.measures import Measure

PASSING = (keras.layers.InputLayer, keras.layers.Flatten, keras.layers.Reshape)
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
        ValueError: the model is not of that form.

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
        last = model.layers[-1] if isinstance(model, keras.Model) and model.layers else None
        dense = isinstance(last, keras.layers.Dense)
        if not dense or not all(isinstance(layer, PASSING) for layer in model.layers[:-1]):
            kinds = [type(layer).__name__ for layer in getattr(model, "layers", ())]
            raise ValueError(
                "`model` must be linear: one Dense layer behind nothing but Flatten. "
                f"Received: layers {kinds or type(model).__name__}"
            )
        if last.activation is not keras.activations.linear:
            raise ValueError(
                "`model` must be linear: its Dense layer must have no activation. "
                f"Received: {last.activation.__name__}"
            )
        weights = np.asarray(last.kernel, np.float64)
        bias = np.asarray(last.bias, np.float64) if last.use_bias else np.zeros(weights.shape[1])
        if weights.shape[1] == 1:
            weights, bias = np.pad(weights, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        self.weights, self.bias = weights, bias

    def logits(self, x):
        """float64 `(n, classes)`; `x` may lie outside of [0, 1] here."""
        return np.asarray(x, np.float64).reshape(len(x), -1) @ self.weights + self.bias

    def right(self, x, y):
        """Bool `(n,)`: no wrong logit lies above the true one."""
        return self._gaps(x, y).min(-1) >= 0

    def fgs(self, x, y, epsilon):
        """The fast gradient sign images, float64 of the shape of `x`, not clipped."""
        x, y = self._checked(x, y)
        logits = self.logits(x)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p[np.arange(len(y)), y] = 0.0  # p_y - 1 is minus the sum of the others: no rounding
        total = p.sum(-1)
        p[np.arange(len(y)), y] = -total
        return x + epsilon * np.sign(p @ self.weights.T).reshape(x.shape)

    def deepfool(self, x, y):
        """The nearest L2 points on a boundary of class y, float64; wrong images stay."""
        x, y = self._checked(x, y)
        gaps, ways = self._gaps(x, y), self._ways(y)
        length = np.linalg.norm(ways, axis=-1)
        nearest = self._far(gaps, length).argmin(-1)
        rows = np.arange(len(x))
        move = (gaps[rows, nearest] / length[rows, nearest] ** 2)[:, None] * ways[rows, nearest]
        move[~self.right(x, y)] = 0.0
        return x - move.reshape(x.shape)

    def distance(self, x, y, norm="l2"):
        """Smallest change that reaches another class, `(n,)`; 0 where the image is wrong.

        Args:
            x, y: Images `(n, ...)` and integer labels `(n,)`.
            norm: "l2", "linf" or "l1".
        """
        if norm not in DUAL:
            raise ValueError(f"`norm` must be one of {sorted(DUAL)}. Received: norm={norm!r}")
        x, y = self._checked(x, y)
        length = np.linalg.norm(self._ways(y), ord=DUAL[norm], axis=-1)
        return np.maximum(self._far(self._gaps(x, y), length).min(-1), 0.0)

    def r_inf(self, x, y, epsilon):
        """`Measure` of the accuracy on `fgs(x, y, epsilon)`, as `tr.diagnostics.r_inf` has it."""
        before, after = self.right(x, y), self.right(self.fgs(x, y, epsilon), y)
        return Measure(
            *("r_inf", f"FGS in closed form, epsilon {epsilon:g}", after.astype(np.float64)),
            right=int(before.sum()),
            repaired=int((after & ~before).sum()),
        )

    def r_2(self, x, y):
        """`Measure` of the mean margin, as `tr.diagnostics.r_2` has it."""
        far = self.distance(x, y)
        right = int(self.right(x, y).sum())
        return Measure("r_2", "DeepFool in closed form", far, right, highest=float(far.mean()))

    def bounds(self, x, y, epsilon):
        """What Theorems 3.1 and 3.2 say of this sample: (bound of r_2, bound of r_inf).

        With v_k = w_k - mean of w, q_k the share of all images that are of class k and right, and
        m_k the mean of v_k.x (and of its bias) over them,

            r_2 <= sum_k q_k m_k / ||v_k||_2      r_inf <= sum_k q_k m_k / (epsilon ||v_k||_1).

        No assumption on the classes is needed in this form; with equal classes and accuracy t it
        is the printed one, q_k = t / c. For two classes the first holds with equality (Theorem
        3.1). The second holds for the step -epsilon sgn(v_y); for FGS if FGS is at least as
        successful as that step in every class, and repairs no error.
        """
        x, y = self._checked(x, y)
        v = self.weights - self.weights.mean(-1, keepdims=True)
        scores = self.logits(x)
        own = scores[np.arange(len(y)), y] - scores.mean(-1)
        own = np.where(self.right(x, y), own, 0.0)
        length = [np.linalg.norm(v, ord=q, axis=0)[y] for q in (2, 1)]
        return float(np.mean(own / length[0])), float(np.mean(own / (epsilon * length[1])))

    # --- parts --------------------------------------------------------------------------------

    def _checked(self, x, y):
        y = contract.labels(y, self.weights.shape[1], count=len(x))
        x = np.asarray(x, np.float64)
        if x[0].size != len(self.weights):
            raise ValueError(
                f"`x` must have {len(self.weights)} numbers per image. Received: shape={x.shape}"
            )
        return x, y

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
        """gap / length, infinite where two classes have the same weights."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(length > 0, gaps / length, np.inf)
