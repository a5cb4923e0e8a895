"""Layers that a game adds in training: masks over channels, matrices of spectral norm 1.

net = tr.models.lenet5_caffe(mask=tr.layers.BetaBernoulliMask)
net = tr.layers.insert_masks(my_model, tr.layers.BetaBernoulliMask)

`WeightTransform` owns variables that weights are functions of; with `GaussianWeights` every weight
is a Gaussian.
"""

from tfrobust.layers.beta_bernoulli import BetaBernoulliMask, distributions
from tfrobust.layers.gaussian import GaussianWeights, SampledWeights
from tfrobust.layers.insert import insert_masks
from tfrobust.layers.mask import Mask, freeze_masks, kept, masks
from tfrobust.layers.spectral import SNDense, SNEmbedding
from tfrobust.layers.transform import WeightTransform, straight_through
from tfrobust.layers.vib import VIBMask

__all__ = [
    "BetaBernoulliMask",
    "GaussianWeights",
    "Mask",
    "SNDense",
    "SNEmbedding",
    "SampledWeights",
    "VIBMask",
    "WeightTransform",
    "distributions",
    "freeze_masks",
    "insert_masks",
    "kept",
    "masks",
    "straight_through",
]
