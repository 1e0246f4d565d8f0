"""Writes this process's chain of the audit log: rows that wait are committed together."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from secrets import token_hex
from typing import Self

from api.audit.log import AuditLog
from api.audit.rows import Entry, Head, Row
from engine.errors import AuditError, PrecedentError

__all__ = ["PATIENCE_S", "Writer", "too_slow"]

PATIENCE_S = 15.0
"""How long a row is waited for at most, as while a database server does not react."""

_MOST_AT_ONCE = 256


class Writer:
    """Adds the rows of one process to a chain of its own. Close it, or use it as a context manager.

    A thread takes all rows that wait and commits them in one transaction; meanwhile others gather.
    So the log costs a busy service about as many transactions as an idle one.

    Args:
        opened: opens the log; called when the first row is written, and again as long as it fails.
    """

    def __init__(self, opened: Callable[[], AuditLog]) -> None:
        self._open = opened
        self._log: AuditLog | None = None
        self._chain = token_hex(8)
        self._head: Head | None = None
        self._since: Head | None = None
        self._tried: Head | None = None
        self._unsure = False
        self._waiting: queue.SimpleQueue[tuple[Entry, Future[None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.commits = 0
        """How many transactions added rows."""
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Head | None:
        """The last row of this process's chain; None = it has none yet."""
        return self._head

    def write(self, entry: Entry) -> "Future[None]":
        """Adds a row. The result is there once it is committed, or else an AuditError."""
        written: Future[None] = Future()
        with self._lock:
            if self._closed:
                written.set_exception(AuditError("the audit log is closed; start the service"))
            else:
                self._waiting.put((entry, written))
        return written

    def commit(self, entry: Entry) -> None:
        """Adds a row; on return it is committed.

        Raises:
            AuditError: it cannot be, or was not within some seconds.
        """
        try:
            self.write(entry).result(PATIENCE_S)
        except TimeoutError:
            raise too_slow() from None

    def close(self) -> None:
        """Commits what waits, and closes the log."""
        with self._lock:
            self._closed = True
        self._waiting.put(None)
        self._thread.join()
        if self._log is not None:
            self._log.close()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, over = [first], False
            with suppress(queue.Empty):
                while len(group) < _MOST_AT_ONCE:
                    more = self._waiting.get_nowait()
                    if more is None:
                        over = True
                        break
                    group.append(more)
            self._commit(group)
            if over:
                return

    def _commit(self, group: list[tuple[Entry, Future[None]]]) -> None:
        try:
            self._add([entry for entry, _ in group])
        except Exception as error:
            failure = error if isinstance(error, PrecedentError) else _unforeseen(error)
            for _, written in group:
                written.set_exception(failure)
        else:
            for _, written in group:
                written.set_result(None)

    def _add(self, entries: list[Entry]) -> None:
        if self._log is None:
            self._log = self._open()
        if self._unsure:
            self._make_sure(self._log)
        rows = self._log.following(self._chain, self._head, entries, self._since)
        self._tried, self._unsure = rows[-1].head, True
        self._log.add(rows)
        self._settle(rows)

    def _settle(self, rows: list[Row]) -> None:
        self._head, self._tried, self._unsure = rows[-1].head, None, False
        self.commits += 1

    def _make_sure(self, log: AuditLog) -> None:
        """After a failure: looks whether the rows were committed all the same, as when the
        connection was lost while the server answered."""
        found = log.head(self._chain)
        if found == self._tried:
            self._head = found
        elif found != self._head:
            # Rows of ours are gone. A new chain names the last of them, so that this shows.
            self._since, self._head = self._head, None
            self._chain = token_hex(8)
        self._unsure = False


def _unforeseen(error: Exception) -> AuditError:
    # Only its type: the message may quote the row.
    return AuditError(
        f"the audit log failed in a way that was not foreseen ({type(error).__name__})"
    )


def too_slow() -> AuditError:
    """The error that a row was not committed in time."""
    return AuditError(f"the audit log took more than {PATIENCE_S:g} s; see to its database")
