"""Replaces the folder of an embedded store by another one, so that a kill leaves one of the two."""

import os
import shutil
from pathlib import Path

__all__ = ["REWRITTEN", "beside", "exchange", "in_exchange", "recover"]

_BEFORE = ("before", "format-1")
"""What the folder that goes is called meanwhile; the second name is that of earlier versions."""
REWRITTEN = "rewritten"
"""What one that was written anew is called until it is whole."""


def beside(directory: Path, name: str) -> Path:
    """The hidden folder of this name beside a store."""
    return directory.with_name(f".{directory.name}-{name}")


def in_exchange(directory: Path) -> bool:
    """Whether an exchange was interrupted when one store had gone and the other had not come."""
    return any(beside(directory, name).is_dir() for name in _BEFORE)


def exchange(directory: Path, made: Path) -> None:
    """Puts the complete store in ``made`` in place of the one in ``directory``, which is removed.

    Whoever has the lock of the store may call it. After a kill at any moment :func:`recover`
    finds one of the two whole.
    """
    before = beside(directory, _BEFORE[0])
    directory.rename(before)
    made.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(before)
    _sync(directory.parent)


def recover(directory: Path) -> None:
    """Ends an exchange that was interrupted, and removes what was being made for one."""
    for name in _BEFORE:
        before = beside(directory, name)
        if before.is_dir():
            if not directory.exists():
                before.rename(directory)
            else:
                shutil.rmtree(before)
    rewritten = beside(directory, REWRITTEN)
    for left in (rewritten, beside(rewritten, "building")):
        shutil.rmtree(left, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
