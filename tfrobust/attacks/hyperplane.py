"""The boundary between two classes seen as a plane, and the nearest points of a plane in the box.

At x the gap f(u) = z_k(u) - z_r(u) between a class k and the class r in its way is replaced by
f + w.(u - x), w its gradient. `nearest` chooses k, `to_plane` moves points onto {u: w.u = b}.

The move is exact: with a = |w|, `room` the way to the box face on the side that helps and
g = |b - w.t|, it is room-limited and as small as its norm allows,

    Linf  min(T, room)      L2  min(T a, room)      the smallest T with sum a * move >= g
    L1    room where a > T, a share of it where a = T, nothing elsewhere, with sum a * move = g

and all of `room` where even that is short of the plane.

>>> t, w = tf.constant([[0.5, 0.9]]), tf.constant([[1.0, 1.0]])
>>> to_plane("l2", t, w, tf.constant([0.4])).numpy().round(2).tolist()
[[0.30000001192092896, 0.10000000149011612]]
"""

import numpy as np
import tensorflow as tf

from tfrobust import threats

DUAL = {"linf": threats.L1(1.0), "l2": threats.L2(1.0), "l1": threats.Linf(1.0)}


def wrong_classes(call, logits):
    """Classes `(batch, k)` whose boundaries matter: the one aimed at, else all the wrong ones."""
    if call.aim is not None:
        return call.aim[:, None]
    count = logits.shape[-1]
    return (call.y[:, None] + tf.range(1, count)) % count


def nearest(call, x, norm, classes=None):
    """The class whose linearised boundary is nearest to x: one gradient for each candidate.

    Args:
        call: `Call`.
        x: Images.
        norm: Name of the norm in which near is meant.
        classes: Candidates `(batch, k)`, default `wrong_classes`.

    Returns:
        (fooled, f, w): whether x fools, z_k - z_r and its gradient by x. The class r in the way
        is the true one, or with a goal the likeliest other.
    """
    logits, back = call.pullback(x)
    classes = wrong_classes(call, logits) if classes is None else classes
    count = logits.shape[-1]
    rival = call.y
    if call.goal is not None:
        rival = tf.argmax(logits - 1e30 * tf.one_hot(call.goal, count), -1, call.y.dtype)
    rival = tf.one_hot(rival, count)

    def boundary(k):
        weights = tf.one_hot(tf.gather(classes, k, axis=1), count) - rival
        f, w = tf.reduce_sum(weights * logits, -1), back(weights)
        return tf.abs(f) / (DUAL[norm].distance(w, 0.0) + 1e-12), f, w

    def keep(k, far, f, w):
        new = boundary(k)
        wins = new[0] < far
        rows = tf.reshape(wins, (-1,) + (1,) * (len(x.shape) - 1))
        chosen = (tf.where(wins, new[0], far), tf.where(wins, new[1], f), tf.where(rows, new[2], w))
        return k + 1, *chosen

    if classes.shape[-1] == 1:
        return call.fooled(logits), *boundary(0)[1:]
    rows = tf.zeros_like(logits[:, 0])
    with call.repeated(classes.shape[-1]):
        _, _, f, w = tf.while_loop(
            lambda k, *_: k < classes.shape[-1],
            keep,
            (tf.constant(0), tf.fill(tf.shape(rows), np.inf), rows, tf.zeros_like(x)),
        )
    return call.fooled(logits), f, w


def to_plane(norm, t, w, gap):
    """Smallest move of points of the box onto a plane, or as near to it as the box allows.

    Args:
        norm: "linf", "l2" or "l1".
        t: Points `(batch, d)` of the box.
        w: Normals `(batch, d)`.
        gap: `(batch,)`, b - w.t.

    Returns:
        The move `(batch, d)`: t plus it lies in the box.
    """
    toward, gap = tf.sign(w) * tf.sign(gap)[:, None], tf.abs(gap)[:, None]
    size, room = tf.abs(w), tf.where(toward > 0, 1.0 - t, t)
    if norm == "l1":
        return toward * _filled(size, room, gap)
    speed = 1.0 if norm == "linf" else size
    return toward * tf.minimum(_time(size, speed, room, gap) * speed, room)


def _sum(values):
    return tf.reduce_sum(values, -1, keepdims=True)


def _time(size, speed, room, gap):
    """The smallest T with sum size * min(T speed, room) >= gap, or where the sum stops growing.

    The sum is concave and piecewise linear in T: Newton's method from the left never passes the
    solution and ends on its piece.
    """

    def newton(t, _):
        move = tf.minimum(t * speed, room)
        short = tf.maximum(gap - _sum(size * move), 0.0)
        further = t + tf.math.divide_no_nan(short, _sum(tf.where(move < room, slopes, 0.0)))
        return further, further > 1.000001 * t

    slopes, start = size * speed, tf.zeros_like(gap)
    return tf.while_loop(lambda _, on: tf.reduce_any(on), newton, (start, start == 0.0))[0]


def _filled(size, room, gap):
    """Moves that reach the gap with the smallest sum: the coordinates of largest size first.

    Quickselect: the undecided rest is split at its mean size, weighted by room, until all that is
    left has one size; what is larger than `bar` is taken whole.
    """

    def split(rest, worth, left, bar, _):
        mean = tf.math.divide_no_nan(worth, _sum(rest))
        top = tf.where(size > mean, rest, 0.0)
        low, upper = rest - top, _sum(size * top)
        enough = upper >= left
        more = (_sum(top) > 0.0) & (_sum(low) > 0.0)
        rest, worth = tf.where(enough, top, low), tf.where(enough, upper, worth - upper)
        left, bar = tf.where(enough, left, left - upper), tf.where(enough, bar, mean)
        return rest, worth, left, bar, more

    worth = _sum(size * room)
    short = worth < gap
    rest, _, _, bar, _ = tf.while_loop(
        lambda *state: tf.reduce_any(state[-1]),
        split,
        (tf.where(short, 0.0, room), worth, gap, tf.where(short, 0.0, np.inf), ~short),
    )
    full = tf.where(size > bar, room, 0.0)
    share = tf.math.divide_no_nan(gap - _sum(size * full), _sum(size * rest))
    return full + tf.clip_by_value(share, 0.0, 1.0) * rest
