"""Binary codes: packing, hex, 16-bit bands, their neighbourhoods, Hamming distance.

A band is a slice of 16 bits of a code. A Qdrant server looks images up by their bands
(multi-index hashing: Norouzi et al., TPAMI 2014): by the pigeonhole principle, two codes of m bands
that differ in at most m (s + 1) − 1 bits have a band that differs in at most s.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError

__all__ = [
    "BAND_BITS",
    "band_widths",
    "bands",
    "flips",
    "from_hex",
    "hamming",
    "neighbourhood",
    "pack_signs",
    "radius",
    "to_hex",
]

BAND_BITS = 16


def pack_signs(h: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The binary codes of hash logits: bit = 1 where h ≥ 0, most significant bit first.

    Args:
        h: float (..., B), B a multiple of 8.

    Returns:
        uint8 (..., B/8), packed.

    Raises:
        QueryError: B is no multiple of 8.
    """
    if h.shape[-1] % 8:
        raise QueryError(f"{h.shape[-1]} bits do not fill bytes; use a multiple of 8")
    return np.packbits(h >= 0, axis=-1)


def to_hex(code: NDArray[np.uint8]) -> str:
    """A packed code (B/8,) as B/4 lower-case hex digits."""
    return code.tobytes().hex()


def from_hex(text: str) -> NDArray[np.uint8]:
    """The packed code, uint8 (B/8,), of its hex digits.

    Raises:
        QueryError: the text is not hex.
    """
    try:
        return np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        raise QueryError(f"code {text!r} is not hexadecimal; give two digits a byte") from None


def band_widths(bits: int) -> list[int]:
    """The width in bits of each of the m = ⌈B/16⌉ bands: 16; 8 for the first if B/8 is odd."""
    rest = bits % BAND_BITS
    return ([rest] if rest else []) + [BAND_BITS] * (bits // BAND_BITS)


def bands(codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The bands of packed codes as integers: uint8 (..., B/8) → uint16 (..., m)."""
    if codes.shape[-1] % 2:
        padding = [(0, 0)] * (codes.ndim - 1) + [(1, 0)]
        # Leading zeros: the first band is the narrow one.
        codes = np.pad(codes, padding)
    high, low = codes[..., 0::2].astype(np.uint16), codes[..., 1::2].astype(np.uint16)
    joined: NDArray[np.uint16] = (high << np.uint16(8)) | low
    return joined


def neighbourhood(value: int, s: int, width: int = BAND_BITS) -> list[int]:
    """All band values that differ from ``value`` in at most ``s`` of ``width`` bits, ascending.

    For 16 bits: 1 value for s = 0, 17 for s = 1, 137 for s = 2.
    """
    values = [value]
    for count in range(1, min(s, width) + 1):
        for positions in combinations(range(width), count):
            mask = sum(1 << position for position in positions)
            values.append(value ^ mask)
    return sorted(values)


def radius(m: int, s: int) -> int:
    """r = m (s + 1) − 1: two codes at most r bits apart have a band at most s bits apart.

    Args:
        m: bands of a code. s: differing bits allowed in a band.
    """
    return m * (s + 1) - 1


def flips(m: int, r: int) -> int:
    """The least s with radius(m, s) ≥ r: how many bits of a band have to be allowed to differ, so
    that no code within r bits is missed."""
    return max(0, -(-(r + 1) // m) - 1)


def hamming(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Hamming distance of packed codes: uint8 (..., B/8), broadcast → int64 (...)."""
    first, second = a, b
    if a.shape[-1] % 8 == 0 and a.flags.c_contiguous and b.flags.c_contiguous:
        # Words of 64 bits are counted several times as fast as bytes.
        first, second = a.view(np.uint64), b.view(np.uint64)
    counts = np.bitwise_count(first ^ second)
    differing: NDArray[np.int64]
    if counts.shape[-1] == 1:
        differing = counts[..., 0].astype(np.int64)
    else:
        differing = counts.sum(axis=-1, dtype=np.int64)
    return differing
