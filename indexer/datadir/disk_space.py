"""Room on the disk of the data folder, looked at before anything is written to it.

The embedded index writes through memory maps. When the disk has no page left for one, the
system ends the process at once, and it can say nothing any more; so that must not happen.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import DiskFull

__all__ = ["check_room", "is_full", "naming_a_full_disk"]

_MIB = 1024**2
_GO_ON = (
    "make room, or move the folder to a larger disk; the same command, or for a job "
    "`precedent jobs resume` or `retry`, then goes on"
)


def check_room(folder: Path, least: int) -> None:
    """Passes a data folder whose disk has ``least`` bytes free; it need not exist yet.

    Raises:
        DiskFull: it has less.
    """
    free = _free(folder)
    if free is not None and free < least:
        raise DiskFull(
            f"the disk of {folder} has {free // _MIB:,} MiB free, and "
            f"indexing.min_free_bytes asks for {least // _MIB:,} MiB; {_GO_ON}"
        )


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turns the system's word that nothing more fits into ours.

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
    """Whether it says that there is no room on a disk."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free(folder: Path) -> int | None:
    """Bytes that may still be written where the folder lies, or will; None = not known."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
