"""The candidates that are put into order: the most similar ones, or the best of each group."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from engine.records import Hit, Point
from engine.search.ranking import ranked
from engine.store.base import Filter, Match, Nearest, VectorStore

__all__ = [
    "best_of_each",
    "each_most_similar",
    "first_of_each",
    "most_similar",
    "ranked_groups",
    "without_groups",
]

_MORE = 0.05
"""Over-fetched, as a share of what is wanted, to see the end of a run of equal scores."""
_GROW = 4
_ROUNDS = 12
_VALUES_AT_ONCE = 256


def most_similar(
    store: VectorStore, z: NDArray[np.float32], where: Filter, wanted: int, *, exact: bool
) -> list[Point]:
    """The ``wanted`` most similar points and all that equal the last of them."""
    (points,) = each_most_similar(store, [Nearest(z, where, wanted, exact)])
    return points


def each_most_similar(store: VectorStore, asked: Sequence[Nearest]) -> list[list[Point]]:
    """For each question its ``limit`` most similar points and all that equal the last of them.

    The store cuts its lists at a limit in any order among equals, so a list has to go on
    until the last one wanted has no equal left behind. All questions go in one round trip,
    and in another those whose lists have to go on.
    """
    found: list[list[Point]] = [[] for _ in asked]
    limits = {at: one.limit + max(2, int(_MORE * one.limit)) for at, one in enumerate(asked)}
    while limits:
        answers = store.query([replace(asked[at], limit=limit) for at, limit in limits.items()])
        for (at, limit), points in zip(list(limits.items()), answers, strict=True):
            wanted = asked[at].limit
            if len(points) < limit or points[wanted - 1].score != points[-1].score:
                found[at] = points[: _end(points, wanted)]
                del limits[at]
            else:
                limits[at] = _GROW * limit
    return found


def _end(points: Sequence[Point], wanted: int) -> int:
    end = min(wanted, len(points))
    while 0 < end < len(points) and points[end].score == points[end - 1].score:
        end += 1
    return end


def best_of_each(
    store: VectorStore,
    z: NDArray[np.float32],
    where: Filter,
    group_by: str,
    wanted: int,
    *,
    exact: bool,
) -> list[Point]:
    """Points among which are the most similar ones of the ``wanted`` most similar groups.

    Each round leaves out the groups that are known, so one large study cannot hide the rest.
    """
    found: list[Point] = []
    names: dict[str, None] = {}
    unnamed: set[str] = set()
    limit = 2 * wanted
    for _ in range(_ROUNDS):
        points = most_similar(store, z, without_groups(where, group_by, names), limit, exact=exact)
        found.extend(points)
        for point in points:
            name = getattr(point.record, group_by)
            if name is None:
                unnamed.add(point.id)
            else:
                names[name] = None
        # Images without a name come back in every round.
        if len(points) < limit or len(names) + len(unnamed) >= wanted:
            break
        limit = min(_GROW * limit, 4096)
    return list({point.id: point for point in found}.values())


def without_groups(where: Filter, field: str, names: Iterable[str]) -> Filter:
    """The filter, which the images of these studies or patients then fail."""
    values = iter(names)
    chunks = iter(lambda: tuple(islice(values, _VALUES_AT_ONCE)), ())
    seen = tuple(Match(field, chunk) for chunk in chunks)
    return replace(where, must_not=(*where.must_not, *seen))


def ranked_groups(
    points: Sequence[Point], code: NDArray[np.uint8], order: str, group_by: str | None
) -> list[Hit]:
    """The points in their total order; with ``group_by``, the first one of each group."""
    hits = ranked(points, code, order)
    return hits if group_by is None else list(first_of_each(hits, group_by))


def first_of_each(hits: Iterable[Hit], group_by: str) -> Iterator[Hit]:
    """The first hit of each study or patient; images that name none stand for themselves."""
    seen: set[str] = set()
    for hit in hits:
        name = getattr(hit.record, group_by) or f"image {hit.id}"
        if name not in seen:
            seen.add(name)
            yield hit
