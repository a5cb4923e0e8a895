"""A model as a list of rules in topological order: what every bound method runs on."""

import math

import tensorflow as tf

from tfrobust import graph, losses
from tfrobust.bounds.kernels import Kernel
from tfrobust.bounds.region import Region
from tfrobust.bounds.rule import Box, Diagonal, Move, largest, rules_of

PAIRS = 2**22  # floats that the differences of all pairs of rows may take


class Program:
    """The rules of a model; its methods are tensor functions of regions and of the live weights.

    Values are numbered: 0 is the image, n the result of step n. Where a method takes a `region`, a
    `Box` of images will do; both may be made of tensors, the radius too.

    Attributes:
        steps: List of `(rule, sources)`, the numbers of the values that each step reads.
        shapes: Shapes of the values of one image.
        output: Number of the logits.
        outputs: How many logits there are.
        classes: Number of classes, 2 for a single logit.
        size: Elements of the largest value of one image, None if the model takes any image size.
        bent: Numbers of the values that a step reads which is not affine: what must be bounded
            before linear functions can be taken back through that step. Pre-activations, mostly.
        exact: Those of them that intervals bound exactly: one kernel away from the image.
        tail: Numbers of the affine steps from which only affine steps lead to the logits: the
            logits are one affine function of the values in front of them.
        leaves: Numbers of these values (the logits themselves where the last step is not affine).

    Args:
        model: Functional classifier with one input and one output.
    """

    def __init__(self, model):
        walked = graph.walk(model)
        self.outputs = int(walked.outputs[0].shape[-1])
        self.classes = max(self.outputs, 2)
        self.steps, place = [], {id(walked.inputs[0]): 0}
        self.shapes = [tuple(walked.inputs[0].shape[1:])]
        for node in walked.nodes:
            sources = tuple(place[id(tensor)] for tensor in node.inputs)
            for rule in rules_of(node):
                self.shapes.append(tuple(node.outputs[0].shape[1:]))
                self.steps.append((rule, sources))
                sources = (len(self.steps),)
            (place[id(node.outputs[0])],) = sources
        self.size = None
        if not any(None in shape for shape in self.shapes):
            self.size = max(map(math.prod, self.shapes))
        self.output = place[id(walked.outputs[0])]
        reached, self.tail = {self.output}, []
        for number, (rule, sources) in self._backward():
            if number in reached and rule.affine:
                self.tail.insert(0, number)
                reached.update(sources)
        self.leaves = sorted(reached.difference(self.tail))
        needed = self.needed([self.output])
        self.bent = sorted(
            {
                source
                for number, (rule, sources) in enumerate(self.steps, 1)
                if number in needed and not rule.affine
                for source in sources
            }
        )
        self.exact, scaled = set(), self.scaled()
        for number, (rule, sources) in enumerate(self.steps, 1):
            if number in scaled or (
                isinstance(rule, Kernel) and rule.plain and sources[0] in scaled
            ):
                self.exact.add(number)

    def _backward(self):
        return reversed(list(enumerate(self.steps, 1)))

    def needed(self, wanted):
        """The numbers `wanted` and of all values that they are made of."""
        needed = set(wanted)
        for number, (_, sources) in self._backward():
            if number in needed:
                needed.update(sources)
        return needed

    def scaled(self):
        """Numbers of values that are image pixels in some order, each scaled and shifted."""
        found = {0}
        for number, (rule, sources) in enumerate(self.steps, 1):
            if isinstance(rule, Move | Diagonal) and len(sources) == 1 and sources[0] in found:
                found.add(number)
        return found

    def boxes(self, region, wanted, tighten=None):
        """Intervals of the values `wanted` and of all behind them, a dict from number to `Box`.

        Args:
            region: `Region`.
            wanted: Numbers of values.
            tighten: Optional callable `(number, boxes) -> Box`, asked for each of `bent` as soon as
                its interval is known; the boxes behind are made of the answer.
        """
        region = Region.of(region)
        needed, boxes = self.needed(wanted), {0: region.box}
        near = self._ball(region)
        for number, (rule, sources) in enumerate(self.steps, 1):
            if number in needed:
                boxes[number] = rule.interval(*(boxes[s] for s in sources))
                if number in near:
                    boxes[number] = boxes[number].meet(near[number])
                if tighten is not None and number in self.bent:
                    boxes[number] = boxes[number].meet(tighten(number, boxes))
        return boxes

    def _ball(self, region):
        """Boxes of what one kernel makes of an L2 or L1 ball, exact up to borders: dict."""
        if region.norm is None:
            return {}
        scaled, found = self.scaled(), {}
        factors, points = {0: tf.ones_like(region.image[:1])}, {0: region.image}
        for number, (rule, sources) in enumerate(self.steps, 1):
            if number in scaled:
                one = factors[sources[0]]
                factors[number] = tf.abs(rule(one) - rule(tf.zeros_like(one)))
                points[number] = rule(points[sources[0]])
            elif isinstance(rule, Kernel) and rule.plain and sources[0] in scaled:
                centre = rule(points[sources[0]])
                radius = region.epsilon * rule.reach(factors[sources[0]], region.norm)
                found[number] = Box(centre - radius, centre + radius)
        return found

    def interval(self, region):
        """The `Box` of the model's outputs for all images in `region`."""
        return self.boxes(region, [self.output])[self.output]

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
        rows = tape.gradient(logits, zeros, tf.eye(self.classes), unconnected_gradients="zero")
        # Graphs of batches of any size forget that there is one row for each class.
        shapes = [(self.classes, *leaf.shape[1:]) for leaf in leaves]
        return [tf.ensure_shape(row, shape) for row, shape in zip(rows, shapes, strict=True)]

    def margins(self, region, y):
        """Lower bounds of z_y - z_k for all images in `region`: `(batch, classes)`, 0 at k = y.

        The difference of logits is folded into the tail and only then put on the boxes of the
        leaves, m_k = (row_y - row_k) c + (b_y - b_k) - |row_y - row_k| r: never looser than bounds
        of single logits, and exact where the model is linear.

        Args:
            region: `Region` of images.
            y: Labels, integers or one-hot rows.
        """
        return self.margins_of(self.boxes(region, self.leaves), y)

    def margins_of(self, boxes, y):
        """`margins` from boxes of the leaves."""
        boxes = [boxes[number] for number in self.leaves]
        logits = self.logits([box.centre for box in boxes])
        y = losses.as_labels(y, self.classes)
        rows = self.rows([box.centre for box in boxes])
        parts = zip(rows, boxes, strict=True)
        radii = tf.add_n([_radii(row, box.radius, y) for row, box in parts])
        return tf.gather(logits, y, batch_dims=1)[:, None] - logits - radii

    def rounding(self, boxes, sizes=()):
        """What float32 may have added to margins that were made with these boxes.

        Args:
            boxes: {number: `Box`}.
            sizes: Further tensors `(batch,)`, numbers that were added up on the way.

        Returns:
            `(batch,)`: 1e-5 * max(1, the largest number that was added up in any layer, sum
            |w| |x| + |b|, which may be much larger than what is left of it).
        """
        sizes = [tf.ones_like(boxes[0].lower[(slice(None), *[0] * len(self.shapes[0]))]), *sizes]
        for number, box in boxes.items():
            sizes.append(largest(box.size))
            if number:
                rule, sources = self.steps[number - 1]
                sizes.append(rule.size(*(boxes[s] for s in sources)))
        # A maximum may lose a NaN (XLA): what is not finite stays so in a sum.
        sizes = tf.stack([size for size in sizes if size is not None])
        finite = tf.reduce_all(tf.math.is_finite(sizes), 0)
        return tf.where(finite, 1e-5 * tf.reduce_max(sizes, 0), float("inf"))


def _radii(rows, radius, y):
    """|row_y - row_k| . radius of each image and class k: `(batch, classes)`.

    Args:
        rows: `(classes, ...)`.
        radius: `(batch, ...)`.
        y: Integer labels `(batch,)`.
    """
    classes = rows.shape[0]
    if None not in rows.shape and classes * rows.shape.num_elements() <= PAIRS:
        pairs = tf.reshape(tf.abs(rows[:, None] - rows[None]), (classes**2, -1))
        flat = tf.reshape(radius, (tf.shape(radius)[0], -1))
        every = tf.reshape(tf.matmul(flat, pairs, transpose_b=True), (-1, classes, classes))
        return tf.gather(every, y, batch_dims=1)
    own, axes = tf.gather(rows, y), list(range(1, rows.shape.rank))
    # One class at a time: no more memory than the leaf takes.
    one = tf.map_fn(
        lambda k: tf.reduce_sum(tf.abs(own - rows[k]) * radius, axes),
        tf.range(classes), fn_output_signature=tf.float32,
    )  # fmt: skip
    return tf.transpose(one)
