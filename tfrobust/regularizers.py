"""Penalties on a clean and an adversarial pass: V, the vulnerability of hidden features.

A regularizer is any callable `(clean, adversarial) -> (batch,)` of two `Pass` objects; games take
a list of them and weigh each example as the loss does.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract


@dataclasses.dataclass
class Pass:
    """What one forward pass leaves: logits `(batch, classes)` and the recorded features."""

    logits: Any
    features: list

    def only(self, places):
        """The same pass with the features at these places."""
        return Pass(self.logits, [self.features[place] for place in places])


def feature_layers(model):
    """Names of the layers whose outputs are hidden features: every activation that is no output.

    >>> from tfrobust import models
    >>> feature_layers(models.lenet5_caffe())
    ['relu_conv1', 'relu_conv2', 'relu_dense3']
    """
    linear = (None, keras.activations.linear)
    last = model.outputs[0]._keras_history.operation

    def is_feature(layer):
        kinds = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
        kinds += (keras.layers.ELU, keras.layers.PReLU)
        fused = getattr(layer, "activation", None) not in linear
        return layer is not last and (isinstance(layer, kinds) or fused)

    names = [layer.name for layer in model.layers if is_feature(layer)]
    if not names:
        raise ValueError(
            "`features` must be given for a model without hidden activations. "
            f"Received: model '{model.name}'"
        )
    return names


def with_features(model, names):
    """A functional model on the same layers that returns [logits, *features]."""
    known = {layer.name for layer in model.layers}
    for name in names:
        if name not in known:
            raise ValueError(
                f"`features` must name layers of '{model.name}': {sorted(known)}. "
                f"Received: {name!r}"
            )
        if len(model.get_layer(name)._inbound_nodes) != 1:
            raise ValueError(
                f"`features` must name layers that are used once in '{model.name}'. "
                f"Received: {name!r}"
            )
    outputs = [model.get_layer(name).output for name in names]
    return keras.Model(model.inputs[0], [model.outputs[0], *outputs])


def representation(model, feature_layer=None):
    """A functional model on the same layers that returns [logits, h], h the representation.

    Args:
        model: Functional classifier.
        feature_layer: Name of the layer whose output is h, default the input of the last Dense.

    Raises:
        ValueError: a name that is none, or a model that does not end in a Dense layer.

    >>> from tfrobust import models
    >>> representation(models.lenet5_caffe()).outputs[1].shape
    (None, 500)
    """
    if feature_layer is None:
        last = model.outputs[0]._keras_history.operation
        if not isinstance(last, keras.layers.Dense):
            raise ValueError(
                "`feature_layer` must be given for a model that does not end in a Dense layer. "
                f"Received: '{model.name}' ends in {type(last).__name__} '{last.name}'"
            )
        h = last.input
    else:
        names = [layer.name for layer in model.layers]
        if feature_layer not in names:
            raise ValueError(
                f"`feature_layer` must name a layer of '{model.name}': {names}. "
                f"Received: feature_layer={feature_layer!r}"
            )
        h = model.get_layer(feature_layer).output
    if not isinstance(h, keras.KerasTensor) or len(h.shape) < 2 or None in h.shape[1:]:
        raise ValueError(
            "`feature_layer` must have one output (batch, ...) of known size. "
            f"Received: feature_layer={feature_layer!r} with {getattr(h, 'shape', h)}"
        )
    return keras.Model(model.inputs[0], [model.outputs[0], h])


def _per_example(values, reduction):
    flat = tf.reshape(tf.cast(values, tf.float32), (tf.shape(values)[0], -1))
    return tf.reduce_mean(flat, -1) if reduction == "mean" else tf.reduce_sum(flat, -1)


def check_reduction(reduction):
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum'. Received: reduction={reduction!r}")
    return reduction


@keras.saving.register_keras_serializable(package="tfrobust")
class VulnerabilitySuppression:
    """V = mean over layers of mean over units |z(x) - z(x')| (Madaan et al., 2020, eq. 1, 2 and 6).

    Both branches are differentiated. With `reduction="sum"` the units of a layer are summed, as in
    the authors' blog post: the same weight then acts hundreds of times stronger.

    Args:
        weight: Float >= 0, lambda. 0 switches the term off: it is not even computed.
        reduction: "mean" (the paper's formula) or "sum".
        features: Names of layers, default `feature_layers(model)`.
        units: None, or with "mean" the number of units of each of the `features` that its mean is
            over, cut ones included: a unit that is gone does not move, and the term stays what it
            was (`tr.training.shrunk` sets it).
    """

    def __init__(self, weight=1.0, reduction="mean", features=None, units=None):
        self.weight = contract.nonnegative("weight", weight)
        self.reduction = check_reduction(reduction)
        self.features = None if features is None else list(features)
        if units is not None and (reduction != "mean" or len(units) != len(features or ())):
            raise ValueError(
                '`units` must hold a count for each of the `features`, with reduction="mean". '
                f"Received: units={units}, features={features}, reduction={reduction!r}"
            )
        self.units = None if units is None else [int(count) for count in units]

    def __call__(self, clean, adversarial):
        gaps = [
            tf.abs(z - z_adv) for z, z_adv in zip(clean.features, adversarial.features, strict=True)
        ]
        if self.units is None:
            layers = [_per_example(gap, self.reduction) for gap in gaps]
        else:
            pairs = zip(gaps, self.units, strict=True)
            layers = [_per_example(gap, "sum") / count for gap, count in pairs]
        return self.weight * tf.add_n(layers) / len(layers)

    def get_config(self):
        return {
            "weight": self.weight,
            "reduction": self.reduction,
            "features": self.features,
            "units": self.units,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfrobust")
class RepresentationMatching:
    """mean ||E(x) - E(x')||_2, not squared: the "L2" baseline of Bashivan et al. (2021).

    `AdversarialTraining(net, attack, mix=(1, 0), regularizers=[RepresentationMatching(...)])`
    minimises CE(x) + weight * mean ||E(x) - E(x')||_2; the paper gives no weight (sweep 0.1, 1,
    10). Both branches are differentiated; the gradient at E(x') = E(x) is 0.

    Args:
        feature_layer: Name of the layer whose output is E(x); maps are flattened.
        weight: Float >= 0. 0 switches the term off.

    Example: a feature that moves by (3, 4).

    >>> match = RepresentationMatching("pool", weight=2.0)
    >>> one, other = (Pass(None, [tf.constant([[a, b]])]) for a, b in ((0.0, 1.0), (3.0, 5.0)))
    >>> round(float(match(one, other)[0]), 4)
    10.0
    """

    def __init__(self, feature_layer, weight=1.0):
        if not isinstance(feature_layer, str):
            raise TypeError(
                "`feature_layer` must be the name of a layer. "
                f"Received: feature_layer={feature_layer!r}"
            )
        self.features, self.weight = [feature_layer], contract.nonnegative("weight", weight)

    def __call__(self, clean, adversarial):
        (h,), (h_adv,) = clean.features, adversarial.features
        square = _per_example(tf.square(tf.cast(h, tf.float32) - tf.cast(h_adv, tf.float32)), "sum")
        return self.weight * tf.sqrt(square + 1e-12)

    def get_config(self):
        return {"feature_layer": self.features[0], "weight": self.weight}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@dataclasses.dataclass
class Vulnerability:
    """Vulnerability of a network on given pairs, in inference mode: means over all of them.

    Attributes:
        per_unit: {layer: float32 array of the layer's feature shape}, E|z(x) - z(x')|. Where units
            of the unshrunk network are missing they follow as zeros, and the array is flat.
        network: V, mean over layers of the mean over units.
        relative: Mean over layers of v_l / E|z_l(x)|, each layer's V over its mean activation:
            unlike V it does not change when a layer is scaled up and the next one down.
        units: Number of scalar units, those of the unshrunk network where given.
        images: Number of pairs, if known.
        attack: What made them, as text, if known.
    """

    per_unit: dict
    network: float
    relative: float
    units: int
    images: int | None = None
    attack: str | None = None

    def per_layer(self, reduction="mean"):
        """{layer: v_l}, the mean (or the sum) over the units of each layer.

        >>> Vulnerability({"a": np.array([1.0, 3.0]), "b": np.zeros(4)}, 1.0, 0.1, 6).per_layer()
        {'a': 2.0, 'b': 0.0}
        """
        gather = np.sum if check_reduction(reduction) == "sum" else np.mean
        return {name: float(gather(v, dtype=np.float64)) for name, v in self.per_unit.items()}

    def total(self, reduction="mean"):
        """The network's V, mean over layers: `network`, or that of the sums over units."""
        if check_reduction(reduction) == "mean":
            return self.network
        return float(np.mean(list(self.per_layer("sum").values())))

    def to_dict(self):
        """Plain numbers and strings, without the single units."""
        told = {name: getattr(self, name) for name in ("network", "relative", "units", "images")}
        layers = {kind: self.per_layer(kind) for kind in ("mean", "sum")}
        return {**told, "attack": self.attack, "layers": layers}

    def __str__(self):
        notes = [self.attack] * bool(self.attack)
        notes += [f"n = {self.images:,}"] * bool(self.images)
        notes += [f"{name} {v:.4f}" for name, v in self.per_layer().items()]
        return f"V {self.network:.4f}, relative {self.relative:.4f} ({', '.join(notes)})"


def vulnerability(model, x, x_adv, features=None, units=None, batch_size=256):
    """Measures V (Madaan et al., 2020, eq. 1 and 2) over all given pairs.

    `tr.diagnostics.vulnerability` makes the pairs by an attack, and takes streams.

    Args:
        model: Functional classifier.
        x, x_adv: Float images `(batch, ...)` of the same shape.
        features: Names of layers, default `feature_layers(model)`.
        units: {layer: count}, the units of the unshrunk network, when `model` is a shrunk one:
            units that were cut count as units that never move.

    Returns:
        A `Vulnerability`.
    """
    x, x_adv = contract.images(x), contract.images(x_adv, "x_adv")
    if x.shape != x_adv.shape:
        raise ValueError(
            f"`x_adv` must have the shape of `x`, {x.shape}. Received: shape={x_adv.shape}"
        )
    rows = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    return movement(model, ((x[r], x_adv[r]) for r in rows), features, units)


def movement(model, pairs, features=None, units=None):
    """`vulnerability` of a stream: `pairs` gives batches (x, x_adv), each of them once.

    The sums over a batch are float32, those over batches float64.
    """
    names = list(features or feature_layers(model))
    net = with_features(model, names)

    def sums(x, x_adv):
        clean, moved = net(x, training=False)[1:], net(x_adv, training=False)[1:]
        gaps = [tf.reduce_sum(tf.abs(a - b), 0) for a, b in zip(clean, moved, strict=True)]
        return gaps, [tf.reduce_sum(tf.abs(a), 0) for a in clean]

    step = tf.function(sums, reduce_retracing=True)
    gaps, sizes, images = [0.0] * len(names), [0.0] * len(names), 0
    for x, x_adv in pairs:
        with buckets.expected():
            moved, whole = step(tf.constant(x), tf.constant(x_adv))
        gaps = [g + m.numpy().astype(np.float64) for g, m in zip(gaps, moved, strict=True)]
        sizes = [s + w.numpy().astype(np.float64) for s, w in zip(sizes, whole, strict=True)]
        images += len(x)
    gaps, sizes = [g / images for g in gaps], [s / images for s in sizes]
    counts = [counted(units, n, g.size) for n, g in zip(names, gaps, strict=True)]
    network = float(np.mean([g.sum() / c for g, c in zip(gaps, counts, strict=True)]))
    shares = [g.sum() / s.sum() if s.any() else 0.0 for g, s in zip(gaps, sizes, strict=True)]
    gaps = [
        np.pad(g.ravel(), (0, c - g.size)) if c > g.size else g
        for g, c in zip(gaps, counts, strict=True)
    ]
    return Vulnerability(
        per_unit={n: g.astype(np.float32) for n, g in zip(names, gaps, strict=True)},
        network=network,
        relative=float(np.mean(shares)),
        units=int(sum(counts)),
        images=images,
    )


def counted(units, name, size):
    """Units that a layer counts for: at least those that it has."""
    count = (units or {}).get(name, size)
    if count < size:
        raise ValueError(
            f"`units` must hold the counts of the unshrunk network: at least {size} at {name!r}. "
            f"Received: {count}"
        )
    return count


def penalise_kernels(model, regularizer):
    """Adds a penalty on every kernel of a built model to its loss, in place.

    `keras.regularizers.L1(1e-5)` drives weights to zero, and with them hidden units (Guo et al.,
    2018, Table 1). It works in plain `fit` and in every game, which add `model.losses` to their
    own, and is saved with the model. Biases and normalization have no kernel.

    Args:
        model: Built Keras model, or a game (its classifier is meant). Steps of `fit` and
            `evaluate` that this very object has traced are traced anew; so pass the game, if one
            has trained already.
        regularizer: `keras.Regularizer`, or None to take penalties off.

    Returns:
        Names of the layers.

    Raises:
        TypeError: `model` is no Keras 3 model, `regularizer` is not a `keras.Regularizer`.
        ValueError: the model is not built, or no layer has a kernel.

    Example:

    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="logits")])
    >>> net.set_weights([np.array([[3.0], [-4.0]]), np.ones(1)])
    >>> penalise_kernels(net, keras.regularizers.L1(0.01)), round(float(net.losses[0]), 4)
    (['logits'], 0.07)
    """
    if regularizer is not None and not isinstance(regularizer, keras.Regularizer):
        raise TypeError(
            "`regularizer` must be a keras.Regularizer such as keras.regularizers.L1(1e-5), or "
            f"None. Received: {regularizer!r}"
        )
    classifier = getattr(model, "classifier", model)
    contract.built(classifier)
    names = []
    for layer in classifier._flatten_layers(include_self=False, recursive=True):
        for part in ("kernel", "depthwise", "pointwise"):
            kernel = getattr(layer, f"{part}_kernel", getattr(layer, "kernel", None))
            if hasattr(layer, f"{part}_regularizer") and kernel is not None:
                setattr(layer, f"{part}_regularizer", regularizer)
                kernel.regularizer = regularizer
                names.append(layer.name)
    if not names:
        raise ValueError(
            f"`model` must have layers with kernels. Received: model '{classifier.name}'"
        )
    if model.train_function is not None:
        model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)
    return names
