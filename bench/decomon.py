"""Bounds of two small nets by decomon 0.2.1, another library: fixtures for tests/test_decomon.py.

decomon asks for NumPy's `float_`, which NumPy 2 dropped, so it is given back here; it is installed
beside the project, never into it:

    python -m venv decomon-env && decomon-env/bin/pip install --no-deps decomon==0.2.1
    PYTHONPATH=SITE-PACKAGES-OF-THE-PROJECT:. decomon-env/bin/python -m bench.decomon

Weights and images are made by `nets` and `boxes` from fixed seeds, so that the file holds bounds
only: intervals ("forward-ibp"), CROWN-IBP ("crown-forward-ibp") and full CROWN ("crown") of every
logit, adaptive slopes.
"""

import json
import pathlib

import keras
import numpy as np
from keras import layers

PATH = pathlib.Path(__file__).parent / "decomon.json"
METHODS = ("forward-ibp", "crown-forward-ibp", "crown")
RADII = (0.01, 0.1)


def nets():
    """{name: functional model}: one deep, one wide (its convolutions need an older Keras)."""
    made = {}
    for name, widths in {"deep": (4, 8, 8, 8, 3), "wide": (12, 24, 5)}.items():
        image = x = keras.Input(widths[:1])
        for width in widths[1:-1]:
            x = layers.Activation("relu")(layers.Dense(width)(x))
        made[name] = keras.Model(image, layers.Dense(widths[-1])(x))
    rng = np.random.default_rng(0)
    for net in made.values():
        net.set_weights([rng.normal(size=w.shape) for w in net.get_weights()])
    return made


def boxes(net, radius):
    """Lower and upper images of four boxes, clipped to [0, 1]."""
    x = np.random.default_rng(1).uniform(size=(4, *net.input_shape[1:])).astype("float32")
    return np.clip(x - radius, 0, 1), np.clip(x + radius, 0, 1)


def main():
    np.float_ = np.float64
    from decomon.models.convert import clone
    from decomon.wrapper import get_range_box

    found = {}
    for name, net in nets().items():
        for method in METHODS:
            twin = clone(net, method=method)
            for radius in RADII:
                upper, lower = get_range_box(twin, *boxes(net, radius))
                key = f"{name} {method} {radius}"
                found[key] = [np.asarray(end, float).round(6).tolist() for end in (lower, upper)]
    PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
