"""The structure of DICOM files: where the dataset starts, heads of elements, and fragments."""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from indexer.files.element_heads import EXPLICIT_VRS, LONG_VRS, UNDEFINED

__all__ = [
    "UNDEFINED",
    "Encoding",
    "Fragments",
    "Head",
    "Structure",
    "find_dataset",
    "first_fragments",
    "fragments_at",
    "has_preamble",
    "read_head",
    "starts_like_dicom",
]

_PREAMBLE = 128
_MAGIC = b"DICM"
_ITEM = 0xFFFEE000
_SOP_CLASS, _TRANSFER_SYNTAX = 0x00020002, 0x00020010
_MAX_OFFSETS_BYTES = 4 * 1024**2
_RLE = b"\x40\0\0\0"


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
    """What elements in front of the pixel data, and its fragments, say of the file.

    missing: a lower bound on the bytes missing at the end of the file; 0 = none are known to be.
        The length of uncompressed pixel data is not checked here.
    fragments: of encapsulated pixel data; None = there are none.
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
    explicit = first[4:6] in EXPLICIT_VRS
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
    if head.tag & 0xFFFF == 0:
        # A group length (PS3.5 7.2) has four bytes: else a file of zeros would pass. It is in no
        # dictionary; what follows it has to be.
        group = head.tag >> 16
        if head.length != 4:
            return False
        head = read_head(fp, head.value + 4, encoding.implicit, encoding.little_endian)
        if head is None or head.tag >> 16 != group:
            return False
    return dictionary_has_tag(head.tag) and head.value + head.length <= size


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
    # Delimiters have no VR; some writers switch to implicit VR on the way.
    if implicit or group == 0xFFFE or not all(0x40 < c < 0x5B for c in vr):
        return Head(tag, None, struct.unpack_from(order + "L", data, 4)[0], position + 8)
    if vr not in LONG_VRS:
        return Head(tag, vr, struct.unpack_from(order + "H", data, 6)[0], position + 8)
    if len(data) < 12:
        return None
    return Head(tag, vr, struct.unpack_from(order + "L", data, 8)[0], position + 12)


def fragments_at(fp: BinaryIO, position: int, little_endian: bool) -> tuple[Fragments, int]:
    """The fragments of encapsulated data (PS3.5 A.4) whose value starts at ``position``, and the
    position after it."""
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
    starts: list[int] = []
    for index, head in enumerate(fragments.heads):
        fp.seek(head + 8)
        asked = min(8, fragments.lengths[index])
        data = fp.read(asked)
        # Where the file breaks off nothing is left to tell by: it goes on as it has begun.
        goes_on = len(data) < asked and index == len(starts)
        if _starts_frame(data) or goes_on:
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
