"""Attacks: threat x loss x step rule. Each call returns legal points for the threat.

attack = tr.attacks.PGD(tr.threats.Linf(0.3), steps=40, step_size=0.01, restarts=5)
x_adv = attack(model, x, y)
"""

from tfrobust.attacks.adapters import from_art, from_cleverhans, from_foolbox
from tfrobust.attacks.attack import Attack
from tfrobust.attacks.autopgd import APGD
from tfrobust.attacks.call import (
    Call,
    Result,
    classes_of_callable,
    correct,
    forward,
    logits_of,
    verdicts,
)
from tfrobust.attacks.decision import Boundary, HopSkipJump
from tfrobust.attacks.deepfool import DeepFool
from tfrobust.attacks.descent import DDN, CarliniWagner
from tfrobust.attacks.fab import FAB
from tfrobust.attacks.gradient import BIM, FGSM, MIM, PGD, RFGSM
from tfrobust.attacks.minimum import MinimumNorm
from tfrobust.attacks.random_noise import Noise
from tfrobust.attacks.square import Square
from tfrobust.attacks.transfer import Transfer
from tfrobust.attacks.worst_case import AutoAttack, WorstCase

__all__ = [
    "APGD",
    "Attack",
    "AutoAttack",
    "BIM",
    "Boundary",
    "Call",
    "CarliniWagner",
    "DDN",
    "DeepFool",
    "FAB",
    "FGSM",
    "HopSkipJump",
    "MIM",
    "MinimumNorm",
    "Noise",
    "PGD",
    "RFGSM",
    "Result",
    "Square",
    "Transfer",
    "WorstCase",
    "classes_of_callable",
    "correct",
    "forward",
    "from_art",
    "from_cleverhans",
    "from_foolbox",
    "logits_of",
    "verdicts",
]
