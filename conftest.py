"""Quiet, seeded, headless: what every test may rely on."""

import gc
import os
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow.python.eager.context import context  # noqa: E402


def gentle(set_random_seed):
    """`keras.utils.set_random_seed` that lets compiled kernels live while nobody needs them dead.

    With a new seed TensorFlow forgets them all, for the sake of `tf.random.uniform` and its like;
    then each graph costs tenths of a second again. Keras and tfrobust draw in other ways.
    """
    set_random_seed(0)
    state = context()

    def forgetting_nothing(seed):
        state._seed, state._rng = seed, random.Random(seed)

    def set_random_seed_gently(seed):
        drawn = state._rng.getstate() != random.Random(state._seed).getstate()
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                patch.setattr(tf.random, "set_seed", forgetting_nothing)
            set_random_seed(seed)

    return set_random_seed_gently


keras.utils.set_random_seed = gentle(keras.utils.set_random_seed)


def pytest_configure(config):
    """Fast tests run graphs as they are traced; the slow ones, as users do, as Grappler likes them.

    Rewriting a graph that runs a few times takes a fifth of its first call.
    """
    if config.option.markexpr == "not slow":
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(scope="module", autouse=True)
def swept():
    """What outlives a file of tests is not looked through again by every garbage collection."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def eagerly():
    """A test whose attacks need no graph: see `tests.bank.eagerly`."""
    from tests import bank

    with bank.eagerly():
        yield


@pytest.fixture(autouse=True)
def seeded():
    """The same weights and noise whichever tests ran before."""
    keras.utils.set_random_seed(0)
