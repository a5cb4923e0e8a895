"""Adversarial weight perturbation: every gradient is taken where the weights are attacked, too.

game = tr.training.TRADES(net, threat, weight_attack=tr.training.AWP(gamma=0.005))
"""

import keras
import tensorflow as tf

from tfrobust.layers.transform import assign
from tfrobust.training.numbers import check_number, number_config, value_at


@keras.saving.register_keras_serializable(package="tfrobust")
class AWP:
    """min over w of max over v of L(w + v), ||v_i|| <= gamma ||w_i|| in each tensor (Wu et al.).

    A step evaluates the game's own losses twice. The first time yields the gradients g, and each
    kernel moves by v = gamma ||w|| g / ||g||; the second time, at w + v and with the same noise,
    yields the gradients that the optimizers apply to w, which is put back bit for bit first. The
    first evaluation leaves no trace in random states, BatchNormalization or reports.

    Attacked are tensors of two axes or more, as in the authors' code: no biases, no scales. Each
    group goes up its own loss, with its penalties. Entries that are exactly 0 stay 0, so pruned
    ones do; adversarial images are those of the weights before.

    Args:
        gamma: Float >= 0 or Keras schedule of the iteration, relative size of the perturbation.
            The paper: 0.01 (AT), 0.005 (TRADES). A schedule that begins with 0 is a warm-up.
        masks: Whether parameters of `tr.layers.Mask` that are trained are attacked as well.

    Cost: a second forward and backward pass a step; the attack on the images is made once.

    Reference: Wu et al., Adversarial weight perturbation helps robust generalization (2020),
    https://arxiv.org/abs/2004.05884, Algorithm 1 with one step of each kind.

    Example:

    >>> from tfrobust import attacks, models, threats, training
    >>> attack = attacks.PGD(threats.Linf(0.1), steps=2)
    >>> game = training.AdversarialTraining(
    ...     models.digits_net(), attack, weight_attack=AWP(gamma=0.01)
    ... )
    """

    def __init__(self, gamma=0.005, masks=False):
        self.gamma, self.masks = check_number("gamma", gamma), bool(masks)

    def chosen(self, game, variables):
        """Those of the variables that are attacked."""
        of_masks = {id(v) for mask in game.masks() for v in mask.variables}
        return [v for v in variables if (self.masks if id(v) in of_masks else len(v.shape) > 1)]

    def played(self, game, evaluate, variables):
        """What `evaluate()` returns at attacked weights, which are as before when it returns.

        Args:
            evaluate: Callable without arguments, returns `(losses, {group: gradients}, rest)`.
            variables: {group: the variables of its gradients}.
        """
        if self.gamma == 0:
            return evaluate()
        parts = [layer for layer in game.layers if layer is not game.transform]
        states = {id(v): v for part in parts for v in part.non_trainable_variables}.values()
        before = [tf.identity(v.value) for v in states]
        game._quiet = True
        try:
            _, gradients, _ = evaluate()
        finally:
            game._quiet = False
        for variable, value in zip(states, before, strict=True):
            variable.assign(value)
        pairs = {}
        for group, found in gradients.items():
            chosen = {id(v) for v in self.chosen(game, variables[group])}
            # Behind the variables stand the gradients by what a transform has beside them.
            for gradient, variable in zip(found, variables[group], strict=False):
                if gradient is not None and id(variable) in chosen:
                    pairs.setdefault(id(variable), (gradient, variable))
        if not pairs:
            return evaluate()
        gradients, attacked = zip(*pairs.values(), strict=True)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        weights = [tf.identity(v.value) for v in attacked]
        gamma = tf.cast(value_at(self.gamma, game.step.value), tf.float32)
        for variable, w, g in zip(attacked, weights, gradients, strict=True):
            assign(variable, w + tf.cast(gamma * step(w, g), w.dtype))
        result = evaluate()
        for variable, w in zip(attacked, weights, strict=True):
            assign(variable, w)
        return result

    def get_config(self):
        return {"gamma": number_config(self.gamma), "masks": self.masks}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config["gamma"], dict):
            config["gamma"] = keras.saving.deserialize_keras_object(config["gamma"])
        return cls(**config)


def step(w, gradient):
    """The change of norm ||w|| in the direction of the gradient, 0 where w is 0.

    >>> step(tf.constant([3.0, 0.0, 4.0]), tf.constant([0.0, 9.0, 2.0])).numpy().tolist()
    [0.0, 0.0, 5.0]
    """
    w, gradient = tf.cast(w, tf.float32), tf.cast(tf.convert_to_tensor(gradient), tf.float32)
    gradient = tf.where(w == 0, tf.zeros([], gradient.dtype), gradient)
    # Divided by its largest entry first, whose square may be beyond float32 (a loss scale).
    gradient = tf.math.divide_no_nan(gradient, tf.reduce_max(tf.abs(gradient)))
    change = tf.math.divide_no_nan(gradient, tf.norm(gradient)) * tf.norm(w)
    return tf.where(tf.math.is_finite(change), change, tf.zeros([], change.dtype))
