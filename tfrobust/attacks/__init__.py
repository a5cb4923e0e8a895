"""Attacks: threat x loss x step rule. Each call returns legal points for the threat.

attack = tr.attacks.PGD(tr.threats.Linf(0.3), steps=40, step_size=0.01, restarts=5)
x_adv = attack(model, x, y)
"""

from tfrobust.attacks.attack import Attack
from tfrobust.attacks.autopgd import APGD
from tfrobust.attacks.call import Call, Result, forward, verdicts
from tfrobust.attacks.gradient import BIM, FGSM, MIM, PGD, RFGSM

__all__ = [
    "APGD",
    "Attack",
    "BIM",
    "Call",
    "FGSM",
    "MIM",
    "PGD",
    "RFGSM",
    "Result",
    "forward",
    "verdicts",
]
