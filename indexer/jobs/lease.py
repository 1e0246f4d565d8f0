"""Keeps a worker's lease on a task alive while the task runs."""

import logging
from collections.abc import Callable
from threading import Event, Thread
from typing import Self

from engine.errors import LedgerError
from engine.settings import JobSettings
from indexer.jobs.leases import Leases
from indexer.jobs.records import Task

__all__ = ["Lease"]

_log = logging.getLogger(__name__)


class Lease:
    """Renews the lease in a separate thread, so that one slow instance does not let it lapse. A
    context manager around the work.

    Args:
        clock: returns seconds since the epoch.
        stopping: called often; returns whether this worker has to end.
    """

    def __init__(
        self,
        leases: Leases,
        task: Task,
        settings: JobSettings,
        clock: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> None:
        self._leases = leases
        self._task = task
        self._settings = settings
        self._clock = clock
        self._stopping = stopping
        self._lost = Event()
        self._done = Event()
        self._thread = Thread(target=self._keep, name="lease", daemon=True)

    @property
    def is_over(self) -> bool:
        """Whether the work has to stop: the lease was lost, the job paused or cancelled, or
        this worker is to end."""
        return self._lost.is_set() or self._stopping()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _keep(self) -> None:
        renewed = self._clock()
        while not self._done.wait(self._settings.heartbeat_seconds):
            try:
                if not self._leases.beat(self._task, self._clock()):
                    self._lost.set()
                    return
                renewed = self._clock()
            except LedgerError as error:
                _log.warning("job %s, task %s: %s", self._task.job.id, self._task.number, error)
                if self._clock() - renewed > self._settings.lapse_seconds:
                    # Another worker may have the task by now.
                    self._lost.set()
                    return
