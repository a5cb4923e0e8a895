"""Whether two objectives pull the weights the same way: signs and cosine of their gradients."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract, losses, pruning
from tfrobust.attacks import Attack
from tfrobust.diagnostics import checks

NAMES = ("ce", "dlr", "margin")  # the other losses compare with something more


@dataclasses.dataclass(frozen=True)
class Conflict:
    """Two gradients compared over a set of coordinates.

    Attributes:
        name: Name of the layer, or "total".
        opposite: Coordinates where both are nonzero and their signs differ.
        both: Coordinates where both are nonzero.
        coordinates: All that were compared.
        left_out: Exact zeros of kernels, which pruning holds: not compared.
        cosine: Of the two gradients, NaN where one of them is zero.
        rows: `Conflict` of each layer, in the total only.
    """

    name: str
    opposite: int
    both: int
    coordinates: int
    left_out: int
    cosine: float
    rows: tuple = dataclasses.field(default=(), repr=False)

    @property
    def share(self):
        """opposite / both in [0, 1], NaN without such a coordinate. Random signs give 0.5."""
        return self.opposite / self.both if self.both else math.nan

    def to_dict(self):
        """Plain numbers and strings."""
        told = {k: v for k, v in vars(self).items() if k != "rows"}
        rows = {"rows": [row.to_dict() for row in self.rows]} if self.rows else {}
        return {**told, "share": self.share, **rows}

    def __str__(self):
        own = (
            f"{self.name}: {100 * self.share:.1f} % of {self.both:,} coordinates in conflict, "
            f"cosine {self.cosine:.3f}"
        )
        own += f" ({self.left_out:,} pruned left out)" if self.left_out else ""
        return "\n".join([own, *("  " + str(row) for row in self.rows)])


def gradient_conflict(model, loss_a, loss_b, x, y, batch_size=256):
    """Compares the gradients of two losses by the weights, each over the whole set of images.

    conflict = #{i: a_i b_i < 0} / #{i: a_i and b_i nonzero}, the measure of Sehwag et al. for a
    verifiable and a natural loss at the same weights (52 % on average there). Independent random
    signs give 50 %, so the cosine stands beside it. Both gradients are summed over all batches
    first and compared then. Pruned weights, the exact zeros of kernels, are left out (a kernel of
    zeros only was made so, not pruned).

    Args:
        model: Functional classifier.
        loss_a, loss_b: Each the name of a loss of clean logits, "ce", "margin" or "dlr" (3
            classes or more); a `tr.attacks.Attack`: the cross-entropy on its images, attacked as
            inside `fit`; or a callable `(model, x, y) -> (batch,)`. The first two run the model
            with `training=False`.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`.
        batch_size: Integer >= 1; the figures do not depend on it but for rounding.

    Returns:
        `Conflict` of all weights, with one of each layer in `rows`.

    Raises:
        TypeError, ValueError: a loss that is none of these, or not one number per image; a model
            without trainable weights; weights or gradients that are not finite.

    Reference: Sehwag et al., Towards compact and robust deep neural networks (2019), Figure 4,
    https://arxiv.org/abs/1906.06110.

    Example: a loss against itself, and against its negative.

    >>> from tfrobust import models
    >>> net = models.digits_net()
    >>> x, y = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 1)), np.arange(20) % 10
    >>> minus = lambda model, x, y: -losses.cross_entropy(model(x, training=False), y)
    >>> [gradient_conflict(net, "ce", other, x, y).share for other in ("ce", minus)]
    [0.0, 1.0]
    """
    checks.classifier(model)
    x = contract.images(x)
    contract.fits(model, x)
    classes = contract.classes_of(model)
    y = contract.labels(y, classes, count=len(x))
    batch_size = contract.whole("batch_size", batch_size, 1)
    pair = [_loss("loss_a", loss_a, classes), _loss("loss_b", loss_b, classes)]
    weights = model.trainable_variables
    if not weights:
        raise ValueError("`model` must have trainable weights. Received: all layers frozen")
    alive, owners = _alive(model, weights)
    sums = [[np.zeros(v.shape, np.float64) for v in weights] for _ in pair]
    steps = [_step(model, weights, loss) for loss in pair]
    with buckets.expected():
        for start in range(0, len(x), batch_size):
            rows = np.arange(start, min(start + batch_size, len(x)))
            fill = np.pad(rows, (0, min(batch_size, len(x)) - len(rows)), mode="edge")
            real = (np.arange(len(fill)) < len(rows)).astype("float32")
            given = tf.constant(x[fill]), tf.constant(y[fill]), tf.constant(real)
            for total, step in zip(sums, steps, strict=True):
                for part, gradient in zip(total, step(*given, tf.constant(fill)), strict=True):
                    part += gradient.numpy()
    for name, total in zip(("loss_a", "loss_b"), sums, strict=True):
        for part in total:
            checks.finite(part, f"gradients of `{name}`")
    groups = {}
    for number, owner in enumerate(owners):
        groups.setdefault(owner, []).append(number)
    rows = tuple(_compared(name, numbers, *sums, alive) for name, numbers in groups.items())
    return dataclasses.replace(_compared("total", range(len(weights)), *sums, alive), rows=rows)


def _loss(name, loss, classes):
    if isinstance(loss, Attack):
        loss.check_classes(classes)

        def attacked(model, x, y, index):
            x_adv = loss.within(model, x, y, loss.seed, index)
            return losses.cross_entropy(model(x_adv, training=False), y)

        return attacked
    if isinstance(loss, str) and loss in NAMES:
        need, score = losses.MIN_CLASSES.get(loss, 2), losses.get(loss)
        if classes < need:
            raise ValueError(
                f"`{name}` {loss!r} needs a model with {need} classes or more. "
                f"Received: {classes} classes"
            )
        return lambda model, x, y, index: score(model(x, training=False), y)
    if isinstance(loss, str | keras.losses.Loss | type) or not callable(loss):
        kind = ValueError if isinstance(loss, str) else TypeError
        raise kind(
            f"`{name}` must be one of {list(NAMES)}, an attack, or a callable "
            f"(model, x, y) -> (batch,). Received: {loss!r}"
        )

    def own(model, x, y, index):
        values = tf.convert_to_tensor(loss(model, x, y))
        if values.shape.rank != 1 or values.shape[0] not in (None, x.shape[0]):
            raise ValueError(
                f"`{name}` must return one number per image, shape (batch,). "
                f"Received: shape {tuple(values.shape)} for {x.shape[0]} images"
            )
        return tf.ensure_shape(values, x.shape[:1])

    return own


def _step(model, weights, loss):
    def step(x, y, real, index):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(real * tf.cast(loss(model, x, y, index), tf.float32))
        found = tape.gradient(total, [v.value for v in weights])
        return [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(found, weights, strict=True)
        ]

    return tf.function(step, autograph=False)


def _alive(model, weights):
    """(where each variable counts, the name of its layer)."""
    kernels = {}
    for layer in model._flatten_layers(include_self=False, recursive=True):
        kernel = pruning.kernel_of(layer)
        if isinstance(kernel, keras.Variable):
            kernels[id(kernel)] = np.asarray(kernel) != 0
    alive = [kernels.get(id(v), np.ones(v.shape, bool)) for v in weights]
    alive = [mask if mask.any() else np.ones_like(mask) for mask in alive]
    return alive, [v.path.rpartition("/")[0] or v.name for v in weights]


def _compared(name, numbers, first, second, alive):
    a = np.concatenate([first[i][alive[i]] for i in numbers])
    b = np.concatenate([second[i][alive[i]] for i in numbers])
    both = (a != 0) & (b != 0)
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return Conflict(
        name=name,
        opposite=int((both & ((a > 0) != (b > 0))).sum()),
        both=int(both.sum()),
        coordinates=int(a.size),
        left_out=sum(int((~alive[i]).sum()) for i in numbers),
        cosine=float(a @ b / length) if length else math.nan,
    )
