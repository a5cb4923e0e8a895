"""GradAlign: keeps the loss linear within the ball, where one step is as good as many.

game = tr.training.AdversarialTraining(
    net, tr.training.fast_attack(threat), regularizers=[tr.training.GradAlign(0.2)]
)
"""

import keras
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.contract import nonnegative


@keras.saving.register_keras_serializable(package="tfrobust")
class GradAlign:
    """weight * (1 - cos(grad CE(x), grad CE(x + eta))), gradients by the image (GradAlign).

    eta is uniform in the ball of the game's threat, a fresh one each iteration; both gradients are
    differentiated by the weights, so single-step training does not overfit to its own attack
    ("catastrophic overfitting"). They are taken in inference mode, as attacks are: nothing moves
    the statistics of BatchNormalization. An image whose gradient is 0 costs nothing.

    Args:
        weight: Float >= 0. The paper: 0.2 (CIFAR-10, 8/255), 2 at 16/255. 0 switches it off.

    Cost: two forward and two backward passes by the image, differentiated once more.

    Reference: Andriushchenko and Flammarion, Understanding and improving fast adversarial training
    (2020), https://arxiv.org/abs/2007.02617, eq. 4.

    Example:

    >>> GradAlign(0.2).get_config()
    {'weight': 0.2}
    """

    def __init__(self, weight=0.2):
        self.weight = nonnegative("weight", weight)

    def penalty(self, game, batch):
        """`(batch,)` values for the weights of the game to lower."""
        threat = game.threat
        if threat is None:
            raise ValueError("`attack` must be given: GradAlign looks in its ball. Received: None")
        rows = tf.range(tf.shape(batch.x)[0])
        keys = noise.keys(game.draw(), "gradalign", rows)
        beside = threat.random_start(batch.x, keys, threat.radius(game.radius()))
        flat = [
            tf.reshape(input_gradient(game.classifier, x, batch.y), [tf.shape(x)[0], -1])
            for x in (batch.x, beside)
        ]
        return self.weight * misalignment(*flat)

    def get_config(self):
        return {"weight": self.weight}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def input_gradient(model, x, y):
    """Gradient of each example's cross-entropy by its image, differentiable by the weights."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(losses.cross_entropy(model(x, training=False), y))
    return tape.gradient(loss, x)


def misalignment(a, b):
    """1 - cos(a, b) of rows, 0 where either is zero: `(batch,)`.

    >>> a, b = tf.constant([[3.0, 0.0], [1e-30, 1e-30], [0.0, 0.0]]), tf.constant([[1.0, 0.0]])
    >>> misalignment(a, tf.tile(b, (3, 1))).numpy().round(4).tolist()
    [0.0, 0.2928999960422516, 0.0]
    """
    known, units = tf.ones(tf.shape(a)[:1], tf.bool), []
    for vector in (a, b):
        # The cosine does not know the size, and squares of a confident net's gradients vanish.
        size = tf.stop_gradient(tf.reduce_max(tf.abs(vector), -1, keepdims=True))
        live = size > 0
        known &= live[:, 0]
        vector = tf.where(live, vector / tf.where(live, size, 1.0), 1.0)
        units.append(vector / tf.norm(vector, axis=-1, keepdims=True))
    cosine = tf.reduce_sum(units[0] * units[1], -1)
    return tf.where(known, 1.0 - cosine, 0.0)
