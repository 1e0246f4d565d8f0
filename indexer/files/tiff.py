"""The pages of a TIFF file (TIFF 6.0, section 2, and BigTIFF), found within limits."""

import struct
from typing import BinaryIO

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits

__all__ = ["is_big_endian_bigtiff", "tiff_pages"]

_SUBFILE_TYPE = 254
# Bits of NewSubfileType: a smaller version of another page, or its transparency mask.
_NO_PAGE = 1 | 4
_LONG = (4, 3)
_ENTRIES = 0xFFFF
_BIG = 43


def is_big_endian_bigtiff(fp: BinaryIO) -> bool:
    """Whether the content starts as BigTIFF in big endian, which Pillow mistakes for TIFF."""
    fp.seek(0)
    return fp.read(4) == b"MM\0+"


def tiff_pages(fp: BinaryIO, limits: ImageLimits) -> list[int]:
    """The places, from 0, of those images of a TIFF file that are pages of their own; of all
    images if none is. The chain of images may be a circle: it ends where it comes back.

    Raises:
        ImageRefused: TOO_LARGE: more images than ``limits.max_frames``. TRUNCATED: the file ends
            before its first image.
    """
    fp.seek(0)
    start = fp.read(16)
    order = "<" if start.startswith(b"II") else ">"
    big = len(start) >= 4 and struct.unpack_from(order + "H", start, 2)[0] == _BIG
    count_form, entry_bytes, next_form = (
        (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "L")
    )
    count_bytes, next_bytes = struct.calcsize(count_form), struct.calcsize(next_form)
    if len(start) < (16 if big else 8):
        raise _cut()
    position: int = struct.unpack_from(next_form, start, 8 if big else 4)[0]
    seen: set[int] = set()
    pages: list[int] = []
    while position and position not in seen:
        fp.seek(position)
        head = fp.read(count_bytes)
        if len(head) < count_bytes:
            break
        (entries,) = struct.unpack(count_form, head)
        if entries > _ENTRIES:
            break
        table = fp.read(entries * entry_bytes + next_bytes)
        if len(table) < entries * entry_bytes:
            break
        if len(seen) >= limits.max_frames:
            raise ImageRefused(
                RefusalReason.TOO_LARGE,
                f"the TIFF file has more than {limits.max_frames} pages, which is what "
                "limits.max_frames allows",
            )
        if not _subfile_type(table, entries, entry_bytes, order) & _NO_PAGE:
            pages.append(len(seen))
        seen.add(position)
        if len(table) < entries * entry_bytes + next_bytes:
            break
        (position,) = struct.unpack_from(next_form, table, entries * entry_bytes)
    if not seen:
        raise _cut()
    return pages or list(range(len(seen)))


def _subfile_type(table: bytes, entries: int, entry_bytes: int, order: str) -> int:
    for entry in range(entries):
        tag, kind = struct.unpack_from(order + "2H", table, entry * entry_bytes)
        if tag == _SUBFILE_TYPE and kind in _LONG:
            value_at = entry * entry_bytes + (12 if entry_bytes == 20 else 8)
            form = order + ("L" if kind == _LONG[0] else "H")
            value: int = struct.unpack_from(form, table, value_at)[0]
            return value
        if tag > _SUBFILE_TYPE:
            # They are in the order of their tags.
            return 0
    return 0


def _cut() -> ImageRefused:
    return ImageRefused(RefusalReason.TRUNCATED, "the TIFF file ends before its first page")
