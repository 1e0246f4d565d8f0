"""The cells of a collection on a Qdrant server (engine/store/cells.py), for all its processes.

Each point has the number of its cell in a payload field, whose name carries the key of the cells.
The centroids lie in a collection of their own beside it; there are two of these, written in turn.
The metadata of the collection say which one is in force, and have everything else.

New cells are made beside those in force: the centroids are written, then the number of each
point, and the metadata come last, in one step. Whoever is killed before leaves the former cells in
force. Points without a number of the cells in force are candidates of every search (see
server_filter.py): another process wrote them that did not know these cells yet. So a search misses
nothing, whichever cells it, and whoever wrote the points, knew. :meth:`ServerCells.renew` gives
these points their numbers.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from engine.codes import from_hex
from engine.errors import StoreError
from engine.store.arrangement import VECTOR
from engine.store.base import PARTS, Collection, Filter, Part
from engine.store.cells import (
    LEAST_POINTS,
    NEIGHBOURS,
    Cells,
    Neighbours,
    measured_on_sample,
    sample_size,
    trained_on_sample,
)
from engine.store.connection import Connection
from engine.store.payload import CELL_PREFIX, FieldKind, cell_field
from engine.store.server_centroids import read_centroids, write_centroids
from engine.store.server_collection import Found
from engine.store.server_filter import translated
from engine.store.server_layout import (
    SIDES,
    CellsNoted,
    field_index,
    note_cells,
    noted_cells,
)

__all__ = ["ServerCells"]

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 60.0
"""For so long a process goes on with the cells that it knows."""
_LINGER_SECONDS = 600.0
"""For so long, the numbers of former cells are kept for processes that still know them."""
_ADDED_SHARE = 0.25
"""The cells are measured again once the collection has grown by this share."""
_READ_AT_ONCE = 1000
_WRITE_AT_ONCE = 256
_HELD = 65_536
"""Points whose numbers are written together, cell by cell."""
_UPDATED_AT_ONCE = 4096
_QUERIES_AT_ONCE = 16


class ServerCells:
    """The cells of one collection. Several threads may use it.

    Args:
        found: the collection as it was looked up just now.
    """

    def __init__(self, connection: Connection, found: Found, collection: Collection) -> None:
        self._connection, self._client = connection, connection.client
        self._name, self._collection = found.name, collection
        self._limits = found.limits
        self._lock = threading.Lock()
        self._noted: CellsNoted | None = found.noted.cells
        self._looked = connection.clock()
        self._cells: Cells | None = None
        self._tried: str | None = None

    @property
    def in_force(self) -> Cells | None:
        """The cells in force, or those that were within the last minute; None = there are none, or
        their centroids cannot be read.

        They are read when they are first asked for.
        """
        with self._lock:
            if not 0 <= self._connection.clock() - self._looked < _REFRESH_SECONDS:
                self._look()
            noted = self._noted
            if noted is None:
                return None
            if self._tried != noted.key:
                self._cells = self._read()
                self._tried = None if self._noted is None else self._noted.key
            return self._cells

    def renew(self, *, anew: bool = False) -> None:
        """Makes cells where there are none yet, the collection has outgrown them, or searches by
        them miss too much of what came since; gives points without a number of the cells in force
        theirs, and removes the numbers of former cells.

        It may be interrupted at any moment, and several processes may do it at once: the cells that
        come into force last remain.

        Args:
            anew: make new ones in any case.

        Raises:
            StoreError: the server refused something; the cells in force are as before, and
                searches are right.
        """
        points = self._connection.ask(self._client.count, self._name, exact=True).count
        with self._lock:
            if points < LEAST_POINTS and self._noted is None:
                return
            self._looked = float("-inf")
        cells = self.in_force
        if points >= LEAST_POINTS and (anew or cells is None or cells.outgrown(points)):
            cells = self._made(points)
        elif cells is not None:
            cells = self._measured(cells, points)
        if cells is not None:
            self._make_index(cells.key)
            self._number(cells)
            self._clean_up()

    # Reading

    def _look(self) -> None:
        info = self._connection.ask(self._client.get_collection, self._name)
        self._noted, self._looked = noted_cells(info), self._connection.clock()
        self._tried = None if self._cells is None else self._cells.key

    def _read(self) -> Cells | None:
        """The cells that the metadata name; None = the centroids there are others."""
        for looks_again in (True, False):
            noted = self._noted
            if noted is None:
                return None
            try:
                centroids = read_centroids(self._connection, self._name, noted)
            except StoreError as error:
                logger.warning(
                    "the cells of collection %r cannot be read, searches do without: %s",
                    self._name,
                    error,
                )
                return None
            if centroids is not None:
                cells = Cells(
                    centroids,
                    self._collection.model,
                    noted.points,
                    noted.probes,
                    noted.recall,
                    noted.code_recall,
                )
                if cells.key == noted.key:
                    return cells
            if looks_again:
                # They may have been replaced in between.
                self._look()
        return None

    # Making

    def _made(self, points: int) -> Cells:
        """New cells, in force."""
        cells = self._trained(points)
        former = self._noted
        side = SIDES[0] if former is None or former.side != SIDES[0] else SIDES[1]
        write_centroids(self._connection, self._name, side, cells.centroids)
        self._make_index(cells.key)
        self._number(cells)
        noted = CellsNoted(
            side=side,
            key=cells.key,
            count=len(cells),
            points=cells.points,
            probes=cells.probes,
            recall=cells.recall,
            code_recall=cells.code_recall,
            since=self._connection.clock(),
        )
        self._connection.ask(self._client.update_collection, self._name, metadata=note_cells(noted))
        with self._lock:
            self._noted, self._looked = noted, self._connection.clock()
            self._cells, self._tried = cells, cells.key
        return cells

    def _trained(self, points: int) -> Cells:
        z, codes, neighbours = self._sample(points)
        return trained_on_sample(z, codes, points, self._collection.model, neighbours)

    def _measured(self, cells: Cells, points: int) -> Cells:
        """The cells in force, measured again where much was added; new ones where searches by them
        miss too much of that."""
        noted = self._noted
        if points < LEAST_POINTS or noted is None or noted.key != cells.key:
            return cells
        if points < (1 + _ADDED_SHARE) * (noted.measured or noted.points):
            return cells
        z, codes, neighbours = self._sample(points)
        now = measured_on_sample(cells, z, codes, points, neighbours)
        if now.have_drifted:
            return self._made(points)
        with self._lock:
            self._look()
            if self._noted != noted:
                # Another process has made cells, or measured these.
                return cells
            noted = replace(noted, recall=now.recall, code_recall=now.code_recall, measured=points)
            self._connection.ask(
                self._client.update_collection, self._name, metadata=note_cells(noted)
            )
            self._noted, self._cells, self._tried = noted, now, now.key
        return now

    def _sample(self, points: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], Neighbours]:
        """A sample of the collection: vectors, (S, D), codes, (S, B/8), and their neighbours."""
        wanted = sample_size(points)
        # One part more, as they are not all of one size.
        parts = min(PARTS, -(-wanted * PARTS // points) + 1)
        ids: list[Any] = []
        z: list[NDArray[np.float32]] = []
        codes: list[NDArray[np.uint8]] = []
        for records in self._pages(
            translated(Filter((Part(parts),)), self._limits), with_code=True
        ):
            ids += [record.id for record in records]
            z.append(_vectors(records))
            codes.append(_codes(records))
            if len(ids) >= wanted:
                break
        sample = np.concatenate(z)

        def neighbours(asked: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
            found: list[list[Any]] = []
            at_once = self._limits.searches_at_once(_QUERIES_AT_ONCE)
            for start in range(0, len(asked), at_once):
                some = asked[start : start + at_once]
                answers = self._nearest(sample[some])
                for row, near in zip(some, answers, strict=True):
                    found.append([one for one in near if one.id != ids[row]][:NEIGHBOURS])
            near_z = np.stack([_vectors(near) for near in found])
            return near_z, np.stack([_codes(near) for near in found])

        return sample, np.concatenate(codes), neighbours

    def _nearest(self, z: NDArray[np.float32]) -> list[list[models.ScoredPoint]]:
        """For each vector, (Q, D), the eleven points most similar to it."""
        exact = models.SearchParams(
            exact=True, quantization=models.QuantizationSearchParams(ignore=True)
        )
        requests = [
            models.QueryRequest(
                query=one.tolist(),
                using=VECTOR,
                limit=NEIGHBOURS + 1,
                params=exact,
                with_payload=["code"],
                with_vector=[VECTOR],
            )
            for one in z
        ]
        answers = self._connection.ask(
            self._client.query_batch_points, self._name, requests=requests
        )
        return [answer.points for answer in answers]

    def _make_index(self, key: str) -> None:
        field = cell_field(key)
        if field not in self._indexed():
            self._connection.ask(
                self._client.create_payload_index,
                self._name,
                field_name=field,
                field_schema=field_index(field, FieldKind.CELL),
                wait=True,
            )

    def _indexed(self) -> list[str]:
        """The indexed fields with numbers of cells."""
        schema = self._connection.ask(self._client.get_collection, self._name).payload_schema
        return [field for field in schema if field.startswith(CELL_PREFIX)]

    def _number(self, cells: Cells) -> None:
        """Writes the number of its cell to every point that has none of these cells."""
        field = cell_field(cells.key)
        waiting: dict[int, list[Any]] = defaultdict(list)
        held = 0
        for records in self._pages(models.Filter(must=[_is_empty(field)])):
            for record, cell in zip(records, cells.assigned(_vectors(records)), strict=True):
                waiting[int(cell)].append(record.id)
            held += len(records)
            if held >= _HELD:
                self._put(field, waiting)
                held = 0
        self._put(field, waiting)

    def _put(self, field: str, waiting: dict[int, list[Any]]) -> None:
        """Writes these numbers of cells to the points with these ids, and empties ``waiting``."""
        self._update(
            (
                len(some),
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(payload={field: cell}, filter=_with_ids(some))
                ),
            )
            for cell, ids in waiting.items()
            for some in self._chunks(ids)
        )
        waiting.clear()

    def _clean_up(self) -> None:
        """Removes the numbers of cells that are not in force, once nobody should know them."""
        noted = self._noted
        if noted is None or 0 <= self._connection.clock() - noted.since < _LINGER_SECONDS:
            return
        for field in self._indexed():
            if field == cell_field(noted.key):
                continue
            has_number = models.Filter(must=[models.Filter(must_not=[_is_empty(field)])])
            for records in self._pages(has_number, with_vectors=False):
                self._update(
                    (
                        len(some),
                        models.DeletePayloadOperation(
                            delete_payload=models.DeletePayload(
                                keys=[field], filter=_with_ids(some)
                            )
                        ),
                    )
                    for some in self._chunks([record.id for record in records])
                )
            self._connection.ask(
                self._client.delete_payload_index, self._name, field_name=field, wait=True
            )

    # Requests

    def _update(self, operations: Iterator[tuple[int, Any]]) -> None:
        """Sends operations, each with the number of its points, some in a request."""
        batch: list[Any] = []
        points = 0
        for count, operation in operations:
            if batch and points + count > _UPDATED_AT_ONCE:
                self._send(batch)
                batch, points = [], 0
            batch.append(operation)
            points += count
        if batch:
            self._send(batch)

    def _send(self, batch: list[Any]) -> None:
        self._connection.ask(
            self._client.batch_update_points, self._name, update_operations=batch, wait=True
        )

    def _chunks(self, ids: list[Any]) -> Iterator[list[Any]]:
        at_once = self._limits.values_at_once(_WRITE_AT_ONCE)
        return (ids[start : start + at_once] for start in range(0, len(ids), at_once))

    def _pages(
        self, where: models.Filter | None, *, with_code: bool = False, with_vectors: bool = True
    ) -> Iterator[list[models.Record]]:
        """The points that pass, by id, some at a time."""
        offset: models.ExtendedPointId | None = None
        while True:
            records, offset = self._connection.ask(
                self._client.scroll,
                self._name,
                scroll_filter=where,
                limit=self._limits.page(_READ_AT_ONCE),
                offset=offset,
                with_payload=["code"] if with_code else False,
                with_vectors=[VECTOR] if with_vectors else False,
            )
            if records:
                yield records
            if offset is None:
                return


def _vectors(records: list[Any]) -> NDArray[np.float32]:
    """The vectors of records, float32 (N, D), of unit length."""
    z = np.array([record.vector[VECTOR] for record in records], np.float32)
    # Rounding to float16 changed the length slightly.
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return z


def _codes(records: list[Any]) -> NDArray[np.uint8]:
    return np.stack([from_hex(record.payload["code"]) for record in records])


def _is_empty(field: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=field))


def _with_ids(ids: list[Any]) -> models.Filter:
    """The points with these ids that are still there; a list of ids would have to exist."""
    return models.Filter(must=[models.HasIdCondition(has_id=ids)])
