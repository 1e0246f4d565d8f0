"""Reads the size that a compressed frame declares itself, to compare it with the DICOM header."""

import struct
from dataclasses import dataclass

__all__ = ["FrameSize", "declared_size"]

_JPEG = b"\xff\xd8"
_J2K = b"\xff\x4f\xff\x51"
# Start of frame of JPEG (ISO 10918-1, table B.1) and of JPEG-LS (ISO 14495-1, C.1.1).
_START_OF_FRAME = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_JP2 = b"\x00\x00\x00\x0cjP  "
_JP2_CODESTREAM = b"jp2c"


@dataclass(frozen=True, slots=True)
class FrameSize:
    """Rows, columns and samples per pixel of a compressed frame."""

    rows: int
    columns: int
    samples: int


def declared_size(data: bytes) -> FrameSize | None:
    """The size in the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None = it is none, or has
    no readable size.

    Raises:
        ValueError: the boxes of a JP2 file do not lead to a codestream. Decoders are known to
            loop forever over such files.
    """
    try:
        if data.startswith(_JPEG):
            return _jpeg(data)
        start = _codestream(data) if data.startswith(_JP2) else 0
        return _jpeg_2000(data, start) if data.startswith(_J2K, start) else None
    except struct.error:
        return None


def _codestream(data: bytes) -> int:
    """The position of the codestream in a JP2 file, behind its boxes (ISO 15444-1, I.4)."""
    position = len(_JP2) + 4
    while data[position + 4 : position + 8] != _JP2_CODESTREAM:
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 8 or position + length >= len(data):
            raise ValueError(f"a JP2 box of {length} bytes")
        position += length
    return position + 8


def _jpeg(data: bytes) -> FrameSize | None:
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in _START_OF_FRAME:
            rows, columns, samples = struct.unpack_from(">HHB", data, position + 5)
            return FrameSize(rows, columns, samples)
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _jpeg_2000(data: bytes, start: int) -> FrameSize:
    """The size in the SIZ marker segment (ISO 15444-1, A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">LLLL", data, start + 8)
    (samples,) = struct.unpack_from(">H", data, start + 40)
    return FrameSize(bottom - top, right - left, samples)
