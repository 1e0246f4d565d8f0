"""Copies of the ledger and the audit log as of one moment, and what is counted in them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from engine.errors import BackupError
from indexer.backup.head import Counts

__all__ = ["Pinned", "counted", "damage_of", "forget_sessions", "moved", "pinned"]

_PAGES_AT_ONCE = 4096
_PATIENCE_S = 30.0


class Pinned:
    """A database as it was at a moment, whatever is written to it since.

    Args:
        connection: in a transaction that has read.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._connection = connection
        self._file = file

    def copy_to(self, file: Path) -> None:
        """Copies it, by SQLite's online backup: writers do not wait.

        Raises:
            BackupError: it cannot be copied.
        """
        try:
            with closing(sqlite3.connect(file, isolation_level=None)) as target:
                # A copy that is cut short is made again.
                target.execute("PRAGMA synchronous=OFF")
                self._connection.backup(target, pages=_PAGES_AT_ONCE)
                # One file, without a log beside it.
                target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise BackupError(
                f"{self._file} cannot be copied to {file} ({error}); make room, and make the "
                "backup again"
            ) from None


@contextmanager
def pinned(file: Path) -> Iterator[Pinned]:
    """The database in a file as it is now. The log of the database grows meanwhile.

    Raises:
        BackupError: it cannot be read.
    """
    try:
        opened = sqlite3.connect(
            file, isolation_level=None, timeout=_PATIENCE_S, check_same_thread=False
        )
        with closing(opened) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield Pinned(connection, file)
    except sqlite3.Error as error:
        raise BackupError(
            f"{file} cannot be read ({error}); `precedent doctor` says more"
        ) from None


def _reading(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?immutable=1", uri=True)


def counted(ledger: Path, audit: Path, points: int | None) -> Counts:
    """What is in copies of ledger and audit log, which need not be there.

    Raises:
        BackupError: they cannot be read.
    """
    instances: dict[str, int] = {}
    keys = rows = 0
    heads: dict[str, tuple[int, str]] = {}
    try:
        if ledger.is_file():
            with closing(_reading(ledger)) as opened:
                found = opened.execute("SELECT state, count(*) FROM instances GROUP BY state")
                instances = {str(state): int(count) for state, count in sorted(found)}
                (keys,) = opened.execute("SELECT count(*) FROM keys").fetchone()
        if audit.is_file():
            with closing(_reading(audit)) as opened:
                (rows,) = opened.execute("SELECT count(*) FROM audit").fetchone()
                # Of the row that has the maximum, in SQLite.
                last = opened.execute("SELECT chain, max(seq), hash FROM audit GROUP BY chain")
                heads = {str(chain): (int(seq), str(one)) for chain, seq, one in sorted(last)}
    except sqlite3.Error as error:
        raise BackupError(
            f"the copies of ledger and audit log cannot be read ({error}); `precedent doctor` "
            "looks at the originals"
        ) from None
    return Counts(points, instances, keys, rows, heads)


def damage_of(file: Path) -> str | None:
    """What is wrong with a database that nobody uses; None = nothing."""
    try:
        with closing(_reading(file)) as opened:
            (found,) = opened.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                return str(found)
            broken = opened.execute("PRAGMA foreign_key_check").fetchone()
            return None if broken is None else f"a row of {broken[0]} refers to none"
    except sqlite3.Error as error:
        return str(error)


def forget_sessions(ledger: Path) -> None:
    """Ends all sessions of the page in a ledger that nobody uses: some may have been ended since.

    Raises:
        BackupError: it cannot be written.
    """
    with _writing(ledger) as opened:
        for table in ("sessions", "oidc_sessions"):
            found = opened.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,))
            if found.fetchone():
                opened.execute(f"DELETE FROM {table}")  # noqa: S608 - one of these two


def moved(ledger: Path, before: str, now: str) -> None:
    """Gives instances that lie in a folder the locators of another one.

    Args:
        before, now: what locators begin with.

    Raises:
        BackupError: it cannot be written.
    """
    with _writing(ledger) as opened:
        for table in ("points", "manifest", "instances"):
            opened.execute(
                f"UPDATE {table} SET locator = ? || substr(locator, ?) "  # noqa: S608 - of these
                "WHERE substr(locator, 1, ?) = ?",
                (now, len(before) + 1, len(before), before),
            )


@contextmanager
def _writing(ledger: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(ledger, isolation_level=None)) as opened:
            # Both ends of a reference change.
            opened.execute("PRAGMA foreign_keys=OFF")
            opened.execute("BEGIN IMMEDIATE")
            yield opened
            opened.execute("COMMIT")
    except sqlite3.Error as error:
        raise BackupError(f"the restored ledger cannot be written ({error}); make room") from None
