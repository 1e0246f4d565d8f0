"""Heads of data elements whose VR is none of the standard's, told by what follows them.

Explicit VR leaves no room for a VR that a reader does not know: whether two or four bytes of
length follow depends on it (PS3.5 7.1.2). What writers do:

- VRs of two capital letters are future ones of the standard, which shall have four bytes of
  length behind two reserved ones (PS3.5 6.2); some writers give theirs two.
- "??", "--", blanks and the like stand for what a toolkit does not know, mostly with two bytes.
- Some writers switch to implicit VR within a file: those two bytes belong to the length.

Each reading says where the next element starts. The first reading that leads to something that
can follow is taken, after a look at one more head each, so the time is bounded.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["EXPLICIT_VRS", "LONG_VRS", "UNDEFINED", "Odd", "implicit_fits", "odd_head"]

UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
"""VRs with four bytes of length behind two reserved ones (PS3.5 table 7.1-1)."""
EXPLICIT_VRS = LONG_VRS | {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"),
    *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
"""The VRs of PS3.5 table 6.2-1."""
_DELIMITERS = 0xFFFE
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD

Bytes = Callable[[int], bytes]
"""The 12 bytes at a position of the file; fewer at its end."""


@dataclass(frozen=True, slots=True)
class Odd:
    """How an element with an odd VR is read. value: where its value starts, of ``length`` bytes.
    implicit: it has no VR at all."""

    value: int
    length: int
    implicit: bool


def odd_head(at: Bytes, position: int, end: int, *, little_endian: bool) -> Odd:
    """The head at ``position`` of an explicit element whose VR, or reserved bytes, are odd.

    Args:
        end: of the innermost container with a length, or of the file.
    """
    order = "<" if little_endian else ">"
    data = at(position)
    vr = data[4:6]
    whole, short = struct.unpack_from(order + "L", data, 4)[0], _short(data, order)
    implicit = Odd(position + 8, whole, True)
    two = Odd(position + 8, short, False)
    readings = [implicit, two]
    if len(data) >= 12:
        four = Odd(position + 12, struct.unpack_from(order + "L", data, 8)[0], False)
        reserved = data[6:8] == b"\0\0"
        if vr in LONG_VRS:
            # With a length of two bytes, where reserved ones belong, write some old toolkits.
            readings = [four, two]
        elif _letters(vr):
            readings = [four, two, implicit] if reserved else [two, implicit]
        elif all(0x20 <= c < 0x7F for c in vr):
            readings = [two, four, implicit] if reserved else [two, implicit]
        elif reserved:
            readings = [implicit, four, two]
    for reading in readings:
        if _leads_on(at, position, end, reading, order):
            return reading
    # Nothing leads on, as where several odd VRs stand side by side; but no value is longer than
    # what it lies in.
    fits = (one for one in readings if one.length != UNDEFINED and one.value + one.length <= end)
    return next(fits, readings[0])


def implicit_fits(at: Bytes, position: int, end: int, *, little_endian: bool) -> bool:
    """Whether what starts at ``position`` makes sense as an implicit VR element, or as the end of
    an item."""
    order = "<" if little_endian else ">"
    data = at(position)
    if position >= end or len(data) < 8:
        return True
    group, number, length = struct.unpack_from(order + "HHL", data)
    if group == _DELIMITERS:
        return number in (_ITEM_END, _SEQUENCE_END)
    reading = Odd(position + 8, length, True)
    if not _leads_on(at, position, end, reading, order):
        return False
    after = at(position + 8 + length) if length != UNDEFINED else b""
    if after[4:6] in EXPLICIT_VRS:
        # An empty element is read the same both ways; the next one tells.
        beyond: int = position + 16 + length + struct.unpack_from(order + "L", after, 4)[0]
        return beyond <= end
    return True


def _short(data: bytes, order: str) -> int:
    number: int = struct.unpack_from(order + "H", data, 6)[0]
    return number


def _letters(vr: bytes) -> bool:
    return all(0x40 < c < 0x5B for c in vr)


def _leads_on(at: Bytes, position: int, end: int, reading: Odd, order: str) -> bool:
    """Whether something that may follow an element stands where it ends if read like this."""
    own, vr = struct.unpack_from(order + "HH", at(position)), at(position)[4:6]
    if reading.length == UNDEFINED:
        # Items follow, or the end of a sequence of none.
        inner = at(reading.value)
        return len(inner) >= 8 and struct.unpack_from(order + "HH", inner) in (
            (_DELIMITERS, _ITEM),
            (_DELIMITERS, _SEQUENCE_END),
        )
    after = reading.value + reading.length
    if after >= end:
        return after == end
    data = at(after)
    if len(data) < 8:
        return False
    tag = struct.unpack_from(order + "HH", data)
    if tag[0] == _DELIMITERS:
        return tag[1] in (_ITEM_END, _SEQUENCE_END) and data[4:8] == b"\0\0\0\0"
    if tag <= own:
        return False
    if data[4:6] in EXPLICIT_VRS:
        return True
    if reading.implicit:
        length: int = struct.unpack_from(order + "L", data, 4)[0]
        return length == UNDEFINED or after + 8 + length <= end
    # Several such elements may stand side by side.
    return data[4:6] == vr
