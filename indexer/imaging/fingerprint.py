"""A digest of display pixels, by which one picture is recognised in several encodings."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from indexer.imaging.instance import Frame

__all__ = ["pixels_digest"]

_WORDS = 1024
"""Words of 8 bytes in a row."""


def pixels_digest(frames: Iterable[Frame]) -> str:
    """The digest, 64 hex digits, of the frames' numbers, shapes and display pixels.

    To hash every byte would take as long as to decode it. So the pixels are folded first: cut
    into rows of 8 KiB, each is multiplied by a number of its own, and the SHA-256 is that of
    their sum (mod 2 to the power of 64, word by word). One changed word always changes the sum,
    several cancel each other out about once in 2 to the power of 63.
    """
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.number} {frame.pixels.shape};".encode())
        flat = np.ascontiguousarray(frame.pixels).reshape(-1)
        whole = flat.size // (8 * _WORDS) * 8 * _WORDS
        rows = flat[:whole].view("<u8").reshape(-1, _WORDS)
        digest.update(np.einsum("i,ij->j", _factors(len(rows)), rows).tobytes())
        digest.update(flat[whole:].tobytes())
    return digest.hexdigest()


def _factors(count: int) -> NDArray[np.uint64]:
    """uint64 (count,): odd, so that each has an inverse, and otherwise random, but always the
    same."""
    drawn = np.frombuffer(hashlib.shake_128(b"rows").digest(8 * count), "<u8")
    return drawn.astype(np.uint64) | np.uint64(1)
