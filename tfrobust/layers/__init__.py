"""Layers that a classifier wears in training: masks over channels.

net = tr.models.lenet5_caffe(mask=tr.layers.BetaBernoulliMask)
net = tr.layers.insert_masks(my_model, tr.layers.BetaBernoulliMask)
"""

from tfrobust.layers.beta_bernoulli import BetaBernoulliMask, distributions
from tfrobust.layers.insert import insert_masks
from tfrobust.layers.mask import Mask, kept, masks

__all__ = ["BetaBernoulliMask", "Mask", "distributions", "insert_masks", "kept", "masks"]
