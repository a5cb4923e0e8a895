"""Per-example scores of logits, all of shape `(batch,)`, that an attacker maximises.

Attacks differentiate the *sum* over the batch, so one example's gradient never depends on the
others. Logits may be `(batch, classes)` or a single binary logit `(batch, 1)`; labels may be
integers, integers with a trailing axis of one, or one-hot / smoothed rows.

>>> import tensorflow as tf
>>> z = tf.constant([[2.0, 1.0, 0.0]])
>>> float(margin(z, tf.constant([0]))[0])
-1.0
"""

import tensorflow as tf

_BIG = 1e30


def as_logits(logits):
    """Float32 logits `(batch, classes)`; a single logit z becomes the pair (0, z)."""
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        logits = tf.concat([tf.zeros_like(logits), logits], -1)
    return logits


def as_labels(y, classes):
    """Integer labels `(batch,)` from integers, `(batch, 1)` or one-hot / smoothed rows."""
    y = tf.convert_to_tensor(y)
    if y.shape.rank == 2:
        if y.shape[-1] not in (None, 1, classes):
            raise ValueError(
                f"`y` must be integers, or one-hot rows of {classes} classes. "
                f"Received: shape={tuple(y.shape)}"
            )
        y = y[:, 0] if y.shape[-1] == 1 or y.shape[-1] != classes else tf.argmax(y, -1)
    return tf.cast(y, tf.int32)


def _parts(logits, y):
    logits = as_logits(logits)
    hot = tf.one_hot(as_labels(y, logits.shape[-1]), logits.shape[-1])
    true = tf.reduce_sum(logits * hot, -1)
    return logits, hot, true


def cross_entropy(logits, y, target=None):
    """CE = logsumexp(z) - z_y, in nats; with a target t the attacker lowers logsumexp(z) - z_t."""
    logits, _, wanted = _parts(logits, y if target is None else target)
    surprise = tf.reduce_logsumexp(logits, -1) - wanted
    return surprise if target is None else -surprise


def margin(logits, y, target=None):
    """max over k != y of z_k - z_y; an example is fooled when this is strictly positive.

    With a target t it is z_t - max over k != t of z_k.
    """
    logits, hot, own = _parts(logits, y if target is None else target)
    gap = tf.reduce_max(logits - _BIG * hot, -1) - own
    return gap if target is None else -gap


def runner_up(logits, y):
    """-log(1 - max over k != y of p_k), in nats: what MART adds to the cross-entropy.

    The sum of the other probabilities is taken in the logarithm, so it is finite, and has a
    gradient, where p_k rounds to 1.

    >>> even, lost = tf.constant([[0.0, 0.0, 0.0]]), tf.constant([[0.0, 200.0]])
    >>> [round(float(runner_up(z, tf.constant([0]))[0]), 3) for z in (even, lost)]
    [0.405, 200.0]
    """
    logits, hot, _ = _parts(logits, y)
    first = tf.one_hot(tf.argmax(logits - _BIG * hot, -1), logits.shape[-1])
    return tf.reduce_logsumexp(logits, -1) - tf.reduce_logsumexp(logits - _BIG * first, -1)


def correct(logits, y):
    """Bool `(batch,)`: the answer is y. It is the first of the largest logits, as in accuracy.

    So a net that answers alike to all images is right on one class of them, though no wrong logit
    is above the true one. Of a single logit z the answer is 1 where z > 0.

    >>> correct(tf.zeros((3, 3)), tf.constant([0, 1, 2])).numpy().tolist()
    [True, False, False]
    """
    logits = as_logits(logits)
    return tf.argmax(logits, -1, tf.int32) == as_labels(y, logits.shape[-1])


def dlr(logits, y, target=None):
    """Difference of logits ratio (Croce and Hein, 2020, eq. 6); needs 3 classes or more.

    With a target it is `dlr_targeted`.
    """
    if target is not None:
        return dlr_targeted(logits, y, target)
    logits, hot, true = _parts(logits, y)
    top = tf.math.top_k(logits, 3).values
    other = tf.reduce_max(logits - _BIG * hot, -1)
    return -(true - other) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits, y, target):
    """Targeted DLR (Croce and Hein, 2020, eq. 7) towards class `target`; 4 classes or more.

    Of 3 classes, which a goal may leave it with, the third stands for the mean of two.
    """
    logits, _, true = _parts(logits, y)
    top = tf.math.top_k(logits, min(4, logits.shape[-1])).values
    wanted = tf.gather(logits, target, batch_dims=1)
    return -(true - wanted) / (top[:, 0] - tf.reduce_mean(top[:, 2:], -1) + 1e-12)


@tf.custom_gradient
def _kl(logits, other):
    p, q = tf.nn.softmax(logits), tf.nn.softmax(other)
    ratio = tf.nn.log_softmax(logits) - tf.nn.log_softmax(other)
    values = tf.nn.relu(tf.reduce_sum(p * ratio, -1))  # rounding may fall below zero

    def gradient(upstream):
        upstream = upstream[:, None]
        return upstream * p * (ratio - values[:, None]), upstream * (q - p)

    return values, gradient


def kl(logits, other):
    """KL(p || q) >= 0 in nats, p = softmax(logits), q = softmax(other); both receive gradients.

    Equal logits have a gradient of exactly 0. (That of p (log p - log q), differentiated term by
    term, is a rounding error instead, whose sign an attack would follow.)

    >>> one, even = tf.constant([[100.0, 0.0]]), tf.constant([[0.0, 0.0]])
    >>> round(float(kl(one, even)[0]), 4), float(kl(even, even)[0])
    (0.6931, 0.0)
    """
    return _kl(as_logits(logits), as_logits(other))


def kl_from_clean(logits, y, target):
    """KL(softmax(target) || softmax(logits)) in nats, `target` the logits of the clean images.

    Its gradient is zero where `logits` are those of the clean image: an attack must not start
    there. TRADES (Zhang et al., 2019) starts beside it, `PGD(..., random_start=0.001)`.
    """
    return kl(tf.stop_gradient(target), logits)


kl_from_clean.from_clean = True  # a callable of yours that says so gets the clean logits too


NAMES = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "dlr_targeted": dlr_targeted,
    "kl": kl_from_clean,
}
MIN_CLASSES = {"dlr": 3, "dlr_targeted": 4}


def get(loss):
    """The loss named `loss`, or `loss` itself if callable: (logits, y, target) -> (batch,)."""
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in NAMES:
        raise ValueError(
            f"`loss` must be a callable or one of {sorted(NAMES)}. Received: loss={loss!r}"
        )
    return NAMES[loss]


def from_clean(loss):
    """Whether `loss`, a name or a callable, takes as target the logits of the clean images."""
    return bool(getattr(get(loss), "from_clean", False))
