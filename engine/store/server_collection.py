"""Finding the collection of a store on a Qdrant server, and making it where there is none."""

import re
from dataclasses import replace

from engine.errors import FingerprintMismatch, StoreError, StoreNotFound
from engine.store.arrangement import VECTOR
from engine.store.base import Collection, Profile
from engine.store.connection import Connection
from engine.store.payload import schema
from engine.store.server_layout import Noted, field_index, note, noted, vectors

__all__ = ["existing", "made"]

_OLDEST = (1, 16)
"""Of the servers: earlier ones keep no metadata with a collection."""


def existing(connection: Connection, wanted: Collection | None) -> Noted:
    """What the collection of ``connection`` says of itself.

    Raises:
        StoreNotFound: there is none.
        FingerprintMismatch: it belongs to another model than ``wanted``.
        StoreError: the server is too old, or the collection is not ours or not finished.
    """
    _check_version(connection)
    if not _exists(connection):
        raise StoreNotFound(
            f"no index in {_place(connection)}; make one with `precedent index PATH…`, or name "
            "another collection with PRECEDENT_STORE__COLLECTION"
        )
    found = _look(connection)
    if found is None:
        raise _foreign(connection)
    _check_model(connection, found, wanted)
    if not found.complete:
        raise StoreError(
            f"the index in {_place(connection)} is being made, or its making was cut short; "
            "wait for it, or run `precedent index PATH…`, which completes it"
        )
    return found


def made(connection: Connection, wanted: Collection, profile: Profile) -> Noted:
    """What the collection says of itself once it is there, made or completed where need be.

    The model is noted together with the collection, so that of two processes that make it at
    once the second finds whose it is. The payload indexes follow, and only then is the
    collection noted as complete: no point is written that an index has to be built for later.

    Raises:
        FingerprintMismatch, StoreError: as for :func:`existing`.
    """
    _check_version(connection)
    begun = Noted(wanted, profile, complete=False)
    if not _exists(connection):
        _make(connection, begun)
    found = _look(connection)
    if found is None:
        _adopt(connection, begun)
        found = _look(connection) or begun
    _check_model(connection, found, wanted)
    _make_indexes(connection, found.collection)
    if not found.complete:
        found = replace(found, complete=True)
        _note(connection, found)
    return found


def _make(connection: Connection, begun: Noted) -> None:
    settings, client = connection.settings, connection.client
    try:
        connection.ask(
            client.create_collection,
            settings.collection,
            vectors_config=vectors(begun.collection, begun.profile),
            shard_number=settings.shards,
            replication_factor=settings.replication_factor,
            on_disk_payload=True,
            metadata=note(begun),
        )
    except StoreError:
        # Another process made it meanwhile, or an attempt did whose answer was lost.
        if not _exists(connection):
            raise


def _adopt(connection: Connection, begun: Noted) -> None:
    """Takes an empty collection without a note, if it has been laid out as ours are."""
    client, name = connection.client, connection.settings.collection
    laid_out = connection.ask(client.get_collection, name).config.params.vectors
    ours = vectors(begun.collection, begun.profile)[VECTOR]
    if (
        not isinstance(laid_out, dict)
        or set(laid_out) != {VECTOR}
        or (laid_out[VECTOR].size, laid_out[VECTOR].distance) != (ours.size, ours.distance)
        or connection.ask(client.count, name, exact=True).count
    ):
        raise _foreign(connection)
    _note(connection, begun)


def _make_indexes(connection: Connection, collection: Collection) -> None:
    client, name = connection.client, connection.settings.collection
    there = connection.ask(client.get_collection, name).payload_schema
    for field, kind in schema(collection.bits).items():
        if field not in there:
            connection.ask(
                client.create_payload_index,
                name,
                field_name=field,
                field_schema=field_index(field, kind),
                wait=True,
            )


def _note(connection: Connection, found: Noted) -> None:
    client, name = connection.client, connection.settings.collection
    connection.ask(client.update_collection, name, metadata=note(found))


def _look(connection: Connection) -> Noted | None:
    info = connection.ask(connection.client.get_collection, connection.settings.collection)
    return noted(info, _place(connection))


def _exists(connection: Connection) -> bool:
    return connection.ask(connection.client.collection_exists, connection.settings.collection)


def _check_version(connection: Connection) -> None:
    version = connection.ask(connection.client.info).version
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise StoreError(
            f"{connection.server} has version {version!r}, and {oldest} is the oldest that "
            "will do; upgrade it"
        )


def _check_model(connection: Connection, found: Noted, wanted: Collection | None) -> None:
    theirs = found.collection
    if wanted is not None and theirs != wanted:
        raise FingerprintMismatch(
            f"the index in {_place(connection)} was made by model {theirs.model} "
            f"({theirs.bits} bits, {theirs.dim} values), not by {wanted.model} ({wanted.bits} "
            f"bits, {wanted.dim} values); use that model with --model, or index into another "
            "collection with PRECEDENT_STORE__COLLECTION"
        )


def _foreign(connection: Connection) -> StoreError:
    return StoreError(
        f"{_place(connection)} exists and is no index of precedent; name another collection "
        "with PRECEDENT_STORE__COLLECTION"
    )


def _place(connection: Connection) -> str:
    return f"collection {connection.settings.collection!r} on {connection.server}"
