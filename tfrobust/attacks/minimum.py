"""What attacks for the smallest change share: the nearest fooling point so far, and its distance.

    found = tr.attacks.DDN(tr.threats.L2(0.5)).minimum(model, x, y)
    found.distance                        # infinite where nothing was found, 0 where x is wrong

Called like any attack they return points within the threat's epsilon, and a row is done as soon as
it has one.
"""

import numpy as np
import tensorflow as tf

from tfrobust.attacks.attack import Attack
from tfrobust.attacks.call import Result, per_row, verdicts


class MinimumNorm(Attack):
    """Base of attacks without a radius of their own.

    An author's `start` returns `nothing(call)` and more, `step` ends with `closer(...)`.

    Args:
        threat: `tr.threats.Threat`, whose norm is made small. Its epsilon counts in calls and
            evaluations only, not in `minimum`.
        **shared: see `Attack`.
    """

    def nothing(self, call):
        """The state in which no fooling point is known."""
        return {"best": call.x, "distance": tf.fill(tf.shape(call.x)[:1], np.inf)}

    def closer(self, call, state, x, fooled):
        """`state` with `x` as the best point of open rows where it fools and is nearer."""
        distance = self.threat.distance(x, call.x)
        wins = fooled & (distance < state["distance"]) & self.open(call, state)
        return {
            **state,
            "best": tf.where(per_row(wins, x), x, state["best"]),
            "distance": tf.where(wins, distance, state["distance"]),
        }

    def open(self, call, state):
        if call.eager_stop:
            return call.active & (state["distance"] > call.epsilon)
        return call.active

    def legal(self, call, x_adv):
        """As in `Attack`, but what is legal stays the point that was judged, to the last bit."""
        inside = self.threat.distance(x_adv, call.x) <= call.epsilon
        judged = tf.stop_gradient(tf.clip_by_value(x_adv, 0.0, 1.0))
        return tf.where(per_row(inside, x_adv), judged, super().legal(call, x_adv))

    def minimum(self, model, x, y, index=None, goal=None):
        """The smallest change that all runs found for each image.

        Args:
            model, x, y, index, goal: see a call of `Attack`.

        Returns:
            `Result`; its distance is infinite where nothing was found, 0 (and the point the image
            itself) where the image is wrong as it is.
        """
        x, y, index, goal, classes = self.checked(model, x, y, index, goal)
        wrong = verdicts(model, x, y, goal, self.eot)
        x_adv, distance = x.copy(), np.where(wrong, 0.0, np.inf).astype(np.float32)
        counts, rows = np.zeros((3, len(x)), np.int64), np.flatnonzero(~wrong)
        for run in self.runs_of(classes, goal is not None):
            if not len(rows):
                break
            wanted = None if goal is None else goal[rows]
            found, spent = self.attempt(
                model, x[rows], y[rows], index[rows], np.inf, run, wanted, eager_stop=False
            )
            counts[:, rows] += spent
            broken = verdicts(model, found, y[rows], wanted, self.eot)
            far = self.threat.distance(tf.constant(found), tf.constant(x[rows])).numpy()
            take = broken & (far < distance[rows])
            x_adv[rows[take]], distance[rows[take]] = found[take], far[take]
        return Result(x_adv, np.isfinite(distance), distance, *counts)
