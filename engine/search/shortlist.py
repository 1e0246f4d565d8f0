"""Fetches the shortlist: the most similar candidates, or the most similar of each group.

A group is a study or a patient. The shortlist is then put into a total order (ranking.py).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.records import Hit, ImageRecord, Point
from engine.search.ranking import ranked
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Match, Nearest, VectorStore

__all__ = [
    "best_of_each",
    "each_most_similar",
    "first_limit",
    "first_of_each",
    "group_of",
    "look_ahead",
    "most_similar",
    "ranked_groups",
    "without_groups",
]

_OVERFETCH = 0.05
"""Share of points fetched beyond those wanted, so as to see where a run of equal scores ends."""
_GROW = 4
"""The limit of a request is multiplied by this when the answer was too short."""
_ROUNDS = 12
"""Most requests made to find enough groups."""
_VALUES_AT_ONCE = 256
"""Most values in one filter condition."""


def most_similar(
    store: VectorStore,
    z: NDArray[np.float32],
    where: Filter,
    wanted: int,
    *,
    exact: bool,
    vector: Literal["blended", "words"] = "blended",
) -> list[Point]:
    """The ``wanted`` points most similar to ``z``, and all with the same score as the last.

    Args:
        z: float32 (D,), unit length.
        where: which points take part.
        wanted: how many; fewer are returned when fewer take part.
        exact: compare with all that take part; False = the store may approximate.
        vector: which one of the points is compared; ``z`` is of its length.
    """
    (points,) = each_most_similar(store, [Nearest(z, where, wanted, exact, vector=vector)])
    return points


def each_most_similar(store: VectorStore, asked: Sequence[Nearest]) -> list[list[Point]]:
    """For each request its ``limit`` most similar points, and all with the same score as the last.

    Among points with equal scores the store returns any that fit its limit. So that the result
    does not depend on which, more are fetched until the score drops below that of the last point
    wanted. All requests go in one round trip; those whose lists are too short go in another one.
    """
    found: list[list[Point]] = [[] for _ in asked]
    limits = {at: _overfetched(one.limit) for at, one in enumerate(asked)}
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


def look_ahead(store: AheadStore, asked: Sequence[Nearest]) -> None:
    """Sends what :func:`each_most_similar` will ask first."""
    store.query_ahead([replace(one, limit=_overfetched(one.limit)) for one in asked])


def _overfetched(limit: int) -> int:
    return limit + max(2, int(_OVERFETCH * limit))


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
    nobody: Collection[str] = (),
    vector: Literal["blended", "words"] = "blended",
) -> list[Point]:
    """Points that include the most similar one of each of the ``wanted`` most similar groups.

    Each further request excludes the groups found so far; otherwise one study with very many
    similar images would take up the whole list.

    Args:
        z: float32 (D,), unit length.
        where: which points take part.
        group_by: "study" or "patient". An image without one is a group by itself.
        wanted: how many groups.
        exact, vector: as for :func:`most_similar`.
        nobody: groups whose images are groups by themselves, see placeholders.py.
    """
    found: list[Point] = []
    names: dict[str, None] = {}
    unnamed: set[str] = set()
    limit = first_limit(wanted)
    for _ in range(_ROUNDS):
        rest = without_groups(where, group_by, names)
        points = most_similar(store, z, rest, limit, exact=exact, vector=vector)
        found.extend(points)
        for point in points:
            name = group_of(point.record, group_by, nobody)
            if name is None:
                unnamed.add(point.id)
            else:
                names[name] = None
        # Images that name no group are not excluded, so every request returns them again.
        if len(points) < limit or len(names) + len(unnamed) >= wanted:
            break
        limit = min(_GROW * limit, 4096)
    return list({point.id: point for point in found}.values())


def first_limit(groups: int) -> int:
    """How many points are asked for first where so many groups are wanted."""
    return 2 * groups


def without_groups(where: Filter, field: str, names: Iterable[str]) -> Filter:
    """The filter, with the images excluded whose ``field`` is one of these studies or patients."""
    values = iter(names)
    chunks = iter(lambda: tuple(islice(values, _VALUES_AT_ONCE)), ())
    seen = tuple(Match(field, chunk) for chunk in chunks)
    return replace(where, must_not=(*where.must_not, *seen))


def ranked_groups(
    points: Sequence[Point],
    code: NDArray[np.uint8],
    order: str,
    group_by: str | None,
    nobody: Collection[str] = (),
) -> list[Hit]:
    """The points as hits in total order; with ``group_by``, only the first hit of each group."""
    hits = ranked(points, code, order)
    return hits if group_by is None else list(first_of_each(hits, group_by, nobody))


def group_of(record: ImageRecord, group_by: str, nobody: Collection[str]) -> str | None:
    """The study or patient of an image; None = it is a group by itself."""
    name: str | None = getattr(record, group_by)
    return None if name in nobody else name


def first_of_each(
    hits: Iterable[Hit], group_by: str, nobody: Collection[str] = ()
) -> Iterator[Hit]:
    """The first hit of each study or patient; an image that names none is a group by itself."""
    seen: set[str] = set()
    for hit in hits:
        name = group_of(hit.record, group_by, nobody) or f"image {hit.id}"
        if name not in seen:
            seen.add(name)
            yield hit
