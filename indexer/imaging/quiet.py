"""Keeping libraries in C and Rust from writing to the error output."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silenced"]

_STANDARD_ERROR = 2


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
