"""Who writes to an archive, and who lets another index take the place of its own.

Writers do not keep each other away, whether they are threads, processes or machines that share
the data folder. One that exchanges the index waits for those that are writing, and while it
waits none begins; so it comes to its turn. The locks end with their process.
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
_GATE, _FLOOR = "writing.gate", "writing.lock"


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Nothing is exchanged in the data folder ``root`` meanwhile. Not to be nested."""
    with _held(root / _GATE, fcntl.LOCK_SH):
        floor = _held(root / _FLOOR, fcntl.LOCK_SH)
        floor.__enter__()
    try:
        yield
    finally:
        floor.__exit__(None, None, None)


@contextmanager
def exchanging(root: Path) -> Iterator[None]:
    """Nobody writes to the archive of the data folder ``root`` meanwhile."""
    with _held(root / _GATE, fcntl.LOCK_EX), _held(root / _FLOOR, fcntl.LOCK_EX):
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
                # Not in the call itself, which threads and signals would have to wait for.
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)
