"""Files that are whole or absent: nothing is left half-written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_atomically", "writing_atomically"]


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Writes to a neighbour and renames it into place; survives a kill at any moment.

    durable: also survives a power cut; without, many small files are written much sooner.
    """
    with writing_atomically(path, durable=durable) as stream:
        stream.write(data)


@contextmanager
def writing_atomically(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at ``path`` when the block ends well.

    durable: as for :func:`write_atomically`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
