"""Quiet, seeded, headless: what every test may rely on."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def swept():
    """What outlives a file of tests is not looked through again by every garbage collection."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """The same weights and noise whichever tests ran before."""
    keras.utils.set_random_seed(0)
