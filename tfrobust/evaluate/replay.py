"""Accuracy on images that were crafted against another model."""

import numpy as np

from tfrobust import contract, losses
from tfrobust.evaluate.scores import Rate, Transfer


def transfer(predict, x_adv, y, x=None, name="exported file", attack="", source="Keras twin"):
    """Accuracy of a predictor on adversarial images that were crafted against its twin.

    For what cannot be differentiated, such as a TFLite file: attack the Keras model, replay here.
    The verdict is the predictor's own argmax. It says nothing about an attacker who adapts.

    Args:
        predict: Callable, images `(n, ...)` -> logits `(n, classes)`.
        x_adv: Adversarial images.
        y: Integer labels `(n,)`.
        x: The clean images; with them an image counts as robust if it is right before and after.
        name, attack, source: What is tested, what crafted the images, against what.

    Returns:
        `Transfer`.

    >>> import numpy as np
    >>> y, x_adv = [0, 1, 1], np.array([[0.1], [0.2], [0.9]], "float32")
    >>> print(transfer(lambda x: np.concatenate([1 - x, x], 1), x_adv, y, attack="PGD-40"))
    exported file: transfer of PGD-40 crafted on Keras twin 66.67 % (20.8 to 93.9)
    """
    x_adv = contract.images(x_adv, "x_adv")
    y = contract.labels(y, count=len(x_adv))

    def right(images):
        logits = np.asarray(predict(images), np.float32)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"`predict` must return logits of shape ({len(images)}, classes). "
                f"Received: shape={logits.shape}"
            )
        if not np.isfinite(logits).all():
            raise ValueError("`predict` must return finite logits. Received: NaN or infinity")
        logits = losses.as_logits(logits).numpy()
        return logits.argmax(-1) == contract.labels(y, logits.shape[-1])

    robust, clean = right(x_adv), None
    if x is not None:
        x = contract.images(x)
        if x.shape != x_adv.shape:
            raise ValueError(
                f"`x` must have the shape of `x_adv`, {x_adv.shape}. Received: shape={x.shape}"
            )
        before = right(x)
        robust, clean = robust & before, Rate(int(before.sum()), len(y))
    return Transfer(name, attack, source, clean, Rate(int(robust.sum()), len(y)))
