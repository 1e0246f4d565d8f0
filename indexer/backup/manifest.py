"""The manifest of a backup: a line of JSON for each file, ordered by the parts of its path."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from engine.errors import BackupError

__all__ = ["BLOCK", "PAGES", "Earlier", "Entry", "block_size", "entries", "parts_size"]

BLOCK, PAGES = 1024**2, 64 * 1024
"""Bytes of a block: of any file, and of a database, which changes in small places."""
_LARGEST = 1 << 50


@dataclass(frozen=True, slots=True)
class Entry:
    """A file.

    path: in the data folder, with slashes. size, sha256: of its content. mode: permissions.
    mtime: in nanoseconds.
    stored: "all" = this backup has its content, as a member of ``files/``; "some" = the blocks
        ``parts`` of it, after the line ``index``, as a member of ``blocks/`` with the SHA-256
        ``stored_sha256``; the others are zero, or as in the backup before;
        "none" = it is the file of the backup before.
    blocks: of a file of several blocks of ``block`` bytes: the first half of the SHA-256 of each.
    zeros: of these, those that are zero.
    seen: device, inode and change time of the file that was read, of one that is only ever
        replaced as a whole.
    """

    path: str
    size: int
    sha256: str
    mode: int
    mtime: int
    stored: Literal["all", "some", "none"] = "all"
    block: int = BLOCK
    blocks: tuple[str, ...] = ()
    zeros: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()
    stored_sha256: str = ""
    seen: tuple[int, int, int] | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """What entries are ordered by."""
        return tuple(self.path.split("/"))

    @property
    def stored_size(self) -> int:
        """Bytes of its member."""
        if self.stored == "all":
            return self.size
        return len(self.index) + parts_size(self.size, self.block, self.parts)

    @property
    def index(self) -> bytes:
        """The line before the blocks of a member of ``blocks/``."""
        told = {"size": self.size, "block": self.block, "parts": self.parts, "zeros": self.zeros}
        return json.dumps(told, separators=(",", ":")).encode("ascii") + b"\n"

    def line(self) -> bytes:
        told: dict[str, Any] = {
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256,
            "mode": self.mode,
            "mtime": self.mtime,
            "stored": self.stored,
        }
        if self.blocks:
            told |= {"block": self.block, "blocks": "".join(self.blocks), "zeros": self.zeros}
        if self.stored == "some":
            told |= {"parts": self.parts, "stored_sha256": self.stored_sha256}
        if self.seen is not None:
            told["seen"] = self.seen
        return json.dumps(told, separators=(",", ":")).encode("ascii") + b"\n"

    @classmethod
    def read(cls, line: bytes) -> "Entry":
        """Raises ValueError: it is no entry of a manifest."""
        try:
            told = json.loads(line)
            blocks = told.get("blocks", "")
            seen = told.get("seen")
            found = cls(
                str(told["path"]),
                int(told["size"]),
                str(told["sha256"]),
                int(told["mode"]) & 0o777,
                int(told["mtime"]),
                told["stored"],
                int(told.get("block", BLOCK)),
                tuple(blocks[at : at + 32] for at in range(0, len(blocks), 32)),
                tuple(told.get("zeros", ())),
                tuple(told.get("parts", ())),
                str(told.get("stored_sha256", "")),
                None if seen is None else (seen[0], seen[1], seen[2]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(str(error)) from None
        found._check()
        return found

    def _check(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or str(path) != self.path or not path.parts:
            raise ValueError(f"{self.path!r} is no path within a folder")
        count = -(-self.size // self.block) if self.block in (BLOCK, PAGES) else -1
        parts = [*self.zeros, *self.parts]
        sound = (
            0 <= self.size < _LARGEST
            and self.stored in ("all", "some", "none")
            and (not self.blocks or len(self.blocks) == count)
            and all(isinstance(at, int) and 0 <= at < count for at in parts)
            and (self.stored == "some") >= bool(self.parts)
        )
        if not sound:
            raise ValueError(f"what it says of {self.path} does not fit together")


def parts_size(size: int, block: int, parts: Iterable[int]) -> int:
    """Bytes of these blocks of a file of ``size`` bytes."""
    return sum(min(block, size - at * block) for at in parts)


def block_size(path: str) -> int:
    """Bytes of a block of the file."""
    return PAGES if path.endswith(".sqlite") else BLOCK


def entries(lines: Iterable[bytes], place: str) -> Iterator[Entry]:
    """The entries of a manifest.

    Raises:
        BackupError: it is damaged.
    """
    before: tuple[str, ...] = ()
    for line in lines:
        try:
            found = Entry.read(line)
            if found.order <= before:
                raise ValueError("its entries are not in order")
        except ValueError as error:
            raise BackupError(
                f"{place} is damaged: its manifest ({error}); take another copy of it"
            ) from None
        before = found.order
        yield found


class Earlier:
    """The entries of an earlier backup, asked for in their order."""

    def __init__(self, found: Iterator[Entry]) -> None:
        self._found = found
        self._next = next(found, None)

    def of(self, path: str) -> Entry | None:
        """The entry of a path that comes after those asked for before; None = there is none."""
        order = tuple(path.split("/"))
        while self._next is not None and self._next.order < order:
            self._next = next(self._found, None)
        return self._next if self._next is not None and self._next.order == order else None
