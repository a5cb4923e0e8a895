"""Writes the file and checks it against its Keras source."""

import dataclasses
import os
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfrobust import contract, files, layers
from tfrobust.export.interpreter import Runner, predict, quiet

QUANTIZE = (None, "float16", "dynamic", "int8")
CALIBRATION_IMAGES = 500
PARITY_IMAGES = 256
UNSEEN = 0.05  # of either end of the pixel range may be clipped without a word


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written and how it answers.

    Attributes:
        path: File name.
        format: "tflite" or "keras".
        quantize: None (float32), "float16", "dynamic" or "int8".
        bytes: Size of the file.
        parity: Largest |difference of logits| to the Keras source.
        agreement: Share of images on which both name the same class, in [0, 1].
        images: Number of images behind `parity` and `agreement`.
        input: Dictionary `dtype`, `shape`, `scale`, `zero_point`: an int8 file wants
            `clip(round(pixel / scale) + zero_point, -128, 127)`; float files want the pixel.
        output: The same for the logits: `logit = (value - zero_point) * scale`.
    """

    path: str
    format: str
    quantize: str | None
    bytes: int
    parity: float
    agreement: float
    images: int
    input: dict
    output: dict

    def to_dict(self):
        """The fields as JSON types."""
        return dataclasses.asdict(self)

    def __str__(self):
        kind = f"{self.format} {self.quantize or 'float32'}"
        feed = f"{self.input['dtype']} {tuple(self.input['shape'])}"
        if self.input["scale"] is not None:
            feed += f", scale {self.input['scale']:.6g}, zero point {self.input['zero_point']}"
        return (
            f"{self.path}: {kind}, {self.bytes:,} bytes, input {feed}; logits within "
            f"{self.parity:.2g} of Keras, the same class on {self.agreement:.1%} of "
            f"{self.images} images"
        )


def tflite(model, path, quantize=None, calibration=None):
    """Writes `model` as a TensorFlow Lite file and compares it with its source.

    Args:
        model: Functional classifier, logits out, without masks (`tr.shrink.compact` first).
        path: Target file; its folder is made. It appears whole or not at all.
        quantize: None (float32), "float16" (weights halved), "dynamic" (int8 weights, float
            arithmetic) or "int8" (integers throughout, int8 input and output).
        calibration: Images in [0, 1] `(n, height, width, channels)`, needed by "int8" to learn the
            ranges of activations (100 to 500 training images; 500 spread evenly are used at most).
            They also serve the parity check; without them it uses 32 random images.

    Returns:
        `Exported`. A float32 file is within 1e-4 of Keras (1e-6 of the largest |logit| where that
        is more, never above 1e-3 of it), or this raises; for the others the difference is
        reported, not judged.

    Raises:
        ValueError: masks left in the model, int8 without calibration images, images of another
            shape, a model that TensorFlow Lite cannot express, a float32 file off its source.
        OSError: a path that cannot be written.

    Example:

    >>> import os, tempfile, keras
    >>> image = keras.Input((8, 8, 1))
    >>> net = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = tflite(net, os.path.join(folder, "net.tflite"))
    >>> exported.parity < 1e-4, exported.agreement, exported.input["dtype"]
    (True, 1.0, 'float32')
    """
    _ready(model)
    if quantize not in QUANTIZE:
        raise ValueError(f"`quantize` must be one of {QUANTIZE}. Received: quantize={quantize!r}")
    shape = contract.image_shape(model)
    if calibration is not None:
        calibration = _spread(contract.images(calibration, "calibration"), CALIBRATION_IMAGES)
        if calibration.shape[1:] != shape:
            raise ValueError(
                f"`calibration` must have shape (n, {', '.join(map(str, shape))}). "
                f"Received: shape={calibration.shape}"
            )
    elif quantize == "int8":
        raise ValueError(
            "`calibration` must hold training images in [0, 1] for quantize='int8' "
            "(100 to 500 are enough). Received: calibration=None"
        )
    if quantize == "int8" and (calibration.min() > UNSEEN or calibration.max() < 1 - UNSEEN):
        warnings.warn(
            f"`calibration` spans [{calibration.min():.3g}, {calibration.max():.3g}] only: "
            "the int8 file will clip pixels outside of it",
            stacklevel=2,
        )
    path = files.target(path)
    content = _convert(model, shape, quantize, calibration)
    if calibration is None:
        x = np.random.default_rng(0).random((32, *shape), np.float32)
    else:
        x = _spread(calibration, PARITY_IMAGES)
    wanted = keras.ops.convert_to_numpy(model(x, training=False))
    parity, agreement = _compare(predict(content, x), wanted)
    largest = float(np.max(np.abs(wanted)))
    allowed = min(max(1e-4, 1e-6 * largest), 1e-3 * largest)
    if quantize is None and not parity <= allowed:
        raise ValueError(
            f"The float32 file must answer like its Keras source, within {allowed:.2g} on logits. "
            f"Received: difference={parity:.3g}; nothing was written to {path}"
        )
    files.replace(path, lambda name: pathlib.Path(name).write_bytes(content))
    runner = Runner(content)
    return Exported(
        path=str(path),
        format="tflite",
        quantize=quantize,
        bytes=len(content),
        parity=parity,
        agreement=agreement,
        images=len(x),
        input=_tensor_contract(runner.input),
        output=_tensor_contract(runner.output),
    )


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
                f"`model` must load again from its own file. Received: {_first_line(error)}"
            ) from error
        parity, agreement = _compare(keras.ops.convert_to_numpy(twin(x, training=False)), wanted)
        if not parity <= 1e-5 * max(1.0, float(np.max(np.abs(wanted)))):
            raise ValueError(
                "`model` must answer the same after loading: a layer forgets part of its state. "
                f"Received: difference={parity:.3g}"
            )
        answer.update(parity=parity, agreement=agreement, bytes=os.path.getsize(name))

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


def _ready(model):
    contract.classifier(model, "model")
    masks = [mask.name for mask in layers.masks(model)]
    if masks:
        raise ValueError(
            "This model still has masks. Call `tr.shrink.compact(model)` before "
            f"`tr.export.tflite`. Received: mask layers {masks}"
        )


def _convert(model, shape, quantize, calibration):
    # A module that holds the variables lets the converter freeze them; a Keras model in its
    # place leaves resource variables in the file, which the calibrator cannot run.
    module = tf.Module()
    module.held = [variable.value for variable in model.variables]
    module.serve = tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec((1, *shape), tf.float32, name="image")],
    )
    try:
        with quiet():
            converter = tf.lite.TFLiteConverter.from_concrete_functions(
                [module.serve.get_concrete_function()], module
            )
            if quantize is not None:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if quantize == "int8":
                converter.representative_dataset = lambda: ([x[None]] for x in calibration)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.int8
            return converter.convert()
    except Exception as error:  # the converter raises several private classes
        raise ValueError(
            f"`model` must be expressible in TensorFlow Lite. Received: {_first_line(error)}"
        ) from error


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _compare(logits, wanted):
    if logits.shape[-1] == 1:
        same = (logits > 0) == (wanted > 0)
    else:
        same = logits.argmax(-1) == wanted.argmax(-1)
    return float(np.max(np.abs(logits - wanted))), float(np.mean(same))


def _spread(x, most):
    """At most `most` rows of x, evenly spaced."""
    return x if len(x) <= most else x[np.linspace(0, len(x) - 1, most).astype(int)]


def _tensor_contract(details):
    scale, zero = details["quantization"]
    return {
        "dtype": np.dtype(details["dtype"]).name,
        "shape": [int(size) for size in details["shape"]],
        "scale": float(scale) if scale else None,
        "zero_point": int(zero) if scale else None,
    }
