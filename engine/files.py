"""Atomic writes: a file is complete or absent, never half-written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_atomically", "writing_atomically"]


def write_atomically(
    path: Path, data: bytes, *, durable: bool = True, private: bool = False
) -> None:
    """Writes a temporary file beside ``path`` and renames it; the process may be killed any time.

    durable: also flush the file to disk, so that it survives a power cut; False is much faster
        for many small files.
    private: only its owner can read it.
    """
    with writing_atomically(path, durable=durable, private=private) as stream:
        stream.write(data)


@contextmanager
def writing_atomically(
    path: Path, *, durable: bool = True, private: bool = False
) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at ``path`` when the block ends without an error.

    durable, private: as for :func:`write_atomically`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        if not private:
            Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
