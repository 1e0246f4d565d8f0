"""The store of another process, asked over its socket."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine import errors
from engine.errors import StoreError
from engine.records import Point
from engine.store.base import Collection, Filter, Nearest, Profile
from engine.store.cells import Cells
from engine.store.counts import Facets
from engine.store.edge_copy import CopiedFile
from engine.store.edge_layout import scrolled_by_id
from engine.store.holder import Holder
from engine.store.points import storable
from engine.store.sharing.liveness import LOOK_SECONDS, Liveness
from engine.store.sharing.messages import receive, send
from engine.store.sharing.owner import PROTOCOL
from engine.store.sharing.place import connected, limited, pid_of

__all__ = ["OwnerGone", "RemoteStore"]

_UPSERT_AT_ONCE = 1024
_GREETING_SECONDS = 10.0


class OwnerGone(StoreError):
    """The process that had the index open has ended, or lets go of it."""


class RemoteStore:
    """The store that another process has open. Closing it leaves that one as it is.

    Every call is whole: the other process does all of it, even if this one ends meanwhile.

    Args:
        path: of the socket. connection: to it, just made.

    Raises, from any method:
        OwnerGone: the other process ended; whether the call was done is not known.
        StoreLocked: it is there, and has not worked on the call for a while, as one that was
            stopped. If it goes on, it may still do it.
        StoreError: as the other process says.
    """

    def __init__(self, path: Path, connection: socket.socket) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._closed = False
        self._cells: Cells | None = None
        self._name = ""
        self._pid: int | None = None
        self._collection, self.holder = self._greeted(connection)
        self._idle.append(connection)

    def _greeted(self, connection: socket.socket) -> tuple[Collection, Holder]:
        try:
            self._pid = pid_of(connection)
            if self._name:
                limited(connection, LOOK_SECONDS)
                hello = receive(connection, Liveness(self._pid, str(self.holder)))
            else:
                # It may have been stopped, or be at its end; whoever opens the index tries again.
                connection.settimeout(_GREETING_SECONDS)
                hello = receive(connection)
                connection.settimeout(None)
                limited(connection, LOOK_SECONDS)
            holder = Holder(hello["pid"], hello["command"], hello["since"])
            if hello["protocol"] != PROTOCOL:
                raise StoreError(
                    f"the index is open in another version of Precedent ({holder}); stop that "
                    "process, or use its version"
                )
            if self._name not in ("", hello["name"]):
                # It has not what this process wrote to the one before.
                raise self._gone()
            self._name = hello["name"]
            found: Collection = hello["collection"]
        except (EOFError, OSError):
            connection.close()
            raise OwnerGone(f"nobody answers at {self._path}; run the command again") from None
        except BaseException:
            connection.close()
            raise
        return found, holder

    def _call(self, name: str, **arguments: Any) -> Any:
        connection = self._borrowed()
        patience = Liveness(self._pid, str(self.holder))
        try:
            send(connection, {"call": name, "with": arguments}, patience)
            answer = receive(connection, patience)
        except (EOFError, OSError):
            connection.close()
            raise self._gone() from None
        except BaseException:
            # Its answer would be taken for that to another request.
            connection.close()
            raise
        with self._lock:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)
        if "error" in answer:
            kind = getattr(errors, answer["error"], StoreError)
            raise (kind if issubclass(kind, StoreError) else StoreError)(answer["text"])
        return answer["answer"]

    def _borrowed(self) -> socket.socket:
        with self._lock:
            if self._closed:
                # By another thread of this process, which found out first.
                raise self._gone()
            if self._idle:
                return self._idle.pop()
        connection = connected(self._path)
        if connection is None:
            raise self._gone()
        self._greeted(connection)
        return connection

    def _gone(self) -> OwnerGone:
        return OwnerGone(
            f"the process that had the index open ({self.holder}) has ended; run the same command "
            "again"
        )

    @property
    def collection(self) -> Collection:
        return self._collection

    def _state(self) -> tuple[Profile, Cells | None]:
        known = self._cells
        key = None if known is None else known.key
        found = self._call("state", known=key)
        cells: Cells | None = found["cells"]
        if found["key"] is not None and found["key"] == key:
            cells = known
        self._cells = cells
        return found["profile"], cells

    @property
    def profile(self) -> Profile:
        return self._state()[0]

    @property
    def cells(self) -> Cells | None:
        return self._state()[1]

    @property
    def counts_at_once(self) -> bool:
        return True

    @property
    def senders(self) -> None:
        """No requests go out ahead: another process answers them one after another."""
        return None

    def approximates(self, where: Filter) -> bool:
        return bool(self._call("approximates", where=where))

    def arrange(self, profile: Profile) -> None:
        self._call("arrange", profile=profile)

    def upsert(self, points: Sequence[Point]) -> None:
        for point in points:
            storable(point, self._collection)
        for start in range(0, len(points), _UPSERT_AT_ONCE):
            self._call("upsert", points=list(points[start : start + _UPSERT_AT_ONCE]))

    def flush(self) -> None:
        self._call("flush")

    def optimise(self) -> None:
        self._call("optimise")

    def rewrite(self, *, new_cells: bool = False) -> int:
        return int(self._call("rewrite", new_cells=new_cells))

    def query(self, asked: Sequence[Nearest]) -> list[list[Point]]:
        return [list(found) for found in self._call("query", asked=list(asked))]

    def count(self, where: Filter, *, exact: bool = True) -> int:  # noqa: ARG002
        return int(self._call("count", where=where))

    def facets(self, fields: Sequence[str], where: Filter, limit: int) -> Facets:
        # The other process has an embedded index, whose counts are exact.
        return Facets(self._call("facets", fields=list(fields), where=where, limit=limit))

    def get(self, ids: Sequence[str], *, with_z: bool = False) -> list[Point]:
        return list(self._call("get", ids=list(ids), with_z=with_z))

    def selected_ids(self, where: Filter) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self._call("ids", where=where)
        return found

    def scroll(self, where: Filter, *, page: int = 1000, with_z: bool = False) -> Iterator[Point]:
        return scrolled_by_id(self, where, page, with_z=with_z)

    def delete(self, where: Filter) -> int:
        return int(self._call("delete", where=where))

    def copy_to(
        self, folder: Path, known: Mapping[str, tuple[int, str]], lock: Path
    ) -> tuple[int, list[CopiedFile]]:
        # The other process may have been started elsewhere.
        places = {"folder": str(folder.absolute()), "lock": str(lock.absolute())}
        found = self._call("copy", known=dict(known), **places)
        return int(found["points"]), [CopiedFile(*one) for one in found["files"]]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
