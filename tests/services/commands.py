"""Commands in processes of their own, without the seconds that their imports take.

A first process imports what commands need, and no more; each command is a fork of it. From there on
it is as after ``python -m api``: its own arguments, environment, folder, streams, session, exit
code, and death. How the program starts from nothing is tested where that is asked.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

__all__ = ["CommandProcess", "run_command"]

ROOT = Path(__file__).parents[2]
_MESSAGE_BYTES = 512 * 1024


class CommandProcess:
    """``python -m api ARGUMENTS``, with as much of ``subprocess.Popen`` as tests need.

    A stream is a pipe, as text, unless a file or ``DEVNULL`` is given.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        stdout: IO[Any] | int = subprocess.PIPE,
        stderr: IO[Any] | int = subprocess.PIPE,
        start_new_session: bool = False,
        warnings_are_errors: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._status, theirs = socket.socketpair()
        ours: dict[str, int] = {}
        passed = []
        for name, stream in (("stdout", stdout), ("stderr", stderr)):
            if stream == subprocess.PIPE:
                ours[name], end = os.pipe()
            elif stream == subprocess.DEVNULL:
                end = os.open(os.devnull, os.O_WRONLY)
            else:
                end = os.dup(cast(IO[Any], stream).fileno())
            passed.append(end)
        request = {
            "arguments": [str(one) for one in arguments],
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd),
            "session": start_new_session,
            "strict": warnings_are_errors,
        }
        try:
            self.pid = _first().begin(request, [*passed, theirs.fileno()])
        finally:
            theirs.close()
            for end in passed:
                os.close(end)
        with contextlib.suppress(ProcessLookupError):  # over already
            self._handle = os.pidfd_open(self.pid)
        self.stdout = self._text(ours.get("stdout"))
        self.stderr = self._text(ours.get("stderr"))

    @staticmethod
    def _text(end: int | None) -> io.TextIOWrapper | None:
        if end is None:
            return None
        return io.TextIOWrapper(os.fdopen(end, "rb"), encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        return self._wait(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"command {self.pid}", timeout or 0.0)
        return code

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            said = self._status.recv(64)
            assert said, "the process that commands are forks of has ended"
            self.returncode = int(said)
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of both streams, until the end."""
        said = {"stdout": "", "stderr": ""}

        def read(name: str, stream: IO[str]) -> None:
            said[name] = stream.read()

        streams = {name: stream for name in said if (stream := getattr(self, name)) is not None}
        threads = [threading.Thread(target=read, args=one, daemon=True) for one in streams.items()]
        for thread in threads:
            thread.start()
        ends = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.join(None if ends is None else max(0.0, ends - time.monotonic()))
        self.wait(None if ends is None else max(0.0, ends - time.monotonic()))
        for thread in threads:
            thread.join()
        for stream in streams.values():
            stream.close()
        return said["stdout"], said["stderr"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._handle)


def run_command(
    arguments: Sequence[object], *, timeout: float = 240.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The command from its start to its end."""
    process = CommandProcess(arguments, **options)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess(
        [str(one) for one in arguments], process.returncode, out, err
    )


class _First:
    """The process that has imported everything, as the tests see it."""

    def __init__(self) -> None:
        self._asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._asking, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_BYTES)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PRECEDENT_")}
        paths = os.pathsep.join((str(ROOT), kept.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.commands", str(theirs.fileno())],
            env={**kept, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{paths}"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._one_at_a_time = threading.Lock()
        atexit.register(self.close)

    def begin(self, request: dict[str, Any], streams: list[int]) -> int:
        with self._one_at_a_time:
            socket.send_fds(self._asking, [json.dumps(request).encode()], streams)
            said = self._asking.recv(64)
        assert said, "the process that commands are forks of has ended"
        return int(said)

    def close(self) -> None:
        self._asking.close()
        self._process.wait(30)


_started: list[_First] = []


def _first() -> _First:
    """Started when the first command is."""
    if not _started:
        _started.append(_First())
    return _started[0]


# In the process that commands are forks of


def _preload() -> None:
    """What commands import on their way, of which PyTorch takes the longest."""
    from importlib import import_module

    from api.cli.main import COMMANDS

    for module in sorted({f"api.cli.{module}" for module, _ in COMMANDS.values()}):
        import_module(module)
    for module in ("api.http.app", "engine.model.encoder", "indexer.jobs.runner"):
        import_module(module)
    for module in ("uvicorn.protocols.http.auto", "uvicorn.loops.auto", "uvicorn.lifespan.on"):
        import_module(module)


def _serve(asked: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """In a fork, what it was asked for; None in the first process, at its end."""
    waiting = selectors.DefaultSelector()
    waiting.register(asked, selectors.EVENT_READ)
    status: dict[int, tuple[int, int]] = {}
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not asked:
                pid, told = status.pop(key.fd)
                waiting.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):
                    os.write(told, str(code).encode())
                os.close(told)
                continue
            message, fds, _, _ = socket.recv_fds(asked, _MESSAGE_BYTES, 3)
            if not message:
                return None
            pid = os.fork()
            if not pid:
                waiting.close()
                asked.close()
                for handle, (_, told) in status.items():
                    os.close(handle)
                    os.close(told)
                os.close(fds[2])
                return json.loads(message), fds[:2]
            handle = os.pidfd_open(pid)
            status[handle] = (pid, fds[2])
            waiting.register(handle, selectors.EVENT_READ)
            for fd in fds[:2]:
                os.close(fd)
            asked.send(str(pid).encode())


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """The process is the command now, as if it had been started for it."""
    if request["session"]:
        os.setsid()
    for number, fd in enumerate(streams, start=1):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdout = _text_to(1, "strict", buffered=True)
    sys.stderr = _text_to(2, "backslashreplace", buffered=False)
    sys.argv = [str(ROOT / "api" / "__main__.py"), *request["arguments"]]
    if request["strict"]:
        warnings.simplefilter("error")
    import torch

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores)))


def _text_to(end: int, errors: str, *, buffered: bool) -> io.TextIOWrapper:
    binary = io.BufferedWriter(io.FileIO(end, "w", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors=errors, line_buffering=not buffered)


def _main() -> None:
    asked = socket.socket(fileno=int(sys.argv[1]))
    _preload()
    begun = _serve(asked)
    if begun is None:
        # Forks that are still under way are ended by who has started them.
        return
    _become(*begun)
    _end(_ran())


def _ran() -> int:
    """The exit code of the command."""
    import runpy

    try:
        runpy.run_module("api", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _end(code: int) -> None:
    """As an interpreter ends, but for taking apart what was imported, which takes a second."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    os._exit(code)


if __name__ == "__main__":
    _main()
