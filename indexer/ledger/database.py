"""Opens the ledger's database, SQLite or PostgreSQL, migrates its tables, and runs transactions."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from engine.errors import LedgerError
from engine.extras import install_command
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.migrations import LEDGER, Tables, migrate, revision_of
from indexer.ledger.tenancy import TenantDatabase, refuse_untenanted

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["Database", "open_database"]

_VARIABLE = "PRECEDENT_LEDGER__URL"
_FORMS = '"postgresql+psycopg://user@host/database" or "sqlite:////folder/ledger.sqlite"'
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
_PATIENCE_S = 10.0
"""How long to wait for another SQLite connection to end its transaction."""
_MIGRATION_PATIENCE_S = 3600.0
"""… and for another process that migrates: new indices over millions of rows take minutes."""
_WIPE_PATIENCE_S, _WIPE_PAUSE_S = 60.0, 0.1
_MIGRATION_LOCK = 0x6C656467
"""Key of the PostgreSQL advisory lock for migrations."""
_SERVER_OPTIONS = {
    "connect_timeout": 10,
    "application_name": "precedent",
    "client_encoding": "utf8",
    # A connection to a server that vanished is noticed within about a minute.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_READ = "precedent_read"
_TENANT = "precedent_tenant"


class Database:
    """An open database. Close it, or use it as a context manager.

    Tables made by an earlier version are migrated; several processes may open the database at
    the same time. Connections that a restart of the server closed are replaced.

    Args:
        url: as in "sqlite:////folder/ledger.sqlite" or "postgresql+psycopg://user@host/name".
        tables: which tables it is opened for; they may share it with others.
        patience_s: how long to wait for another SQLite connection to end its transaction.
        reads_only: it is taken as it is: nothing is made or migrated, and nothing can be written.
        key: gives the key of what is hashed so that nobody finds it by trying; asked for when it
            is first needed. Empty = what is hashed has no key.

    Raises:
        LedgerError: it cannot be opened or used.
    """

    def __init__(
        self,
        url: str | URL,
        tables: Tables = LEDGER,
        patience_s: float = _PATIENCE_S,
        *,
        reads_only: bool = False,
        key: Callable[[], bytes] = bytes,
    ) -> None:
        self.key = cache(key)
        self._tables = tables
        self._url = _parsed(url)
        self._place = _shown(self._url)
        self.dialect = self._url.get_backend_name()
        """sqlite or postgresql."""
        self._engine = _reading_engine(self._url) if reads_only else _engine(self._url, patience_s)
        self._reading = self._engine.execution_options(**{_READ: True})
        if reads_only:
            return
        try:
            self._bring_up_to_date()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def revision(self) -> str | None:
        """The revision of its tables; None = it records none.

        Raises:
            LedgerError: it has no such tables, or cannot be read.
        """
        with self.begin(read=True) as connection:
            return revision_of(connection, self._tables)

    def of(self, tenant: str) -> TenantDatabase:
        """A tenant's share of it."""
        return TenantDatabase(self, tenant)

    @contextmanager
    def begin(self, *, read: bool = False, tenant: str | None = None) -> Iterator[Connection]:
        """A connection in a transaction, committed at the end or rolled back on an error.

        read: the transaction only reads. In SQLite it then neither blocks writers nor waits for
        them. tenant: each statement has to name this tenant; None = any statement is executed.
        """
        with self._begin(self._reading if read else self._engine) as connection:
            if tenant is not None:
                connection.execution_options(**{_TENANT: tenant})
            yield connection

    @contextmanager
    def _begin(self, engine: Engine) -> Iterator[Connection]:
        with self._failing_as_ours(), engine.begin() as connection:
            yield connection

    def wipe(self, patience_s: float = _WIPE_PATIENCE_S) -> bool:
        """Writes the file of an SQLite database anew, so that it, and the log beside it, have
        nothing but the rows that are there; whether that is done.

        Others may read meanwhile; who writes waits. It takes as much of the disk again as the file
        has. In PostgreSQL rows that went are only let go of, and True is never returned: what
        pages and the server's log still have of them is the server's.

        Args:
            patience_s: how long to wait for others to end their transactions.
        """
        if self.dialect != "sqlite":
            with (
                suppress(LedgerError),
                self._failing_as_ours(),
                self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as server,
            ):
                server.exec_driver_sql("VACUUM")
            return False
        deadline = time.monotonic() + patience_s
        with self._failing_as_ours(), closing(self._engine.raw_connection()) as opened:
            cursor = opened.cursor()
            while True:
                try:
                    cursor.execute("VACUUM")
                    if cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0:
                        return True
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise self._failure(SQLAlchemyError(str(error))) from None
                if time.monotonic() > deadline:
                    return False
                time.sleep(_WIPE_PAUSE_S)

    @contextmanager
    def _failing_as_ours(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # Not chained: the original error quotes rows, and tracebacks get into logs.
            raise self._failure(error) from None

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """An INSERT that can say what to do on a conflict."""
        # Loading the other database's dialect would take as long as a small query.
        if self.dialect == "sqlite":
            from sqlalchemy.dialects import sqlite

            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)

    def _bring_up_to_date(self) -> None:
        try:
            with self.begin(read=True) as connection:
                if revision_of(connection, self._tables) == self._tables.head:
                    return
        except LedgerError as error:
            if not _is_table_missing(error.__context__):
                raise
        if self.dialect == "sqlite":
            patient = _engine(self._url, _MIGRATION_PATIENCE_S)
            try:
                # BEGIN IMMEDIATE: one process migrates, the others then find nothing to do.
                with self._begin(patient) as connection:
                    migrate(connection, self._place, self._tables)
            finally:
                patient.dispose()
        else:
            with self.begin() as connection:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
                migrate(connection, self._place, self._tables)

    def _failure(self, error: SQLAlchemyError) -> LedgerError:
        cause = getattr(error, "orig", None) or error
        # Only the primary message: the detail messages of PostgreSQL quote rows.
        diagnostics = getattr(cause, "diag", None)
        message = getattr(diagnostics, "message_primary", None) or str(cause)
        way_out = self._way_out(cause)
        what = f"the {self._tables.name} {self._place}"
        return LedgerError(f"{what} failed: {_one_line(message)}; {way_out}")

    def _way_out(self, cause: BaseException) -> str:
        if self.dialect == "sqlite":
            if _is_busy(cause):
                return "another process has been writing to it for long; wait for it to end"
            code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                return "make room on its disk, and the same command goes on"
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return "it is damaged: check the disk, and restore it from the backup"
            return "check the disk and its permissions"
        state = getattr(cause, "sqlstate", None)
        if state is None or state.startswith(("08", "28", "3D", "57P")):
            return (
                "check that the server runs, and the host, port, database, user and password "
                f"in {_VARIABLE}"
            )
        if state == "42501":
            return "make its user the owner of the database, or let it create tables there"
        return "see the log of the database server"


def open_database(settings: Settings, file: Path) -> Database:
    """The database that the settings name, or else the SQLite file, created if it does not exist.

    Raises:
        LedgerError: it cannot be opened or used.
    """

    def key() -> bytes:
        return DataDir(settings.data_dir).pseudonym_key(settings)

    if settings.ledger.url is not None:
        return Database(settings.ledger.url.get_secret_value(), key=key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"{file.parent} cannot be made ({error.strerror}); name another --data-dir"
        ) from None
    return Database(URL.create("sqlite", database=str(file)), key=key)


def _parsed(url: str | URL) -> URL:
    """The URL with its driver. Errors do not quote it: it may hold a password."""
    if isinstance(url, str):
        address = url.partition("?")[0]
        if address.count("@") > 1 and not address.startswith("sqlite"):
            raise LedgerError(
                "the URL of the ledger's database has more than one @; in a user or password "
                f"write it as %40 in {_VARIABLE}"
            )
        try:
            url = make_url(url)
        except (ArgumentError, ValueError):
            raise LedgerError(
                "the URL of the ledger's database cannot be read; write it in "
                f"{_VARIABLE} as in {_FORMS}"
            ) from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise LedgerError(
            f"the ledger cannot be kept in a database of the kind {url.drivername!r}, only in "
            f"SQLite or PostgreSQL; write {_VARIABLE} as in {_FORMS}"
        )
    if driver == "sqlite" and url.database in (None, "", ":memory:"):
        raise LedgerError(
            f"the URL of the ledger's database names no file; write {_VARIABLE} as in {_FORMS}"
        )
    return url.set(drivername=driver)


def _shown(url: URL) -> str:
    """The database as error messages name it, without user and password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    shown = URL.create("postgresql", host=url.host, port=url.port, database=url.database)
    return shown.render_as_string()


def _engine(url: URL, patience_s: float = _PATIENCE_S) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": patience_s}, hide_parameters=True)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin_transaction)
        event.listen(engine, "before_cursor_execute", _check_tenant)
        return engine
    options = {name: v for name, v in _SERVER_OPTIONS.items() if name not in url.query}
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=options, hide_parameters=True)
    except ImportError:
        raise LedgerError(
            "a ledger in PostgreSQL needs the package psycopg, which is not installed; "
            + install_command("server")
        ) from None
    event.listen(engine, "before_cursor_execute", _check_tenant)
    return engine


def _reading_engine(url: URL) -> Engine:
    """For looking alone. An SQLite file that nobody has open is not even given its log."""
    if url.get_backend_name() != "sqlite":
        options = {
            "connect_timeout": "5",
            "options": "-c default_transaction_read_only=on -c statement_timeout=30000",
        }
        return _engine(url.update_query_dict(options))
    file = Path(str(url.database)).absolute()
    how = "mode=ro" if file.with_name(f"{file.name}-wal").exists() else "immutable=1"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(file))}?{how}", uri=True, timeout=5)

    return create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)


def _configure(connection: Any, _: object) -> None:
    # The sqlite3 module's implicit transactions cover no DDL and never use BEGIN IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    _log_ahead(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # What rows held that go is overwritten with zeros.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _log_ahead(cursor: sqlite3.Cursor) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # While another process opens the same new file, SQLite fails at once.
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_transaction(connection: Connection) -> None:
    # A transaction that reads first and then writes fails if another one has written in between.
    # So one that may write takes the write lock at its start, and waits for it.
    read = connection.get_execution_options().get(_READ, False)
    connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")


def _check_tenant(
    connection: Connection,
    _cursor: Any,
    statement: str,
    _parameters: Any,
    context: Any,
    _many: bool,
) -> None:
    tenant = connection.get_execution_options().get(_TENANT)
    if tenant is not None:
        named = context.compiled_parameters if context.compiled is not None else []
        refuse_untenanted(statement, named[0] if named else {}, tenant)


def _is_table_missing(error: BaseException | None) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlstate", None) == "42P01" or "no such table" in str(cause)


def _is_busy(error: BaseException) -> bool:
    # The lowest byte is the primary error code; the others are the extended code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _one_line(message: str) -> str:
    return " ".join(message.split())
