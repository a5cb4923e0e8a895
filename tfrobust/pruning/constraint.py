"""The constraint that keeps pruned entries exactly zero, and what else may bring them back.

Keras applies constraints inside the optimizer's update, so the zeros hold within compiled loops,
whatever moved the entry: momentum, weight decay, averages written back. Two things lie outside of
the update: averages of weights (`use_ema`), which take the weights' place when `fit` ends and which
the constraint therefore masks as well, and a train function that was traced before it was there.
"""

import weakref

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfrobust")
class MaskConstraint(keras.constraints.Constraint):
    """w -> where(mask, inner(w), 0), with a mask that may change between steps.

    Args:
        shape: Shape of the variable.
        inner: The user's own constraint, applied first, or None.

    Attributes:
        mask: Bool `keras.Variable` of that shape, all True at first; nothing trains it.
        known: Models whose train function was traced with it, as far as we made them; their
            optimizers' averages are masked too.

    Example:

    >>> constraint = MaskConstraint((3,), keras.constraints.NonNeg())
    >>> mask = constraint.mask.assign([True, False, True])
    >>> keras.ops.convert_to_numpy(constraint(np.array([1.0, 2.0, -3.0], "float32")))
    array([1., 0., 0.], dtype=float32)
    """

    def __init__(self, shape, inner=None):
        self.shape = tuple(int(size) for size in shape)
        self.inner = keras.constraints.get(inner)
        self.known = weakref.WeakSet()
        self.mask = keras.Variable(
            np.ones(self.shape, bool), dtype="bool", trainable=False, name="pruning_mask",
            aggregation="only_first_replica",
        )  # fmt: skip

    def __call__(self, w):
        self._mask_averages(w)
        w = w if self.inner is None else self.inner(w)
        w = keras.ops.convert_to_tensor(w)
        # Not a product: 0 * NaN is NaN, and some optimizers divide 0 by 0 where nothing moves.
        return tf.where(self.mask.value, w, tf.zeros([], w.dtype))

    def _mask_averages(self, w):
        """Keras averages weights before it constrains them: the averages of `w` lose them here."""
        for optimizer in {id(o): o for m in self.known for o in optimizers_of(m)}.values():
            if isinstance(w, keras.Variable) and optimizer.use_ema and optimizer.built:
                number = optimizer._trainable_variables_indices.get(optimizer._var_key(w))
                if number is not None:
                    self.masked(optimizer._model_variables_moving_average[number])

    def get_config(self):
        inner = None if self.inner is None else keras.constraints.serialize(self.inner)
        return {"shape": list(self.shape), "inner": inner}

    def masked(self, variable):
        """Sets pruned entries of a variable of the same shape to zero."""
        value = keras.ops.convert_to_tensor(variable)
        variable.assign(tf.where(self.mask.value, value, tf.zeros([], value.dtype)))


def constraint_of(variable):
    """The `MaskConstraint` of a variable, or None."""
    found = getattr(variable, "constraint", None)
    return found if isinstance(found, MaskConstraint) else None


def attach(variable):
    """The `MaskConstraint` of `variable`, put on if there is none.

    A mask that is there already is taken over where its entries are zero; where weights were
    loaded over them, the entries are free again.
    """
    found = constraint_of(variable)
    if found is None:
        variable.constraint = found = MaskConstraint(variable.shape, variable.constraint)
        return found
    mask = numpy(found.mask)
    if not mask.all():
        found.mask.assign(mask | (numpy(variable) != 0))
    return found


def detach(variable):
    """Gives a variable back its own constraint, if any."""
    found = constraint_of(variable)
    if found is not None:
        variable.constraint = found.inner


def retrace(models, constraints):
    """Makes `fit` trace anew where a traced train function knows nothing of the constraints."""
    for model in models:
        if any(model not in constraint.known for constraint in constraints):
            if getattr(model, "train_function", None) is not None:
                model.make_train_function(force=True)
            for constraint in constraints:
                constraint.known.add(model)


def optimizers_of(model):
    """The optimizers of a plain model or of a game, without their wrappers."""
    found = list((getattr(model, "optimizers", None) or {}).values())
    return unwrapped([*found, getattr(model, "optimizer", None)])


def unwrapped(found):
    """Optimizers without their wrappers (`LossScaleOptimizer`, `MultiOptimizer`), each once."""
    found, flat = list(found), []
    while found:
        optimizer = found.pop(0)
        inner = getattr(optimizer, "inner_optimizer", None)
        several = getattr(optimizer, "_inner_optimizers", None)
        if inner is not None or several:
            found += [inner] if inner is not None else several
        elif isinstance(optimizer, keras.optimizers.Optimizer):
            if all(optimizer is not other for other in flat):
                flat.append(optimizer)
    return flat


def slots(optimizer, variable):
    """What an optimizer keeps for each entry of a variable: moments, averages, sums."""
    if not optimizer.built:
        return []
    index = optimizer._trainable_variables_indices.get(optimizer._var_key(variable))
    count, found = len(optimizer._trainable_variables), []
    for value in vars(optimizer).values():
        if index is None or not isinstance(value, list) or len(value) != count:
            continue
        slot = value[index]
        if isinstance(slot, keras.Variable) and slot is not variable:
            if tuple(slot.shape) == tuple(variable.shape):
                found.append(slot)
    return found


def numpy(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))
