"""A pool of processes that read files, so that a file that crashes a decoder is the only one lost.

Files are not trusted: they make decoders crash, loop forever or allocate all memory. Each process
works on one task at a time, so that a crash can be attributed to its task. The
processes are fresh interpreters rather than forks: they load nothing but the function they
run, and share no file with the parent but one socket, whose end tells either side that the
other is gone.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

from engine.errors import ImageRefused, PrecedentError, RefusalReason

__all__ = ["ReaderPool"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_READY = "ready"
_START_SECONDS = 120.0
_TASKS_PER_PROCESS = 4
# A worker ends itself so long after its parent should have ended it.
_GRACE_SECONDS = 5.0
_ENVIRONMENT = {
    # Without these, numerical libraries reserve address space for a thread per core.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc would give the memory of each image back and ask for it again, page by page, which
    # takes a third of the time of an uncompressed one.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024**2),
}
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from indexer.pipeline.reader_pool import _work; _work(*json.loads(sys.argv[2]))"
)


class _Slot(Generic[Task, Result]):
    """A task on its way through the pool, and its result once that is known."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.done = False
        self.result: Any = None

    def finish(self, result: Result | ImageRefused) -> None:
        self.done = True
        self.result = result


class _Worker(Generic[Task, Result]):
    """One process and our end of its socket."""

    def __init__(self, function: memoryview, seconds: float, memory: int) -> None:
        self.connection, theirs = Pipe()
        arguments = [theirs.fileno(), os.getpid(), seconds + _GRACE_SECONDS, memory]
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), json.dumps(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.ready = False
        self.slot: _Slot[Task, Result] | None = None
        self.deadline = time.monotonic() + _START_SECONDS
        # Should it have died already, the first answer from it will be the end of the socket.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(function)

    @property
    def idle(self) -> bool:
        return self.ready and self.slot is None

    def end(self) -> int:
        """Kill the process if it lives; its exit status."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class ReaderPool(Generic[Task, Result]):
    """``processes`` workers that run ``function``, a function found by its import path.

    Args:
        function: takes one task; tasks and results travel pickled.
        processes: how many work at once.
        seconds: wall-clock time that one task may take.
        memory_bytes: address space of one process, where the platform can limit it.

    Raises:
        PrecedentError: from :meth:`map`, when a worker cannot even start.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        *,
        processes: int,
        seconds: float,
        memory_bytes: int,
    ) -> None:
        self._function = ForkingPickler.dumps(function)
        self._seconds = seconds
        self._memory = memory_bytes
        self._workers = [self._start() for _ in range(processes)]

    def __enter__(self) -> "ReaderPool[Task, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes at once; tasks under way are abandoned."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def map(
        self, tasks: Iterable[Task], *, window: int | None = None
    ) -> Iterator[tuple[Task, Result | ImageRefused]]:
        """Each task with its result, or the refusal that stands for it, in order.

        Tasks are taken from ``tasks`` as processes become free, never more than ``window``
        (default: 4 a process) ahead of what was yielded. Only one map may run at a time.
        """
        limit = window or _TASKS_PER_PROCESS * len(self._workers)
        source = iter(tasks)
        exhausted = False
        order: deque[_Slot[Task, Result]] = deque()
        # The task that was taken last, until a worker has it.
        slot: _Slot[Task, Result] | None = None
        try:
            while True:
                while (slot or (not exhausted and len(order) < limit)) and (idle := self._idle()):
                    if slot is None:
                        try:
                            slot = _Slot(next(source))
                        except StopIteration:
                            exhausted = True
                            break
                        order.append(slot)
                    if self._give(idle, slot):
                        slot = None
                if order and order[0].done:
                    done = order.popleft()
                    yield done.task, done.result
                elif order or not exhausted:
                    self._collect()
                else:
                    return
        finally:
            # An abandoned map must leave no stale result for the next one.
            for worker in [worker for worker in self._workers if worker.slot is not None]:
                self._replace(worker)

    def _start(self) -> _Worker[Task, Result]:
        return _Worker(self._function, self._seconds, self._memory)

    def _idle(self) -> _Worker[Task, Result] | None:
        return next((worker for worker in self._workers if worker.idle), None)

    def _give(self, worker: _Worker[Task, Result], slot: _Slot[Task, Result]) -> bool:
        """Sends ``slot`` to ``worker``; False when the worker had died while idle."""
        try:
            worker.connection.send(slot.task)
        except (BrokenPipeError, ConnectionResetError):
            self._replace(worker)
            return False
        except Exception as error:
            # The task cannot be pickled, and nothing was sent.
            slot.finish(_unexpected(error))
            return True
        worker.slot = slot
        worker.deadline = time.monotonic() + self._seconds
        return True

    def _collect(self) -> None:
        """Wait until a worker answers, dies or runs out of time, and note what it was."""
        timeout = min(worker.deadline for worker in self._workers if not worker.idle)
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = wait(list(by_connection), max(0.0, timeout - time.monotonic()))
        for connection in ready:
            self._receive(by_connection[connection])  # type: ignore[index]
        now = time.monotonic()
        for worker in list(self._workers):
            if not worker.idle and worker.deadline <= now and worker.connection not in ready:
                self._lose(worker, timed_out=True)

    def _receive(self, worker: _Worker[Task, Result]) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            self._lose(worker, timed_out=False)
            return
        except Exception as error:
            answer = _unexpected(error)
        if not worker.ready:
            worker.ready = True
        elif worker.slot is not None:
            worker.slot.finish(answer)
            worker.slot = None

    def _lose(self, worker: _Worker[Task, Result], *, timed_out: bool) -> None:
        if timed_out:
            status = -signal.SIGALRM
            worker.end()
        else:
            status = _exit_status(worker)
        if not worker.ready:
            # Replaced for the next map: the cause, such as a lack of memory, may pass.
            self._replace(worker)
            raise PrecedentError(
                f"a reading process could not start ({_how(status)}); what it wrote to the "
                "error output says why"
            )
        slot = worker.slot
        self._replace(worker)
        if slot is None:
            return
        if status == -signal.SIGALRM:
            reason, detail = RefusalReason.TOO_SLOW, f"not read within {self._seconds:g} seconds"
        else:
            reason = RefusalReason.READER_DIED
            detail = f"the reading process died of it ({_how(status)})"
        slot.finish(ImageRefused(reason, detail))

    def _replace(self, worker: _Worker[Task, Result]) -> None:
        worker.end()
        self._workers[self._workers.index(worker)] = self._start()


def _exit_status(worker: _Worker[Any, Any]) -> int:
    """How a worker ended whose socket is closed; it may need a moment to be gone."""
    try:
        return worker.process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return worker.end()


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _unexpected(error: Exception) -> ImageRefused:
    """A refusal that names the type only: messages of other errors may quote the file."""
    if isinstance(error, ImageRefused):
        return error
    if isinstance(error, MemoryError):
        return ImageRefused(RefusalReason.TOO_LARGE, "there is not enough memory to read it")
    return ImageRefused(RefusalReason.DAMAGED, f"reading ended in {type(error).__name__}")


def _work(descriptor: int, parent: int, seconds: float, memory: int) -> None:
    """The life of a worker: answer tasks until the socket or the parent is gone."""
    # Ctrl-C and a stop of the service reach the whole group; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(10)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    function = connection.recv()
    _limit_memory(memory)
    try:
        connection.send(_READY)
        while True:
            message = connection.recv_bytes()
            # Ends even a decoder that never returns to Python, whatever became of the parent.
            signal.setitimer(signal.ITIMER_REAL, seconds)
            answer = _answer(function, message)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(answer)
    except (EOFError, OSError):
        return


def _answer(function: Callable[[Any], Any], message: bytes) -> memoryview:
    try:
        return ForkingPickler.dumps(function(ForkingPickler.loads(message)))
    except Exception as error:
        return ForkingPickler.dumps(_unexpected(error))


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:
        return
    # A core dump would leave a patient's image on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not every system that knows the limit lets it be set, nor above one already in force.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
