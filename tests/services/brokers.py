"""Message brokers for tests: real ones, on free loopback ports, in folders of their own.

    with RabbitMQ() as broker:
        ...  # broker.url is what jobs.broker takes
        broker.kill()  # as a power cut does
        broker.start()

Where it is not installed, the test is skipped (``services.needed``).
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest
from kombu.connection import Connection
from kombu.exceptions import KombuError

from services.needed import package, program

__all__ = ["Broker", "RabbitMQ", "Redis"]

_START_SECONDS = 120.0
"""RabbitMQ takes ten on an idle machine, when it starts for the first time."""
_STOP_SECONDS = 60.0


class Broker(ABC):
    """A broker that can be started, stopped and killed; messages outlive all of these.

    It runs between entering and leaving it as a context manager.
    """

    package: str

    def __init__(self) -> None:
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.package}-"))
        self._log = self.folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """What a client connects to, password included."""

    @property
    def pid(self) -> int:
        """Of the running server. Raises RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.package} is not running; start it first")
        return self._process.pid

    def start(self) -> None:
        """Starts the server, and returns when clients can work with it."""
        if self._process is not None:
            raise RuntimeError(f"{self.package} runs already, as process {self.pid}")
        self._process = self._run(self._command(), self._environment())
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                why = "ended" if ended else f"did not answer within {_START_SECONDS:g} s"
                pytest.fail(f"{self.package} {why}:\n{self._last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server in order."""
        if self._process is not None:
            self._end(self._process, kill=False)
            self._process = None

    def kill(self) -> None:
        """Ends the server at once, as ``kill -9``."""
        if self._process is not None:
            self._end(self._process, kill=True)
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends everything, and removes what was kept."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Broker":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _command(self) -> Sequence[str | Path]: ...

    def _environment(self) -> Mapping[str, str]:
        """Added to the path and the language, which are all that the server inherits."""
        return {}

    def _answers(self) -> bool:
        with suppress(OSError, KombuError, *_connection_errors(self.url)):
            # The clients are patient with a closed port; we know better when to look again.
            socket.create_connection(("127.0.0.1", self.port), 2).close()
            with _connection(self.url) as connection:
                connection.connect()
            return True
        return False

    def _run(
        self, command: Sequence[str | Path], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                env=inherited | {"HOME": str(self.folder)} | dict(environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in pytest is not for the server
            )

    def _end(self, process: subprocess.Popen[bytes], *, kill: bool) -> None:
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"{self.package} did not end when asked to:\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


class Redis(Broker):
    """Redis, with its append-only file, as docker/compose.yaml has Valkey.

    Args:
        password: asked of every client; None = nobody is asked.
    """

    package = "redis-server"

    def __init__(self, password: str | None = None) -> None:
        self._binary = package(self.package)
        super().__init__()
        self._password = password
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            "appendonly yes",
            "maxmemory-policy noeviction",
        ]
        if password is not None:
            lines.append(f"requirepass {password}")
        self._settings = self.folder / "redis.conf"
        self._settings.write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        password = "" if self._password is None else f":{self._password}@"
        return f"redis://{password}127.0.0.1:{self.port}/0"

    def _command(self) -> Sequence[str | Path]:
        return [self._binary, self._settings]


class RabbitMQ(Broker):
    """RabbitMQ as a node of its own, beside any that the machine has, without plugins."""

    package = "rabbitmq-server"

    def __init__(self) -> None:
        self._binary, self._mapper = package(self.package), program("epmd", of=self.package)
        super().__init__()
        self._node = f"precedent-{secrets.token_hex(4)}@localhost"
        self._password = secrets.token_hex(16)
        self._mapper_port, self._node_port = _free_port(), _free_port()
        self._names: subprocess.Popen[bytes] | None = None
        (self.folder / "environment.conf").touch()
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "default_user = precedent\n"
            f"default_pass = {self._password}\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
            # Publishers are stopped below it, and a full test machine still has this much.
            "disk_free_limit.absolute = 10MB\n"
        )

    @property
    def url(self) -> str:
        return f"amqp://precedent:{self._password}@127.0.0.1:{self.port}//"

    def start(self) -> None:
        if self._names is None:
            # The node would start it as a daemon, which stays behind after the test.
            address = ["-port", str(self._mapper_port), "-address", "127.0.0.1"]
            self._names = self._run([self._mapper, *address], {})
        super().start()

    def close(self) -> None:
        self.stop()
        if self._names is not None:
            self._end(self._names, kill=False)
            self._names = None
        super().close()

    def _command(self) -> Sequence[str | Path]:
        return [self._binary]

    def _environment(self) -> Mapping[str, str]:
        folder = self.folder
        return {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper_port),
            # Otherwise a shell stands between us and the server, which does not die with it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                # Waiting busily, it would take the cores of the code under test.
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
                "-kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _connection(url: str) -> Connection:
    return Connection(url, connect_timeout=2)  # type: ignore[no-untyped-call]


def _connection_errors(url: str) -> tuple[type[BaseException], ...]:
    """What the client of this kind of broker raises while there is no server."""
    connection = _connection(url)
    return (*connection.connection_errors, *connection.channel_errors)
