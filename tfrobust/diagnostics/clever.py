"""The CLEVER score: how far the nearest other class may be, guessed from sampled gradients."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfrobust import attacks, contract, noise, threats
from tfrobust.attacks.backward import Passes
from tfrobust.attacks.call import compiled, logits_of
from tfrobust.diagnostics import checks
from tfrobust.diagnostics.weibull import right_end

DUAL = {"linf": threats.L1(1.0), "l2": threats.L2(1.0), "l1": threats.Linf(1.0)}


@dataclasses.dataclass(frozen=True)
class Clever:
    """CLEVER scores of n images: estimates, never certificates.

    Attributes:
        scores: Float `(n,)`, in the norm of the threat, at most its radius; 0 where the image is
            wrong as it is.
        nearest: Class `(n,)` at which the smallest score was found.
        lipschitz: Estimate `(n,)` of the local Lipschitz constant towards that class.
        p_values: Of its fit, `(n,)`; NaN where the largest sample was taken instead.
        threat: Norm and radius.
        batches, samples: How many were drawn for each image.
    """

    scores: np.ndarray
    nearest: np.ndarray = dataclasses.field(repr=False)
    lipschitz: np.ndarray = dataclasses.field(repr=False)
    p_values: np.ndarray = dataclasses.field(repr=False)
    threat: threats.Threat
    batches: int
    samples: int

    @property
    def value(self):
        """The mean score."""
        return float(self.scores.mean())

    def to_dict(self):
        """Plain numbers and strings, without the single images."""
        return {
            "value": self.value, "n": len(self.scores), "norm": self.threat.norm,
            "radius": self.threat.epsilon, "capped": self.capped, "fitted": self.fitted,
            "batches": self.batches, "samples": self.samples,
        }  # fmt: skip

    @property
    def capped(self):
        """Images whose score is the radius: more than it can say."""
        return int((self.scores >= self.threat.epsilon).sum())

    @property
    def fitted(self):
        """Images whose Lipschitz constant comes from an accepted fit."""
        return int(np.isfinite(self.p_values).sum())

    def __str__(self):
        return (
            f"CLEVER {self.value:.4f} ({self.threat.norm}, n = {len(self.scores)}, "
            f"{self.capped} at the radius {self.threat.epsilon:g}, {self.fitted} fitted; "
            f"{self.batches} x {self.samples} samples): an estimate, not a bound"
        )


def clever(
    model, x, y, threat, goal=None, batches=500, samples=1024, candidates=None, seed=0,
    progress=False,
):  # fmt: skip
    """Estimates the distance of the nearest other class by extreme values of gradients.

    For class c of the image and another class j let g = z_c - z_j. Of `batches` batches of
    `samples` points, uniform in the ball of the threat and then clipped to the pixel box, the
    largest ||grad g||_q of each is kept (1/p + 1/q = 1). A reverse Weibull distribution is fitted
    to these maxima; its right end L stands for the local Lipschitz constant, and the score is
    min(g(x) / L, radius), untargeted the smallest over j.

    It is an estimate: too few samples miss the steepest place and the score is too large, and
    gradients that vanish (masking) make it large as well.

    Args:
        model: Functional classifier.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`.
        threat: `tr.threats.L2`, `Linf` or `L1`: norm, and the radius of the ball.
        goal: Integer labels `(n,)`: the score towards this class only (targeted).
        batches: Integer >= 2; 500 in the paper, a tenth will do for a test.
        samples: Integer >= 1, points of each batch; 1,024 in the paper.
        candidates: Integer >= 1: only so many likeliest other classes; default all.
        seed: Integer. The same seed gives the same scores, whatever other images there are.
        progress: Print a line for each image.

    Returns:
        `Clever`.

    Raises:
        TypeError, ValueError: arguments outside of these ranges, a model that is not finite.

    Reference: Weng et al., Evaluating the robustness of neural networks: an extreme value theory
    approach (2018), https://arxiv.org/abs/1801.10578. Their code samples another distribution in
    the ball, lets the l2 samples serve all norms, and does not cap.

    Example: on a linear model the score is the exact distance.

    >>> import keras
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> net.set_weights([np.array([[3.0], [-4.0]])])                    # |3 a - 4 b| / 5 = 0.1
    >>> net = keras.Model(net.inputs, net.outputs)
    >>> x, y = np.array([[0.5, 0.25]]), np.array([1])
    >>> clever(net, x, y, threats.L2(0.5), batches=4, samples=8).scores.round(4).tolist()
    [0.1]
    """
    checks.classifier(model)
    x, classes = contract.images(x), contract.classes_of(model)
    contract.fits(model, x)
    y = contract.labels(y, classes, count=len(x))
    if not isinstance(threat, threats.Threat) or threat.norm not in DUAL:
        raise TypeError(
            "`threat` must be tr.threats.L2, Linf or L1: the norm and the radius of the ball. "
            f"Received: threat={threat!r}"
        )
    if not threat.epsilon > 0:
        raise ValueError(f"`threat` must have a radius > 0. Received: threat={threat!r}")
    batches, samples = contract.whole("batches", batches, 2), contract.whole("samples", samples, 1)
    seed = contract.whole("seed", seed, 0)
    if candidates is not None:
        candidates = contract.whole("candidates", candidates, 1)
    if goal is not None:
        goal = contract.labels(goal, classes, "goal", count=len(x))
        if (goal == y).any():
            raise ValueError(f"`goal` must differ from `y`. Received: both {y[goal == y][0]}")
    logits = np.asarray(checks.finite(attacks.forward(model, x), "logits"), np.float64)
    logits = np.pad(logits, ((0, 0), (1, 0))) if logits.shape[1] == 1 else logits
    count = 1 if goal is not None else min(candidates or classes, classes - 1)
    steepest = _steepest(model, threat, samples)
    found = []
    for i in range(len(x)):
        others = np.argsort(-np.where(np.arange(classes) == y[i], -np.inf, logits[i]))[:count]
        others = others if goal is None else goal[i : i + 1]
        if logits[i, y[i]] < np.delete(logits[i], y[i]).max():
            found.append((0.0, int(logits[i].argmax()), np.nan, np.nan))
            continue
        maxima = np.array([
            steepest(
                tf.constant(x[i]), tf.constant(y[i]), tf.constant(others, tf.int32),
                noise.keys(seed, f"CLEVER:{threat.norm}", np.arange(samples), run),
            )
            for run in range(batches)
        ])  # fmt: skip
        checks.finite(maxima, "gradients")
        found.append(min(_scored(logits[i], y[i], others, maxima, threat.epsilon)))
        if progress:
            print(f"CLEVER: image {i + 1}/{len(x)}, score {found[-1][0]:.4f}", flush=True)
    scores, nearest, lipschitz, p = zip(*found, strict=True)
    return Clever(
        *(np.array(scores), np.array(nearest), np.array(lipschitz), np.array(p)),
        *(threat, batches, samples),
    )


def _scored(logits, own, others, maxima, radius):
    """(score, class, Lipschitz constant, p-value) towards each of the other classes."""
    for place, other in enumerate(others):
        end, p = right_end(maxima[:, place])
        gap = logits[own] - logits[other]
        yield min(gap / end, radius) if end > 0 else radius, int(other), end, p


def _steepest(model, threat, samples):
    """Compiled: image, class, other classes `(k,)`, keys -> the largest norms `(k,)`."""

    def steepest(image, own, others, keys):
        around = tf.repeat(image[None], samples, axis=0)
        points = threat.random_start(around, keys)
        with Passes(points) as passes:
            logits = logits_of(model, points)
        classes = logits.shape[-1]

        def norm(other):
            weights = tf.one_hot(own, classes) - tf.one_hot(other, classes)
            slope = passes.gradient(logits, tf.tile(weights[None], (samples, 1)))
            # A maximum may pass over NaN.
            known = tf.reduce_all(tf.math.is_finite(slope))
            return tf.where(known, tf.reduce_max(DUAL[threat.norm].distance(slope, 0.0)), np.nan)

        return tf.map_fn(norm, others, fn_output_signature=tf.float32)

    return compiled(steepest)
