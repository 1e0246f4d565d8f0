"""What the search and the indexer ask of a vector store, in our own types."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.records import Point

__all__ = ["Collection", "Condition", "Filter", "Ids", "Match", "Range", "VectorStore"]


@dataclass(frozen=True, slots=True)
class Match:
    """The field has any of these values (for a list field: holds any of them)."""

    field: str
    values: tuple[str, ...] | tuple[int, ...] | tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The number lies within these bounds, both included; None = open."""

    field: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Ids:
    """The point is one of these."""

    values: tuple[str, ...]


Condition = Match | Range | Ids


@dataclass(frozen=True, slots=True)
class Filter:
    """Which points take part.

    must: all of these hold. must_not: none of these holds.
    bands: for each 16-bit band of the code, the values it may have; a point takes part
        when at least one of its bands has one of them. Empty = no pre-filter.
    """

    must: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()
    bands: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Collection:
    """What a store was made for.

    model: fingerprint of the model whose codes it holds. dim: length of z. bits: of a code.
    """

    model: str
    dim: int
    bits: int


class VectorStore(Protocol):
    """Points by id, found by filter, ranked by vector. All errors are StoreError."""

    @property
    def collection(self) -> Collection: ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Adds points, or replaces those with the same id. Each must carry z."""
        ...

    def flush(self) -> None:
        """Returns when all that was written survives a power cut."""
        ...

    def optimise(self) -> None:
        """Lets the store tidy up after a bulk of writes."""
        ...

    def query(self, z: NDArray[np.float32], where: Filter, limit: int) -> list[Point]:
        """At most ``limit`` points, most similar first, each with its score.

        Args:
            z: float32 (D,), unit length.
        """
        ...

    def count(self, where: Filter) -> int:
        """How many points take part; exact."""
        ...

    def facet(self, field: str, where: Filter, limit: int) -> dict[str, int]:
        """Counts by value of the field, most frequent first, at most ``limit`` values."""
        ...

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        """The points with these ids, in this order; unknown ids are left out."""
        ...

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        """All points that take part, ordered by id."""
        ...

    def delete(self, where: Filter) -> int:
        """Removes the points that take part and returns how many there were."""
        ...

    def close(self) -> None: ...
