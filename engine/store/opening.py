"""The store that the settings ask for: embedded in the data folder, or on a server."""

from pathlib import Path

from engine.errors import StoreError
from engine.settings import Settings
from engine.store.base import Collection, Profile, VectorStore

__all__ = ["open_store"]


def open_store(
    settings: Settings, directory: Path, collection: Collection | None, *, create: bool
) -> VectorStore:
    """The store, opened.

    Args:
        directory: of the embedded store; a served one is named by ``settings.store``.
        collection: what it must have been made for; None = whatever it was made for.
        create: make it when there is none, with the profile of ``settings.store``.

    Raises:
        StoreNotFound: there is none, and ``create`` is not asked for.
        StoreLocked, FingerprintMismatch, StoreError: as ``EdgeStore`` and ``ServerStore`` say.
        SettingsError: the settings name no usable server.
    """
    wanted = settings.store
    profile = Profile(wanted.profile, wanted.quantised)
    new = collection if create else None
    if create and new is None:
        raise StoreError("an index cannot be made for no model; give the collection it is for")
    # Each brings an engine or a client along that takes its time to load.
    if wanted.url is None:
        from engine.store.edge import EdgeStore

        if new is not None:
            return EdgeStore.create(directory, new, profile)
        return EdgeStore.open(directory, collection)
    from engine.store.connection import Connection, connect
    from engine.store.server import ServerStore

    client = connect(wanted)
    try:
        connection = Connection(client, wanted)
        if new is not None:
            return ServerStore.create(connection, new, profile)
        return ServerStore.open(connection, collection)
    except BaseException:
        client.close()
        raise
