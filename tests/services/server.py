"""A server program of another project, run by a test: started, asked, stopped and killed."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

__all__ = ["HOST", "Server", "free_ports"]

HOST = "127.0.0.1"


class Server(ABC):
    """A server on loopback with a folder of its own; what it keeps outlives a stop and a kill.

    It runs between entering and leaving it as a context manager; then its folder is removed.
    A subclass says how it is started and when it answers.

    Args:
        folder: where it keeps what it has; None = a new temporary folder.
    """

    name: str
    """What it is called in failures."""
    start_seconds, stop_seconds = 60.0, 60.0
    stop_signal, kill_signal = signal.SIGTERM, signal.SIGKILL

    def __init__(self, folder: Path | None = None) -> None:
        (self.port,) = free_ports(1)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-")) if folder is None else folder
        self._log = self.folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running server. Raises RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running; start it first")
        return self._process.pid

    def start(self) -> None:
        """Starts the server, on the same port as before, and returns when it answers."""
        if self._process is not None:
            raise RuntimeError(f"{self.name} runs already, as process {self.pid}")
        self._process = self.spawn(self._command(), self._environment())
        deadline = time.monotonic() + self.start_seconds
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                why = "ended" if ended else f"did not answer within {self.start_seconds:g} s"
                pytest.fail(f"{self.name} {why}:\n{self.last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server in order, if it runs."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Ends the server at once, as a power cut does, if it runs."""
        self._end(self.kill_signal)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends everything, and removes what was kept."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _command(self) -> Sequence[str | Path]: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether clients can work with it."""

    def _environment(self) -> Mapping[str, str]:
        """Added to the path and the language, which are all that the server inherits."""
        return {}

    def _options(self) -> Mapping[str, Any]:
        """Further arguments of Popen."""
        return {}

    def spawn(
        self, command: Sequence[str | Path], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Starts a process of the server, or one that it needs beside it."""
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
                **self._options(),
            )

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            self.reap(process, how)

    def reap(self, process: subprocess.Popen[bytes], how: signal.Signals) -> None:
        """Ends a process that :meth:`spawn` started; fails the test when it will not go."""
        process.send_signal(how)
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"{self.name} did not end when asked to:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of what it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now, all different. They lie below those that the system gives
    to outgoing connections, so that none of these takes one before the server does."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_768), 2_000):
        with suppress(OSError), socket.create_server((HOST, port)):
            found.append(port)
        if len(found) == count:
            return found
    pytest.fail(f"no {count} ports between 20000 and 32767 are free")
