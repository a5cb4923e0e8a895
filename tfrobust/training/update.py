"""From the gradients of a game to what its optimizers apply: masked, then pulled back.

A gradient at a pruned entry does nothing to the weight, but it would count in the norm that
`clipnorm` and `global_clipnorm` bound, and linger in momenta: it is zero before the optimizer
sees it.
"""

import tensorflow as tf

from tfrobust.pruning.constraint import constraint_of


def pairs(transform, gradients, variables):
    """[(gradient, variable)] for an optimizer, from gradients by the classifier's variables.

    Args:
        transform: `tr.layers.WeightTransform` or None.
    """
    gradients = [masked(g, v) for g, v in zip(gradients, variables, strict=True)]
    if transform is None:
        return list(zip(gradients, variables, strict=True))
    return transform.pull(gradients, variables)


def masked(gradient, variable):
    """The gradient with zeros where a `tr.pruning.MaskConstraint` of the variable has them."""
    constraint = constraint_of(variable)
    if gradient is None or constraint is None:
        return gradient
    gradient = tf.convert_to_tensor(gradient)
    return tf.where(constraint.mask.value, gradient, tf.zeros([], gradient.dtype))


def trained(transform, variables):
    """The variables that an optimizer of these holds."""
    return variables if transform is None else transform.trained(variables)


def attached(transform, classifier):
    """`transform`, with its variables for this classifier."""
    if transform is not None:
        transform.attach(classifier)
    return transform


def begin(transform):
    """Lets the transform start from the weights that the classifier has, before steps."""
    if transform is not None:
        transform.begin()


def figures(transform):
    """Names of what the transform reports."""
    return () if transform is None else tuple(transform.figures())
