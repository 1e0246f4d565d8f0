"""The coarse binary pre-filter: which rung of multi-index hashing to search on.

Rung s lets every image pass that has some 16-bit band within s bits of the query's; by the
pigeonhole principle (engine/codes.py) that is every image within Hamming distance
r = m (s + 1) − 1, and more. The first rung with enough candidates is taken; after the last
one, everything is a candidate.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.codes import band_widths, bands, neighbourhood, radius
from engine.store.base import Filter, VectorStore

__all__ = ["Climb", "Rung", "climb", "rungs"]

_FLIPS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Rung:
    """name: "s0", "s1", "s2" or "dense". radius: the promise, None = everything passes."""

    name: str
    radius: int | None
    bands: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Climb:
    """The rung that was taken, the filter with it, and what passed on every rung tried."""

    rung: Rung
    where: Filter
    candidates: int
    tried: dict[str, int]


def rungs(code: NDArray[np.uint8]) -> Iterator[Rung]:
    """The rungs of a packed code, uint8 (B/8,), narrowest first; "dense" is the last."""
    widths = band_widths(8 * len(code))
    values = [int(value) for value in bands(code)]
    for s in _FLIPS:
        near = tuple(
            tuple(neighbourhood(value, s, width))
            for value, width in zip(values, widths, strict=True)
        )
        yield Rung(f"s{s}", radius(len(widths), s), near)
    yield Rung("dense", None, ())


def climb(store: VectorStore, code: NDArray[np.uint8], where: Filter, enough: int) -> Climb:
    """The first rung on which at least ``enough`` images pass, together with ``where``."""
    tried: dict[str, int] = {}
    for rung in rungs(code):
        narrowed = replace(where, bands=rung.bands)
        tried[rung.name] = candidates = store.count(narrowed)
        if candidates >= enough or rung.radius is None:
            break
    return Climb(rung, narrowed, candidates, tried)
