"""Opening a file of an archive, which may be anything: a pipe, a folder, a header that lies."""

import errno
import io
import os
import stat
from pathlib import Path

from engine.errors import ImageRefused, RefusalReason

__all__ = ["BoundedReader", "open_file"]


class BoundedReader(io.BufferedReader):
    """A file that never sets more memory aside for a read than it has bytes left.

    A header may declare gigabytes in a file of a few bytes, and a plain file object asks for
    the memory first.
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_file(path: Path) -> BoundedReader:
    """The regular file at ``path``; anything else is refused without waiting for it.

    Raises:
        ImageRefused: it is no regular file. OSError: it cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageRefused(RefusalReason.UNREADABLE, "not a regular file")
    except ValueError:
        raise OSError(errno.EINVAL, "") from None

    def opener(name: str, flags: int) -> int:
        # Should a pipe have taken its place since, opening it must not wait for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    raw = io.FileIO(path, "r", opener=opener)
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise ImageRefused(RefusalReason.UNREADABLE, "not a regular file")
    return BoundedReader(raw)
