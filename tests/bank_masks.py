"""A mask with a gate to set by hand, and what makes a tiny net lively enough to test surgery on."""

import keras
import numpy as np
from keras import layers

from tfrobust.layers import Mask

SHAPE = (8, 8, 2)


@keras.saving.register_keras_serializable(package="tfrobust_tests")
class FixedMask(Mask):
    """A gate that is a plain weight."""

    def build(self, input_shape):
        self.gate = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gate")

    def expected(self):
        return keras.ops.convert_to_tensor(self.gate)


def images(count=1000, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, *shape)).astype("float32")


def randomize(model, seed=0):
    """Random biases and normalization, lively whatever the depth."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            values = [rng.uniform(0.5, 1.5, size)] * layer.scale
            values += [rng.normal(0.3, 0.4, size)] * layer.center
            layer.set_weights([*values, rng.normal(0, 0.3, size), rng.uniform(0.3, 1.5, size)])
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0.1, 0.3, layer.bias.shape))
    return model


def shut(model, seed=0, share=0.5, low=0.5, high=1.5):
    """Sets every gate: `share` of the channels 0, the others uniform in [low, high]."""
    rng = np.random.default_rng(seed)
    for mask in model._flatten_layers():
        if isinstance(mask, FixedMask):
            size = mask.gate.shape[0]
            gate = rng.uniform(low, high, size)
            gate[rng.permutation(size)[: int(np.ceil(share * size))]] = 0.0
            mask.gate.assign(gate)
    return model
