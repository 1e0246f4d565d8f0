"""Checks of the free disk space of the data folder, made before anything is written to it.

The embedded index writes through memory maps. When a mapped page cannot be allocated because the
disk is full, the system kills the process (SIGBUS) before it can report an error.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DiskFull

__all__ = ["check_room", "disk_of", "is_full", "naming_a_full_disk"]

_MIB = 1024**2
_GO_ON = (
    "make room, or move the folder to a larger disk; the same command, or for a job "
    "`precedent jobs resume` or `retry`, then goes on"
)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk. total, free: bytes. files: for how many more there is room; None = no such limit."""

    total: int
    free: int
    files: int | None


def check_room(folder: Path, least: int) -> None:
    """Checks that the disk of a data folder, which need not exist yet, has ``least`` bytes free.

    Raises:
        DiskFull: it has less.
    """
    disk = disk_of(folder)
    if disk is not None and disk.free < least:
        raise DiskFull(
            f"the disk of {folder} has {disk.free // _MIB:,} MiB free, and "
            f"indexing.min_free_bytes asks for {least // _MIB:,} MiB; {_GO_ON}"
        )


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turns an OSError that says that the disk or quota is full into DiskFull.

    Raises:
        DiskFull: the disk of ``folder``, or the quota on it, is used up.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFull(f"the disk of {folder} is full; {_GO_ON}") from None


def is_full(error: OSError) -> bool:
    """Whether the error says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_of(folder: Path) -> Disk | None:
    """The disk on which the folder lies, or would be made; None = not known."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            usage, counted = shutil.disk_usage(place), os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return Disk(usage.total, usage.free, counted.f_favail if counted.f_files else None)
    return None
