"""Reads the elements of a dataset that are asked for, in one pass that ends at the pixel data.

The pass is iterative and steps over what nobody asks for, private elements above all, by tag, VR
and length: its memory stays bounded even if a file nests ten thousand deep or declares
terabytes. Elements that are asked for, and what is nested in them, become a pydicom Dataset, whose
values are converted on access.

The content of an element of VR UN is implicit VR little endian (PS3.5 6.2.2), whatever the transfer
syntax. Whether an item is written in implicit VR is decided once, by its first element, and never
by single lengths: any two bytes of a length may look like a VR.
"""

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import (
    DataElement,
    RawDataElement,
    convert_raw_data_element,
    empty_value_for_VR,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from engine.errors import ImageRefused, RefusalReason
from indexer.files.dicom_structure import Encoding, Head, Structure, fragments_at
from indexer.files.element_heads import (
    EXPLICIT_VRS,
    LONG_VRS,
    UNDEFINED,
    implicit_fits,
    odd_head,
)

__all__ = ["Parsed", "parse_dataset"]

_DELIMITERS = 0xFFFE
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_END_OF_SEQUENCE = {True: b"\xfe\xff\xdd\xe0", False: b"\xff\xfe\xe0\xdd"}
_CHARACTER_SET = 0x00080005
_BLOCK = 16 * 1024
_CHUNK = 1024**2
_EXPLICIT = {True: struct.Struct("<HH2sH").unpack_from, False: struct.Struct(">HH2sH").unpack_from}
_IMPLICIT = {True: struct.Struct("<HHL").unpack_from, False: struct.Struct(">HHL").unpack_from}
_LENGTH = {True: struct.Struct("<L").unpack_from, False: struct.Struct(">L").unpack_from}
_VR_NAMES = {vr: vr.decode("ascii") for vr in EXPLICIT_VRS}

_Charset = str | list[str]


@dataclass(frozen=True, slots=True)
class Parsed:
    """The result of :func:`parse_dataset`.

    header: the elements that were asked for. head: of the element that ended the pass; None = the
    dataset ended first.
    """

    header: Dataset
    head: Head | None
    structure: Structure


@dataclass(slots=True)
class _Open:
    """A sequence or an item whose end was not reached yet; the dataset itself is an item.

    end: where it ends; None = at its delimiter. bound: the end of the innermost container that
    has a length, or of the file. undecided: its first element tells whether it is implicit.
    elements, items: what is kept of an item, or a sequence; None = it is stepped over.
    charset: the character set of its text; inherited: that of what it lies in.
    """

    is_sequence: bool
    end: int | None
    bound: int
    implicit: bool
    little_endian: bool
    undecided: bool = False
    tag: int = 0
    start: int = 0
    elements: dict[BaseTag, "RawDataElement | _Open"] | None = None
    items: "list[_Open] | None" = None
    charset: _Charset = default_encoding
    inherited: _Charset = default_encoding


def parse_dataset(
    fp: BinaryIO,
    size: int,
    encoding: Encoding,
    wanted: Container[int],
    stop_at: Container[int],
    max_nesting: int,
) -> Parsed:
    """The elements of a dataset up to the first with a tag in ``stop_at``.

    Args:
        size: of the file in bytes.
        wanted: tags of the elements to keep. Sequences are kept with all standard elements in
            them.

    Raises:
        ImageRefused: NESTED_TOO_DEEP when sequences nest deeper than ``max_nesting``.
    """
    return _Pass(fp, size, encoding, wanted, stop_at, max_nesting).parsed()


class _Pass:
    """One pass over a dataset. Every step goes on by at least eight bytes."""

    def __init__(
        self,
        fp: BinaryIO,
        size: int,
        encoding: Encoding,
        wanted: Container[int],
        stop_at: Container[int],
        max_nesting: int,
    ) -> None:
        self._fp = fp
        self._size = size
        self._wanted = wanted
        self._stop_at = stop_at
        self._max_nesting = max_nesting
        self._position = encoding.start
        self._depth = 0
        root = _Open(False, None, size, encoding.implicit, encoding.little_endian, elements={})
        # What is open, the dataset itself first.
        self._stack = [root]
        # The part of the file that starts at _block_start.
        self._block, self._block_start = b"", 0

    def parsed(self) -> Parsed:
        root, stack = self._stack[0], self._stack
        while True:
            top = stack[-1]
            while top.end is not None and self._position >= top.end:
                self._close()
                top = stack[-1]
            at = self._position - self._block_start
            if at < 0 or at + 12 > len(self._block):
                self._load()
                at = 0
                if len(self._block) < 8:
                    return self._ended(None, Structure(self._missing()))
            if top.undecided:
                self._decide(top)
            group, number, length = _IMPLICIT[top.little_endian](self._block, at)
            tag = group << 16 | number
            if group == _DELIMITERS:
                self._delimiter(top, tag, length)
                continue
            if top.is_sequence:
                # Neither an item nor the end: the delimiter is missing, or the rest is no items.
                self._position = self._position if top.end is None else top.end
                self._close()
                continue
            vr, length, value = self._vr(top, at, length)
            if value > self._size:
                self._position = value
                return self._ended(None, Structure(value - self._size))
            if top is root and tag in self._stop_at:
                return self._stopped(Head(tag, vr, length, value), top.little_endian)
            kept = top.elements
            if kept is not None and (tag not in self._wanted if top is root else group & 1):
                kept = None
            if self._is_sequence(top, tag, vr, length, value):
                self._open(top, tag, vr, length, value, keep=kept is not None)
            elif length == UNDEFINED:
                self._position = self._past_undefined(value, top.little_endian)
            else:
                if kept is not None:
                    kept[BaseTag(tag)] = self._raw(top, tag, vr, length, value)
                self._position = value + length

    def _load(self) -> None:
        self._fp.seek(self._position)
        self._block, self._block_start = self._fp.read(_BLOCK), self._position

    def _at(self, position: int) -> bytes:
        """The 12 bytes at ``position``; fewer at the end of the file."""
        self._fp.seek(position)
        return self._fp.read(12)

    def _vr(self, top: _Open, at: int, length: int) -> tuple[bytes | None, int, int]:
        """VR, length and position of the value of the element at ``at`` of the block. The VR is
        None when it is implicit or none of the standard's.

        Args:
            length: as implicit VR has it.
        """
        if top.implicit:
            return None, length, self._position + 8
        block = self._block
        vr = block[at + 4 : at + 6]
        if vr in EXPLICIT_VRS:
            if vr not in LONG_VRS:
                short: int = _EXPLICIT[top.little_endian](block, at)[3]
                return vr, short, self._position + 8
            if at + 12 > len(block):
                return vr, 0, self._position + 12
            if block[at + 6 : at + 8] == b"\0\0":
                return vr, _LENGTH[top.little_endian](block, at + 8)[0], self._position + 12
        odd = odd_head(self._at, self._position, top.bound, little_endian=top.little_endian)
        return vr if vr in EXPLICIT_VRS else None, odd.length, odd.value

    def _is_sequence(self, top: _Open, tag: int, vr: bytes | None, length: int, value: int) -> bool:
        if vr == b"SQ":
            return True
        if vr is not None and vr != b"UN":
            return False
        if vr == b"UN" and length == UNDEFINED:
            return True
        named = _vr_of(tag)
        if named is not None or length != UNDEFINED:
            return named == "SQ"
        inner = self._at(value)
        return len(inner) >= 8 and _IMPLICIT[top.little_endian](inner)[:2] == (0xFFFE, 0xE000)

    def _open(
        self, top: _Open, tag: int, vr: bytes | None, length: int, value: int, *, keep: bool
    ) -> None:
        self._deeper()
        end = None if length == UNDEFINED else value + length
        unknown = vr == b"UN"
        self._stack.append(
            _Open(
                is_sequence=True,
                end=end,
                bound=top.bound if end is None else min(end, top.bound),
                implicit=top.implicit or unknown,
                little_endian=top.little_endian or unknown,
                undecided=False,
                tag=tag,
                start=value,
                items=[] if keep else None,
                charset=top.charset,
            )
        )
        self._position = value

    def _delimiter(self, top: _Open, tag: int, length: int) -> None:
        self._position += 8
        if tag == _ITEM:
            end = None if length == UNDEFINED else self._position + length
            if top.is_sequence:
                self._open_item(top, end)
            elif end is None:
                # An item without sequence.
                self._deeper()
                self._open_item(top, end)
            else:
                self._position = end
        elif tag == _ITEM_END:
            if not top.is_sequence and top.end is None and len(self._stack) > 1:
                self._close()
        elif tag == _SEQUENCE_END:
            if top.is_sequence:
                if top.end is None:
                    self._close()
            elif top.end is None and len(self._stack) > 2 and self._stack[-2].end is None:
                # The item has no delimiter of its own.
                self._close()
                if self._stack[-1].is_sequence:
                    self._close()
        # Delimiters of what has a length, or was never opened, are stepped over.

    def _open_item(self, top: _Open, end: int | None) -> None:
        self._stack.append(
            _Open(
                is_sequence=False,
                end=end,
                bound=top.bound if end is None else min(end, top.bound),
                implicit=top.implicit,
                little_endian=top.little_endian,
                # Nothing in implicit VR is explicit, but for what was called unknown.
                undecided=not self._stack[0].implicit,
                elements={} if top.items is not None else None,
                charset=top.charset,
                inherited=top.charset,
            )
        )

    def _decide(self, item: _Open) -> None:
        """Whether an item is written in implicit VR: as the standard has it, unless its first
        element makes sense only the other way."""
        item.undecided = False
        data = self._at(self._position)
        explicit = data[4:6] in EXPLICIT_VRS
        if explicit == item.implicit:
            fits = implicit_fits(
                self._at, self._position, item.bound, little_endian=item.little_endian
            )
            item.implicit = fits

    def _close(self) -> None:
        closed = self._stack.pop()
        above = self._stack[-1]
        if closed.is_sequence:
            self._depth -= 1
            if closed.items is not None and above.elements is not None:
                above.elements[BaseTag(closed.tag)] = closed
        elif not above.is_sequence:
            self._depth -= 1
        elif closed.elements is not None and above.items is not None:
            above.items.append(closed)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > self._max_nesting:
            raise ImageRefused(
                RefusalReason.NESTED_TOO_DEEP,
                f"sequences nest more than {self._max_nesting} deep, "
                "which is what limits.max_nesting allows",
            )

    def _raw(
        self, top: _Open, tag: int, vr: bytes | None, length: int, value: int
    ) -> RawDataElement:
        unknown = vr == b"UN"
        # None: pydicom looks the VR up.
        name = None if vr is None or unknown else _VR_NAMES[vr]
        at = value - self._block_start
        if length == 0:
            data = empty_value_for_VR(name, raw=True)
        elif at + length <= len(self._block):
            data = self._block[at : at + length]
        else:
            self._fp.seek(value)
            data = self._fp.read(min(length, self._size - value))
        raw = RawDataElement(
            BaseTag(tag),
            name,
            length,
            data,  # type: ignore[arg-type]  # of empty values, too, it is bytes or None
            value,
            top.implicit or unknown,
            top.little_endian or unknown,
        )
        if tag == _CHARACTER_SET:
            top.charset = _charset(raw)
        return raw

    def _past_undefined(self, value: int, little_endian: bool) -> int:
        """The position after a value of undefined length that is no sequence."""
        first = self._at(value)
        group = _IMPLICIT[little_endian](first)[0] if len(first) >= 8 else _DELIMITERS
        if group == _DELIMITERS:
            return fragments_at(self._fp, value, little_endian)[1]
        # Not encapsulated: it ends where the delimiter first appears.
        delimiter = _END_OF_SEQUENCE[little_endian]
        position, overlap = value, len(delimiter) - 1
        while True:
            self._fp.seek(position)
            chunk = self._fp.read(_CHUNK)
            if (found := chunk.find(delimiter)) >= 0:
                return position + found + 8
            if len(chunk) <= overlap:
                return self._size + 8
            position += len(chunk) - overlap

    def _stopped(self, head: Head, little_endian: bool) -> Parsed:
        if head.length != UNDEFINED:
            return self._ended(head, Structure())
        found, position = fragments_at(self._fp, head.value, little_endian)
        return self._ended(head, Structure(max(0, position - self._size), found))

    def _missing(self) -> int:
        if self._position > self._size:
            return self._position - self._size
        # Each container that is still open lacks its delimiter, or its end.
        return sum(
            8 if one.end is None else max(0, one.end - self._size) for one in self._stack[1:]
        )

    def _ended(self, head: Head | None, structure: Structure) -> Parsed:
        while len(self._stack) > 1:
            self._close()
        return Parsed(_dataset(self._stack[0]), head, structure)


class _Items(Sequence):
    """Items that become datasets when they are asked for: of the functional groups of thousands
    of frames only a few are."""

    _items: list[_Open | Dataset]

    def __init__(self, items: list[_Open]) -> None:
        super().__init__()
        self._items = list(items)

    @property
    def _list(self) -> list[Any]:
        """All items as datasets: what a sequence compares, copies and changes."""
        for index in range(len(self._items)):
            self._item(index)
        return self._items

    @_list.setter
    def _list(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Dataset]:
        return (self._item(index) for index in range(len(self._items)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._item(one) for one in range(*index.indices(len(self._items)))]
        return self._item(index)

    def _item(self, index: int) -> Dataset:
        found = self._items[index]
        if isinstance(found, _Open):
            found = self._items[index] = _dataset(found)
        return found


def _dataset(item: _Open) -> Dataset:
    elements: dict[BaseTag, RawDataElement | DataElement] = {
        tag: _sequence(tag, element) if isinstance(element, _Open) else element
        for tag, element in (item.elements or {}).items()
    }
    made = Dataset(elements, parent_encoding=item.inherited)
    made.set_original_encoding(item.implicit, item.little_endian, item.charset)
    return made


def _sequence(tag: BaseTag, closed: _Open) -> DataElement:
    return DataElement(
        tag,
        "SQ",
        _Items(closed.items or []),
        closed.start,
        is_undefined_length=closed.end is None,
    )


def _charset(raw: RawDataElement) -> _Charset:
    """The Python codecs for a Specific Character Set (0008,0005); what is unknown is Latin 1."""
    try:
        return convert_encodings(convert_raw_data_element(raw).value)
    except (LookupError, TypeError, ValueError):
        return default_encoding


@lru_cache(maxsize=8192)
def _vr_of(tag: int) -> str | None:
    """The VR that the dictionary has for ``tag``; None = it has none."""
    return dictionary_VR(tag) if dictionary_has_tag(tag) else None
