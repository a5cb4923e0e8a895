"""Figures for people: what `tr.diagnostics` measured, as PNG, SVG or PDF.

Drawing lives here because here files are written: diagnostics gives arrays and knows no colours.
The same painters (`explain`) make the pictures of a card. Every function takes one result or
{name: result} for several networks, which then share their axes, and returns matplotlib's figure.

    tr.report.plot_landscape({"AT": at, "ANP-VS": anp}, "landscape.png")
"""

from tfrobust import files
from tfrobust.diagnostics import (
    Curve,
    FeatureMaps,
    Histogram,
    Landscape,
    VulnerabilityMap,
    vulnerability_curve,
    vulnerability_histogram,
)
from tfrobust.evaluate import Curve as Attacked
from tfrobust.regularizers import Vulnerability
from tfrobust.report import certified, explain, representation
from tfrobust.report.card import Card
from tfrobust.report.entry import unpacked
from tfrobust.report.plots import PAPER, colours_of, style
from tfrobust.verify import Certificate, CertifiedCurve

SUFFIXES = (".png", ".svg", ".pdf")


def plot_vulnerability(white, path=None, black=None):
    """v_l of every layer, under white-box and transferred attacks (Fig. 2a and Tables 1 and 3).

    Args:
        white: `Vulnerability` or {name: Vulnerability}.
        path: File to write (.png, .svg or .pdf), or None.
        black: The same for transferred images, with the same names; or None.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        TypeError, ValueError: other results, no results, another suffix. OSError: no such folder.
    """
    white = _named("white", white, Vulnerability)
    black = {} if black is None else _named("black", black, Vulnerability)
    if set(black) - set(white):
        raise ValueError(
            f"`black` must have names of `white`: {list(white)}. Received: {list(black)}"
        )
    parts = {
        name: {
            "white": found.per_layer(),
            "black": black[name].per_layer() if name in black else None,
        }
        for name, found in white.items()
    }
    return _figure(explain.layers, parts, path)


def plot_histogram(found, path=None):
    """Histogram of v over the units of a layer, exact zeros apart in orange (Fig. 4 and 6).

    Args:
        found: `Histogram`, `Vulnerability` (its first layer), or {name: one of them}.
        path: As in `plot_vulnerability`.
    """
    found = _named("found", found, Histogram | Vulnerability)
    parts = {
        name: (one if isinstance(one, Histogram) else vulnerability_histogram(one)).to_dict()
        for name, one in found.items()
    }
    return _figure(explain.histograms, parts, path)


def plot_map(found, path=None):
    """Images beside where their features moved, v of the image in brackets (Fig. 2b to e, 4).

    Args:
        found: `VulnerabilityMap` or {name: VulnerabilityMap}; three images of each are drawn.
        path: As in `plot_vulnerability`.
    """
    return _figure(explain.maps, _values("found", found, VulnerabilityMap), path)


def plot_features(found, path=None):
    """Maps of the most and the least vulnerable channels on the first image (Fig. 7).

    Args:
        found: `FeatureMaps` or {name: FeatureMaps}.
        path: As in `plot_vulnerability`.
    """
    return _figure(explain.features, _values("found", found, FeatureMaps), path)


def plot_landscape(found, path=None, surface=False):
    """The loss around images, the same scale for all networks (Fig. 5).

    Args:
        found: `Landscape` or {name: Landscape}.
        path: As in `plot_vulnerability`.
        surface: Three-dimensional surfaces, as in the paper, instead of maps and their cut.
    """
    painter = explain.surfaces if surface else explain.landscapes
    return _figure(painter, _values("found", found, Landscape), path)


def plot_sparsity(found, path=None):
    """V against the share of units removed.

    Args:
        found: `tr.diagnostics.vulnerability_curve(...)`, {name: Curve}, or a list of cards.
        path: As in `plot_vulnerability`.
    """
    if isinstance(found, Card | list | tuple):
        found = sparsity_of(found)
    curves = _named("found", found, Curve)
    parts = {name: explain.curve_values(curve) for name, curve in curves.items()}
    return _figure(explain.sparsity, parts, path)


def plot_certified(found, path=None, attacked=None):
    """Certified accuracy against epsilon with 95 % bands, and what attacks leave, dashed.

    Args:
        found: `tr.verify.certify(..., eps_grid=...)`, the `CertifiedCurve` of one, or {name: one of
            them}. Of a certificate, what its own attack left is marked at its radius.
        path: As in `plot_vulnerability`.
        attacked: `tr.evaluate.Curve` (of `robustness(..., eps_grid=...)`) in the same norm, or
            {name: Curve} with names of `found`; or None.

    Raises:
        TypeError, ValueError: other results, a certificate without a curve, another norm.
    """
    found = _named("found", found, Certificate | CertifiedCurve)
    attacked = {} if attacked is None else _named("attacked", attacked, Attacked)
    if set(attacked) - set(found):
        raise ValueError(
            f"`attacked` must have names of `found`: {list(found)}. Received: {list(attacked)}"
        )
    parts = {}
    for name, one in found.items():
        curve = one.curve if isinstance(one, Certificate) else one
        if curve is None:
            raise ValueError(
                "`found` must have a curve: tr.verify.certify(..., eps_grid=[0.05, 0.1]). "
                f"Received: a certificate without one{f' ({name})' * bool(name)}"
            )
        under = attacked.get(name)
        if under is not None and under.norm != curve.norm:
            raise ValueError(
                f"`attacked` must be in the norm of `found`, {curve.norm}. Received: {under.norm}"
            )
        proof = one.to_dict() if isinstance(one, Certificate) else None
        values = certified.drawn(curve.to_dict(), proof, under and under.to_dict())
        parts[name] = {curve.norm: values}
    return _figure(certified.picture, parts, path)


def sparsity_of(cards):
    """{model: Curve} of one card or several: V against the units removed, as the cards have them.

    Every model counts that has a vulnerability and a footprint to compare with its card's
    reference; models of one name on several cards are one curve.

    Raises:
        TypeError, ValueError: no cards; no such model on them.
    """
    points = {}
    for card in [cards] if isinstance(cards, Card) else cards:
        if not isinstance(card, Card):
            raise TypeError(f"`cards` must hold tr.report.Card. Received: {type(card).__name__}")
        for name, point in explain.points_of(card.to_dict()["models"]).items():
            points.setdefault(name, []).append(point)
    if not points:
        raise ValueError(
            "`cards` must hold a model with a vulnerability and a footprint. Received: none"
        )
    return {name: vulnerability_curve(found) for name, found in points.items()}


def plot_areas(found, path=None):
    """Accuracy over epsilon under each attack, with its area (Table 2 of Bashivan et al., 2021).

    Args:
        found: {attack: `tr.evaluate.Curve`}, {model: {attack: Curve}}, or a card or a list of
            cards.
        path: As in `plot_vulnerability`.
    """
    return _game("areas", found, path)


def plot_sensitivity(found, path=None):
    """How far the representation moves, over epsilon: median and standard deviation (Fig. 4).

    Args:
        found: {epsilon: `Sensitivity`}, {model: {epsilon: Sensitivity}}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("sensitivity", found, path)


def plot_angles(found, path=None):
    """Mean angle of each attack's perturbation to that of a reference attack (Table A7).

    Args:
        found: {attack: `Angles`}, {model: {attack: Angles}}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("angles", found, path)


def plot_dimensions(found, path=None):
    """Variance explained by the first components, units and dimensions (Table A5).

    Args:
        found: `Dimensions`, {model: Dimensions}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("dimensions", found, path)


def plot_class_gradients(found, path=None):
    """The "gradient landscape": log lengths of class gradients by true class, on one scale.

    Args:
        found: `ClassGradients`, {model: ClassGradients}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("class_gradients", found, path)


def plot_trace(found, path=None):
    """The course of the feature game (Fig. A5).

    Args:
        found: `DiscriminatorTrace`, {model: DiscriminatorTrace}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("trace", found, path)


def plot_planes(found, path=None):
    """t-SNE of clean images, and of clean beside attacked ones (Fig. A8 to A10).

    Args:
        found: `Planes`, {model: Planes}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("planes", found, path)


def plot_visualised(found, path=None):
    """The first image, what each class makes of it, and the gradient it began with (Fig. A7).

    Args:
        found: {what the class is: `Visualised`}, {model: {what: Visualised}}, or cards.
        path: As in `plot_vulnerability`.
    """
    return _game("visualised", found, path)


def _game(name, found, path):
    """The picture of one of `representation.FIELDS`."""
    kind, several, painter = representation.FIELDS[name]
    if isinstance(found, Card | list | tuple):
        return _figure(painter, _on_cards(name, found), path)
    nested = isinstance(found, dict) and isinstance(next(iter(found.values()), None), dict)
    if found == {}:
        raise ValueError(f"`found` must hold at least one {kind.__name__}. Received: none")
    if not isinstance(found, dict) or (several and not nested):
        found = {"": found}
    parts = {str(key): representation.checked(name, one, "found") for key, one in found.items()}
    if None in parts.values():
        raise TypeError(f"`found` must hold {kind.__name__}. Received: None")
    return _figure(painter, {k: representation.plain(name, v) for k, v in parts.items()}, path)


def _on_cards(name, cards):
    """{model: values under `name`} of the cards; equal names get their card's in front."""
    cards, parts = [cards] if isinstance(cards, Card) else list(cards), {}
    if not all(isinstance(card, Card) for card in cards):
        raise TypeError("`found` must hold tr.report.Card only. Received: another list")
    names = [model for card in cards for model in card.to_dict()["models"]]
    for card in cards:
        for model, part in card.to_dict()["models"].items():
            if part.get(name):
                key = model if names.count(model) == 1 else f"{card.name}: {model}"
                parts[key] = unpacked(part[name])
    if not parts:
        raise ValueError(f"`found` must hold a card with {name!r}. Received: none")
    return parts


def _named(argument, found, kind):
    """{name: result}, checked."""
    named = found if isinstance(found, dict) else {"": found}
    kinds = " or ".join(k.__name__ for k in getattr(kind, "__args__", (kind,)))
    if not named:
        raise ValueError(f"`{argument}` must hold at least one {kinds}. Received: none")
    for one in named.values():
        if not isinstance(one, kind):
            raise TypeError(
                f"`{argument}` must be a {kinds} or a dictionary of them. "
                f"Received: {type(one).__name__}"
            )
    return {str(name): one for name, one in named.items()}


def _values(argument, found, kind):
    return {name: one.to_dict() for name, one in _named(argument, found, kind).items()}


def _figure(painter, parts, path):
    import matplotlib
    from matplotlib.figure import Figure

    if path is not None:
        path = files.target(path)
        if path.suffix not in SUFFIXES:
            raise ValueError(f"`path` must end in one of {SUFFIXES}. Received: {path.name}")
    size, paint = painter(parts, PAPER, colours_of({"models": parts}, PAPER.series))
    with matplotlib.rc_context(style(PAPER)):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        if path is not None:
            files.replace(path, lambda name: figure.savefig(name, dpi=144))
    return figure
