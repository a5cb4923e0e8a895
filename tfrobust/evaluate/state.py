"""The state file: which chunks and runs are finished, for which model, attacks and data."""

import json
import time
import zipfile

import keras
import numpy as np

from tfrobust import files
from tfrobust.contract import digest

_VERSION = 2
_PAUSE = 5.0  # seconds between two writes of unfinished chunks


def of_model(model, logits):
    """Hash of what a model computes: its layers, how they are connected, and its weights.

    Names do not count. A plain callable is known by its first `logits` only, rounded to three
    decimals.
    """
    if not isinstance(model, keras.Model):
        return digest(np.round(logits, 3) + 0.0)
    return digest(np.frombuffer(of_graph(model).encode(), np.uint8), *model.get_weights())


def of_graph(model):
    """Text of a Keras model's layers, settings and connections; names are numbers there."""
    numbers = {}

    def known(config):
        if isinstance(config, dict):
            if isinstance(config.get("name"), str):
                numbers.setdefault(config["name"], f"#{len(numbers)}")
            config = list(config.values())
        for part in config if isinstance(config, list | tuple) else ():
            known(part)

    def plain(config):
        if isinstance(config, dict):
            return {k: plain(v) for k, v in config.items() if k not in ("name", "seed")}
        if isinstance(config, list | tuple):
            return [plain(v) for v in config]
        return numbers.get(config, config) if isinstance(config, str) else config

    config = model.get_config()
    known(config)
    return json.dumps(plain(config), default=lambda value: type(value).__name__)


class State:
    """Finished chunks of one evaluation and runs of the next, in memory and, with a path, a file.

    Args:
        path: File name or None.
        identity: {what: JSON value} that must be the same when the file is taken up again.

    Raises:
        ValueError: the file belongs to another evaluation or is no state file.
        OSError: the path cannot be written.
    """

    def __init__(self, path, identity):
        self.path = None if path is None else files.target(path, "state")
        self.identity = json.loads(json.dumps(identity))
        self.chunks, self.notes, self.seconds, self.records = [], {}, 0.0, {}
        self.partial, self.chunk = {}, None
        self._clock = self._written = time.perf_counter()
        if self.path is None:
            return
        if self.path.exists():
            self._load()
        else:
            self._save()

    def begin(self, chunk):
        """Starts on a chunk; finished runs of another one are forgotten."""
        self._clock = time.perf_counter()
        if chunk != self.chunk:
            self.chunk, self.partial = chunk, {}

    def kept(self, number, name):
        """Arrays that `keep` was given last for the attack in this chunk: {} if none."""
        place = f"{number}/{name}/"
        return {k[len(place) :]: v for k, v in self.partial.items() if k.startswith(place)}

    def keep(self, number, name, **arrays):
        """Keeps what is known of one attack in the unfinished chunk."""
        self.partial.update({f"{number}/{name}/{k}": v.copy() for k, v in arrays.items()})
        if self.path is not None and time.perf_counter() - self._written > _PAUSE:
            self._save()

    def add(self, chunk, records):
        """Adds a finished chunk: its hash and one array per record."""
        self.chunks.append(chunk)
        for name, values in records.items():
            known = self.records.get(name)
            self.records[name] = values if known is None else np.concatenate([known, values])
        self.partial, self.chunk = {}, None
        self._count()
        if self.path is not None:
            self._save()

    def _count(self):
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def check(self, number, chunk):
        """Refuses a finished chunk that held other data."""
        if self.chunks[number] != chunk:
            self._refuse("data")

    def check_end(self, count):
        """Refuses data that ended before the finished chunks did."""
        if len(self.chunks) > count:
            self._refuse("data")

    def _refuse(self, what):
        raise ValueError(
            f"`state` {self.path} belongs to another evaluation: the {what} differ. "
            "Delete the file or give another name."
        )

    def _load(self):
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as content:
                meta = json.loads(str(content["meta"]))
                records, partial = (
                    {name: content[f"{kind}_{i}"] for i, name in enumerate(meta[kind])}
                    for kind in ("records", "partial")
                )
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`state` must be a file that an earlier evaluation wrote. Received: {self.path}"
            ) from error
        if meta["version"] != _VERSION:
            self._refuse("formats of the file")
        for what, value in self.identity.items():
            if meta["identity"].get(what) != value:
                self._refuse(what)
        self.records, self.chunks = records, meta["chunks"]
        self.notes, self.seconds = meta["notes"], meta["seconds"]
        self.partial, self.chunk = partial, meta["chunk"]

    def _save(self):
        self._count()
        self._written = time.perf_counter()
        meta = {
            "version": _VERSION,
            "identity": self.identity,
            "chunks": self.chunks,
            "notes": self.notes,
            "seconds": self.seconds,
            "records": list(self.records),
            "partial": list(self.partial),
            "chunk": self.chunk,
        }
        arrays = {f"records_{i}": values for i, values in enumerate(self.records.values())}
        arrays |= {f"partial_{i}": values for i, values in enumerate(self.partial.values())}

        def save(name):
            with open(name, "wb") as file:  # np.savez would add a suffix to a bare name
                np.savez(file, meta=np.array(json.dumps(meta)), **arrays)

        files.replace(self.path, save)
