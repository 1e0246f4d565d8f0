"""A column of rows of one fixed size, in a mapped file that grows."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.errors import StoreError

__all__ = ["ColumnFile"]

_LEAST_ROWS = 1024
_GROWTH = 1.25


class ColumnFile:
    """The column in the file at ``path``, made if there is none.

    Its space on disk is taken before it is written to, as a mapped file ends the process when the
    disk is full.

    Args:
        dtype, width: of a row, which has the shape ``width``; () = a single value.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: tuple[int, ...] = ()) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._width = width
        self._row_bytes = self._dtype.itemsize * int(np.prod(width, dtype=np.int64))
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.rows = self._mapped()
        """The rows that there is room for, as an array. It stays valid when the file grows."""

    def _mapped(self) -> NDArray[Any]:
        count = os.fstat(self._file).st_size // self._row_bytes
        shape = (count, *self._width)
        if count == 0:
            return np.zeros(shape, self._dtype)
        return np.asarray(np.memmap(self._path, self._dtype, "r+", shape=shape))

    def reserve(self, count: int) -> None:
        """Makes room for ``count`` rows in all. Raises StoreError: the disk is full."""
        if count <= len(self.rows):
            return
        count = max(_LEAST_ROWS, count, int(_GROWTH * len(self.rows)))
        try:
            os.posix_fallocate(self._file, 0, count * self._row_bytes)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StoreError(
                    f"no space is left for {self._path}; make room, and run the same command again"
                ) from None
            raise StoreError(f"{self._path} cannot be enlarged ({error.strerror})") from None
        self.rows = self._mapped()

    def sync(self) -> None:
        """On return, all that was written survives a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file; arrays of it stay valid."""
        os.close(self._file)
