"""Pruning: sets the smallest weights to zero while training goes on, and holds them there.

    prune = tr.pruning.MagnitudePruning(tr.pruning.Linear(0.9, updates=40, every=5))
    game.fit(x_train, y_train, epochs=200, callbacks=[prune])     # a game, or any Keras model
    print(prune.report())

A callback decides, a constraint enforces: the zeros hold inside compiled steps of any optimizer.
Shapes stay as they are; `tr.shrink.compact` cuts what `structured="filters"` leaves behind.
"""

from tfrobust.pruning.admm import ADMM
from tfrobust.pruning.apply import freeze, prune, release
from tfrobust.pruning.borrowed import constant, polynomial
from tfrobust.pruning.constraint import MaskConstraint
from tfrobust.pruning.figures import Report, masks_of, report, sparsity
from tfrobust.pruning.follow import passes
from tfrobust.pruning.magnitude import MagnitudePruning
from tfrobust.pruning.places import kernel_of
from tfrobust.pruning.schedule import Geometric, Keep, Ladder, Linear, OneShot, Schedule, Threshold
from tfrobust.pruning.shadows import LearnedScores, Surgery

__all__ = [
    "ADMM",
    "Geometric",
    "Keep",
    "Ladder",
    "LearnedScores",
    "Linear",
    "MagnitudePruning",
    "MaskConstraint",
    "OneShot",
    "Report",
    "Schedule",
    "Surgery",
    "Threshold",
    "constant",
    "freeze",
    "kernel_of",
    "masks_of",
    "passes",
    "polynomial",
    "prune",
    "release",
    "report",
    "sparsity",
]
