"""tfrobust: image classifiers that are adversarially robust and small, on Keras 3.

    import tfrobust as tr

    attack = tr.attacks.PGD(tr.threats.Linf(8 / 255), steps=10)
    game = tr.training.AdversarialTraining(my_model, attack)
    game.compile("adam", metrics=["accuracy"])
    game.fit(x_train, y_train)

One spine: threat -> attack -> game -> mask -> shrink -> evaluate + verify -> export -> card; each
word is a room of this package, used as `tr.<room>.<Name>`.
"""

__version__ = "0.1.0"

from tfrobust import (
    attacks,
    bounds,
    buckets,
    contract,
    data,
    diagnostics,
    evaluate,
    export,
    files,
    footprint,
    graph,
    layers,
    losses,
    models,
    noise,
    pruning,
    regularizers,
    report,
    shrink,
    threats,
    training,
    verify,
)

__all__ = [
    "attacks",
    "bounds",
    "buckets",
    "contract",
    "data",
    "diagnostics",
    "evaluate",
    "export",
    "files",
    "footprint",
    "graph",
    "layers",
    "losses",
    "models",
    "noise",
    "pruning",
    "regularizers",
    "report",
    "shrink",
    "threats",
    "training",
    "verify",
]
