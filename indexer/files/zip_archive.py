"""Zip archives: their directory and their members, read within limits (APPNOTE 6.3.10).

Archives are not trusted: declared sizes are checked against limits before anything is unpacked,
and against the actual sizes while it is. Member names are never used as paths. They are decoded
as UTF-8 with surrogate escapes, whatever encoding the archive declares, so that every name can
be turned back into its exact bytes.

The standard library's reader is not used: one undecodable name makes it refuse all members,
it cuts names at a NUL, and it lists all members before their number can be checked.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits, ZipLimits
from indexer.files.locators import ZipMember, file_path, locator_of

__all__ = [
    "Entry",
    "is_zip",
    "member_label",
    "read_directory",
    "unpacked",
    "zip_locator",
    "zip_member",
]

_SCHEME = "zip+"
# A local header; the end record of an empty archive; two markers of split archives.
_SIGNATURES = (b"PK\3\4", b"PK\5\6", b"PK\7\x08", b"PK00")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_COMMENT_BYTES = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_STORED, _DEFLATED = 0, 8
_NAME_BYTES = 1024
_ENTRY_BYTES = 1024
"""Most bytes of the central directory per allowed member; usual entries take about 100."""
_CHUNK = 1024**2


@dataclass(frozen=True, slots=True)
class Entry:
    """A member as the archive's central directory describes it.

    packed, size: bytes before and after unpacking. offset: byte position of its local header.
    end: byte position of the next member, or of the directory.
    """

    name: str
    packed: int
    size: int
    crc: int
    method: int
    flags: int
    offset: int
    end: int

    @property
    def stamp(self) -> int:
        """63 bits that change with the content, but not when the archive is rewritten."""
        return self.crc << 31 | self.packed & 0x7FFFFFFF


_Listed = tuple[str, int, int, int, int, int, int]
"""The fields of an Entry without ``end``, which depends on the other members."""


@dataclass(frozen=True, slots=True)
class _Directory:
    """The central directory. start, length: in bytes. shift: to add to every offset, if data was
    put before the archive. declared: number of members."""

    start: int
    length: int
    shift: int
    declared: int


def zip_locator(archive: Path, name: str) -> str:
    """The URI of the member ``name`` of the archive at an absolute path."""
    return locator_of(_SCHEME + "file", os.fsencode(archive), _bytes(name))


def zip_member(locator: str) -> ZipMember:
    """The member of a locator that :func:`zip_locator` made."""
    archive, _, name = locator.removeprefix(_SCHEME).partition("#")
    return ZipMember(file_path(archive), _name(unquote_to_bytes(name)))


def member_label(archive: Path, name: str) -> str:
    """A member's label: the name of its folder, or at the top level the archive's name without
    suffix."""
    # Some tools for Windows separate with backslashes.
    parts = [part for part in re.split(r"[/\\]", _text(name)) if part not in ("", ".", "..")]
    label = parts[-2] if len(parts) > 1 else _text(archive.stem)
    return label.replace("\0", "\N{REPLACEMENT CHARACTER}")


def is_zip(fp: BinaryIO) -> bool:
    """Whether the content starts as a zip archive does."""
    fp.seek(0)
    return fp.read(4) in _SIGNATURES


def read_directory(fp: BinaryIO, size: int, limits: ZipLimits) -> dict[str, Entry]:
    """The members of an archive of ``size`` bytes by name, folders left out.

    Of several members with the same name the last one counts, as if all were unpacked in order:
    tools that update an archive append to it.

    Raises:
        ImageRefused: the whole archive is refused. TOO_LARGE: it exceeds ``limits``. DAMAGED: its
            directory is missing or inconsistent. UNREADABLE: its directory is encrypted, or the
            archive is split. NOT_AN_IMAGE: it has no members.
    """
    directory = _find_directory(fp, size)
    if directory.declared > limits.max_members:
        raise _too_many(directory.declared, limits)
    if directory.length > _ENTRY_BYTES * (limits.max_members + 1):
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"the archive's directory has {directory.length} bytes, far more than "
            f"{limits.max_members} members need, which is what zip.max_members allows",
        )
    found = list(_listed(fp, directory, limits))
    # Older tools write the number of members modulo 65536.
    if len(found) & 0xFFFF != directory.declared & 0xFFFF:
        raise _damaged(f"the archive declares {directory.declared} members and lists {len(found)}")
    total = sum(size for _, _, size, *_ in found)
    if total > limits.max_total_bytes:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"the archive declares {total} bytes unpacked; zip.max_total_bytes allows "
            f"{limits.max_total_bytes}",
        )
    members = {entry.name: entry for entry in _bounded(found, directory) if not _is_folder(entry)}
    if not members:
        raise ImageRefused(RefusalReason.NOT_AN_IMAGE, "the archive holds no files")
    return members


def unpacked(
    fp: BinaryIO, entry: Entry, limits: ImageLimits, zip_limits: ZipLimits
) -> Iterator[bytes]:
    """The content of a member in pieces, never more than the directory declares.

    Size and CRC-32 are checked after the last piece: the content is valid only if the iterator
    ends without an error.

    Raises:
        ImageRefused: TOO_LARGE: it declares more than the limits allow; comes before anything is
            unpacked. UNREADABLE: it is encrypted, or its compression method is not supported.
            DAMAGED or TRUNCATED: its content is not what the directory declares.
    """
    _check_declared(entry, limits, zip_limits)
    fp.seek(_data_start(fp, entry))
    pieces = _inflated(fp, entry.packed) if entry.method == _DEFLATED else _stored(fp, entry.packed)
    size = crc = 0
    for piece in pieces:
        size += len(piece)
        if size > entry.size:
            raise _damaged(f"it unpacks to more than the {entry.size} bytes that are declared")
        crc = zlib.crc32(piece, crc)
        yield piece
    if size < entry.size:
        raise _cut(f"{entry.size} bytes are declared and it unpacks to {size}")
    if crc != entry.crc:
        raise _damaged("its content does not agree with its CRC-32")


def _find_directory(fp: BinaryIO, size: int) -> _Directory:
    tail_start = max(0, size - _END.size - _COMMENT_BYTES)
    fp.seek(tail_start)
    tail = fp.read(_END.size + _COMMENT_BYTES)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise _damaged("the archive has no directory at its end; it may be cut off")
    _, disk, first, here, declared, length, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    if (found := _find_end_64(fp, end)) is not None:
        end, (_, _, _, _, disk, first, here, declared, length, start) = found
    if disk or first or here != declared:
        raise _split()
    shift = end - length - start
    if shift < 0:
        raise _damaged(f"the archive lacks at least {-shift} bytes before its directory's end")
    return _Directory(start + shift, length, shift, declared)


def _find_end_64(fp: BinaryIO, end: int) -> tuple[int, tuple[Any, ...]] | None:
    """Position and fields of the zip64 end record; None = the archive has none."""
    locator = end - _END_64_LOCATOR.size
    if locator < 0:
        return None
    fp.seek(locator)
    signature, _, named, disks = _fields(fp, _END_64_LOCATOR)
    if signature != b"PK\6\7":
        return None
    if disks > 1:
        raise _split()
    # At the position it names, or right before its locator if data was put before the archive.
    for position in (named, locator - _END_64.size):
        if 0 <= position <= locator - _END_64.size:
            fp.seek(position)
            fields = _fields(fp, _END_64)
            if fields[0] == b"PK\6\6":
                return position, fields
    raise _damaged("the archive's zip64 end record is missing")


def _listed(fp: BinaryIO, directory: _Directory, limits: ZipLimits) -> Iterator[_Listed]:
    """All members in the order of the directory."""
    fp.seek(directory.start)
    left = directory.length
    count = 0
    while left > 0:
        head = fp.read(_ENTRY.size)
        if head.startswith(b"PK\6\x08"):
            raise ImageRefused(
                RefusalReason.UNREADABLE,
                "the archive's directory is encrypted; unpack it and index the folder",
            )
        if len(head) < _ENTRY.size or not head.startswith(b"PK\1\2"):
            raise _damaged(f"the archive's directory makes no sense after {count} members")
        count += 1
        if count > limits.max_members:
            raise _too_many(count, limits)
        fields = _ENTRY.unpack(head)
        flags, method, crc, packed, size = *fields[3:5], *fields[7:10]
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        rest = fp.read(name_bytes + extra_bytes + comment_bytes)
        left -= _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        if left < 0:
            raise _damaged("the archive's directory ends in the middle of a member")
        if name_bytes > _NAME_BYTES:
            raise _damaged(f"the archive has a member whose name has {name_bytes} bytes")
        offset = fields[16]
        if _IN_EXTRA in (size, packed, offset):
            extra = rest[name_bytes : name_bytes + extra_bytes]
            size, packed, offset = _zip_64(extra, (size, packed, offset))
        name = _name(rest[:name_bytes])
        yield name, packed, size, crc, method, flags, offset + directory.shift


def _zip_64(extra: bytes, numbers: tuple[int, int, int]) -> Iterator[int]:
    """Size, packed size and offset; those of more than 32 bits come from the extra field (APPNOTE
    4.5.3)."""
    position = 0
    wide: Iterator[int] = iter(())
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            count = min(length, len(extra) - position) // 8
            wide = iter(struct.unpack_from(f"<{count}Q", extra, position))
            break
        position += length
    return (next(wide, number) if number == _IN_EXTRA else number for number in numbers)


def _bounded(found: list[_Listed], directory: _Directory) -> Iterator[Entry]:
    """The members in the same order, each with its end.

    A member that overlaps the next one is refused when it is read. So no byte is unpacked twice:
    overlapping members are how zip bombs unpack from kilobytes to terabytes.
    """
    offsets = [offset for *_, offset in found]
    ends = [directory.start] * len(found)
    for number, following in pairwise(sorted(range(len(found)), key=offsets.__getitem__)):
        ends[number] = min(offsets[following], directory.start)
    return (Entry(*listed, end) for listed, end in zip(found, ends, strict=True))


def _is_folder(entry: Entry) -> bool:
    """Whether a member is a folder: its name ends in a separator and it has no content."""
    return entry.size == 0 and entry.name.endswith(("/", "\\"))


def _check_declared(entry: Entry, limits: ImageLimits, zip_limits: ZipLimits) -> None:
    if entry.flags & _ENCRYPTED:
        raise ImageRefused(
            RefusalReason.UNREADABLE,
            "it is encrypted; unpack the archive with its password and index the folder",
        )
    if entry.method not in (_STORED, _DEFLATED):
        raise ImageRefused(
            RefusalReason.UNREADABLE,
            f"it is packed by method {entry.method}, and only stored and deflated members can be "
            "read; unpack the archive and index the folder",
        )
    if entry.size > limits.max_file_bytes:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"it unpacks to {entry.size} bytes and limits.max_file_bytes allows "
            f"{limits.max_file_bytes}",
        )
    if entry.size > entry.packed * zip_limits.max_ratio:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"{entry.packed} bytes unpack to {entry.size}; zip.max_ratio allows "
            f"{zip_limits.max_ratio:g} times as many",
        )


def _data_start(fp: BinaryIO, entry: Entry) -> int:
    if entry.offset + _LOCAL.size > entry.end:
        raise _overlaps()
    fp.seek(entry.offset)
    signature, *_, name_bytes, extra_bytes = _fields(fp, _LOCAL)
    if signature != b"PK\3\4":
        raise _damaged("the archive has no member where its directory says")
    start: int = entry.offset + _LOCAL.size + name_bytes + extra_bytes
    if start + entry.packed > entry.end:
        raise _overlaps()
    if fp.read(name_bytes) != _bytes(entry.name):
        raise _damaged("the archive has another member where its directory says")
    return start


def _stored(fp: BinaryIO, packed: int) -> Iterator[bytes]:
    while packed and (piece := fp.read(min(packed, _CHUNK))):
        packed -= len(piece)
        yield piece


def _inflated(fp: BinaryIO, packed: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while not inflater.eof:
        source = inflater.unconsumed_tail
        if not source:
            source = fp.read(min(packed, _CHUNK))
            packed -= len(source)
        try:
            piece = inflater.decompress(source, _CHUNK)
        except zlib.error:
            raise _damaged("its packed content is corrupt") from None
        # Without more input the inflater may still return buffered output.
        if not source and not piece:
            raise _cut("its packed content has no end")
        yield piece


def _fields(fp: BinaryIO, form: struct.Struct) -> tuple[Any, ...]:
    data = fp.read(form.size)
    if len(data) < form.size:
        raise _cut("the archive shrank while it was read")
    return form.unpack(data)


def _name(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: str) -> str:
    """The name in valid Unicode: if it is not UTF-8, it is taken as code page 437 (APPNOTE D)."""
    try:
        return _bytes(name).decode("utf-8")
    except UnicodeDecodeError:
        return _bytes(name).decode("cp437")


def _damaged(detail: str) -> ImageRefused:
    return ImageRefused(RefusalReason.DAMAGED, detail)


def _cut(detail: str) -> ImageRefused:
    return ImageRefused(RefusalReason.TRUNCATED, detail)


def _overlaps() -> ImageRefused:
    return _damaged("it overlaps with another member or with the archive's directory")


def _split() -> ImageRefused:
    return ImageRefused(
        RefusalReason.UNREADABLE,
        "the file is one part of a split archive; join the parts and index the whole",
    )


def _too_many(members: int, limits: ZipLimits) -> ImageRefused:
    return ImageRefused(
        RefusalReason.TOO_LARGE,
        f"the archive has {members} members or more; zip.max_members allows {limits.max_members}",
    )
