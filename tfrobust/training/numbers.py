"""Numbers that stay, or follow a Keras schedule of the iteration: epsilon, beta."""

import keras
import tensorflow as tf

from tfrobust.contract import is_number

Schedule = keras.optimizers.schedules.LearningRateSchedule


def value_at(number, step):
    """A float or a Keras schedule, evaluated at iteration `step`."""
    return number(step) if isinstance(number, Schedule) else tf.constant(number, tf.float32)


def number_config(number):
    return keras.saving.serialize_keras_object(number) if isinstance(number, Schedule) else number


def check_number(name, number):
    """A float >= 0, or the Keras schedule as it is."""
    if isinstance(number, Schedule):
        return number
    if not is_number(number) or number < 0:
        shown = " ".join(repr(number).split())
        raise ValueError(f"`{name}` must be >= 0 or a Keras schedule. Received: {name}={shown}")
    return float(number)
