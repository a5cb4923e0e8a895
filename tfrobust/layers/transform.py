"""Weights that are functions of other variables while a game trains them: w = T(theta).

Dynamic surgery (w = shadow where a mask is on), learned scores (w = w0 where a score is among the
largest), Bayesian weights (w = mu + sigma eps), perturbed weights: the same three lines each,

    class Halves(WeightTransform):
        def targets(self, classifier): return [...]            # its variables that are replaced
        def create(self, number, w): return {"theta": self.own(w, "theta", trainable=True)}
        def reset(self, number, w, own): own["theta"].assign(2 * w.value)
        def value(self, own): return own["theta"] / 2           # differentiable by theta

    tr.training.TRADES(net, attack, transform=Halves())

A transform may also have a `penalty()`, a term of the loss in theta itself (the KL of Bayesian
weights), and weights at `rest` between the steps that differ from those of a step's passes (their
mean). What the attack of a step meets is `attacked()`: the weights at rest, if not said otherwise.

The classifier's variables hold the *values* w at all times. A game differentiates its loss by w as
it always does, and `pull` carries the gradient on, dL/dtheta = (dw/dtheta)^T dL/dw, to the
variables that the optimizer moves, beside what a penalty gives. That is the chain rule, so the
gradients are those of a pass in `keras.StatelessScope` with w(theta) in place of the variables; but
there is nothing to enter and nothing to fold in afterwards. The attack in the loop, validation,
`predict`, other callbacks, `tr.evaluate`, saving and shrinking see the transformed net because it
*is* the net, graphs that were compiled for it stay valid, and the updates of BatchNormalization and
seeds, which a stateless scope would swallow, take place.
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

    def rest(self, own):
        """The weights between steps, which attacks, validation and saving see; default: `value`."""
        return self.value(own)

    def advance(self, number, own):
        """Changes masks or noise for the step that `self.step` counts, before that step."""

    def penalty(self):
        """A scalar that the loss of the weights has on top, in terms of theta, or None."""
        return None

    def attacked(self):
        """The model that the attack of a step meets; default: the classifier, at rest."""
        return self._kept.classifier

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
            np.array_equal(_numpy(w), _numpy(_constrained(w, self.rest(own))))
            for _, (w, own) in pairs
        )
        if not (self.begun.numpy() and all(same)):
            for number, (w, own) in pairs:
                self.reset(number, w, own)
            self.step.assign(0)
            self.begun.assign(True)
            self._advance()
            self._settle()
        kept.begun = True

    def trained(self, variables):
        """What an optimizer moves in place of `variables`."""
        return [source for variable in variables for source in self._sources(variable)]

    def beside(self, variables):
        """Pairs (theta, variable): what a loss may depend on beside `variables`, and for whom."""
        places = self._kept.places
        return [(s, v) for v in variables if id(v) in places for s in self._sources(v)]

    def enter(self):
        """From rest to the weights of the passes of a step."""
        if type(self).rest is not WeightTransform.rest:
            self.write()

    def pull(self, gradients, variables, beside=()):
        """Pairs (gradient, variable) for `trained(variables)`, from gradients by `variables`.

        Args:
            beside: Gradients by what `self.beside(variables)` lists, or nothing.

        Raises:
            ValueError: `begin` was not called: the classifier would become all zeros.
        """
        if not self._kept.begun:
            raise ValueError(
                "`transform` must begin before the first step of a loop of your own: call "
                f"game.transform.begin(). Received: {type(self).__name__} without weights"
            )
        pairs, direct = [], {}
        if any(gradient is not None for gradient in beside):
            sources = [source for source, _ in self.beside(variables)]
            direct = {id(s): g for s, g in zip(sources, beside, strict=True)}
        for gradient, variable in zip(gradients, variables, strict=True):
            sources = self._sources(variable)
            if gradient is None or id(variable) not in self._kept.places:
                own = id(variable) in self._kept.places
                pairs += [(direct.get(id(s)) if own else gradient, s) for s in sources]
                continue
            with tf.GradientTape() as tape:
                value = self.value(self._kept.own[self._kept.places[id(variable)]])
            gradient = tf.cast(tf.convert_to_tensor(gradient), value.dtype)
            found = tape.gradient(value, sources, gradient)
            pairs += [(_sum(g, direct.get(id(s))), s) for g, s in zip(found, sources, strict=True)]
        return pairs

    def update(self):
        """After the updates of a step: on to the next one."""
        assign(self.step, self.step.value + 1)
        self._advance()
        self._settle()

    def write(self):
        """Gives the classifier the weights of a pass, behind its constraints for them."""
        for w, own in zip(self._kept.targets, self._kept.own, strict=True):
            assign(w, _constrained(w, self.value(own)))

    def _settle(self):
        for w, own in zip(self._kept.targets, self._kept.own, strict=True):
            assign(w, _constrained(w, self.rest(own)))

    def _advance(self):
        for number, own in enumerate(self._kept.own):
            self.advance(number, own)

    def _sources(self, variable):
        if id(variable) in self._kept.places:
            own = self._kept.own[self._kept.places[id(variable)]]
            return [v for v in own.values() if v.trainable]
        return [] if self.still(variable) else [variable]


def _constrained(w, value):
    value = tf.cast(value, w.dtype)
    return value if w.constraint is None else w.constraint(value)


def _sum(a, b):
    return a + b if a is not None and b is not None else a if b is None else b


def _numpy(value):
    return np.asarray(keras.ops.convert_to_numpy(value))
