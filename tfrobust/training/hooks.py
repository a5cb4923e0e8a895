"""Callbacks that do not hear of batches for a while."""

NAMES = ("on_train_batch_begin", "on_train_batch_end")


class Nothing:
    """A hook that does nothing, where an instance had `before` (None: the one of its class)."""

    def __init__(self, before):
        self.before = before

    def __call__(self, batch, logs=None):
        pass


def take(callbacks):
    """Takes the hooks of a batch away.

    >>> import keras
    >>> counter = keras.callbacks.Callback()
    >>> take([counter])
    >>> type(counter.on_train_batch_end).__name__
    'Nothing'
    >>> give_back([counter])
    >>> type(counter.on_train_batch_end).__name__
    'method'
    """
    for callback in callbacks:
        for name in NAMES:
            setattr(callback, name, Nothing(vars(callback).get(name)))


def give_back(callbacks):
    """Returns those that were taken, also by an earlier fit."""
    for callback in callbacks:
        for name in NAMES:
            while isinstance(now := vars(callback).get(name), Nothing):
                delattr(callback, name)
                if now.before is not None:
                    setattr(callback, name, now.before)
