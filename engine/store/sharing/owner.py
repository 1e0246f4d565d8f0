"""Answers other processes from the store that this one has open."""

import logging
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.errors import PrecedentError, StoreError
from engine.store.edge import EdgeStore
from engine.store.holder import Holder
from engine.store.sharing.liveness import BEAT_SECONDS
from engine.store.sharing.messages import BEAT, encoded, receive, send, send_encoded
from engine.store.sharing.place import listening, may_ask

__all__ = ["PROTOCOL", "Reception"]

logger = logging.getLogger(__name__)

PROTOCOL = 5
"""Changes with what is sent: two processes of different versions then say so."""
_MOST_CONNECTIONS = 256
_SEND_SECONDS = 60
"""A process that takes no answer for so long is cut off, as it may have been stopped."""
_PARTING_SECONDS = 5.0
"""… or for so long while this process lets go of the index."""
_PAUSE_SECONDS = 0.2
"""After a connection that could not be taken, as where this process has no file or thread left."""


class Reception:
    """Listens for other processes, each connection in a thread of its own, until it is closed.

    Args:
        store: answers. path: of the socket.

    Raises:
        OSError: nothing can listen there.
    """

    def __init__(self, store: EdgeStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._calls = _calls_of(store)
        # A process that comes to another reception at the same place knows it by this.
        self._name = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._sending: dict[socket.socket, object] = {}
        self._working: set[socket.socket] = set()
        self._ended = threading.Event()
        self._closed = False
        self._said: set[str] = set()
        self._listener = listening(path)
        self._thread = threading.Thread(target=self._accept, name="index socket", daemon=True)
        self._thread.start()
        self._beats = threading.Thread(target=self._beat, name="index beats", daemon=True)
        self._beats.start()

    def close(self) -> None:
        """Lets calls that have begun come to their end, and cuts all connections."""
        with self._lock:
            self._closed = True
            waiting = dict(self._connections)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in waiting:
            with suppress(OSError):
                # Its thread reads no further request, and still sends the answer it is at.
                connection.shutdown(socket.SHUT_RD)
        for connection, thread in waiting.items():
            while thread.is_alive():
                sent = self._sending.get(connection)
                thread.join(_PARTING_SECONDS)
                if sent is not None and self._sending.get(connection) is sent:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
        self._ended.set()
        self._beats.join()

    def _beat(self) -> None:
        """Tells those who wait for an answer that it is being worked on."""
        while not self._ended.wait(BEAT_SECONDS):
            with self._lock:
                for connection in self._working:
                    # Where no room is left for it, enough of them wait to be read.
                    with suppress(OSError):
                        connection.send(BEAT, socket.MSG_DONTWAIT)

    @contextmanager
    def _at_work(self, connection: socket.socket) -> Iterator[None]:
        """Whoever is at the other end is told, during the block, that it goes on."""
        with self._lock:
            self._working.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._working.remove(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                self._say(f"the socket of the index failed ({error.strerror}); it is tried again")
                time.sleep(_PAUSE_SECONDS)
            else:
                self._take(connection)

    def _say(self, message: str) -> None:
        """Warns, once for each message: the cause may last."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s", message)

    def _take(self, connection: socket.socket) -> None:
        thread = threading.Thread(
            target=self._serve, args=(connection,), name="index client", daemon=True
        )
        with self._lock:
            if self._closed or len(self._connections) >= _MOST_CONNECTIONS:
                connection.close()
                return
            try:
                thread.start()
            except RuntimeError:
                connection.close()
                self._say("another process could not be let at the index: no thread is left")
                return
            self._connections[connection] = thread

    def _serve(self, connection: socket.socket) -> None:
        patience = struct.pack("ll", _SEND_SECONDS, 0)
        try:
            if not may_ask(connection):
                logger.warning("a process of another user tried to reach the index; it was refused")
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
            send(connection, self._greeting())
            while not self._closed:
                try:
                    asked = receive(connection)
                except (StoreError, MemoryError) as error:
                    logger.warning("%s", error)
                    # Where the next message begins is not known.
                    send(connection, _told(error))
                    return
                with self._at_work(connection):
                    message = self._answer(asked)
                self._sending[connection] = message
                send_encoded(connection, message)
                del self._sending[connection]
        except (EOFError, OSError):
            pass  # it has ended, or this process ends
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            self._sending.pop(connection, None)
            connection.close()

    def _greeting(self) -> dict[str, Any]:
        me = Holder.here()
        return {
            "protocol": PROTOCOL,
            "name": self._name,
            "collection": self._store.collection,
            "pid": me.pid,
            "command": me.command,
            "since": me.since,
        }

    def _answer(self, asked: Any) -> list[bytes | memoryview]:
        """The message that answers. Whatever went wrong is told: who is only cut off asks again."""
        try:
            return encoded({"answer": self._calls[asked["call"]](**asked["with"])})
        except Exception as error:
            if not isinstance(error, PrecedentError):
                logger.exception("a call over the socket of the index failed")
            return encoded(_told(error))


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, PrecedentError):
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": "StoreError", "text": _fault(error)}


def _fault(error: Exception) -> str:
    return (
        f"the process that has the index open failed ({type(error).__name__}); see its messages, "
        "and run the same command again"
    )


def _calls_of(store: EdgeStore) -> dict[str, Callable[..., Any]]:
    """What can be asked, by name."""

    def state(known: str | None) -> dict[str, Any]:
        """Profile and cells; the cells only if their key is not ``known``."""
        cells = store.cells
        key = None if cells is None else cells.key
        sent = None if key == known else cells
        return {"profile": store.profile, "key": key, "cells": sent}

    def copy(folder: str, known: dict[str, Any], lock: str) -> dict[str, Any]:
        points, files = store.copy_to(Path(folder), known, Path(lock))
        return {"points": points, "files": [(one.path, one.is_there) for one in files]}

    return {
        "state": state,
        "approximates": store.approximates,
        "arrange": store.arrange,
        "upsert": store.upsert,
        "flush": store.flush,
        "optimise": store.optimise,
        "rewrite": lambda new_cells: store.rewrite(new_cells=new_cells),
        "query": store.query,
        "count": store.count,
        "facets": store.facets,
        "get": lambda ids, with_z: store.get(ids, with_z=with_z),
        "ids": store.selected_ids,
        "delete": store.delete,
        "copy": copy,
    }
