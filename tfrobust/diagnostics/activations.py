"""How many hidden units are silent: the activation sparsity of Guo et al. (2018)."""

import keras
import numpy as np

from tfrobust import attacks, contract
from tfrobust.diagnostics import checks


def activation_sparsity(model, x):
    """Mean share of exact zeros in the vector that feeds the last Dense layer, over the images.

    "Sparsity (a)" of Guo et al. (2018), Table 1: behind a ReLU, the units that are off.

    Args:
        model: Functional classifier that ends in a Dense layer.
        x: Images `(n, ...)` in [0, 1].

    Returns:
        Float in [0, 1].

    Raises:
        ValueError: the model does not end in a Dense layer, or is not finite.

    Example:

    >>> from tfrobust import models
    >>> x = np.random.default_rng(0).uniform(0, 1, (8, 28, 28, 1))
    >>> 0 < activation_sparsity(models.lenet5_caffe(), x) < 1
    True
    """
    checks.classifier(model)
    x = contract.images(x)
    contract.fits(model, x)
    last = model.outputs[0]._keras_history.operation
    if not isinstance(last, keras.layers.Dense):
        raise ValueError(
            f"`model` must end in a Dense layer. Received: {type(last).__name__} '{last.name}'"
        )
    hidden = keras.Model(model.inputs[0], last.input)
    units = checks.finite(attacks.forward(hidden, x), "hidden units")
    return float(np.mean(units == 0))
