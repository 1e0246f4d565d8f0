"""Tar archives, plain or packed as a whole: their members, read within limits (POSIX.1-2001 pax).

Archives are not trusted, and nothing is unpacked to a path that an archive names: names only tell
members apart. They are decoded as UTF-8 with surrogate escapes, so that every name can be turned
back into its exact bytes. Links, devices and the like are listed, with why they cannot be read.

A packed archive has no directory, and can be read only from its start: the stream of the archive
that was read last is kept, so that members in their order cost one pass.
"""

import atexit
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote_to_bytes

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits, ZipLimits
from indexer.files.compressed import UnpackedStream, is_compressed
from indexer.files.locators import TarMember, file_path, locator_of
from indexer.files.open_file import BoundedReader, open_file

__all__ = [
    "TarEntry",
    "is_tar",
    "list_tar",
    "tar_content",
    "tar_locator",
    "tar_member",
    "tar_members",
]

_SCHEME = "tar+"
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_PAX_BYTES = 1024**2
_NAME_BYTES = 4096
_CHUNK = 1024**2
_FILES = (b"0", b"\0", b"7")
_FOLDER = b"5"
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
_NOT_FILES = {
    **dict.fromkeys((b"1", b"2"), "a link, and links in archives are not followed"),
    **dict.fromkeys((b"3", b"4", b"6"), "a device or a pipe"),
    b"S": "a file with holes (GNU sparse)",
    b"M": "the rest of a file that began in another volume",
}
_STEPPED_OVER = (b"g", b"K", b"V", b"D", b"N")
"""Headers and the like, which are no members."""


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A member as its header describes it.

    start: position of its content in the unpacked archive. size: in bytes. checksum: of its
    header. modified: seconds since 1970, 0 = not told. problem: why it cannot be read; "" = it can.
    """

    name: str
    start: int
    size: int
    checksum: int
    modified: int
    problem: str


class _Source(Protocol):
    """Where headers and contents come from, in order."""

    position: int

    def read(self, size: int) -> bytes: ...
    def exactly(self, size: int) -> bytes: ...
    def skip(self, size: int) -> bool: ...


class _Plain:
    """A plain file as a source; see UnpackedStream."""

    def __init__(self, fp: BinaryIO, size: int) -> None:
        self._fp = fp
        self._size = size
        self.position = 0

    def read(self, size: int) -> bytes:
        self._fp.seek(self.position)
        found = self._fp.read(size)
        self.position += len(found)
        return found

    exactly = read

    def skip(self, size: int) -> bool:
        self.position += size
        return self.position <= self._size


def tar_locator(archive: Path, name: str) -> str:
    """The URI of the member ``name`` of the archive at an absolute path."""
    return locator_of(_SCHEME + "file", os.fsencode(archive), _bytes(name))


def is_tar(fp: BinaryIO, size: int, limits: ZipLimits) -> bool:
    """Whether the content is a tar archive, plain or packed."""
    try:
        start = _source(fp, size, limits).exactly(_BLOCK)
    except ImageRefused:
        return False
    return len(start) == _BLOCK and start != _ZEROS and _checksum(start) is not None


def list_tar(fp: BinaryIO, size: int, limits: ZipLimits) -> dict[str, TarEntry]:
    """The members of an archive of ``size`` bytes by name, in their order, folders left out.

    Of several members with the same name the last one counts, as if all were unpacked in order.

    Raises:
        ImageRefused: the whole archive is refused. TOO_LARGE: it exceeds ``limits``. DAMAGED or
            TRUNCATED: its headers make no sense, or it ends in a member. NOT_AN_IMAGE: it has no
            members.
    """
    members: dict[str, TarEntry] = {}
    total = 0
    for count, entry in enumerate(_headers(_source(fp, size, limits)), 1):
        total += entry.size
        if count > limits.max_members:
            raise ImageRefused(
                RefusalReason.TOO_LARGE,
                f"the archive has {count} members or more; zip.max_members allows "
                f"{limits.max_members}",
            )
        if total > limits.max_total_bytes:
            raise ImageRefused(
                RefusalReason.TOO_LARGE,
                f"the archive declares {total} bytes or more; zip.max_total_bytes allows "
                f"{limits.max_total_bytes}",
            )
        # Where the last of them stands, so that members are read in order.
        members.pop(entry.name, None)
        members[entry.name] = entry
    found = {name: entry for name, entry in members.items() if not name.endswith("/")}
    if not found:
        raise ImageRefused(RefusalReason.NOT_AN_IMAGE, "the archive holds no files")
    return found


def tar_members(path: Path, limits: ZipLimits) -> dict[str, TarEntry]:
    """Like :func:`list_tar`, for the file at ``path``; what was found is kept for a while.

    Raises:
        ImageRefused: the whole archive is refused. OSError: it cannot be opened.
    """
    with open_file(path) as fp:
        found = _members(path, fp.stamp(), limits)
    if isinstance(found, ImageRefused):
        # A new exception: one that is raised again keeps growing its traceback.
        raise ImageRefused(found.reason, found.detail)
    return found


def tar_member(locator: str, limits: ZipLimits) -> TarMember | ImageRefused:
    """The member of a locator that :func:`tar_locator` made, or why it cannot be read."""
    archive, _, quoted = locator.removeprefix(_SCHEME).partition("#")
    path, name = file_path(archive), _name(unquote_to_bytes(quoted))
    try:
        entry = tar_members(path, limits).get(name)
    except OSError as error:
        return ImageRefused(RefusalReason.UNREADABLE, os.strerror(error.errno or 0))
    except ImageRefused as refused:
        return refused
    if entry is None:
        return _gone()
    if entry.problem:
        return ImageRefused(
            RefusalReason.UNREADABLE,
            f"it is {entry.problem}; unpack the archive and index the folder",
        )
    return TarMember(path, name, entry.start, entry.size, entry.checksum)


def tar_content(member: TarMember, limits: ImageLimits, zip_limits: ZipLimits) -> Iterator[bytes]:
    """The content of a member in pieces.

    Raises:
        ImageRefused: TOO_LARGE: it is larger than ``limits`` allow; comes before anything is
            read. UNREADABLE: the archive has changed. DAMAGED or TRUNCATED: it does not unpack.
    """
    if member.size > limits.max_file_bytes:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"it has {member.size} bytes and limits.max_file_bytes allows {limits.max_file_bytes}",
        )
    source = _opened.source(member.archive, member.start - _BLOCK, zip_limits)
    if _checksum(source.exactly(_BLOCK)) != member.checksum:
        raise _gone()
    left = member.size
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise _cut()
        left -= len(piece)
        yield piece


class _Opened:
    """The archive that was read last, and how far it was."""

    def __init__(self) -> None:
        self._fp: BoundedReader | None = None
        self._key: tuple[object, ...] = ()
        self._source: _Source | None = None

    def source(self, path: Path, position: int, limits: ZipLimits) -> _Source:
        """The archive at ``position`` of what it unpacks to."""
        fp = open_file(path)
        key = (path, fp.stamp(), limits)
        if self._fp is not None and self._source is not None and key == self._key:
            fp.close()
        else:
            self.close()
            self._fp, self._key, self._source = fp, key, _source(fp, fp.size, limits)
        source = self._source
        if isinstance(source, _Plain) or source.position > position:
            source = self._source = _source(self._fp, self._fp.size, limits)
        try:
            reached = source.skip(position - source.position)
        except BaseException:
            self.close()
            raise
        if not reached:
            raise _cut()
        return source

    def close(self) -> None:
        if self._fp is not None:
            self._fp.close()
        self._fp = self._source = None


_opened = _Opened()
atexit.register(_opened.close)


# Cached: members are asked for one by one, and listing them may take a pass over the archive.
@lru_cache(maxsize=2)
def _members(
    path: Path, stamp: tuple[int, ...], limits: ZipLimits
) -> dict[str, TarEntry] | ImageRefused:
    """The archive's members by name, or why it is refused. ``stamp`` makes a changed file miss the
    cache."""
    with open_file(path) as fp:
        if fp.stamp() != stamp:
            return _gone()
        try:
            return list_tar(fp, fp.size, limits)
        except ImageRefused as refused:
            return refused


def _source(fp: BinaryIO, size: int, limits: ZipLimits) -> _Source:
    return UnpackedStream(fp, size, limits) if is_compressed(fp) else _Plain(fp, size)


def _headers(source: _Source) -> Iterator[TarEntry]:
    """The members, in order; also folders, whose names end in a slash."""
    told: dict[bytes, bytes] = {}
    while True:
        block = source.exactly(_BLOCK)
        if not block or block == _ZEROS:
            # Its end is two blocks of zeros; not all writers write them.
            return
        checksum = _checksum(block)
        if len(block) < _BLOCK:
            raise _cut()
        if checksum is None:
            raise _damaged("one of its headers makes no sense")
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in (b"x", b"X", b"L"):
            if size > _PAX_BYTES:
                raise _damaged(f"one of its headers has {size} bytes")
            content = source.exactly(size)
            if len(content) < size:
                raise _cut()
            source.skip(-size % _BLOCK)
            told |= {b"path": content.split(b"\0")[0]} if kind == b"L" else _records(content)
            continue
        if kind not in _STEPPED_OVER:
            size = _decimal(told[b"size"]) if b"size" in told else size
            yield _entry(block, kind, size, checksum, told, source.position)
            told = {}
            if kind in _WITHOUT_CONTENT:
                # Links may tell the size of what they link to.
                size = 0
        if not source.skip(size):
            raise _cut()
        # Some writers leave out what fills the last block.
        source.skip(-size % _BLOCK)


def _entry(
    block: bytes, kind: bytes, size: int, checksum: int, told: dict[bytes, bytes], start: int
) -> TarEntry:
    name = told.get(b"path")
    if name is None:
        name = block[:100].split(b"\0")[0]
        prefix = block[345:500].split(b"\0")[0] if block[257:262] == b"ustar" else b""
        # GNU tar keeps times where ustar has the prefix.
        if prefix and block[257:265] != b"ustar  \0":
            name = prefix + b"/" + name
    if len(name) > _NAME_BYTES:
        raise _damaged(f"one of its members has a name of {len(name)} bytes")
    problem = _NOT_FILES.get(kind, "")
    if any(key.startswith(b"GNU.sparse") for key in told):
        problem = _NOT_FILES[b"S"]
    elif kind == _FOLDER:
        name = name.rstrip(b"/") + b"/"
    elif not problem and kind not in _FILES:
        problem = "no file of a kind that is known"
    modified = _number(block[136:148]) & 0x7FFFFFFF
    return TarEntry(
        _name(name), start, 0 if kind in _WITHOUT_CONTENT else size, checksum, modified, problem
    )


def _records(content: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: "25 path=folder/file.dcm" and a line feed each."""
    found: dict[bytes, bytes] = {}
    while content:
        length = _decimal(content.split(b" ", 1)[0])
        record = content[:length]
        key, separator, value = record.partition(b" ")[2].partition(b"=")
        if not 0 < length <= len(content) or not separator:
            raise _damaged("one of its extended headers makes no sense")
        found[key] = value.removesuffix(b"\n")
        content = content[length:]
    return found


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _damaged("one of its extended headers makes no sense")
    return int(digits)


def _number(field: bytes) -> int:
    """Octal digits, or for large numbers the bits themselves, as GNU tar has it."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise _damaged("one of its headers makes no sense") from None


def _checksum(block: bytes) -> int | None:
    """The checksum in a header; None = it is not that of the header."""
    digits = block[148:156].split(b"\0")[0].strip(b" ")
    if len(block) < _BLOCK or not digits or not all(0x30 <= c < 0x38 for c in digits):
        return None
    found = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
    if int(digits, 8) == found:
        return found
    # Some old writers added signed bytes.
    signed = found - 256 * sum(c > 127 for c in block[:148] + block[156:])
    return found if int(digits, 8) == signed else None


def _name(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _gone() -> ImageRefused:
    return ImageRefused(
        RefusalReason.UNREADABLE, "the archive no longer has it; index the archive again"
    )


def _cut() -> ImageRefused:
    return ImageRefused(RefusalReason.TRUNCATED, "the archive ends in one of its members")


def _damaged(detail: str) -> ImageRefused:
    return ImageRefused(RefusalReason.DAMAGED, f"the archive is damaged: {detail}")
