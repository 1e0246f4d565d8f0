"""The pre-filter: selects the candidates, the images whose vectors are compared with the query's.

Comparing the query with every stored vector is exact, but slow in a large index. The pre-filter
selects candidates by their binary codes instead, with multi-index hashing (Norouzi et al., "Fast
Exact Search in Hamming Space with Multi-Index Hashing", TPAMI 2014):

- A code of B bits is cut into m bands of 16 bits. The store indexes every band, so that the
  images with a given band value are found by lookup.
- An image is a candidate on rung s when at least one of its bands differs from the same band of
  the query in at most s bits. For each band, the query's value and all values within s flipped
  bits are looked up: 1 value for s = 0, 17 for s = 1, 137 for s = 2.
- By the pigeonhole principle this misses no image within Hamming distance r = m (s + 1) − 1 of the
  query: if all m bands differed in s + 1 bits or more, the codes would differ in m (s + 1) bits or
  more. Images at a larger distance can be candidates too.

The rungs s0, s1 and s2 form a ladder of growing candidate sets. Its last rung, "dense", takes every
image that passes the filters. A search takes the first rung with enough candidates
(:func:`enough_for`). Looking up a candidate costs more than comparing the next vector in a row, so
where a rung has too large a part of the images, "dense" is taken instead. docs/search.md has the
measurements behind the constants.
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
"""s of each rung: how many bits of a band may differ."""
RUNGS = (*(f"s{s}" for s in _FLIPS), "dense")
"""Names of the rungs, the narrowest first."""

_COST_OF_LOOKUP = 12
"""Looking up one candidate takes about as long as comparing this many vectors in a row."""
_SMALL = 2_000
"""Up to this many candidates are always looked up, and compared by their full-precision vectors."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One level of the pre-filter.

    name: "s0", "s1", "s2" or "dense"; "exact" when the query asks to compare everything; "none"
        when nothing is searched.
    radius: every image within this Hamming distance of the query is a candidate; None = the
        candidates are not limited by distance.
    bands: for each band of the code the values within s flipped bits of the query's; a candidate
        has one of these values in at least one band. Empty = no limit.
    """

    name: str
    radius: int | None
    bands: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Climb:
    """The outcome of climbing the ladder: the rung taken, and the filter that selects candidates.

    where: the query's filters together with the rung's bands.
    size: number of candidates on the rung.
    tried: number of candidates of each rung that was tried, by name.
    approximate: the store may answer from its graph or its quantised vectors, where it has them,
        and so may miss some of the most similar candidates.
    buckets: ``where`` selects the images of this many of the store's 256 buckets; fewer than 256
        when there are too many candidates to compare, so that only a sample of them is.
    note: why the rung is not simply the first one with enough candidates; a sentence for the
        reader of the answer, or None.
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
        """How many candidates are within reach of the comparison: all, or those in the sample."""
        return self.size.count * self.buckets // BUCKETS


def rungs(code: NDArray[np.uint8]) -> Iterator[Rung]:
    """The rungs for a query's packed code, uint8 (B/8,), narrowest first; "dense" is the last."""
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
    """How many candidates a rung must have for k hits.

    Enough that few of the k most similar images are missing from them: the largest of a fixed
    minimum, a number for each hit, and a share of the images that pass the filters.
    """
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
    """The rung on which to search for images like one with this code.

    Args:
        code: uint8 (B/8,), packed.
        where: the query's filters.
        enough: candidates that a rung must have. Large numbers of candidates are estimates, so
            the rung taken may have fewer.
        settings: up to which number candidates are counted and compared.
        by_code: hits are ordered by Hamming distance, so rungs are tried even where the store
            has a graph or holds few images.
        only: take the rung of this name, however many candidates it has. For a further page of
            a list, which must stay on the rung of the first page.
        above: an earlier result whose rung turned out to have too few candidates; start with
            the rung after it.
    """
    has_graph = store.profile.graph == "precise"
    tried = {} if above is None else dict(above.tried)
    # Skip the lookups if the graph does the work, or if "enough" candidates would be so large a
    # part of the images that comparing all of them is faster.
    total = store.count(where, exact=False)
    skip_rungs = has_graph or total <= _COST_OF_LOOKUP * enough
    for rung in rungs(code):
        if only not in (None, rung.name) or rung.name in tried:
            continue
        if skip_rungs and only is None and not by_code and rung.radius is not None:
            continue
        narrowed = replace(where, bands=rung.bands)
        size = size_of(store, narrowed, settings.max_counted)
        tried[rung.name] = size.count
        if only is not None or size.count >= enough:
            break
    note = None
    too_many = size.count > max(_SMALL, total // _COST_OF_LOOKUP)
    if only is None and rung.radius is not None and too_many:
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
    """The same, limited to a fixed sample when there are more than ``most`` candidates."""
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
