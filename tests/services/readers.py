"""Processes that read files, kept from one test to the next: to start one takes longer than most
tests need it.

What a process reads does not change it, and one is used again only where a new one would be just
the same: for the same function and limits, from the same folder and in the same environment.
``tests/conftest.py`` names this module as a plugin; tests of the pool itself start their own.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from indexer.pipeline import file_reader, previews, reader_pool

__all__ = ["kept_readers", "own_readers"]

_MOST = 4
"""Each takes about 100 MB of memory."""


class _Kept(reader_pool.ReaderPool[Any, Any]):
    """A pool that takes over the processes of those that were closed before it."""

    spare: ClassVar[deque[tuple[Hashable, Any]]] = deque()

    def _start(self) -> Any:
        alike = self._kind()
        for one in list(self.spare):
            kind, worker = one
            if kind == alike and worker.process.poll() is None:
                self.spare.remove(one)
                if not worker.ready:
                    worker.deadline = time.monotonic() + reader_pool._START_SECONDS
                return worker
        return super()._start()

    def close(self) -> None:
        kind = self._kind()
        for worker in self._workers:
            if worker.slot is None and worker.process.poll() is None:
                self.spare.append((kind, worker))
            else:
                worker.end()
        self._workers.clear()
        while len(self.spare) > _MOST:
            self.spare.popleft()[1].end()

    def _kind(self) -> Hashable:
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        return (
            *(bytes(self._function), self._seconds, self._memory),
            *(os.getpid(), Path.cwd(), tuple(sys.path), tuple(sorted(environment.items()))),
        )


@pytest.fixture(scope="session", autouse=True)
def kept_readers() -> Iterator[None]:
    """Ends the processes at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (file_reader, previews):
            patch.setattr(module, "ReaderPool", _Kept)
        yield
    while _Kept.spare:
        _Kept.spare.pop()[1].end()


@pytest.fixture
def own_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that watches the processes: its readers are started anew."""
    for module in (file_reader, previews):
        monkeypatch.setattr(module, "ReaderPool", reader_pool.ReaderPool)
