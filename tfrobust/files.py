"""Files appear whole or not at all: readers never see half of one, a kill leaves the previous one.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     path = target(pathlib.Path(folder) / "deep" / "notes.txt")
...     replace(path, lambda name: pathlib.Path(name).write_text("whole"))
...     path.read_text()
'whole'
"""

import gzip
import os
import pathlib
import threading


def target(path, name="path"):
    """`path` as a `pathlib.Path` whose folder exists and can be written; call it before the work.

    Raises:
        OSError: the folder cannot be made or written, or `path` is itself a folder.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if path.is_dir() else ""
        if not os.access(path.parent, os.W_OK | os.X_OK):
            reason = "the folder is read-only"
    except FileExistsError:
        reason = f"{path.parent} is not a folder"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise OSError(
            f"`{name}` must be a file in a folder that can be written. Received: {path} ({reason})"
        )
    return path


def replace(path, save):
    """Lets `save(temporary_name)` write beside `path`, then moves the result there in one step.

    The temporary name keeps the suffix of `path` (Keras asks for `.keras`) and goes away whether
    or not `save` succeeds.
    """
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name}")
    try:
        save(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def gzipped(source):
    """Bytes of a file, or of its content, in a gzip archive; the same on every day and machine.

    >>> gzipped(bytes(10_000)), gzipped(b"")
    (45, 20)
    """
    content = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    return len(gzip.compress(content, 6, mtime=0))
