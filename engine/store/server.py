"""The served store: a collection on a Qdrant server or cluster, for many processes at a time."""

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from engine.errors import StoreError
from engine.records import Point
from engine.store.arrangement import EF, VECTOR, oversampling
from engine.store.base import Collection, Filter, Nearest, Profile
from engine.store.connection import Connection
from engine.store.payload import to_payload
from engine.store.points import checked_vector, not_storable, to_hit, to_point
from engine.store.server_collection import Found, existing, made, made_beside, put_in_force
from engine.store.server_filter import translated
from engine.store.server_layout import Noted, note, rearranged

__all__ = ["ServerStore"]

_UPSERT_AT_ONCE = 256
_GET_AT_ONCE = 1000
_FIRST_LOOK, _LAST_LOOK = 0.5, 60.0
"""Seconds between two looks at what the server is doing: at first, and after a long wait."""
_OPTIMISE_SECONDS, _ARRANGE_SECONDS = 600.0, 21_600.0
"""How long the server is waited for: to tidy up, which it goes on with by itself, and to
rebuild the whole index."""


class ServerStore:
    """Points in a collection. Open one with :meth:`open` or :meth:`create`; close it after use.

    It stays with the collection that was in force when it was opened: when another takes its
    place, the answers of an open store are still all of one model. Closing it closes the
    connection.
    """

    def __init__(self, connection: Connection, found: Found) -> None:
        self._connection = connection
        self._client = connection.client
        self._name = found.name
        self._shown = connection.settings.collection
        self._collection = found.noted.collection
        self._profile = found.noted.profile

    @classmethod
    def create(
        cls, connection: Connection, collection: Collection, profile: Profile | None = None
    ) -> "ServerStore":
        """Opens the store at ``connection``, made anew if there is none.

        A creation that was cut short is completed; of two at once, both succeed.

        Args:
            profile: of a store that is made anew; one that exists keeps its own.

        Raises:
            FingerprintMismatch: it belongs to another model.
            StoreError: the server cannot be used, or is older than 1.16, or the collection
                is somebody else's.
        """
        return cls(connection, made(connection, collection, profile or Profile()))

    @classmethod
    def create_beside(
        cls, connection: Connection, collection: Collection, profile: Profile
    ) -> "ServerStore":
        """Opens the store of another model than the one in force, made anew if there is none.

        Raises:
            StoreError: as for :meth:`create`, or nothing can take the place of what is in force.
        """
        return cls(connection, made_beside(connection, collection, profile))

    @classmethod
    def open(
        cls,
        connection: Connection,
        collection: Collection | None = None,
        *,
        name: str | None = None,
    ) -> "ServerStore":
        """Opens an existing store; with ``collection``, only if it was made for that.

        Args:
            name: the collection's own; None = the one in force.

        Raises:
            StoreNotFound: there is none.
            FingerprintMismatch, StoreError: as for :meth:`create`.
        """
        return cls(connection, existing(connection, collection, name=name))

    def put_in_force(self) -> None:
        """Takes the place of the store in force, in one step. Stores that are open stay open."""
        put_in_force(self._connection, self._name)

    @property
    def name(self) -> str:
        """The collection's own name."""
        return self._name

    @property
    def collection(self) -> Collection:
        return self._collection

    @property
    def profile(self) -> Profile:
        return self._profile

    def arrange(self, profile: Profile) -> None:
        """Changes the profile; searches go on meanwhile, on what is arranged so far."""
        self._connection.ask(
            self._client.update_collection,
            self._name,
            vectors_config=rearranged(profile),
            metadata=note(Noted(self._collection, profile, complete=True)),
        )
        self._profile = profile
        if not self._green_within(_ARRANGE_SECONDS):
            raise StoreError(
                f"{self._connection.server} is still rearranging collection {self._shown!r} "
                f"after {_ARRANGE_SECONDS / 3600:g} hours; it goes on by itself, and answers "
                "are right meanwhile"
            )

    def upsert(self, points: Sequence[Point]) -> None:
        vectors = [checked_vector(point, self._collection) for point in points]
        for start in range(0, len(points), _UPSERT_AT_ONCE):
            some = slice(start, start + _UPSERT_AT_ONCE)
            chunk = [
                self._to_server(point, z)
                for point, z in zip(points[some], vectors[some], strict=True)
            ]
            self._connection.ask(self._client.upsert, self._name, points=chunk, wait=True)

    def flush(self) -> None:
        """Does nothing: ``upsert`` and ``delete`` return once the server has the change in its
        write-ahead log and has applied it."""

    def optimise(self) -> None:
        """Waits, ten minutes at most, until the server has tidied up; it does so by itself."""
        self._green_within(_OPTIMISE_SECONDS)

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        if not asked:
            return []
        requests = [
            models.QueryRequest(
                query=one.z.tolist(),
                using=VECTOR,
                limit=one.limit,
                filter=translated(one.where),
                params=self._search(one.limit, one.exact),
                with_payload=True,
                with_vector=False,
            )
            for one in asked
        ]
        answers = self._connection.ask(
            self._client.query_batch_points, self._name, requests=requests
        )
        return [[to_hit(found) for found in answer.points] for answer in answers]

    def _search(self, limit: int, exact: bool) -> models.SearchParams:
        if exact:
            quantised = models.QuantizationSearchParams(ignore=True)
            return models.SearchParams(exact=True, quantization=quantised)
        quantised = models.QuantizationSearchParams(rescore=True, oversampling=oversampling(limit))
        return models.SearchParams(
            hnsw_ef=EF, quantization=quantised if self._profile.quantised else None
        )

    def count(self, where: Filter, *, exact: bool = True) -> int:
        return self._connection.ask(
            self._client.count, self._name, count_filter=translated(where), exact=exact
        ).count

    def facet(self, field: str, where: Filter, limit: int) -> dict[str, int]:
        passing = translated(where)
        answer = self._connection.ask(
            self._client.facet,
            self._name,
            key=field,
            facet_filter=passing,
            limit=limit,
            # Without a filter the payload index knows the counts.
            exact=passing is not None,
        )
        # The server goes on naming values whose last point has been deleted.
        hits = [(str(hit.value), hit.count) for hit in answer.hits if hit.count]
        return dict(sorted(hits, key=lambda hit: (-hit[1], hit[0])))

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        known = _known_ids(ids)
        found: dict[str, Point] = {}
        for start in range(0, len(known), _GET_AT_ONCE):
            records = self._connection.ask(
                self._client.retrieve,
                self._name,
                ids=known[start : start + _GET_AT_ONCE],
                with_payload=True,
                with_vectors=with_z,
            )
            found |= {str(record.id): to_point(record) for record in records}
        return [found[i] for i in ids if i in found]

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        if page < 1:
            raise StoreError(f"a page of {page} points never ends; ask for at least one")
        passing = translated(where)
        offset: models.ExtendedPointId | None = None
        while True:
            # Without an order of its own, the server goes by id.
            records, offset = self._connection.ask(
                self._client.scroll,
                self._name,
                scroll_filter=passing,
                limit=page,
                offset=offset,
                with_payload=True,
                with_vectors=with_z,
            )
            yield from map(to_point, records)
            if offset is None:
                return

    def delete(self, where: Filter) -> int:
        count = self.count(where)
        passing = models.FilterSelector(filter=translated(where) or models.Filter())
        self._connection.ask(self._client.delete, self._name, points_selector=passing, wait=True)
        return count

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> "ServerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _green_within(self, seconds: float) -> bool:
        """Whether the server had nothing left to do at two looks in a row.

        At the first look alone it may not have begun.
        """
        calm, waited, patience = 0, 0.0, _FIRST_LOOK
        while waited < seconds:
            info = self._connection.ask(self._client.get_collection, self._name)
            calm = calm + 1 if info.status == models.CollectionStatus.GREEN else 0
            if calm == 2:
                return True
            if info.status == models.CollectionStatus.RED:
                raise StoreError(
                    f"collection {self._shown!r} on {self._connection.server} is damaged "
                    f"({info.optimizer_status}); look into the server's log, and restore a "
                    "snapshot if need be"
                )
            if info.status == models.CollectionStatus.GREY:
                # After a restart, the server waits to be told to go on.
                self._connection.ask(
                    self._client.update_collection,
                    self._name,
                    optimizers_config=models.OptimizersConfigDiff(),
                )
            pause = _FIRST_LOOK if calm else patience
            patience = min(1.5 * patience, _LAST_LOOK)
            self._connection.sleep(pause)
            waited += pause
        return False

    def _to_server(self, point: Point, z: NDArray[np.float32]) -> models.PointStruct:
        try:
            payload = to_payload(point, self._collection.model)
            json.dumps(payload, ensure_ascii=False).encode()
            return models.PointStruct(
                id=str(uuid.UUID(point.id)), vector={VECTOR: z.tolist()}, payload=payload
            )
        except (ValueError, TypeError) as error:
            raise not_storable(point, error) from None


def _known_ids(ids: Sequence[str]) -> list[models.ExtendedPointId]:
    """Those that can be ids at all; no point has another kind."""
    known: list[models.ExtendedPointId] = []
    for text in ids:
        with contextlib.suppress(ValueError):
            known.append(str(uuid.UUID(text)))
    return known
