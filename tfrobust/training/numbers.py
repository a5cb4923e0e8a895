"""Numbers that stay, or follow a Keras schedule of the iteration: epsilon, beta."""

import keras
import tensorflow as tf

Schedule = keras.optimizers.schedules.LearningRateSchedule


def value_at(number, step):
    """A float or a Keras schedule, evaluated at iteration `step`."""
    return number(step) if isinstance(number, Schedule) else tf.constant(number, tf.float32)


def number_config(number):
    return keras.saving.serialize_keras_object(number) if isinstance(number, Schedule) else number


def check_number(name, number):
    wrong = isinstance(number, str) or number is None
    if wrong or (not isinstance(number, Schedule) and not number >= 0):
        raise ValueError(f"`{name}` must be >= 0 or a Keras schedule. Received: {name}={number!r}")
    return number
