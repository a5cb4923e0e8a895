"""Writes a TensorFlow Lite file and checks it against its Keras source."""

import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfrobust import contract, files, graph, layers, pruning
from tfrobust.export.interpreter import Runner, predict, quiet
from tfrobust.export.result import Exported, compare, first_line

QUANTIZE = (None, "float16", "dynamic", "int8")
CALIBRATION_IMAGES = 500
PARITY_IMAGES = 256
UNSEEN = 0.05  # of either end of the pixel range may be clipped without a word
STORED = 0.3  # share of zeros from which the converter stores a kernel without them


def tflite(model, path, quantize=None, calibration=None, sparse=False):
    """Writes `model` as a TensorFlow Lite file and compares it with its source.

    Args:
        model: Functional classifier, logits out, without masks (`tr.shrink.compact` first).
        path: Target file; its folder is made. It appears whole or not at all.
        quantize: None (float32), "float16" (weights halved), "dynamic" (int8 weights, float
            arithmetic) or "int8" (integers throughout, int8 input and output).
        calibration: Images in [0, 1] `(n, height, width, channels)`, needed by "int8" to learn the
            ranges of activations (100 to 500 training images; 500 spread evenly are used at most).
            They also serve the parity check; without them it uses 32 random images.
        sparse: Whether kernels of which 30 % or more are exactly 0 are stored without their zeros
            (`tf.lite.Optimize.EXPERIMENTAL_SPARSITY`), for pruned models. It answers like the plain
            file, but is smaller at rest only: kernels are filled up again when the interpreter
            prepares. At 90 % of zeros float32, float16 and int8 files shrink 6.5, 4.8 and 2.9
            times (LeNet-5-Caffe); near 50 % an int8 file grows, which warns. Not for "dynamic".

    Size is not speed. XNNPACK, the default engine, skips zeros in 1x1 convolutions of stride 1
    alone, in networks made for it. Sparse files of nets with 90 % of random zeros took 1.00 x the
    time of the plain ones: LeNet-5-Caffe, a 58 MFLOP net of 3x3 convolutions, and a 257 MFLOP net
    of 1x1 and depthwise convolutions (0.99 to 1.01), float32 and int8, TensorFlow 2.21 on one
    thread, `latencies([plain, sparse])`. Filters that `tr.shrink.compact` cuts do save time.

    Returns:
        `Exported`. A float32 file is within 1e-4 of Keras (1e-6 of the largest |logit| where that
        is more, never above 1e-3 of it), or this raises; for the others the difference is
        reported, not judged.

    Raises:
        ValueError: masks left in the model, int8 without calibration images, images of another
            shape, "dynamic" with `sparse`, a model that TensorFlow Lite cannot express, a float32
            file off its source.
        TypeError: `sparse` is neither True nor False.
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
    if not isinstance(sparse, bool):
        raise TypeError(f"`sparse` must be True or False. Received: sparse={sparse!r}")
    if sparse and quantize == "dynamic":
        raise ValueError(
            "`sparse` must be False with quantize='dynamic': TensorFlow Lite's default interpreter "
            "refuses sparse 8-bit kernels with float arithmetic. Take quantize='int8' with "
            "calibration images, 'float16' or None. Received: sparse=True"
        )
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
    content = _convert(model, shape, quantize, calibration, sparse)
    if calibration is None:
        x = np.random.default_rng(0).random((32, *shape), np.float32)
    else:
        x = _spread(calibration, PARITY_IMAGES)
    wanted = keras.ops.convert_to_numpy(model(x, training=False))
    parity, agreement = compare(predict(content, x), wanted)
    largest = float(np.max(np.abs(wanted)))
    allowed = min(max(1e-4, 1e-6 * largest), 1e-3 * largest)
    if quantize is None and not parity <= allowed:
        raise ValueError(
            f"The float32 file must answer like its Keras source, within {allowed:.2g} on logits. "
            f"Received: difference={parity:.3g}; nothing was written to {path}"
        )
    if sparse:
        _weigh(model, content, _convert(model, shape, quantize, calibration, False))
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
        gzip=files.gzipped(content),
        sparse=sparse,
    )


def _ready(model):
    contract.classifier(model, "model")
    masks = [mask.name for mask in layers.masks(model)]
    if masks:
        raise ValueError(
            "This model still has masks. Call `tr.shrink.compact(model)` before "
            f"`tr.export.tflite`. Received: mask layers {masks}"
        )


def _convert(model, shape, quantize, calibration, sparse):
    # A module that holds the variables lets the converter freeze them; a Keras model in its
    # place leaves resource variables in the file, which the calibrator cannot run.
    module, model = tf.Module(), _without_infinity(model)
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
            converter.optimizations = [tf.lite.Optimize.DEFAULT] * (quantize is not None)
            if sparse:
                converter.optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if quantize == "int8":
                converter.representative_dataset = lambda: ([x[None]] for x in calibration)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.int8
            return converter.convert()
    except Exception as error:  # the converter raises several private classes
        raise ValueError(
            f"`model` must be expressible in TensorFlow Lite. Received: {first_line(error)}"
        ) from error


def _without_infinity(model):
    """The same function where features of length 0 do not pass through 1 / 0.

    `UnitNormalization` computes min(1 / sqrt(0), 1 / epsilon); XNNPACK's 1 / sqrt(0) is NaN. This
    form becomes L2_NORMALIZATION, one operation, also of int8, which takes lengths below 1e-6 for
    1e-6.
    """
    unit = keras.layers.UnitNormalization
    if not any(isinstance(layer, unit) for layer in model._flatten_layers(include_self=False)):
        return model

    def visit(node, *args, **kwargs):
        if not isinstance(node.layer, unit):
            return graph.copy(node, *args, **kwargs)
        (h,), ops = args, keras.ops
        axes = tuple(np.atleast_1d(node.layer.axis).tolist())
        square = ops.sum(ops.square(h), axes, keepdims=True)
        return h * ops.rsqrt(ops.maximum(square, 1e-24))  # epsilon ** 2

    return graph.rebuild(model, visit)


def _weigh(model, content, plain):
    """Warns where a sparse file saves nothing."""
    if len(content) < len(plain):
        return
    report = pruning.report(model)
    reason = f"{100 * report.sparsity:.1f} % of the kernels' entries are 0"
    if all(row.sparsity < STORED for row in report.rows):
        reason += f", and only kernels with {100 * STORED:.0f} % or more are stored sparsely"
        advice = "prune first, or leave `sparse` out"
    else:
        reason += ", too few for what storing their places costs"
        advice = "leave `sparse` out, or prune further"
    warnings.warn(
        f"`sparse` does not make this file smaller: {len(content):,} bytes, {len(plain):,} without "
        f"it ({reason}); {advice}.",
        stacklevel=3,
    )


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
