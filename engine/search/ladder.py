"""The coarse filter: selects the images whose vectors are compared with the query's.

Comparing the query with every stored vector is exact, but slow in a large index. There are two ways
to select these candidates before that, and they form the rungs of a ladder:

- *codes*: the images whose binary code is within a radius of the query's. It is a promise: no image
  within r bits is missed. Whether the most similar images by vector are among them depends on how
  well the codes of the model tell images apart.
- *cells*: the images in the cells nearest to the query (engine/store/cells.py), which the index has
  measured to hold nearly all of the most similar ones. Where filters leave few images in them, more
  cells are looked into.

The last rung, "dense", takes every image that passes the filters: where these are few, where codes
or cells would leave too large a part of them, or where there is a graph that does the selecting.
docs/search.md has the measurements behind the constants.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from engine.codes import band_widths, radius
from engine.search.sizes import Size, sample_of, sampled_parts, size_of
from engine.settings import SearchSettings
from engine.store.base import PARTS, Coarse, Filter, VectorStore
from engine.store.cells import LEAST_POINTS, Cells

__all__ = ["Climb", "Rung", "climb", "enough_for", "looked_into", "radii"]

_FLIPS = (0, 1, 2)
"""s of the radii that are tried, m (s + 1) − 1 for codes of m bands: 3, 7 and 11 for 64 bits."""
_COST_OF_LOOKUP = 12
"""Looking up one candidate by its code takes about as long as comparing this many vectors in a
row."""
_SMALL = 2_000
"""Up to this many candidates are always looked up, and compared by their full-precision vectors."""
_FEW = 3_000
"""Up to this many images are compared whole: that takes no longer than to look into cells."""
_PASSING = 300
"""Candidates that must pass the filters in the cells looked into, for ten hits."""
_LARGEST_SHARE = 0.4
"""Where more of the cells would have to be looked into, everything is compared."""
_MANY = 10**9
"""More images than decide for any rung."""
_CODES_SUFFICE = 0.99
"""Codes go before cells where they find this share of the most similar images in the index, and
leave at most ``_SMALL`` candidates by ``candidates_share``."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One level of the coarse filter.

    name: "codes", "cells" or "dense"; "exact" when the query asks to compare everything; "none"
        when nothing is searched.
    radius: every image within this Hamming distance of the query is a candidate; None = the
        candidates are not limited by distance.
    cells: how many of the nearest cells are looked into; 0 = cells play no part.
    """

    name: str
    radius: int | None = None
    cells: int = 0

    @property
    def label(self) -> str:
        """Name, radius and cells in one word, as in "codes-7" and "cells-16"."""
        if self.name == "dense":
            return self.name
        numbers = [one for one in (self.radius, self.cells or None) if one is not None]
        return "-".join([self.name, *map(str, numbers)])

    @classmethod
    def labelled(cls, label: str) -> "Rung":
        """The rung with this :attr:`label`. Raises ValueError: there is none."""
        name, *numbers = label.split("-")
        values = [int(number) for number in numbers]
        found = cls(name)
        if name not in ("codes", "cells", "dense", "exact"):
            raise ValueError(label)
        if name == "codes" and 1 <= len(values) <= 2:
            found = cls(name, *values)
        elif name == "cells" and len(values) == 1:
            found = cls(name, cells=values[0])
        if found.label != label or label in ("codes", "cells"):
            raise ValueError(label)
        return found


@dataclass(frozen=True, slots=True)
class Climb:
    """The outcome of climbing the ladder: the rung taken, and the filter that selects candidates.

    where: the query's filters together with the rung's coarse filter.
    size: number of candidates on the rung.
    matching: number of images that pass the query's filters.
    tried: number of candidates of each rung that was tried, by its label.
    approximate: the store may answer from its graph or its quantised vectors, where it has them,
        and so may miss some of the most similar candidates.
    parts: ``where`` selects the images of this many of the store's 256 parts; fewer than 256 when
        there are too many candidates to compare, so that only a sample of them is.
    note: why the rung is not simply the first one with enough candidates; a sentence for the
        reader of the answer, or None.
    """

    rung: Rung
    where: Filter
    size: Size
    matching: Size
    tried: dict[str, int]
    approximate: bool = False
    parts: int = PARTS
    note: str | None = None

    @property
    def radius(self) -> int | None:
        """Every image within this Hamming distance is a candidate; None = that is not promised."""
        return self.rung.radius if self.parts == PARTS else None

    @property
    def compared(self) -> int:
        """How many candidates are within reach of the comparison: all, or those in the sample."""
        return self.size.count * self.parts // PARTS


def radii(bits: int) -> list[int]:
    """The radii in which codes of so many bits are looked up, ascending."""
    bands = len(band_widths(bits))
    return [radius(bands, s) for s in _FLIPS]


def enough_for(matching: int, k: int, settings: SearchSettings) -> int:
    """How many candidates codes must leave for k hits.

    Enough that few of the k most similar images are missing from them: the largest of a fixed
    minimum, a number for each hit, and a share of the images that pass the filters.
    """
    share = settings.candidates_share * max(1.0, sqrt(k / 10))
    return max(settings.min_candidates, settings.candidates_per_hit * k, round(share * matching))


def climb(
    store: VectorStore,
    z: NDArray[np.float32],
    code: NDArray[np.uint8],
    where: Filter,
    k: int,
    settings: SearchSettings,
    *,
    wider: int = 1,
    by_code: bool = False,
    within: int | None = None,
    only: str | None = None,
    above: Climb | None = None,
    sized: Callable[[Filter], Size | None] | None = None,
) -> Climb:
    """The rung on which to search for images like one with this vector and code.

    Args:
        z: float32 (D,), unit length. code: uint8 (B/8,), packed.
        where: the query's filters.
        k: hits wanted.
        settings: up to which number candidates are counted and compared, and ``coarse``.
        wider: ask for so many times as many candidates.
        by_code: hits are ordered by Hamming distance, so codes are looked at even where the store
            has a graph or holds few images.
        within: every image within this Hamming distance is to be a candidate, whatever the rung.
        only: take the rung with this label, however many candidates it has. For a further page of
            a list, which must stay on the rung of the first page.
        above: an earlier result whose rung turned out to have too few candidates; start with
            the rung after it.
        sized: tells instead of the store how many images pass a filter, for a look ahead; None =
            as many as are wanted of a rung.
    """
    if sized is None:
        sized = partial(size_of, store, max_counted=settings.max_counted)
    matching = size = sized(where) or Size(0)
    tried = {} if above is None else dict(above.tried)
    if only is not None:
        rungs: Iterator[Rung] = iter([Rung.labelled(only)])
    else:
        rungs = _rungs(store, where, matching.count, k * wider, settings, by_code, within)
    enough = wider * enough_for(matching.count, k, settings)
    in_cells = round(wider * _PASSING * max(1.0, sqrt(k / 10)))
    note = None
    for rung in rungs:
        if rung.label in tried:
            continue
        narrowed = replace(where, coarse=_coarse(store, rung, z, code))
        if rung.name == "dense":
            size = matching
        else:
            size = sized(narrowed) or Size(in_cells if rung.cells else enough)
        tried[rung.label] = size.count
        if only is not None or (within is not None and wider == 1):
            break
        if (
            rung.name == "codes"
            and not rung.cells
            and size.count > max(_SMALL, matching.count // _COST_OF_LOOKUP)
        ):
            # The radii that follow would let pass even more.
            if store.cells is None or by_code or settings.coarse == "codes":
                note = (
                    f"the codes of {size.text} of {matching.text} images are near: they "
                    "would save nothing, all were compared"
                )
                rung, narrowed, size = Rung("dense"), where, matching
                tried[rung.label] = size.count
                break
            continue
        if size.count >= (in_cells if rung.cells else enough):
            break
    able = store.approximates(narrowed)
    shortcut = able and store.profile.graph == "precise" and rung.name == "dense"
    approximate = shortcut or (able and store.profile.quantised and size.count > _SMALL)
    found = Climb(rung, narrowed, size, matching, tried, approximate, note=note)
    return found if shortcut else _bounded(found, settings.max_scanned)


def looked_into(
    store: VectorStore,
    z: NDArray[np.float32],
    code: NDArray[np.uint8],
    where: Filter,
    k: int,
    settings: SearchSettings,
    most: int,
    *,
    by_code: bool = False,
    within: int | None = None,
    only: str | None = None,
) -> list[Filter]:
    """The filters of the first ``most`` rungs that :func:`climb` counts if many images pass."""
    # An index that has no cells has few images.
    passing = LEAST_POINTS if store.cells is None else _MANY
    rungs: Iterator[Rung] = _rungs(store, where, passing, k, settings, by_code, within)
    if only is not None:
        rungs = iter([Rung.labelled(only)])
    coarse = (_coarse(store, rung, z, code) for rung in islice(rungs, most))
    return [replace(where, coarse=one) for one in coarse if one is not None]


def _rungs(
    store: VectorStore,
    where: Filter,
    matching: int,
    k: int,
    settings: SearchSettings,
    by_code: bool,
    within: int | None,
) -> Iterator[Rung]:
    """The rungs to try, in this order; "dense" is the last."""
    cells = store.cells
    if within is not None:
        yield Rung("codes", within, 0 if cells is None or by_code else cells.probes)
        # Everything is within that radius, or farther away.
        yield Rung("dense", within)
        return
    has_graph = store.profile.graph == "precise" and store.approximates(where)
    graph_first = has_graph and settings.coarse == "auto" and not by_code
    few = matching <= (_FEW if cells else _COST_OF_LOOKUP * enough_for(matching, k, settings))
    codes_first = settings.coarse == "codes" or (
        settings.coarse == "auto" and (cells is None or _codes_suffice(cells, settings))
    )
    if by_code or (codes_first and not graph_first and not few):
        for r in radii(store.collection.bits):
            yield Rung("codes", r)
    if cells is not None and not (graph_first or few or by_code or settings.coarse == "codes"):
        probes = round(cells.probes * max(1.0, sqrt(k / 10)))
        while probes <= _LARGEST_SHARE * len(cells):
            yield Rung("cells", cells=probes)
            probes *= 2
    yield Rung("dense")


def _codes_suffice(cells: Cells, settings: SearchSettings) -> bool:
    """Whether codes find nearly all, and leave few enough: their candidates lie anywhere in the
    index, those of cells beside each other, which makes the same number a multiple quicker."""
    few = settings.candidates_share * cells.points <= _SMALL
    return few and cells.code_recall >= _CODES_SUFFICE


def _coarse(
    store: VectorStore, rung: Rung, z: NDArray[np.float32], code: NDArray[np.uint8]
) -> Coarse | None:
    if rung.name not in ("codes", "cells"):
        return None
    cells = store.cells
    if rung.cells and cells is not None:
        near = cells.nearest(z, rung.cells)
        return Coarse(near, code.tobytes(), rung.radius, cells.key)
    # The cells of the first page of a list may have gone.
    return None if rung.radius is None else Coarse(code=code.tobytes(), radius=rung.radius)


def _bounded(found: Climb, most: int) -> Climb:
    """The same, limited to a fixed sample when there are more than ``most`` candidates."""
    if found.size.count <= most:
        return found
    parts = sampled_parts(found.size.count, most)
    note = (
        f"{found.size.text} images are too many to compare: {parts} of {PARTS} parts of them "
        "were searched; narrow the search with filters, or let the administrator build a graph "
        "(precedent profile precise)"
    )
    return replace(
        found,
        where=sample_of(found.where, parts),
        parts=parts,
        note=note,
    )
