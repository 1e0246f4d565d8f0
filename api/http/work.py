"""What the service does beside answering: it takes instances in, and works on jobs."""

import logging
import os
import socket
import threading
from typing import Self

from fastapi import HTTPException

from api.http.intake import Intake
from api.http.serving import Serving
from engine.errors import JobError, PrecedentError, QueryError, SettingsError, StoreLocked
from engine.settings import FolderSettings, Settings
from engine.tenants import DEFAULT_TENANT
from indexer.datadir.layout import DataDir
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import BULK, INTERACTIVE, JobOptions
from indexer.jobs.runner import JobRunner
from indexer.ledger.database import Database, open_database
from indexer.sources.opening import SourceSpec

__all__ = ["Work"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LOOKED_AT = 32


class Work:
    """The work of one service. Close it, or use it as a context manager.

    Jobs are worked on here if the index is embedded and there is no broker: else workers do it.

    Args:
        serving: gives the archive to write into.

    Raises:
        SettingsError, StoreLocked: nothing can be received, though the settings want it.
    """

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self._settings = settings
        self._serving = serving
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._intake: Intake | None = None
        self._jobs: threading.Thread | None = None
        if settings.server.receive:
            self._intake = Intake(settings, serving, scp=True)
        if settings.store.url is None and settings.jobs.broker is None:
            self._jobs = threading.Thread(target=self._work_on_jobs, name="jobs", daemon=True)
            self._jobs.start()

    def close(self) -> None:
        """Ends after the instances that are being indexed; everything else is kept for later."""
        self._stopped.set()
        if self._jobs is not None:
            self._jobs.join()
        with self._lock:
            if self._intake is not None:
                self._intake.close()
            self._intake = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def intake(self) -> Intake:
        """What takes instances in, from the first one on.

        Raises:
            HTTPException: 503, another process receives, as `precedent receive` does.
            SettingsError, ModelError, StoreError, LedgerError: see :class:`Intake`.
        """
        with self._lock:
            if self._intake is None:
                try:
                    self._intake = Intake(self._settings, self._serving, scp=False)
                except StoreLocked as error:
                    _log.error("an instance was handed in: %s", error)
                    raise HTTPException(
                        503,
                        "another process receives for this archive, as `precedent receive` does, "
                        "and one does at a time; send it to that one (C-STORE), or let the "
                        "administrator run `precedent serve --receive` in its place",
                    ) from None
            return self._intake

    def submit(
        self, spec: SourceSpec, options: JobOptions, at: str, tenant: str, *, urgent: bool
    ) -> int:
        """Makes a job; returns its number.

        Args:
            at: the time, UTC, ISO 8601.
            tenant: whose job it is; only sources whose images are the tenant's can be indexed.

        Raises:
            QueryError: the settings name no such source, or it cannot be narrowed so.
            HTTPException: 503, it cannot be opened as the settings say.
            LedgerError: the job cannot be noted.
        """
        named = self._settings.sources.get(spec.name or "")
        if named is None or (named.tenant or DEFAULT_TENANT) != tenant:
            # Which there are is for administrators.
            raise QueryError(
                f"there is no source {str(spec.name)[:80]!r} in the settings of this service"
            )
        try:
            spec.open(self._settings)
        except (SettingsError, QueryError) as error:
            # Of a whole folder only its path can be wrong, and that is for administrators.
            of_path = isinstance(named, FolderSettings) and spec.is_whole
            if isinstance(error, QueryError) and not of_path:
                raise
            _log.error("a job was asked for: %s", error)
            raise HTTPException(
                503, "the source cannot be opened; the service's log says why"
            ) from None
        ledger = DataDir(self._settings.data_dir).ledger
        with open_database(self._settings, ledger) as database:
            priority = INTERACTIVE if urgent else BULK
            job = JobLedger(database.of(tenant)).submit(spec, options, at=at, priority=priority)
            if self._settings.jobs.broker is not None:
                from indexer.jobs.dispatch import Dispatcher, celery_app

                try:
                    Dispatcher(self._settings, database, celery_app(self._settings)).dispatch()
                except JobError as error:
                    _log.warning("%s", error)
        return job

    def _work_on_jobs(self) -> None:
        said = ""
        while not self._stopped.wait(_LOOK_SECONDS):
            try:
                self._look_for_jobs()
                said = ""
            except PrecedentError as error:
                if str(error) != said:
                    _log.error("jobs cannot be worked on: %s", error)
                said = str(error)

    def _look_for_jobs(self) -> None:
        ledger = DataDir(self._settings.data_dir).ledger
        if self._settings.ledger.url is None and not ledger.is_file():
            return
        with open_database(self._settings, ledger) as database:
            while not self._stopped.wait(_LOOK_SECONDS):
                if self._runner(database).due(1):
                    self._run(database)

    def _run(self, database: Database) -> None:
        """Does tasks until none is due, or another index comes into force."""
        with (
            self._serving.writing() as archive,
            JobRunner(
                self._settings,
                database,
                f"{socket.gethostname()}:{os.getpid()}",
                stopping=self._stopped.is_set,
                archive=archive,
            ) as runner,
        ):
            while not (self._stopped.is_set() or archive.is_replaced):
                if not any(runner.run(one.job, one.number) for one in runner.due(_LOOKED_AT)):
                    return

    def _runner(self, database: Database) -> JobRunner:
        return JobRunner(self._settings, database, "")
