"""Weights that are functions of other variables while a game trains them: w = T(theta).

Dynamic surgery (w = shadow where a mask is on), learned scores (w = w0 where a score is among the
largest), Bayesian weights (w = mu + sigma eps), perturbed weights: the same three lines each,

    class Halves(WeightTransform):
        def targets(self, classifier): return [...]            # its variables that are replaced
        def create(self, number, w): return {"theta": self.own(w, "theta", trainable=True)}
        def reset(self, number, w, own): own["theta"].assign(2 * w.value)
        def value(self, own): return own["theta"] / 2           # differentiable by theta

    tr.training.TRADES(net, attack, transform=Halves())

The classifier's variables hold the *values* w at all times. A game differentiates its loss by w as
it always does, and `pull` carries the gradient on, dL/dtheta = (dw/dtheta)^T dL/dw, to the
variables that the optimizer moves. That is the chain rule, so the gradients are those of a pass in
`keras.StatelessScope` with w(theta) in place of the variables; but there is nothing to enter and
nothing to fold in afterwards. The attack in the loop, validation, `predict`, other callbacks,
`tr.evaluate`, saving and shrinking see the transformed net because it *is* the net, graphs that
were compiled for it stay valid, and the updates of BatchNormalization and seeds, which a stateless
scope would swallow, take place.
"""

import types

import keras
import numpy as np
import tensorflow as tf


@tf.custom_gradient
def straight_through(hard, soft):
    """`hard` going forward, the gradient of `soft` going back.

    >>> s = tf.constant([0.2, 0.7])
    >>> with tf.GradientTape() as tape:
    ...     tape.watch(s)
    ...     kept = straight_through(tf.round(s), s)
    >>> kept.numpy().tolist(), tape.gradient(kept, s).numpy().tolist()
    ([0.0, 1.0], [1.0, 1.0])
    """
    return tf.identity(hard), lambda upstream: (None, upstream)


def assign(variable, value):
    """Assigns what all replicas agree on, inside a replica's step too."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        variable.assign(value)
        return

    def merged(strategy, value):
        strategy.extended.update(
            variable.value, lambda v, new: v.assign(tf.cast(new, v.dtype)), (value,), group=False
        )

    context.merge_call(merged, (value,))


class WeightTransform(keras.layers.Layer):
    """Base of all transforms; it owns the variables theta, which `.keras` files and Resume keep.

    One object serves one classifier. Training begins from the weights that the classifier has at
    the first `fit`; weights loaded over it between two `fit`s begin anew.

    Attributes:
        step: Integer variable, updates since the transform began.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # Not a dict or list, in which Keras would track the classifier's variables as our own.
        self._kept = types.SimpleNamespace(classifier=None, begun=False)
        self._kept.targets, self._kept.own, self._kept.places = [], [], {}

    # --- what an author writes ------------------------------------------------------------------

    def targets(self, classifier):
        """The variables of the classifier that are functions of others."""
        raise TypeError(f"{type(self).__name__} must define targets()")

    def create(self, number, w):
        """{name: variable} for target `number`, from `self.own`; the trainable ones are theta."""
        raise TypeError(f"{type(self).__name__} must define create()")

    def reset(self, number, w, own):
        """Sets the variables from the classifier's weights, before the first step."""
        raise TypeError(f"{type(self).__name__} must define reset()")

    def value(self, own):
        """The weights as a tensor, differentiable by theta; noise is drawn in `advance`."""
        raise TypeError(f"{type(self).__name__} must define value()")

    def advance(self, number, own):
        """Changes masks or noise for the step that `self.step` counts, before that step."""

    def still(self, variable):
        """Whether a variable of the classifier is not trained at all meanwhile."""
        return False

    def figures(self):
        """{name: scalar tensor} for `fit` to report."""
        return {}

    # --- what a game calls ----------------------------------------------------------------------

    def own(self, like, name, dtype=None, trainable=False, shape=None):
        """A variable of this transform, by default of the shape and type of `like`."""
        return self.add_weight(
            shape=like.shape if shape is None else shape, dtype=dtype or like.dtype,
            initializer="zeros", trainable=trainable, name=name,
        )  # fmt: skip

    def attach(self, classifier):
        """Makes the variables; the classifier stays as it is until training begins."""
        kept = self._kept
        if kept.classifier is not None:
            raise ValueError(
                f"`transform` must be a new {type(self).__name__} for each game. "
                f"Received: one that has '{kept.classifier.name}'"
            )
        kept.classifier, kept.targets = classifier, list(self.targets(classifier))
        self.step = self.own(None, "step", "int64", shape=())
        self.begun = self.own(None, "begun", "bool", shape=())
        kept.own = [self.create(number, w) for number, w in enumerate(kept.targets)]
        kept.places = {id(w): number for number, w in enumerate(kept.targets)}
        self.built = True

    def begin(self):
        """Starts from the classifier's weights, unless they are those of an earlier part."""
        kept = self._kept
        pairs = list(enumerate(zip(kept.targets, kept.own, strict=True)))
        same = (
            np.array_equal(_numpy(w), _numpy(self._constrained(w, own))) for _, (w, own) in pairs
        )
        if not (self.begun.numpy() and all(same)):
            for number, (w, own) in pairs:
                self.reset(number, w, own)
            self.step.assign(0)
            self.begun.assign(True)
            self._advance()
            self.write()
        kept.begun = True

    def trained(self, variables):
        """What an optimizer moves in place of `variables`."""
        return [source for variable in variables for source in self._sources(variable)]

    def pull(self, gradients, variables):
        """Pairs (gradient, variable) for `trained(variables)`, from gradients by `variables`.

        Raises:
            ValueError: `begin` was not called: the classifier would become all zeros.
        """
        if not self._kept.begun:
            raise ValueError(
                "`transform` must begin before the first step of a loop of your own: call "
                f"game.transform.begin(). Received: {type(self).__name__} without weights"
            )
        pairs = []
        for gradient, variable in zip(gradients, variables, strict=True):
            sources = self._sources(variable)
            if gradient is None or id(variable) not in self._kept.places:
                pairs += [(gradient, source) for source in sources]
                continue
            with tf.GradientTape() as tape:
                value = self.value(self._kept.own[self._kept.places[id(variable)]])
            gradient = tf.cast(tf.convert_to_tensor(gradient), value.dtype)
            pairs += zip(tape.gradient(value, sources, gradient), sources, strict=True)
        return pairs

    def update(self):
        """After the updates of a step: on to the next one."""
        assign(self.step, self.step.value + 1)
        self._advance()
        self.write()

    def write(self):
        """Gives the classifier its weights, behind whatever constraint it has for them."""
        for w, own in zip(self._kept.targets, self._kept.own, strict=True):
            assign(w, self._constrained(w, own))

    def _advance(self):
        for number, own in enumerate(self._kept.own):
            self.advance(number, own)

    def _constrained(self, w, own):
        value = tf.cast(self.value(own), w.dtype)
        return value if w.constraint is None else w.constraint(value)

    def _sources(self, variable):
        if id(variable) in self._kept.places:
            own = self._kept.own[self._kept.places[id(variable)]]
            return [v for v in own.values() if v.trainable]
        return [] if self.still(variable) else [variable]


def _numpy(value):
    return np.asarray(keras.ops.convert_to_numpy(value))
