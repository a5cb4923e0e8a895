"""A Lipschitz constant from weights alone: the product of the layers' norms."""

import keras
import numpy as np

ORDER = {"l2": 2, "linf": 1, "l1": np.inf}
PASSING = (keras.layers.InputLayer, keras.layers.Flatten, keras.layers.Reshape, keras.layers.ReLU)


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
        ValueError: the model is not of that form, or another norm.

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
    if norm not in ORDER or (frobenius and norm != "l2"):
        raise ValueError(
            f"`norm` must be one of {sorted(ORDER)}, and 'l2' with frobenius=True. "
            f"Received: norm={norm!r}, frobenius={frobenius}"
        )
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    for layer in model.layers:
        relu = getattr(layer, "activation", None) is keras.activations.relu
        linear = getattr(layer, "activation", None) is keras.activations.linear
        if isinstance(layer, keras.layers.Dense):
            fits = linear if layer is dense[-1] else relu or linear
        else:
            fits = isinstance(layer, PASSING) or relu
        if not fits:
            raise ValueError(
                "`model` must be Dense layers with ReLU between them and logits at the end. "
                f"Received: {type(layer).__name__} '{layer.name}'"
            )
    if not dense or model.layers[-1] is not dense[-1]:
        raise ValueError(f"`model` must end in a Dense layer. Received: model '{model.name}'")
    *before, last = [np.asarray(layer.kernel, np.float64) for layer in dense]
    product = np.prod([np.linalg.norm(w, "fro" if frobenius else ORDER[norm]) for w in before])
    last = np.pad(last, ((0, 0), (1, 0))) if last.shape[1] == 1 else last
    ways = last.T[:, None] - last.T[None]
    return float(product) * np.linalg.norm(ways, ORDER[norm], axis=-1)
