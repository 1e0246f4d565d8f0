"""DICOMDIRs: which files of a medium belong to its file-set (PS3.3 annex F, PS3.10 section 8).

The directory records form a tree by byte offsets, which writers get wrong and which an attacker
can make circular. All records also lie in one flat sequence. That is read from start to end and
no offset is followed, so the time is bounded by the size of the file. Of each record only the
two elements needed here are read; this runs in the main process, so no DICOM parser is used.
"""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import MediaStorageDirectoryStorage

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.files.dicom_structure import UNDEFINED, Head, has_preamble, read_head
from indexer.files.limits import check_file_size

__all__ = ["FileSet", "file_ids", "is_dicomdir"]

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SOP_CLASS = 0x00020002
_RECORDS = 0x00041220
_IN_USE = 0x00041410
_FILE_ID = 0x00041500
_PREAMBLE_BYTES = 132
_META_BYTES = 64 * 1024
"""The file meta information takes some hundred bytes."""
_FILE_ID_BYTES = 1024
"""The standard allows 8 components of 8 characters; many writers take more."""
_MAX_RECORDS = 1_000_000
_MAX_HEADS = 20 * _MAX_RECORDS


def is_dicomdir(fp: BinaryIO) -> bool:
    """Whether the content is a Media Storage Directory."""
    meta = _meta(fp)
    for head in _meta_elements(meta):
        if head.tag == _SOP_CLASS:
            meta.seek(head.value)
            uid = meta.read(min(head.length, 64)).rstrip(b"\0 ")
            return uid == MediaStorageDirectoryStorage.encode()
    return False


def file_ids(fp: BinaryIO, size: int, limits: ImageLimits) -> list[str]:
    """The Referenced File IDs (0004,1500) of all records in use, each once, in their order.

    Raises:
        ImageRefused: EMPTY_FILE, TOO_LARGE, TRUNCATED or DAMAGED: the records cannot be read.
            NO_PIXELS: it refers to no files.
    """
    check_file_size(size, limits)
    found = list(dict.fromkeys(_Records(fp, size).file_ids()))
    if not found:
        raise ImageRefused(RefusalReason.NO_PIXELS, "the DICOMDIR refers to no files")
    return found


class FileSet:
    """The files of a medium, found by their File IDs.

    Args:
        root: the folder in which the DICOMDIR lies.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # By folder: its names, and its names by their normalised form (see _plain).
        self._listings: dict[Path, tuple[set[str], dict[str, str]]] = {}

    def path(self, file_id: str) -> Path | None:
        """The path of the file, which need not exist; None if it lies outside the medium.

        Copies of a medium may differ from the DICOMDIR in letter case, or have the version
        numbers of ISO 9660: without "IMG001", a component also matches "img001" or "img001.;1".
        """
        if file_id.startswith(("/", "\\")) or "\0" in file_id:
            return None
        # Some writers use the separator of their own file system.
        components = [part.strip(" ") for part in re.split(r"[\\/]", file_id)]
        components = [part for part in components if part not in ("", ".")]
        if not components or ".." in components:
            return None
        path = self._root
        for component in components:
            path /= self._as_spelled(path, component)
        return path

    def _as_spelled(self, folder: Path, component: str) -> str:
        if folder not in self._listings:
            self._listings[folder] = _listing(folder)
        names, plain = self._listings[folder]
        return component if component in names else plain.get(_plain(component), component)


def _listing(folder: Path) -> tuple[set[str], dict[str, str]]:
    try:
        names = sorted(os.listdir(folder), reverse=True)  # noqa: PTH208 - names alone are wanted
    except OSError:
        names = []
    return set(names), {_plain(name): name for name in names}


def _plain(name: str) -> str:
    return re.sub(r"\.?(;\d+)?\Z", "", name.upper(), count=1)


class _Records:
    """The directory records of a DICOMDIR, read in the order of the file."""

    def __init__(self, fp: BinaryIO, size: int) -> None:
        self._fp = fp
        self._size = size
        meta = _meta(fp)
        self._start = 0
        for head in _meta_elements(meta):
            self._start = head.value + head.length
        meta.seek(self._start)
        first = meta.read(6)
        # The standard requires explicit VR little endian; not all writers comply.
        self._little_endian = first.startswith(b"\x04\0")
        self._implicit = not (first[4:].isalpha() and first[4:].isupper())
        self._heads = 0

    def file_ids(self) -> Iterator[str]:
        """The File IDs of the records in use."""
        sequence = self._sequence()
        position, end = sequence.value, self._end(sequence)
        records = 0
        while end is None or position < end:
            item = self._head(position)
            if item.tag == _SEQUENCE_END and end is None:
                return
            if item.tag != _ITEM:
                raise _damaged("there is something else among its directory records")
            records += 1
            if records > _MAX_RECORDS:
                raise _too_large(f"more than {_MAX_RECORDS} directory records")
            file_id, position = self._record(item)
            if file_id:
                yield file_id

    def _sequence(self) -> Head:
        position = self._start
        while True:
            head = self._head(position)
            if head.tag == _RECORDS:
                return head
            if head.tag > _RECORDS:
                raise _damaged("it has no directory records")
            position = self._past(head)

    def _record(self, item: Head) -> tuple[str, int]:
        """A record's File ID, "" if it has none or is not in use; and the position after it."""
        position, end = item.value, self._end(item)
        file_id, in_use = "", True
        while end is None or position < end:
            head = self._head(position)
            if head.tag == _ITEM_END and end is None:
                position = head.value
                break
            if head.tag in (_IN_USE, _FILE_ID):
                value = self._value(head)
                if head.tag == _FILE_ID:
                    file_id = os.fsdecode(value.strip(b" \0"))
                else:
                    in_use = value != b"\0\0"
            elif head.tag > _FILE_ID and end is not None:
                # Elements are in the order of their tags: the keys that follow are skipped.
                break
            position = self._past(head)
        return (file_id if in_use else ""), position if end is None else end

    def _head(self, position: int) -> Head:
        self._heads += 1
        if self._heads > _MAX_HEADS:
            raise _too_large(f"more than {_MAX_HEADS} elements")
        head = read_head(self._fp, position, self._implicit, self._little_endian)
        if head is None:
            raise _cut(self._size)
        return head

    def _end(self, head: Head) -> int | None:
        """The position after the value; None = its length is undefined, a delimiter ends it."""
        if head.length == UNDEFINED:
            return None
        end = head.value + head.length
        if end > self._size:
            raise _cut(self._size)
        return end

    def _past(self, head: Head) -> int:
        """The position after an element, whatever is nested in it."""
        end = self._end(head)
        if end is not None:
            return end
        position, opened = head.value, 1
        while opened:
            inner = self._head(position)
            position = inner.value
            if inner.tag in (_ITEM_END, _SEQUENCE_END):
                opened -= 1
            elif inner.length == UNDEFINED:
                opened += 1
            else:
                position += inner.length
        return position

    def _value(self, head: Head) -> bytes:
        if head.length > _FILE_ID_BYTES:
            raise _damaged(f"one of its File IDs has {head.length} bytes")
        self._fp.seek(head.value)
        return self._fp.read(head.length)


def _meta(fp: BinaryIO) -> BinaryIO:
    fp.seek(0)
    return io.BytesIO(fp.read(_META_BYTES))


def _meta_elements(meta: BinaryIO) -> Iterator[Head]:
    position = _PREAMBLE_BYTES if has_preamble(meta) else 0
    while (head := read_head(meta, position, implicit=False, little_endian=True)) is not None:
        if head.tag >> 16 != 2:
            return
        yield head
        position = head.value + head.length


def _cut(size: int) -> ImageRefused:
    return ImageRefused(
        RefusalReason.TRUNCATED,
        f"the DICOMDIR ends in its records, after {size} bytes; index its folder instead",
    )


def _damaged(detail: str) -> ImageRefused:
    return ImageRefused(
        RefusalReason.DAMAGED, f"the DICOMDIR is damaged: {detail}; index its folder instead"
    )


def _too_large(what: str) -> ImageRefused:
    return ImageRefused(
        RefusalReason.TOO_LARGE, f"the DICOMDIR has {what}; index its folder instead"
    )
