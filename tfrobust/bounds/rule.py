"""What bounds must know about a layer: the rule interface, its dispatch and the common kinds.

A rule turns boxes around the inputs of one call into a box around its result, and linear functions
of the result into linear functions of the inputs. Every rule is a pure TensorFlow function of the
layer's variables, read when it runs, so bounds follow the weights and can be differentiated.
"""

import functools
import inspect
import itertools
import typing

import keras
import tensorflow as tf

from tfrobust import graph
from tfrobust.bounds.lines import constants, lines
from tfrobust.bounds.rows import between, dot, pulled, summed


class Box(typing.NamedTuple):
    """All tensors between `lower` and `upper`, elementwise."""

    lower: tf.Tensor
    upper: tf.Tensor

    @property
    def centre(self):
        return 0.5 * (self.lower + self.upper)

    @property
    def radius(self):
        return 0.5 * (self.upper - self.lower)

    @property
    def size(self):
        """The largest absolute values."""
        return tf.maximum(-self.lower, self.upper)

    def meet(self, other):
        """What lies in both of two boxes around the same values (rounding may not empty it)."""
        lower, upper = tf.maximum(self.lower, other.lower), tf.minimum(self.upper, other.upper)
        return Box(tf.minimum(lower, upper), tf.maximum(lower, upper))


class Rule:
    """How one call of a layer maps its inputs, and boxes around them. Write `interval`.

    With `interval` alone (and no `affine`) the linear relaxations take the box of the result, two
    constants; `back` and `parallel` can say more.

    Attributes:
        affine: True if the call is an affine map of its inputs together (its rows then follow from
            its gradient). Only such layers may stand behind the last box of a margin.

    Args:
        layer: The layer (or `keras.ops` operation).
        node: Its `graph.Node`.
    """

    affine = False

    def __init__(self, layer, node):
        self.layer, self.node = layer, node

    def __call__(self, *values):
        """The result of the call in inference mode, from values in place of `node.inputs`."""
        values = iter(values)

        def given(x):
            return next(values) if isinstance(x, keras.KerasTensor) else x

        args, kwargs = keras.tree.map_structure(given, (self.node.args, self.node.kwargs))
        if getattr(self.layer, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": False}
        return self.layer.call(*args, **kwargs)

    def interval(self, *boxes):
        """A `Box` that holds the result for all inputs in `boxes`."""
        raise TypeError(f"{type(self).__name__} must define interval()")

    def size(self, *boxes):
        """The largest number that the call adds up on its way, where its terms may cancel.

        Returns:
            `(batch,)`, not below sum |w| |x| + |b| for any x in `boxes`; None where nothing is
            larger than what is in the boxes.
        """
        return None

    def back(self, rows, boxes, mode):
        """Linear functions of the inputs below linear functions of the result.

        Args:
            rows: `(batch, functions, ...)`, coefficients of the result.
            boxes: A `Box` for each input, within which the answer holds.
            mode: How tangents are chosen, one of `lines.SLOPES`.

        Returns:
            `(parts, offset)`: for each input its coefficients `(batch, functions, ...)`, or None
            for zeros, and constants `(batch, functions)`.
        """
        if self.affine:
            return pulled(self, rows, [b.lower for b in boxes])
        return [None] * len(boxes), between(rows, *self.interval(*boxes))

    def parallel(self, *boxes):
        """Lines of one slope below and above the result, elementwise: `(slope, lower, upper)`.

        The slope is None where both are constants.
        """
        return None, *self.interval(*boxes)

    def loose(self, *boxes):
        """Where a tighter box would help: for each input a bool tensor."""
        return [b.lower < b.upper for b in boxes]


class Monotone(Rule):
    """A layer whose result never decreases when an input grows: pools, maxima."""

    def interval(self, *boxes):
        return Box(self(*(b.lower for b in boxes)), self(*(b.upper for b in boxes)))


class Positive(Monotone):
    """Affine with weights >= 0: averages, sums, whatever moves or copies values."""

    affine = True


class Move(Positive):
    """One input, each of its values once in the result: Flatten, Reshape, Permute."""


class Extreme(Monotone):
    """The largest (`sign` 1) or smallest (-1) of some values: MaxPooling2D, Maximum.

    Below the largest lies the one with the greatest lower bound, and it is the largest itself where
    no other can be greater.

    Args:
        sign: 1 or -1.
        disjoint: Bool, no value is looked at twice.
    """

    def __init__(self, layer, node, sign=1, disjoint=True):
        super().__init__(layer, node)
        self.sign, self.disjoint = sign, disjoint

    def back(self, rows, boxes, mode):
        whole = self.interval(*boxes)
        ends = whole if self.sign > 0 else whole[::-1]  # what is taken, what it may be at most
        taken = [b.lower if self.sign > 0 else b.upper for b in boxes]
        near, far = tf.nn.relu(rows), tf.minimum(rows, 0.0)
        if self.sign < 0:
            near, far = far, near
        offset = 0.0
        if self.disjoint:
            with tf.GradientTape() as tape:
                tape.watch(taken)
                result = self(*taken)
            shares = tape.gradient(result, taken, unconnected_gradients="zero")
            others = [
                # A tie is shared: then nobody wins for certain.
                tf.where(share > 0.75, -self.sign * tf.float32.max, b[self.sign > 0])
                for share, b in zip(shares, boxes, strict=True)
            ]
            certain = self.sign * (ends[0] - self(*others)) >= 0
            keep = tf.cast(certain, tf.float32)[:, None]
            near, far, rest = near + far * keep, None, far * (1.0 - keep)
        else:
            rest = far
        offset = dot(rest, ends[1])
        parts, _ = pulled(self, near, taken, at=taken)
        return parts, offset


class Pointwise(Rule):
    """An elementwise function of one tensor, monotone up to the numbers `turns`, and between them.

    Args:
        turns: Where the function turns from falling to rising, or back.
        bend: Where it turns from convex to concave (infinite: it is convex, -infinite: concave), a
            float or a function that returns a tensor; None if that is not all of its shape.
    """

    def __init__(self, layer, node, turns=(), bend=None):
        super().__init__(layer, node)
        self.turns, self.bend = turns, bend

    def interval(self, box):
        ends = [self(box.lower), self(box.upper)]
        ends += [self(tf.minimum(tf.maximum(t, box.lower), box.upper)) for t in self.turns]
        return hull(ends)

    def slope(self, x):
        """The derivative at x; at a kink that of the left side, which is where 0 is taken to be."""
        x = tf.where(x == 0.0, -1e-30, x)  # some gradients at 0 are of neither side
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self(x)
        return tape.gradient(y, x, unconnected_gradients="zero")

    def lines(self, box, mode):
        """The `Line` below and the one above."""
        if self.bend is None:
            return constants(*self.interval(box))
        bend = self.bend() if callable(self.bend) else self.bend
        return lines(self, self.slope, box, mode, bend, self.turns)

    def back(self, rows, boxes, mode):
        if self.affine:
            return super().back(rows, boxes, mode)
        below, above = self.lines(*boxes, mode)
        part = tf.nn.relu(rows) * below.slope[:, None]
        part += tf.minimum(rows, 0.0) * above.slope[:, None]
        return [part], between(rows, below.offset, above.offset)

    def parallel(self, box):
        if self.bend is None:
            return super().parallel(box)
        below, above = self.lines(box, "parallel")
        return below.slope, below.offset, above.offset

    def loose(self, box):
        below, above = self.lines(box, "zero")
        return [(below.slope != above.slope) | (below.offset != above.offset)]


class Diagonal(Pointwise):
    """Affine and elementwise, the factor of any sign: BatchNormalization, Rescaling, a mask."""

    affine = True

    def size(self, box):
        offset = self(tf.zeros_like(box.lower[:1]))
        return largest(tf.abs(self(box.size) - offset) + tf.abs(offset))


class Difference(Rule):
    """The first input minus the second."""

    affine = True

    def interval(self, first, second):
        return Box(self(first.lower, second.upper), self(first.upper, second.lower))


class Product(Rule):
    """A product of inputs: its extremes lie in corners of the box.

    Of two factors it lies above (x - l)(y - l') >= 0 and (u - x)(u' - y) >= 0, and below the mixed
    pair (McCormick, 1976).
    """

    def interval(self, *boxes):
        return hull([self(*corner) for corner in itertools.product(*boxes)])

    def back(self, rows, boxes, mode):
        if len(boxes) != 2 or len({box.lower.shape.rank for box in boxes}) > 1:
            return super().back(rows, boxes, mode)
        first, second = boxes
        whole = self.interval(first, second)
        corners = [(first.lower, second.lower), (first.upper, second.upper)]
        below = self._plane(boxes, corners, whole, mode, 1.0)
        crossed = [(first.upper, second.lower), (first.lower, second.upper)]
        above = self._plane(boxes, crossed, whole, mode, -1.0)
        high, low = tf.nn.relu(rows), tf.minimum(rows, 0.0)
        parts = [
            summed(high * a[:, None] + low * b[:, None], box.lower)
            for a, b, box in zip(below[:2], above[:2], boxes, strict=True)
        ]
        return parts, dot(high, below[2]) + dot(low, above[2])

    def _plane(self, boxes, corners, whole, mode, sign):
        """Coefficients of both factors and the constant of a bound below (sign 1) or above."""
        one = tf.ones_like(whole.lower)
        planes = [(y * one, x * one, -(x * y)) for x, y in corners]
        if mode != "zero":  # they meet in the centre: what lies between them
            return [0.5 * (a + b) for a, b in zip(*planes, strict=True)]
        slack = 1e-6 * (1.0 + tf.abs(whole.lower) + tf.abs(whole.upper))
        ends = [sign * self._height(plane, boxes, sign) for plane in planes]
        second = ends[1] > ends[0] + slack
        best = [tf.where(second, b, a) for a, b in zip(*planes, strict=True)]
        # No looser than the interval.
        zero, flat = tf.zeros_like(whole.lower), whole.lower if sign > 0 else whole.upper
        fine = tf.maximum(*ends) >= sign * flat - slack
        return [tf.where(fine, a, b) for a, b in zip(best, (zero, zero, flat), strict=True)]

    @staticmethod
    def _height(plane, boxes, sign):
        """The least (sign 1) or largest value of a plane on the boxes."""
        parts = zip(plane[:2], boxes, strict=True)
        return plane[2] + sum(a * b.centre - sign * tf.abs(a) * b.radius for a, b in parts)


def largest(values):
    """The largest value of each row of a batch: `(batch,)`."""
    return tf.reduce_max(tf.reshape(values, (tf.shape(values)[0], -1)), -1)


def hull(values):
    """The smallest `Box` that holds some tensors of one shape."""
    return Box(functools.reduce(tf.minimum, values), functools.reduce(tf.maximum, values))


@functools.singledispatch
def rule(layer, node):
    """The `Rule` for a call of `layer`, or a list of them to run in turn (empty: the identity).

    `functools.singledispatch` on the class of the layer. A layer of your own needs one line where
    one of the kinds above fits:

        tr.bounds.register(MyActivation, tr.bounds.Monotone)

    Raises:
        TypeError: no rule is registered for the class.
    """
    kind = type(layer).__name__
    raise TypeError(
        f"No rule bounds layer '{node.name}' ({kind}). Register one: "
        f"tr.bounds.register({kind}, tr.bounds.Monotone) if its result never decreases when its "
        "input grows, else a subclass of tr.bounds.Rule with an interval() of its own."
    )


register = rule.register


def _trains_by_default(layer):
    """Whether `training=True` is what a call has that says nothing: RandomFlip and its like."""
    known = inspect.signature(layer.call).parameters.get("training")
    return known is not None and known.default is True


def rules_of(node):
    """The rules that a node runs in turn.

    Raises:
        TypeError: no rule is known for the layer.
        ValueError: the call has no bound, since it has several results, is in training mode or
            does not compute in float32.
    """
    layer, what = node.layer, f"layer '{node.name}' ({type(node.layer).__name__})"
    if len(node.outputs) != 1:
        raise ValueError(f"`model` must have layers of one result. Received: {what}")
    if node.kwargs.get("training") is True and not _trains_by_default(layer):
        raise ValueError(
            "`model` must be built for inference: bounds know no batch statistics and no noise. "
            f"Received: {what} called with training=True"
        )
    if getattr(layer, "compute_dtype", "float32") != "float32":
        raise ValueError(
            f"Bounds are computed in float32, but {what} computes in {layer.compute_dtype}: "
            "build the model with dtype float32."
        )
    found = graph.dispatch(rule, layer)(layer, node)
    return found if isinstance(found, list) else [found]
