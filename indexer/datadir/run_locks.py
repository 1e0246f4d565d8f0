"""Which runs of this data folder are alive: each holds a lock until its process ends in any way.

Several processes index into one archive at the same time. The ledger alone does not tell a run that
was killed from one that another process is at.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StoreError
from indexer.datadir.write_lock import held

__all__ = ["RunLocks"]


class RunLocks:
    """The locks of runs, in a folder of the data folder ``root``.

    Raises:
        StoreError: it cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "runs"

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """A block that begins a run and takes its lock: no other process looks meanwhile."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self._folder} cannot be made ({error.strerror}); give a --data-dir you may "
                "write to"
            ) from None
        with held(self._folder / "gate", fcntl.LOCK_EX):
            yield

    def is_alive(self, run: int) -> bool:
        """Whether a process is at this run. To be asked while beginning another one."""
        try:
            handle = os.open(self._place(run), os.O_RDWR)
        except FileNotFoundError:
            return False
        except OSError:
            # Whether it is locked is not known, and a run that goes on must not be called dead.
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            self._place(run).unlink(missing_ok=True)
            return False
        finally:
            os.close(handle)

    @contextmanager
    def alive(self, run: int) -> Iterator[None]:
        """A block during which the run is alive."""
        with held(self._place(run), fcntl.LOCK_EX):
            try:
                yield
            finally:
                self._place(run).unlink(missing_ok=True)

    def _place(self, run: int) -> Path:
        return self._folder / f"{run}.lock"
