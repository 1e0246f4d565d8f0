"""Copies the files of an embedded index that nobody changes meanwhile."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engine.errors import StoreError
from engine.locks import is_held

__all__ = ["CopiedFile", "copied", "holding"]

_AT_ONCE = 8 * 1024**2


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file of an index. path: within its folder. is_there: whether a copy was made; False = it
    is the very file that the asker knows already."""

    path: str
    is_there: bool


def copied(
    directory: Path,
    folder: Path,
    known: Mapping[str, tuple[int, str]],
    going_on: Callable[[], None],
) -> list[CopiedFile]:
    """Copies all files of an index, and returns them ordered by path.

    Args:
        folder: where to; emptied first.
        known: size and SHA-256 of files that need not be copied if they are these still.
        going_on: called often; what it raises ends the copying.

    Raises:
        StoreError: they cannot be read or written.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        found = []
        for path in _files(directory):
            name = path.relative_to(directory).as_posix()
            is_known = name in known and _is(path, *known[name], going_on)
            if not is_known:
                place = folder / name
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _copy(path, place, going_on)
            found.append(CopiedFile(name, not is_known))
    except OSError as error:
        raise StoreError(
            f"the index in {directory} cannot be copied to {folder} ({error.strerror}); make room, "
            "or see to permissions, and run the same command again"
        ) from None
    return found


def holding(lock: Path) -> Callable[[], None]:
    """A function that raises StoreError once nobody holds the lock file: who asked has ended."""

    def check() -> None:
        if not is_held(lock):
            raise StoreError(f"whoever asked for a copy of the index has let go of {lock}")

    return check


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry)
        elif entry.is_file():
            yield entry


def _is(path: Path, size: int, digest: str, going_on: Callable[[], None]) -> bool:
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size:
            return False
        found = sha256()
        while data := file.read(_AT_ONCE):
            going_on()
            found.update(data)
    return found.hexdigest() == digest


def _copy(path: Path, place: Path, going_on: Callable[[], None]) -> None:
    """Copies a file. Holes stay holes, and where the file system can, blocks are shared."""
    with path.open("rb", buffering=0) as source, place.open("xb", buffering=0) as target:
        size = os.fstat(source.fileno()).st_size
        target.truncate(size)
        for start, end in _data(source.fileno(), size):
            at = start
            while at < end:
                going_on()
                count = _copy_some(source.fileno(), target.fileno(), at, min(_AT_ONCE, end - at))
                if not count:
                    return  # it ends here
                at += count


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data between the holes of a file."""
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return  # a hole to its end
        at = os.lseek(file, start, os.SEEK_HOLE)
        yield start, at


def _copy_some(source: int, target: int, at: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, at, at)
    except OSError:
        # Not every file system has it.
        return os.pwrite(target, os.pread(source, count, at), at)
