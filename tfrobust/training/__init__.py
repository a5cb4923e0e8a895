"""Games: `keras.Model` wrappers that train a classifier against an attack with plain `fit`."""

from tfrobust.training.adversarial import AdversarialTraining
from tfrobust.training.afd import AFD
from tfrobust.training.anp import ANP, BP
from tfrobust.training.awp import AWP
from tfrobust.training.carry import shrunk
from tfrobust.training.certified import CertifiedANP, CertifiedTraining, MixTrain
from tfrobust.training.collapse import CollapseWatch, DiscriminatorCollapse
from tfrobust.training.domain import feature_discriminator
from tfrobust.training.fast import FreeAT, fast_attack
from tfrobust.training.game import Batch, Game
from tfrobust.training.gradalign import GradAlign
from tfrobust.training.mart import MART
from tfrobust.training.ramp import Growth, Ramp
from tfrobust.training.resume import Resume
from tfrobust.training.stability import (
    BoxTightness,
    ReLUBalance,
    ReLUStability,
    ibp_initialization,
)
from tfrobust.training.stretches import fit_and_shrink
from tfrobust.training.trades import TRADES, trades_attack

__all__ = [
    "AFD",
    "ANP",
    "AWP",
    "BP",
    "BoxTightness",
    "CertifiedANP",
    "CertifiedTraining",
    "MART",
    "MixTrain",
    "Ramp",
    "ReLUBalance",
    "ReLUStability",
    "TRADES",
    "AdversarialTraining",
    "Batch",
    "CollapseWatch",
    "DiscriminatorCollapse",
    "FreeAT",
    "Game",
    "GradAlign",
    "Growth",
    "Resume",
    "fast_attack",
    "feature_discriminator",
    "fit_and_shrink",
    "ibp_initialization",
    "shrunk",
    "trades_attack",
]
