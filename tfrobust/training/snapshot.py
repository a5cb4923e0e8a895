"""What a `fit` consists of, and the file that keeps it: variables, fingerprint, atomic writes.

`Resume` decides when; this file knows what. A variable is named by where it belongs
("model:3", "optimizer masks:7"), never by its Keras path, which counts layers per process.
"""

import contextlib
import json
import os
import re
import zipfile
import zlib

import keras
import numpy as np
import tensorflow as tf

from tfrobust import files

FORMAT = 2


def optimizers(model):
    """{group: optimizer} of a game, or of a plain model under the group "0"."""
    found = {}
    if isinstance(model.optimizer, keras.optimizers.Optimizer):
        found["0"] = model.optimizer
    for group, optimizer in (getattr(model, "optimizers", None) or {}).items():
        if all(optimizer is not other for other in found.values()):
            found[group] = optimizer
    return found


def variables(model):
    """{key: variable} of all that training changes; keys are the same in every process."""
    found, seen = {}, set()

    def take(kind, variables):
        for number, variable in enumerate(variables):
            if id(variable) not in seen:
                seen.add(id(variable))
                found[f"{kind}:{number}"] = variable

    take("model", model.variables)
    for group, optimizer in optimizers(model).items():
        take(f"optimizer {group}", optimizer.variables)
    for number, metric in enumerate(model.metrics):
        take(f"metric {number}", metric.variables)
    take("held", _held(model))
    return found


def _held(model):
    """Variables of objects that a game holds and Keras does not track, such as its attack."""
    out, seen = [], {id(model)}

    def walk(value):
        if id(value) in seen or isinstance(value, (keras.layers.Layer, str, np.ndarray)):
            return
        seen.add(id(value))
        if isinstance(value, (keras.Variable, tf.Variable)):
            out.append(value)
        elif isinstance(value, dict):
            for name in sorted(value, key=str):
                walk(value[name])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        elif hasattr(value, "get_config") and not isinstance(
            value, (keras.optimizers.Optimizer, keras.metrics.Metric)
        ):
            walk(getattr(value, "__dict__", None))

    for name in sorted(vars(model)):
        if not name.startswith("_"):
            walk(getattr(model, name))
    return out


def fingerprint(model, data):
    """What must be equal for a run to be the same run, as plain JSON."""
    result = {"model": type(model).__name__, "data": None if data is None else data.fingerprint()}
    for name, config in (("config", "get_config"), ("compile", "get_compile_config")):
        with contextlib.suppress(NotImplementedError):
            result[name] = getattr(model, config)()
    result["variables"] = [
        [key, list(v.shape), str(v.dtype)]
        for key, v in variables(model).items()
        if not key.startswith("metric")
    ]
    text = json.dumps(result, default=lambda o: getattr(o, "__name__", type(o).__name__))
    result = _without_speed(json.loads(text))
    return _renamed(result, _numbered(result))


def _numbered(value):
    """{name: name that is the same in every process} of all objects in a config.

    Keras numbers its names per process: the same layers are "dense" and "dense_1", or "dense_5" and
    "dense_6" where others were built before. Here they are "dense" and "dense#1", in their order.

    >>> _numbered([{"name": "dense_5"}, {"name": "dense_6"}, {"name": "block_2/conv"}])
    {'dense_5': 'dense', 'dense_6': 'dense#1', 'block_2': 'block', 'conv': 'conv'}
    """
    names, counts = {}, {}

    def walk(value):
        if isinstance(value, dict):
            if isinstance(value.get("name"), str):
                for part in value["name"].split("/"):
                    if part not in names:
                        base = re.sub(r"_\d+$", "", part)
                        number = counts[base] = counts.get(base, -1) + 1
                        names[part] = f"{base}#{number}" if number else base
            value = list(value.values())
        for item in value if isinstance(value, list) else ():
            walk(item)

    walk(value)
    return names


def _renamed(value, names):
    """`value` with all names replaced, those that a user refers to a layer by as well."""
    if isinstance(value, dict):
        return {_renamed(k, names): _renamed(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, names) for v in value]
    if isinstance(value, str):
        return "/".join(names.get(part, part) for part in value.split("/"))
    return value


def _without_speed(value):
    """Leaves out what changes how fast a run goes, not where."""
    if isinstance(value, dict):
        speed = ("steps_per_execution", "run_eagerly", "jit_compile")
        return {k: _without_speed(v) for k, v in value.items() if k not in speed}
    return [_without_speed(v) for v in value] if isinstance(value, list) else value


def difference(there, here, path=""):
    """Where two JSON values first differ, in words, or an empty string."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*there, *here]):
            if name not in there or name not in here:
                return f"{path}{name}: only {'here' if name in here else 'there'}"
            found = difference(there[name], here[name], f"{path}{name}.")
            if found:
                return found
        return ""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return next(filter(None, (difference(a, b, f"{path}{i}.") for i, (a, b) in pairs)), "")
    if there == here:
        return ""
    short = [s if len(s) <= 60 else s[:57] + "..." for s in (json.dumps(there), json.dumps(here))]
    return f"{path.rstrip('.')}: {short[0]} there, {short[1]} here"


# --- the file -----------------------------------------------------------------------------------


def write(path, meta, arrays):
    """Writes JSON and arrays to `path`, whole or not at all."""
    arrays = {**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}

    def save(name):
        with open(name, "wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())

    files.replace(path, save)


def read(path):
    """(meta, arrays) of a file, or an OSError."""
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        known = meta["format"]
    except (
        OSError, EOFError, AttributeError, KeyError, TypeError, ValueError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"`directory` must hold a readable state of a run, or none. Received: {path} ({reason})"
        ) from None
    if known != FORMAT:
        raise OSError(
            f"`directory` must hold a state of format {FORMAT}. Received: format {known} in {path}"
        )
    return meta, arrays


def packed(value, key, arrays):
    """`value` as JSON; arrays in it go into `arrays` under `key`.

    >>> packed({"loss": [1.0, None]}, "best", {})
    {'dict': {'loss': {'list': [1.0, None]}}}
    >>> packed({"loss": {1.0}}, "best", {})
    Traceback (most recent call last):
    TypeError: `best.loss` must hold numbers, strings, None, arrays, lists or dicts. Received: set
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"list": [packed(v, f"{key}.{i}", arrays) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: packed(v, f"{key}.{name}", arrays) for name, v in value.items()}}
    told, value = type(value).__name__, np.asarray(keras.ops.convert_to_numpy(value))
    if value.dtype.kind in "OSU":  # an object would be saved as its address
        raise TypeError(
            f"`{key}` must hold numbers, strings, None, arrays, lists or dicts. Received: {told}"
        )
    # Raw bytes, since NumPy files know nothing of bfloat16.
    arrays[key] = np.frombuffer(value.tobytes(), np.uint8)
    return {"array": key, "dtype": str(value.dtype), "shape": list(value.shape)}


def unpacked(value, arrays):
    """The inverse of `packed`."""
    if not isinstance(value, dict):
        return value
    if "list" in value:
        return [unpacked(item, arrays) for item in value["list"]]
    if "dict" in value:
        return {name: unpacked(item, arrays) for name, item in value["dict"].items()}
    dtype = tf.as_dtype(value["dtype"]).as_numpy_dtype
    return np.frombuffer(arrays[value["array"]].tobytes(), dtype).reshape(value["shape"])
