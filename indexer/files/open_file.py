"""Opens files safely: never waits for a pipe, never trusts a length that a header declares."""

import errno
import io
import os
import stat
from pathlib import Path

from engine.errors import ImageRefused, RefusalReason

__all__ = ["BoundedReader", "open_file"]


class BoundedReader(io.BufferedReader):
    """A file whose reads never allocate more memory than it has bytes left.

    A header may declare gigabytes in a file of a few bytes, and a plain file object allocates
    the memory before it reads.
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))

    def stamp(self) -> tuple[int, ...]:
        """What changes when the file is written to or replaced: a key for what was read of it."""
        status = os.fstat(self.fileno())
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_file(path: Path) -> BoundedReader:
    """The regular file at ``path``, opened. Anything else is refused at once, also a pipe.

    Raises:
        ImageRefused: it is no regular file. OSError: it cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageRefused(RefusalReason.UNREADABLE, "not a regular file")
    except ValueError:
        raise OSError(errno.EINVAL, "") from None

    def opener(name: str, flags: int) -> int:
        # If a pipe has replaced the file since the check, opening it must not wait for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    raw = io.FileIO(path, "r", opener=opener)
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise ImageRefused(RefusalReason.UNREADABLE, "not a regular file")
    return BoundedReader(raw)
