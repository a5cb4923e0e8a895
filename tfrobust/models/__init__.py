"""The papers' networks as functional builders: pixels in [0, 1] in, logits out."""

from tfrobust.models.dense import lenet300_100, linear
from tfrobust.models.lenet import digits_net, lenet5_caffe
from tfrobust.models.plain import all_cnn, cifar_large, cnn_small
from tfrobust.models.prepare import prepare
from tfrobust.models.residual import resnet32, wide_resnet28
from tfrobust.models.residual18 import resnet18
from tfrobust.models.unit import unit_features
from tfrobust.models.vgg import vgg16_bn, vgg_like
from tfrobust.models.vgg_anp import vgg16, vgg16_mask

__all__ = [
    "all_cnn",
    "cifar_large",
    "cnn_small",
    "digits_net",
    "lenet300_100",
    "lenet5_caffe",
    "linear",
    "prepare",
    "resnet18",
    "resnet32",
    "unit_features",
    "vgg16",
    "vgg16_mask",
    "vgg16_bn",
    "vgg_like",
    "wide_resnet28",
]
