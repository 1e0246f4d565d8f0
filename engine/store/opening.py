"""Opens the store that the settings name: embedded in the data folder, or on a Qdrant server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StoreError
from engine.settings import Settings, StoreSettings
from engine.store.base import Collection, Profile, VectorStore

if TYPE_CHECKING:
    from engine.store.connection import Connection
    from engine.store.holder import Holder
    from engine.store.server import ServerStore

__all__ = ["check_access", "connected", "holder_of", "open_served", "open_store"]


def open_store(
    settings: Settings,
    directory: Path,
    collection: Collection | None,
    *,
    create: bool,
    patient: bool = False,
) -> VectorStore:
    """Opens the store: embedded, or on the server if ``settings.store.url`` is set.

    Args:
        directory: folder of the embedded store.
        collection: the kind of points that it must hold; None = any.
        create: create it if there is none, with the profile of ``settings.store``; needs
            ``collection``. Who creates one is patient.
        patient: as for ``Connection``: for work that must not end because a server goes away for
            minutes.

    Raises:
        StoreNotFound: there is no store, and ``create`` is False.
        StoreLocked, FingerprintMismatch, StoreError: as ``EdgeStore`` and ``ServerStore`` say.
        SettingsError: the settings name no usable server.
    """
    wanted = settings.store
    profile = Profile(wanted.profile, wanted.quantised)
    new = collection if create else None
    if create and new is None:
        raise StoreError("an index cannot be made for no model; give the collection it is for")
    # Imported here, as each loads a large library.
    if wanted.url is None:
        from engine.store.edge import EdgeStore
        from engine.store.sharing.store import SharedStore

        def opened() -> EdgeStore:
            if new is not None:
                return EdgeStore.create(directory, new, profile)
            return EdgeStore.open(directory, collection)

        return SharedStore(directory, opened, collection)
    from engine.store.server import ServerStore

    if new is not None:
        return open_served(
            wanted, lambda connection: ServerStore.create(connection, new, profile), patient=True
        )
    return open_served(
        wanted, lambda connection: ServerStore.open(connection, collection), patient=patient
    )


def check_access(settings: StoreSettings) -> None:
    """Asks the server that the settings name, if they name one, for the collection in force.

    Raises:
        SettingsError: the settings name no usable server.
        StoreError: it does not answer, or refuses the key.
    """
    if settings.url is None:
        return
    from engine.store.server_collection import in_force

    with connected(settings) as connection:
        in_force(connection)


def holder_of(store: VectorStore) -> "Holder | None":
    """The other process that has this store open; None = none has, or it is on a server."""
    found: Holder | None = getattr(store, "holder", None)
    return found


def open_served(
    settings: StoreSettings,
    opened: "Callable[[Connection], ServerStore]",
    *,
    patient: bool = False,
) -> "ServerStore":
    """Connects to the server and returns the store that ``opened`` makes of the connection.

    Closing the store closes the connection.

    Args:
        patient: as for ``Connection``.

    Raises:
        SettingsError: the settings name no usable server.
    """
    from engine.store.connection import Connection, connect

    client = connect(settings)
    try:
        return opened(Connection(client, settings, patient=patient))
    except BaseException:
        client.close()
        raise


@contextmanager
def connected(settings: StoreSettings) -> "Iterator[Connection]":
    """A context with a connection to the server, which is closed at its end.

    Raises:
        SettingsError: the settings name no usable server.
    """
    from engine.store.connection import Connection, connect

    client = connect(settings)
    try:
        yield Connection(client, settings)
    finally:
        client.close()
