"""The stores that the contract is held against. Add one here and the suite runs over it."""

import os
import re
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from behaviours import DropsEqualMustNot, FacetsByShard
from loopback import Loopback
from qdrant_client import QdrantClient

from engine.settings import StoreSettings
from engine.store.base import Collection, Profile, VectorStore
from engine.store.connection import Connection, connect
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore
from engine.store.sharing.store import SharedStore

_PREFIX = "PRECEDENT_TEST_QDRANT_"
"""Of the variables that name a real server; CONTRIBUTING.md describes them."""


class Backend(Protocol):
    """How a test makes and opens a store at a place of its own."""

    name: str

    def create(
        self, place: Path, collection: Collection, profile: Profile | None = None
    ) -> VectorStore:
        """Opens the store at the place, made anew if there is none."""
        ...

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        """Opens an existing store."""
        ...

    def clear(self) -> None:
        """Removes what the tests left, where the folders of the places do not hold it."""
        ...


class Edge:
    name = "edge"

    def create(
        self, place: Path, collection: Collection, profile: Profile | None = None
    ) -> VectorStore:
        return EdgeStore.create(place, collection, profile)

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        return EdgeStore.open(place, collection)

    def clear(self) -> None:
        pass


class _Beside(SharedStore):
    """The store of another process, which ends with it. Here the other one is this process."""

    def __init__(self, place: Path, opened: Callable[[], EdgeStore], wanted: Collection | None):
        self._owner = SharedStore(place, opened, wanted)
        try:
            super().__init__(place, opened, wanted)
        except BaseException:
            self._owner.close()
            raise
        assert self.holder is not None

    def close(self) -> None:
        super().close()
        self._owner.close()


class Beside:
    """An embedded store that another process has open, asked over its socket."""

    name = "beside"

    def create(
        self, place: Path, collection: Collection, profile: Profile | None = None
    ) -> VectorStore:
        return _Beside(place, lambda: EdgeStore.create(place, collection, profile), collection)

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        return _Beside(place, lambda: EdgeStore.open(place, collection), collection)

    def clear(self) -> None:
        pass


class _Lasting(QdrantClient):
    """In-memory collections that outlive the stores over them, as those of a server do."""

    def close(self, **_: object) -> None:
        pass


class Memory:
    """The served store over the client's local mode, which stands in for a server."""

    name = "memory"

    def __init__(self) -> None:
        self._client = _Lasting(":memory:")

    def connection(self, place: Path) -> Connection:
        """To the server that the tests share, for a store at the place."""
        settings = StoreSettings(collection=_collection_name(place))
        return Connection(self._client, settings, sleep=lambda _: None)

    def create(
        self, place: Path, collection: Collection, profile: Profile | None = None
    ) -> VectorStore:
        with warnings.catch_warnings():
            # Local mode scans; it takes the indexes, and says that they are of no use to it.
            warnings.filterwarnings("ignore", "Payload indexes have no effect in the local")
            return ServerStore.create(self.connection(place), collection, profile)

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        return ServerStore.open(self.connection(place), collection)

    def clear(self) -> None:
        for found in self._client.get_collections().collections:
            self._client.delete_collection(found.name)


class Server:
    """The served store over a server.

    Args:
        settings: of the server; each store has a collection of its own.
    """

    name = "server"

    def __init__(self, settings: StoreSettings) -> None:
        self._prefix = f"test-{uuid.uuid4().hex[:8]}-"
        self._settings = settings

    @property
    def settings(self) -> StoreSettings:
        return self._settings

    def connection(self, place: Path) -> Connection:
        """To the server, for a store at the place."""
        name = self._prefix + _collection_name(place)
        settings = self.settings.model_copy(update={"collection": name})
        with warnings.catch_warnings():
            # A test server may well be reached without TLS.
            warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
            return Connection(connect(settings), settings)

    def create(
        self, place: Path, collection: Collection, profile: Profile | None = None
    ) -> VectorStore:
        return ServerStore.create(self.connection(place), collection, profile)

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        connection = self.connection(place)
        try:
            return ServerStore.open(connection, collection)
        except BaseException:
            connection.client.close()
            raise

    def clear(self) -> None:
        client = self.connection(Path("none")).client
        for found in client.get_collections().collections:
            if found.name.startswith(self._prefix):
                client.delete_collection(found.name)
        client.close()


class StandIn(Server):
    """The served store over a stand-in that treats filters and facets as Qdrant 1.18.3 does, on
    three shards; it is started when it is first used."""

    name = "stand-in"

    def __init__(self) -> None:
        super().__init__(StoreSettings(shards=3))
        self._opened = ExitStack()

    @property
    def settings(self) -> StoreSettings:
        if self._settings.url is None:
            engine = Loopback(DropsEqualMustNot(), FacetsByShard(3))
            rest = self._opened.enter_context(engine.rest())
            grpc = self._opened.enter_context(engine.grpc())
            self._settings = self._settings.model_copy(
                update={"url": f"http://127.0.0.1:{rest}", "grpc_port": grpc}
            )
        return self._settings

    def clear(self) -> None:
        self._opened.close()


def named_server(variables: Mapping[str, str]) -> Server | None:
    """The real server or cluster that the variables name; None = they name none."""
    named: dict[str, Any] = {
        name: variables[_PREFIX + name.upper()]
        for name in ("url", "api_key", "grpc_port", "shards")
        if _PREFIX + name.upper() in variables
    }
    urls = [url.strip() for url in variables.get(_PREFIX + "URLS", "").split(",")]
    named["urls"] = [url for url in urls if url]
    if copies := variables.get(_PREFIX + "REPLICAS"):
        named["replication_factor"] = copies
    settings = StoreSettings.model_validate(named)
    return None if settings.url is None else Server(settings)


def _collection_name(place: Path) -> str:
    return re.sub(r"\W+", "-", str(place)).strip("-")


BACKENDS: list[Backend] = [Edge(), Beside(), Memory()]
if (_server := named_server(os.environ)) is not None:
    BACKENDS.append(_server)
STAND_IN = StandIn()
