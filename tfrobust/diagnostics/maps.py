"""Where in the image hidden features move, and which channels do: maps to look at.

seen = tr.diagnostics.vulnerability_map(net, x[:4], y[:4], pgd)          # (4, height, width)
pixels = tr.diagnostics.pixel_map(net, x[:4], y[:4], pgd)
shown = tr.diagnostics.feature_maps(net, x[:1], y[:1], pgd, found=white)
tr.report.plot_map(seen, "map.png")
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tfrobust import buckets, contract, regularizers
from tfrobust.attacks.backward import Passes
from tfrobust.attacks.call import compiled
from tfrobust.diagnostics import checks
from tfrobust.diagnostics.pairs import few
from tfrobust.diagnostics.vulnerability import ZERO, layer_of


@dataclasses.dataclass(frozen=True)
class VulnerabilityMap:
    """A map for each of n images.

    Attributes:
        maps: float32 `(n, height, width)`.
        values: Float `(n,)`, the number in brackets: v_l of that image alone (V for pixels).
        layer: Name of the feature layer; None for a map over the pixels of the image.
        x, x_adv: The images.
    """

    maps: np.ndarray
    values: np.ndarray
    layer: str | None
    x: np.ndarray = dataclasses.field(repr=False)
    x_adv: np.ndarray = dataclasses.field(repr=False)

    def first(self, count):
        """The same for the first images alone."""
        return _first(self, count, ("maps", "values", "x", "x_adv"))

    def to_dict(self):
        """Plain numbers and lists, three digits of each."""
        arrays = {name: shortened(getattr(self, name)) for name in ("maps", "values", "x", "x_adv")}
        return {"layer": self.layer, **arrays}


def vulnerability_map(model, x, y=None, attack=None, x_adv=None, layer=None, units=None):
    """Mean over channels of |z(x) - z(x')| at each place (Madaan et al., 2020, Fig. 2 b to e).

    Args:
        model: Functional classifier.
        x, y, attack, x_adv: Some images, as in `vulnerability`.
        layer: Name of a layer that returns `(batch, height, width, channels)`, default the first
            feature layer.
        units: As in `vulnerability`: channels that were cut count as channels that never move.

    Returns:
        `VulnerabilityMap`; `values` are the means of the maps.

    Raises:
        TypeError, ValueError: as `vulnerability`; a layer without maps.

    Example: one channel 2 p of each pixel p; x' moves one of two pixels by 0.25.

    >>> import keras
    >>> inputs = keras.Input((1, 2, 1))
    >>> z = keras.layers.Conv2D(1, 1, activation="relu", use_bias=False, name="conv")(inputs)
    >>> net = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(z)))
    >>> net.get_layer("conv").set_weights([np.full((1, 1, 1, 1), 2.0)])
    >>> x, x_adv = np.full((1, 1, 2, 1), 0.5), np.array([0.75, 0.5]).reshape(1, 1, 2, 1)
    >>> found = vulnerability_map(net, x, x_adv=x_adv)
    >>> found.maps.tolist(), found.values.tolist()
    ([[[0.5, 0.0]]], [0.25])
    """
    x, x_adv = few(model, x, y, attack, x_adv)
    name, net = _with_maps(model, layer)
    clean, moved = _features(net, x), _features(net, x_adv)
    *size, channels = clean.shape[1:]
    cells = int(np.prod(size))
    count = regularizers.counted(units, name, cells * channels) / cells
    maps = np.abs(clean - moved).sum(-1, dtype=np.float64) / count
    return VulnerabilityMap(maps.astype(np.float32), maps.mean((1, 2)), name, x, x_adv)


def pixel_map(model, x, y=None, attack=None, x_adv=None, features=None):
    """Which pixels of x' move the hidden features: |d/dx' sum_lk |z_lk(x) - z_lk(x')||.

    Summed over colours and divided by the largest of each image; all 0 where nothing moves. The
    paper's Fig. 4 (top) shows "vulnerability with respect to the input pixels" without saying how;
    this is our reading.

    Args:
        model: Functional classifier of images `(height, width, channels)`.
        x, y, attack, x_adv: Some images, as in `vulnerability`.
        features: Names of layers, default `tr.regularizers.feature_layers(model)`.

    Returns:
        `VulnerabilityMap` with values in [0, 1]; `values` are V of each image.

    Raises:
        TypeError, ValueError: as `vulnerability`; inputs that are no images.
    """
    x, x_adv = few(model, x, y, attack, x_adv)
    checks.weights(model)
    if x.ndim != 4:
        raise ValueError(
            f"`x` must hold images (batch, height, width, channels). Received: shape={x.shape}"
        )
    names = list(features or regularizers.feature_layers(model))
    net = regularizers.with_features(model, names)

    def slope(x, x_adv, real):
        clean = net(x, training=False)[1:]
        with Passes(x_adv) as passes:
            moved = net(x_adv, training=False)[1:]
            gaps = [tf.abs(a - b) for a, b in zip(clean, moved, strict=True)]
            total = tf.add_n([tf.reduce_sum(gap) for gap in gaps])
        each = tf.add_n([tf.reduce_mean(gap, range(1, gap.shape.rank)) for gap in gaps])
        found = tf.reduce_sum(tf.abs(passes.gradient(total)), -1)
        v = tf.broadcast_to((each / len(gaps))[:, None, None], tf.shape(found))
        return tf.stack([found, v], -1)

    found = checks.finite(buckets.apply(compiled(slope), x, x_adv), "gradients")
    maps, values = found[..., 0], found[:, 0, 0, 1].astype(np.float64)
    highest = maps.max((1, 2), keepdims=True)
    maps = np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)
    return VulnerabilityMap(maps, values, None, x, x_adv)


@dataclasses.dataclass(frozen=True)
class FeatureMaps:
    """The most and the least vulnerable channels of a layer, on n images.

    Attributes:
        layer: Name.
        ranked: Channels that move, the most vulnerable first.
        v: Float, E|z(x) - z(x')| of these channels, mean over their places.
        still: How many channels are below `floor`, or at v <= 1e-8: they are not ranked.
        shown: `(2 count,)` channels: the first of `ranked`, then the last.
        clean, adversarial: float32 `(n, 2 count, height, width)`, maps of the shown channels.
        x, x_adv: The images.
    """

    layer: str
    ranked: np.ndarray
    v: np.ndarray
    still: int
    shown: np.ndarray
    clean: np.ndarray = dataclasses.field(repr=False)
    adversarial: np.ndarray = dataclasses.field(repr=False)
    x: np.ndarray = dataclasses.field(repr=False)
    x_adv: np.ndarray = dataclasses.field(repr=False)

    @property
    def difference(self):
        """|clean - adversarial|."""
        return np.abs(self.clean - self.adversarial)

    def first(self, count):
        """The same for the first images alone."""
        return _first(self, count, ("clean", "adversarial", "x", "x_adv"))

    def to_dict(self):
        """Plain numbers and lists, three digits of each."""
        place = {channel: v for channel, v in zip(self.ranked.tolist(), self.v, strict=True)}
        arrays = {name: shortened(getattr(self, name))
                  for name in ("clean", "adversarial", "x", "x_adv")}  # fmt: skip
        return {
            **{"layer": self.layer, "shown": self.shown.tolist(), "still": self.still},
            **{"v": shortened([place[c] for c in self.shown.tolist()]), **arrays},
        }


def feature_maps(
    model, x, y=None, attack=None, x_adv=None, found=None, layer=None, count=1, floor=0.01
):
    """Channels ranked by vulnerability: the maps of the first and the last (Fig. 7 of the paper).

    Args:
        model: Functional classifier.
        x, y, attack, x_adv: Some images, as in `vulnerability`.
        found: `Vulnerability` of this model (without `units`) over a test set, which ranks the
            channels; default that of these images alone.
        layer: Name of a layer that returns `(batch, height, width, channels)`, default the first
            feature layer.
        count: How many channels from each end.
        floor: Float in [0, 1]: channels that move less than this share of the most vulnerable one
            are not ranked, for they are pruned or all but dead, and show nothing.

    Returns:
        `FeatureMaps`.

    Raises:
        TypeError, ValueError: as `vulnerability`; a layer without maps; fewer than 2 `count`
            channels that move.
    """
    x, x_adv = few(model, x, y, attack, x_adv)
    count, floor = contract.whole("count", count, 1), checks.number("floor", floor, 1.0)
    name, net = _with_maps(model, layer)
    clean, moved = _features(net, x), _features(net, x_adv)
    if found is None:
        per_unit = np.abs(clean - moved).mean(0, dtype=np.float64)
    else:
        per_unit = np.asarray(found.per_unit[layer_of(found, name)], np.float64)
        if per_unit.shape != clean.shape[1:]:
            raise ValueError(
                f"`found` must be of this model, measured without `units`: shape {clean.shape[1:]} "
                f"at {name!r}. Received: shape={per_unit.shape}"
            )
    v = per_unit.mean((0, 1))
    order = np.argsort(-v, kind="stable")
    ranked = order[v[order] > max(ZERO, floor * v.max())]
    if len(ranked) < 2 * count:
        raise ValueError(
            f"`count` must be at most half of the {len(ranked)} channels of {name!r} that move. "
            f"Received: count={count}"
        )
    shown = np.concatenate([ranked[:count], ranked[-count:]])
    maps = [np.moveaxis(z[..., shown], -1, 1) for z in (clean, moved)]
    return FeatureMaps(name, ranked, v[ranked], len(v) - len(ranked), shown, *maps, x, x_adv)


def _first(found, count, names):
    return dataclasses.replace(found, **{name: getattr(found, name)[:count] for name in names})


def shortened(values, digits=3):
    """Nested lists of numbers with so many significant digits: small in JSON."""
    flat = [float(f"{v:.{digits}g}") for v in np.ravel(values).tolist()]
    return np.reshape(flat, np.shape(values)).tolist()


def _with_maps(model, layer):
    """(name, model that returns its maps) of a layer, default the first feature layer."""
    checks.weights(model)
    name = regularizers.feature_layers(model)[0] if layer is None else layer
    net = regularizers.with_features(model, [name])
    if len(net.outputs[1].shape) != 4:
        raise ValueError(
            "`layer` must return maps (batch, height, width, channels). "
            f"Received: layer={name!r} of shape {tuple(net.outputs[1].shape)}"
        )
    return name, net


def _features(net, x):
    step = compiled(lambda images, real: tf.cast(net(images, training=False)[1], tf.float32))
    return checks.finite(buckets.apply(step, x), "features")
