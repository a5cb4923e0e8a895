"""Complete verification of tiny ReLU networks by mixed-integer linear programming.

One binary variable for each neuron that may be on or off inside of the box, intervals as the big-M
bounds (Tjeng et al., 2019, https://arxiv.org/abs/1711.07356), solved by SciPy's HiGHS. The answer
is the true minimum of the margin, and an image where it is reached.
"""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from tfrobust import contract
from tfrobust.bounds import Box, Pointwise, Program
from tfrobust.bounds.rows import pulled
from tfrobust.threats import Linf, Threat

BINARIES = 100
VARIABLES = 5000
ROUNDING = 1e-6  # what the solver's tolerances may add to a minimum


@dataclasses.dataclass(frozen=True)
class Exact:
    """The least margin of one image.

    Attributes:
        margin: Lower bound of min over k and over the box of z_y - z_k; the minimum itself where
            `solved`. Classes whose margin was known to be positive are left out.
        solved: Bool, False where time ran out.
        x: The image where the margin is least, in the shape of the model's input, or None.
    """

    margin: float
    solved: bool
    x: np.ndarray | None


def check(program, threat):
    """Refuses what cannot be solved completely.

    Raises:
        TypeError: a bent layer that is no ReLU.
        ValueError: a threat that is no box, a net too large.
    """
    if not isinstance(threat, Linf):
        raise ValueError(
            f"`threat` must be a tr.threats.Linf for complete verification. Received: {threat!r}"
        )
    for rule, _ in program.steps:
        if not (rule.affine or _is_relu(rule)):
            raise TypeError(
                f"Complete verification knows affine layers and ReLU. Received: layer "
                f"'{rule.node.name}' ({type(rule.layer).__name__})"
            )
    size = None if program.size is None else sum(map(math.prod, program.shapes))
    if size is None or size > VARIABLES:
        raise ValueError(
            f"`model` must be tiny for complete verification, at most {VARIABLES:,} values in all "
            f"its layers. Received: {'images of no fixed size' if size is None else f'{size:,}'}"
        )


def seconds(time_limit):
    """The limit as a float.

    Raises:
        ValueError: no number > 0.
    """
    if not contract.is_number(time_limit) or time_limit <= 0:
        raise ValueError(
            f"`time_limit` must be a number of seconds > 0. Received: time_limit={time_limit!r}"
        )
    return float(time_limit)


def exact(model, x, y, threat, epsilon=None, time_limit=60.0, binaries=BINARIES):
    """The least margin of one image over its whole ball, by mixed-integer programming.

    Args:
        model: Functional classifier of affine layers (Dense, Conv2D, BatchNormalization, pools of
            averages, Add, ...) and ReLU, tiny.
        x: One image, without a batch axis.
        y: Its label.
        threat: `tr.threats.Linf`.
        epsilon: Float, radius instead of the threat's.
        time_limit: Seconds > 0 for the image.
        binaries: Integer >= 0, most neurons that may be on or off.

    Returns:
        `Exact`.

    Raises:
        TypeError, ValueError: a layer, threat or size outside of these limits.

    Example: z = (|2 x - 1|, 0.1) has the margin 2 x - 1.1 for x in [0.6, 0.8].

    >>> import keras
    >>> image = keras.Input((1,))
    >>> hidden = keras.layers.Dense(2, "relu")(image)
    >>> net = keras.Model(image, keras.layers.Dense(2)(hidden))
    >>> net.set_weights([np.array([[2.0, -2.0]]), np.array([-1.0, 1.0]),
    ...                  np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0.0, 0.1])])
    >>> round(exact(net, [0.7], 0, Linf(0.1)).margin, 5)
    0.1
    """
    contract.classifier(model, "model")
    end = time.perf_counter() + seconds(time_limit)
    contract.whole("binaries", binaries, 0)
    if not isinstance(threat, Threat):
        raise TypeError(
            f"`threat` must be a tr.threats.Linf such as tr.threats.Linf(0.1). Received: {threat!r}"
        )
    x = contract.images(np.asarray(x)[None])
    contract.fits(model, x)
    x = x if x.ndim == len(model.input_shape) else x[..., None]
    (y,) = contract.labels([y], contract.classes_of(model))
    program = Program(model)
    check(program, threat)
    radius = threat.epsilon if epsilon is None else type(threat)(epsilon).epsilon
    box = Box(*threat.box(tf.constant(x), radius))
    problem = Problem(program, box)
    if problem.open > binaries:
        raise ValueError(
            f"`model` must have at most {binaries} neurons that may be on or off in the ball. "
            f"Received: {problem.open}"
        )
    others = [k for k in range(program.classes) if k != y]
    return problem.least(y, others, end - time.perf_counter())


class Problem:
    """The network on one box as linear constraints and binary variables.

    Args:
        program: `Program` of affine steps and ReLUs.
        box: `Box` of one image `(1, ...)`.
        boxes: {number: `Box`} for the big-M bounds, default intervals.
    """

    def __init__(self, program, box, boxes=None):
        from scipy import sparse

        self.program = program
        boxes = boxes or program.boxes(box, [program.output])
        flat = {n: [b.numpy().astype(float).ravel() for b in boxes[n]] for n in boxes}
        self.start, total = {}, 0
        for number in sorted(boxes):
            self.start[number], total = total, total + len(flat[number][0])
        low, high = (
            np.concatenate([flat[number][end] for number in sorted(boxes)]) for end in (0, 1)
        )
        # Variables come first in the order of the steps, then one binary for each open neuron.
        gates = {}
        for number, (rule, (source, *_)) in enumerate(program.steps, 1):
            if number in boxes and not rule.affine:
                lower, upper = flat[source]
                for place in np.flatnonzero((lower < 0) & (upper > 0)):
                    gates[number, int(place)] = total + len(gates)
        self.open, self.variables = len(gates), total + len(gates)
        self._rows, self._columns, self._values, self._ends = [], [], [], []
        for number, (rule, sources) in enumerate(program.steps, 1):
            if number not in boxes:
                continue
            if rule.affine:
                # Rounding of the intervals must not make an equality impossible.
                low[self._span(number)] -= 1e-5 * (1 + np.abs(low[self._span(number)]))
                high[self._span(number)] += 1e-5 * (1 + np.abs(high[self._span(number)]))
                self._affine(rule, number, sources)
            else:
                self._relu(number, sources[0], *flat[sources[0]], low, high, gates)
        count = len(self._ends)
        self.matrix = sparse.csr_matrix(
            (self._values, (self._rows, self._columns)), (count, self.variables)
        )
        self.ends = np.array(self._ends).T
        self.low = np.concatenate([low, np.zeros(len(gates))])
        self.high = np.concatenate([high, np.ones(len(gates))])
        self.integral = np.concatenate([np.zeros(total), np.ones(len(gates))])

    def _span(self, number):
        size = math.prod(self.program.shapes[number])
        return slice(self.start[number], self.start[number] + size)

    def _constrain(self, terms, lower, upper):
        for column, value in terms:
            self._rows.append(len(self._ends))
            self._columns.append(column)
            self._values.append(value)
        self._ends.append((lower, upper))

    def _affine(self, rule, number, sources):
        """value - J source = b, J and b as a backward pass reads them."""
        size = math.prod(self.program.shapes[number])
        rows = tf.reshape(tf.eye(size), (1, size, *self.program.shapes[number]))
        like = [tf.zeros((1, *self.program.shapes[s])) for s in sources]
        parts, bias = pulled(rule, rows, like)
        bias = bias.numpy().ravel()
        blocks = [part.numpy().astype(float).reshape(size, -1) for part in parts]
        for row in range(size):
            terms = [(self.start[number] + row, 1.0)]
            for source, block in zip(sources, blocks, strict=True):
                terms += [
                    (self.start[source] + int(i), -block[row, i])
                    for i in np.flatnonzero(block[row])
                ]
            self._constrain(terms, bias[row], bias[row])

    def _relu(self, number, source, lower, upper, low, high, gates):
        for place, (least, most) in enumerate(zip(lower, upper, strict=True)):
            z, a = self.start[source] + place, self.start[number] + place
            if least >= 0:
                low[a], high[a] = min(low[a], low[z]), max(high[a], high[z])
                self._constrain([(a, 1.0), (z, -1.0)], 0.0, 0.0)
            elif most <= 0:
                low[a] = high[a] = 0.0
            else:
                gate = gates[number, place]
                low[a], high[a] = 0.0, max(high[a], high[z])
                self._constrain([(a, 1.0), (z, -1.0)], 0.0, np.inf)
                self._constrain([(a, 1.0), (gate, -high[z])], -np.inf, 0.0)
                self._constrain([(a, 1.0), (z, -1.0), (gate, -low[z])], -np.inf, -low[z])

    def least(self, y, others, time_limit=60.0):
        """`Exact` of the margins z_y - z_k of all k in `others`."""
        from scipy import optimize

        end, margin, best, solved = time.perf_counter() + time_limit, np.inf, None, True
        for k in others:
            goal = np.zeros(self.variables)
            for label, sign in ((y, 1.0), (k, -1.0)):
                if self.program.outputs > 1:
                    goal[self.start[self.program.output] + label] += sign
                elif label == 1:  # a single logit z is the pair (0, z)
                    goal[self.start[self.program.output]] += sign
            found = optimize.milp(
                goal,
                integrality=self.integral,
                bounds=optimize.Bounds(self.low, self.high),
                constraints=optimize.LinearConstraint(self.matrix, *self.ends),
                options={
                    "mip_rel_gap": 0.0,
                    "time_limit": max(0.01, end - time.perf_counter()),
                },
            )
            done = found.status == 0
            # Solved with an absolute gap of the solver's own: the lower of both ends is the bound.
            ends = [found.mip_dual_bound if self.open else None, found.fun if done else None]
            value = min((end for end in ends if end is not None), default=-np.inf)
            solved &= done
            if value < margin:
                margin = value
                if found.x is not None:
                    point = found.x[: math.prod(self.program.shapes[0])]
                    best = np.clip(point, 0, 1).reshape(self.program.shapes[0])
        return Exact(float(margin), solved, None if best is None else best.astype("float32"))


def _is_relu(rule):
    if not isinstance(rule, Pointwise) or rule.bend != math.inf:
        return False
    probe = tf.constant([-2.0, -0.5, 0.0, 1.0, 3.0])
    try:
        return bool(tf.reduce_all(rule(probe[:, None]) == tf.nn.relu(probe[:, None])))
    except (ValueError, tf.errors.OpError):  # weights of another shape: a PReLU
        return False
