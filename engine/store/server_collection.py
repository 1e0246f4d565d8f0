"""Finds the collection of a store on a Qdrant server, creates it, and switches to another one.

Each collection has its own name, the name in the settings followed by the fingerprint of its model,
as in "precedent-0123456789abcdef". The name in the settings is an alias of one of them, the
collection "in force", which searches use. So a collection for another model can be filled beside it
and then be put in force atomically, by moving the alias. A collection may also have the name in the
settings itself; it is in force then, and cannot be replaced.
"""

import re
from dataclasses import dataclass, replace

from qdrant_client import QdrantClient, models

from engine.errors import FingerprintMismatch, StoreError, StoreLimited, StoreNotFound
from engine.store.base import SECOND, Collection, Profile
from engine.store.connection import Connection
from engine.store.payload import schema
from engine.store.server_centroids import drop_centroids
from engine.store.server_consensus import agreed
from engine.store.server_layout import (
    Noted,
    field_index,
    note,
    noted,
    own_name,
    vectors,
)
from engine.store.server_limits import UNLIMITED, Limits
from engine.store.server_version import OLDEST, minor_of

__all__ = ["Found", "beside", "drop", "existing", "in_force", "made", "made_beside", "put_in_force"]


@dataclass(frozen=True, slots=True)
class Found:
    """A collection of this program. name: its own name. noted: its metadata. limits: of one
    request. shards: into which its points are divided."""

    name: str
    noted: Noted
    limits: Limits = UNLIMITED
    shards: int = 1


def existing(
    connection: Connection, wanted: Collection | None, *, name: str | None = None
) -> Found:
    """The collection in force, or the one whose own name is ``name``.

    Args:
        wanted: the kind of points that it must hold; None = any.

    Raises:
        StoreNotFound: there is no such collection.
        FingerprintMismatch: it holds points of another model than ``wanted``.
        StoreLimited: it must not be searched exactly.
        StoreError: the server is too old, or the collection was not created by this program or
            its creation was not completed.
    """
    _check_version(connection)
    there = in_force(connection) if name is None else name
    if there is None or (name is not None and not _exists(connection, name)):
        raise StoreNotFound(
            f"no index in {_place(connection, name)}; make one with `precedent index PATH…`, or "
            "name another collection with PRECEDENT_STORE__COLLECTION"
        )
    found = _look(connection, there)
    if found is None:
        raise _foreign(connection, there)
    _check_model(connection, found.noted, wanted)
    if not found.noted.complete:
        raise StoreError(
            f"the index in {_place(connection)} is being made, or its making was cut short; "
            "wait for it, or run `precedent index PATH…`, which completes it"
        )
    _check_allowed(connection, found)
    return found


def made(connection: Connection, wanted: Collection, profile: Profile) -> Found:
    """The collection in force, created or completed if necessary.

    A new collection is put in force last, when it is complete. If two processes create collections
    for two models at the same time, one of them finds the other's in force when it opens the
    store the next time.

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
    """The collection beside the one in force for this model, which may be the model in force;
    created or completed if necessary.

    Raises:
        StoreError: as for :func:`existing`, or the collection in force cannot be replaced because
            it has the name in the settings itself.
    """
    _check_version(connection)
    alias = _alias(connection)
    used, name = in_force(connection), own_name(alias, wanted)
    if used == alias:
        raise StoreError(
            f"{_place(connection)} has this name itself, and so no other can take its place "
            "without a moment in which there is none; write it to a file with `precedent "
            "snapshot FILE`, restore that under another name with PRECEDENT_STORE__COLLECTION="
            f"NAME and `precedent restore FILE`, use that name from then on, and delete {alias!r}"
        )
    name = name + SECOND if name == used else name
    if _exists(connection, name):
        _settle(connection, name)
    return _completed(connection, name, wanted, profile)


def in_force(connection: Connection) -> str | None:
    """The own name of the collection in force; None = no collection is."""
    return connection.ask(_in_force, connection.client, _alias(connection))


def put_in_force(connection: Connection, name: str) -> None:
    """Atomically puts the collection with the own name ``name`` in force.

    Raises:
        StoreAway: it could not be done in time, and may still happen.
        StoreError: another one has been put in force meanwhile.
    """
    client, alias, before = connection.client, _alias(connection), in_force(connection)
    operations: list[models.AliasOperations] = [
        models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
        models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
        ),
    ]

    def is_done() -> bool:
        now = _in_force(client, alias)
        if now not in (before, name):
            raise StoreError(
                f"{_place(connection, now)} has been put in force meanwhile, and so {name!r} has "
                "not; look which one is wanted, and do it again"
            )
        return now == name

    agreed(
        connection,
        lambda: client.update_collection_aliases(operations),
        is_done,
        f"putting {name!r} in force",
    )


def beside(connection: Connection) -> list[str]:
    """Own names of this store's collections that no alias refers to, sorted."""
    client, alias = connection.client, _alias(connection)
    ours = re.compile(re.escape(alias) + "-[0-9a-f]{16}" + f"({SECOND})?")
    used = {one.collection_name for one in connection.ask(client.get_aliases).aliases}
    there = {one.name for one in connection.ask(client.get_collections).collections} - used
    return sorted(
        name
        for name in there
        if ours.fullmatch(name)
        and (found := _look(connection, name)) is not None
        and own_name(alias, found.noted.collection) == name.removesuffix(SECOND)
    )


def drop(connection: Connection, name: str) -> None:
    """Deletes a collection that :func:`beside` lists, and the centroids of its cells.

    Raises:
        StoreError: :func:`beside` does not list it, as when it has been put in force since.
    """
    _check_beside(connection, name)
    # A switch to it that seemed to fail may happen just before it is dropped.
    _settle(connection, name)
    _check_beside(connection, name)
    # The collection last: as long as it is there, it can be dropped again.
    drop_centroids(connection, name)
    client = connection.client
    agreed(
        connection,
        lambda: client.delete_collection(name),
        lambda: not client.collection_exists(name),
        f"dropping {name!r}",
    )


def _check_beside(connection: Connection, name: str) -> None:
    if name not in beside(connection):
        raise StoreError(
            f"{_place(connection, name)} is in force, or no index of precedent any more; look "
            "again what there is to remove"
        )


def _settle(connection: Connection, name: str) -> None:
    """Returns once everything has been carried out that the nodes were asked for before.

    They do it in order, so they are asked to note what is noted of the collection already.
    """
    found = _look(connection, name)
    if found is not None:
        _note(connection, name, found.noted)


def _completed(connection: Connection, name: str, wanted: Collection, profile: Profile) -> Found:
    """The collection with the own name ``name``, created or completed if necessary.

    The model is recorded when the collection is created, so that a second process which creates it
    at the same time sees which model it is for. The payload indexes follow; only then is the
    collection marked complete, so that no point is written before all indexes exist.
    """
    begun = Noted(wanted, profile, complete=False)
    _make(connection, name, begun)
    found = _look(connection, name)
    if found is None:
        _adopt(connection, name, begun)
        found = _look(connection, name) or Found(name, begun, shards=connection.settings.shards)
    _check_model(connection, found.noted, wanted)
    _check_allowed(connection, found)
    _make_indexes(connection, name, found.noted.collection)
    if not found.noted.complete:
        found = replace(found, noted=replace(found.noted, complete=True))
        _note(connection, name, found.noted)
    return found


def _make(connection: Connection, name: str, begun: Noted) -> None:
    """Makes the collection, unless it is there: another process may make it at the same time."""
    settings, client = connection.settings, connection.client
    agreed(
        connection,
        # With a write_consistency_factor above 1, a write that not all copies could take would
        # remain in some of them, and the others would lack it for good.
        lambda: client.create_collection(
            name,
            vectors_config=vectors(begun.collection, begun.profile),
            shard_number=settings.shards,
            replication_factor=settings.replication_factor,
            write_consistency_factor=1,
            on_disk_payload=True,
            metadata=note(begun),
        ),
        lambda: client.collection_exists(name),
        f"making {name!r}",
    )


def _adopt(connection: Connection, name: str, begun: Noted) -> None:
    """Records metadata for an empty collection without any, if its vectors are laid out right.

    Raises:
        StoreError: it holds points, or has another layout.
    """
    client = connection.client
    laid_out = connection.ask(client.get_collection, name).config.params.vectors
    ours = vectors(begun.collection, begun.profile)
    if (
        not isinstance(laid_out, dict)
        or {name: (one.size, one.distance) for name, one in laid_out.items()}
        != {name: (one.size, one.distance) for name, one in ours.items()}
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


def _look(connection: Connection, name: str) -> Found | None:
    """The collection with this own name; None = this program did not make it."""
    info = connection.ask(connection.client.get_collection, name)
    found = noted(info, _place(connection, name))
    if found is None:
        return None
    return Found(name, found, Limits.of(info), info.config.params.shard_number or 1)


def _in_force(client: QdrantClient, alias: str) -> str | None:
    for one in client.get_aliases().aliases:
        if one.alias_name == alias:
            return str(one.collection_name)
    return alias if client.collection_exists(alias) else None


def _exists(connection: Connection, name: str) -> bool:
    return connection.ask(connection.client.collection_exists, name)


def _alias(connection: Connection) -> str:
    return connection.settings.collection


def _check_version(connection: Connection) -> None:
    version = connection.ask(connection.client.info).version
    minor = minor_of(version)
    if minor is None or minor < OLDEST:
        oldest = ".".join(map(str, OLDEST))
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


def _check_allowed(connection: Connection, found: Found) -> None:
    if not found.limits.search_allow_exact:
        raise StoreLimited(
            f"{_place(connection, found.name)} must not be counted and searched exactly, as the "
            "strict mode of the server has search_allow_exact = false for it; set that to true: "
            f"PATCH /collections/{found.name} with "
            '{"strict_mode_config": {"search_allow_exact": true}}'
        )


def _foreign(connection: Connection, name: str) -> StoreError:
    return StoreError(
        f"{_place(connection, name)} exists and is no index of precedent; name another "
        "collection with PRECEDENT_STORE__COLLECTION"
    )


def _place(connection: Connection, name: str | None = None) -> str:
    return f"collection {name or _alias(connection)!r} on {connection.server}"
