"""The threat: norm, radius and the pixel box [0, 1], one object for attack, training, certificate.

>>> threat = Linf(8 / 255)
>>> threat
Linf(epsilon=0.03137)

A threat of your own subclasses `Threat` and gives `distance`, `project`, `random_start`, `ascent`;
every attack and game then speaks your norm. Epsilon may be a tensor everywhere, so that a sweep
over radii does not retrace.
"""

import math
import numbers

import keras
import tensorflow as tf

from tfrobust import noise


def _flat(x):
    return tf.reshape(x, (tf.shape(x)[0], math.prod(x.shape[1:])))


def _per_example(value, x):
    """Broadcasts `(batch,)` over the axes of x."""
    return tf.reshape(value, (-1,) + (1,) * (len(x.shape) - 1))


class Threat:
    """Base of all threats: a radius `epsilon` in pixel units and the box [0, 1].

    Args:
        epsilon: Float, the radius; pixels are in [0, 1], so 8 grey levels are 8 / 255.
    """

    norm = None

    def __init__(self, epsilon):
        if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real):
            raise TypeError(f"`epsilon` must be a number. Received: epsilon={epsilon!r}")
        if not (epsilon >= 0 and math.isfinite(epsilon)):
            raise ValueError(f"`epsilon` must be finite and >= 0. Received: epsilon={epsilon}")
        self.epsilon = float(epsilon)

    def radius(self, epsilon=None):
        """`epsilon`, or the threat's own, as a float32 tensor."""
        return tf.cast(self.epsilon if epsilon is None else epsilon, tf.float32)

    def distance(self, x_adv, x):
        """Norm of `x_adv - x` for each example: `(batch,)`."""
        raise TypeError(f"{type(self).__name__} must define distance()")

    def project(self, x_adv, x, epsilon=None):
        """The nearest legal point: inside the ball around `x` and inside [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define project()")

    def random_start(self, x, keys, epsilon=None):
        """A random legal point for each example, from one noise key `(batch,)` each."""
        raise TypeError(f"{type(self).__name__} must define random_start()")

    def ascent(self, gradient, x_adv):
        """Direction of steepest ascent with norm at most 1; zero where the gradient is zero."""
        raise TypeError(f"{type(self).__name__} must define ascent()")

    def box(self, x, epsilon=None):
        """The pair (lower, upper) of images between which every legal point lies.

        No pixel moves further than the whole change: |.|_inf <= |.|_2 <= |.|_1.
        """
        if self.norm not in NORMS:
            raise TypeError(f"{type(self).__name__} must define box()")
        epsilon = self.radius(epsilon)
        return tf.maximum(x - epsilon, 0.0), tf.minimum(x + epsilon, 1.0)

    def get_config(self):
        return {"epsilon": self.epsilon}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}(epsilon={self.epsilon:.4g})"

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), tuple(sorted(self.get_config().items()))))


@keras.saving.register_keras_serializable(package="tfrobust")
class Linf(Threat):
    """Bounds the largest change of any pixel by `epsilon`; pixels stay in [0, 1].

    Args:
        epsilon: Float in [0, 1], radius in pixel units.

    Example:

    >>> import tensorflow as tf
    >>> far, x = tf.constant([[0.9, 0.0]]), tf.constant([[0.5, 0.05]])
    >>> Linf(0.1).project(far, x).numpy().round(2).tolist()
    [[0.6000000238418579, 0.0]]
    """

    norm = "linf"

    def __init__(self, epsilon):
        super().__init__(epsilon)
        if self.epsilon > 1:
            raise ValueError(
                "`epsilon` must lie in [0, 1], in pixel units (write 8/255, not 8). "
                f"Received: epsilon={epsilon}"
            )

    def distance(self, x_adv, x):
        return tf.reduce_max(tf.abs(_flat(x_adv - x)), -1)

    def project(self, x_adv, x, epsilon=None):
        epsilon = self.radius(epsilon)
        return tf.clip_by_value(tf.clip_by_value(x_adv, x - epsilon, x + epsilon), 0.0, 1.0)

    def random_start(self, x, keys, epsilon=None):
        epsilon = self.radius(epsilon)
        return self.project(x + noise.uniform(keys, x.shape[1:], -1.0, 1.0) * epsilon, x, epsilon)

    def ascent(self, gradient, x_adv):
        return tf.sign(gradient)


@keras.saving.register_keras_serializable(package="tfrobust")
class L2(Threat):
    """Bounds the Euclidean length of the change by `epsilon`; pixels stay in [0, 1].

    The projection shortens the change to the ball and then clips to the box: always feasible,
    since clipping shrinks every coordinate of the change, though not always the nearest point.

    Args:
        epsilon: Float >= 0, radius in pixel units.
    """

    norm = "l2"

    def distance(self, x_adv, x):
        return tf.norm(_flat(x_adv - x), axis=-1)

    def project(self, x_adv, x, epsilon=None):
        change = x_adv - x
        length = _per_example(tf.norm(_flat(change), axis=-1), x)
        scale = tf.minimum(1.0, self.radius(epsilon) / tf.maximum(length, 1e-12))
        return tf.clip_by_value(x + change * scale, 0.0, 1.0)

    def random_start(self, x, keys, epsilon=None):
        # A Gaussian of two more dimensions, normalised and cut to d, is uniform in the d-ball.
        size = math.prod(x.shape[1:])
        point = tf.math.l2_normalize(noise.normal(keys, (size + 2,)), -1)[:, :size]
        return self.project(x + tf.reshape(point, tf.shape(x)) * self.radius(epsilon), x, epsilon)

    def ascent(self, gradient, x_adv):
        return gradient / _per_example(tf.maximum(tf.norm(_flat(gradient), axis=-1), 1e-12), x_adv)


@keras.saving.register_keras_serializable(package="tfrobust")
class L1(Threat):
    """Bounds the sum of absolute changes by `epsilon`; pixels stay in [0, 1].

    The projection on ball and box together is exact: with room_i the way to the box face in the
    direction of the wanted change z_i, the projected change is
    sign(z_i) * clip(|z_i| - lam, 0, room_i) for the smallest lam >= 0 whose sum is within epsilon
    (found by bisection). Ascent moves the largest share `1 - quantile` of the gradient only, and
    never a pixel that is already at its face (Tramer and Boneh, 2019; Croce and Hein, 2021).

    Args:
        epsilon: Float >= 0, radius in pixel units.
        quantile: Float in [0, 1): share of the pixels that one step leaves alone.
    """

    norm = "l1"
    bisections = 50

    def __init__(self, epsilon, quantile=0.95):
        super().__init__(epsilon)
        if not isinstance(quantile, numbers.Real) or not 0 <= quantile < 1:
            raise ValueError(f"`quantile` must lie in [0, 1). Received: quantile={quantile}")
        self.quantile = float(quantile)

    def distance(self, x_adv, x):
        return tf.reduce_sum(tf.abs(_flat(x_adv - x)), -1)

    def project(self, x_adv, x, epsilon=None):
        epsilon = self.radius(epsilon)
        change, origin = _flat(x_adv - x), _flat(x)
        size, room = tf.abs(change), tf.where(change > 0, 1.0 - origin, origin)

        def total(lam):
            return tf.reduce_sum(tf.clip_by_value(size - lam, 0.0, room), -1, keepdims=True)

        low = tf.zeros_like(size[:, :1])
        high = tf.reduce_max(size, -1, keepdims=True)

        def halve(i, low, high):
            middle = 0.5 * (low + high)
            inside = total(middle) <= epsilon
            return i + 1, tf.where(inside, low, middle), tf.where(inside, middle, high)

        _, _, high = tf.while_loop(
            lambda i, *_: i < self.bisections, halve, (tf.constant(0), low, high)
        )
        lam = tf.where(total(low) <= epsilon, 0.0, high)
        legal = tf.clip_by_value(size - lam, 0.0, room)
        moved = origin + tf.sign(change) * legal
        # Thousands of pixels rounded outwards would leave a small ball: those give one bit back.
        inner = origin + tf.sign(change) * tf.maximum(legal - 2.0**-24, 0.0)
        moved = tf.where(tf.abs(moved - origin) > legal, inner, moved)
        return tf.clip_by_value(tf.reshape(moved, tf.shape(x)), 0.0, 1.0)

    def random_start(self, x, keys, epsilon=None):
        # Exponentials over their sum plus one more exponential are uniform in the solid simplex.
        size = math.prod(x.shape[1:])
        parts = -tf.math.log(1.0 - noise.uniform(noise.fold(keys, 1), (size + 1,)))
        signs = tf.sign(noise.uniform(noise.fold(keys, 2), (size,)) - 0.5)
        point = signs * parts[:, :size] / tf.reduce_sum(parts, -1, keepdims=True)
        return self.project(x + tf.reshape(point, tf.shape(x)) * self.radius(epsilon), x, epsilon)

    def ascent(self, gradient, x_adv):
        g, at = _flat(gradient), _flat(x_adv)
        blocked = ((at <= 0) & (g < 0)) | ((at >= 1) & (g > 0))
        size = tf.where(blocked, 0.0, tf.abs(g))
        count = max(1, round((1 - self.quantile) * size.shape[-1]))
        best = tf.math.top_k(size, count)
        step = tf.gather(tf.sign(g), best.indices, batch_dims=1)
        step = tf.where(best.values > 0, step, 0.0) / count
        row = tf.broadcast_to(tf.range(tf.shape(g)[0])[:, None], tf.shape(best.indices))
        sparse = tf.scatter_nd(tf.stack([row, best.indices], -1), step, tf.shape(g))
        return tf.reshape(sparse, tf.shape(gradient))

    def get_config(self):
        return {**super().get_config(), "quantile": self.quantile}


NORMS = {"linf": Linf, "l2": L2, "l1": L1}
