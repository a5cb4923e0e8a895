"""The evaluation itself: its arguments, chunk after chunk, and what it hands back."""

import math

import keras
import numpy as np

from tfrobust import attacks, buckets, contract
from tfrobust.attacks.attack import whole
from tfrobust.attacks.call import unmoved
from tfrobust.attacks.kept import renew
from tfrobust.evaluate import doubts, stream
from tfrobust.evaluate.chunk import Chunk
from tfrobust.evaluate.collect import config_of, scores_of
from tfrobust.evaluate.progress import Progress
from tfrobust.evaluate.state import State, digest, of_graph, of_model

DRAWS = 20  # passes behind each verdict when an attack takes the model for random


def robustness(
    model,
    data,
    attacks,
    eps_grid=None,
    state=None,
    progress=True,
    batch_size=None,
    max_examples=None,
    cascade=False,
    curve_attack=None,
    second_opinion=0,
):
    """Measures clean and robust accuracy of a classifier.

    Args:
        model: Functional Keras classifier that returns logits, or any TensorFlow callable
            images -> logits `(batch, classes)`.
        data: Pair `(x, y)` of arrays, or a stream of such batches: `tf.data.Dataset`,
            `keras.utils.PyDataset`, generator. Streams are never held whole. Pixels in [0, 1],
            integer labels.
        attacks: List of attacks (empty: clean accuracy only).
        eps_grid: Radii for a curve of accuracy against epsilon; 0 is always added.
        state: File name; finished chunks and runs are kept there, and the same call takes them up
            again.
        progress: Show a live line on a terminal, else write a line to stderr every minute.
        batch_size: Images per chunk, an integer >= 1; default as many as fit 64 MiB, at most
            1,024. Results do not depend on it but for the last bits of a convolution.
        max_examples: Use the first images only.
        cascade: False: every attack meets every image that is right without attack, so its figure
            is its own. True: it meets the survivors of the attacks before it, as AutoAttack does;
            faster, the worst case is the same, the single figures are cumulative.
        curve_attack: Attack of the curve, default the first of `attacks` with more than one step.
            One for the smallest change (such as `tr.attacks.FAB`) that is among `attacks` as well
            gives the whole curve at once.
        second_opinion: Integer: so many images that the attacks left right are attacked again by
            cleverhans's SPSA and by random noise, which need no gradient; a success is flagged.

    Returns:
        `Scores`.

    Raises:
        TypeError, ValueError: model, data or attacks outside of the contract; logits that are not
            finite (with the number of the batch); a state file of another evaluation.
        OSError: a state file that cannot be written.

    Example:

    >>> import numpy as np, keras, tfrobust as tr
    >>> x = np.linspace(0, 1, 40, dtype="float32").reshape(40, 1)
    >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, use_bias=False)])
    >>> net = keras.Model(net.inputs, net.outputs)
    >>> net.set_weights([np.array([[-1.0, 1.0]])])                  # always class 1
    >>> scores = tr.evaluate.robustness(net, (x[1:], x[1:, 0] > 0.5), [], progress=False)
    >>> scores.clean.count, scores.n
    (20, 39)
    """
    whole("second_opinion", second_opinion, 0)
    plan = _Plan(model, attacks, eps_grid, batch_size, max_examples, cascade, curve_attack)
    plan.second_opinion = int(second_opinion)
    known = plan.model if isinstance(plan.model, keras.Model) else None
    if known is not None:
        renew(known, of_graph(known))
    with buckets.expected(), unmoved(known):
        return plan(data, state, progress)


class _Plan:
    """Checked arguments of one evaluation."""

    def __init__(self, model, attacks, eps_grid, batch_size, max_examples, cascade, curve_attack):
        if isinstance(model, keras.layers.Layer):
            self.model = contract.classifier(model, "model")
            self.classes = contract.classes_of(model)
            self.image_shape = model.input_shape[1:]
        elif callable(model):
            # A function of our own: bound methods do not live long enough to be compiled.
            self.model, self.classes, self.image_shape = (lambda x: model(x)), None, None
        else:
            raise TypeError(
                "`model` must be a Keras classifier or a callable images -> logits. "
                f"Received: {type(model).__name__}"
            )
        try:
            attacks = [attacks] if hasattr(attacks, "threat") else list(attacks)
        except TypeError:
            raise TypeError(
                "`attacks` must be a list of tr.attacks.Attack objects. "
                f"Received: {type(attacks).__name__}"
            ) from None
        for name, many in (("attacks", attacks), ("curve_attack", [curve_attack])):
            for attack in many:
                speaks = all(hasattr(attack, part) for part in ("threat", "runs", "__call__"))
                if not speaks and (attack is not None or name == "attacks"):
                    raise TypeError(
                        f"`{name}` must hold tr.attacks.Attack objects. "
                        f"Received: {type(attack).__name__}"
                    )
        for name, value in (("batch_size", batch_size), ("max_examples", max_examples)):
            wrong = isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1
            if wrong and value is not None:
                raise ValueError(f"`{name}` must be an integer >= 1. Received: {name}={value!r}")
        self.attacks = dict(zip(_names(attacks), attacks, strict=True))
        self.batch_size, self.cascade = batch_size and int(batch_size), bool(cascade)
        self.draws = DRAWS if any(getattr(a, "eot", 1) > 1 for a in attacks) else 1
        self.max_examples = None if max_examples is None else int(max_examples)
        self.curve_attack, self.grid = self._curve(eps_grid, curve_attack, attacks)

    def _curve(self, eps_grid, curve_attack, attacks):
        if eps_grid is None:
            return None, ()
        iterated = [attack for attack in attacks if getattr(attack, "steps", 1) > 1]
        attack = curve_attack or next(iter(iterated or attacks), None)
        if attack is None:
            raise ValueError("`eps_grid` needs an attack: give `curve_attack` or `attacks`.")
        if np.ndim(eps_grid) != 1:
            raise TypeError(f"`eps_grid` must be a list of radii. Received: {eps_grid!r}")
        kinds = int | float | np.integer | np.floating
        if not all(isinstance(e, kinds) and 0 <= e < math.inf for e in eps_grid):
            raise ValueError(
                f"`eps_grid` must hold finite radii >= 0. Received: eps_grid={list(eps_grid)}"
            )
        grid = tuple(sorted({type(attack.threat)(float(e)).epsilon for e in eps_grid} - {0.0}))
        if not grid:
            raise ValueError(f"`eps_grid` must hold a radius above 0. Received: {list(eps_grid)}")
        return attack, grid

    def __call__(self, data, state, progress):
        if self.batch_size is None:
            self.batch_size = fitting(data, self.image_shape)
        source = stream.chunks(
            data, self.batch_size, self.image_shape, self.classes, self.max_examples
        )
        (_, x, y), source = stream.peek(source)
        self.classes = self.classes or attacks.classes_of_callable(self.model, x)
        for attack in [*self.attacks.values(), *([self.curve_attack] if self.grid else [])]:
            if hasattr(attack, "check_classes"):
                attack.check_classes(self.classes)
        first = self.logits(x, 0, 0)
        identity = {
            "model": of_model(self.model, first[:16]),
            "attacks": [[name, config_of(attack)] for name, attack in self.attacks.items()],
            "curve": [self.curve_attack and config_of(self.curve_attack), list(self.grid)],
            "options": [self.batch_size, self.max_examples, self.cascade, self.second_opinion],
        }
        state = State(state, identity)
        if "flags" not in state.notes:
            flags = doubts.probe(self.model, x, y, first, self.draws)
            state.notes = {"flags": [flag.to_dict() for flag in flags], "illegal": {}}
        total = stream.size(data, self.max_examples)
        title = getattr(self.model, "name", "model")
        with Progress(progress, total, title) as display:
            for number, (start, x, y) in enumerate(source):
                y = contract.labels(y, self.classes, f"y from example {start} on")
                chunk = digest(x, y)
                if number < len(state.chunks):
                    state.check(number, chunk)
                    continue
                state.begin(chunk)
                records = Chunk(self, number, start, x, y, state, display).records()
                if number == 0:
                    found = doubts.probe_survivors(self, x, y, records["joint"])
                    state.notes["flags"] += [flag.to_dict() for flag in found]
                state.add(chunk, records)
        state.check_end(number + 1)
        return scores_of(self, state)

    def logits(self, x, number, start):
        """Checked logits of images of a chunk, as NumPy."""
        logits = attacks.forward(self.model, x, self.draws)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                "`model` must return logits of shape (batch, classes). "
                f"Received: shape {logits.shape} for {len(x)} images"
            )
        bad = np.flatnonzero(~np.isfinite(logits).all(-1))
        if len(bad):
            raise ValueError(
                "`model` must return finite logits. Received: NaN or infinity in batch "
                f"{number} (example {start + bad[0]})"
            )
        return logits


def fitting(data, shape):
    """Images that fill 64 MiB, at most 1,024."""
    if shape is None or None in shape:
        shape = np.shape(data[0])[1:] if isinstance(data, tuple) else (256, 256, 3)
    return max(1, min(1024, 2**24 // max(1, math.prod(shape))))


def _names(attacks):
    """One name per attack, told apart by a number where two have the same."""
    names = []
    for attack in attacks:
        name = getattr(attack, "name", type(attack).__name__)
        if name in ("clean", "joint", "label") or name.startswith("epsilon "):
            raise ValueError(
                "`attacks` must not be named clean, joint, label or epsilon ..., which are "
                f"figures of the evaluation. Received: {name!r}"
            )
        count = sum(known.split(" #")[0] == name for known in names)
        names.append(f"{name} #{count + 1}" if count else name)
    return names
