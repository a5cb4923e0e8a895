"""The compiled life of an attack outside of training: segments of its loop on shrinking batches.

One graph per (model, image shape) and bucket starts an attack and makes its first `stride` steps,
another one goes on. Between segments the rows that are done are written down; when the rest fits a
much smaller bucket it moves there.
"""

import weakref

import numpy as np
import tensorflow as tf

from tfrobust import buckets, noise
from tfrobust.attacks.call import compiled, unmoved
from tfrobust.attacks.kept import Kept, version

SHRINK = 4  # rows move to a bucket that is smaller by this factor


class Segments:
    """Graphs of one attack, kept as long as the models live."""

    def __init__(self, attack):
        self._attack = weakref.ref(attack)
        self._compiled = Kept()
        self.traces = 0

    def run(self, model, x, y, index, epsilon, run, goal, eager_stop):
        """One run on all rows: `(x_adv, counts)`, counts `(3, n)` of `Result`'s last fields."""
        attack = self._attack()
        function = self._function(model, x.shape[1:])
        common = (
            tf.constant(attack.seed & 0xFFFFFFFF, tf.uint32),
            tf.constant(epsilon, tf.float32),
            tf.constant(run, tf.int32),
            attack.tensors(),
        )
        x_adv, counts = x.copy(), np.zeros((3, len(x)), np.int64)
        values = (x, y, index.astype(np.uint32), goal)
        shift = int(noise.keys(attack.seed, attack.stream, [0], run)[0]) % 2**20
        with buckets.expected(), unmoved(model, shift):
            for begin in range(0, len(x), buckets.SIZES[-1]):
                rows = np.arange(begin, min(begin + buckets.SIZES[-1], len(x)))
                self._chunk(function, values, rows, common, eager_stop, x_adv, counts)
        return x_adv, counts

    def _function(self, model, shape):
        known, place = self._compiled.of(model), (version(model), shape)
        if place not in known:
            reference = weakref.ref(model)

            def function(rows, common, progress, first, last, final, eager_stop):
                self.traces += 1
                return self._segment(
                    reference(), rows, common, progress, first, last, final, eager_stop
                )

            known[place] = compiled(function)
        return known[place]

    def _segment(self, model, rows, common, progress, first, last, final, eager_stop):
        """(points so far, rows still open, progress) after steps `first` to `last`."""
        attack = self._attack()
        x, y, index, active, goal = rows
        seed, epsilon, run, numbers = common
        call = attack.call(
            *(model, x, y, index, seed, run),
            epsilon=epsilon,
            active=active,
            eager_stop=eager_stop,
            numbers=numbers,
            goal=goal,
        )
        if progress is None:
            state = attack.begin(call)
            spent = call.charged((0, 0, 0), (0, 0), tf.cast(active, tf.int32), 0)
        else:
            state, spent = progress
        state, spent = attack.loop(call, state, first, last, spent)
        still, before = attack.open(call, state), call.tally()
        x_adv = tf.cond(final, lambda: attack.finish(call, state), lambda: state["best"])
        paid = tf.cast(still & final, tf.int32)
        spent = call.charged(spent, before, paid, 0)
        return attack.legal(call, x_adv), still, (state, spent)

    def _chunk(self, function, values, rows, common, eager_stop, x_adv, counts):
        """Segments on at most a full bucket of rows until all are done; writes what it found."""
        attack = self._attack()
        first, steps, progress, moved, still = 0, attack.iterations, None, True, None
        while True:
            if moved:
                count = len(rows)
                place = np.arange(buckets.size(count))
                real = place < count
                place = np.where(real, place, 0)
                x, y, index, goal = (v if v is None else v[rows[place]] for v in values)
                given = (x, y, index, real, goal)
                given = tuple(v if v is None else tf.constant(v) for v in given)
                if progress is not None:
                    kept = tf.constant(still[place])
                    progress = tf.nest.map_structure(lambda t, k=kept: tf.gather(t, k), progress)
            last = min(first + attack.stride, steps)
            numbers = map(tf.constant, (first, last, last == steps))
            found, still, progress = function(given, common, progress, *numbers, eager_stop)
            first, still = last, np.flatnonzero(still.numpy()[:count])
            done = first == steps or not len(still)
            moved = done or SHRINK * buckets.size(len(still)) <= len(place)
            if moved:
                x_adv[rows] = found.numpy()[:count]
                counts[:, rows] = np.stack([n.numpy()[:count] for n in progress[1]])
                rows = rows[still]
            if done:
                return
