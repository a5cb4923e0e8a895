"""Gradients of class probabilities by the image, and images that a class likes best."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfrobust import contract
from tfrobust.attacks.call import logits_of
from tfrobust.diagnostics import checks

CHUNK = 256
FLOOR = 1e-30


@dataclasses.dataclass(frozen=True)
class ClassGradients:
    """How strongly each probability depends on the image, by true class.

    Attributes:
        matrix: float64 `(classes, classes)`: row t, column k is log(mean over images of class t of
            ||d p_k / d x||_2), natural logarithm; -inf never, log(1e-30) at the least; NaN for a
            class without images.
        counts: int64 `(classes,)`, images of each class.
    """

    matrix: np.ndarray
    counts: np.ndarray

    def to_dict(self):
        """Plain lists."""
        return {"matrix": self.matrix.tolist(), "counts": self.counts.tolist()}


def class_gradients(model, x, y):
    """The paper's "gradient landscape": a small value is a flat probability, or a masked gradient.

    The norm is L2, our choice: the paper does not name one. Probabilities sum to one, so the
    gradients of an image sum to zero over the classes.

    Args:
        model: Functional classifier; a single logit counts as two classes.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`.

    Returns:
        `ClassGradients`.

    Reference: Bashivan et al. (2021), https://arxiv.org/abs/2006.04621.

    Example:

    >>> from tfrobust import models
    >>> x, y = np.random.default_rng(0).uniform(0, 1, (6, 8, 8, 1)), np.array([0, 1, 2, 0, 1, 2])
    >>> class_gradients(models.digits_net(classes=3), x, y).matrix.shape
    (3, 3)
    """
    checks.classifier(model)
    x = contract.images(x)
    contract.fits(model, x)
    classes = contract.classes_of(model)
    y = contract.labels(y, classes, count=len(x))
    sums = np.zeros((classes, classes), np.float64)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        lengths = np.stack([
            np.linalg.norm(g.reshape(len(g), -1).astype(np.float64), axis=1)
            for g in probability_gradients(model, x[rows])
        ], 1)  # fmt: skip
        np.add.at(sums, y[rows], checks.finite(lengths, "gradients"))
    counts = np.bincount(y, minlength=classes)
    with np.errstate(invalid="ignore"):
        means = sums / counts[:, None]
    return ClassGradients(np.log(np.maximum(means, FLOOR)), counts)


def probability_gradients(model, x):
    """d p_k / d x of every image, one array of x's shape for each class k."""
    x = tf.constant(x, tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        probabilities = tf.unstack(tf.nn.softmax(logits_of(model, x)), axis=-1)
    found = [tape.gradient(p, x, unconnected_gradients="zero").numpy() for p in probabilities]
    del tape
    return found


@dataclasses.dataclass(frozen=True)
class Visualised:
    """Images that were changed until a class liked them.

    Attributes:
        images: float32 like x, the last images.
        gradient: float32 like x, d logit / d x at the start.
        logits: float64 `(steps + 1, n)`, the class's logit before each step and at the end.
        x, y: The images it began with, and the classes.
    """

    images: np.ndarray
    gradient: np.ndarray
    logits: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def first(self, count):
        """Of the first `count` images alone."""
        parts = (getattr(self, name)[:count] for name in ("images", "gradient"))
        return Visualised(*parts, self.logits[:, :count], self.x[:count], self.y[:count])

    def to_dict(self):
        """Plain lists."""
        return {f.name: getattr(self, f.name).tolist() for f in dataclasses.fields(self)}


def visualise_class(model, x, y, steps=100, step_size=0.1):
    """Ascends the logit of a class from given images, along the gradient of L2 length 1.

    x <- clip(x + step_size * g / ||g||_2, 0, 1). Images of a robust net are said to turn into what
    people take for the class (Figure A7 of the paper).

    Args:
        model: Functional classifier.
        x: Images `(n, ...)` in [0, 1].
        y: Integers `(n,)`, the class that each image is to be drawn to.
        steps: Integer >= 1.
        step_size: Float > 0, pixel units in L2.

    Returns:
        `Visualised`.

    Example:

    >>> from tfrobust import models
    >>> x = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 1))
    >>> found = visualise_class(models.digits_net(), x, [3, 4], steps=3)
    >>> bool((found.logits[-1] > found.logits[0]).all())
    True
    """
    checks.classifier(model)
    x = contract.images(x)
    contract.fits(model, x)
    y = contract.labels(y, contract.classes_of(model), count=len(x))
    steps = contract.whole("steps", steps, 1)
    if not checks.number("step_size", step_size) > 0:
        raise ValueError(f"`step_size` must be > 0. Received: step_size={step_size!r}")
    axes, rows, first, told = tuple(range(1, x.ndim)), [], None, tf.constant(x)
    for _ in range(steps):
        value, gradient = _wanted(model, told, y)
        rows.append(value)
        first = gradient if first is None else first
        length = tf.sqrt(tf.reduce_sum(tf.square(gradient), axes, keepdims=True))
        told = tf.clip_by_value(told + step_size * gradient / tf.maximum(length, FLOOR), 0.0, 1.0)
    rows.append(_wanted(model, told, y)[0])
    logits = np.array([np.asarray(row, np.float64) for row in rows])
    return Visualised(told.numpy(), np.asarray(first), logits, x, y)


def _wanted(model, x, y):
    """Logits of the wanted classes and their gradients."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.gather(logits_of(model, x), y, batch_dims=1)
    return value, tape.gradient(value, x, unconnected_gradients="zero")
