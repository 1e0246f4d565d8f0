"""The store that the settings ask for: embedded in the data folder, or on a server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StoreError
from engine.settings import Settings, StoreSettings
from engine.store.base import Collection, Profile, VectorStore

if TYPE_CHECKING:
    from engine.store.connection import Connection
    from engine.store.server import ServerStore

__all__ = ["connected", "open_served", "open_store"]


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
    from engine.store.server import ServerStore

    if new is not None:
        return open_served(wanted, lambda connection: ServerStore.create(connection, new, profile))
    return open_served(wanted, lambda connection: ServerStore.open(connection, collection))


def open_served(
    settings: StoreSettings, opened: "Callable[[Connection], ServerStore]"
) -> "ServerStore":
    """What ``opened`` makes of a connection to the server, which the store closes.

    Raises:
        SettingsError: the settings name no usable server.
    """
    from engine.store.connection import Connection, connect

    client = connect(settings)
    try:
        return opened(Connection(client, settings))
    except BaseException:
        client.close()
        raise


@contextmanager
def connected(settings: StoreSettings) -> "Iterator[Connection]":
    """A connection to the server, closed at the end.

    Raises:
        SettingsError: the settings name no usable server.
    """
    from engine.store.connection import Connection, connect

    client = connect(settings)
    try:
        yield Connection(client, settings)
    finally:
        client.close()
