"""Attacks: threat x loss x step rule. Each call returns legal points for the threat.

attack = tr.attacks.PGD(tr.threats.Linf(0.3), steps=40, step_size=0.01, restarts=5)
x_adv = attack(model, x, y)
"""

from tfrobust.attacks.attack import Attack, classes_of_callable
from tfrobust.attacks.autopgd import APGD
from tfrobust.attacks.call import Call, Result, forward, logits_of, verdicts
from tfrobust.attacks.gradient import BIM, FGSM, MIM, PGD, RFGSM
from tfrobust.attacks.minimum import MinimumNorm

__all__ = [
    "APGD",
    "Attack",
    "BIM",
    "Call",
    "FGSM",
    "MIM",
    "MinimumNorm",
    "PGD",
    "RFGSM",
    "Result",
    "classes_of_callable",
    "forward",
    "logits_of",
    "verdicts",
]
