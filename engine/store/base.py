"""The interface of a vector store, and the types of its filters and requests.

A point "takes part" in a request when it passes the request's filter.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.records import Point
from engine.store.cells import Cells
from engine.store.counts import Facets

__all__ = [
    "PARTS",
    "SECOND",
    "Coarse",
    "Collection",
    "Condition",
    "Filter",
    "Ids",
    "Match",
    "Nearest",
    "Part",
    "Profile",
    "Range",
    "VectorStore",
]

SECOND = "-b"
"""Ends the name of an index that is made beside one of the same model, which has the plain name."""
PARTS = 256
"""Every point belongs to one of so many parts, by its id: some parts are a fixed, unbiased sample
of any selection of points."""


@dataclass(frozen=True, slots=True)
class Match:
    """Holds for points whose field has one of these values; a list field: contains one of them."""

    field: str
    values: tuple[str, ...] | tuple[int, ...] | tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Holds for points whose number lies within these bounds, both inclusive; None = no bound."""

    field: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Ids:
    """Holds for the points with these ids."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Holds for the points in the first ``count`` of the 256 parts."""

    count: int


Condition = Match | Range | Ids | Part


@dataclass(frozen=True, slots=True)
class Coarse:
    """The coarse filter (engine/search/ladder.py): which points are candidates.

    A point is one when it lies in one of ``cells``, or when its code differs from ``code`` in at
    most ``radius`` bits. None of these is missed. A store that looks codes up by their bands lets
    further points pass, and so does one that does not know yet in which cell a point lies.

    cells: numbers of cells of the store's :attr:`VectorStore.cells`.
    code: a packed code, B/8 bytes. radius: in bits; None = codes are not looked at.
    of: the ``key`` of the cells. If the store has made new ones since, all points are candidates.
    """

    cells: tuple[int, ...] = ()
    code: bytes = b""
    radius: int | None = None
    of: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects points.

    must: all of these conditions hold. must_not: none of these holds.
    coarse: the coarse filter; None = all points are candidates.
    """

    must: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()
    coarse: Coarse | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """The kind of points that a store holds.

    model: fingerprint of the model that encoded them. dim: length D of z. bits: B, of a code.
    precision: number format in which the model computed when the store was created; None = not
        recorded. It takes no part in comparisons: it changes the points by rounding only.
    words: length E of the second vector that searches by words compare; None = points have none.
    """

    model: str
    dim: int
    bits: int
    precision: Literal["fp32", "bf16"] | None = field(default=None, compare=False)
    words: int | None = None

    def noted(self) -> dict[str, Any]:
        """The fields to record in the store, as keyword arguments, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_noted(cls, noted: dict[str, Any], place: str, latest: int) -> "Collection":
        """What a store wrote down of it, with the store's "format".

        Args:
            noted: stores made before formats had numbers lack "format"; that is format 1.
            place: what the store is called in errors.
            latest: the latest format that this version knows.

        Raises:
            StoreError: a later version made it. TypeError: it is something else.
        """
        found = noted.get("format", 1)
        if not isinstance(found, int) or found > latest:
            raise StoreError(
                f"{place} was made by a later version of Precedent (its format is {found}, this "
                f"version knows up to {latest}); install that version or a later one"
            )
        return cls(**{name: value for name, value in noted.items() if name != "format"})


@dataclass(frozen=True, slots=True)
class Profile:
    """How a store indexes its vectors; docs/search.md says which profile suits what.

    graph: "hash" keeps no graph, so that searches rely on the coarse filter; "precise" also keeps
        an HNSW graph over the vectors.
    quantised: keep eight-bit copies of the vectors in memory to find candidates, which are then
        scored again by the full vectors.
    """

    graph: Literal["hash", "precise"] = "hash"
    quantised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """A request for the points most similar to a vector.

    z: float32 (D,), unit length. where: which points take part. limit: most points returned.
    vector: which vector of the points is compared. "words": the second one, float32 (E,), always
        with every point that takes part, and without a coarse filter.
    exact: compare with every point that takes part. False = the store may use the graph and the
        quantised vectors of its profile, which can miss some.
    with_z: the points come with z where that saves a request, as from a server.
    """

    z: NDArray[np.float32]
    where: Filter
    limit: int
    exact: bool = False
    with_z: bool = False
    vector: Literal["blended", "words"] = "blended"


class VectorStore(Protocol):
    """Stores points by id, selects them by filter and ranks them by vector.

    Several threads may read and write at the same time.

    Raises, from any method:
        StoreError: the store cannot do what was asked.
    """

    @property
    def collection(self) -> Collection: ...

    @property
    def profile(self) -> Profile: ...

    @property
    def cells(self) -> Cells | None:
        """The cells into which the points are divided; None = they are not."""
        ...

    def approximates(self, where: Filter) -> bool:
        """Whether a request with this filter that is not exact may miss some of the most similar
        points."""
        ...

    @property
    def counts_at_once(self) -> bool:
        """Whether counts and facets take so little time that they need not be estimated."""
        ...

    @property
    def senders(self) -> Executor | None:
        """Sends requests at the same time; None = they take so little time that one after another
        is as quick."""
        ...

    def arrange(self, profile: Profile) -> None:
        """Changes the profile, rebuilds the vector index and makes cells anew; returns when that is
        done."""
        ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Adds points, or replaces those with the same id. Each must carry z, and words where the
        collection has them."""
        ...

    def flush(self) -> None:
        """Makes all writes durable: on return, they survive a power cut."""
        ...

    def optimise(self) -> None:
        """Lets the store optimise its segments, and make cells or bring them up to date, after bulk
        writes."""
        ...

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        """For each request its points, most similar first, with their scores; without z, unless
        the request asks for it.

        All requests go in one round trip.
        """
        ...

    def count(self, where: Filter, *, exact: bool = True) -> int:
        """How many points take part; ``exact=False``: an immediate estimate from statistics."""
        ...

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        """For each field: value → number of points, the ``limit`` most frequent, descending. Fields
        of which the store may count too few are named beside it."""
        ...

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        """The points with these ids, in the order given; unknown ids are skipped."""
        ...

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        """All points that take part, ordered by id; read ``page`` at a time."""
        ...

    def delete(self, where: Filter) -> int:
        """Deletes the points that take part and returns how many there were."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
