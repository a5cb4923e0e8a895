"""Games: `keras.Model` wrappers that train a classifier against an attack with plain `fit`."""

from tfrobust.training.adversarial import AdversarialTraining
from tfrobust.training.anp import ANP
from tfrobust.training.game import Batch, Game
from tfrobust.training.resume import Resume
from tfrobust.training.trades import TRADES, trades_attack

__all__ = ["ANP", "AdversarialTraining", "Batch", "Game", "Resume", "TRADES", "trades_attack"]
