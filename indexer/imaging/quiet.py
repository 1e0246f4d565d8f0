"""Keeping libraries from saying in logs and on the error output what they read."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hushed", "silenced"]

_STANDARD_ERROR = 2


def hushed(name: str) -> None:
    """From now on the logger ``name`` and those below it let nothing through."""
    logger = logging.getLogger(name)
    # To set a level, also the one it has, empties what all loggers remember.
    if logger.level <= logging.CRITICAL:
        logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def silenced() -> Iterator[None]:
    """While it lasts nothing reaches the error output of the process.

    Decoders write there of every damaged frame, whatever they are told; that it is damaged
    is said by its refusal.
    """
    kept = os.dup(_STANDARD_ERROR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, _STANDARD_ERROR)
        os.close(nowhere)
        os.close(kept)
