"""Writes a `.keras` file and checks that it loads as what it was."""

import os
import pathlib

import keras
import numpy as np

from tfrobust import contract, files
from tfrobust.export.result import Exported, compare, first_line


def keras_file(model, path):
    """Writes `model` as a `.keras` file (whole or not at all), loads it back and compares.

    Args:
        model: Keras classifier, with or without masks.
        path: Target file, ending in `.keras`; its folder is made.

    Returns:
        `Exported`.

    Raises:
        ValueError: another suffix, or a file that does not load or answers differently.
        OSError: a path that cannot be written.
    """
    contract.classifier(model, "model")
    if pathlib.Path(path).suffix != ".keras":
        raise ValueError(f"`path` must end in '.keras'. Received: path={str(path)!r}")
    path = files.target(path)
    # Any size will do for the comparison where the model leaves it open.
    shape = [32 if size is None else size for size in model.input_shape[1:]]
    x = np.random.default_rng(0).random((32, *shape), np.float32)
    wanted = keras.ops.convert_to_numpy(model(x, training=False))
    answer = {}

    def save(name):
        model.save(name)
        try:
            twin = keras.saving.load_model(name, compile=False)
        except Exception as error:  # Keras raises what the layer's own code raises
            raise ValueError(
                f"`model` must load again from its own file. Received: {first_line(error)}"
            ) from error
        parity, agreement = compare(keras.ops.convert_to_numpy(twin(x, training=False)), wanted)
        if not parity <= 1e-5 * max(1.0, float(np.max(np.abs(wanted)))):
            raise ValueError(
                "`model` must answer the same after loading: a layer forgets part of its state. "
                f"Received: difference={parity:.3g}"
            )
        size = os.path.getsize(name)
        answer.update(parity=parity, agreement=agreement, bytes=size, gzip=files.gzipped(name))

    files.replace(path, save)
    tensor = {"dtype": "float32", "scale": None, "zero_point": None}
    return Exported(
        path=str(path),
        format="keras",
        quantize=None,
        images=len(x),
        input={**tensor, "shape": [1, *model.input_shape[1:]]},
        output={**tensor, "shape": [1, model.output_shape[-1]]},
        **answer,
    )
