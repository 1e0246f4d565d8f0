"""The coarse binary pre-filter: which rung of multi-index hashing to search on.

Rung s lets every image pass that has some 16-bit band within s bits of the query's; by the
pigeonhole principle (engine/codes.py) that is every image within Hamming distance
r = m (s + 1) − 1, and more. The first rung with enough candidates is taken, if it leaves so
few that looking them up costs less than comparing everything; else everything is a candidate.
docs/search.md has the measurements behind the constants.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from engine.codes import band_widths, bands, neighbourhood, radius
from engine.search.sizes import Size, sample_of, sampled_buckets, size_of
from engine.settings import SearchSettings
from engine.store.base import Filter, VectorStore
from engine.store.payload import BUCKETS

__all__ = ["RUNGS", "Climb", "Rung", "climb", "enough_for", "rungs"]

_FLIPS = (0, 1, 2)
RUNGS = (*(f"s{s}" for s in _FLIPS), "dense")

_COST_OF_LOOKUP = 12
"""Looking a candidate up costs about as much as comparing so many in a row."""
_SMALL = 2_000
"""So few candidates are looked up in any case, and compared by their own vectors."""


@dataclass(frozen=True, slots=True)
class Rung:
    """name: "s0", "s1", "s2" or "dense". radius: the promise, None = everything passes."""

    name: str
    radius: int | None
    bands: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Climb:
    """Where the search takes place.

    where: the rung's filter with all others. size: of what passes the rung. tried: that of
    every rung tried. approximate: the store may use its graph or its quantised vectors, if
    it has them, and miss some. buckets: where the rung's candidates are too many to be
    compared, how many of 256 parts of them ``where`` lets pass. note: why, in words, when
    this is not simply the first rung with enough candidates.
    """

    rung: Rung
    where: Filter
    size: Size
    tried: dict[str, int]
    approximate: bool = False
    buckets: int = BUCKETS
    note: str | None = None

    @property
    def compared(self) -> int:
        """Of how many candidates the vectors can be looked at."""
        return self.size.count * self.buckets // BUCKETS


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
    yield Rung("dense", None)


def enough_for(store: VectorStore, where: Filter, k: int, settings: SearchSettings) -> int:
    """Candidates that a rung must have for k hits: then few of the best are on no rung so near."""
    total = store.count(where, exact=False)
    share = settings.candidates_share * max(1.0, sqrt(k / 10))
    return max(settings.min_candidates, settings.candidates_per_hit * k, round(share * total))


def climb(
    store: VectorStore,
    code: NDArray[np.uint8],
    where: Filter,
    enough: int,
    settings: SearchSettings,
    *,
    by_code: bool = False,
    only: str | None = None,
    above: Climb | None = None,
) -> Climb:
    """The rung to search on, for an image with this code.

    Args:
        code: uint8 (B/8,), packed.
        where: the other filters.
        enough: candidates that a rung must have; where they are many, about so many.
        settings: how far things are counted and compared.
        by_code: the answer is ordered by code, so a graph over vectors is no shortcut.
        only: name of the rung to take whatever it has: that of an earlier page.
        above: the rung taken before, which turned out to have too few after all.
    """
    has_graph = store.profile.graph == "precise"
    tried = {} if above is None else dict(above.tried)
    # Where there is little to compare, no rung with enough candidates can be worth taking.
    total = store.count(where, exact=False)
    straight = has_graph or total <= _COST_OF_LOOKUP * enough
    for rung in rungs(code):
        if only not in (None, rung.name) or rung.name in tried:
            continue
        if straight and only is None and not by_code and rung.radius is not None:
            continue
        narrowed = replace(where, bands=rung.bands)
        size = size_of(store, narrowed, settings.max_counted)
        tried[rung.name] = size.count
        if only is not None or size.count >= enough:
            break
    note = None
    useless = size.count > max(_SMALL, total // _COST_OF_LOOKUP)
    if only is None and rung.radius is not None and useless:
        whole = size_of(store, where, settings.max_counted)
        note = (
            f"the codes of {size.text} of {whole.text} images are near: the pre-filter "
            "saves nothing, all were compared"
        )
        rung, narrowed, size = Rung("dense", None), where, whole
    shortcut = has_graph and rung.radius is None
    approximate = shortcut or (store.profile.quantised and size.count > _SMALL)
    found = Climb(rung, narrowed, size, tried, approximate, note=note)
    return found if shortcut else _bounded(found, settings.max_scanned)


def _bounded(found: Climb, most: int) -> Climb:
    """The same place, with a fixed sample of it where there is too much to compare."""
    if found.size.count <= most:
        return found
    buckets = sampled_buckets(found.size.count, most)
    note = (
        f"{found.size.text} images are too many to compare: {buckets} of {BUCKETS} parts of them "
        "were searched; narrow the search with filters, or let the administrator build a graph "
        "(precedent profile precise)"
    )
    return replace(
        found,
        rung=replace(found.rung, radius=None),
        where=sample_of(found.where, buckets),
        buckets=buckets,
        note=note,
    )
