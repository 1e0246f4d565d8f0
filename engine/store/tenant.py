"""A store as one tenant sees it: every request is narrowed to the tenant's own points."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Self

from engine.errors import StoreError
from engine.records import Point
from engine.store.base import Collection, Filter, Match, Nearest, Profile, VectorStore
from engine.store.cells import Cells
from engine.store.counts import Facets

__all__ = ["TenantStore"]


class TenantStore:
    """Another store, without all that is not the tenant's. Closing it leaves the other open.

    Args:
        store: holds the points of all tenants.
        tenant: whose points there are, as far as anybody can tell from here.
    """

    def __init__(self, store: VectorStore, tenant: str) -> None:
        self._store = store
        self._tenant = tenant
        self._own = Match("tenant", (tenant,))

    def _narrowed(self, where: Filter) -> Filter:
        return replace(where, must=(self._own, *where.must))

    @property
    def collection(self) -> Collection:
        return self._store.collection

    @property
    def profile(self) -> Profile:
        return self._store.profile

    @property
    def cells(self) -> Cells | None:
        """Those of the whole store. Their number tells about how many points all tenants have."""
        return self._store.cells

    def approximates(self, where: Filter) -> bool:
        return self._store.approximates(self._narrowed(where))

    @property
    def counts_at_once(self) -> bool:
        return self._store.counts_at_once

    @property
    def senders(self) -> Executor | None:
        return self._store.senders

    def arrange(self, profile: Profile) -> None:  # noqa: ARG002 - as the protocol has it
        """Raises StoreError: the arrangement is that of all tenants."""
        raise StoreError("a tenant cannot rearrange the index; use `precedent profile`")

    def upsert(self, points: Sequence[Point]) -> None:
        """Raises StoreError: a point is another tenant's, or has the id of one that is."""
        taken = self._store.get([point.id for point in points])
        if any(point.record.tenant != self._tenant for point in (*points, *taken)):
            raise StoreError(f"a point is not of the tenant {self._tenant!r}; nothing was written")
        self._store.upsert(points)

    def flush(self) -> None:
        self._store.flush()

    def optimise(self) -> None:
        self._store.optimise()

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        return self._store.query([replace(one, where=self._narrowed(one.where)) for one in asked])

    def count(self, where: Filter, *, exact: bool = True) -> int:
        return self._store.count(self._narrowed(where), exact=exact)

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        return self._store.facets(fields, self._narrowed(where), limit)

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        found = self._store.get(ids, with_z=with_z)
        return [point for point in found if point.record.tenant == self._tenant]

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        return self._store.scroll(self._narrowed(where), page=page, with_z=with_z)

    def delete(self, where: Filter) -> int:
        return self._store.delete(self._narrowed(where))

    def close(self) -> None:
        """Leaves the store open, which others use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
