"""A look at how a DICOM file is built, before a parser is trusted with it.

The walk keeps its own stack and reads only the heads of elements, so that neither a file
nested ten thousand deep nor one that declares terabytes can make it grow. Where it meets
something it does not understand it stops, and leaves the verdict to the parser.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.uid import UID

from engine.errors import ImageRefused, RefusalReason

__all__ = [
    "UNDEFINED",
    "Encoding",
    "Head",
    "Structure",
    "find_dataset",
    "has_preamble",
    "read_head",
    "starts_like_dicom",
    "walk",
]

_PREAMBLE = 128
_MAGIC = b"DICM"
UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR"} | {
    b"UT",
    b"UV",
}
_VRS = _LONG_VRS | {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"),
    *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """Where the dataset starts in the file and how its elements are written.

    syntax: the transfer syntax named by the file, or None.
    """

    start: int
    syntax: UID | None
    implicit: bool
    little_endian: bool


@dataclass(frozen=True, slots=True)
class Structure:
    """What the walk saw.

    missing: at least so many bytes are lacking at the end of the file; 0 = none known of.
        The length of uncompressed pixel data is not judged here.
    fragments: pieces of compressed pixel data; None when the walk met none.
    """

    missing: int = 0
    fragments: int | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The start of an element. value: where in the file its value lies."""

    tag: int
    vr: bytes | None
    length: int
    value: int


def has_preamble(fp: BinaryIO) -> bool:
    """Whether the file has the preamble of PS3.10 section 7.1."""
    fp.seek(_PREAMBLE)
    return fp.read(len(_MAGIC)) == _MAGIC


def find_dataset(fp: BinaryIO) -> Encoding:
    """Where the dataset starts, past preamble and file meta information (PS3.10, 7.1)."""
    position = _PREAMBLE + len(_MAGIC) if has_preamble(fp) else 0
    syntax = None
    while (head := read_head(fp, position, implicit=False, little_endian=True)) is not None:
        if head.tag >> 16 != 2:
            break
        if head.tag == _TRANSFER_SYNTAX and head.length <= 64:
            fp.seek(head.value)
            text = fp.read(head.length).decode("ascii", "replace").strip(" \0")
            syntax = UID(text) if text else None
        position = head.value + head.length
    if syntax is None:
        return Encoding(position, None, *_guess(fp, position))
    known = not syntax.is_private and syntax.is_transfer_syntax
    return Encoding(
        position,
        syntax,
        implicit=known and syntax.is_implicit_VR,
        little_endian=not known or syntax.is_little_endian,
    )


def _guess(fp: BinaryIO, position: int) -> tuple[bool, bool]:
    """(implicit, little_endian) of a dataset whose transfer syntax nobody wrote down."""
    fp.seek(position)
    first = fp.read(6)
    explicit = first[4:6] in _VRS
    # Datasets start with a low group number: 0008 little endian is 0800 in the other order.
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
    # A group length has four bytes: a file of zeros is no run of empty command elements.
    if head.tag & 0xFFFF == 0 and head.length != 4:
        return False
    return dictionary_has_tag(head.tag) and head.value + head.length <= size


def walk(fp: BinaryIO, size: int, encoding: Encoding, max_nesting: int) -> Structure:
    """What lies between the start of the dataset and the end of its pixel data.

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
            # Whatever is still open lacks its delimiter of 8 bytes.
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
            count, position = _fragments(fp, head.value, encoding.little_endian)
            return Structure(max(0, position - size), count)
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
    """Tag, VR and length of the element at ``position``; None at the end of the file."""
    order = "<" if little_endian else ">"
    fp.seek(position)
    data = fp.read(12)
    if len(data) < 8:
        return None
    group, element = struct.unpack_from(order + "HH", data)
    tag = group << 16 | element
    vr = data[4:6]
    # Some writers switch to implicit VR inside a sequence; delimiters have no VR at all.
    if implicit or group == 0xFFFE or vr not in _VRS:
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


def _fragments(fp: BinaryIO, position: int, little_endian: bool) -> tuple[int, int]:
    """(pieces after the offset table, end) of encapsulated pixel data (PS3.5 A.4)."""
    items = 0
    while (head := read_head(fp, position, implicit=True, little_endian=little_endian)) is not None:
        if head.tag != _ITEM or head.length == UNDEFINED:
            # The end, or nothing that this walk understands.
            return max(0, items - 1), head.value
        items += 1
        position = head.value + head.length
    return max(0, items - 1), position
