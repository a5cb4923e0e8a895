"""A Lipschitz constant from weights alone: the product of the layers' norms."""

import keras
import numpy as np

from tfrobust.diagnostics import checks

ORDER = {"l2": 2, "linf": 1, "l1": np.inf}


def lipschitz_product(model, norm="l2", frobenius=False):
    """Upper bounds of the Lipschitz constants of all differences of logits of a ReLU net.

    L_{i,k} = ||w_i - w_k||_q prod_j ||W_j||, where w_i are columns of the last layer, W_j (inputs x
    outputs) the layers before it and 1/p + 1/q = 1: the spectral norm for p = 2, the largest l1
    norm of a column for p = inf, of a row for p = 1. At a point with ||.||_p closer than
    (z_i - z_k) / L_{i,k} class k cannot overtake class i. Mostly far too small to be of use, but
    it falls as weights are pruned: with `frobenius` and for p = inf under every mask, which is
    what Theorem 3.3 of Guo et al. builds on.

    Args:
        model: Keras classifier of Dense layers with ReLU (as activation or layer) between them.
        norm: "l2", "linf" or "l1", the norm p of a change of the image.
        frobenius: The looser product of Frobenius norms, for "l2" only.

    Returns:
        `(classes, classes)` float64, zeros on the diagonal. A single logit counts as the pair
        (0, z).

    Raises:
        TypeError: no functional or Sequential model, a norm that is no string.
        ValueError: the model is not of that form (one chain, every layer once, slopes of at most
            1, finite weights), or another norm.

    Reference: Guo et al., Sparse DNNs with improved adversarial robustness (2018), Lemma 3.1,
    https://arxiv.org/abs/1810.09619.

    Example:

    >>> net = keras.Sequential([
    ...     keras.Input((2,)),
    ...     keras.layers.Dense(2, activation="relu", use_bias=False),
    ...     keras.layers.Dense(1, use_bias=False),
    ... ])
    >>> net.set_weights([np.diag([2.0, 1.0]), np.array([[3.0], [4.0]])])
    >>> lipschitz_product(net).tolist(), lipschitz_product(net, "linf").tolist()
    ([[0.0, 10.0], [10.0, 0.0]], [[0.0, 14.0], [14.0, 0.0]])
    """
    if checks.norm(norm) != "l2" and frobenius:
        raise ValueError(f"`norm` must be 'l2' with frobenius=True. Received: norm={norm!r}")
    layers = checks.chain(model)
    for layer in layers:
        if not _fits(layer) or (layer is layers[-1] and type(layer) is not keras.layers.Dense):
            raise ValueError(
                "`model` must be Dense layers with ReLU (slopes within [0, 1], through 0) between "
                f"them and logits at the end. Received: {type(layer).__name__} '{layer.name}'"
            )
    dense = [layer for layer in layers if type(layer) is keras.layers.Dense]
    if dense[-1].activation is not keras.activations.linear:
        raise ValueError(
            "`model` must return logits, without activation. "
            f"Received: Dense '{dense[-1].name}' with {dense[-1].activation}"
        )
    *before, last = [np.asarray(layer.kernel, np.float64) for layer in dense]
    product = np.prod([np.linalg.norm(w, "fro" if frobenius else ORDER[norm]) for w in before])
    last = np.pad(last, ((0, 0), (1, 0))) if last.shape[1] == 1 else last
    ways = last.T[:, None] - last.T[None]
    return float(product) * np.linalg.norm(ways, ORDER[norm], axis=-1)


def _fits(layer):
    """Whether a layer is one of those above; what subclasses do, nobody knows."""
    kind = type(layer)
    if kind is keras.layers.ReLU:
        return layer.threshold == 0 and abs(layer.negative_slope) <= 1
    if kind in (keras.layers.Dense, keras.layers.Activation):
        return layer.activation in (keras.activations.relu, keras.activations.linear)
    return kind in (keras.layers.Flatten, keras.layers.Reshape)
