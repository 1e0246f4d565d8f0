"""Message brokers for tests: real ones, on free loopback ports, in folders of their own.

    with RabbitMQ() as broker:
        ...  # broker.url is what jobs.broker takes
        broker.kill()  # as a power cut does
        broker.start()

Where it is not installed, the test is skipped (``services.needed``).
"""

import secrets
import socket
import subprocess
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kombu.connection import Connection
from kombu.exceptions import KombuError

from services.needed import package, program
from services.server import HOST, Server, free_ports

__all__ = ["Broker", "RabbitMQ", "Redis"]


class Broker(Server):
    """A broker that can be started, stopped and killed; messages outlive all of these."""

    start_seconds = 120.0  # RabbitMQ takes ten on an idle machine, when it starts first

    @property
    @abstractmethod
    def url(self) -> str:
        """What a client connects to, password included."""

    def _answers(self) -> bool:
        with suppress(OSError, KombuError, *_connection_errors(self.url)):
            # The clients are patient with a closed port; we know better when to look again.
            socket.create_connection((HOST, self.port), 2).close()
            with _connection(self.url) as connection:
                connection.connect()
            return True
        return False


class Redis(Broker):
    """Redis, with its append-only file, as docker/compose.yaml has Valkey.

    Args:
        password: asked of every client; None = nobody is asked.
    """

    name = "redis-server"

    def __init__(self, password: str | None = None) -> None:
        self._binary = package(self.name)
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

    name = "rabbitmq-server"

    def __init__(self) -> None:
        self._binary, self._mapper = package(self.name), program("epmd", of=self.name)
        super().__init__()
        self._node = f"precedent-{secrets.token_hex(4)}@localhost"
        self._password = secrets.token_hex(16)
        self._mapper_port, self._node_port = free_ports(2)
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
            address = ["-port", str(self._mapper_port), "-address", HOST]
            self._names = self.spawn([self._mapper, *address], {})
        super().start()

    def close(self) -> None:
        self.stop()
        if self._names is not None:
            self.reap(self._names, self.stop_signal)
            self._names = None
        super().close()

    def _command(self) -> Sequence[str | Path]:
        return [self._binary]

    def _environment(self) -> Mapping[str, str]:
        folder = self.folder
        return {
            "ERL_EPMD_ADDRESS": HOST,
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


def _connection(url: str) -> Connection:
    return Connection(url, connect_timeout=2)  # type: ignore[no-untyped-call]


def _connection_errors(url: str) -> tuple[type[BaseException], ...]:
    """What the client of this kind of broker raises while there is no server."""
    connection = _connection(url)
    return (*connection.connection_errors, *connection.channel_errors)
