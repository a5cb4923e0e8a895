"""Trainings to kill and to start again: a game with every kind of state, and a plain model."""

import functools
import zlib

import keras
import numpy as np

import tfrobust as tr

EPOCHS, EXAMPLES = 3, 90  # six batches an epoch


def masked_net(masked=True):
    inputs = x = keras.Input((8, 8, 1))
    x = keras.layers.Dense(6)(keras.layers.Flatten()(x))
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    if masked:
        x = tr.layers.BetaBernoulliMask(initial_a=2.0)(x)
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def anp_vs(seed, beta=4.0, **compiling):
    """An ANP-VS game with every kind of state: two optimizers, masks, dropout, batch norm.

    The metric is no string: what is made at the first step is traced again.
    """
    keras.utils.set_random_seed(seed)
    attack = tr.attacks.PGD(tr.threats.Linf(0.1), steps=2)
    vulnerability = tr.regularizers.VulnerabilitySuppression(1.0)
    game = tr.training.ANP(
        masked_net(), attack, beta=beta, train_size=EXAMPLES, regularizers=[vulnerability]
    )
    game.compile(metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")], **compiling)
    return game


def plain(seed, **compiling):
    """A plain Keras model, with an EMA in its optimizer; its steps cost less than their trace."""
    keras.utils.set_random_seed(seed)
    net = masked_net(masked=False)
    net.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **{"run_eagerly": True, **compiling},
    )
    return net


def digits(seed=0, batch_size=16):
    data = tr.data.load("digits")
    x, y = data.x_train[:EXAMPLES], data.y_train[:EXAMPLES]
    train = tr.data.Batches(x, y, batch_size, seed=seed, augment=tr.data.CropFlip(1, flip=False))
    return train, (data.x_test[:32], data.y_test[:32])


class Kill(keras.callbacks.Callback):
    """Ends `fit` as abruptly as a process can do to itself and go on testing."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def train(make, seed, folder=None, kill=None, save_freq="epoch", execution=1, **kwargs):
    """(model, history) of a `fit` that keeps state in `folder` and stops after `kill` batches."""
    model = make(seed, steps_per_execution=execution)
    batches, validation = digits()
    early = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0)
    others = [early, slower]
    callbacks = list(others)
    if folder is not None:
        # A game finds out data and callbacks by itself and puts this one last.
        known = (None, ()) if isinstance(model, tr.training.Game) else (batches, others)
        resume = tr.training.Resume(folder, *known, save_freq=save_freq, **kwargs)
        callbacks = [resume, *others] if known[0] is None else [*others, resume]
    if kill is not None:
        callbacks.append(Kill(kill))
    options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    return model, until_killed(model.fit, batches, validation_data=validation, **options)


def state(model):
    """Everything that training has changed: weights, seeds, optimizers."""
    optimizers = getattr(model, "optimizers", {0: model.optimizer}).values()
    variables = [*model.variables, *(v for o in optimizers for v in o.variables)]
    return [np.asarray(v.numpy()) for v in variables]


def assert_same(model, other):
    ours, theirs = state(model), state(other)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


# Any training -----------------------------------------------------------------------------------


def until_killed(run, *args, **kwargs):
    """What `run(...)` returns, a `fit` for one; None if a `Kill` has ended it."""
    try:
        return run(*args, **kwargs)
    except KeyboardInterrupt:
        return None


class Trace(keras.callbacks.Callback):
    """A checksum of everything that training has changed, after each batch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(functools.reduce(lambda crc, a: zlib.crc32(a.tobytes(), crc),
                                          state(self.model), 0))  # fmt: skip


def resumed_equals_unbroken(train, folder, kill, save_freq=1):
    """A game killed at its batch `kill` and started again goes on and ends as the unbroken one.

    Five steps or more follow the restored state; the second start has another seed, so that all
    there is comes out of the file.

    Args:
        train: `train(seed, *callbacks)` makes a game, runs its `fit` `until_killed` with these
            callbacks, and returns the variables or arrays that it ends with.
        folder: Path for the state.
        kill: Number of batches before the one that is the last.

    Returns:
        What the unbroken run ended with.
    """
    whole, again = Trace(), Trace()
    expected = train(0, whole)
    after = len(whole.seen) - kill  # at least so many: some of what came before may be lost, too
    assert after >= 5
    train(0, tr.training.Resume(folder, save_freq=save_freq), Kill(kill))
    assert (folder / "resume.npz").exists()
    resumed = train(9, again, tr.training.Resume(folder, save_freq=save_freq))
    assert again.seen[-after:] == whole.seen[kill:]
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    return expected
