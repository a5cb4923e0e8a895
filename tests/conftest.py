"""Quiet, seeded, headless: what every test may rely on."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    """The same weights and noise whichever tests ran before."""
    keras.utils.set_random_seed(0)
