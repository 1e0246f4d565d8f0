"""Reads what the header of a compressed frame says of it, to compare it with the DICOM header."""

import struct
from dataclasses import dataclass

__all__ = ["CodeStream", "code_stream", "end_of_image"]

_JPEG = b"\xff\xd8"
_J2K = b"\xff\x4f\xff\x51"
# Start of frame of JPEG (ISO 10918-1, table B.1) and of JPEG-LS (ISO 14495-1, C.1.1).
_JPEG_LS = 0xF7
_START_OF_FRAME = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {_JPEG_LS}
# Table B.1 again: sequential and progressive DCT, by Huffman or arithmetic coding; lossless.
_DCT = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_LOSSLESS = (0xC3, 0xCB)
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_START_OF_SCAN = 0xDA
_JFIF, _ADOBE = 0xE0, 0xEE
_END_OF_IMAGE = b"\xff\xd9"
# Writers pad frames behind the end marker, to an even length or to a block of their disk.
_PADDING = 4096
_JP2 = b"\x00\x00\x00\x0cjP  "
_JP2_CODESTREAM = b"jp2c"


@dataclass(frozen=True, slots=True)
class CodeStream:
    """What the header of a compressed frame declares.

    samples: per pixel.
    bits: the precision of a sample.
    process: the second byte of JPEG's start-of-frame marker; 0 = JPEG 2000.
    components: JPEG's component identifiers.
    jfif: whether there is a JFIF marker segment.
    adobe: colour transform of the Adobe marker segment: 0 = none, 1 = YCbCr; None = no segment.
    """

    rows: int
    columns: int
    samples: int
    bits: int
    process: int = 0
    components: bytes = b""
    jfif: bool = False
    adobe: int | None = None

    @property
    def is_jpeg_2000(self) -> bool:
        return self.process == 0

    @property
    def is_jpeg_ls(self) -> bool:
        return self.process == _JPEG_LS

    @property
    def is_dct(self) -> bool:
        """JPEG with loss (ISO 10918-1, processes 1 to 13)."""
        return self.process in _DCT

    @property
    def is_lossless_jpeg(self) -> bool:
        """JPEG without loss (ISO 10918-1, processes 14 and 29)."""
        return self.process in _LOSSLESS

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the smallest integer that holds a decoded sample: 1, 2 or 4."""
        return 1 if self.bits <= 8 else 2 if self.bits <= 16 else 4


def code_stream(data: bytes) -> CodeStream | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 code stream; None = it is none, or cannot be
    read.

    Raises:
        ValueError: the boxes of a JP2 file do not lead to a codestream. Decoders are known to
            loop forever over such files.
    """
    try:
        if data.startswith(_JPEG):
            return _jpeg(data)
        start = _codestream(data) if data.startswith(_JP2) else 0
        return _jpeg_2000(data, start) if data.startswith(_J2K, start) else None
    except (struct.error, IndexError):
        return None


def end_of_image(data: bytes) -> int:
    """Where the end-of-image marker of a JPEG or JPEG-LS frame is, behind which may be padding;
    negative = there is none.

    The marker cannot occur in what is coded before it (ISO 10918-1, B.1.1.5).
    """
    return data.rfind(_END_OF_IMAGE, max(0, len(data) - _PADDING))


def _codestream(data: bytes) -> int:
    """The position of the codestream in a JP2 file, behind its boxes (ISO 15444-1, I.4)."""
    position = len(_JP2) + 4
    while data[position + 4 : position + 8] != _JP2_CODESTREAM:
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 8 or position + length >= len(data):
            raise ValueError(f"a JP2 box of {length} bytes")
        position += length
    return position + 8


def _jpeg(data: bytes) -> CodeStream | None:
    position, jfif, adobe = 2, False, None
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in _START_OF_FRAME:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, position + 4)
            components = data[position + 10 : position + 10 + 3 * samples : 3]
            return CodeStream(rows, columns, samples, bits, marker, components, jfif, adobe)
        elif marker == _START_OF_SCAN:
            return None
        else:
            if marker == _JFIF and data.startswith(b"JFIF\0", position + 4):
                jfif = True
            (length,) = struct.unpack_from(">H", data, position + 2)
            if marker == _ADOBE and length >= 14 and data.startswith(b"Adobe", position + 4):
                # Version, two words of flags, and then the transform.
                adobe = data[position + 15]
            position += 2 + length
    return None


def _jpeg_2000(data: bytes, start: int) -> CodeStream:
    """The size in the SIZ marker segment (ISO 15444-1, A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">LLLL", data, start + 8)
    (samples,) = struct.unpack_from(">H", data, start + 40)
    depths = data[start + 42 : start + 42 + 3 * samples : 3]
    bits = max(((depth & 0x7F) + 1 for depth in depths), default=0)
    return CodeStream(bottom - top, right - left, samples, bits)
