"""Runs tasks of jobs in a worker: takes a task, does it under a lease, and records the result."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from engine.errors import DiskFull, PrecedentError, RefusalReason, StorageError, StoreError
from engine.settings import Settings
from indexer.archive import Archive
from indexer.datadir.disk_space import check_room
from indexer.jobs.finishing import finish_job
from indexer.jobs.lease import Lease
from indexer.jobs.leases import Leases
from indexer.jobs.manifest import Manifest
from indexer.jobs.records import Due, Task, TaskKind
from indexer.jobs.windows import is_open
from indexer.ledger.database import Database
from indexer.ledger.instances import Pending, Refused
from indexer.pipeline.indexing import Indexer
from indexer.sources.base import Discovered

__all__ = ["JobRunner"]

_log = logging.getLogger(__name__)

_MAX_BACKOFF_SECONDS = 900.0
_DISCOVERED_AT_ONCE = 1000
_DEATHS = 2
"""How many workers have to die while they index a chunk until it is cut in two, or its only
instance refused: one may be killed, or its machine restarted, without a fault of the chunk."""


class JobRunner:
    """Runs tasks of jobs, one at a time. Close it, or use it as a context manager.

    The model is loaded and the store opened for the first task, and both stay open for the next
    ones; after a failure of the store they are opened again.

    Args:
        database: of the ledger.
        name: of this worker, as leases and `precedent jobs show` give it.
        stopping: called often; once it returns True, the running task is put back after the
            instances that are being indexed.
        clock: returns seconds since the epoch.
        archive: an open archive to write into, which is left open; None = opened here.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        name: str,
        *,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
        archive: Archive | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._name = name
        self._stopping = stopping
        self._clock = clock
        self.leases = Leases(database, settings.jobs)
        self._given = archive
        self._archive: Archive | None = None
        self._indexer: Indexer | None = None

    def close(self) -> None:
        if self._indexer is not None:
            self._indexer.close()
        if self._archive is not None and self._given is None:
            self._archive.close()
        self._indexer = self._archive = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self, limit: int) -> list[Due]:
        """Tasks that are due and whose source may be read at this hour, the most urgent first."""
        found = self.leases.due(self._clock(), limit)
        return [one for one in found if self._in_hours(one.source)]

    def run(self, job: int, number: int) -> bool:
        """Takes and does a task; returns False if it could not be taken.

        A failure is recorded with the task, which is tried again after a pause.

        Raises:
            LedgerError: the ledger cannot be reached. The lease lapses, and another worker
                takes the task.
        """
        source = self.leases.source_of(job)
        if source is None or not self._in_hours(source):
            return False
        named = self._settings.sources.get(source)
        most = None if named is None else named.max_workers
        task = self.leases.take(job, number, self._name, self._clock(), self._now(), most)
        if task is None:
            return False
        lease = Lease(self.leases, task, self._settings.jobs, self._clock, self._stopping)
        started = time.monotonic()
        _log.info("job %s, task %s: begun, try %s", job, number, task.attempts)
        note = None
        try:
            with lease:
                note = self._do(task, lease)
        except (PrecedentError, OSError) as error:
            self._failed(task, error, time.monotonic() - started)
        except Exception as error:
            _log.exception("job %s, task %s: a fault of this program", job, number)
            self._failed(task, error, time.monotonic() - started)
        except BaseException:
            self.leases.put_back(task, seconds=time.monotonic() - started)
            raise
        else:
            seconds = time.monotonic() - started
            if lease.is_over:
                self.leases.put_back(task, seconds=seconds)
            elif task.kind is TaskKind.FINISH:
                self.leases.end(task, seconds=seconds)
                self.leases.close(task, self._now(), note)
            else:
                self.leases.end(task, seconds=seconds)
            _log.info("job %s, task %s: %.1f s", job, number, seconds)
        return True

    def _failed(self, task: Task, error: Exception, seconds: float) -> None:
        if isinstance(error, (StoreError, StorageError, DiskFull, OSError)):
            # The open store may be in a state that no later call recovers from.
            self.close()
        pause = self._settings.jobs.backoff_seconds * 2 ** (task.attempts - 1)
        not_before = self._clock() + min(pause, _MAX_BACKOFF_SECONDS)
        again = self.leases.fail(task, _said(error), not_before=not_before, seconds=seconds)
        if not again and task.kind is TaskKind.FINISH:
            self.leases.close(task, self._now())
        _log.warning(
            "job %s, task %s failed (try %s): %s; %s",
            task.job.id,
            task.number,
            task.attempts,
            _said(error),
            f"again in {pause:.0f} s" if again else "given up, see `precedent jobs retry`",
        )

    def _do(self, task: Task, lease: Lease) -> str | None:
        """Does a task; returns what is to be noted of its job."""
        if task.kind is TaskKind.DISCOVER:
            self._discover(task, lease)
            return None
        archive, indexer = self._opened(task.job.tenant)
        own = self._database.of(archive.tenant)
        with archive.writing():
            if task.kind is TaskKind.FINISH:
                return finish_job(task, archive, indexer, own, self._settings)
            manifest = Manifest(own, archive.ledger)
            source = task.job.spec.open(self._settings)
            pending = self._without_deadly(task, manifest, archive)
            self.leases.begin(task)
            indexer.index(task.job.id, source, pending, manifest=True, stop=lambda: lease.is_over)
            return None

    def _without_deadly(self, task: Task, manifest: Manifest, archive: Archive) -> list[Pending]:
        """The instances of a chunk that are to be indexed now.

        If workers died of the chunk, this is half of it, so that the instance they die of is found;
        once it is alone in a chunk, it is refused.
        """
        pending = manifest.pending(task)
        if task.begun < _DEATHS or not pending:
            return pending
        if len(pending) > 1:
            _log.warning(
                "job %s, task %s: %s workers died of its %s instances; it is cut in two",
                task.job.id,
                task.number,
                task.begun,
                len(pending),
            )
            return manifest.halve(task, pending)
        detail = (
            "the worker that indexed it died, also when it had nothing else in hand; look at it "
            "with another viewer, or give workers more memory"
        )
        refused = Refused(pending[0].locator, RefusalReason.WORKER_DIED, detail)
        archive.ledger.finish(task.job.id, [refused], self._now(), manifest=True)
        return []

    def _discover(self, task: Task, lease: Lease) -> None:
        archive, _ = self._opened(task.job.tenant)
        manifest = Manifest(self._database.of(archive.tenant), archive.ledger)
        manifest.begin(task)
        size = self._settings.jobs.chunk
        page: list[Discovered] = []
        chunk: list[Discovered] = []

        def turn(page: list[Discovered]) -> None:
            chunk.extend(manifest.add(task, page))
            while len(chunk) >= size:
                manifest.add_chunk(task, chunk[:size])
                del chunk[:size]

        for found in task.job.spec.open(self._settings).instances():
            page.append(found)
            if len(page) >= _DISCOVERED_AT_ONCE:
                turn(page)
                page = []
                if lease.is_over:
                    return
        turn(page)
        if chunk:
            manifest.add_chunk(task, chunk)

    def _opened(self, tenant: str) -> tuple[Archive, Indexer]:
        """The archive and its indexer, for a tenant."""
        if self._given is None and self._archive is not None and self._archive.is_replaced:
            self.close()
            # The index in force brings its own model.
            self._settings = self._settings.model_copy(update={"model": None})
        if self._archive is None or self._indexer is None:
            check_room(self._settings.data_dir, self._settings.indexing.min_free_bytes)
            archive = self._given or Archive(self._settings, create=True, database=self._database)
            try:
                self._indexer = archive.indexer()
            except BaseException:
                if self._given is None:
                    archive.close()
                raise
            self._archive = archive
        mine = self._archive.of(tenant)
        return mine, self._indexer.over(mine.ledger)

    def _in_hours(self, source: str) -> bool:
        named = self._settings.sources.get(source)
        local = datetime.fromtimestamp(self._clock()).astimezone()
        return named is None or is_open(named.window, local)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")


def _said(error: Exception) -> str:
    """An error's text without what it may quote: only our own messages hold no file content."""
    if isinstance(error, PrecedentError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__
