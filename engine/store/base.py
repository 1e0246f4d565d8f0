"""What the search and the indexer ask of a vector store, in our own types."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.records import Point

__all__ = [
    "FORMAT",
    "Collection",
    "Condition",
    "Filter",
    "Ids",
    "Match",
    "Nearest",
    "Profile",
    "Range",
    "VectorStore",
]

FORMAT = 1
"""Version of what a store keeps: vectors, payload, payload indexes, and what it notes of itself."""


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
    precision: in which that model computed when the store was made; None = not noted. Two stores
        that differ in nothing else hold the same, but for rounding.
    """

    model: str
    dim: int
    bits: int
    precision: Literal["fp32", "bf16"] | None = field(default=None, compare=False)

    def noted(self) -> dict[str, Any]:
        """What a store writes down of it, as keyword arguments; what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_noted(cls, noted: dict[str, Any], place: str) -> "Collection":
        """What a store wrote down of it, with the store's "format".

        Args:
            noted: stores made before formats had numbers lack "format"; that is format 1.
            place: what the store is called in errors.

        Raises:
            StoreError: a later version made it. TypeError: it is something else.
        """
        found = noted.get("format", 1)
        if not isinstance(found, int) or found > FORMAT:
            raise StoreError(
                f"{place} was made by a later version of Precedent (its format is {found}, this "
                f"version knows up to {FORMAT}); install that version or a later one"
            )
        return cls(**{name: value for name, value in noted.items() if name != "format"})


@dataclass(frozen=True, slots=True)
class Profile:
    """How a store arranges its vectors; docs/search.md says which to take when.

    graph: "hash" keeps none, the pre-filter does the work; "precise" keeps an HNSW graph over
        the dense vectors as well.
    quantised: eight-bit copies of the vectors in memory find candidates, which are then
        scored again by the vectors themselves.
    """

    graph: Literal["hash", "precise"] = "hash"
    quantised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """Asks for the points most similar to a vector.

    z: float32 (D,), unit length. limit: at most so many points.
    exact: compare with every point that takes part; without it, a graph and quantised
        vectors may be used where the profile has them, and can miss some.
    """

    z: NDArray[np.float32]
    where: Filter
    limit: int
    exact: bool = False


class VectorStore(Protocol):
    """Points by id, found by filter, ranked by vector. All errors are StoreError.

    Reading and writing may be done from several threads at once.
    """

    @property
    def collection(self) -> Collection: ...

    @property
    def profile(self) -> Profile: ...

    def arrange(self, profile: Profile) -> None:
        """Changes the profile, and returns when the store has been rebuilt accordingly."""
        ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Adds points, or replaces those with the same id. Each must carry z."""
        ...

    def flush(self) -> None:
        """Returns when all that was written survives a power cut."""
        ...

    def optimise(self) -> None:
        """Lets the store tidy up after a bulk of writes."""
        ...

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        """For each question its points, most similar first, each with its score.

        All questions go in one round trip. The points carry no z.
        """
        ...

    def count(self, where: Filter, *, exact: bool = True) -> int:
        """How many points take part; not ``exact``: an estimate at once, from statistics."""
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

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
