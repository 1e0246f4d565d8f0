"""Served stores over the stand-in for a server, by each of its faces."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from behaviours import Behaviour
from loopback import Loopback
from qdrant_client import QdrantClient

from engine.settings import StoreSettings
from engine.store.base import Collection, Profile
from engine.store.connection import Connection, connect
from engine.store.server import ServerStore


class Reached:
    """A stand-in server, and connections to it that note how long they would have waited."""

    def __init__(self, engine: Loopback, settings: StoreSettings) -> None:
        self.engine, self.settings = engine, settings
        self.pauses: list[float] = []
        self._clients: list[QdrantClient] = []

    def connection(
        self, name: str = "precedent", *, patient: bool = False, **changes: Any
    ) -> Connection:
        """Its clock goes on only while it waits."""
        settings = self.settings.model_copy(update={"collection": name, **changes})
        self._clients.append(connect(settings))
        return Connection(
            self._clients[-1],
            settings,
            patient=patient,
            sleep=self.pauses.append,
            clock=lambda: sum(self.pauses),
        )

    def create(self, collection: Collection, profile: Profile | None = None, **changes: Any):
        return ServerStore.create(self.connection(**changes), collection, profile)

    def open(self, collection: Collection | None = None, **changes: Any):
        return ServerStore.open(self.connection(**changes), collection)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def reached(face: str, *behaviours: Behaviour) -> Iterator[Reached]:
    """A stand-in with these behaviours, asked over "rest" or "grpc"."""
    engine = Loopback(*behaviours)
    with engine.rest() as rest, engine.grpc() as grpc:
        settings = StoreSettings(
            url=f"http://127.0.0.1:{rest}", grpc_port=grpc, prefer_grpc=face == "grpc"
        )
        made = Reached(engine, settings)
        yield made
        made.close()
