"""Lookup tables of a DICOM header, as modality LUT, VOI LUT and palette use them."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.header import representation, value

__all__ = ["MAX_ENTRIES", "Inputs", "LookupTable", "in_order", "read_lut", "table_of"]

MAX_ENTRIES = 2**16
_WORD = 0xFFFF
# A table of 16 bits whose entries use four fewer is nearly black as its descriptor has it.
_NEARLY_BLACK = 4
# The largest entry, as a share of the largest value of its bits, from which on a table counts as
# made for these bits.
_REACHES_THE_TOP = 7 / 8


@dataclass(frozen=True, slots=True)
class Inputs:
    """The values that may be looked up in a table: from ``low`` to ``high``.

    signed: whether the standard has the first value mapped as two's complement.
    """

    low: float
    high: float
    signed: bool

    def first_mapped(self, written: int, count: int) -> int:
        """The first value mapped of a table of ``count`` entries; ``written`` is what its 16 bits
        were read as, signed or unsigned, by a VR that may be a guess."""
        unsigned = written & _WORD
        if unsigned <= 0x7FFF:
            return unsigned
        signed = unsigned - 0x10000
        usual, other = (signed, unsigned) if self.signed else (unsigned, signed)
        if not self._meet(usual, count) and self._meet(other, count):
            return other
        return usual

    def _meet(self, first: int, count: int) -> bool:
        return first <= self.high and first + count - 1 >= self.low


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table that maps the values from ``first`` on (PS3.3 C.11.1.1).

    entries: uint16 (N,); values below or above the table take the first or the last entry.
    bits: of how many bits the largest possible entry is.
    """

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def index(self, values: NDArray[Any]) -> NDArray[np.intp]:
        """The positions of the entries for ``values``: intp of the same shape."""
        last = len(self.entries) - 1
        return np.clip(values.astype(np.float64) - self.first, 0, last).astype(np.intp)

    def look_up(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The entries for ``values``, float64 of the same shape."""
        return self.entries[self.index(values)].astype(np.float64)

    def look_up_share(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The entries as a share of the largest value of ``bits`` bits: float64, 0…1."""
        shares: NDArray[np.float64] = self.look_up(values) / (2**self.bits - 1)
        return shares


def table_of(
    dataset: Dataset, descriptor: str, data: str, inputs: Inputs, *, little_endian: bool
) -> LookupTable | None:
    """The table in the elements ``descriptor`` and ``data`` (keywords) of ``dataset``; None when
    they are missing or invalid. ``little_endian`` is the byte order of the file."""
    return read_lut(
        value(dataset, descriptor),
        value(dataset, data),
        inputs,
        little_endian=little_endian,
        in_words=representation(dataset, data) != "OB",
    )


def read_lut(
    descriptor: Any,
    data: Any,
    inputs: Inputs,
    *,
    little_endian: bool,
    in_words: bool = True,
) -> LookupTable | None:
    """The table of a LUT Descriptor and LUT Data; None when they are invalid.

    Args:
        descriptor: number of entries (0 = 65536), first value mapped, bits of an entry; as
            numbers, or as bytes when the file does not say how they are signed.
        data: the entries, as bytes (OW), as numbers (US), or as an integer array (N,).
        inputs: the values that will be looked up; they decide the sign of the first value mapped.
        little_endian: byte order of what is bytes.
        in_words: bytes are words in that order, and not single bytes (OB).
    """
    try:
        if isinstance(descriptor, bytes):
            descriptor = struct.unpack_from("<3H" if little_endian else ">3H", descriptor)
        count, first, declared = (int(part) & _WORD for part in descriptor)
        count = count or MAX_ENTRIES
        if isinstance(data, bytes):
            entries = _entries(data, count, little_endian, in_words)
        elif isinstance(data, np.ndarray):
            entries = data.astype(np.uint16)
        else:
            numbers = np.atleast_1d(np.asarray(data, dtype=np.int64))
            entries = _unpacked((numbers & _WORD).astype(np.uint16), count, declared)
    except (TypeError, ValueError, struct.error):
        return None
    entries = entries[:count]
    if len(entries) == 0 or not 1 <= declared <= 16:
        return None
    return LookupTable(
        inputs.first_mapped(first, len(entries)), entries, _bits_in_use(entries, declared)
    )


def _entries(data: bytes, count: int, little_endian: bool, in_words: bool) -> NDArray[np.uint16]:
    """Entries of one or two bytes each, by the length of the data: writers do both, whatever the
    descriptor says. uint16 (N,)."""
    if len(data) >= 2 * count:
        order = "<u2" if little_endian else ">u2"
        return np.frombuffer(data, dtype=order, count=count).astype(np.uint16)
    return in_order(data, little_endian or not in_words).astype(np.uint16)


def in_order(data: bytes, little_endian: bool) -> NDArray[np.uint8]:
    """Values of one byte that were written as words: uint8 (N,). The first of two is the low byte
    of its word (PS3.5 7.3), so that the words of a big endian file have them swapped."""
    found = np.frombuffer(data, dtype=np.uint8)
    if little_endian:
        return found
    whole = len(found) // 2 * 2
    return np.concatenate([found[:whole].reshape(-1, 2)[:, ::-1].ravel(), found[whole:]])


def _unpacked(words: NDArray[np.uint16], count: int, declared: int) -> NDArray[np.uint16]:
    """``words``, or the two bytes of each where they hold two entries of 8 bits (PS3.3
    C.11.2.1.1): uint16 (N,)."""
    if declared == 8 and len(words) < count and (count + 1) // 2 == len(words):
        return words.astype("<u2").view(np.uint8).astype(np.uint16)
    return words


def _bits_in_use(entries: NDArray[np.uint16], declared: int) -> int:
    """Of how many bits white is: ``declared``, unless the entries show that it is wrong.

    An image may declare 8 or 16 bits only (PS3.3 C.11.2.1.1), which is the size of a cell, and
    tables of 10 or 12 bits come under 16. But a dark table of full depth stays dark.
    """
    used = max(1, int(entries.max()).bit_length())
    if used > declared or used <= declared - _NEARLY_BLACK:
        return used
    reached = int(entries.max()) >= _REACHES_THE_TOP * (2**used - 1)
    return used if reached else declared
