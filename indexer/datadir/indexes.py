"""The indexes of one archive: the one in force, those kept beside it, and their exchange."""

import re
from dataclasses import replace
from typing import Protocol

from engine.errors import StoreError, StoreLocked, StoreNotFound
from engine.settings import Settings
from engine.store.base import SECOND, Collection, Profile, VectorStore
from engine.store.opening import connected, open_served
from indexer.datadir.layout import DataDir, InForce, remove_folder

__all__ = ["Indexes", "indexes_of"]


class Indexes(Protocol):
    """The indexes of one archive by name, embedded or on a server. All errors are StoreError.

    The index in force is the one that searches use.
    """

    def in_force(self) -> InForce:
        """The index in force. Raises StoreNotFound when there is no index."""
        ...

    def described(self, name: str) -> tuple[Collection, Profile]:
        """Model and profile that the index of this name was made for; also while it is in use.
        Raises StoreNotFound."""
        ...

    def open(self, name: str) -> VectorStore:
        """The opened index of this name, whatever model it is of. Raises StoreNotFound, and
        StoreLocked when another process has an embedded one open."""
        ...

    def make(self, collection: Collection, profile: Profile) -> tuple[str, VectorStore]:
        """Name and store of the index beside the one in force that is for this model, which may be
        the model in force; created if there is none."""
        ...

    def put_in_force(self, found: InForce) -> None:
        """Replaces the index in force by this one, which must have been flushed. Killed at any
        moment, it leaves one of the two in force."""
        ...

    def note(self, found: InForce) -> None:
        """Records model and previous index of the index that is in force already."""
        ...

    def beside(self) -> list[str]:
        """Names of the indexes that are not in force."""
        ...

    def drop(self, name: str) -> None:
        """Removes an index that is not in force. Raises StoreLocked when it is in use."""
        ...


def indexes_of(settings: Settings, data_dir: DataDir) -> Indexes:
    """The indexes of the settings' store: embedded in the data folder, or on a server."""
    if settings.store.url is None:
        return _Embedded(data_dir)
    return _Served(settings, data_dir)


class _Embedded:
    """Embedded indexes: folders of the data folder."""

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir

    def in_force(self) -> InForce:
        return self._data_dir.in_force() or InForce(self._data_dir.index.name)

    def described(self, name: str) -> tuple[Collection, Profile]:
        from engine.store.edge_layout import described

        return described(self._data_dir.root / name)

    def open(self, name: str) -> VectorStore:
        from engine.store.edge import EdgeStore

        return EdgeStore.open(self._data_dir.root / name)

    def make(self, collection: Collection, profile: Profile) -> tuple[str, VectorStore]:
        from engine.store.edge import EdgeStore

        name = f"index-{collection.model}"
        now = self.in_force()
        if now.previous is not None and now.previous.model == f"models/{collection.model}":
            name = now.previous.index
        elif name == now.index:
            name += SECOND  # the same model, beside its own index
        return name, EdgeStore.create(self._data_dir.root / name, collection, profile)

    def put_in_force(self, found: InForce) -> None:
        self._data_dir.put_in_force(found)

    def note(self, found: InForce) -> None:
        self._data_dir.put_in_force(found)

    def beside(self) -> list[str]:
        used = self.in_force().index
        ours = re.compile(rf"index(-[0-9a-f]{{16}}({SECOND})?)?")
        names = (path.name for path in self._data_dir.root.glob("index*") if path.is_dir())
        return sorted(name for name in names if ours.fullmatch(name) and name != used)

    def drop(self, name: str) -> None:
        if name not in self.beside():
            raise StoreError(
                f"index {name} in {self._data_dir.root} is in force; only what is kept beside it "
                "can be removed"
            )
        try:
            self.open(name).close()
        except StoreLocked:
            raise
        except StoreError:
            pass  # incomplete: its creation or removal was cut short
        remove_folder(self._data_dir.root / name)
        for suffix in (".lock", ".pid", ".sock"):
            (self._data_dir.root / name).with_name(name + suffix).unlink(missing_ok=True)


class _Served:
    """Collections on a server, which says which one is in force. The data folder records the model
    and the previous index."""

    def __init__(self, settings: Settings, data_dir: DataDir) -> None:
        self._settings = settings.store
        self._data_dir = data_dir

    def in_force(self) -> InForce:
        from engine.store.server_collection import in_force

        with connected(self._settings) as connection:
            name = in_force(connection)
        if name is None:
            raise StoreNotFound(
                f"no index in collection {self._settings.collection!r}; make one with `precedent "
                "index PATH…`, or name another collection with PRECEDENT_STORE__COLLECTION"
            )
        noted = self._data_dir.in_force(served=True)
        if noted is not None and noted.index != name:
            # The replacement was cut short between the server's switch and our record of it.
            return InForce(name, previous=replace(noted, previous=None))
        return noted or InForce(name)

    def described(self, name: str) -> tuple[Collection, Profile]:
        with self.open(name) as store:
            return store.collection, store.profile

    def open(self, name: str) -> VectorStore:
        from engine.store.server import ServerStore

        return open_served(
            self._settings, lambda connection: ServerStore.open(connection, name=name)
        )

    def make(self, collection: Collection, profile: Profile) -> tuple[str, VectorStore]:
        from engine.store.server import ServerStore

        store = open_served(
            self._settings,
            lambda connection: ServerStore.create_beside(connection, collection, profile),
            patient=True,
        )
        return store.name, store

    def put_in_force(self, found: InForce) -> None:
        from engine.store.server_collection import put_in_force

        if found.previous is not None:
            # Recorded before the switch: should it be cut short after that, the previous index is
            # still known.
            self._data_dir.put_in_force(found.previous, served=True)
        with connected(self._settings) as connection:
            put_in_force(connection, found.index)
        self.note(found)

    def note(self, found: InForce) -> None:
        self._data_dir.put_in_force(found, served=True)

    def beside(self) -> list[str]:
        from engine.store.server_collection import beside

        with connected(self._settings) as connection:
            return beside(connection)

    def drop(self, name: str) -> None:
        from engine.store.server_collection import drop

        with connected(self._settings) as connection:
            drop(connection, name)
