"""Averages of weights (`use_ema`) in games: Keras's own, for every group's optimizer.

`keras.Model.fit` ends by handing all trainable weights to one optimizer, in an order that is not
the one its averages have, and `keras.callbacks.SwapEMAWeights` swaps the weights of one optimizer.
While a game's `fit` runs, both do the same for each optimizer with its own variables.

    game.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.999))
    game.fit(..., callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True), checkpoint])
"""

import contextlib

import keras

from tfrobust.pruning.constraint import optimizers_of


@contextlib.contextmanager
def of_all_groups(game, callbacks):
    """Lets `fit` finalize, and the callback swap, the averages of all groups of `game`."""
    averaging = [o for o in optimizers_of(game) if o.use_ema]
    callbacks = getattr(callbacks, "callbacks", callbacks) or []
    swaps = [c for c in callbacks if isinstance(c, keras.callbacks.SwapEMAWeights)]
    if not averaging:
        yield  # with a swap that has nothing to swap, Keras says so
        return

    def finalize(variables):
        del variables  # of all groups at once
        for optimizer in averaging:
            # A swap at the end of the last epoch has put the averages into the weights already.
            if not any(swap._ema_weights_in_model for swap in swaps):
                optimizer._overwrite_model_variables_with_average_value(
                    optimizer._trainable_variables
                )

    def swap(of_tensorflow, of_others):
        del of_others
        for optimizer in averaging:
            of_tensorflow(optimizer)

    changed = [(game.optimizer, "finalize_variable_values", finalize)]
    changed += [(callback, "_apply_to_ema_optimizers", swap) for callback in swaps]
    for owner, name, function in changed:
        object.__setattr__(owner, name, function)  # past Keras's tracking of attributes
    try:
        yield
    finally:
        for owner, name, _ in changed:
            object.__delattr__(owner, name)
