"""The audit log in its database: rows are added, read and, at the beginnings of chains, forgotten.

In SQLite it is a file of its own beside the ledger's: an index run holds the ledger's write lock
for as long as it records what it read, and no answer should wait for that. In PostgreSQL, where
writers do not wait for each other, it is a table of the ledger's database.
"""

import contextlib
import getpass
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, case, delete, func, insert, select, text, tuple_
from sqlalchemy.engine import make_url

from api.audit.rows import Entry, Head, Row, Who
from api.audit.schema import AUDIT, audit
from engine import __version__
from engine.errors import AuditError, LedgerError
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database

__all__ = ["COMMANDS", "AuditLog", "audit_file", "forgotten_in", "open_log", "system_user"]

COMMANDS = "commands"
"""The chain that commands write. They share one: a chain of one row would prove nothing."""
_COMMANDS_LOCK = 0x61756474
"""Key of the PostgreSQL advisory lock under which a command adds its row."""
_PATIENCE_S = 3.0
"""How long a row waits for another writer. All of them are quick, and an answer waits for this."""
_PAGE = 5000


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """An open audit log. Close it, or use it as a context manager.

    Every method raises AuditError if the database fails.

    Args:
        database: opened for the tables of :data:`api.audit.schema.AUDIT`.
        clock: the time, UTC.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._clock = clock

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def following(
        self, chain: str, after: Head | None, entries: Sequence[Entry], since: Head | None = None
    ) -> list[Row]:
        """The rows that these entries become.

        Args:
            after: the last row of the chain; None = it begins here.
            since: where it begins: a row that is known to have been written before, which the first
                row names; None = the newest one of the log, if there is any.
        """
        began = {} if after is not None else _began(since or self.newest())
        return self._rows(chain, after, entries, began)

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows in one transaction."""
        with self._begin() as connection:
            _insert(connection, rows)

    def add_command(self, entry: Entry) -> Head:
        """Adds the row of a command to the chain that commands share; returns it."""
        with self._begin() as connection:
            return self._add_command(connection, entry)

    def check(self) -> None:
        """Raises AuditError if no row can be added at present."""
        with self._begin() as connection, connection.begin_nested() as tried:
            _insert(connection, [Row("", 0, "", "", "")])
            tried.rollback()

    def head(self, chain: str) -> Head | None:
        """The last row of a chain; None = it has none."""
        with self._begin(read=True) as connection:
            return _head(connection, chain)

    def hash_of(self, chain: str, seq: int) -> str | None:
        """The hash of a row; None = it is not there."""
        c = audit.c
        found = select(c.hash).where(c.chain == chain, c.seq == seq)
        with self._begin(read=True) as connection:
            return connection.execute(found).scalar()

    def newest(self) -> Head | None:
        """The row that was written last, in any chain; None = there is none."""
        with self._begin(read=True) as connection:
            return _newest(connection)

    def heads(self, since: datetime | None = None) -> dict[str, Head]:
        """The last row of each chain that has rows; since: of those written to from then on."""
        c = audit.c
        rows_of = select(c.chain, func.max(c.seq).label("seq")).group_by(c.chain)
        if since is not None:
            rows_of = rows_of.where(c.at >= _written(since))
        last = rows_of.subquery()
        found = select(c.chain, c.seq, c.hash).join(
            last, (c.chain == last.c.chain) & (c.seq == last.c.seq)
        )
        with self._begin(read=True) as connection:
            rows = connection.execute(found.order_by(c.chain)).all()
        return {row.chain: Head(row.chain, row.seq, row.hash) for row in rows}

    def rows(self) -> Iterator[Row]:
        """All rows, chain by chain, each in order."""
        c = audit.c
        after: tuple[str, int] = ("", -1)
        while True:
            page = (
                select(audit)
                .where(tuple_(c.chain, c.seq) > tuple_(*after))
                .order_by(c.chain, c.seq)
                .limit(_PAGE)
            )
            with self._begin(read=True) as connection:
                found = [_row(row) for row in connection.execute(page)]
            if not found:
                return
            yield from found
            after = (found[-1].chain, found[-1].seq)

    def between(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        naming: Sequence[str] = (),
        latest_first: bool = False,
        beyond: tuple[str, str, int] | None = None,
        at_a_time: int = _PAGE,
    ) -> Iterator[Row]:
        """The rows of a time, in its order.

        Args:
            since: the earliest time. until: the first that is too late.
            naming: texts that each row has somewhere; which part of it has them is not looked at.
            beyond: time, chain and number of a row after which to begin, in the order asked for.
            at_a_time: rows that are held in memory.
        """
        c = audit.c
        key = tuple_(c.at, c.chain, c.seq)
        wanted = select(audit).limit(at_a_time)
        wanted = wanted.order_by(
            *(column.desc() if latest_first else column for column in (c.at, c.chain, c.seq))
        )
        if since is not None:
            wanted = wanted.where(c.at >= _written(since))
        if until is not None:
            wanted = wanted.where(c.at < _written(until))
        for one in naming:
            wanted = wanted.where(c.body.contains(one, autoescape=True))
        while True:
            page = wanted
            if beyond is not None:
                place = tuple_(*beyond)
                page = wanted.where(key < place if latest_first else key > place)
            with self._begin(read=True) as connection:
                found = [_row(row) for row in connection.execute(page)]
            if not found:
                return
            yield from found
            beyond = (found[-1].at, found[-1].chain, found[-1].seq)

    def latest_ends(self, count: int, characters: int) -> list[tuple[str, str]]:
        """The time and the last characters of the body of the latest rows, the latest first."""
        c = audit.c
        length = func.length(c.body)
        end = case(
            (length > characters, func.substr(c.body, length - characters + 1)), else_=c.body
        )
        wanted = select(c.at, end.label("end"))
        wanted = wanted.order_by(c.at.desc(), c.chain.desc(), c.seq.desc()).limit(count)
        with self._begin(read=True) as connection:
            return [(row.at, row.end) for row in connection.execute(wanted)]

    def forget(self, before: datetime, entry: Entry) -> dict[str, Head]:
        """Removes the rows of before a time, at the beginnings of chains, for good.

        First a row is added to the chain of commands that says up to where, with the hashes of the
        last rows that go, and who had it done. That chain is then whole from there on as others
        are. A row that comes after a later one in its chain, as after the clock was set, stays.

        Args:
            entry: who does it, for that row.

        Returns the last row forgotten, by chain, of all that was ever forgotten.
        """
        c = audit.c
        limit = _written(before)
        kept = (
            select(c.chain, func.min(c.seq).label("seq"))
            .where(c.at >= limit)
            .group_by(c.chain)
            .subquery()
        )
        last = (
            select(c.chain, func.max(c.seq).label("seq"))
            .outerjoin(kept, c.chain == kept.c.chain)
            .where(c.at < limit, kept.c.seq.is_(None) | (c.seq < kept.c.seq))
            .group_by(c.chain)
            .subquery()
        )
        ends = select(c.chain, c.seq, c.hash).join(
            last, (c.chain == last.c.chain) & (c.seq == last.c.seq)
        )
        with self._begin() as connection:
            self._lock_commands(connection)
            # Whoever may not remove rows learns it before the log says that they went.
            connection.execute(delete(audit).where(c.chain == "", c.seq < 0))
            gone = self._forgotten(connection)
            found = connection.execute(ends).all()
            gone |= {row.chain: Head(row.chain, row.seq, row.hash) for row in found}
            about = {
                **entry.about,
                "before": limit,
                "forgotten": {one.chain: [one.seq, one.hash] for one in gone.values()},
            }
            self._add_command(connection, replace(entry, about=about))
        for row in found:
            self._remove(row.chain, row.seq)
        return gone

    def forgotten(self) -> dict[str, Head]:
        """The last row forgotten, by chain."""
        with self._begin(read=True) as connection:
            return self._forgotten(connection)

    def _remove(self, chain: str, last: int) -> None:
        """Removes rows from the beginning of a chain, not so many at once that others wait."""
        c = audit.c
        while True:
            with self._begin() as connection:
                first = connection.execute(
                    select(func.min(c.seq)).where(c.chain == chain, c.seq <= last)
                ).scalar()
                if first is None:
                    return
                connection.execute(
                    delete(audit).where(c.chain == chain, c.seq <= min(last, first + _PAGE - 1))
                )

    def _forgotten(self, connection: Connection) -> dict[str, Head]:
        c = audit.c
        rows = connection.execute(
            select(audit)
            .where(c.chain == COMMANDS, c.body.contains('"forgotten":'))
            .order_by(c.seq.desc())
            .limit(1)
        )
        for row in rows:
            # `verify` tells of a row that somebody changed.
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                return forgotten_in(_row(row).document)
        return {}

    def _add_command(self, connection: Connection, entry: Entry) -> Head:
        self._lock_commands(connection)
        before = _head(connection, COMMANDS)
        began = {} if before is not None else _began(_newest(connection))
        rows = self._rows(COMMANDS, before, [entry], began)
        _insert(connection, rows)
        return rows[-1].head

    def _lock_commands(self, connection: Connection) -> None:
        # In SQLite whoever writes has the only lock there is.
        if self._database.dialect == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_COMMANDS_LOCK})"))

    def _rows(
        self, chain: str, after: Head | None, entries: Sequence[Entry], began: Mapping[str, Any]
    ) -> list[Row]:
        rows: list[Row] = []
        for entry in entries:
            rows.append(Row.following(after, chain, _written(self._clock()), entry, began))
            after = rows[-1].head
        return rows

    @contextlib.contextmanager
    def _begin(self, *, read: bool = False) -> Iterator[Connection]:
        try:
            with self._database.begin(read=read) as connection:
                yield connection
        except LedgerError as error:
            raise AuditError(str(error)) from None


def open_log(settings: Settings) -> AuditLog:
    """The audit log of an archive; it is made if there is none.

    Raises:
        AuditError: it cannot be opened.
    """
    file = audit_file(settings)
    try:
        if file is None and settings.ledger.url is not None:
            return AuditLog(Database(settings.ledger.url.get_secret_value(), AUDIT))
        if file is None:
            raise AssertionError("it is a file, or in the ledger's database")
        file.parent.mkdir(parents=True, exist_ok=True)
        return AuditLog(Database(f"sqlite:///{file}", AUDIT, _PATIENCE_S))
    except LedgerError as error:
        raise AuditError(str(error)) from None
    except OSError as error:
        raise AuditError(
            f"{file} cannot be made ({error.strerror}); name another --data-dir"
        ) from None


def audit_file(settings: Settings) -> Path | None:
    """The file of the audit log; None = it is a table of the ledger's database."""
    if settings.ledger.url is None:
        return DataDir(settings.data_dir).audit
    url = settings.ledger.url.get_secret_value()
    if not url.startswith("sqlite"):
        return None
    return Path(make_url(url).database or "").with_name("audit.sqlite")


def system_user() -> Who:
    """The user of the operating system who runs this process."""
    number = str(os.getuid()) if hasattr(os, "getuid") else None
    try:
        return Who("user", number, getpass.getuser())
    except (OSError, KeyError):
        return Who("user", number)


def forgotten_in(document: Mapping[str, Any]) -> dict[str, Head]:
    """What a row says was forgotten: the last row that went, by chain; empty = it says nothing.

    Raises:
        ValueError, TypeError, AttributeError: the row was not written by an audit log.
    """
    found = document.get("about", {}).get("forgotten", {})
    return {chain: Head(chain, int(seq), str(sha256)) for chain, (seq, sha256) in found.items()}


def _began(since: Head | None) -> dict[str, Any]:
    return {
        "after": None if since is None else [since.chain, since.seq, since.hash],
        "host": socket.gethostname(),
        "process": os.getpid(),
        "version": __version__,
    }


def _written(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _insert(connection: Connection, rows: Sequence[Row]) -> None:
    connection.execute(
        insert(audit),
        [
            {"chain": one.chain, "seq": one.seq, "at": one.at, "body": one.body, "hash": one.hash}
            for one in rows
        ],
    )


def _head(connection: Connection, chain: str) -> Head | None:
    c = audit.c
    found = select(c.seq, c.hash).where(c.chain == chain).order_by(c.seq.desc()).limit(1)
    row = connection.execute(found).first()
    return None if row is None else Head(chain, row.seq, row.hash)


def _newest(connection: Connection) -> Head | None:
    c = audit.c
    found = select(c.chain, c.seq, c.hash).order_by(c.at.desc(), c.chain.desc(), c.seq.desc())
    row = connection.execute(found.limit(1)).first()
    return None if row is None else Head(row.chain, row.seq, row.hash)


def _row(row: Any) -> Row:
    return Row(row.chain, row.seq, row.at, row.body, row.hash)
