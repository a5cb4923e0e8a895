"""From the gradients of a game to what its optimizers apply: masked, then pulled back.

A gradient at a pruned entry does nothing to the weight, but it would count in the norm that
`clipnorm` and `global_clipnorm` bound, and linger in momenta: it is zero before the optimizer
sees it.
"""

import tensorflow as tf

from tfrobust.pruning.constraint import constraint_of


def entered(transform, groups):
    """Gives the classifier the weights of the passes of a step.

    Args:
        transform: `tr.layers.WeightTransform` or None.
        groups: {group: variables of the classifier}.

    Returns:
        {group: what its loss is differentiated by}: the variables, and what a transform has beside.
    """
    if transform is None:
        return groups
    transform.enter()
    return {g: [*v, *(source for source, _ in transform.beside(v))] for g, v in groups.items()}


def pairs(transform, gradients, variables):
    """[(gradient, variable)] for an optimizer, from gradients by what `entered` said.

    Args:
        transform: `tr.layers.WeightTransform` or None.
    """
    gradients, beside = gradients[: len(variables)], gradients[len(variables) :]
    gradients = [masked(g, v) for g, v in zip(gradients, variables, strict=True)]
    if transform is None:
        return list(zip(gradients, variables, strict=True))
    owners = transform.beside(variables)
    beside = [
        masked(g, v) if source.shape == v.shape else g
        for g, (source, v) in zip(beside, owners, strict=True)
    ]
    return transform.pull(gradients, variables, beside)


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


def attacked(transform, classifier):
    """The model that the attack of a step meets."""
    return classifier if transform is None else transform.attacked()


def penalties(transform):
    """Terms that the loss of the weights has on top."""
    penalty = None if transform is None else transform.penalty()
    return [] if penalty is None else [penalty]


def leave(transform, report):
    """On to the next step, and `report(name, value)` for what the transform has to say."""
    if transform is not None:
        transform.update()
        for name, value in transform.figures().items():
            report(name, value)
