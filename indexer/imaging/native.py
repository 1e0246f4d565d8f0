"""Reads uncompressed frames whose samples share bytes with each other (PS3.5 8.1.1, annex D)."""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from indexer.files.limits import check_held

__all__ = ["low_bits", "packed_frame"]

_BITS = 8


def packed_frame(
    fp: BinaryIO, start: int, number: int, cells: int, bits: int, *, swapped: bool
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The ``cells`` values of frame ``number`` of pixel data that begins at byte ``start``.

    Cells follow each other without a gap, from the lowest bit up, and so do frames: a frame may
    begin amid a byte.

    Args:
        bits: allocated for a cell: 1 or 12.
        swapped: whether the bytes of each word of 16 bits are exchanged (big endian).

    Returns:
        (cells,): uint8 of 1 bit, uint16 of 12 bits.

    Raises:
        ImageRefused: TRUNCATED: the file ends before the frame does.
    """
    first_bit = number * cells * bits
    first, last = first_bit // _BITS, -(-(first_bit + cells * bits) // _BITS)
    if swapped:
        first, last = first // 2 * 2, -(-last // 2) * 2
    fp.seek(start + first)
    data = np.frombuffer(fp.read(last - first), np.uint8)
    check_held(last - first, len(data))
    if swapped:
        data = data.view(np.uint16).byteswap().view(np.uint8)
    offset = first_bit - first * _BITS
    if bits == 1:
        return np.unpackbits(data, bitorder="little", count=offset + cells)[offset:]
    return _twelve_bits(data, offset, cells)


def _twelve_bits(data: NDArray[np.uint8], offset: int, cells: int) -> NDArray[np.uint16]:
    out = np.empty(cells, np.uint16)
    # Two cells take three bytes, so every other cell lies alike in its bytes.
    for parity in (0, 1):
        count = (cells + 1 - parity) // 2
        byte, shift = divmod(offset + 12 * parity, _BITS)
        low, high = (
            data[start : start + 3 * count : 3][:count].astype(np.uint16)
            for start in (byte, byte + 1)
        )
        out[parity::2] = (low | high << 8) >> shift & 0xFFF
    return out


def low_bits(values: NDArray[Any], bits: int, *, signed: bool) -> NDArray[Any]:
    """The low ``bits`` bits of unsigned ``values`` as numbers; ``signed`` = in two's complement.

    Returns:
        The shape of ``values``; their dtype, or a signed one that holds ``bits`` bits.
    """
    if signed:
        size = max(values.dtype.itemsize, 1 if bits <= 8 else 2 if bits <= 16 else 4)
        values = values.astype(f"u{size}", copy=False).view(f"i{size}")
    unused = 8 * values.dtype.itemsize - bits
    return values << unused >> unused if unused > 0 else values
