"""Beta-Bernoulli dropout masks (Lee et al., 2018), as in ANP-VS (Madaan et al., 2020, section 3).

Prior pi ~ Beta(alpha, 1), m | pi ~ Bernoulli(pi), pi is a *keep* probability; posterior
q(pi) = Kumaraswamy(a, b). Only KL(q(pi) || p(pi)) remains of the bound.
"""

import functools
import math
import numbers

import keras
import tensorflow as tf

from tfrobust.layers.mask import Mask, draw

_EULER = 0.5772156649015329


@functools.cache
def distributions():
    """tensorflow_probability.distributions with KL(Kumaraswamy || Beta(alpha, 1)) registered.

    KL = (1 - alpha/a)(-gamma - psi(b) - 1/b) + log(a b / alpha) - (b - 1)/b
    (Nalisnick and Smyth, 2017; Lee et al., 2018, eq. 14). Imported on first use: it takes a second.

    >>> tfd = distributions()
    >>> q, p = tfd.Kumaraswamy(1.0, 1.0), tfd.Beta(1e-4, 1.0)
    >>> round(float(tfd.kl_divergence(q, p)), 4)
    8.2104
    """
    from tensorflow_probability import distributions as tfd

    @tfd.RegisterKL(tfd.Kumaraswamy, tfd.Beta)
    def _kl(q, p, name=None):
        other = tf.get_static_value(p.concentration0)
        if other is None or (other != 1).any():
            raise ValueError(
                "KL(Kumaraswamy, Beta) is closed only for `concentration0` = 1. "
                f"Received: concentration0={other if other is not None else 'a tensor'}"
            )
        with tf.name_scope(name or "kl_kumaraswamy_beta"):
            a, b, alpha = q.concentration1, q.concentration0, p.concentration1
            log_pi = -_EULER - tf.math.digamma(b) - 1.0 / b
            return (1.0 - alpha / a) * log_pi + tf.math.log(a * b / alpha) - (b - 1.0) / b

    return tfd


@keras.saving.register_keras_serializable(package="tfrobust")
class BetaBernoulliMask(Mask):
    """Prunes channels with a beta-Bernoulli posterior on each.

    Training: pi = (1 - u^{1/b})^{1/a}, one draw a call shared by the batch, and a fresh relaxed
    Bernoulli gate for every example, m = sigmoid((logit pi + logit u') / temperature) (eq. 7).
    Inference: E[pi] where E[pi] > threshold, else exactly 0; survivors keep the scale E[pi].
    a = softplus(max(a_, -10)), b = softplus(clip(b_, -10, 50)); a unit with a_ below -10 cannot
    come back.

    Args:
        alpha: Float > 0, first parameter of the Beta prior of each unit (the paper's alpha / K).
        temperature: Float > 0 of the relaxed Bernoulli gate.
        threshold: Float in [0, 1): a unit lives while E[pi] > threshold (strictly).
        initial_a: Float, initial a_ before the softplus; -1 gives E[pi] = 0.24 (the paper's
            LeNet), 2 gives 0.68 (its VGG convolutions).
        initial_b: Float, initial b_; 0.5413 gives b = 1.
        seed: Integer or None.

    Input shape: `(batch, ..., channels)`. Output shape: the same.

    Example:

    >>> mask = BetaBernoulliMask(initial_a=2.0, seed=0)
    >>> mask.build((None, 4, 4, 3))
    >>> [round(float(v), 4) for v in mask.expected()]
    [0.6802, 0.6802, 0.6802]
    """

    def __init__(
        self,
        alpha=1e-4,
        temperature=0.1,
        threshold=1e-3,
        initial_a=-1.0,
        initial_b=0.5413,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        for name, value in (("alpha", alpha), ("temperature", temperature)):
            if not (isinstance(value, numbers.Real) and value > 0):
                raise ValueError(f"`{name}` must be > 0. Received: {name}={value!r}")
        for name, value in (("initial_a", initial_a), ("initial_b", initial_b)):
            if not (isinstance(value, numbers.Real) and math.isfinite(value)):
                raise ValueError(f"`{name}` must be a finite number. Received: {name}={value!r}")
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must lie in [0, 1). Received: threshold={threshold}")
        self.alpha, self.temperature, self.threshold = alpha, temperature, threshold
        self.initial_a, self.initial_b = initial_a, initial_b

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(
                f"Mask '{self.name}' must know its channels. Received: input_shape={input_shape}"
            )
        distributions()
        # The closed forms need float32 whatever the compute dtype of the net: without
        # autocast=False Keras hands `call` parameters rounded to it.
        shape = {"shape": (channels,), "dtype": "float32", "autocast": False}
        constant = keras.initializers.Constant
        self.a_ = self.add_weight(name="a", initializer=constant(self.initial_a), **shape)
        self.b_ = self.add_weight(name="b", initializer=constant(self.initial_b), **shape)

    def parameters(self, dtype=tf.float32):
        """(a, b) of the Kumaraswamy posterior, each `(channels,)`."""
        self.require_built()
        a_, b_ = (tf.convert_to_tensor(v.value) for v in (self.a_, self.b_))
        a = tf.nn.softplus(tf.cast(tf.maximum(a_, -10.0), dtype))
        return a, tf.nn.softplus(tf.cast(tf.clip_by_value(b_, -10.0, 50.0), dtype))

    def posterior(self, dtype=tf.float32):
        """q(pi) as a `tfd.Kumaraswamy`."""
        a, b = self.parameters(dtype)
        return distributions().Kumaraswamy(a, b)

    def log_pi(self, u):
        """log pi at uniform numbers `u`, `(channels,)`; stable where u^{1/b} rounds to 0 or 1."""
        a, b = self.parameters()
        t = tf.math.log(tf.clip_by_value(u, 1e-6, 1.0 - 1e-6)) / b
        log_pi = tf.math.log(tf.maximum(-tf.math.expm1(t), 1e-30)) / a
        return tf.clip_by_value(log_pi, -80.0, -1e-7)

    def gate(self, u, u_example):
        """Relaxed gate from uniform numbers: u `(channels,)`, u_example `(count, channels)`."""
        log_pi = self.log_pi(u)
        logit_pi = log_pi - tf.math.log(-tf.math.expm1(log_pi))
        u_example = tf.clip_by_value(u_example, 1e-6, 1.0 - 1e-6)
        logit_u = tf.math.log(u_example) - tf.math.log1p(-u_example)
        return tf.sigmoid((logit_pi + logit_u) / self.temperature)

    def sample(self, count):
        seed = draw(self.seed_generator)
        channels = self.a_.shape[0]
        u = tf.random.stateless_uniform((channels,), seed)
        return self.gate(u, tf.random.stateless_uniform((count, channels), seed + [1, 104729]))

    def expected(self):
        # float64: the log-gammas near 1/a = 2e4 have an error of 1e-2 in float32.
        mean = tf.cast(self.posterior(tf.float64).mean(), tf.float32)
        return tf.where(mean > self.threshold, mean, 0.0)

    def kl(self):
        prior = distributions().Beta(self.alpha, 1.0)
        return tf.reduce_sum(distributions().kl_divergence(self.posterior(), prior))

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "initial_a": self.initial_a,
            "initial_b": self.initial_b,
        }
