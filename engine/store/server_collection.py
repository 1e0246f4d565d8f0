"""Finding the collection of a store on a Qdrant server, and making it where there is none.

A collection has a name of its own, "precedent-0123456789abcdef": that of the settings and the
fingerprint of its model. The name of the settings is an alias of the collection in force. So one
for another model can be filled beside it, and take its place in one step. A collection that was
made when there were no aliases has the name of the settings itself, and is used as it is.
"""

import re
from dataclasses import dataclass, replace

from qdrant_client import models

from engine.errors import FingerprintMismatch, StoreError, StoreNotFound
from engine.store.arrangement import VECTOR
from engine.store.base import Collection, Profile
from engine.store.connection import Connection
from engine.store.payload import schema
from engine.store.server_layout import Noted, field_index, note, noted, own_name, vectors

__all__ = ["Found", "beside", "drop", "existing", "in_force", "made", "made_beside", "put_in_force"]

_OLDEST = (1, 16)
"""Of the servers: earlier ones keep no metadata with a collection."""


@dataclass(frozen=True, slots=True)
class Found:
    """A collection of ours. name: its own. noted: what it says of itself."""

    name: str
    noted: Noted


def existing(
    connection: Connection, wanted: Collection | None, *, name: str | None = None
) -> Found:
    """The collection in force, or the one whose own name is ``name``.

    Raises:
        StoreNotFound: there is none.
        FingerprintMismatch: it belongs to another model than ``wanted``.
        StoreError: the server is too old, or the collection is not ours or not finished.
    """
    _check_version(connection)
    found = in_force(connection) if name is None else name
    if found is None or (name is not None and not _exists(connection, name)):
        raise StoreNotFound(
            f"no index in {_place(connection, name)}; make one with `precedent index PATH…`, or "
            "name another collection with PRECEDENT_STORE__COLLECTION"
        )
    said = _look(connection, found)
    if said is None:
        raise _foreign(connection, found)
    _check_model(connection, said, wanted)
    if not said.complete:
        raise StoreError(
            f"the index in {_place(connection)} is being made, or its making was cut short; "
            "wait for it, or run `precedent index PATH…`, which completes it"
        )
    return Found(found, said)


def made(connection: Connection, wanted: Collection, profile: Profile) -> Found:
    """The collection in force once it is there, made or completed where need be.

    It comes into force last: until then there is none. Of two processes that make it for two
    models at once, one finds the other's in force when it opens it the next time.

    Raises:
        FingerprintMismatch, StoreError: as for :func:`existing`.
    """
    _check_version(connection)
    name = in_force(connection)
    if name is not None:
        return _completed(connection, name, wanted, profile)
    found = _completed(connection, own_name(_alias(connection), wanted), wanted, profile)
    name = in_force(connection)
    if name is None:
        put_in_force(connection, found.name)
    elif name != found.name:
        return _completed(connection, name, wanted, profile)
    return found


def made_beside(connection: Connection, wanted: Collection, profile: Profile) -> Found:
    """The collection for another model than the one in force, made or completed where need be.

    Raises:
        StoreError: as for :func:`existing`, or none can ever take the place of the one in
            force, because that has the name of the settings itself.
    """
    _check_version(connection)
    alias = _alias(connection)
    if in_force(connection) == alias:
        raise StoreError(
            f"{_place(connection)} has this name itself, and so no other can take its place "
            "without a moment in which there is none; write it to a file with `precedent "
            "snapshot FILE`, restore that under another name with PRECEDENT_STORE__COLLECTION="
            f"NAME and `precedent restore FILE`, use that name from then on, and delete {alias!r}"
        )
    return _completed(connection, own_name(alias, wanted), wanted, profile)


def in_force(connection: Connection) -> str | None:
    """The own name of the collection in force; None = there is none."""
    alias = _alias(connection)
    for one in connection.ask(connection.client.get_aliases).aliases:
        if one.alias_name == alias:
            return one.collection_name
    return alias if _exists(connection, alias) else None


def put_in_force(connection: Connection, name: str) -> None:
    """Lets the collection ``name`` take the place of the one in force, in one step."""
    alias = _alias(connection)
    connection.ask(
        connection.client.update_collection_aliases,
        [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
            ),
        ],
    )


def beside(connection: Connection) -> list[str]:
    """Own names of our collections that are in force under no name, ordered."""
    client, alias = connection.client, _alias(connection)
    ours = re.compile(re.escape(alias) + "-[0-9a-f]{16}")
    used = {one.collection_name for one in connection.ask(client.get_aliases).aliases}
    there = {one.name for one in connection.ask(client.get_collections).collections} - used
    return sorted(
        name
        for name in there
        if ours.fullmatch(name)
        and (said := _look(connection, name)) is not None
        and own_name(alias, said.collection) == name
    )


def drop(connection: Connection, name: str) -> None:
    """Deletes a collection that :func:`beside` named, unless it is in force by now.

    Raises:
        StoreError: it is in force.
    """
    if name not in beside(connection):
        raise StoreError(
            f"{_place(connection, name)} is in force, or no index of precedent any more; look "
            "again what there is to remove"
        )
    connection.ask(connection.client.delete_collection, name)


def _completed(connection: Connection, name: str, wanted: Collection, profile: Profile) -> Found:
    """The collection ``name``, made or completed where need be.

    The model is noted together with the collection, so that of two processes that make it at
    once the second finds whose it is. The payload indexes follow, and only then is the
    collection noted as complete: no point is written that an index has to be built for later.
    """
    begun = Noted(wanted, profile, complete=False)
    if not _exists(connection, name):
        _make(connection, name, begun)
    said = _look(connection, name)
    if said is None:
        _adopt(connection, name, begun)
        said = _look(connection, name) or begun
    _check_model(connection, said, wanted)
    _make_indexes(connection, name, said.collection)
    if not said.complete:
        said = replace(said, complete=True)
        _note(connection, name, said)
    return Found(name, said)


def _make(connection: Connection, name: str, begun: Noted) -> None:
    settings, client = connection.settings, connection.client
    try:
        connection.ask(
            client.create_collection,
            name,
            vectors_config=vectors(begun.collection, begun.profile),
            shard_number=settings.shards,
            replication_factor=settings.replication_factor,
            on_disk_payload=True,
            metadata=note(begun),
        )
    except StoreError:
        # Another process made it meanwhile, or an attempt did whose answer was lost.
        if not _exists(connection, name):
            raise


def _adopt(connection: Connection, name: str, begun: Noted) -> None:
    """Takes an empty collection without a note, if it has been laid out as ours are."""
    client = connection.client
    laid_out = connection.ask(client.get_collection, name).config.params.vectors
    ours = vectors(begun.collection, begun.profile)[VECTOR]
    if (
        not isinstance(laid_out, dict)
        or set(laid_out) != {VECTOR}
        or (laid_out[VECTOR].size, laid_out[VECTOR].distance) != (ours.size, ours.distance)
        or connection.ask(client.count, name, exact=True).count
    ):
        raise _foreign(connection, name)
    _note(connection, name, begun)


def _make_indexes(connection: Connection, name: str, collection: Collection) -> None:
    client = connection.client
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


def _note(connection: Connection, name: str, found: Noted) -> None:
    connection.ask(connection.client.update_collection, name, metadata=note(found))


def _look(connection: Connection, name: str) -> Noted | None:
    info = connection.ask(connection.client.get_collection, name)
    return noted(info, _place(connection, name))


def _exists(connection: Connection, name: str) -> bool:
    return connection.ask(connection.client.collection_exists, name)


def _alias(connection: Connection) -> str:
    return connection.settings.collection


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
            f"bits, {wanted.dim} values); use that model with --model, bring the index to this "
            "one with `precedent reencode --model`, or index into another collection with "
            "PRECEDENT_STORE__COLLECTION"
        )


def _foreign(connection: Connection, name: str) -> StoreError:
    return StoreError(
        f"{_place(connection, name)} exists and is no index of precedent; name another "
        "collection with PRECEDENT_STORE__COLLECTION"
    )


def _place(connection: Connection, name: str | None = None) -> str:
    return f"collection {name or _alias(connection)!r} on {connection.server}"
