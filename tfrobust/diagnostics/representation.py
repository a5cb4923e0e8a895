"""How far an attack moves the representation h = E(x), in which direction, and how large it is.

Each function takes h at the input of the last Dense layer, or behind `feature_layer`. With unit
features (`tr.models.unit_features`) that is what the decoder sees.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tfrobust import contract, regularizers
from tfrobust.diagnostics import checks

CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """||E(x') - E(x)||_2 / ||E(x)||_2 of each image.

    Attributes:
        values: float64 `(n,)`, of the images whose representation is not zero.
        left_out: Images whose is.
    """

    values: np.ndarray
    left_out: int = 0

    @property
    def n(self):
        return len(self.values)

    @property
    def median(self):
        return float(np.median(self.values))

    @property
    def deviation(self):
        """Standard deviation over the images."""
        return float(self.values.std())

    def to_dict(self):
        """Plain numbers."""
        told = {"median": self.median, "deviation": self.deviation, "n": self.n}
        return {**told, "left_out": self.left_out}


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """Size of a representation over a set of images.

    Attributes:
        units: Features that are ever larger than the tolerance.
        features: All features.
        dimensions: Least number of principal components that explain `share` of the variance.
        explained: float64 `(features,)`, share of the variance of each component, descending.
        share: Float in (0, 1].
        n: Images.
        lone: Those of them that light one feature alone. Divided by its length, the representation
            is the same for all of these that light the same one: attacks by gradients stand still.
    """

    units: int
    features: int
    dimensions: int
    explained: np.ndarray
    share: float
    n: int
    lone: int = 0

    def to_dict(self):
        """Plain numbers."""
        names = ("units", "features", "dimensions", "share", "n", "lone")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Angles:
    """Angles between two perturbations in the representation, in radians.

    Attributes:
        values: float64 `(n,)` in [0, pi], of the pairs that both move h.
        left_out: Pairs of which one does not.
    """

    values: np.ndarray
    left_out: int

    @property
    def mean(self):
        return float(self.values.mean()) if len(self.values) else float("nan")

    @property
    def deviation(self):
        """Standard deviation over the images."""
        return float(self.values.std()) if len(self.values) else float("nan")

    def to_dict(self):
        """Plain numbers."""
        means = {"mean": self.mean, "deviation": self.deviation}
        return {**means, "n": len(self.values), "left_out": self.left_out}


@dataclasses.dataclass(frozen=True)
class Planes:
    """Representations of clean and of attacked images in planes of their own.

    Attributes:
        clean: float32 `(n, 2)`, clean images alone.
        epsilons: Tuple of k radii, ascending.
        pairs: float32 `(k, 2, n, 2)`: for each radius clean and attacked images in one plane.
        labels: Integers `(n,)`.
    """

    clean: np.ndarray
    epsilons: tuple
    pairs: np.ndarray
    labels: np.ndarray

    def to_dict(self):
        """Plain lists."""
        parts = {name: getattr(self, name).tolist() for name in ("clean", "pairs", "labels")}
        return {**parts, "epsilons": list(self.epsilons)}


def representation_of(model, x, feature_layer=None):
    """h of every image in inference mode, flattened: float64 `(n, features)`."""
    checks.classifier(model)
    view = regularizers.representation(model, feature_layer)
    rows = []
    for start in range(0, len(x), CHUNK):
        h = np.asarray(view(tf.constant(x[start : start + CHUNK]), training=False)[1])
        rows.append(h.reshape(len(h), -1).astype(np.float64))
    return checks.finite(np.concatenate(rows), "features")


def _images(model, **given):
    """Images of one shape, by name."""
    found = [contract.images(x, name) for name, x in given.items()]
    for name, x in zip(given, found, strict=True):
        contract.fits(model, x, name)
        if x.shape != found[0].shape:
            raise ValueError(
                f"`{name}` must have the shape of `{next(iter(given))}`, {found[0].shape}. "
                f"Received: shape={x.shape}"
            )
    return found


def representation_sensitivity(model, x, x_adv, feature_layer=None):
    """How far each image's representation moves, relative to its length.

    Args:
        model: Functional classifier.
        x, x_adv: Images `(n, ...)` in [0, 1] of one shape.
        feature_layer: Name of a layer, default the input of the last Dense.

    Returns:
        `Sensitivity`; 0 where nothing moves, at most 2 for unit features.

    Raises:
        TypeError, ValueError: a model or images that cannot be; only representations of length 0.

    Reference: Bashivan et al. (2021), Figure 4, https://arxiv.org/abs/2006.04621.

    Example:

    >>> from tfrobust import models
    >>> x = np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 1))
    >>> representation_sensitivity(models.digits_net(), x, x).median
    0.0
    """
    x, x_adv = _images(model, x=x, x_adv=x_adv)
    h, h_adv = (representation_of(model, v, feature_layer) for v in (x, x_adv))
    length = np.linalg.norm(h, axis=1)
    some = length > 0
    if not some.any():
        raise ValueError(
            "`model` must have a representation of length > 0. Received: "
            f"{len(x)} images, all with features of 0"
        )
    shift = np.linalg.norm(h_adv - h, axis=1)[some] / length[some]
    return Sensitivity(shift, int((~some).sum()))


def feature_dimensions(model, x, feature_layer=None, share=0.99, tolerance=1e-6):
    """Counts the features that are used, and the principal components that tell nearly all.

    Args:
        model, feature_layer: as for `representation_sensitivity`.
        x: Images `(n, ...)` in [0, 1], n >= 2.
        share: Float in (0, 1] of the variance.
        tolerance: Float >= 0: a feature is used if max |h_j| is larger.

    Returns:
        `Dimensions`.

    Reference: Bashivan et al. (ICLR 2021 submission), Table A5.

    Example:

    >>> from tfrobust import models
    >>> x = np.random.default_rng(0).uniform(0, 1, (40, 8, 8, 1))
    >>> found = feature_dimensions(models.digits_net(), x)
    >>> found.features, found.dimensions < 40
    (64, True)
    """
    (x,) = _images(model, x=x)
    if len(x) < 2:
        raise ValueError(f"`x` must hold two images or more. Received: {len(x)}")
    if not 0 < checks.number("share", share, 1.0):
        raise ValueError(f"`share` must lie in (0, 1]. Received: share={share!r}")
    tolerance = checks.number("tolerance", tolerance)
    h = representation_of(model, x, feature_layer)
    variance = np.zeros(h.shape[1])
    singular = np.linalg.svd(h - h.mean(0), compute_uv=False)
    variance[: len(singular)] = singular**2
    total = variance.sum()
    explained = variance / total if total else variance
    enough = np.cumsum(explained) >= share - 1e-12
    return Dimensions(
        units=int((np.abs(h).max(0) > tolerance).sum()),
        features=h.shape[1],
        dimensions=int(np.argmax(enough)) + 1 if total else 0,
        explained=explained,
        share=float(share),
        n=len(x),
        lone=int(((np.abs(h) > tolerance).sum(1) == 1).sum()),
    )


def perturbation_angles(model, x, x_adv, x_other, feature_layer=None):
    """Angles between E(x_adv) - E(x) and E(x_other) - E(x), image by image.

    Args:
        model, feature_layer: as for `representation_sensitivity`.
        x, x_adv, x_other: Images `(n, ...)` in [0, 1] of one shape: clean, and by two attacks.

    Returns:
        `Angles`; pairs of which one does not move h have none.

    Reference: Bashivan et al. (ICLR 2021 submission), Table A7.

    Example:

    >>> from tfrobust import models
    >>> x, other = np.random.default_rng(0).uniform(0, 1, (2, 4, 8, 8, 1))
    >>> round(perturbation_angles(models.digits_net(), x, other, other).mean, 3)
    0.0
    """
    x, x_adv, x_other = _images(model, x=x, x_adv=x_adv, x_other=x_other)
    h, one, other = (representation_of(model, v, feature_layer) for v in (x, x_adv, x_other))
    return angles(one - h, other - h)


def angles(first, second):
    """`Angles` between the rows of two arrays `(n, features)`.

    >>> angles(np.array([[1.0, 0], [1, 0], [0, 0]]), np.array([[0.0, 2], [-3, 0], [1, 1]])).values
    array([1.57079633, 3.14159265])
    """
    lengths = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    some = (lengths[0] > 0) & (lengths[1] > 0)
    product = (first * second).sum(1)[some] / (lengths[0] * lengths[1])[some]
    return Angles(np.arccos(np.clip(product, -1, 1)), int((~some).sum()))


def tsne(model, x, feature_layer=None, seed=0, perplexity=30.0):
    """Coordinates `(n, 2)` of the representation of images in the plane (van der Maaten, 2008).

    Neighbours in the plane are neighbours in h; distances, sizes and gaps of clouds mean nothing.
    Put clean and attacked images into one `x` to see them in one plane, and give every method the
    same images and seed.

    Args:
        model, feature_layer: as for `representation_sensitivity`.
        x: Images `(n, ...)` in [0, 1], n > perplexity.
        seed: Integer.
        perplexity: Float > 0, neighbours that a point looks at.

    Returns:
        float32 `(n, 2)`.

    Example:

    >>> from tfrobust import models
    >>> x = np.random.default_rng(0).uniform(0, 1, (12, 8, 8, 1))
    >>> tsne(models.digits_net(), x, perplexity=3.0).shape
    (12, 2)
    """
    from sklearn.manifold import TSNE

    (x,) = _images(model, x=x)
    if not 0 < checks.number("perplexity", perplexity) < len(x):
        raise ValueError(
            f"`perplexity` must lie in (0, {len(x)}), the number of images. "
            f"Received: perplexity={perplexity!r}"
        )
    seed = contract.whole("seed", seed, 0)
    h = representation_of(model, x, feature_layer)
    return TSNE(perplexity=float(perplexity), init="pca", random_state=seed).fit_transform(h)


def tsne_planes(model, x, y, x_adv, feature_layer=None, seed=0, perplexity=30.0):
    """Clean images alone, and beside attacked ones of every strength (Figures A8 to A10).

    Args:
        model, feature_layer, seed, perplexity: as for `tsne`.
        x, y: Images `(n, ...)` in [0, 1] and integer labels `(n,)`; the same for all methods.
        x_adv: {epsilon: images `(n, ...)`}, what an attack of that radius made of them.

    Returns:
        `Planes`.

    Reference: Bashivan et al. (ICLR 2021 submission), Figures A8 to A10.

    Example:

    >>> from tfrobust import models
    >>> x = np.random.default_rng(0).uniform(0, 1, (8, 8, 8, 1))
    >>> found = tsne_planes(models.digits_net(), x, range(8), {0.1: 1 - x}, perplexity=3.0)
    >>> found.clean.shape, found.epsilons, found.pairs.shape
    ((8, 2), (0.1,), (1, 2, 8, 2))
    """
    (x,) = _images(model, x=x)
    labels = contract.labels(y, contract.classes_of(model), count=len(x))
    if not isinstance(x_adv, dict):
        raise TypeError(
            f"`x_adv` must be a dict {{epsilon: images}}. Received: {type(x_adv).__name__}"
        )
    epsilons = sorted(checks.number("x_adv", epsilon) for epsilon in x_adv)
    given = [_images(model, x=x, x_adv=x_adv[epsilon])[1] for epsilon in epsilons]
    options = (feature_layer, seed, perplexity)
    clean = tsne(model, x, *options)
    pairs = [tsne(model, np.concatenate([x, moved]), *options) for moved in given]
    pairs = np.array(pairs, np.float32).reshape(len(pairs), 2, len(x), 2)
    return Planes(clean, tuple(epsilons), pairs, labels)
