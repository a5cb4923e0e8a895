"""The evaluation itself: chunks of images, attacks on what is still right, fresh verdicts."""

import time

import keras
import numpy as np
import tensorflow as tf

from tfrobust import attacks, buckets, contract, losses
from tfrobust.evaluate import doubts, stream
from tfrobust.evaluate.progress import Progress
from tfrobust.evaluate.scores import AttackScore, Curve, Flag, Rate, Scores, Transfer
from tfrobust.evaluate.state import State, digest, of_model


def robustness(
    model,
    data,
    attacks,
    eps_grid=None,
    state=None,
    progress=True,
    batch_size=256,
    max_examples=None,
    cascade=False,
    curve_attack=None,
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
        state: File name; finished chunks are kept there, and the same call takes them up again.
        progress: Show a live line (on a terminal only).
        batch_size: Images per chunk, an integer >= 1. Results do not depend on it.
        max_examples: Use the first images only.
        cascade: False: every attack meets every image that is right without attack, so its figure
            is its own. True: it meets the survivors of the attacks before it, as AutoAttack does;
            faster, the worst case is the same, the single figures are cumulative.
        curve_attack: Attack of the curve, default the first of `attacks` with more than one step.

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
    run = _Run(model, attacks, eps_grid, batch_size, max_examples, cascade, curve_attack)
    with buckets.expected():
        return run(data, state, progress)


class _Run:
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
        for attack in [*attacks, *([] if curve_attack is None else [curve_attack])]:
            if not (callable(attack) and hasattr(attack, "threat") and hasattr(attack, "runs")):
                raise TypeError(
                    "`attacks` must be a list of tr.attacks.Attack objects. "
                    f"Received: {type(attack).__name__}"
                )
        for name, value in (("batch_size", batch_size), ("max_examples", max_examples)):
            wrong = isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1
            if wrong and not (name == "max_examples" and value is None):
                raise ValueError(f"`{name}` must be an integer >= 1. Received: {name}={value!r}")
        self.attacks = dict(zip(_names(attacks), attacks, strict=True))
        self.batch_size, self.cascade = int(batch_size), bool(cascade)
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
        grid = tuple(sorted({type(attack.threat)(float(e)).epsilon for e in eps_grid} - {0.0}))
        if not grid:
            raise ValueError(f"`eps_grid` must hold a radius above 0. Received: {list(eps_grid)}")
        return attack, grid

    def __call__(self, data, state, progress):
        source = stream.chunks(
            data, self.batch_size, self.image_shape, self.classes, self.max_examples
        )
        (_, x, y), source = stream.peek(source)
        self.classes = self.classes or attacks.attack.classes_of_callable(self.model, x)
        for attack in [*self.attacks.values(), *([self.curve_attack] if self.grid else [])]:
            if hasattr(attack, "check_classes"):
                attack.check_classes(self.classes)
        first = self._logits(x, 0, 0)
        identity = {
            "model": of_model(self.model, first[:16]),
            "attacks": [[name, _config(attack)] for name, attack in self.attacks.items()],
            "curve": [self.curve_attack and _config(self.curve_attack), list(self.grid)],
            "options": [self.batch_size, self.max_examples, self.cascade],
        }
        state = State(state, identity)
        if "flags" not in state.notes:
            flags = doubts.probe(self.model, x, y, first)
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
                began = time.perf_counter()
                records = self._chunk(number, start, x, y, state, display)
                state.add(chunk, records, time.perf_counter() - began)
        state.check_end(number + 1)
        return self._scores(state)

    def _logits(self, x, number, start):
        logits = attacks.forward(self.model, x)
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

    def _chunk(self, number, start, x, y, state, display):
        clean = self._logits(x, number, start).argmax(-1) == y
        records = {"label": y, "clean": clean}
        left = clean.copy()
        shares = _Shares(self, state, display, start, len(x))
        for name, attack in self.attacks.items():
            target = left if self.cascade else clean
            broken = self._attack(
                attack, x, y, target, number, start, state, name, None, shares.step(left)
            )
            left &= ~broken
            records[name] = left.copy() if self.cascade else clean & ~broken
        at = clean.copy()
        for epsilon in self.grid:
            known = self._known(epsilon, records)
            at = at & known if known is not None else at
            if known is None or epsilon != self.curve_attack.threat.epsilon:
                at &= ~self._attack(
                    self.curve_attack,
                    x,
                    y,
                    at,
                    number,
                    start,
                    state,
                    None,
                    epsilon,
                    shares.step(left, f"epsilon {epsilon:g}"),
                )
            records[_at(epsilon)] = at.copy()
        records["joint"] = left
        return records

    def _known(self, epsilon, records):
        """Rows that the curve's attack left at its own radius, where that bounds this radius."""
        for name, attack in self.attacks.items():
            if attack is self.curve_attack and epsilon >= attack.threat.epsilon:
                return None if self.cascade else records[name]
        return None

    def _attack(self, attack, x, y, target, number, start, state, name, epsilon, tell):
        """Bool `(batch,)`: which of the `target` rows the attack breaks."""
        broken = np.zeros(len(x), bool)
        radius = attack.threat.epsilon if epsilon is None else epsilon
        extra = {} if epsilon is None else {"epsilon": epsilon}
        for run in range(attack.runs):
            rows = np.flatnonzero(target & ~broken)
            tell(run, attack)
            if not len(rows):
                continue
            part = np.asarray(
                attack(self.model, x[rows], y[rows], index=start + rows, run=run, **extra)
            )
            legal = _legal(attack.threat, part, x[rows], radius)
            if name is not None and not legal.all():
                counts = state.notes["illegal"]
                counts[name] = counts.get(name, 0) + int((~legal).sum())
            # An illegal point may hold NaN: the clean image stands in for it.
            part[~legal] = x[rows][~legal]
            logits = self._logits(part, number, start)
            margin = losses.margin(tf.constant(logits), tf.constant(y[rows])).numpy()
            broken[rows[legal & (margin > 0)]] = True
        return broken

    def _scores(self, state):
        records, n = state.records, len(state.records["label"])

        def rate(name):
            return Rate(int(records[name].sum()), n)

        scored, families = [], {}
        for name, attack in self.attacks.items():
            family = name.split("-")[0].split(" ")[0]
            scored.append(
                AttackScore(
                    *(name, family, rate(name), repr(attack.threat), int(attack.runs)),
                    config=_config(attack)["config"],
                    illegal=state.notes["illegal"].get(name, 0),
                )
            )
            families[family] = families.get(family, True) & records[name]
        curve = None
        if self.grid:
            rates = (rate("clean"), *(rate(_at(epsilon)) for epsilon in self.grid))
            attack = self.curve_attack
            curve = Curve(_names([attack])[0], attack.threat.norm, (0.0, *self.grid), rates)
        scores = Scores(
            n=n,
            classes=self.classes,
            clean=rate("clean"),
            attacks=tuple(scored),
            families={name: Rate(int(right.sum()), n) for name, right in families.items()},
            joint=rate("joint"),
            curve=curve,
            cascade=self.cascade,
            seconds=state.seconds,
            records=dict(records),
        )
        found = tuple(Flag(**flag) for flag in state.notes["flags"])
        scores.flags = found + tuple(doubts.review(scores))
        return scores


class _Shares:
    """How far a chunk is, weighing each attack by its runs and steps."""

    def __init__(self, run, state, display, start, count):
        self.display, self.start, self.count = display, start, count
        passes = [*run.attacks.values(), *[run.curve_attack] * len(run.grid)]
        self.total = sum(a.runs * getattr(a, "steps", 1) for a in passes) or 1
        self.done, self.records = 0, state.records

    def step(self, left, where=""):
        """A function of (run, attack), called before each run of the next attack."""
        records = self.records
        clean = records["clean"].mean() if "clean" in records else None
        robust = records["joint"].mean() if "joint" in records else None

        def tell(run, attack):
            detail = f"{attack.name}" + (f" run {run + 1}/{attack.runs}" if attack.runs > 1 else "")
            share = self.count * self.done / self.total
            self.display.update(self.start + share, clean, robust, f"{detail} {where}".strip())
            self.done += getattr(attack, "steps", 1)

        return tell


def _at(epsilon):
    return f"epsilon {epsilon!r}"


def _names(attacks):
    """One name per attack, told apart by a number where two have the same."""
    names = []
    for attack in attacks:
        name = getattr(attack, "name", type(attack).__name__)
        count = sum(known.split(" #")[0] == name for known in names)
        names.append(f"{name} #{count + 1}" if count else name)
    return names


def _config(attack):
    config = attack.get_config() if hasattr(attack, "get_config") else {}
    return {"class": type(attack).__name__, "threat": repr(attack.threat), "config": config}


def _legal(threat, x_adv, x, radius):
    """Rows inside the box and the ball; sums of float32 differences need some room."""
    axes = tuple(range(1, x.ndim))
    box = np.isfinite(x_adv).all(axes) & (x_adv >= 0).all(axes) & (x_adv <= 1).all(axes)
    distance = np.asarray(threat.distance(tf.constant(x_adv), tf.constant(x)))
    return box & (distance <= radius * (1 + 1e-5) + 1e-6)


def transfer(predict, x_adv, y, x=None, name="exported file", attack="", source="Keras twin"):
    """Accuracy of a predictor on adversarial images that were crafted against its twin.

    For what cannot be differentiated, such as a TFLite file: attack the Keras model, replay here.
    The verdict is the predictor's own argmax. It says nothing about an attacker who adapts.

    Args:
        predict: Callable, images `(n, ...)` -> logits `(n, classes)`.
        x_adv: Adversarial images.
        y: Integer labels `(n,)`.
        x: The clean images; with them an image counts as robust if it is right before and after.
        name, attack, source: What is tested, what crafted the images, against what.

    Returns:
        `Transfer`.

    >>> import numpy as np
    >>> y, x_adv = [0, 1, 1], np.array([[0.1], [0.2], [0.9]], "float32")
    >>> print(transfer(lambda x: np.concatenate([1 - x, x], 1), x_adv, y, attack="PGD-40"))
    exported file: transfer of PGD-40 crafted on Keras twin 66.67 % (20.8 to 93.9)
    """
    x_adv = contract.images(x_adv, "x_adv")
    y = contract.labels(y, count=len(x_adv))

    def right(images):
        logits = np.asarray(predict(images), np.float32)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"`predict` must return logits of shape ({len(images)}, classes). "
                f"Received: shape={logits.shape}"
            )
        if not np.isfinite(logits).all():
            raise ValueError("`predict` must return finite logits. Received: NaN or infinity")
        logits = losses.as_logits(logits).numpy()
        return logits.argmax(-1) == contract.labels(y, logits.shape[-1])

    robust, clean = right(x_adv), None
    if x is not None:
        x = contract.images(x)
        if x.shape != x_adv.shape:
            raise ValueError(
                f"`x` must have the shape of `x_adv`, {x_adv.shape}. Received: shape={x.shape}"
            )
        before = right(x)
        robust, clean = robust & before, Rate(int(before.sum()), len(y))
    return Transfer(name, attack, source, clean, Rate(int(robust.sum()), len(y)))
