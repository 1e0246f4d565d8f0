"""What the data folder notes of its backups.

``backup.json`` has the moment of the last one. Of encrypted ones, which nobody here can read, the
folder ``backups`` keeps the manifests, so that increments of them can be made.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from engine.errors import BackupError
from engine.files import write_atomically, writing_atomically
from indexer.backup.container import HEAD, Members, end_of, manifest_lines
from indexer.backup.head import Head
from indexer.backup.manifest import Entry, entries
from indexer.backup.sealing import is_sealed

__all__ = ["LARGEST_HEAD", "Previous", "forget_manifests", "last_backup", "note", "previous"]

_LAST, _KEPT = "backup.json", "backups"
_BEGINNING = 4096
LARGEST_HEAD = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Previous:
    """The backup that an increment is made of: what it says of itself, and its entries in order,
    as often as they are asked for."""

    head: Head
    entries: Callable[[], Iterator[Entry]]


@contextmanager
def previous(file: Path, root: Path) -> Iterator[Previous]:
    """A backup, to make an increment of it.

    Args:
        root: the data folder, which has notes of encrypted ones.

    Raises:
        BackupError: it is none, is damaged, or encrypted and made elsewhere.
    """
    if is_sealed(file):
        yield _kept(file, root)
        return
    end = end_of(file)
    with file.open("rb") as stream:
        first = next(iter(Members(stream, str(file))), None)
        if first is None or first.name != HEAD:
            raise BackupError(f"{file} is no backup; name a file of `precedent backup create`")
        head = Head.read(first.whole(LARGEST_HEAD), str(file))
        yield Previous(head, lambda: entries(manifest_lines(stream, end, str(file)), str(file)))


def _kept(file: Path, root: Path) -> Previous:
    wanted = _fingerprint(file)
    for path in (root / _KEPT).glob("*.json"):
        with suppress(OSError, ValueError):
            if json.loads(path.read_bytes()) == wanted:
                manifest = path.with_suffix(".gz")
                with gzip.open(manifest) as lines:
                    head = Head.read(bytes.fromhex(lines.readline().decode()), str(manifest))
                return Previous(head, partial(_kept_entries, manifest))
    raise BackupError(
        f"{file} is encrypted, and {root / _KEPT} has no note of it: it was made of another data "
        "folder, before this one was restored, or is not one of the latest; make a full backup"
    )


def _kept_entries(manifest: Path) -> Iterator[Entry]:
    with gzip.open(manifest) as lines:
        lines.readline()
        yield from entries(lines, str(manifest))


def _fingerprint(file: Path) -> dict[str, str | int]:
    """Tells an encrypted file from others: how it begins is another one each time."""
    with file.open("rb") as stream:
        begins = sha256(stream.read(_BEGINNING)).hexdigest()
        return {"begins": begins, "size": os.fstat(stream.fileno()).st_size}


def note(root: Path, head: Head, file: Path, manifest: BinaryIO, *, is_sealed: bool) -> None:
    """Notes a backup that was made.

    Args:
        manifest: its lines.

    Raises:
        BackupError: the data folder cannot be written to.
    """
    try:
        if is_sealed:
            folder = root / _KEPT
            folder.mkdir(mode=0o700, exist_ok=True)
            place = folder / f"{head.id}.gz"
            with writing_atomically(place, private=True) as out, gzip.open(out, "wb", 3) as lines:
                lines.write(head.written().hex().encode() + b"\n")
                for line in manifest:
                    lines.write(line)
            write_atomically(
                place.with_suffix(".json"), json.dumps(_fingerprint(file)).encode(), private=True
            )
            kept = {head.id, head.full, head.since}
            for path in folder.iterdir():
                if path.stem not in kept:
                    path.unlink(missing_ok=True)
        told = {"at": head.at, "id": head.id, "number": head.number, "file": str(file.absolute())}
        write_atomically(root / _LAST, json.dumps(told).encode(), private=True)
    except OSError as error:
        raise BackupError(
            f"{file} is whole, but {root} cannot be written to ({error.strerror}), so that nobody "
            "knows of it there; see to permissions and room"
        ) from None


def forget_manifests(root: Path) -> int:
    """Removes what is kept of encrypted backups: their manifests name files, and with these images.
    The next backup has to be a full one. Returns how many backups that were."""
    gone = 0
    for path in sorted((root / _KEPT).glob("*")):
        path.unlink(missing_ok=True)
        gone += path.suffix == ".gz"
    return gone


def last_backup(root: Path) -> datetime | None:
    """The moment of the last backup of a data folder, UTC; None = none was made.

    Raises:
        BackupError: the note of it cannot be read.
    """
    path = root / _LAST
    try:
        return datetime.fromisoformat(json.loads(path.read_bytes())["at"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise BackupError(f"{path} cannot be read; the next backup writes it anew") from None
