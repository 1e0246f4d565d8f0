"""Whether a lock file is held, found out without making or keeping it."""

import fcntl
import os
from pathlib import Path

__all__ = ["is_held"]


def is_held(path: Path) -> bool:
    """Whether a process holds the exclusive lock on a file (flock).

    Raises:
        OSError: the file is there, and may not be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared and at once given back: whoever takes the lock at this moment tries it again.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
