"""Candidates of several examples together, each compared with every example."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming
from engine.records import Hit, ImageRecord, Point
from engine.search.shortlist import each_most_similar, without_groups
from engine.search.similarity import cosines, unit
from engine.store.base import Filter, Ids, Nearest, VectorStore

__all__ = ["Example", "Pool", "Suggestion"]

_AT_ONCE = 1000
_GROW = 4
_MOST = 4096
_ROUNDS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An image to compare with. id: None = it was uploaded. z: float32 (D,). code: uint8
    (B/8,), packed."""

    id: str | None
    record: ImageRecord
    z: NDArray[np.float32]
    code: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """hit: its similarity and Hamming distance are those to the example that it is most like.
    because: the id of that example; None = the uploaded image."""

    hit: Hit
    because: str | None


class Pool:
    """The candidates found so far, without those nearer to a disliked example.

    Args:
        store: where they are.
        liked, disliked: the examples.
    """

    def __init__(
        self, store: VectorStore, liked: Sequence[Example], disliked: Sequence[Example]
    ) -> None:
        self._store = store
        self._liked = liked
        self._likes = [unit(one.z) for one in liked]
        self._dislikes = [unit(one.z) for one in disliked]
        self._codes = np.stack([one.code for one in liked])
        self._found: dict[str, Suggestion | None] = {}

    @property
    def compared(self) -> int:
        """Candidates compared with the examples."""
        return len(self._found)

    @property
    def nearer_to_disliked(self) -> int:
        """How many of these are nearer to a disliked example than to any liked one."""
        return sum(one is None for one in self._found.values())

    def suggestions(self) -> list[Suggestion]:
        """Most similar first; equals by Hamming distance, then by id."""
        kept = [one for one in self._found.values() if one is not None]
        return sorted(kept, key=lambda one: (-one.hit.similarity, one.hit.hamming, one.hit.id))

    def fill(self, asked: Sequence[Nearest], group_by: str | None, wanted: int) -> bool:
        """Adds what is most similar to each example; False when it was given up before.

        All that are not nearer to a disliked example are added of which one of ``asked``
        knows fewer than ``wanted`` better ones; with ``group_by``, the best of each of the
        ``wanted`` best groups. One round trip asks for all; what it was too short for is
        asked again, without what is known, so that no large study can hide the rest.
        """
        lines = [_Line(one, group_by) for one in asked]
        limit = 2 * wanted
        for _ in range(_ROUNDS):
            answers = each_most_similar(self._store, [line.question(limit) for line in lines])
            self._add(point for points in answers for point in points)
            for line, points in zip(lines, answers, strict=True):
                for point in points:
                    line.note(point, kept=self._found.get(point.id) is not None)
            lines = [
                line
                for line, points in zip(lines, answers, strict=True)
                if len(points) >= limit and line.count < wanted
            ]
            if not lines:
                return True
            limit = min(_GROW * limit, max(_MOST, limit))
        return False

    def _add(self, points: Iterable[Point]) -> None:
        new = [i for i in dict.fromkeys(point.id for point in points) if i not in self._found]
        for start in range(0, len(new), _AT_ONCE):
            found = self._store.get(new[start : start + _AT_ONCE], with_z=True)
            stored = [point for point in found if point.z is not None]
            if stored:
                self._compare(stored)

    def _compare(self, points: Sequence[Point]) -> None:
        z = unit(np.stack([point.z for point in points if point.z is not None]))
        likeness = np.stack([cosines(z, one) for one in self._likes], axis=1)
        distances = hamming(np.stack([point.code for point in points])[:, None], self._codes)
        best = likeness.max(axis=1)
        # Between examples that are equally like it, the one with the nearest code.
        equal = likeness == best[:, None]
        nearest = np.where(equal, distances, np.iinfo(np.int64).max).argmin(axis=1)
        worst = np.full(len(points), -np.inf)
        for one in self._dislikes:
            worst = np.maximum(worst, cosines(z, one))
        for row, point in enumerate(points):
            example = int(nearest[row])
            hit = Hit(point.id, float(best[row]), int(distances[row, example]), point.record)
            self._found[point.id] = (
                None if worst[row] > best[row] else Suggestion(hit, self._liked[example].id)
            )


class _Line:
    """What one question has brought so far."""

    def __init__(self, asked: Nearest, group_by: str | None) -> None:
        self._asked = asked
        self._group_by = group_by
        self._groups: dict[str, None] = {}
        self._images: dict[str, None] = {}
        self._alone = 0

    @property
    def count(self) -> int:
        """Groups known; an image that is in none is one by itself."""
        return len(self._groups) + self._alone

    def note(self, point: Point, *, kept: bool) -> None:
        group = None if self._group_by is None else getattr(point.record, self._group_by)
        if not kept or group is None:
            # A group of which nothing is kept yet may have another image that is.
            self._images[point.id] = None
            self._alone += kept
        else:
            self._groups[group] = None

    def question(self, limit: int) -> Nearest:
        """Asks for more than is known."""
        where: Filter = self._asked.where
        if self._group_by is not None:
            where = without_groups(where, self._group_by, self._groups)
        if self._images:
            where = replace(where, must_not=(*where.must_not, Ids(tuple(self._images))))
        return replace(self._asked, where=where, limit=limit)
