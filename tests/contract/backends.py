"""The stores that the contract is held against. Add one here and the suite runs over it."""

from pathlib import Path
from typing import Protocol

from engine.store.base import Collection, VectorStore
from engine.store.edge import EdgeStore


class Backend(Protocol):
    """How a test makes and opens a store at a place of its own."""

    name: str

    def create(self, place: Path, collection: Collection) -> VectorStore:
        """Opens the store at the place, made anew if there is none."""
        ...

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        """Opens an existing store."""
        ...


class Edge:
    name = "edge"

    def create(self, place: Path, collection: Collection) -> VectorStore:
        return EdgeStore.create(place, collection)

    def open(self, place: Path, collection: Collection | None = None) -> VectorStore:
        return EdgeStore.open(place, collection)


BACKENDS: list[Backend] = [Edge()]
