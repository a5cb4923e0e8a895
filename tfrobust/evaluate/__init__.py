"""How robust a classifier is, in figures that say how far they can be believed.

    scores = tr.evaluate.robustness(model, (x_test, y_test), [pgd, apgd], state="run.state")
    print(scores)                       # clean, each attack, worst case, 95 % intervals, doubts
    scores["PGD-40"].value, scores.joint.low, scores.to_dict()

An image that is wrong without an attack is never attacked. Each run of an attack sees only the
images that its earlier runs did not break, gathered into full batches; success is judged by a fresh
forward pass (the largest wrong logit strictly above the true one) on a point whose distance and
pixel range were checked. With `state=` every finished chunk is written to a file, and a killed
evaluation goes on from there to the same figures.
"""

from tfrobust.evaluate.protocol import robustness
from tfrobust.evaluate.replay import transfer
from tfrobust.evaluate.scores import (
    FAMILIES,
    AttackScore,
    Curve,
    Flag,
    Rate,
    Scores,
    Transfer,
    wilson,
)

__all__ = [
    "FAMILIES",
    "AttackScore",
    "Curve",
    "Flag",
    "Rate",
    "Scores",
    "Transfer",
    "robustness",
    "transfer",
    "wilson",
]
