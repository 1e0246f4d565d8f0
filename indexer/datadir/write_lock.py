"""File locks of a data folder: shared by all writers, exclusive while its index is replaced.

Writers do not exclude each other, whether they are threads, processes or machines that share the
data folder. Replacing the index waits for the writers that are at work, and no further writer
starts while it waits, so it cannot starve. The system releases the locks of a process that ends.

A second pair of locks keeps points that were written, and are not yet in the ledger, from those who
remove what nobody owns. A third one keeps a copy of index and ledger from those who remove from
one, and not yet from the other.

Two lock files do this. Everyone takes the gate before the write lock; a writer gives the gate
back at once, a replacement keeps it while it waits for the write lock.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path

from engine.errors import StoreError

__all__ = ["copying", "exchanging", "held", "recording", "removing", "sweeping", "writing"]

_POLL_SECONDS = 0.05
_GATE, _WRITE_LOCK = "writing.gate", "writing.lock"
_RECORD_GATE, _RECORD_LOCK = "recording.gate", "recording.lock"
_REMOVE_GATE, _REMOVE_LOCK = "removing.gate", "removing.lock"


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Holds the shared lock of a writer: the index of the data folder ``root`` is not replaced
    meanwhile. Must not be nested.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with _shared(root / _GATE, root / _WRITE_LOCK):
        yield


@contextmanager
def exchanging(root: Path, patience: float = inf) -> Iterator[None]:
    """Holds the exclusive lock for replacing the index: nothing is written to the archive of the
    data folder ``root`` meanwhile.

    Args:
        patience: seconds to wait for writers at work.

    Raises:
        StoreError: the lock files cannot be opened. TimeoutError: others write for longer.
    """
    with (
        held(root / _GATE, fcntl.LOCK_EX, patience),
        held(root / _WRITE_LOCK, fcntl.LOCK_EX, patience),
    ):
        yield


@contextmanager
def recording(root: Path) -> Iterator[None]:
    """Holds the shared lock of points that are in the index and not in the ledger yet: they are not
    taken for left over meanwhile. Must not be nested.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with _shared(root / _RECORD_GATE, root / _RECORD_LOCK):
        yield


@contextmanager
def sweeping(root: Path, patience: float) -> Iterator[bool]:
    """Whether, for the block, every point of the index that some run has written is in the ledger.

    patience: seconds to wait for runs that are writing; False is yielded after that.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with ExitStack() as locks:
        try:
            locks.enter_context(held(root / _RECORD_GATE, fcntl.LOCK_EX, patience))
            locks.enter_context(held(root / _RECORD_LOCK, fcntl.LOCK_EX, patience))
        except TimeoutError:
            locks.close()
            yield False
        else:
            yield True


@contextmanager
def removing(root: Path) -> Iterator[None]:
    """Holds the shared lock of a removal, during which the ledger may say of points that they are
    in the index when they are not. Must not be nested.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with _shared(root / _REMOVE_GATE, root / _REMOVE_LOCK):
        yield


@contextmanager
def copying(root: Path) -> Iterator[None]:
    """Holds the exclusive lock for a copy of ledger and index: nothing is removed from either
    meanwhile. Waits for removals at work, which are short.

    Raises:
        StoreError: the lock files cannot be opened.
    """
    with (
        held(root / _REMOVE_GATE, fcntl.LOCK_EX),
        held(root / _REMOVE_LOCK, fcntl.LOCK_EX),
    ):
        yield


@contextmanager
def _shared(gate: Path, lock: Path) -> Iterator[None]:
    with ExitStack() as locks:
        with held(gate, fcntl.LOCK_SH):
            locks.enter_context(held(lock, fcntl.LOCK_SH))
        yield


@contextmanager
def held(path: Path, kind: int, patience: float = inf) -> Iterator[None]:
    """Holds a lock on a file, which is made where it is not there.

    Args:
        kind: as for ``fcntl.flock``.
        patience: seconds to wait for it.

    Raises:
        StoreError: the file cannot be opened. TimeoutError: others hold it for longer.
    """
    deadline = time.monotonic() + patience
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
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                # Polled: a blocking call would hold up threads and signals.
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)
