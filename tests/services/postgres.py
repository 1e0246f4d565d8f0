"""A PostgreSQL server for tests: a real one, on a free loopback port, in a folder of its own.

    with Postgres() as server:
        url = server.create_database()
        server.kill()  # as a power cut does
        server.start()

Tests that do not stop it share one, the fixture ``postgres``; ``ledger_url`` is an empty database
of each kind in turn, and ``made_ledger_url`` one that has the ledger's tables, which is quicker.
``tests/conftest.py`` names this module as a plugin, so all tests have these.
"""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.needed import do_without, package
from services.packages import install_line
from services.server import HOST, Server

__all__ = ["Postgres", "ledger_kind", "ledger_url", "made_ledger_url", "postgres", "sqlite_quick"]

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 1024**3
# Whoever connects from this machine may; only the role "guarded" needs a password.
_ACCESS = f"host all guarded {HOST}/32 scram-sha-256\nhost all all {HOST}/32 trust\n"


class Postgres(Server):
    """A server that can be started, stopped and killed; databases outlive all of these.

    It runs between entering and leaving it as a context manager. Its locale orders text as
    people do, so that code which leans on the order of bytes is found out.
    """

    name = "postgresql"
    stop_signal, kill_signal = signal.SIGINT, signal.SIGQUIT

    def __init__(self) -> None:
        self._programs = package("postgresql").parent
        self._user = _user()
        in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
        super().__init__(Path(tempfile.mkdtemp("", "postgres-", _MEMORY if in_memory else None)))
        self._numbers = itertools.count(1)

    def start(self) -> None:
        if not self._data.exists():
            self._make()
        super().start()

    def _command(self) -> Sequence[str | Path]:
        options = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            # It has to outlive its own end, not that of the machine.
            "fsync": "off",
            "full_page_writes": "off",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [self._programs / "postgres", "-D", self._data, *words]

    def _options(self) -> Mapping[str, Any]:
        return {"user": self._user, "group": self._user}

    def _answers(self) -> bool:
        try:
            self._connect("postgres").close()
            return True
        except psycopg.OperationalError:
            return False

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """What SQLAlchemy opens a database by."""
        secret = "" if password is None else f":{password}"
        return f"postgresql+psycopg://{user}{secret}@{HOST}:{self.port}/{database}"

    def create_database(self, encoding: str = "UTF8", like: str | None = None) -> str:
        """The URL of a database that is new and empty, or like that of another URL, which nobody
        has open."""
        name = f"test_{next(self._numbers)}"
        how = "" if encoding == "UTF8" else "TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
        if like is not None:
            how = f"TEMPLATE {_name(like)}"
        self.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' {how}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Removes a database, also one in use."""
        self.execute(f"DROP DATABASE {_name(url)} WITH (FORCE)")

    def execute(self, statement: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """The rows that a statement gives, run by the superuser."""
        with self._connect("postgres" if url is None else _name(url)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host=HOST, port=self.port, user="postgres", dbname=database, autocommit=True
        )

    def _make(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        made = subprocess.run(
            [
                *(self._programs / "initdb", "--pgdata", self._data, "--no-sync"),
                *("--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8"),
                *("--locale-provider", "icu", "--icu-locale", "en-US"),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._options(),
        )
        if made.returncode:
            pytest.fail(f"no data folder for PostgreSQL: {made.stderr or made.stdout}")
        (self._data / "pg_hba.conf").write_text(_ACCESS)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that all tests share."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return str(request.param)


sqlite_quick = pytest.mark.parametrize(
    "ledger_kind",
    ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)],
    indirect=True,
)
"""For a test that takes long, and whose statements others have PostgreSQL execute."""


@pytest.fixture
def ledger_url(ledger_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that is new and empty."""
    if ledger_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def _ledgers() -> dict[str, str]:
    """URLs of ledgers of each kind that nothing is in, for copies."""
    return {}


@pytest.fixture
def made_ledger_url(
    ledger_kind: str, request: pytest.FixtureRequest, tmp_path: Path, _ledgers: dict[str, str]
) -> Iterator[str]:
    """A ledger of each kind in turn that nothing is in: a database with all tables."""
    from indexer.ledger.database import Database

    if ledger_kind == "sqlite":
        if ledger_kind not in _ledgers:
            folder = request.getfixturevalue("tmp_path_factory").mktemp("ledger")
            _ledgers[ledger_kind] = str(folder / "made.sqlite")
            Database(f"sqlite:///{_ledgers[ledger_kind]}").close()
        shutil.copy(_ledgers[ledger_kind], tmp_path / "ledger.sqlite")
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    if ledger_kind not in _ledgers:
        _ledgers[ledger_kind] = server.create_database()
        Database(_ledgers[ledger_kind]).close()
    url = server.create_database(like=_ledgers[ledger_kind])
    yield url
    server.drop_database(url)


def _user() -> str | None:
    """Whom it runs as; None = whoever runs the tests. It refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        do_without("the user postgres", install_line(["postgresql"]))


def _name(url: str) -> str:
    return url.rpartition("/")[2]
