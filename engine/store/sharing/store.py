"""An embedded index that other processes use at the same time.

The first process to open it has it, and answers the others; when it ends, one of them takes the
index over, and goes on where it was.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError, StoreLocked
from engine.records import Point
from engine.store.base import Collection, Filter, Nearest, Profile, VectorStore
from engine.store.cells import Cells
from engine.store.counts import Facets
from engine.store.edge import EdgeStore
from engine.store.edge_copy import CopiedFile
from engine.store.edge_layout import check_collection, scrolled_by_id
from engine.store.holder import Holder
from engine.store.sharing.client import OwnerGone, RemoteStore
from engine.store.sharing.owner import Reception
from engine.store.sharing.place import connected, socket_path

__all__ = ["SharedStore"]

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0
"""For how long a process that has the index locked may take until it answers …"""
_LEAVING_SECONDS = 60.0
"""… and one that lets go of it, until the lock is free or another one answers."""
_LOOK_SECONDS = 0.05
_MOST_UNFLUSHED = 4096
"""Points written by way of another process, and kept here until it has made them durable."""
_T = TypeVar("_T")


class SharedStore:
    """The store in a folder, whichever process has it open. Close it after use.

    Args:
        directory: of the store. opened: opens it in this process.
        wanted: the kind of points that it must hold; None = any.
        patience: seconds to wait for a process that has the lock and does not answer; None = some.

    Raises:
        StoreLocked: another process has it open, and does not answer.
        StoreNotFound, FingerprintMismatch, StoreError: as ``EdgeStore.open`` and ``create`` say.
    """

    def __init__(
        self,
        directory: Path,
        opened: Callable[[], EdgeStore],
        wanted: Collection | None,
        patience: float | None = None,
    ) -> None:
        self._directory = directory
        self._opened = opened
        self._wanted = wanted
        self._lock = threading.Lock()
        # Held while this process writes by way of another one.
        self._writing = threading.RLock()
        self._unflushed: list[Callable[[VectorStore], object]] = []
        self._kept = 0
        self._reception: Reception | None = None
        self._closed = False
        self._store = self._reached(_PATIENCE_SECONDS if patience is None else patience)
        self._written_to = self._store
        self._collection = self._store.collection

    def _reached(self, patience: float) -> EdgeStore | RemoteStore:
        """The store, opened here or in the process that has it."""
        deadline = time.monotonic() + patience
        while True:
            try:
                store = self._opened()
            except StoreLocked:
                remote = self._asked()
                if remote is not None:
                    return remote
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
            else:
                self._reception = _received(store, socket_path(self._directory))
                return store

    def _asked(self) -> RemoteStore | None:
        """The store of the process that has it open; None = it does not answer."""
        path = socket_path(self._directory)
        connection = connected(path)
        if connection is None:
            return None
        try:
            remote = RemoteStore(path, connection)
        except OwnerGone:
            return None
        try:
            check_collection(self._directory, remote.collection, self._wanted)
        except BaseException:
            remote.close()
            raise
        return remote

    @property
    def holder(self) -> Holder | None:
        """The other process that has the index open; None = this one has."""
        store = self._store
        return store.holder if isinstance(store, RemoteStore) else None

    def _do(self, call: Callable[[EdgeStore | RemoteStore], _T]) -> _T:
        """The result of a call that may be made twice, if the process that has the index ends."""
        while True:
            store = self._store
            try:
                return call(store)
            except OwnerGone:
                self._reach_again(store)

    def _reach_again(self, gone: EdgeStore | RemoteStore) -> None:
        with self._lock:
            if self._closed:
                raise StoreError(f"the index in {self._directory} is closed")
            if self._store is not gone:
                return  # another thread has done it
            gone.close()
            self._store = self._reached(_LEAVING_SECONDS)

    def _write(self, call: Callable[[VectorStore], _T], points: int = 0) -> _T:
        """Writes. What another process may lose with its end is kept, and written again then.

        points: how many are kept for this.
        """
        with self._writing:
            if self._unflushed and self._kept + points > _MOST_UNFLUSHED:
                self.flush()
            store, result = self._written(call)
            if isinstance(store, RemoteStore):
                self._unflushed.append(call)
                self._kept += points
                self._written_to = store
            return result

    def _written(self, call: Callable[[VectorStore], _T]) -> tuple[EdgeStore | RemoteStore, _T]:
        """The result of a call that comes after all that was written before, and the store that
        gave it."""
        while True:
            store = self._store
            try:
                if store is not self._written_to:
                    for before in self._unflushed:
                        before(store)
                    self._written_to = store
                return store, call(store)
            except OwnerGone:
                self._reach_again(store)

    @property
    def collection(self) -> Collection:
        return self._collection

    @property
    def profile(self) -> Profile:
        return self._do(lambda store: store.profile)

    @property
    def cells(self) -> Cells | None:
        return self._do(lambda store: store.cells)

    @property
    def counts_at_once(self) -> bool:
        return True

    @property
    def senders(self) -> None:
        """No requests go out ahead: another process answers them one after another."""
        return None

    def approximates(self, where: Filter) -> bool:
        return self._do(lambda store: store.approximates(where))

    def arrange(self, profile: Profile) -> None:
        self.flush()
        self._do(lambda store: store.arrange(profile))

    def upsert(self, points: Sequence[Point]) -> None:
        self._write(lambda store: store.upsert(points), len(points))

    def flush(self) -> None:
        with self._writing:
            self._written(lambda store: store.flush())
            self._unflushed, self._kept = [], 0

    def optimise(self) -> None:
        self.flush()
        self._do(lambda store: store.optimise())

    def rewrite(self, *, new_cells: bool = False) -> int:
        """As of an ``EdgeStore``: no file has anything of deleted points any more."""
        self.flush()
        return self._do(lambda store: store.rewrite(new_cells=new_cells))

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        return self._do(lambda store: store.query(asked))

    def count(self, where: Filter, *, exact: bool = True) -> int:
        return self._do(lambda store: store.count(where, exact=exact))

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        return self._do(lambda store: store.facets(fields, where, limit))

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        return self._do(lambda store: store.get(ids, with_z=with_z))

    def selected_ids(self, where: Filter) -> NDArray[np.uint8]:
        return self._do(lambda store: store.selected_ids(where))

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        return scrolled_by_id(self, where, page, with_z=with_z)

    def delete(self, where: Filter) -> int:
        return self._write(lambda store: store.delete(where))

    def copy_to(
        self, folder: Path, known: Mapping[str, tuple[int, str]], lock: Path
    ) -> tuple[int, list[CopiedFile]]:
        """As ``EdgeStore.copy_to``, whichever process has the store open."""
        return self._do(lambda store: store.copy_to(folder, known, lock))

    def close(self) -> None:
        try:
            if self._unflushed:
                self.flush()
        finally:
            with self._lock:
                self._closed = True
                if self._reception is not None:
                    self._reception.close()
                    self._reception = None
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _received(store: EdgeStore, path: Path) -> Reception | None:
    """Lets other processes reach the store; None = they cannot, and it is in use for them."""
    try:
        return Reception(store, path)
    except OSError as error:
        logger.warning(
            "no socket can be made at %s (%s): no other command can use the index meanwhile",
            path,
            error.strerror or error,
        )
        return None
