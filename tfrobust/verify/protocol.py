"""The certification itself: chunk after chunk, stage after stage, on what is undecided."""

import time

import numpy as np
import tensorflow as tf

from tfrobust import attacks as attack_room
from tfrobust import buckets, contract
from tfrobust.attacks.call import unmoved
from tfrobust.bounds import Box, class_margins
from tfrobust.evaluate import Rate, stream
from tfrobust.evaluate.chunk import legal
from tfrobust.evaluate.progress import Progress
from tfrobust.evaluate.protocol import fitting
from tfrobust.evaluate.state import State, digest, of_model
from tfrobust.verify import complete
from tfrobust.verify.certificate import STATUS, Certificate, CertifiedCurve, Stage
from tfrobust.verify.plan import Plan

BROKEN, UNDECIDED, VERIFIED = range(len(STATUS))


def certify(
    model,
    data,
    threat,
    method="auto",
    attacks=None,
    eps_grid=None,
    state=None,
    progress=True,
    batch_size=None,
    max_examples=None,
    time_limit=60.0,
):
    """Counts the images that no attack in the ball can break, proved for each of them.

    An image is verified if lower bounds of all margins z_y - z_k over its whole ball (clipped to
    [0, 1]) lie above what float32 may have rounded away, 1e-5 * max(1, largest sum |w| |x| + |b| of
    any layer, and of the linear functions of CROWN).

    Args:
        model: Functional Keras classifier that returns logits, masked, pruned or shrunk.
        data: Pair `(x, y)` of arrays, or a stream of such batches, as in
            `tr.evaluate.robustness`. Pixels in [0, 1], integer labels.
        threat: `tr.threats.Linf`, `L2` or `L1`.
        method: "ibp" (two forward passes an image), "crown-ibp" (about as many gradients as there
            are classes), "symbolic" (small nets), "crown" (a gradient for each undecided neuron),
            "exact" (mixed-integer programming, tiny nets and `Linf` only); cheaper ones come first
            by themselves. "auto": "crown" for nets where that takes at most 5,000 gradients an
            image, else "crown-ibp". A list of names: exactly those, in that order.
        attacks: Attacks of the same threat that try to break what the first method left; default
            PGD-40 on the margin, [] for none.
        eps_grid: Radii for a curve of certified accuracy against epsilon, by the same methods; 0
            and the threat's own are always added.
        state: File name; finished chunks and stages are kept there, and the same call takes them
            up again.
        progress: Show a live line on a terminal, else write a line to stderr every minute.
        batch_size: Images per chunk, default as many as fit 64 MiB, at most 1,024. Memory is
            bounded whatever it is: coefficients of one layer take 64 MiB at most, or those of one
            function of 16 images where these are more.
        max_examples: Use the first images only.
        time_limit: Seconds that "exact" may spend on one image (and radius of the curve).

    Returns:
        `Certificate`.

    Raises:
        TypeError: a layer without a rule (named), no functional model, no threat.
        ValueError: layers called with training=True or not in float32, images outside of [0, 1],
            a net too large for the method, a state file of another run.

    References: Gowal et al. (2018), https://arxiv.org/abs/1810.12715 (interval bounds); Zhang et
    al. (2018), https://arxiv.org/abs/1811.00866 (CROWN); Sehwag et al. (2019),
    https://arxiv.org/abs/1906.06110 (benign, empirical and verified robust accuracy).

    Example: z = (x, 1 - x) with x = 0.9, 0.6 and 0.3, and a ball of 0.2.

    >>> import keras, numpy as np, tfrobust as tr
    >>> image = keras.Input((1,))
    >>> net = keras.Model(image, keras.layers.Dense(2)(image))
    >>> net.set_weights([np.array([[1.0, -1.0]]), np.array([0.0, 1.0])])
    >>> x, y = np.array([[0.9], [0.6], [0.3]], "float32"), [0, 0, 0]
    >>> proof = tr.verify.certify(net, (x, y), tr.threats.Linf(0.2), progress=False)
    >>> proof.status.tolist(), proof.clean.count, proof.verified.count
    (['verified', 'broken', 'broken'], 2, 1)
    """
    plan = Plan(model, threat, method, attacks, eps_grid, time_limit)
    for name, value in (("batch_size", batch_size), ("max_examples", max_examples)):
        if value is not None:
            contract.whole(name, value, 1)
    shape = model.input_shape[1:]
    size = batch_size or fitting(data, shape)
    source = stream.chunks(data, size, shape, plan.classes, max_examples)
    (_, x, _), source = stream.peek(source)
    identity = {
        "model": of_model(model, None),
        **plan.identity(),
        "options": [int(size), max_examples and int(max_examples)],
    }
    state = State(state, identity)
    state.notes.setdefault("seconds", [0.0] * len(plan.stages))
    total = stream.size(data, max_examples)
    with (
        buckets.expected(),
        unmoved(model),
        Progress(progress, total, model.name, figure="verified") as display,
    ):
        for number, (start, x, y) in enumerate(source):
            chunk = digest(x, y)
            if number < len(state.chunks):
                state.check(number, chunk)
                continue
            state.begin(chunk)
            state.add(chunk, _Chunk(plan, number, start, x, y, state, display).records())
    state.check_end(number + 1)
    return _certificate(plan, state)


class _Chunk:
    """One chunk of images on its way through the stages."""

    def __init__(self, plan, number, start, x, y, state, display):
        self.plan, self.number, self.start = plan, number, start
        self.x, self.y, self.state, self.display = x, y, state, display
        self.status = np.full(len(x), UNDECIDED, np.int8)
        self.by = np.full(len(x), -1, np.int8)
        self.best = np.full((len(x), plan.classes), -np.inf, np.float32)
        self.rounding = np.zeros(len(x), np.float32)

    def records(self):
        """{name: array} of the whole chunk."""
        kept = self.state.kept(self.number, "stages")
        done = int(kept.pop("done", 0))
        vars(self).update(kept)
        for place, name in list(enumerate(self.plan.stages))[done:]:
            rows = np.flatnonzero(self.status == UNDECIDED)
            self._tell(place / len(self.plan.stages), name)
            self.clock = time.perf_counter()
            if len(rows):
                verified, broken = self._stage(place, name, rows)
                for found, status in ((verified, VERIFIED), (broken, BROKEN)):
                    self.status[rows[found]], self.by[rows[found]] = status, place
            self._count(place)
            keys = ("status", "by", "best", "rounding")
            arrays = {key: getattr(self, key) for key in keys}
            self.state.keep(self.number, "stages", done=np.array(place + 1), **arrays)
        margin = np.where(_others(self.y, self.plan.classes), self.best, np.inf).min(-1)
        found = {"label": self.y, "status": self.status, "stage": self.by, "margin": margin}
        return {**found, **self._curve()}

    def _stage(self, place, name, rows):
        """Which rows one stage verifies and which it breaks, bool arrays."""
        none = np.zeros(len(rows), bool)
        count = len(self.plan.attacks)
        if place == 0:
            return none, self._answers(self.x).argmax(-1) != self.y
        if 2 <= place < 2 + count:
            return none, self._attacked(self.plan.attacks[place - 2], rows)
        if name == "exact":
            return self._solved(rows, self.plan.threat.epsilon, self.best, self.rounding, place)
        return self._bounded(rows, self.plan.threat.epsilon, name, self.best, self.rounding), none

    def _bounded(self, rows, epsilon, name, best, rounding):
        """Which rows the bounds so far verify, of one more method; `best`, `rounding` change."""
        plan = self.plan
        found = class_margins(plan.model, self.x[rows], self.y[rows], plan.threat, epsilon, name)
        best[rows] = np.maximum(best[rows], found[0])
        rounding[rows] = np.maximum(rounding[rows], found[1])
        other = _others(self.y[rows], plan.classes)
        return np.where(other, best[rows], np.inf).min(-1) > rounding[rows]

    def _count(self, place):
        """Adds the time since it was last asked to that of a stage."""
        now = time.perf_counter()
        self.state.notes["seconds"][place] += now - self.clock
        self.clock = now

    def _answers(self, x):
        logits = attack_room.forward(self.plan.model, x)
        bad = np.flatnonzero(~np.isfinite(logits).all(-1))
        if len(bad):
            raise ValueError(
                "`model` must return finite logits. Received: NaN or infinity in batch "
                f"{self.number} (example {self.start + bad[0]})"
            )
        return np.pad(logits, [(0, 0), (1, 0)]) if logits.shape[1] == 1 else logits

    def _attacked(self, attack, rows):
        x, y, model = self.x[rows], self.y[rows], self.plan.model
        points = np.array(attack(model, x, y, index=self.start + rows), np.float32)
        fine = legal(self.plan.threat, points, x, self.plan.threat.epsilon)
        points[~fine] = x[~fine]
        return fine & attack_room.verdicts(model, points, y)

    def _solved(self, rows, epsilon, best, rounding, place=None):
        """Which rows complete verification verifies and which it breaks, kept after each image.

        Args:
            rows, epsilon: Images and radius.
            best, rounding: What bounds have found; `best` changes.
            place: The stage, None for a radius of the curve, where nothing is broken.
        """
        plan, model, name = self.plan, self.plan.model, f"exact {epsilon!r}"
        if plan.methods[0] == "exact":  # no bound has told yet what rounding may add
            found = class_margins(model, self.x[rows], self.y[rows], plan.threat, epsilon)
            rounding[rows] = found[1]
        known = {key: np.zeros(len(self.x), bool) for key in ("tried", "verified", "broken")}
        known = {**known, "best": best, **self.state.kept(self.number, name)}
        best[:] = known["best"]
        tried, verified, broken = known["tried"], known["verified"], known["broken"]
        other = _others(self.y, plan.classes)
        for count, row in enumerate(rows):
            if tried[row]:
                continue
            if place is not None:
                share = (place + count / len(rows)) / len(plan.stages)
                self._tell(share, f"exact, {count + 1} of {len(rows)}")
            end = time.perf_counter() + plan.time_limit
            x, y = self.x[row : row + 1], self.y[row : row + 1]
            problem = complete.Problem(plan.program, Box(*plan.threat.box(tf.constant(x), epsilon)))
            if problem.open <= complete.BINARIES:
                left = np.flatnonzero(other[row] & (best[row] <= rounding[row]))
                found = problem.least(int(y[0]), left.tolist(), end - time.perf_counter())
                best[row, left] = np.maximum(best[row, left], found.margin)
                verified[row] = found.margin > max(complete.ROUNDING, rounding[row])
                if place is not None and found.x is not None and not verified[row]:
                    point = plan.threat.project(tf.constant(found.x[None]), x)
                    broken[row] = attack_room.verdicts(model, point.numpy(), y)[0]
            tried[row] = True
            if place is not None:
                self._count(place)
            self.state.keep(self.number, name, **{**known, "best": best})
        return verified[rows], broken[rows]

    def _curve(self):
        """{name: bool array}: verified at each radius of the grid."""
        plan, own = self.plan, self.status == VERIFIED
        found, clean = {}, self.by != 0
        for epsilon in [e for e in plan.grid if e > plan.threat.epsilon]:
            own = own & self._at(epsilon, own)
            found[at_radius(epsilon)] = own
        own = self.status == VERIFIED
        if plan.grid and plan.threat.epsilon:
            found[at_radius(plan.threat.epsilon)] = own
        for epsilon in [e for e in plan.grid[::-1] if e < plan.threat.epsilon]:
            own = own | self._at(epsilon, clean & ~own)
            found[at_radius(epsilon)] = own
        return found

    def _at(self, epsilon, candidates):
        """Which of the candidates the methods verify at one radius."""
        self._tell(1.0, f"epsilon {epsilon:g}")
        found, best = np.zeros(len(self.x), bool), np.full_like(self.best, -np.inf)
        rounding = np.zeros_like(self.rounding)
        for name in self.plan.methods:
            rows = np.flatnonzero(candidates & ~found)
            if len(rows) and name == "exact":
                found[rows] = self._solved(rows, epsilon, best, rounding)[0]
            elif len(rows):
                found[rows] = self._bounded(rows, epsilon, name, best, rounding)
        return found

    def _tell(self, share, detail):
        known = self.state.records.get("status", self.status[:0])
        stage = self.state.records.get("stage", self.by[:0])
        status, stage = np.concatenate([known, self.status]), np.concatenate([stage, self.by])
        self.display.update(
            self.start + share * len(self.x),
            (stage != 0).mean(),
            (status == VERIFIED).mean(),
            detail,
        )


def at_radius(epsilon):
    return f"epsilon {epsilon!r}"


def _others(y, classes):
    return y[:, None] != np.arange(classes)


def _certificate(plan, state):
    records = state.records
    n, status, by = len(records["label"]), records["status"], records["stage"]
    stages, left = [], np.ones(n, bool)
    for place, name in enumerate(plan.stages):
        mine = by == place
        counts = [int((mine & (status == s)).sum()) for s in (VERIFIED, BROKEN)]
        stages.append(Stage(name, int(left.sum()), *counts, state.notes["seconds"][place]))
        left &= ~mine
    curve = None
    clean = Rate(int((by != 0).sum()), n)
    if plan.grid:
        rates = [Rate(int(records[at_radius(e)].sum()), n) for e in plan.grid]
        curve = CertifiedCurve(plan.threat.norm, (0.0, *plan.grid), (clean, *rates))
    found_wrong = bool(plan.attacks) or "exact" in plan.methods
    return Certificate(
        n=n,
        classes=plan.classes,
        threat=repr(plan.threat),
        epsilon=plan.threat.epsilon,
        clean=clean,
        attacked=Rate(int((status != BROKEN).sum()), n) if found_wrong else None,
        verified=Rate(int((status == VERIFIED).sum()), n),
        stages=tuple(stages),
        curve=curve,
        seconds=state.seconds,
        records=dict(records),
    )
