"""File locks of a data folder: shared by all writers, exclusive while its index is replaced.

Writers do not exclude each other, whether they are threads, processes or machines that share the
data folder. Replacing the index waits for the writers that are at work, and no further writer
starts while it waits, so it cannot starve. The system releases the locks of a process that ends.

Two lock files do this. Everyone takes the gate before the write lock; a writer gives the gate
back at once, a replacement keeps it while it waits for the write lock.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StoreError

__all__ = ["exchanging", "writing"]

_POLL_SECONDS = 0.05
_GATE, _WRITE_LOCK = "writing.gate", "writing.lock"


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Holds the shared lock of a writer: the index of the data folder ``root`` is not replaced
    meanwhile. Must not be nested.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with _held(root / _GATE, fcntl.LOCK_SH):
        write_lock = _held(root / _WRITE_LOCK, fcntl.LOCK_SH)
        write_lock.__enter__()
    try:
        yield
    finally:
        write_lock.__exit__(None, None, None)


@contextmanager
def exchanging(root: Path) -> Iterator[None]:
    """Holds the exclusive lock for replacing the index: nothing is written to the archive of the
    data folder ``root`` meanwhile. Waits for writers at work.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with _held(root / _GATE, fcntl.LOCK_EX), _held(root / _WRITE_LOCK, fcntl.LOCK_EX):
        yield


@contextmanager
def _held(path: Path, kind: int) -> Iterator[None]:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}); give a --data-dir you may write to"
        ) from None
    try:
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Polled: a blocking call would hold up threads and signals.
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)
