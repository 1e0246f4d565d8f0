"""Limits how many requests a credential may send, over all processes with one database.

Each credential has a bucket of tokens in the ledger's database: it holds ``burst`` at most and
gains ``rate`` a second; a request takes one. A process takes tokens by the lease, half a second's
worth, and spends them from memory, so that most requests ask no database. A token is given out
once: all processes together never pass on more than burst + rate × seconds, and what their leases
hold, an eighth of a burst each at most. A lease lapses after a second; what it still held is lost.
"""

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from sqlalchemy import make_url, text

from engine.errors import LedgerError
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database

__all__ = ["Allowance", "Rates"]

_log = logging.getLogger(__name__)

_LEASE_SECONDS = 1.0
_LEASED_SHARE = 8
_FORGOTTEN_SECONDS = 3600.0
_MOST_LEASES = 10_000
_LOCK = 0x72617465
"""Key of the PostgreSQL advisory lock under which the table is made."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether a request may pass. left: requests that may follow at once, as far as this process
    knows. wait: seconds until one may pass; 0 = this one may."""

    left: int
    wait: float

    @property
    def allowed(self) -> bool:
        return self.wait == 0


class _Taken(NamedTuple):
    """Tokens taken from a bucket, and how many it has left."""

    tokens: int
    left: float


def _take(tokens: float, at: float, now: float, wanted: int, rate: float, burst: int) -> _Taken:
    """Takes whole tokens, at most ``wanted``, from a bucket that held ``tokens`` at ``at``."""
    held = min(float(burst), tokens + rate * max(0.0, now - at))
    granted = min(wanted, math.floor(held))
    return _Taken(granted, held - granted)


class _Buckets(Protocol):
    def take(self, credential: str, wanted: int, rate: float, burst: int) -> _Taken:
        """Takes tokens of a credential. Raises LedgerError if the database cannot be asked."""

    def close(self) -> None: ...


class Rates:
    """The allowances of all credentials, as this process knows them.

    Args:
        settings: of the archive; its ledger's database has the buckets, or a file beside it.
        database: gives the ledger's database; None = there is none yet.
        clock: seconds from any start.
    """

    def __init__(
        self,
        settings: Settings,
        database: Callable[[], Database | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = settings.server.requests_per_second
        self._burst = settings.server.burst
        self._clock = clock
        self._database = database
        self._file = _file_of(settings)
        self._buckets: _Buckets | None = None
        self._own = _InMemory(clock)
        self._leases: dict[str, _Lease] = {}
        self._lock = threading.Lock()
        self._said = False

    @property
    def limited(self) -> bool:
        return self._rate is not None

    @property
    def policy(self) -> tuple[int, int]:
        """Requests that may come at once, and seconds in which as many are gained."""
        return self._burst, max(1, math.ceil(self._burst / (self._rate or 1)))

    def close(self) -> None:
        with self._lock:
            if self._buckets is not None:
                self._buckets.close()
                self._buckets = None

    def at_hand(self, credential: str) -> Allowance | None:
        """The answer to a request of this credential, if it needs no database; else None."""
        now = self._clock()
        with self._lock:
            lease = self._leases.get(credential)
            return None if lease is None else lease.spend(now)

    def ask(self, credential: str) -> Allowance:
        """The answer to a request of this credential, with a new lease where it needs one."""
        with self._lock:
            if len(self._leases) > _MOST_LEASES:
                now = self._clock()
                self._leases = {n: one for n, one in self._leases.items() if now < one.until}
            lease = self._leases.setdefault(credential, _Lease())
        # One at a time: requests that come together share a lease.
        with lease.asking:
            found = self.at_hand(credential)
            if found is not None:
                return found
            rate = self._rate or math.inf
            wanted = max(1, min(math.ceil(rate * _LEASE_SECONDS / 2), self._burst // _LEASED_SHARE))
            taken = self._take(credential, wanted, rate)
            now = self._clock()
            with self._lock:
                self._leases[credential] = lease
                lease.renew(taken, now, rate)
                return lease.spend(now) or Allowance(0, 1 / rate)

    def _take(self, credential: str, wanted: int, rate: float) -> _Taken:
        try:
            with self._lock:
                if self._buckets is None:
                    self._buckets = self._opened()
                buckets = self._buckets
            found = buckets.take(credential, wanted, rate, self._burst)
            self._said = False
            return found
        except (LedgerError, sqlite3.Error) as error:
            if not self._said:
                _log.warning(
                    "requests are counted by this process alone, since the database of all "
                    "cannot be asked (%s)",
                    type(error).__name__,
                )
            self._said = True
            return self._own.take(credential, wanted, rate, self._burst)

    def _opened(self) -> _Buckets:
        if self._file is not None:
            return _InFile(self._file)
        database = self._database()
        if database is None:
            raise LedgerError("there is no ledger yet")
        return _InPostgres(database)


class _Lease:
    """Tokens of one credential that this process may spend.

    until: when they lapse. refused_until: when asking again is worth it.
    """

    def __init__(self) -> None:
        self.asking = threading.Lock()
        self.until = 0.0
        self._tokens = 0
        self._left = 0
        self._refused_until = 0.0

    def renew(self, taken: _Taken, now: float, rate: float) -> None:
        self._tokens, self._left = taken.tokens, math.floor(taken.left)
        self.until = now + _LEASE_SECONDS
        if taken.tokens == 0:
            self._refused_until = now + max((1 - taken.left) / rate, 1e-3)

    def spend(self, now: float) -> Allowance | None:
        """Spends a token; None = there is none, and the bucket has to be asked."""
        if self._tokens > 0 and now < self.until:
            self._tokens -= 1
            return Allowance(self._tokens + self._left, 0)
        if now < self._refused_until:
            return Allowance(0, self._refused_until - now)
        return None


class _InMemory:
    """Buckets of this process alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, credential: str, wanted: int, rate: float, burst: int) -> _Taken:
        now = self._clock()
        with self._lock:
            if len(self._held) > _MOST_LEASES:
                self._held.clear()
            tokens, at = self._held.get(credential, (float(burst), now))
            found = _take(tokens, at, now, wanted, rate, burst)
            self._held[credential] = (found.left, now)
            return found


class _InFile:
    """Buckets in an SQLite file beside the ledger: never behind a long write of the ledger's, and
    not synced to the disk, since a power cut may well forget them."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=OFF")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS request_rates "
                "(credential TEXT PRIMARY KEY, tokens REAL NOT NULL, at REAL NOT NULL)"
            )
            self._connection.execute(
                "DELETE FROM request_rates WHERE at < ?", (time.time() - _FORGOTTEN_SECONDS,)
            )
        except sqlite3.Error:
            self._connection.close()
            raise

    def take(self, credential: str, wanted: int, rate: float, burst: int) -> _Taken:
        with self._lock, closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                now = time.time()
                row = cursor.execute(
                    "SELECT tokens, at FROM request_rates WHERE credential = ?", (credential,)
                ).fetchone()
                tokens, at = (burst, now) if row is None else row
                found = _take(tokens, at, now, wanted, rate, burst)
                cursor.execute(
                    "INSERT OR REPLACE INTO request_rates VALUES (?, ?, ?)",
                    (credential, found.left, now),
                )
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            return found

    def close(self) -> None:
        self._connection.close()


class _InPostgres:
    """Buckets in the ledger's database, by its clock. The table is made when it is missing, and is
    no part of what the ledger keeps: it may be dropped at any time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            connection.execute(
                text(
                    "CREATE UNLOGGED TABLE IF NOT EXISTS request_rates (credential TEXT PRIMARY "
                    "KEY, tokens DOUBLE PRECISION NOT NULL, at DOUBLE PRECISION NOT NULL)"
                )
            )
            connection.execute(
                text("DELETE FROM request_rates WHERE at < extract(epoch FROM now()) - :old"),
                {"old": _FORGOTTEN_SECONDS},
            )

    def take(self, credential: str, wanted: int, rate: float, burst: int) -> _Taken:
        with self._database.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO request_rates VALUES (:credential, :burst, "
                    "extract(epoch FROM clock_timestamp())) ON CONFLICT DO NOTHING"
                ),
                {"credential": credential, "burst": burst},
            )
            row = connection.execute(
                text("SELECT tokens, at FROM request_rates WHERE credential = :c FOR UPDATE"),
                {"c": credential},
            ).one()
            # Only now: the row may have been waited for.
            now = float(
                connection.execute(
                    text("SELECT extract(epoch FROM clock_timestamp())")
                ).scalar_one()
            )
            found = _take(row.tokens, row.at, now, wanted, rate, burst)
            connection.execute(
                text("UPDATE request_rates SET tokens = :left, at = :now WHERE credential = :c"),
                {"left": found.left, "now": max(now, row.at), "c": credential},
            )
            return found

    def close(self) -> None:
        """Leaves the database open, which is the ledger's."""


def _file_of(settings: Settings) -> Path | None:
    """The file with the buckets; None = they are in PostgreSQL."""
    ledger = DataDir(settings.data_dir).ledger
    if settings.ledger.url is not None:
        url = make_url(settings.ledger.url.get_secret_value())
        if url.get_backend_name() != "sqlite":
            return None
        ledger = Path(url.database or ledger)
    return ledger.with_name("request-rates.sqlite")
