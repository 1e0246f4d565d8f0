"""The centroids of a collection's cells, in a collection of their own beside it on the server.

There are two of these, so that new centroids can be written while those in force are read. Point i
is centroid i; points beyond the number of centroids are of former cells. The metadata of the
collection itself say which side is in force, and of which cells.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from engine.errors import StoreError
from engine.store.connection import Connection
from engine.store.server_consensus import agreed
from engine.store.server_layout import SIDES, CellsNoted, side_name
from engine.store.server_limits import Limits

__all__ = ["drop_centroids", "read_centroids", "write_centroids"]

_READ_AT_ONCE = 1000
_WRITE_AT_ONCE = 256
_OWNER = "precedent_cells_of"
"""In the metadata: the collection whose cells they are."""


def read_centroids(
    connection: Connection, name: str, noted: CellsNoted
) -> NDArray[np.float32] | None:
    """The centroids that lie where the metadata say, float32 (C, D); None = there are fewer.

    They may be of other cells: whoever makes new ones writes over those that are not in force.

    Args:
        name: the own name of the collection.

    Raises:
        StoreError: they cannot be read.
    """
    found: dict[Any, Any] = {}
    for start in range(0, noted.count, _READ_AT_ONCE):
        records = connection.ask(
            connection.client.retrieve,
            side_name(name, noted.side),
            ids=list(range(start, min(noted.count, start + _READ_AT_ONCE))),
            with_payload=False,
            with_vectors=True,
        )
        found |= {record.id: record.vector for record in records}
    if len(found) < noted.count:
        return None
    return np.array([found[i] for i in range(noted.count)], np.float32)


def write_centroids(
    connection: Connection, name: str, side: str, centroids: NDArray[np.float32]
) -> None:
    """Writes the centroids over those of former cells that this side has.

    Args:
        name: the own name of the collection. side: one of :data:`SIDES`.
        centroids: float32 (C, D).

    Raises:
        StoreError: the server refused it, or there is another collection with the name of the side.
    """
    ask, client, there = connection.ask, connection.client, side_name(name, side)
    _create(connection, name, there, centroids.shape[1])
    info = ask(client.get_collection, there)
    if (info.config.metadata or {}).get(_OWNER) != name:
        raise StoreError(
            f"collection {there!r} on {connection.server} is to keep the cells of {name!r}, and "
            "was made by something else; rename or delete it"
        )
    at_once = Limits.of(info).points_at_once(_WRITE_AT_ONCE)
    for start in range(0, len(centroids), at_once):
        some = centroids[start : start + at_once]
        points = [
            models.PointStruct(id=start + i, vector=one.tolist()) for i, one in enumerate(some)
        ]
        ask(client.upsert, there, points=points, wait=True)


def drop_centroids(connection: Connection, name: str) -> None:
    """Deletes both sides of the collection with the own name ``name``, if they are its own."""
    ask, client = connection.ask, connection.client
    for there in (side_name(name, side) for side in SIDES):
        if ask(client.collection_exists, there):
            metadata = ask(client.get_collection, there).config.metadata or {}
            if metadata.get(_OWNER) == name:
                _drop(connection, there)


def _drop(connection: Connection, there: str) -> None:
    client = connection.client
    agreed(
        connection,
        lambda: client.delete_collection(there),
        lambda: not client.collection_exists(there),
        f"dropping {there!r}",
    )


def _create(connection: Connection, name: str, there: str, dim: int) -> None:
    client = connection.client
    agreed(
        connection,
        lambda: client.create_collection(
            there,
            vectors_config=models.VectorParams(
                size=dim,
                # Cosine would change their length, and so their key.
                distance=models.Distance.DOT,
                on_disk=True,
                hnsw_config=models.HnswConfigDiff(m=0),
            ),
            shard_number=1,
            replication_factor=connection.settings.replication_factor,
            write_consistency_factor=1,
            metadata={_OWNER: name},
        ),
        lambda: client.collection_exists(there),
        f"making {there!r}",
    )
