"""Games: `keras.Model` wrappers that train a classifier against an attack with plain `fit`."""

from tfrobust.training.adversarial import AdversarialTraining
from tfrobust.training.anp import ANP
from tfrobust.training.game import Batch, Game
from tfrobust.training.resume import Resume

__all__ = ["ANP", "AdversarialTraining", "Batch", "Game", "Resume"]
