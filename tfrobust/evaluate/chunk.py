"""One chunk of images: clean answers, then every attack on what it may see, judged afresh."""

import numpy as np
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import MinimumNorm

NEVER = -1  # no run broke the image


class Chunk:
    """Attacks on one chunk; what is found goes into arrays of one row per image.

    Args:
        plan: The evaluation: model, attacks, grid, `logits(x, number, start)`.
        number, start: Which chunk this is, and the global index of its first image.
        x, y: Images and labels.
        state: `State`; runs that it holds already are not made again.
        display: `Progress`.
    """

    def __init__(self, plan, number, start, x, y, state, display):
        self.plan, self.number, self.start = plan, number, start
        self.x, self.y, self.state, self.display = x, y, state, display
        self.done = 0
        passes = [*plan.attacks.values(), *[plan.curve_attack] * len(plan.grid)]
        self.total = sum(_length(a) * len(runs_of(a, plan.classes)) for a in passes) or 1

    def records(self):
        """{name: array} of the whole chunk."""
        plan, x, y = self.plan, self.x, self.y
        clean = plan.logits(x, self.number, self.start).argmax(-1) == y
        found, left, self.clean = {"label": y, "clean": clean}, clean.copy(), clean
        for name, attack in plan.attacks.items():
            target = left if plan.cascade else clean
            traces = self.attack(name, attack, target, left, None)
            broken = traces.pop("broken")
            left &= ~broken
            found[name] = left.copy() if plan.cascade else clean & ~broken
            found.update({f"{name}: {key}": values for key, values in traces.items()})
        at = clean.copy()
        for epsilon in plan.grid:
            at = self._at(epsilon, at, found, left)
            found[at_radius(epsilon)] = at.copy()
        found["joint"] = left
        return found

    def _at(self, epsilon, at, found, left):
        """Rows still right at one radius of the curve, out of those right at the one before."""
        attack, known = self.plan.curve_attack, None
        for name, other in self.plan.attacks.items():
            if other is attack and not self.plan.cascade:
                if isinstance(attack, MinimumNorm):
                    return at & (found[f"{name}: distance"] > epsilon)
                if epsilon >= attack.threat.epsilon:
                    known = found[name]
        at = at if known is None else at & known
        if known is None or epsilon != attack.threat.epsilon:
            key = f"{attack.name} epsilon {epsilon:g}"
            at = at & ~self.attack(key, attack, at, left, epsilon)["broken"]
        return at

    def attack(self, name, attack, target, left, epsilon):
        """What one attack does to the rows of `target`: {"broken", "run", "queries", ...}."""
        if isinstance(attack, MinimumNorm):
            return self._nearest(name, attack, target, left, epsilon)
        count = len(self.x)
        kept = self.state.kept(self.number, name)
        by = kept.get("run", np.full(count, NEVER, np.int16))
        spent = kept.get("spent", np.zeros((2, count), np.int64))
        runs = runs_of(attack, self.plan.classes)
        first = int(kept.get("done", 0))
        self.done += first * _length(attack)
        for place, run in enumerate(runs[first:], first):
            rows = np.flatnonzero(target & (by == NEVER))
            self._tell(attack, place, len(runs), left & (by == NEVER), epsilon)
            if not len(rows):
                continue
            part, costs = self._once(attack, rows, run, epsilon)
            spent[:, rows] += costs
            by[rows[self._success(name, attack, part, rows, epsilon)]] = run
            self.state.keep(self.number, name, run=by, spent=spent, done=np.array(place + 1))
        found = {"broken": by != NEVER}
        if epsilon is None:
            found["run"] = by
            if hasattr(attack, "result"):
                found.update(queries=spent[0], gradients=spent[1])
        return found

    def _nearest(self, name, attack, target, left, epsilon):
        """The same for an attack that looks for the smallest change, whatever the radius."""
        kept = self.state.kept(self.number, name)
        rows = np.flatnonzero(target)
        if not kept:
            self._tell(attack, 0, 1, left, epsilon)
            distance = np.full(len(self.x), np.inf, np.float32)
            spent = np.zeros((2, len(self.x)), np.int64)
            if len(rows):
                part, costs = self._once(attack, rows, None, epsilon)
                spent[:, rows] = costs
                won = rows[self._success(name, attack, part, rows, np.inf)]
                change = attack.threat.distance(
                    tf.constant(part[np.isin(rows, won)]), tf.constant(self.x[won])
                )
                distance[won] = change.numpy()
            kept = {"distance": distance, "spent": spent}
            self.state.keep(self.number, name, **kept)
        radius = attack.threat.epsilon if epsilon is None else epsilon
        broken = target & (kept["distance"] <= radius)
        return {
            **{"broken": broken, "distance": kept["distance"]},
            **{"queries": kept["spent"][0], "gradients": kept["spent"][1]},
        }

    def _once(self, attack, rows, run, epsilon):
        """(points, (queries, gradients) of each row) of one run."""
        model, x, y, index = self.plan.model, self.x[rows], self.y[rows], self.start + rows
        extra = {} if epsilon is None else {"epsilon": epsilon}
        if isinstance(attack, MinimumNorm):
            result = attack.minimum(model, x, y, index=index)
        elif hasattr(attack, "result"):
            result = attack.result(model, x, y, index=index, run=run, **extra)
        else:
            part = np.array(attack(model, x, y, index=index, run=run, **extra), np.float32)
            if part.shape != x.shape:
                raise ValueError(
                    f"`attacks`: {type(attack).__name__} must return images of shape {x.shape}. "
                    f"Received: shape {part.shape}"
                )
            return part, 0
        return result.x_adv.copy(), np.stack([result.queries, result.gradients])

    def _success(self, name, attack, part, rows, epsilon):
        """Which points are legal and wrong; others are replaced by the images in place."""
        radius = attack.threat.epsilon if epsilon is None else epsilon
        fine = legal(attack.threat, part, self.x[rows], radius)
        if name in self.plan.attacks and not fine.all():
            counts = self.state.notes["illegal"]
            counts[name] = counts.get(name, 0) + int((~fine).sum())
        part[~fine] = self.x[rows][~fine]  # an illegal point may hold NaN
        logits = self.plan.logits(part, self.number, self.start)
        margin = losses.margin(tf.constant(logits), tf.constant(self.y[rows])).numpy()
        return fine & (margin > 0)

    def _tell(self, attack, place, runs, left, epsilon):
        records = self.state.records
        robust = np.concatenate([records.get("joint", left[:0]), left])
        clean = np.concatenate([records.get("clean", left[:0]), self.clean])
        detail = getattr(attack, "name", type(attack).__name__) + (
            f" run {place + 1}/{runs}" if runs > 1 else ""
        )
        detail += "" if epsilon is None else f" epsilon {epsilon:g}"
        share = self.start + len(self.x) * self.done / self.total
        self.display.update(share, clean.mean(), robust.mean(), detail)
        self.done += _length(attack)


def runs_of(attack, classes):
    """The runs to make: an attack of ours leaves out what cannot help on so few classes."""
    if isinstance(attack, MinimumNorm):
        return [0]
    if hasattr(attack, "runs_of"):
        return attack.runs_of(classes)
    return list(range(attack.runs))


def at_radius(epsilon):
    return f"epsilon {epsilon!r}"


def _length(attack):
    runs = attack.runs if isinstance(attack, MinimumNorm) else 1
    return runs * (getattr(attack, "steps", None) or getattr(attack, "iterations", 0) or 1)


def legal(threat, x_adv, x, radius):
    """Rows inside the box and the ball; sums of float32 differences need some room."""
    axes = tuple(range(1, x.ndim))
    box = np.isfinite(x_adv).all(axes) & (x_adv >= 0).all(axes) & (x_adv <= 1).all(axes)
    distance = np.asarray(threat.distance(tf.constant(x_adv), tf.constant(x)))
    return box & (distance <= radius * (1 + 1e-5) + 1e-6)
