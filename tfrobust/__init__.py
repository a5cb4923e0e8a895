"""Robust and small image classifiers with Keras 3 and TensorFlow.

    import tfrobust as tr

    net = tr.models.prepare(my_keras_model, pixel_range=(0, 1))
    net = tr.layers.insert_masks(net, tr.layers.BetaBernoulliMask)
    attack = tr.attacks.PGD(tr.threats.Linf(0.3), steps=20)
    game = tr.training.ANP(net, attack, train_size=len(x))
    game.compile(metrics=["accuracy"])
    game.fit(x, y, epochs=10)
    small = tr.shrink.compact(net)
    print(tr.evaluate.robustness(small, (x_test, y_test), [attack]))
    tr.export.tflite(small, "small.tflite")

Rooms are modules; their names are written out: `tr.threats.Linf`, never `Linf`.
"""

from tfrobust import (
    attacks,
    contract,
    data,
    evaluate,
    export,
    files,
    footprint,
    graph,
    layers,
    losses,
    models,
    regularizers,
    shrink,
    threats,
    training,
)

__version__ = "0.1.0"

__all__ = [
    "attacks",
    "contract",
    "data",
    "evaluate",
    "export",
    "files",
    "footprint",
    "graph",
    "layers",
    "losses",
    "models",
    "regularizers",
    "shrink",
    "threats",
    "training",
]
