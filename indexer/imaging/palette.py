"""Palettes: colours for the stored values of PALETTE COLOR frames, for some of those of grey frames
with a supplemental palette, and for those of frames with an enhanced one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from engine.errors import ImageRefused, RefusalReason
from indexer.imaging.header import integer, items, representation, text, value
from indexer.imaging.lookup import (
    MAX_ENTRIES,
    Inputs,
    LookupTable,
    in_order,
    read_lut,
    table_of,
)

__all__ = [
    "PALETTE_KEYWORDS",
    "DataPath",
    "Palette",
    "data_path",
    "read_palette",
    "supplemental_palette",
]

_MAX_SEGMENT_BYTES = 2**20
_COLORS = ("Red", "Green", "Blue")
PALETTE_KEYWORDS = (
    "PixelPresentation",
    "DataFrameAssignmentSequence",
    "EnhancedPaletteColorLookupTableSequence",
    *(
        f"{form}{color}PaletteColorLookupTable{part}"
        for color in _COLORS
        for form, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
)
"""Keywords of the elements that palettes are read from."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The three tables of a palette: red, green and blue."""

    tables: tuple[LookupTable, ...]

    @property
    def first(self) -> int:
        """The lowest stored value that has an entry."""
        return self.tables[0].first

    def colors(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """The colours of ``stored`` (…): uint8 (…, 3)."""
        # Some writers put 8-bit colours into the low byte of 16-bit entries.
        shift = 8 if max(int(table.entries.max()) for table in self.tables) > 255 else 0
        out = np.empty((*stored.shape, 3), dtype=np.uint8)
        for channel, table in enumerate(self.tables):
            out[..., channel] = (table.entries >> shift).astype(np.uint8)[table.index(stored)]
        return out

    def paint(self, grey: NDArray[np.uint8], stored: NDArray[Any]) -> NDArray[np.uint8]:
        """``grey`` (H, W), with the colours of those pixels whose ``stored`` (H, W) value has
        one: uint8 (H, W, 3)."""
        out = np.repeat(grey[..., None], 3, axis=-1)
        colored = stored >= self.first
        out[colored] = self.colors(stored[colored])
        return out


def read_palette(header: Dataset, inputs: Inputs, *, little_endian: bool) -> Palette:
    """The palette of ``header`` (PS3.3 C.7.6.3.1.5), for stored values within ``inputs``.

    Raises:
        ImageRefused: DAMAGED when one of the three tables is missing or empty.
    """
    tables = []
    for color in _COLORS:
        table = _table(header, color, inputs, little_endian)
        if table is None:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"the {color} Palette Color Lookup Table is missing or makes no sense",
            )
        tables.append(table)
    return Palette(tuple(tables))


def supplemental_palette(
    scopes: list[Dataset], inputs: Inputs, *, little_endian: bool
) -> Palette | None:
    """The palette that colours a part of a grey frame (PS3.3 C.7.6.19): None when the frame is
    to be shown in grey, by its Pixel Presentation (C.8.16.2.1.1), or has no valid palette.

    Args:
        scopes: the datasets that describe the frame, the most specific first and the header last.
    """
    presentations = (text(scope, "PixelPresentation").upper() for scope in scopes)
    if next(filter(None, presentations), "MONOCHROME") not in ("COLOR", "MIXED"):
        return None
    try:
        return read_palette(scopes[-1], inputs, little_endian=little_endian)
    except ImageRefused:
        # The values are an image without their colours too.
        return None


@dataclass(frozen=True, slots=True)
class DataPath:
    """The way of a frame through the enhanced blending and display pipeline (PS3.3 C.7.6.23), up to
    where it would be blended with another frame.

    shift, bits: the input is what is left of stored values of so many bits, most significant ones
    first, without the lowest ``shift``.
    palette: of the input; None = red, green and blue are the input, as a share of its range.
    """

    shift: int
    bits: int
    palette: Palette | None

    def shown(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """The display values of ``stored`` (H, W): uint8 (H, W, 3), or (H, W) without palette."""
        mapped = stored >> self.shift
        if self.palette is not None:
            return self.palette.colors(mapped)
        grey: NDArray[np.uint8] = np.rint(mapped * (255.0 / (2**self.bits - 1))).astype(np.uint8)
        return grey


def data_path(
    scopes: list[Dataset], inputs: Inputs, bits_stored: int, *, little_endian: bool
) -> tuple[DataPath | None, list[Dataset]]:
    """The data path of a frame, and the datasets that describe it, among them that of its data
    type; None when it is to be shown as a grey frame is: its path leads to P-values, it shares a
    palette with another frame (SECONDARY_HIGH and SECONDARY_LOW), there is no valid one, or none is
    asked for.

    Args:
        scopes: the datasets that describe the frame, the most specific first and the header last.
    """
    header = scopes[-1]
    paths = items(header, "DataFrameAssignmentSequence")
    kind = next(filter(None, (text(scope, "DataType") for scope in scopes[:-1])), "")
    mine = [path for path in paths if text(path, "DataType") == kind]
    if not mine and len(paths) == 1 and not kind:
        mine = [paths[0]]
    if not mine:
        return None, scopes
    # The functional groups of the frame know better than what holds for all of its type.
    scopes = [*scopes[:-1], mine[0], header]
    name, _, end = text(mine[0], "DataPathAssignment").upper().partition("_")
    found = [
        palette
        for palette in items(header, "EnhancedPaletteColorLookupTableSequence")
        if text(palette, "DataPathID").upper() == name
    ]
    if end != "SINGLE" or not found or inputs.signed or inputs.low < 0:
        return None, scopes
    mapped = integer(mine[0], "BitsMappedToColorLookupTable") or bits_stored
    bits = min(max(mapped, 1), bits_stored)
    shift = bits_stored - bits
    if text(found[0], "RGBLUTTransferFunction").upper() == "EQUAL_RGB":
        return DataPath(shift, bits, None), scopes
    within = Inputs(0.0, 2.0**bits - 1, signed=False)
    try:
        palette = read_palette(found[0], within, little_endian=little_endian)
    except ImageRefused:
        return None, scopes
    return DataPath(shift, bits, palette), scopes


def _table(header: Dataset, color: str, inputs: Inputs, little_endian: bool) -> LookupTable | None:
    descriptor, data = (f"{color}PaletteColorLookupTable{part}" for part in ("Descriptor", "Data"))
    segmented = f"Segmented{data}"
    segments = value(header, segmented)
    if value(header, data) or not isinstance(segments, bytes):
        return table_of(header, descriptor, data, inputs, little_endian=little_endian)
    numbers = value(header, descriptor)
    swapped = not little_endian and representation(header, segmented) != "OB"
    entries = np.array(_expand(segments, numbers, not swapped), dtype=np.int64)
    return read_lut(numbers, entries, inputs, little_endian=little_endian)


def _expand(segments: bytes, descriptor: Any, little_endian: bool) -> list[int]:
    """The entries of a segmented palette (PS3.3 C.7.9.2), never more than 65536; none when it is
    invalid.

    An indirect segment repeats earlier ones. The limits on entries and segments end the loop
    over a hostile table that would grow, or repeat empty segments, forever.
    """
    try:
        bits = int(descriptor[2])
    except (TypeError, ValueError, IndexError):
        return []
    size = min(len(segments), _MAX_SEGMENT_BYTES)
    if bits == 8:
        words = in_order(segments[:size], little_endian).astype(int).tolist()
    else:
        order = "<u2" if little_endian else ">u2"
        words = np.frombuffer(segments[: size // 2 * 2], dtype=order).astype(int).tolist()
    entries: list[int] = []
    # (position, segments left) to return to after the current run of segments.
    position, left, back = 0, len(words), (0, 0)
    # Every segment but an indirect one has an entry at least.
    for _ in range(2 * MAX_ENTRIES):
        if len(entries) >= MAX_ENTRIES:
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
                return []
            # The offset is a 32-bit number of bytes, written in the table's own units.
            raw = parts if bits == 8 else [byte for w in parts for byte in (w & 255, w >> 8)]
            offset = int.from_bytes(bytes(raw), "little")
            back = (position + 2 + size, left)
            position, left = offset // (1 if bits == 8 else 2), length
        else:
            return []
    return entries[:MAX_ENTRIES]
