"""Lookup tables of a DICOM header: modality LUT, VOI LUT and palette."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from engine.errors import ImageRefused, RefusalReason
from indexer.imaging.header import value

__all__ = ["LookupTable", "read_lut", "render_palette"]

_MAX_ENTRIES = 2**16
_MAX_SEGMENT_BYTES = 2**20
_COLORS = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table that maps the values from ``first`` on (PS3.3 C.11.1.1).

    entries: uint16 (N,); values below or above the table take the first or the last entry.
    bits: how many bits of an entry are used.
    """

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def _index(self, values: NDArray[Any]) -> NDArray[np.intp]:
        last = len(self.entries) - 1
        return np.clip(values.astype(np.float64) - self.first, 0, last).astype(np.intp)

    def look_up(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The entries for ``values``, float64 of the same shape."""
        return self.entries[self._index(values)].astype(np.float64)

    def look_up_share(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The entries as a share of the largest value of ``bits`` bits: float64, 0…1."""
        shares: NDArray[np.float64] = self.look_up(values) / (2**self.bits - 1)
        return shares


def read_lut(
    descriptor: Any, data: Any, *, signed: bool, little_endian: bool
) -> LookupTable | None:
    """The table of a LUT Descriptor and LUT Data; None when they are invalid.

    Args:
        descriptor: number of entries (0 = 65536), first value mapped, bits of an entry.
        data: the entries, as bytes (OW) or as numbers (US).
        signed: the first value mapped is two's complement, whatever VR it was written in.
        little_endian: byte order of ``data`` when it is bytes.
    """
    try:
        count, first, bits = (int(part) for part in descriptor)
        if isinstance(data, bytes):
            entries = _words(data, count or _MAX_ENTRIES, little_endian)
        else:
            numbers = np.atleast_1d(np.asarray(data, dtype=np.int64))
            entries = (numbers & 0xFFFF).astype(np.uint16)
    except (TypeError, ValueError):
        return None
    entries = entries[: count or _MAX_ENTRIES]
    if len(entries) == 0 or not 1 <= bits <= 16:
        return None
    if signed and first > 0x7FFF:
        first -= 0x10000
    return LookupTable(first, entries, bits)


def _words(data: bytes, count: int, little_endian: bool) -> NDArray[np.uint16]:
    """Entries of one or two bytes each, by the length of the data: writers do both, whatever the
    descriptor says. uint16 (N,)."""
    if len(data) >= 2 * count:
        order = "<u2" if little_endian else ">u2"
        return np.frombuffer(data, dtype=order, count=count).astype(np.uint16)
    return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)


def render_palette(
    stored: NDArray[Any], header: Dataset, *, signed: bool, little_endian: bool
) -> NDArray[np.uint8]:
    """The colours of a PALETTE COLOR frame (PS3.3 C.7.6.3.1.5), uint8 (H, W, 3).

    Raises:
        ImageRefused: DAMAGED when one of the three tables is missing or empty.
    """
    tables = []
    for color in _COLORS:
        descriptor = value(header, f"{color}PaletteColorLookupTableDescriptor")
        data = value(header, f"{color}PaletteColorLookupTableData")
        segments = value(header, f"Segmented{color}PaletteColorLookupTableData")
        if not data and isinstance(segments, bytes):
            data = _expand(segments, descriptor, little_endian)
        table = read_lut(descriptor, data, signed=signed, little_endian=little_endian)
        if table is None:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"the {color} Palette Color Lookup Table is missing or makes no sense",
            )
        tables.append(table)
    # Some writers put 8-bit colours into the low byte of 16-bit entries.
    shift = 8 if max(int(table.entries.max()) for table in tables) > 255 else 0
    out = np.empty((*stored.shape, 3), dtype=np.uint8)
    for channel, table in enumerate(tables):
        out[..., channel] = (table.entries >> shift).astype(np.uint8)[table._index(stored)]
    return out


def _expand(segments: bytes, descriptor: Any, little_endian: bool) -> list[int] | None:
    """The entries of a segmented palette (PS3.3 C.7.9.2), never more than 65536.

    An indirect segment repeats earlier ones. The limits on entries and segments end the loop
    over a hostile table that would grow, or repeat empty segments, forever.
    """
    try:
        bits = int(descriptor[2])
    except (TypeError, ValueError, IndexError):
        return None
    order = "<u2" if little_endian else ">u2"
    size = min(len(segments), _MAX_SEGMENT_BYTES)
    usable = segments[: size if bits == 8 else size // 2 * 2]
    words = np.frombuffer(usable, dtype=np.uint8 if bits == 8 else order).astype(int).tolist()
    entries: list[int] = []
    # (position, segments left) to return to after the current run of segments.
    position, left, back = 0, len(words), (0, 0)
    # Every segment but an indirect one has an entry at least.
    for _ in range(2 * _MAX_ENTRIES):
        if len(entries) >= _MAX_ENTRIES:
            break
        if left == 0:
            position, left = back
            back = (0, 0)
        if left == 0 or position + 2 >= len(words):
            break
        opcode, length = words[position], words[position + 1]
        left -= 1
        if opcode == 0:
            entries += words[position + 2 : position + 2 + length]
            position += 2 + length
        elif opcode == 1 and entries:
            ramp = np.linspace(entries[-1], words[position + 2], length + 1)[1:]
            entries += np.rint(ramp).astype(int).tolist()
            position += 3
        elif opcode == 2 and back == (0, 0):
            size = 4 if bits == 8 else 2
            parts = words[position + 2 : position + 2 + size]
            if len(parts) < size:
                return None
            # The offset is a 32-bit number of bytes, written in the table's own units.
            raw = parts if bits == 8 else [byte for w in parts for byte in (w & 255, w >> 8)]
            offset = int.from_bytes(bytes(raw), "little")
            back = (position + 2 + size, left)
            position, left = offset // (1 if bits == 8 else 2), length
        else:
            return None
    return entries[:_MAX_ENTRIES]
