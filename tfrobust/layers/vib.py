"""Masks by the variational information bottleneck (Dai et al., 2018), as in ANP-VS, section 3.

A channel is multiplied by z ~ N(mu, sigma^2): the more noise a channel can bear, the less of its
input it tells, and one that is all noise is pruned.
"""

import keras
import tensorflow as tf

from tfrobust.contract import is_number, nonnegative
from tfrobust.layers.mask import Mask, draw

_TINY = 1e-8


@keras.saving.register_keras_serializable(package="tfrobust")
class VIBMask(Mask):
    """Prunes channels whose gate is mostly noise.

    Training: z = mu + sigma e with a fresh e ~ N(0, 1) for every example and channel (one value for
    all positions of a map). Inference: mu where sigma^2 < mu^2, else exactly 0 (strictly: at
    log alpha = log sigma^2 - log mu^2 >= 0 a channel is pruned). mu may be negative.

    KL to the marginal N(0, xi) with the best xi is 1/2 log(1 + mu^2 / sigma^2) a channel, in nats
    (Dai et al., eq. 13, where the half is left out).

    Args:
        initial_mu: Float, mean of the initial mu.
        initial_log_var: Float, mean of the initial log sigma^2; -9 gives a KL of 4.5 a channel.
        jitter: Float >= 0, standard deviation of both at the start.
        seed: Integer or None.

    Input shape: `(batch, ..., channels)`. Output shape: the same.

    Reference: Dai et al., Compressing neural networks using the variational information bottleneck
    (2018), https://arxiv.org/abs/1802.10399; Madaan et al. (2020), eq. 10 to 14.

    Example:

    >>> mask = VIBMask(jitter=0.0)
    >>> mask.build((None, 4, 4, 3))
    >>> [float(v) for v in mask.expected()], round(float(mask.kl()), 3)
    ([1.0, 1.0, 1.0], 13.5)
    """

    def __init__(self, initial_mu=1.0, initial_log_var=-9.0, jitter=0.01, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        for name, value in (("initial_mu", initial_mu), ("initial_log_var", initial_log_var)):
            if not is_number(value):
                raise ValueError(f"`{name}` must be a finite number. Received: {name}={value!r}")
        self.initial_mu, self.initial_log_var = initial_mu, initial_log_var
        self.jitter = nonnegative("jitter", jitter)

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(
                f"Mask '{self.name}' must know its channels. Received: input_shape={input_shape}"
            )
        shape = {"shape": (channels,), "dtype": "float32", "autocast": False}
        for name, mean, offset in (
            ("mu", self.initial_mu, 0),
            ("log_var", self.initial_log_var, 1),
        ):
            seed = None if self.seed is None else self.seed + offset
            start = keras.initializers.RandomNormal(mean, self.jitter, seed=seed)
            setattr(self, name, self.add_weight(name=name, initializer=start, **shape))

    def parameters(self):
        """(mu, sigma^2), each `(channels,)`."""
        self.require_built()
        mu, log_var = (tf.convert_to_tensor(v.value) for v in (self.mu, self.log_var))
        return mu, tf.exp(tf.clip_by_value(log_var, -40.0, 40.0))

    def sample(self, count):
        mu, variance = self.parameters()
        shape = (count, mu.shape[0])
        return mu + tf.sqrt(variance) * tf.random.stateless_normal(shape, draw(self.seed_generator))

    def expected(self):
        mu, variance = self.parameters()
        return tf.where(variance < tf.square(mu) + _TINY, mu, 0.0)

    def kl(self):
        mu, variance = self.parameters()
        return 0.5 * tf.reduce_sum(tf.math.log1p(tf.square(mu) / (variance + _TINY)))

    def get_config(self):
        return {
            **super().get_config(),
            "initial_mu": self.initial_mu,
            "initial_log_var": self.initial_log_var,
            "jitter": self.jitter,
        }
