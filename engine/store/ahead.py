"""A store for the requests of one question, which can be sent ahead, all at the same time.

A question is a series of decisions: how many images pass decides where to look, and so on. Where a
store is a server, each of its requests is a round trip, and one after another they take longer than
the work. So what a question will most likely ask is sent beforehand; when it comes to ask it, the
answer is there. It is the same request, so the answer is the same; what was not foreseen is asked
as ever.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from engine.errors import StoreError
from engine.records import Point
from engine.store.base import Collection, Filter, Nearest, Profile, VectorStore
from engine.store.cells import Cells
from engine.store.counts import Facets

__all__ = ["AheadStore", "asked_ahead"]

_T = TypeVar("_T")


@contextmanager
def asked_ahead(store: VectorStore) -> Iterator[VectorStore]:
    """For one question: an :class:`AheadStore` where round trips take time, else ``store``."""
    if store.senders is None or isinstance(store, AheadStore):
        yield store
        return
    ahead = AheadStore(store, store.senders)
    try:
        yield ahead
    finally:
        ahead.forget()


@dataclass(frozen=True, slots=True)
class _Part:
    """One answer of a request that has several."""

    whole: Future[list[list[Point]]]
    place: int

    def cancel(self) -> bool:
        return self.whole.cancel()

    def result(self) -> list[Point]:
        return self.whole.result()[self.place]


class AheadStore:
    """Another store, with the answers to what was asked of it before; for reading, by one thread.

    A failed request raises its error when its answer is wanted; never if it is not.
    """

    def __init__(self, store: VectorStore, senders: Executor) -> None:
        self._store = store
        self._executor = senders
        self._sent: dict[Hashable, Future[Any] | _Part] = {}
        self._points: dict[str, Point] = {}

    def forget(self) -> None:
        """Leaves what was sent and has not begun yet."""
        for future in self._sent.values():
            future.cancel()

    # What will be asked

    def count_ahead(self, where: Filter, *, exact: bool = True) -> None:
        self._send(_count(where, exact), lambda: self._store.count(where, exact=exact))

    def facets_ahead(self, fields: Sequence[str], where: Filter, limit: int) -> None:
        for one in fields:
            self._send(_facet(one, where, limit), self._one_facet(one, where, limit))

    def query_ahead(self, asked: Sequence[Nearest]) -> None:
        """All of them are one request."""
        keys = [_nearest(one) for one in asked]
        new = [at for at, key in enumerate(keys) if key not in self._sent]
        if not new:
            return
        answers = self._executor.submit(self._store.query, [asked[at] for at in new])
        for place, at in enumerate(new):
            self._sent[keys[at]] = _Part(answers, place)

    def get_ahead(self, ids: Sequence[str], *, with_z: bool = False) -> None:
        self._send(_get(ids, with_z), lambda: self._store.get(ids, with_z=with_z))

    def _send(self, key: Hashable, request: Callable[[], object]) -> None:
        if key not in self._sent:
            self._sent[key] = self._executor.submit(request)

    def _one_facet(self, field: str, where: Filter, limit: int) -> Callable[[], Facets]:
        return lambda: self._store.facets([field], where, limit)

    # What is asked

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        self.query_ahead(asked)
        found = [cast(list[Point], self._sent[_nearest(one)].result()) for one in asked]
        self._points |= {
            point.id: point for points in found for point in points if point.z is not None
        }
        return found

    def count(self, where: Filter, *, exact: bool = True) -> int:
        return self._answer(_count(where, exact), lambda: self._store.count(where, exact=exact))

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        self.facets_ahead(fields, where, limit)
        sent = [self._sent[_facet(one, where, limit)] for one in fields]
        return Facets.joined(cast(Facets, answer.result()) for answer in sent)

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        if all(one in self._points for one in ids):
            return [self._points[one] for one in ids]
        found = self._answer(_get(ids, with_z), lambda: self._store.get(ids, with_z=with_z))
        if with_z:
            self._points |= {point.id: point for point in found if point.z is not None}
        return list(found)

    def _answer(self, key: Hashable, request: Callable[[], _T]) -> _T:
        """What was sent ahead; else what is answered now, which is kept as well."""
        if key not in self._sent:
            answer: Future[_T] = Future()
            answer.set_result(request())
            self._sent[key] = answer
        return cast(_T, self._sent[key].result())

    # All else is the other store's.

    @property
    def collection(self) -> Collection:
        return self._store.collection

    @property
    def profile(self) -> Profile:
        return self._store.profile

    @property
    def cells(self) -> Cells | None:
        return self._store.cells

    @property
    def counts_at_once(self) -> bool:
        return self._store.counts_at_once

    @property
    def senders(self) -> Executor | None:
        return self._executor

    def approximates(self, where: Filter) -> bool:
        return self._store.approximates(where)

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        return self._store.scroll(where, page=page, with_z=with_z)

    def arrange(self, profile: Profile) -> None:  # noqa: ARG002 - as the protocol has it
        """Raises StoreError."""
        raise _only_reads()

    def upsert(self, points: Sequence[Point]) -> None:  # noqa: ARG002
        """Raises StoreError."""
        raise _only_reads()

    def flush(self) -> None:
        """Raises StoreError."""
        raise _only_reads()

    def optimise(self) -> None:
        """Raises StoreError."""
        raise _only_reads()

    def delete(self, where: Filter) -> int:  # noqa: ARG002
        """Raises StoreError."""
        raise _only_reads()

    def close(self) -> None:
        """Leaves the store open, which others use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _only_reads() -> StoreError:
    return StoreError("a store of one question only reads; write to the store itself")


def _count(where: Filter, exact: bool) -> Hashable:
    return "count", where, exact


def _facet(field: str, where: Filter, limit: int) -> Hashable:
    return "facet", field, where, limit


def _nearest(asked: Nearest) -> Hashable:
    vector = (asked.vector, asked.z.tobytes())
    return "query", *vector, asked.where, asked.limit, asked.exact, asked.with_z


def _get(ids: Sequence[str], with_z: bool) -> Hashable:
    return "get", tuple(ids), with_z
