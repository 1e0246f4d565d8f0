"""Makes the files of an archive of a backup and its increments, and checks every one of them."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import BackupError
from indexer.backup.chain import Backup
from indexer.backup.container import AT_ONCE, BLOCKS, FILES, HEAD, MANIFEST, Member, Members
from indexer.backup.head import Head
from indexer.backup.making import Progress
from indexer.backup.manifest import Entry, entries, parts_size
from indexer.backup.noted import LARGEST_HEAD
from indexer.backup.sealing import opened

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

__all__ = ["Rebuilt", "rebuilt"]

_LONGEST_INDEX = 64 * 1024**2


class Rebuilt:
    """What was made of a chain. files, bytes: of the whole archive, as its last manifest says.
    read: bytes of the backups."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.read = 0


def rebuilt(
    chain: Sequence[Backup],
    identities: "Sequence[Identity]",
    folder: Path,
    wanted: Callable[[str], bool],
    progress: Progress = lambda *_: None,
) -> Rebuilt:
    """Reads a full backup and its increments to their ends, and makes those files of the archive
    that are wanted, as the last of them has them.

    Args:
        folder: where to; empty. wanted: whether a file is to be made, by its path.

    Raises:
        BackupError: a backup is damaged, or they do not fit together. The name of what is wrong is
            in the message.
    """
    found = Rebuilt()
    try:
        with tempfile.TemporaryFile(dir=folder.parent) as manifest:
            for backup in chain:
                manifest.seek(0)
                manifest.truncate()
                _Reading(backup, identities, folder, wanted, progress, found).read(manifest)
            manifest.seek(0)
            _finish(chain[-1], entries(manifest, str(chain[-1].path)), folder, wanted, found)
    except OSError as error:
        raise BackupError(
            f"the files of the backup cannot be written to {folder} ({error.strerror}); make room, "
            "or see to permissions"
        ) from None
    return found


class _Reading:
    """Reads one backup, and applies it to what those before it made."""

    def __init__(
        self,
        backup: Backup,
        identities: "Sequence[Identity]",
        folder: Path,
        wanted: Callable[[str], bool],
        progress: Progress,
        found: Rebuilt,
    ) -> None:
        self._backup = backup
        self._place = str(backup.path)
        self._identities = identities
        self._folder = folder
        self._wanted = wanted
        self._progress = progress
        self._found = found
        self._files = 0

    def read(self, manifest: BinaryIO) -> None:
        """Applies it; its manifest is written to the file."""
        with (
            tempfile.TemporaryFile(dir=self._folder.parent) as met,
            opened(self._backup.path, self._identities) as stream,
        ):
            members = Members(stream, self._place)
            for member in members:
                self._progress(self._files, self._found.read, self._backup.path.name)
                if member.name == HEAD:
                    self._check_head(member)
                elif member.name == MANIFEST:
                    for data in member.data():
                        manifest.write(data)
                    members.failure = self._compared(manifest, met)
                else:
                    self._apply(member)
                    told = [member.name, member.size, member.digest]
                    met.write(json.dumps(told).encode("ascii") + b"\n")
                    self._files += 1
                self._found.read += member.size

    def _check_head(self, member: Member) -> None:
        head = Head.read(member.whole(LARGEST_HEAD), self._place)
        if head != self._backup.head:
            raise BackupError(f"{self._place} was replaced while it was read; start again")

    def _compared(self, manifest: BinaryIO, met: BinaryIO) -> BackupError | None:
        """What of the members does not fit the manifest; None = all do."""
        manifest.seek(0)
        met.seek(0)
        try:
            for entry in entries(manifest, self._place):
                if entry.stored == "none":
                    if self._backup.head.since is None:
                        return self._damaged(f"{entry.path} is missing")
                    continue
                name = (FILES if entry.stored == "all" else BLOCKS) + entry.path
                digest = entry.sha256 if entry.stored == "all" else entry.stored_sha256
                line = met.readline()
                there = json.loads(line) if line else ["", 0, ""]
                if there[0] != name:
                    return self._damaged(f"{entry.path} is missing")
                if there[1:] != [entry.stored_size, digest]:
                    return self._damaged(f"{entry.path} was changed")
        except BackupError as error:
            return error
        if met.readline():
            return self._damaged("it has more files than its manifest says")
        return None

    def _damaged(self, what: str) -> BackupError:
        return BackupError(f"{self._place} is damaged: {what}; take another copy of it")

    def _apply(self, member: Member) -> None:
        kind, _, path = member.name.partition("/")
        write = {FILES: self._write, BLOCKS: self._patch}.get(f"{kind}/")
        if write is None:
            raise self._damaged(f"{member.name!r} does not belong there")
        parts = path.split("/")
        if any(one in ("", ".", "..") for one in parts) or "\0" in path:
            raise self._damaged(f"{path!r} is no path within a folder")
        if not self._wanted(path):
            for _ in self._told(member):
                pass
            return
        place = self._folder.joinpath(*parts)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(member, place)

    def _told(self, member: Member) -> Iterator[bytes]:
        done = 0
        for data in member.data():
            yield data
            done += len(data)
            self._progress(self._files, self._found.read + done, self._backup.path.name)

    def _write(self, member: Member, place: Path) -> None:
        with suppress(FileNotFoundError):
            place.unlink()
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as out:
            for data in self._told(member):
                out.write(data)

    def _patch(self, member: Member, place: Path) -> None:
        content = self._told(member)
        line, rest = _first_line(content)
        index = self._index(line, member)
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as out:
            out.truncate(index["size"])
            block = index["block"]
            nothing = bytes(block)
            for at in index["zeros"]:
                out.seek(at * block)
                before = out.read(block)
                if before != nothing[: len(before)]:
                    out.seek(at * block)
                    out.write(nothing[: len(before)])
            for at in index["parts"]:
                out.seek(at * block)
                left = min(block, index["size"] - at * block)
                while left:
                    rest = rest or next(content, b"")
                    if not rest:
                        raise self._damaged(f"{member.name} is cut short")
                    out.write(rest[:left])
                    taken = min(left, len(rest))
                    rest, left = rest[taken:], left - taken

    def _index(self, line: bytes, member: Member) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
            size, block = found["size"], found["block"]
            numbers = [size, block, *found["parts"], *found["zeros"]]
            if not all(isinstance(one, int) and one >= 0 for one in numbers) or not block:
                raise ValueError("no numbers")
            if any(at * block >= size for at in (*found["parts"], *found["zeros"])):
                raise ValueError("beyond its end")
            if len(line) + parts_size(size, block, found["parts"]) != member.size:
                raise ValueError("another size")
        except (ValueError, KeyError, TypeError):
            raise self._damaged(f"{member.name.removeprefix(BLOCKS)} was changed") from None
        return found


def _first_line(content: Iterator[bytes]) -> tuple[bytes, bytes]:
    """The first line of a content, and what was read beyond it."""
    start = b""
    for data in content:
        start += data
        line, end, rest = start.partition(b"\n")
        if end:
            return line + end, rest
        if len(start) > _LONGEST_INDEX:
            break
    return start, b""


def _finish(
    last: Backup,
    found: Iterator[Entry],
    folder: Path,
    wanted: Callable[[str], bool],
    sums: Rebuilt,
) -> None:
    """Checks that each file is what the last manifest says, and removes all others."""
    there = _files(folder, ())
    at = next(there, None)
    for entry in found:
        sums.files += 1
        sums.bytes += entry.size
        if not wanted(entry.path):
            continue
        while at is not None and at < entry.order:
            folder.joinpath(*at).unlink()
            at = next(there, None)
        if at != entry.order:
            raise BackupError(
                f"{entry.path} is in none of the backups up to {last.path}: one of them is of "
                "another chain, or was made anew; name the right ones"
            )
        at = next(there, None)
        path = folder.joinpath(*entry.order)
        if _digest(path) != entry.sha256 or path.stat().st_size != entry.size:
            raise BackupError(
                f"{entry.path} is not what {last.path} says when the backups before it are "
                "applied: one of them is of another chain; name the right ones"
            )
        path.chmod(entry.mode)
        os.utime(path, ns=(entry.mtime, entry.mtime))
    while at is not None:
        folder.joinpath(*at).unlink()
        at = next(there, None)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """Removes folders in which nothing is left: an index takes each of them for a segment."""
    for inner, _, _ in os.walk(folder, topdown=False):
        # One that is not empty stays.
        with suppress(OSError):
            if Path(inner) != folder:
                Path(inner).rmdir()


def _files(folder: Path, order: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    with os.scandir(folder) as listed:
        entries_of = sorted(listed, key=lambda one: one.name)
    for entry in entries_of:
        inner = (*order, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder / entry.name, inner)
        else:
            yield inner


def _digest(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        while data := file.read(AT_ONCE):
            found.update(data)
    return found.hexdigest()
