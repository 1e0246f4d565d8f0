"""Checks the structure of a DICOM file before it is handed to a parser.

The walk is iterative and reads only the tag, VR and length of each element, so its memory stays
bounded even if a file nests ten thousand deep or declares terabytes. At anything that it does
not understand it stops without an error, and the parser decides.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from engine.errors import ImageRefused, RefusalReason

__all__ = [
    "UNDEFINED",
    "Encoding",
    "Fragments",
    "Head",
    "Structure",
    "find_dataset",
    "first_fragments",
    "has_preamble",
    "read_head",
    "starts_like_dicom",
    "walk",
]

_PREAMBLE = 128
_MAGIC = b"DICM"
UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SOP_CLASS, _TRANSFER_SYNTAX = 0x00020002, 0x00020010
_PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR"} | {
    b"UT",
    b"UV",
}
_MAX_OFFSETS_BYTES = 4 * 1024**2
_RLE = b"\x40\0\0\0"
_VRS = _LONG_VRS | {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"),
    *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """Where the dataset starts in the file and how its elements are written.

    syntax: the transfer syntax that the file names; None = it names none. implicit: implicit VR,
        judged by the first element, even if the transfer syntax says otherwise. sop_class: from
        the file meta information; "" = none is named.
    """

    start: int
    syntax: UID | None
    implicit: bool
    little_endian: bool
    sop_class: str = ""


@dataclass(frozen=True, slots=True)
class Fragments:
    """The fragments of encapsulated pixel data (PS3.5 A.4), without the basic offset table.

    offsets: the basic offset table: starts of frames in bytes from the first fragment; may be
        empty.
    heads: byte positions in the file at which the fragments' items start.
    lengths: of the fragments' values in bytes.
    """

    offsets: Sequence[int]
    heads: Sequence[int]
    lengths: Sequence[int]

    def __len__(self) -> int:
        return len(self.heads)


@dataclass(frozen=True, slots=True)
class Structure:
    """The result of :func:`walk`.

    missing: a lower bound on the bytes missing at the end of the file; 0 = none are known to be.
        The length of uncompressed pixel data is not checked here.
    fragments: of encapsulated pixel data; None = the walk found none.
    """

    missing: int = 0
    fragments: Fragments | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Tag, VR and length of an element. value: byte position of its value in the file."""

    tag: int
    vr: bytes | None
    length: int
    value: int


def has_preamble(fp: BinaryIO) -> bool:
    """Whether the file has the preamble of PS3.10 section 7.1."""
    fp.seek(_PREAMBLE)
    return fp.read(len(_MAGIC)) == _MAGIC


def find_dataset(fp: BinaryIO) -> Encoding:
    """Where the dataset starts, past preamble and file meta information (PS3.10, 7.1).

    The group length of the file meta information is not trusted: writers get it wrong.
    """
    position = _PREAMBLE + len(_MAGIC) if has_preamble(fp) else 0
    uids = {_TRANSFER_SYNTAX: "", _SOP_CLASS: ""}
    while (head := read_head(fp, position, implicit=False, little_endian=True)) is not None:
        if head.tag >> 16 != 2:
            break
        if head.tag in uids and head.length <= 64:
            fp.seek(head.value)
            uids[head.tag] = fp.read(head.length).decode("ascii", "replace").strip(" \0")
        position = head.value + head.length
    named, sop_class = uids.values()
    # Skip the command set of a network message, which some writers store with the dataset.
    head = read_head(fp, position, implicit=True, little_endian=True)
    if head is not None and head.tag == 0 and head.length == 4:
        while head is not None and head.tag >> 16 == 0 and head.length != UNDEFINED:
            position = head.value + head.length
            head = read_head(fp, position, implicit=True, little_endian=True)
    if not named:
        return Encoding(position, None, *_guess(fp, position), sop_class)
    # Not validated: pydicom's warning would quote it.
    syntax = UID(named, validation_mode=IGNORE)
    known = not syntax.is_private and syntax.is_transfer_syntax
    little_endian = not known or syntax.is_little_endian
    implicit = known and syntax.is_implicit_VR
    if syntax != DeflatedExplicitVRLittleEndian:
        # Parsers go by the first element rather than by the transfer syntax.
        fp.seek(position + 4)
        written = fp.read(2)
        implicit = implicit if len(written) < 2 else not all(0x40 < c < 0x5B for c in written)
    return Encoding(position, syntax, implicit, little_endian, sop_class)


def _guess(fp: BinaryIO, position: int) -> tuple[bool, bool]:
    """(implicit, little_endian) of a dataset without transfer syntax, from its first element."""
    fp.seek(position)
    first = fp.read(6)
    explicit = first[4:6] in _VRS
    # Datasets start with a low group number: 0008 in little endian reads as 0800 in big endian.
    big = explicit and int.from_bytes(first[:2], "little") >= 0x0400
    return not explicit, not big


def starts_like_dicom(fp: BinaryIO, size: int) -> bool:
    """Whether a file without preamble starts with a plausible DICOM element."""
    encoding = find_dataset(fp)
    if encoding.start > 0:
        return True
    head = read_head(fp, 0, encoding.implicit, encoding.little_endian)
    if head is None or head.tag >> 16 not in (0x0000, 0x0004, 0x0008):
        return False
    # A group length has four bytes: without this check a file of zeros would pass.
    if head.tag & 0xFFFF == 0 and head.length != 4:
        return False
    return dictionary_has_tag(head.tag) and head.value + head.length <= size


def walk(fp: BinaryIO, size: int, encoding: Encoding, max_nesting: int) -> Structure:
    """Walks the elements from the start of the dataset to the end of its pixel data.

    Raises:
        ImageRefused: NESTED_TOO_DEEP when sequences nest deeper than ``max_nesting``.
    """
    position = encoding.start
    # Open containers: (is it a sequence, where it ends or None until its delimiter).
    stack: list[tuple[bool, int | None]] = []
    depth = 0
    while True:
        while stack and (end := stack[-1][1]) is not None and position >= end:
            depth -= stack.pop()[0]
        head = read_head(fp, position, encoding.implicit, encoding.little_endian)
        if head is None:
            # Each container still open lacks its delimiter of 8 bytes.
            return Structure(missing=max(0, position - size) or 8 * len(stack))
        if head.tag == _ITEM:
            if not stack or not stack[-1][0]:
                return Structure()
            stack.append((False, _end(head)))
            position = head.value
        elif head.tag in (_ITEM_END, _SEQUENCE_END):
            if not stack:
                return Structure()
            if head.tag == _SEQUENCE_END and not stack[-1][0]:
                stack.pop()
            if stack:
                depth -= stack.pop()[0]
            position = head.value
        elif head.tag in _PIXEL_DATA and not stack:
            if head.length != UNDEFINED:
                return Structure()
            found, position = _fragments(fp, head.value, encoding.little_endian)
            return Structure(max(0, position - size), found)
        elif _is_sequence(fp, head, encoding):
            depth += 1
            if depth > max_nesting:
                raise ImageRefused(
                    RefusalReason.NESTED_TOO_DEEP,
                    f"sequences nest more than {max_nesting} deep, "
                    "which is what limits.max_nesting allows",
                )
            stack.append((True, _end(head)))
            position = head.value
        elif head.length == UNDEFINED:
            _, position = _fragments(fp, head.value, encoding.little_endian)
        else:
            position = head.value + head.length


def _end(head: Head) -> int | None:
    return None if head.length == UNDEFINED else head.value + head.length


def read_head(fp: BinaryIO, position: int, implicit: bool, little_endian: bool) -> Head | None:
    """The head of the element at byte ``position``; None at the end of the file."""
    order = "<" if little_endian else ">"
    fp.seek(position)
    data = fp.read(12)
    if len(data) < 8:
        return None
    group, element = struct.unpack_from(order + "HH", data)
    tag = group << 16 | element
    vr = data[4:6]
    # Some writers switch to implicit VR inside a sequence; delimiters have no VR at all.
    if implicit or group == 0xFFFE or not b"AA" <= vr <= b"ZZ":
        return Head(tag, None, struct.unpack_from(order + "L", data, 4)[0], position + 8)
    if vr not in _LONG_VRS:
        return Head(tag, vr, struct.unpack_from(order + "H", data, 6)[0], position + 8)
    if len(data) < 12:
        return None
    return Head(tag, vr, struct.unpack_from(order + "L", data, 8)[0], position + 12)


def _is_sequence(fp: BinaryIO, head: Head, encoding: Encoding) -> bool:
    if head.vr == b"SQ":
        return True
    if head.vr not in (None, b"UN"):
        return False
    if head.vr == b"UN" and head.length == UNDEFINED:
        return True
    if dictionary_has_tag(head.tag):
        return dictionary_VR(head.tag) == "SQ"
    if head.length != UNDEFINED:
        return False
    inner = read_head(fp, head.value, implicit=True, little_endian=encoding.little_endian)
    return inner is not None and inner.tag == _ITEM


def _fragments(fp: BinaryIO, position: int, little_endian: bool) -> tuple[Fragments, int]:
    """The fragments of encapsulated data (PS3.5 A.4), and the position after it."""
    offsets: Sequence[int] = ()
    # Arrays rather than lists: a file may consist of millions of empty fragments.
    heads, lengths = array("Q"), array("Q")
    first = True
    while (head := read_head(fp, position, implicit=True, little_endian=little_endian)) is not None:
        position = head.value
        if head.tag != _ITEM or head.length == UNDEFINED:
            # The sequence delimiter, or something that this walk does not understand.
            break
        if first:
            fp.seek(head.value)
            table = fp.read(min(head.length, _MAX_OFFSETS_BYTES))
            offsets = struct.unpack(f"<{len(table) // 4}L", table[: len(table) // 4 * 4])
        else:
            heads.append(head.value - 8)
            lengths.append(head.length)
        first = False
        position = head.value + head.length
    return Fragments(offsets, heads, lengths), position


def first_fragments(
    fp: BinaryIO, fragments: Fragments, frames: int, extended_offsets: bytes | None
) -> list[int] | None:
    """Index of the first fragment of each of ``frames`` frames; None = it cannot be told. Fewer
    than ``frames`` where the file holds fewer.

    A frame reaches up to the start of the next one, the last frame to the end. An offset table
    is used if all its offsets point at fragments; else a frame starts where a fragment begins
    with the signature of its codec.

    Args:
        extended_offsets: value of the Extended Offset Table (PS3.3 C.7.6.3.1.8).
    """
    if frames == len(fragments) or frames == 1:
        return list(range(frames))
    extended: Sequence[int] = ()
    if extended_offsets is not None and len(extended_offsets) >= 8 * frames:
        extended = struct.unpack_from(f"<{frames}Q", extended_offsets)
    for table in (extended, fragments.offsets):
        pointed_at = _pointed_at(fragments.heads, table[:frames])
        if len(pointed_at) == frames:
            return pointed_at
    starts = []
    for index, head in enumerate(fragments.heads):
        fp.seek(head + 8)
        if _starts_frame(fp.read(min(8, fragments.lengths[index]))):
            starts.append(index)
    if len(starts) >= frames and starts[0] == 0:
        return starts[:frames]
    for table in (extended, fragments.offsets):
        # In a file that breaks off, the offsets of what is missing point behind its end.
        end = fragments.heads[-1] - fragments.heads[0] if fragments.heads else 0
        held = [offset for offset in table[:frames] if offset <= end]
        if held and len(pointed_at := _pointed_at(fragments.heads, held)) == len(held):
            return pointed_at
    if starts[:1] == [0]:
        return starts
    # A frame has at least one fragment (PS3.5 A.4).
    return list(range(len(fragments))) if len(fragments) < frames else None


def _pointed_at(heads: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """Indices of the fragments at ``offsets`` from the first; empty if any offset is wrong."""
    found: list[int] = []
    for offset in offsets:
        position = heads[0] + offset
        index = bisect_left(heads, position, found[-1] + 1 if found else 0)
        if index == len(heads) or heads[index] != position:
            return []
        found.append(index)
    return found if found[:1] == [0] else []


def _starts_frame(data: bytes) -> bool:
    """Whether a fragment that starts with these bytes is the first one of a frame."""
    if data.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return True
    # The header of RLE (PS3.5 G.5): the number of segments, and that the first is behind it.
    return len(data) == 8 and 1 <= int.from_bytes(data[:4], "little") <= 15 and data[4:] == _RLE
