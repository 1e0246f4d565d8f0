"""Buffers the instances of one series between network and readers, in memory or in a file."""

import re
import struct
import tempfile

from engine.errors import ImageRefused

__all__ = ["Spool", "SpoolFull", "sop_of"]

_IN_MEMORY = 16 * 1024**2
_MAX_META = 64 * 1024
"""Bytes at the beginning of a part in which its identifier is looked for."""
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"}
_MEDIA_STORAGE_SOP_INSTANCE_UID = (0x0002, 0x0003)


class SpoolFull(Exception):
    """There is no room for another piece."""


class Spool:
    """Contents of instances by locator; above 16 MiB together in an unnamed temporary file.

    Close it, or use it as a context manager.

    Args:
        max_bytes: the most bytes of all contents together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - close()
        self._max = max_bytes
        self._ranges: dict[str, tuple[int, int]] = {}
        self._refused: dict[str, ImageRefused] = {}
        self._start = self._end = 0

    def __contains__(self, locator: str) -> bool:
        return locator in self._ranges or locator in self._refused

    @property
    def written(self) -> int:
        """Bytes of the content that is being written."""
        return self._end - self._start

    def begin(self) -> None:
        """Starts a content; one that was started and not kept is forgotten."""
        self._end = self._start

    def write(self, piece: bytes) -> None:
        """Adds a piece to the content.

        Raises:
            SpoolFull: it exceeds ``max_bytes``, or cannot be written to disk.
        """
        if self._end + len(piece) > self._max:
            raise SpoolFull
        try:
            self._file.seek(self._end)
            self._file.write(piece)
        except OSError:  # of the disk
            raise SpoolFull from None
        self._end += len(piece)

    def started(self) -> str | None:
        """The SOP Instance UID of the content that is being written; None when it says none."""
        self._file.seek(self._start)
        return sop_of(self._file.read(min(self.written, _MAX_META)))

    def keep(self, locator: str) -> None:
        """Keeps the content that was written, which is complete, for this instance."""
        self._ranges[locator] = (self._start, self.written)
        self._start = self._end

    def refuse(self, locator: str, refused: ImageRefused) -> None:
        """Records that this instance is refused."""
        self._refused[locator] = refused

    def content(self, locator: str) -> bytes | ImageRefused | None:
        """The content of this instance, or its refusal; None = neither was recorded."""
        if locator in self._refused:
            return self._refused[locator]
        if locator not in self._ranges:
            return None
        start, length = self._ranges[locator]
        self._file.seek(start)
        return self._file.read(length)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sop_of(head: bytes) -> str | None:
    """Media Storage SOP Instance UID of a DICOM file that begins like this (PS3.10, section 7.1).

    Only the file meta information is looked at, element by element, so that nothing a hostile
    file holds is unfolded here. None when there is none.
    """
    if head[128:132] != b"DICM":
        return None
    at = 132
    while at + 8 <= len(head):
        group, element = struct.unpack_from("<HH", head, at)
        if group != 2:
            return None
        vr = head[at + 4 : at + 6]
        if vr in _LONG_VRS:
            if at + 12 > len(head):
                return None
            (length,) = struct.unpack_from("<L", head, at + 8)
            at += 12
        else:
            (length,) = struct.unpack_from("<H", head, at + 6)
            at += 8
        if (group, element) == _MEDIA_STORAGE_SOP_INSTANCE_UID:
            uid = head[at : at + length].rstrip(b"\0 ")
            whole = at + length <= len(head) and re.fullmatch(rb"[0-9.]{1,64}", uid)
            return uid.decode("ascii") if whole else None
        at += length
    return None
