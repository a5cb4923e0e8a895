"""A model as a list of rules in topological order: what every bound method runs on."""

import tensorflow as tf

from tfrobust import graph, losses
from tfrobust.bounds.rule import rules_of


class Program:
    """The rules of a model; its methods are tensor functions of boxes and of the live weights.

    Values are numbered: 0 is the image, n the result of step n.

    Attributes:
        steps: List of `(rule, sources)`, the numbers of the values that each step reads.
        output: Number of the logits.
        tail: Numbers of the affine steps from which only affine steps lead to the logits: the
            logits are one affine function of the values in front of them.
        leaves: Numbers of these values (the logits themselves where the last step is not affine).

    Args:
        model: Functional classifier with one input and one output.
    """

    def __init__(self, model):
        walked = graph.walk(model)
        self.classes = max(int(walked.outputs[0].shape[-1]), 2)
        self.steps, place = [], {id(walked.inputs[0]): 0}
        for node in walked.nodes:
            sources = tuple(place[id(tensor)] for tensor in node.inputs)
            for rule in rules_of(node):
                self.steps.append((rule, sources))
                sources = (len(self.steps),)
            (place[id(node.outputs[0])],) = sources
        self.output = place[id(walked.outputs[0])]
        reached, self.tail = {self.output}, []
        for number, (rule, sources) in self._backward():
            if number in reached and rule.affine:
                self.tail.insert(0, number)
                reached.update(sources)
        self.leaves = sorted(reached.difference(self.tail))

    def _backward(self):
        return reversed(list(enumerate(self.steps, 1)))

    def boxes(self, box, wanted):
        """Intervals of the values `wanted` and of all behind them, a dict from number to `Box`."""
        needed, boxes = set(wanted), {0: box}
        for number, (_, sources) in self._backward():
            if number in needed:
                needed.update(sources)
        for number, (rule, sources) in enumerate(self.steps, 1):
            if number in needed:
                boxes[number] = rule.interval(*(boxes[s] for s in sources))
        return boxes

    def interval(self, box):
        """The `Box` of the model's outputs for all images in `box`."""
        return self.boxes(box, [self.output])[self.output]

    def logits(self, leaves):
        """Logits `(batch, classes)` of given values of the leaves."""
        values = dict(zip(self.leaves, leaves, strict=True))
        for number in self.tail:
            rule, sources = self.steps[number - 1]
            values[number] = rule(*(values[s] for s in sources))
        return losses.as_logits(values[self.output])

    def rows(self, leaves):
        """The matrix of `logits`: for each leaf `(classes, ...)`, the rows of all classes.

        The map is affine, so its gradient at 0, one class for each row of a batch, is all of it.
        """
        zeros = [tf.repeat(tf.zeros_like(leaf[:1]), self.classes, 0) for leaf in leaves]
        with tf.GradientTape() as tape:
            tape.watch(zeros)
            logits = self.logits(zeros)
        return tape.gradient(logits, zeros, tf.eye(self.classes), unconnected_gradients="zero")

    def margins(self, box, y):
        """Lower bounds of z_y - z_k for all images in `box`: `(batch, classes)`, 0 at k = y.

        The difference of logits is folded into the tail and only then put on the boxes of the
        leaves, m_k = (row_y - row_k) c + (b_y - b_k) - |row_y - row_k| r: never looser than bounds
        of single logits, and exact where the model is linear.

        Args:
            box: `Box` of images.
            y: Labels, integers or one-hot rows.
        """
        return self._margins(self.boxes(box, self.leaves), y)

    def _margins(self, boxes, y):
        boxes = [boxes[number] for number in self.leaves]
        logits = self.logits([box.centre for box in boxes])
        y = losses.as_labels(y, self.classes)
        rows = self.rows([box.centre for box in boxes])
        own = [tf.gather(row, y) for row in rows]

        def radius(k):  # one class at a time: no more memory than the leaves take
            return tf.add_n(
                [
                    tf.reduce_sum(
                        tf.abs(mine - row[k]) * box.radius, list(range(1, row.shape.rank))
                    )
                    for mine, row, box in zip(own, rows, boxes, strict=True)
                ]
            )

        radii = tf.map_fn(radius, tf.range(self.classes), fn_output_signature=tf.float32)
        return tf.gather(logits, y, batch_dims=1)[:, None] - logits - tf.transpose(radii)

    def worst(self, box, y):
        """The smallest of `margins` over k != y, and what rounding may have added to it.

        Returns:
            `(batch, 2)`: the margin (-inf where anything overflows) and 1e-5 * max(1, the largest
            bound of any layer on the way).
        """
        boxes = self.boxes(box, [self.output])
        margins = self._margins(boxes, y)
        other = tf.one_hot(losses.as_labels(y, self.classes), self.classes) == 0
        finite = tf.reduce_all(tf.math.is_finite(margins), -1)
        worst = tf.reduce_min(tf.where(other, margins, tf.float32.max), -1)
        largest = tf.ones_like(worst)
        for bound in boxes.values():
            size = tf.maximum(-bound.lower, bound.upper)
            sizes = tf.reshape(size, (tf.shape(worst)[0], -1))
            finite &= tf.reduce_all(tf.math.is_finite(sizes), -1)
            largest = tf.maximum(largest, tf.reduce_max(sizes, -1))
        return tf.stack([tf.where(finite, worst, -float("inf")), 1e-5 * largest], -1)
