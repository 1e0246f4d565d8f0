"""What the service does beside answering: it takes instances in, and works on jobs."""

import logging
import os
import socket
import threading
from itertools import islice
from pathlib import Path
from typing import Self

from anyio import CapacityLimiter
from fastapi import HTTPException

from api.http.intake import Intake
from api.http.serving import Serving
from api.http.shares import Shares
from api.http.turns import IndexerInTurns
from engine.errors import (
    ImageRefused,
    JobError,
    PrecedentError,
    QueryError,
    SettingsError,
    StoreLocked,
)
from engine.settings import FolderSettings, Settings
from engine.tenants import DEFAULT_TENANT
from indexer.datadir.layout import DataDir
from indexer.files.locators import file_locator
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import BULK, INTERACTIVE, JobOptions
from indexer.jobs.runner import JobRunner
from indexer.ledger.database import Database, open_database
from indexer.sources.opening import SourceSpec
from indexer.sources.pushed.inbox import Inbox, ReceivedSource, handed_in, pushed

__all__ = ["Work"]

_log = logging.getLogger(__name__)

_HANDED_IN, _HANDED_IN_BY_ONE = 8, 4
"""Requests that wait for their instance to be indexed, of all tenants and of one."""
_RECEIVERS = 8
"""Threads that write what is being received to the disk."""
_AT_ONCE = 1000
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
        self._places = Shares(_HANDED_IN, _HANDED_IN_BY_ONE, _no_place)
        self.receivers = CapacityLimiter(_RECEIVERS)
        self._indexer = IndexerInTurns()
        self._intakes: dict[str, Intake] = {}
        self._jobs: threading.Thread | None = None
        if settings.server.receive:
            # Whose a PACS's instances are, the settings say, as for `precedent receive`.
            named = settings.sources.get(ReceivedSource.name)
            whose = (None if named is None else named.tenant) or DEFAULT_TENANT
            self._intakes[whose] = self._open(whose, scp=True)
        self._left = threading.Thread(target=self._index_left, name="left", daemon=True)
        self._left.start()
        if settings.store.url is None and settings.jobs.broker is None:
            self._jobs = threading.Thread(target=self._work_on_jobs, name="jobs", daemon=True)
            self._jobs.start()

    def close(self) -> None:
        """Ends after the instances that are being indexed; everything else is kept for later."""
        self._stopped.set()
        if self._jobs is not None:
            self._jobs.join()
        self._left.join()
        with self._lock:
            for intake in self._intakes.values():
                intake.stop()
            for intake in self._intakes.values():
                intake.close()
            self._intakes.clear()
        self._indexer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def waiting_bytes(self) -> int:
        """What was received here and is not indexed yet, of all tenants."""
        # Without the lock, which is held while one of them is opened.
        return sum(one.waiting_bytes for one in list(self._intakes.values()))

    def intake(self, tenant: str) -> Intake:
        """What takes the tenant's instances in, from the first one on.

        Raises:
            HTTPException: 503, another process receives, as `precedent receive` does.
            SettingsError, ModelError, StoreError, LedgerError: see :class:`Intake`.
        """
        with self._lock:
            if (found := self._intakes.get(tenant)) is None:
                try:
                    found = self._intakes[tenant] = self._open(tenant, scp=False)
                except StoreLocked as error:
                    _log.error("an instance was handed in: %s", error)
                    raise HTTPException(
                        503,
                        "another process receives for this archive, as `precedent receive` does, "
                        "and one does at a time; send it to that one (C-STORE), or let the "
                        "administrator run `precedent serve --receive` in its place",
                    ) from None
            return found

    def _open(self, tenant: str, *, scp: bool) -> Intake:
        return Intake(
            self._settings,
            self._serving,
            tenant,
            places=self._places,
            indexer=self._indexer,
            scp=scp,
        )

    def _index_left(self) -> None:
        """Indexes what was handed in and acknowledged before the service was ended, or killed."""
        for tenant, folder in DataDir(self._settings.data_dir).all_received():
            if self._stopped.is_set():
                return
            try:
                self._index_left_of(tenant, folder)
                self._go_on_with(tenant, folder)
            except StoreLocked:
                # Whoever receives there does it.
                continue
            except (PrecedentError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                _log.error("what was handed in before could not be indexed: %s", why)

    def _index_left_of(self, tenant: str, folder: Path) -> None:
        files = handed_in(folder)
        if not files:
            return
        with self._serving.writing() as whole:
            known = whole.of(tenant).ledger.points_of([*map(file_locator, files)])
        left = [path for path in files if file_locator(path) not in known]
        # Requests wait, rather than find that another process receives.
        with self._lock:
            if not left or tenant in self._intakes:
                return
            settings = self._settings
            with (
                Inbox(folder, settings.receive, settings.limits.max_file_bytes),
                self._serving.writing() as whole,
                self._indexer.turn(whole, tenant) as (archive, indexer),
            ):
                archive.index(ReceivedSource(left), stop=self._stopped.is_set, indexer=indexer)
                for path in left:
                    try:
                        found = archive.outcome(file_locator(path))
                    except ImageRefused:
                        # As its sender would have been told; it is not kept.
                        archive.delete([file_locator(path)])
                    else:
                        if found is not None and not settings.receive.keep:
                            path.unlink(missing_ok=True)
                _log.warning(
                    "%d instances that were handed in before the service ended are indexed",
                    len(left),
                )

    def _go_on_with(self, tenant: str, folder: Path) -> None:
        """Takes up a tenant's inbox again if instances wait in it that were acknowledged before."""
        with self._lock:
            if tenant in self._intakes:
                return
        files = pushed(folder)
        while paths := list(islice(files, _AT_ONCE)):
            if self._stopped.is_set():
                return
            with self._serving.writing() as whole:
                known = whole.of(tenant).ledger.settled([*map(file_locator, paths)])
            if all(known.get(one.locator) == one for one in ReceivedSource(paths).instances()):
                continue
            with self._lock:
                if tenant not in self._intakes:
                    self._intakes[tenant] = self._open(tenant, scp=False)
                    _log.warning("instances that were received before are being indexed")
            return

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


def _no_place(own: bool) -> HTTPException:
    if own:
        return HTTPException(
            429,
            f"{_HANDED_IN_BY_ONE} instances of this tenant are being taken in; send this one again "
            "shortly",
            {"Retry-After": "5"},
        )
    return HTTPException(
        503, "too many instances are being taken in; send it again shortly", {"Retry-After": "5"}
    )
