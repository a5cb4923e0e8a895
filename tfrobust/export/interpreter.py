"""Runs a TensorFlow Lite file: pixels in [0, 1] in, float logits out, integers inside or not."""

import contextlib
import os
import pathlib
import tempfile
import time
import warnings

import numpy as np
import tensorflow as tf

from tfrobust import contract
from tfrobust.export.result import first_line


def predict(source, x):
    """Logits of a TensorFlow Lite file: quantises pixels, runs each image, restores floats.

    Args:
        source: File name, the file's bytes, or an `Exported`.
        x: Images in [0, 1] `(n, height, width, channels)`.

    Returns:
        Float32 logits `(n, classes)`.

    Raises:
        ValueError: not a TensorFlow Lite file, or images of another shape.
        OSError: no such file.
    """
    runner = Runner(source)
    x = contract.images(x)
    if x.shape[1:] != runner.shape[1:]:
        raise ValueError(
            f"`x` must have shape (n, {', '.join(map(str, runner.shape[1:]))}). "
            f"Received: shape={x.shape}"
        )
    return runner.logits(x)


def latency(source, n=200):
    """Median milliseconds of one image through a TensorFlow Lite file, on one thread.

    Args:
        source: As in `predict`.
        n: Integer >= 1, timed calls at the least (and at the least 0.2 s of them).
    """
    return latencies([source], n)[0]


def latencies(sources, n=200):
    """`latency` of several files, measured in turns so that a drifting machine hurts all alike.

    Sparse files run as well; what they fill up when the interpreter prepares is not timed.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"`n` must be an integer >= 1. Received: n={n!r}")
    runners = [Runner(source) for source in sources]
    times = [[] for _ in runners]
    for runner in runners:
        runner.feed(np.full(runner.shape[1:], 0.5, np.float32))
        for _ in range(10):
            runner.interpreter.invoke()
    started = time.perf_counter()
    while len(times[0]) < n or time.perf_counter() - started < 0.2 * len(runners):
        for runner, record in zip(runners, times, strict=True):
            # Back to back, so that each file finds its own weights in the cache, as on a device.
            for _ in range(10):
                begin = time.perf_counter()
                runner.interpreter.invoke()
                record.append(time.perf_counter() - begin)
    return [1e3 * float(np.median(record)) for record in times]


class Runner:
    """One interpreter, with pixels in and float logits out."""

    def __init__(self, source):
        source = getattr(source, "path", source)
        if isinstance(source, bytes):
            content, name = source, f"{len(source)} bytes"
        else:
            content, name = pathlib.Path(source).read_bytes(), str(source)
        try:
            with quiet():
                self.interpreter = _interpreter_class()(model_content=content, num_threads=1)
                self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                "`source` must be a TensorFlow Lite file that this interpreter can run. "
                f"Received: {name} ({first_line(error)})"
            ) from None
        (self.input,), (self.output,) = (
            self.interpreter.get_input_details(),
            self.interpreter.get_output_details(),
        )
        self.shape = tuple(int(size) for size in self.input["shape"])

    def feed(self, image):
        scale, zero = self.input["quantization"]
        if scale:
            limits = np.iinfo(self.input["dtype"])
            image = np.clip(np.round(image / scale) + zero, limits.min, limits.max)
        self.interpreter.set_tensor(self.input["index"], image[None].astype(self.input["dtype"]))

    def logits(self, x):
        scale, zero = self.output["quantization"]
        rows = []
        for image in x:
            self.feed(image)
            self.interpreter.invoke()
            rows.append(self.interpreter.get_tensor(self.output["index"])[0].astype(np.float32))
        return (np.stack(rows) - zero) * np.float32(scale) if scale else np.stack(rows)


def _interpreter_class():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return tf.lite.Interpreter
    return Interpreter


@contextlib.contextmanager
def quiet():
    """Keeps the converter's and interpreter's chatter, C++ included, off the user's terminal."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(None))
        sink = stack.enter_context(tempfile.TemporaryFile())
        stderr = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
