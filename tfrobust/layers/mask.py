"""The mask interface: a gate for each channel, what it costs, and which channels it keeps.

A mask multiplies the last axis of its input by a gate. In training the gate is sampled (one value
per example and channel); in inference it is the deterministic `expected()`, exactly 0 where the
channel is pruned. `tr.shrink.compact`, `tr.footprint.measure`, the games and the bounds know masks
through these few methods only, so a mask of your own inherits them all:

    @keras.saving.register_keras_serializable()
    class MyMask(tr.layers.Mask):
        def build(self, input_shape): ...      # weights, one per channel
        def sample(self, count): ...           # (count, channels) gate for training
        def expected(self): ...                # (channels,) gate for inference
        def kl(self): ...                      # scalar, nats, summed over channels
"""

import keras
import numpy as np
import tensorflow as tf


def draw(generator):
    """The next seed of a Keras SeedGenerator, different on every replica: int32 `(2,)`."""
    seed = tf.cast(generator.next(), tf.int32)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
    return seed + tf.stack([replica * 7919, 0])


class Mask(keras.layers.Layer):
    """Base of all masks: multiplies channels by a gate.

    With `mask.trainable = False` the mask is frozen: training uses `expected()` too (the second
    stage of PAT), as a frozen BatchNormalization uses its moving statistics.

    Args:
        seed: Integer or None, seed of the sampled gates.

    Input shape: `(batch, ..., channels)`. Output shape: the same.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def sample(self, count):
        """Gate for training: float32 `(count, channels)`."""
        raise TypeError(f"{type(self).__name__} must define sample()")

    def expected(self):
        """Gate for inference: float32 `(channels,)`, exactly 0 where pruned."""
        raise TypeError(f"{type(self).__name__} must define expected()")

    def kl(self):
        """KL(posterior || prior) in nats, summed over channels: scalar."""
        raise TypeError(f"{type(self).__name__} must define kl()")

    def keep(self):
        """Which channels live: NumPy bool `(channels,)`."""
        self.require_built()
        return np.asarray(keras.ops.convert_to_numpy(self.expected())) != 0

    def require_built(self):
        """Refuses a mask that has not met its channels; call it first in `expected` and `kl`."""
        if not self.built:
            raise ValueError(
                f"Mask '{self.name}' has no channels yet. Call the model on an input (or build it) "
                "before asking which channels it keeps."
            )

    def call(self, inputs, training=False):
        if training and self.trainable:
            gate = self.sample(tf.shape(inputs)[0])
            middle = [1] * (len(inputs.shape) - 2)
            gate = tf.reshape(gate, [-1, *middle, inputs.shape[-1]])
        else:
            gate = self.expected()
        return inputs * tf.cast(gate, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def masks(model):
    """All masks of a model, in the order of its layers."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, Mask)]


def freeze_masks(model):
    """Freezes all masks of a model: the gate is `expected()` in training, too, and not trained.

    So stage two of PAT (Madaan et al., 2020, section 5.3): masks learned by BP, then adversarial
    training of the weights alone; BatchNormalization goes on. It sets `mask.trainable = False`,
    which the config, `.keras` files and `tr.training.Resume` keep. Call it before `compile`;
    `mask.trainable = True` undoes it.

    Args:
        model: Keras model with masks, or a game.

    Returns:
        Names of the masks.

    Raises:
        ValueError: the model has no mask.

    Example:

    >>> from tfrobust import layers
    >>> net = keras.Sequential([keras.Input((3,)), layers.VIBMask(name="mask")])
    >>> freeze_masks(net), len(net.trainable_variables)
    (['mask'], 0)
    """
    found = masks(model)
    if not found:
        raise ValueError(
            "`model` must have masks: call tr.layers.insert_masks(model, "
            f"tr.layers.BetaBernoulliMask). Received: model '{model.name}' without masks"
        )
    for mask in found:
        mask.trainable = False
    return [mask.name for mask in found]


def kept(model):
    """Units kept by each mask, as a list of (name, kept, all).

    >>> kept(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    []
    """
    return [(m.name, int(m.keep().sum()), int(m.keep().size)) for m in masks(model)]
