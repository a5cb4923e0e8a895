"""What a game refuses: arrays before the first step, streams within the graph of each step.

Keras would train on grey levels from 0 to 255 without a word while the attack stays in [0, 1].
"""

import contextlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfrobust import contract
from tfrobust.attacks.attack import Attack
from tfrobust.data import Batches
from tfrobust.layers.transform import WeightTransform
from tfrobust.pruning.borrowed import refuse
from tfrobust.pruning.constraint import unwrapped
from tfrobust.threats import Threat
from tfrobust.training.numbers import Schedule
from tfrobust.training.ramp import Ramp


def parts(classifier, attack, validation_attack, regularizers, transform=None):
    """What a game is made of."""
    refuse(classifier, "classifier")
    contract.classifier(classifier)
    for name, value in (("attack", attack), ("validation_attack", validation_attack)):
        if value is not None and not isinstance(value, Attack):
            raise TypeError(f"`{name}` must be a tr.attacks.Attack. Received: {value!r}")
        if value is not None:
            value.check_classes(contract.classes_of(classifier))
    if not isinstance(regularizers, list | tuple):
        raise TypeError(f"`regularizers` must be a list. Received: {regularizers!r}")
    for one in regularizers:
        if not (callable(one) or hasattr(one, "penalty")):
            raise TypeError(
                "`regularizers` must hold callables (clean, adversarial) -> (batch,), or objects "
                f"with penalty(game, batch). Received: {one!r}"
            )
    if transform is not None and not isinstance(transform, WeightTransform):
        raise TypeError(
            "`transform` must be a tr.layers.WeightTransform such as tr.pruning.Surgery. "
            f"Received: {transform!r}"
        )


def threat(attack, given):
    """The threat of a game: the attack's, or, where nothing attacks, the one that is given."""
    if given is not None and not isinstance(given, Threat):
        raise TypeError(f"`threat` must be a tr.threats.Threat. Received: threat={given!r}")
    if attack is None:
        return given
    if given is not None:
        raise ValueError(f"`threat` must be None beside `attack`, which has one. Received: {given}")
    return getattr(attack, "threat", None)


def without_attack(attack, threat, epsilon, regularizers):
    """What makes no sense where nothing is attacked."""
    if threat is None and epsilon is not None:
        raise ValueError(f"`epsilon` must be None without an attack. Received: epsilon={epsilon}")
    pairs = [r for r in regularizers if getattr(r, "weight", 1.0) and not hasattr(r, "penalty")]
    if attack is None and pairs:
        warnings.warn(
            "`regularizers` compare clean with adversarial images, which are the same without an "
            "attack: VulnerabilitySuppression is then 0.",
            stacklevel=4,
        )


def radius(threat, epsilon):
    """Refuses 8 where 8/255 is meant, also as an end of a ramp; None is the threat's own."""
    ends = [epsilon.initial, epsilon.final] if isinstance(epsilon, Ramp) else [epsilon]
    for end in ends:
        if end is not None and not isinstance(end, Schedule):
            type(threat)(end)


def weight_attack(given):
    if given is not None and not hasattr(given, "played"):
        raise TypeError(f"`weight_attack` must be a tr.training.AWP or None. Received: {given!r}")


def averages(optimizers, transform):
    """Averages of what a transform trains would take the place of the classifier's weights."""
    for group, optimizer in optimizers.items():
        if transform is not None and any(o.use_ema for o in unwrapped([optimizer])):
            raise ValueError(
                "`optimizer` must not average weights (use_ema) in a game with `transform`. "
                f"Received: {type(optimizer).__name__} for group {group!r}"
            )


def arrays(classifier, x, y, prefix=""):
    """Checks images and labels whole, where they are arrays or `tr.data.Batches`."""
    if isinstance(x, Batches):
        x, y = x.x, x.y
    if not isinstance(x, np.ndarray | tf.Tensor):
        return
    contract.images(x, f"{prefix}x")
    if y is not None and (np.ndim(y) == 1 or np.shape(y)[1:] == (1,)):
        contract.labels(y, contract.classes_of(classifier), f"{prefix}y", count=len(x))


def labels(x, y):
    """Shape of one label, () or (classes,), or None where only the first batch will tell it."""
    if isinstance(x, Batches):
        y = x.y
    elif isinstance(x, tf.data.Dataset):
        spec = x.element_spec
        y = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    shape = tf.TensorShape(getattr(y, "shape", None))
    return tuple(shape[1:]) if shape.rank in (1, 2) and None not in shape[1:] else None


def validation(classifier, data):
    """The same for `validation_data`, before the epoch whose end would look at it."""
    if isinstance(data, tuple | list) and len(data) in (2, 3):
        arrays(classifier, data[0], data[1], "validation_")
    else:
        arrays(classifier, data, None, "validation_")


def callbacks(given):
    """Refuses callbacks that would do nothing: those of tfmot are for its own Keras."""
    for callback in keras.tree.flatten(getattr(given, "callbacks", given) or []):
        refuse(callback, "callbacks")


def batch(classifier, x, y, sample_weight=None):
    """Float32 images of one batch; its values are checked when the step runs."""
    if not (tf.is_tensor(x) and tf.is_tensor(y)):
        raise TypeError(
            "`x` must give pairs (images, labels) of tensors. "
            f"Received: ({type(x).__name__}, {type(y).__name__})"
        )
    if not x.dtype.is_floating:
        raise TypeError(
            "`x` must hold float pixels in [0, 1]: divide uint8 images by 255. "
            f"Received: dtype={x.dtype.name}"
        )
    classes = contract.classes_of(classifier)
    if x.shape.rank and None not in x.shape[1:]:
        contract.fits(classifier, x)
    rank = y.shape.rank
    if rank is not None and (rank not in (1, 2) or y.shape[1:] not in ((), (1,), (classes,))):
        raise ValueError(
            f"`y` must be integers (batch,) or one-hot rows (batch, {classes}). "
            f"Received: shape={tuple(y.shape)}"
        )
    shape = getattr(sample_weight, "shape", ())
    if len(shape) > 1 and shape[1:] != (1,):
        raise ValueError(
            f"`sample_weight` must have shape (batch,). Received: shape={tuple(shape)}"
        )
    x = tf.cast(x, tf.float32)
    # NaN makes the comparison false.
    found = [_within("x", x, 1.0)]
    if rank == 1 or (rank == 2 and y.shape[-1] == 1):
        found.append(_within("y", y, classes - 1))
    with tf.control_dependencies(found):
        return tf.identity(x)


def _within(name, values, high):
    low, top = tf.reduce_min(values), tf.reduce_max(values)
    legal = tf.reduce_all((values >= 0) & (values <= tf.cast(high, values.dtype)))
    text = f"`{name}` must lie in [0, {high:g}]. Received: values from"
    return tf.debugging.Assert(legal, [text, low, "to", top])


def rows(count, most):
    """Refuses a batch of more rows than a game keeps."""
    text = "`batch_size` must be that of `fit` or more. Received:"
    known = tf.get_static_value(count)
    if known is not None and known > most:
        raise ValueError(f"{text} {most} for a batch of {known}")
    return tf.debugging.Assert(count <= most, [text, most, "for a batch of", count])


@contextlib.contextmanager
def plainly():
    """Turns a failed check of `batch` into a `ValueError` of one line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        _, found, rest = error.message.partition("assertion failed: [")
        line = rest.split("\n")[0]
        if not found or "Received" not in line:
            raise
        raise ValueError(line.rpartition("]")[0].replace("] [", " ")) from None


def owned(game):
    """Which variables each group owns now, to be compared with those at `compile`."""
    return tuple((group, *map(id, own)) for group, own in sorted(game.group_variables().items()))


def unchanged(game):
    """Warns of layers frozen or freed since `compile`: a traced step does not see it."""
    if game.compiled and game._owned != owned(game):
        warnings.warn(
            "`trainable` of a layer changed after `compile`: call `compile` again, or `fit` may "
            "go on as before.",
            stacklevel=3,
        )


def loss_fits(loss, y, classes):
    """Refuses one-hot labels for a loss of integers, whose own message names neither."""
    if not isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or classes == 1:
        return
    if y.shape.rank == 2 and y.shape[-1] == classes:
        raise ValueError(
            "`y` must be integer labels for SparseCategoricalCrossentropy: compile with "
            "keras.losses.CategoricalCrossentropy(from_logits=True) for one-hot rows. "
            f"Received: shape={tuple(y.shape)}"
        )
