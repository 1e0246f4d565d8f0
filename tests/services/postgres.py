"""A PostgreSQL server for tests: a real one, on a free loopback port, in a folder of its own.

    with Postgres() as server:
        url = server.create_database()
        server.kill()  # as a power cut does
        server.start()

Tests that do not stop it share one, the fixture ``postgres``; ``ledger_url`` is an empty database
of each kind in turn. ``tests/conftest.py`` names this module as a plugin, so all tests have both.
"""

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from services.needed import do_without, package
from services.packages import install_line

__all__ = ["Postgres", "ledger_url", "postgres"]

_START_SECONDS, _STOP_SECONDS = 60.0, 60.0
_HOST = "127.0.0.1"
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 1024**3
# Whoever connects from this machine may; only the role "guarded" needs a password.
_ACCESS = f"host all guarded {_HOST}/32 scram-sha-256\nhost all all {_HOST}/32 trust\n"


class Postgres:
    """A server that can be started, stopped and killed; databases outlive all of these.

    It runs between entering and leaving it as a context manager. Its locale orders text as
    people do, so that code which leans on the order of bytes is found out.
    """

    def __init__(self) -> None:
        self.port = _free_port()
        self._programs = package("postgresql").parent
        self._user = _user()
        in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
        self._folder = Path(tempfile.mkdtemp("", "postgres-", _MEMORY if in_memory else None))
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Starts it, on the same port as before, and returns when it answers."""
        if self._process is not None:
            raise RuntimeError("PostgreSQL runs already")
        options = {
            "listen_addresses": _HOST,
            "port": self.port,
            "unix_socket_directories": "",
            # It has to outlive its own end, not that of the machine.
            "fsync": "off",
            "full_page_writes": "off",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._who_and_where(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    pytest.fail(f"PostgreSQL does not start: {error}\n{self._log.read_text()}")
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends it in order; connections are cut."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it at once: what was under way is lost."""
        self._end(signal.SIGQUIT)

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """What SQLAlchemy opens a database by."""
        secret = "" if password is None else f":{password}"
        return f"postgresql+psycopg://{user}{secret}@{_HOST}:{self.port}/{database}"

    def create_database(self, encoding: str = "UTF8") -> str:
        """The URL of a database that is new and empty."""
        name = f"test_{next(self._numbers)}"
        how = "" if encoding == "UTF8" else "TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
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
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _who_and_where(self) -> dict[str, Any]:
        return {"user": self._user, "group": self._user, "cwd": self._folder}

    def _connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host=_HOST, port=self.port, user="postgres", dbname=database, autocommit=True
        )

    def _make(self) -> None:
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        made = subprocess.run(
            [
                *(self._programs / "initdb", "--pgdata", self._data, "--no-sync"),
                *("--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8"),
                *("--locale-provider", "icu", "--icu-locale", "en-US"),
            ],
            capture_output=True,
            text=True,
            **self._who_and_where(),
        )
        if made.returncode:
            pytest.fail(f"no data folder for PostgreSQL: {made.stderr or made.stdout}")
        (self._data / "pg_hba.conf").write_text(_ACCESS)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_STOP_SECONDS)
            self._process = None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that all tests share."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that is new and empty."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create_database()
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
