"""Candidates for a recommendation: fetched for each liked example, compared with all examples."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming
from engine.records import Hit, ImageRecord, Point
from engine.search.shortlist import (
    each_most_similar,
    first_limit,
    group_of,
    look_ahead,
    without_groups,
)
from engine.search.similarity import cosines, unit
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Ids, Nearest, VectorStore

__all__ = ["Example", "Pool", "Suggestion"]

_AT_ONCE = 1000
"""Points fetched from the store with one request, or compared at once."""
_GROW = 4
"""The limit of a request is multiplied by this when it brought too few groups …"""
_LARGEST_LIMIT = 4096
"""… up to this limit."""
_ROUNDS = 12
"""Most round trips of one :meth:`Pool.fill`."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A liked or disliked image.

    id: None = the image was uploaded, not taken from the index.
    z: float32 (D,), unit length. code: uint8 (B/8,), packed.
    """

    id: str | None
    record: ImageRecord
    z: NDArray[np.float32]
    code: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A recommended image.

    hit: with similarity and Hamming distance to the liked example it is most similar to.
    because: id of that example; None = the uploaded image.
    """

    hit: Hit
    because: str | None


class Pool:
    """The candidates found so far for a set of examples.

    Candidates more similar to a disliked example than to every liked one are counted, but not
    suggested.

    Args:
        store: where the candidates are.
        liked, disliked: the examples; at least one is liked.
        nobody: groups whose images are groups by themselves, see placeholders.py.
    """

    def __init__(
        self,
        store: VectorStore,
        liked: Sequence[Example],
        disliked: Sequence[Example],
        nobody: Collection[str] = (),
    ) -> None:
        self._store = store
        self._nobody = nobody
        self._liked = liked
        self._likes = [unit(one.z) for one in liked]
        self._dislikes = [unit(one.z) for one in disliked]
        self._codes = np.stack([one.code for one in liked])
        self._found: dict[str, Suggestion | None] = {}

    @property
    def compared(self) -> int:
        """How many different candidates were compared with the examples."""
        return len(self._found)

    @property
    def nearer_to_disliked(self) -> int:
        """How many of them are more similar to a disliked example than to every liked one."""
        return sum(one is None for one in self._found.values())

    def suggestions(self) -> list[Suggestion]:
        """The candidates kept, most similar first; ties by Hamming distance, then by id."""
        kept = [one for one in self._found.values() if one is not None]
        return sorted(kept, key=lambda one: (-one.hit.similarity, one.hit.hamming or 0, one.hit.id))

    def fill(self, asked: Sequence[Nearest], group_by: str | None, wanted: int) -> bool:
        """Adds the candidates most similar to each liked example.

        When it has returned True, the pool has for each request the ``wanted`` most similar images
        that are not nearer to a disliked example, or all there are; with ``group_by``, the best
        image of each of the ``wanted`` most similar groups. All requests go in one round trip.
        Those that brought too few are sent again with the images and groups known so far excluded,
        as one study with very many similar images would otherwise take up the whole list.

        Args:
            asked: one request for each liked example.
            group_by: "study", "patient" or None.
            wanted: images, or groups, for each request.

        Returns:
            False if some request still had fewer than ``wanted`` after the last round trip allowed.
        """
        requests = [_Request(one, group_by, self._nobody) for one in asked]
        limit = first_limit(wanted)
        for _ in range(_ROUNDS):
            answers = each_most_similar(
                self._store, [request.question(limit) for request in requests]
            )
            self._add(point for points in answers for point in points)
            for request, points in zip(requests, answers, strict=True):
                for point in points:
                    request.note(point, kept=self._found.get(point.id) is not None)
            requests = [
                request
                for request, points in zip(requests, answers, strict=True)
                if len(points) >= limit and request.count < wanted
            ]
            if not requests:
                return True
            limit = min(_GROW * limit, max(_LARGEST_LIMIT, limit))
        return False

    @staticmethod
    def look_ahead(
        store: AheadStore, asked: Sequence[Nearest], group_by: str | None, wanted: int
    ) -> None:
        """Sends what :meth:`fill` will ask first."""
        requests = [_Request(one, group_by, ()) for one in asked]
        look_ahead(store, [request.question(first_limit(wanted)) for request in requests])

    def _add(self, points: Iterable[Point]) -> None:
        new = {point.id: point for point in points if point.id not in self._found}
        bare = [one for one, point in new.items() if point.z is None]
        for start in range(0, len(bare), _AT_ONCE):
            some = self._store.get(bare[start : start + _AT_ONCE], with_z=True)
            new |= {point.id: point for point in some}
        stored = [point for point in new.values() if point.z is not None]
        for start in range(0, len(stored), _AT_ONCE):
            self._compare(stored[start : start + _AT_ONCE])

    def _compare(self, points: Sequence[Point]) -> None:
        z = unit(np.stack([point.z for point in points if point.z is not None]))
        likeness = np.stack([cosines(z, one) for one in self._likes], axis=1)
        distances = hamming(np.stack([point.code for point in points])[:, None], self._codes)
        best = likeness.max(axis=1)
        # Of several equally similar examples, take the one with the smallest Hamming distance.
        equal = likeness == best[:, None]
        nearest = np.where(equal, distances, np.iinfo(np.int64).max).argmin(axis=1)
        worst = np.full(len(points), -np.inf)
        for one in self._dislikes:
            worst = np.maximum(worst, cosines(z, one))
        for row, point in enumerate(points):
            example = int(nearest[row])
            hit = Hit.of(point, float(best[row]), int(distances[row, example]))
            self._found[point.id] = (
                None if worst[row] > best[row] else Suggestion(hit, self._liked[example].id)
            )


class _Request:
    """One request, and the groups and images that it has found so far."""

    def __init__(self, asked: Nearest, group_by: str | None, nobody: Collection[str]) -> None:
        self._asked = asked
        self._group_by = group_by
        self._nobody = nobody
        self._groups: dict[str, None] = {}
        self._images: dict[str, None] = {}
        self._alone = 0

    @property
    def count(self) -> int:
        """Groups found; an image that is in no group counts as one."""
        return len(self._groups) + self._alone

    def note(self, point: Point, *, kept: bool) -> None:
        """Notes a point that was found; kept: it is not nearer to a disliked example."""
        group = None
        if self._group_by is not None:
            group = group_of(point.record, self._group_by, self._nobody)
        if not kept or group is None:
            # Exclude this image alone, not its group: another image of the group may be kept.
            self._images[point.id] = None
            self._alone += kept
        else:
            self._groups[group] = None

    def question(self, limit: int) -> Nearest:
        """The request for further points: the same, without what has been found so far."""
        where: Filter = self._asked.where
        if self._group_by is not None:
            where = without_groups(where, self._group_by, self._groups)
        if self._images:
            where = replace(where, must_not=(*where.must_not, Ids(tuple(self._images))))
        return replace(self._asked, where=where, limit=limit)
