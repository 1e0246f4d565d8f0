"""Keeps libraries from writing what they read, which may identify patients, to logs or stderr."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hushed", "silenced"]

_STANDARD_ERROR = 2


def hushed(name: str) -> None:
    """Silences the logger ``name`` and its children for good."""
    logger = logging.getLogger(name)
    # Setting a level, even the same one, clears the level caches of all loggers.
    if logger.level <= logging.CRITICAL:
        logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def silenced() -> Iterator[None]:
    """Discards everything that is written to stderr of the process meanwhile.

    Some decoders write a message there for every damaged frame and cannot be told not to; the
    refusal of the image reports the damage.
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
