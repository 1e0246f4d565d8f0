"""The served store: a collection on a Qdrant server or cluster, shared by many processes."""

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from engine.errors import StoreError
from engine.records import Point
from engine.store.arrangement import EF, VECTOR, WORDS, oversampling
from engine.store.base import Collection, Filter, Nearest, Profile
from engine.store.cells import Cells
from engine.store.connection import Connection
from engine.store.counts import Facets
from engine.store.payload import cell_field, to_payload
from engine.store.points import checked_vector, not_storable, to_hit, to_point
from engine.store.server_cells import ServerCells
from engine.store.server_collection import Found, existing, made, made_beside, put_in_force
from engine.store.server_filter import contradicts_itself, translated
from engine.store.server_layout import OFTEN_DISTINCT, Noted, note, rearranged

__all__ = ["ServerStore"]

logger = logging.getLogger(__name__)

_UPSERT_AT_ONCE = 256
_GET_AT_ONCE = 1000
_AT_ONCE = 32
"""Most requests that are sent at the same time; one search has up to twenty, mostly of facets."""
_FACETED_OF_EACH, _LEAST_FACETED, _LEAST_OF_DISTINCT = 4, 1000, 128
"""For each value wanted so many are asked for, and at least the second number, or the third of a
field that has as many values as there are studies or images: every shard names its own most
frequent values."""
_FIRST_LOOK, _LAST_LOOK = 0.5, 60.0
"""Seconds between two polls of the server's state: at first, and at most."""
_OPTIMISE_SECONDS, _ARRANGE_SECONDS = 600.0, 21_600.0
"""How long to wait for the server to optimise its segments, and to rebuild the vector index. It
goes on with either by itself after that."""


class ServerStore:
    """A store in a collection. Open it with :meth:`open` or :meth:`create`; close it after use.

    It keeps using the collection that was in force when it was opened (see server_collection.py),
    even after another one has replaced it, so all its answers are of one model. Closing it closes
    the connection.
    """

    def __init__(self, connection: Connection, found: Found) -> None:
        self._connection = connection
        self._client = connection.client
        self._name = found.name
        self._shown = connection.settings.collection
        self._collection = found.noted.collection
        self._profile = found.noted.profile
        self._limits = found.limits
        self._shards = found.shards
        self._cells = ServerCells(connection, found, self._collection)
        self._senders = ThreadPoolExecutor(_AT_ONCE, "qdrant")

    @classmethod
    def create(
        cls, connection: Connection, collection: Collection, profile: Profile | None = None
    ) -> "ServerStore":
        """Opens the store in force; creates it if there is none.

        An interrupted creation is completed. Two processes may create it at the same time.

        Args:
            collection: the kind of points that it must hold.
            profile: profile of a new store; an existing one keeps its own.

        Raises:
            FingerprintMismatch: it holds points of another model.
            StoreError: the server cannot be used or is older than 1.16, or the collection was
                not created by this program.
        """
        store = cls(connection, made(connection, collection, profile or Profile()))
        store._awake()
        return store

    @classmethod
    def create_beside(
        cls, connection: Connection, collection: Collection, profile: Profile
    ) -> "ServerStore":
        """Opens the store beside the one in force, for this model; creates it if there is none.

        It can be filled while searches use the store in force; :meth:`put_in_force` then switches.

        Raises:
            StoreError: as for :meth:`create`, or the collection in force cannot be replaced
                because it is not behind an alias.
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
        """Opens an existing store.

        Args:
            collection: the kind of points that it must hold; None = any.
            name: the collection's own name; None = the collection in force.

        Raises:
            StoreNotFound: there is no such store.
            FingerprintMismatch, StoreError: as for :meth:`create`, or its creation was not
                completed.
        """
        store = cls(connection, existing(connection, collection, name=name))
        with contextlib.suppress(StoreError):
            # Whoever may only read cannot, and need not.
            store._awake()
        return store

    def put_in_force(self) -> None:
        """Atomically replaces the collection in force by this one; open stores are not affected."""
        put_in_force(self._connection, self._name)

    @property
    def name(self) -> str:
        """The collection's own name, not the alias."""
        return self._name

    @property
    def collection(self) -> Collection:
        return self._collection

    @property
    def profile(self) -> Profile:
        return self._profile

    @property
    def cells(self) -> Cells | None:
        """They may be a minute old. Read from the server when first asked for."""
        return self._cells.in_force

    @property
    def counts_at_once(self) -> bool:
        return False

    @property
    def senders(self) -> Executor:
        return self._senders

    def approximates(self, where: Filter) -> bool:  # noqa: ARG002
        return self._profile.graph == "precise" or self._profile.quantised

    def arrange(self, profile: Profile) -> None:
        """Changes the profile, makes the cells anew and waits for the rebuild; searches go on
        meanwhile.

        Raises:
            StoreError: the server has not finished after six hours; it goes on by itself. Or it
                refused to have cells made; the profile is changed, and searches are right.
        """
        self._connection.ask(
            self._client.update_collection,
            self._name,
            vectors_config=rearranged(profile),
            metadata=note(Noted(self._collection, profile, complete=True)),
        )
        self._profile = profile
        self._cells.renew(anew=True)
        if not self._green_within(_ARRANGE_SECONDS):
            raise StoreError(
                f"{self._connection.server} is still rearranging collection {self._shown!r} "
                f"after {_ARRANGE_SECONDS / 3600:g} hours; it goes on by itself, and answers "
                "are right meanwhile"
            )

    def upsert(self, points: Sequence[Point]) -> None:
        vectors = [checked_vector(point, self._collection) for point in points]
        at_once = self._limits.points_at_once(_UPSERT_AT_ONCE)
        for start in range(0, len(points), at_once):
            some = slice(start, start + at_once)
            numbers = self._numbers(vectors[some])
            chunk = [
                self._to_server(point, z, number)
                for point, z, number in zip(points[some], vectors[some], numbers, strict=True)
            ]
            self._connection.ask(self._client.upsert, self._name, points=chunk, wait=True)

    def _numbers(self, z: Sequence[NDArray[np.float32]]) -> list[dict[str, int]]:
        """For each vector the field of its payload with the number of its cell, if there are
        cells."""
        cells = self.cells
        if cells is None:
            return [{} for _ in z]
        field = cell_field(cells.key)
        return [{field: int(cell)} for cell in cells.assigned(np.stack(z))]

    def flush(self) -> None:
        """Does nothing: ``upsert`` and ``delete`` return only after the server has written the
        change to its write-ahead log and applied it."""

    def optimise(self) -> None:
        """Brings the cells up to date, and waits, ten minutes at most, until the server has
        optimised its segments by itself."""
        try:
            self._cells.renew()
        except StoreError as error:
            # All points are there, and found; the next call tries again.
            logger.warning(
                "the cells of collection %r could not be brought up to date: %s", self._name, error
            )
        self._green_within(_OPTIMISE_SECONDS)

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        for one in asked:
            if one.vector == "words" and len(one.z) != self._collection.words:
                raise StoreError(
                    f"the query has {len(one.z)} values for a search by words, collection "
                    f"{self._shown!r} has {self._collection.words or 'no'}; bring it to a model "
                    "that knows words with `precedent reencode --model`"
                )
        pages = [
            (i, offset, limit)
            for i, one in enumerate(asked)
            if not contradicts_itself(one.where)
            for offset, limit in self._limits.pages(one.limit)
        ]
        if not pages:
            return [[] for _ in asked]
        at_once = self._limits.searches_at_once(len(pages))
        found: list[dict[models.ExtendedPointId, Point]] = [{} for _ in asked]
        for start in range(0, len(pages), at_once):
            some = pages[start : start + at_once]
            requests = [self._request(asked[i], offset, limit) for i, offset, limit in some]
            answers = self._connection.ask(
                self._client.query_batch_points, self._name, requests=requests
            )
            for (i, _, _), answer in zip(some, answers, strict=True):
                found[i] |= {hit.id: to_hit(hit) for hit in answer.points}
        return [list(hits.values()) for hits in found]

    def _request(self, asked: Nearest, offset: int, limit: int) -> models.QueryRequest:
        return models.QueryRequest(
            query=asked.z.tolist(),
            using=WORDS if asked.vector == "words" else VECTOR,
            limit=limit,
            offset=offset or None,
            filter=self._translated(asked.where),
            params=self._search(asked.limit, asked.exact or asked.vector == "words"),
            with_payload=True,
            with_vector=[VECTOR] if asked.with_z else False,
        )

    def _translated(self, where: Filter) -> models.Filter | None:
        return translated(where, self._limits)

    def _search(self, limit: int, exact: bool) -> models.SearchParams:
        if exact:
            quantised = models.QuantizationSearchParams(ignore=True)
            return models.SearchParams(exact=True, quantization=quantised)
        quantised = models.QuantizationSearchParams(
            rescore=True, oversampling=self._limits.oversampling(oversampling(limit))
        )
        return models.SearchParams(
            hnsw_ef=self._limits.ef(EF), quantization=quantised if self._profile.quantised else None
        )

    def count(self, where: Filter, *, exact: bool = True) -> int:
        if contradicts_itself(where):
            return 0
        return self._connection.ask(
            self._client.count, self._name, count_filter=self._translated(where), exact=exact
        ).count

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        if contradicts_itself(where):
            return Facets({field: {} for field in fields})
        passing = self._translated(where)
        if len(fields) == 1:
            return self._facet(fields[0], passing, limit)
        # Each field is a request of its own; one after another they would take as many round trips.
        counts = self._senders.map(lambda field: self._facet(field, passing, limit), fields)
        return Facets.joined(counts)

    def _facet(self, field: str, passing: models.Filter | None, limit: int) -> Facets:
        least = _LEAST_OF_DISTINCT if field in OFTEN_DISTINCT else _LEAST_FACETED
        named = self._limits.page(max(_FACETED_OF_EACH * limit, least))
        answer = self._connection.ask(
            self._client.facet,
            self._name,
            key=field,
            facet_filter=passing,
            limit=named,
            # Exact counts of several shards leave out values that are few in one of them.
            exact=False,
        )
        # Values of deleted points are listed with a count of 0.
        hits = [(str(hit.value), hit.count) for hit in answer.hits if hit.count]
        counts = dict(sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:limit])
        # A shard names as many values as were asked for, at least. If all shards together have
        # fewer, each has named all of its own, and the counts are right; else one may have left out
        # what is rare in it. A single shard names the most frequent values, with all their points.
        cut = self._shards > 1 and len(answer.hits) >= named
        return Facets({field: counts}, at_least=[field] if cut else [])

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
        if contradicts_itself(where):
            return
        passing = self._translated(where)
        offset: models.ExtendedPointId | None = None
        while True:
            # Without ``order_by``, the server orders by id.
            records, offset = self._connection.ask(
                self._client.scroll,
                self._name,
                scroll_filter=passing,
                limit=self._limits.page(page),
                offset=offset,
                with_payload=True,
                with_vectors=with_z,
            )
            yield from map(to_point, records)
            if offset is None:
                return

    def delete(self, where: Filter) -> int:
        if contradicts_itself(where):
            return 0
        count = self.count(where)
        passing = models.FilterSelector(filter=self._translated(where) or models.Filter())
        self._connection.ask(self._client.delete, self._name, points_selector=passing, wait=True)
        return count

    def close(self) -> None:
        self._senders.shutdown(cancel_futures=True)
        self._client.close()

    def __enter__(self) -> "ServerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _awake(self) -> models.CollectionInfo:
        """The state of the collection, which is told to go on optimising if a restart interrupted
        that: by itself the server resumes it only at the next update."""
        info = self._connection.ask(self._client.get_collection, self._name)
        if info.status == models.CollectionStatus.GREY:
            self._connection.ask(
                self._client.update_collection,
                self._name,
                optimizers_config=models.OptimizersConfigDiff(),
            )
        return info

    def _green_within(self, seconds: float) -> bool:
        """Whether the collection was green at two polls in a row within ``seconds``.

        At a single poll the server may not have begun yet.

        Raises:
            StoreError: the collection is red, that is damaged.
        """
        calm, waited, patience = 0, 0.0, _FIRST_LOOK
        while waited < seconds:
            info = self._awake()
            calm = calm + 1 if info.status == models.CollectionStatus.GREEN else 0
            if calm == 2:
                return True
            if info.status == models.CollectionStatus.RED:
                raise StoreError(
                    f"collection {self._shown!r} on {self._connection.server} is damaged "
                    f"({info.optimizer_status}); look into the server's log, and restore a "
                    "snapshot if need be"
                )
            pause = _FIRST_LOOK if calm else patience
            patience = min(1.5 * patience, _LAST_LOOK)
            self._connection.sleep(pause)
            waited += pause
        return False

    def _to_server(
        self, point: Point, z: NDArray[np.float32], number: dict[str, int]
    ) -> models.PointStruct:
        try:
            payload = to_payload(point, self._collection.model) | number
            json.dumps(payload, ensure_ascii=False).encode()
            vector = {VECTOR: z.tolist()}
            if point.words is not None:
                vector[WORDS] = point.words.tolist()
            return models.PointStruct(
                id=str(uuid.UUID(point.id)), vector={**vector}, payload=payload
            )
        except (ValueError, TypeError) as error:
            raise not_storable(point, error) from None


def _known_ids(ids: Sequence[str]) -> list[models.ExtendedPointId]:
    """The ids that are UUIDs, as all ids of points are; others are skipped."""
    known: list[models.ExtendedPointId] = []
    for text in ids:
        with contextlib.suppress(ValueError):
            known.append(str(uuid.UUID(text)))
    return known
