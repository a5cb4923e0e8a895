"""Dense and embedding layers whose matrix has spectral norm 1: the parts of a discriminator.

`keras.layers.SpectralNormalization` does other things (Keras 3.15): around an `Embedding` it casts
the rows to the integer type of the labels, it writes W / sigma over the kernel in each training
pass, so no gradient passes through sigma and weights move outside of the optimizer, and without
`training=True` it normalizes nothing. Here the kernel belongs to the optimizer alone.
"""

import keras
import tensorflow as tf

from tfrobust.contract import whole


class Spectral(keras.layers.Layer):
    """Base: a matrix `kernel` that is used as kernel / sigma, sigma its largest singular value.

    sigma is estimated by power iteration, u and v constants for the gradient and sigma = v' W u
    not. `u` moves in training passes only; with `training=False` the estimate of the same kernel
    does not change.
    """

    def __init__(self, iterations=1, **kwargs):
        super().__init__(**kwargs)
        self.iterations = whole("iterations", iterations, 1)

    def matrix(self, shape, initializer):
        """Makes the kernel `(rows, columns)` and `u`."""
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=initializer, autocast=False
        )
        self.u = self.add_weight(
            name="u", shape=(1, shape[1]), trainable=False, autocast=False,
            initializer=keras.initializers.RandomNormal(), aggregation="only_first_replica",
        )  # fmt: skip

    def effective(self, training=False):
        """kernel / sigma, `(rows, columns)`; in training one more power iteration first."""
        kernel = tf.convert_to_tensor(self.kernel.value)
        fixed, u = tf.stop_gradient(kernel), tf.convert_to_tensor(self.u.value)
        v = _unit(tf.matmul(u, fixed, transpose_b=True))
        for _ in range(self.iterations if training else 0):
            u = _unit(tf.matmul(v, fixed))
            v = _unit(tf.matmul(u, fixed, transpose_b=True))
        if training:
            self.u.assign(u)
        u = _unit(u)
        sigma = tf.reduce_sum(tf.matmul(v, kernel) * u)
        return kernel / tf.where(sigma > _TINY, sigma, 1.0)  # zeros stay zeros

    def get_config(self):
        return {**super().get_config(), "iterations": self.iterations}


@keras.saving.register_keras_serializable(package="tfrobust")
class SNDense(Spectral):
    """x W / sigma(W) + b: 1-Lipschitz in the L2 norm (Miyato et al., 2018).

    A small W is scaled up as well: after some passes the largest singular value is 1. The bias is
    not normalized.

    Args:
        units: Integer >= 1.
        use_bias: Bool.
        kernel_initializer: As in `keras.layers.Dense`; its scale only sets the pace of learning.
        iterations: Integer >= 1, power iterations of a training pass.

    Input shape: `(batch, features)`. Output shape: `(batch, units)`.

    Reference: Miyato et al., Spectral normalization for generative adversarial networks (2018),
    https://arxiv.org/abs/1802.05957.

    Example:

    >>> layer = SNDense(1, use_bias=False)
    >>> layer.build((None, 2))
    >>> _ = layer.kernel.assign([[3.0], [4.0]])
    >>> [round(float(w), 3) for w in layer.effective()[:, 0]]
    [0.6, 0.8]
    """

    def __init__(
        self, units, use_bias=True, kernel_initializer="glorot_uniform", iterations=1, **kwargs
    ):
        super().__init__(iterations=iterations, **kwargs)
        self.units, self.use_bias = whole("units", units, 1), bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        if input_shape[-1] is None:
            raise ValueError(
                f"Layer '{self.name}' must know its features. Received: input_shape={input_shape}"
            )
        self.matrix((input_shape[-1], self.units), self.kernel_initializer)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, inputs, training=False):
        out = tf.matmul(inputs, tf.cast(self.effective(training), inputs.dtype))
        return out + tf.cast(self.bias, out.dtype) if self.use_bias else out

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="tfrobust")
class SNEmbedding(Spectral):
    """Rows of W / sigma(W), one a class: their norms are at most 1.

    Args:
        classes: Integer >= 1, number of rows.
        units: Integer >= 1, length of a row.
        embeddings_initializer: As in `keras.layers.Embedding`.
        iterations: Integer >= 1, power iterations of a training pass.

    Input shape: integers `(batch,)` in [0, classes). Output shape: `(batch, units)`, float.

    Example:

    >>> layer = SNEmbedding(2, 3)
    >>> layer(tf.constant([0, 1, 1])).shape
    TensorShape([3, 3])
    """

    def __init__(
        self, classes, units, embeddings_initializer="glorot_uniform", iterations=1, **kwargs
    ):
        super().__init__(iterations=iterations, **kwargs)
        self.classes, self.units = whole("classes", classes, 1), whole("units", units, 1)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self._convert_input_args = False  # labels stay integers
        self._allow_non_tensor_positional_args = True

    def build(self, input_shape=None):
        self.matrix((self.classes, self.units), self.embeddings_initializer)

    def call(self, inputs, training=False):
        rows = tf.gather(self.effective(training), tf.cast(inputs, tf.int32))
        return tf.cast(rows, self.compute_dtype)

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor((*inputs.shape, self.units), dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "units": self.units,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


_TINY = 1e-12


def _unit(v):
    return v / tf.maximum(tf.norm(v), _TINY)
