"""The papers' networks as functional builders: pixels in [0, 1] in, logits out."""

from tfrobust.models.lenet import digits_net, lenet5_caffe
from tfrobust.models.prepare import prepare

__all__ = ["digits_net", "lenet5_caffe", "prepare"]
