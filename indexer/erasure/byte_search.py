"""Looks for many byte strings in every byte of files, in one pass over them.

The last four bytes of each string are hashed into a table of bits; where the file has four bytes
that fall on one, the eight bytes that end there are compared, and then the whole. So the time grows
with the bytes of the files, hardly with the number of strings; memory is that of the strings and
of one piece of a file. Holes of sparse files, which hold nothing, are skipped.
"""

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.erasure.known_by import Needle

__all__ = ["ByteSearch", "Occurrence"]

_PIECE = 4 * 1024**2
_TABLE_BITS = 20
_FACTOR = np.uint32(2_654_435_761)
_LEAST = 4
_BEHIND = 2
_UID_BYTES = frozenset(b"0123456789.")
_DIGITS = frozenset(b"0123456789")


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Where a string was found. at: of its first byte. whole: False = it is a UID, and part of a
    longer run of digits and points."""

    needle: Needle
    at: int
    whole: bool


class ByteSearch:
    """Searches for these strings; those of fewer than four bytes tell nothing and are left out."""

    def __init__(self, needles: Iterable[Needle]) -> None:
        self._by_data: dict[bytes, list[Needle]] = defaultdict(list)
        for one in needles:
            if len(one.data) >= _LEAST:
                self._by_data[one.data].append(one)
        self._lengths = sorted({len(one) for one in self._by_data}, reverse=True)
        self._longest = max(self._lengths, default=0)
        self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
        ends = np.array(
            [int.from_bytes(one[-4:], "little") for one in self._by_data], dtype=np.uint32
        )
        self._table[_hashed(ends)] = True
        long = [one for one in self._by_data if len(one) >= 8]
        self._eights = np.unique(
            np.array([int.from_bytes(one[-8:], "little") for one in long], dtype=np.uint64)
        )
        short = {one[-4:] for one in self._by_data if len(one) < 8}
        self._fours = np.unique(
            np.array([int.from_bytes(one, "little") for one in short], dtype=np.uint32)
        )

    @property
    def strings(self) -> int:
        return len(self._by_data)

    def in_file(self, path: Path) -> tuple[int, list[Occurrence]]:
        """How many bytes of the file were read, holes apart, and what was found in them.

        Raises:
            OSError: it cannot be read.
        """
        read, found = 0, list[Occurrence]()
        with path.open("rb", buffering=0) as file:
            for piece in _pieces(file.fileno(), self._longest + _BEHIND):
                read += len(piece.data) - piece.before
                found += self._in(piece)
        return read, found

    def in_name(self, name: str) -> list[Occurrence]:
        """What is in the name of a file."""
        return [*self._in(_Piece(0, os.fsencode(name), 0, True))]

    def _in(self, piece: "_Piece") -> Iterator[Occurrence]:
        data, start = piece.data, piece.start
        # What stands behind a UID says whether it is one: its end waits for the next piece.
        least = max(0, piece.before - _BEHIND)
        most = len(data) if piece.is_last else len(data) - _BEHIND
        for end in self._ends(data):
            if not least < end <= most:
                continue
            for length in self._lengths:
                if length > end:
                    continue
                for needle in self._by_data.get(data[end - length : end], ()):
                    whole = not needle.is_uid or _is_whole(data, end - length, end)
                    yield Occurrence(needle, start + end - length, whole)

    def _ends(self, data: bytes) -> Sequence[int]:
        """Where strings may end."""
        if len(data) < _LEAST or not self._by_data:
            return ()
        found = []
        for shift in range(4):
            count = (len(data) - shift) // 4
            if count:
                fours = np.frombuffer(data, np.uint32, count, shift)
                found.append(np.flatnonzero(self._table[_hashed(fours)]) * 4 + shift + 4)
        ends = np.sort(np.concatenate(found))
        if not len(ends):
            return ()
        raw = np.frombuffer(data, np.uint8)
        likely = np.zeros(len(ends), np.bool_)
        if len(self._fours):
            likely |= np.isin(_windows(raw, ends, 4).view(np.uint32)[:, 0], self._fours)
        far = ends >= 8
        eights = _windows(raw, ends[far], 8).view(np.uint64)[:, 0]
        likely[far] |= np.isin(eights, self._eights)
        return ends[likely].tolist()  # type: ignore[no-any-return]


def _hashed(fours: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (fours * _FACTOR) >> np.uint32(32 - _TABLE_BITS)


def _windows(raw: NDArray[np.uint8], ends: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """The bytes before each end: uint8 (N, width)."""
    return np.ascontiguousarray(raw[ends[:, None] + np.arange(-width, 0)])


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether a UID stands alone there, rather than as a part of a longer one."""
    if start and data[start - 1] in _UID_BYTES:
        return False
    after = data[end : end + 2]
    if after and after[0] in _DIGITS:
        return False
    return not (len(after) == 2 and after[0] == ord(".") and after[1] in _DIGITS)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a file. start: where it begins. before: how many of its first bytes the part before
    had already. is_last: nothing comes right behind it."""

    start: int
    data: bytes
    before: int
    is_last: bool


def _pieces(handle: int, overlap: int) -> Iterator[_Piece]:
    """The parts of a file that hold data."""
    size, at = os.fstat(handle).st_size, 0
    while at < size:
        at, end = _data_from(handle, at, size)
        kept = b""
        while at < end:
            read = os.pread(handle, min(_PIECE, end - at), at)
            if not read:
                return  # it became shorter
            data = kept + read
            yield _Piece(at - len(kept), data, len(kept), at + len(read) >= end)
            at += len(read)
            kept = data[-overlap:]


def _data_from(handle: int, at: int, size: int) -> tuple[int, int]:
    """Where the next bytes are that are no hole, and where they end."""
    try:
        start = os.lseek(handle, at, os.SEEK_DATA)
        return start, os.lseek(handle, start, os.SEEK_HOLE)
    except OSError as error:
        # ENXIO: there are none. Else the file system knows of no holes.
        return (size, size) if error.errno == errno.ENXIO else (at, size)
