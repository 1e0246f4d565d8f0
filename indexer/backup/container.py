"""The file of a backup: a tar archive, written and read from its start to its end.

    backup.json         what the backup is (head.py)
    files/PATH          the content of a file
    blocks/PATH         a line of JSON (``Entry.index``), then those blocks of a file that are
                        neither zero nor in the backup before
    manifest.jsonl      a line for each file (manifest.py), in the order of the members
    end.json            where the manifest lies, and the SHA-256 of all bytes before this member

Members come without padding beyond tar's own, and the file ends with the two empty blocks that end
a tar archive. So every byte is known from ``end.json`` or by its hash, and `tar` opens the file.
"""

import json
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

from engine.errors import BackupError

__all__ = [
    "AT_ONCE",
    "BLOCKS",
    "FILES",
    "HEAD",
    "MANIFEST",
    "End",
    "Member",
    "Members",
    "Readable",
    "Written",
    "end_of",
    "manifest_lines",
]

HEAD, MANIFEST, _END = "backup.json", "manifest.jsonl", "end.json"
FILES, BLOCKS = "files/", "blocks/"
AT_ONCE = 1024**2
"""Bytes that are read or written at once."""
_BLOCK = 512
_LONGEST_NAME = 64 * 1024
_LARGEST_END = 1024


class Written:
    """Makes the bytes of a backup, member by member, and keeps count of them."""

    def __init__(self) -> None:
        self._all = sha256()
        self.count = 0
        """Bytes so far."""

    def member(
        self, name: str, size: int, data: Iterable[bytes], mode: int = 0o600, mtime: float = 0
    ) -> Iterator[bytes]:
        """The bytes of a member.

        Args:
            data: its content, of ``size`` bytes.

        Raises:
            BackupError: it has another size.
        """
        yield self._counted(_header(name, size, mode, mtime))
        left = size
        for some in data:
            left -= len(some)
            if left < 0:
                break
            yield self._counted(some)
        if left:
            raise BackupError(f"{name} changed while it was read; make the backup again")
        if size % _BLOCK:
            yield self._counted(bytes(-size % _BLOCK))

    def end(self, at: int, size: int, digest: str) -> bytes:
        """The bytes that end a backup.

        Args:
            at, size, digest: where the content of the manifest lies, its size and SHA-256.
        """
        made = _ending(End(at, size, digest, self._all.hexdigest()))
        self.count += len(made)
        return made

    def _counted(self, data: bytes) -> bytes:
        self._all.update(data)
        self.count += len(data)
        return data


@dataclass(frozen=True, slots=True)
class End:
    """What ends a backup. at, size, digest: of the content of its manifest. all: SHA-256 of all
    bytes before this."""

    at: int
    size: int
    digest: str
    all: str

    def written(self) -> bytes:
        told = {"all": self.all, "at": self.at, "manifest": self.digest, "size": self.size}
        return json.dumps(told, separators=(",", ":")).encode("ascii")

    @classmethod
    def read(cls, data: bytes) -> "End":
        """Raises ValueError: it is none."""
        try:
            told = json.loads(data)
            found = cls(told["at"], told["size"], told["manifest"], told["all"])
            whole = all(isinstance(one, int) for one in (found.at, found.size))
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from None
        if not whole or found.written() != data:
            raise ValueError("it says something else")
        return found


def _header(name: str, size: int, mode: int, mtime: float) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, mode, int(mtime)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _ending(end: End) -> bytes:
    data = end.written()
    return (
        _header(_END, len(data), 0o600, 0) + data + bytes(-len(data) % _BLOCK) + bytes(2 * _BLOCK)
    )


class Readable(Protocol):
    """What bytes can be read from: none are left when there are fewer than asked for."""

    def read(self, size: int, /) -> bytes: ...


class Member:
    """A member of a backup that is being read: its name, its size and what is left of it."""

    def __init__(self, members: "Members", name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._members = members
        self._left = size
        self._digest = sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of what was read of it."""
        return self._digest.hexdigest()

    def data(self) -> Iterator[bytes]:
        """Its content. Raises BackupError: the file ends before."""
        while self._left:
            some = self._members.taken(min(AT_ONCE, self._left), self.name)
            self._left -= len(some)
            self._digest.update(some)
            yield some

    def whole(self, most: int) -> bytes:
        """All of its content. Raises BackupError: it is larger than ``most`` bytes."""
        if self.size > most:
            raise BackupError(f"{self.name} of the backup has {self.size:,} bytes: it is damaged")
        return b"".join(self.data())


class Members:
    """Reads a backup from its start, and checks what lies between its members.

    Args:
        stream: of the backup, decrypted. place: what it is called in errors.

    Raises, from any method:
        BackupError: it is no backup, or damaged.
    """

    def __init__(self, stream: Readable, place: str) -> None:
        self._stream = stream
        self._place = place
        self._all = sha256()
        self._at = 0
        self._last: Member | None = None
        self._manifest: Member | None = None
        self._manifest_at = 0
        self.failure: BackupError | None = None
        """What whoever reads them found of a member by the manifest. It is raised at the end, if
        the manifest itself is whole."""

    def __iter__(self) -> Generator[Member]:
        """All members up to the manifest, in order; each has to be read before the next one. The
        end of the file is checked after them."""
        while True:
            self._finish()
            before = self._all.hexdigest()
            name, size, raw = self._next()
            if name == _END:
                self._check_end(before, size, raw)
                return
            self._last = Member(self, name, size)
            if name == MANIFEST:
                self._manifest, self._manifest_at = self._last, self._at
            yield self._last

    def taken(self, size: int, name: str) -> bytes:
        """The next bytes of the member of this name."""
        data = self._stream.read(size)
        if len(data) < size:
            raise self._damaged(f"it ends in {name}")
        self._all.update(data)
        self._at += size
        return data

    def _finish(self) -> None:
        if self._last is not None:
            for _ in self._last.data():
                pass
            name = self._last.name
            if self._last.size % _BLOCK and self.taken(-self._last.size % _BLOCK, name).strip(
                b"\0"
            ):
                raise self._damaged(f"something lies after {name}")
            self._last = None

    def _next(self) -> tuple[str, int, bytes]:
        """Name and size of the next member, and its header."""
        after = "its beginning" if not self._at else "a member"
        raw = self.taken(_BLOCK, f"the header after {after}")
        info = self._parsed(raw)
        if info.type != tarfile.GNUTYPE_LONGNAME:
            return info.name, info.size, raw
        if info.size > _LONGEST_NAME:
            raise self._damaged("a member has no name")
        padded = self.taken(-(-info.size // _BLOCK) * _BLOCK, "a name")
        name = padded[: info.size].rstrip(b"\0").decode("utf-8", "surrogateescape")
        short = self.taken(_BLOCK, f"the header of {name}")
        info = self._parsed(short)
        return name, info.size, raw + padded + short

    def _parsed(self, raw: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(raw, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            if self._at == len(raw):
                raise BackupError(
                    f"{self._place} is no backup, or its beginning is damaged; name a file that "
                    "`precedent backup create` wrote"
                ) from None
            raise self._damaged(f"the header of a member at byte {self._at - _BLOCK:,}") from None

    def _check_end(self, before: str, size: int, raw: bytes) -> None:
        if size > _LARGEST_END:
            raise self._damaged(_END)
        data = self.taken(size, _END)
        manifest = self._manifest
        try:
            end = End.read(data)
        except ValueError:
            raise self._damaged(_END) from None
        rest = _ending(end)[len(raw) + size :]
        if raw != _ending(end)[: len(raw)] or self._stream.read(len(rest) + 1) != rest:
            raise self._damaged("its last bytes")
        if manifest is None:
            raise self._damaged(f"it has no {MANIFEST}")
        if (end.at, end.size, end.digest) != (self._manifest_at, manifest.size, manifest.digest):
            raise self._damaged(MANIFEST)
        if self.failure is not None:
            raise self.failure
        if end.all != before:
            raise self._damaged(f"{HEAD}, or what lies between members")

    def _damaged(self, what: str) -> BackupError:
        return BackupError(f"{self._place} is damaged: {what}; take another copy of it")


def end_of(path: Path) -> End:
    """What ends a backup that is not encrypted, without reading the rest.

    Raises:
        BackupError: it is none, or cut short.
    """
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - 4 * _BLOCK))
        tail = file.read()
        info = tarfile.TarInfo.frombuf(tail[:_BLOCK], "utf-8", "surrogateescape")
        found = End.read(tail[_BLOCK : _BLOCK + info.size])
        if _ending(found) == tail:
            return found
    raise BackupError(f"{path} is no whole backup: its end is missing; name another file")


def manifest_lines(file: BinaryIO, end: End, place: str) -> Iterator[bytes]:
    """The lines of the manifest of a backup that is not encrypted.

    Raises:
        BackupError: it is damaged, which shows after the last line.
    """
    file.seek(end.at)
    left, found = end.size, sha256()
    while left:
        line = file.readline(left)
        if not line:
            break
        left -= len(line)
        found.update(line)
        yield line
    if left or found.hexdigest() != end.digest:
        raise BackupError(f"{place} is damaged: {MANIFEST}; take another copy of it")
