"""Submits, lists, pauses, resumes, cancels, retries and reports jobs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, select, update

from engine.errors import JobError, JobNotFound, RefusalReason
from engine.settings import JobSettings
from indexer.jobs.records import (
    DISCOVERY,
    FINISHING,
    Fate,
    JobOptions,
    JobState,
    TaskKind,
    TaskState,
)
from indexer.jobs.summary import JobSummary, summary_of
from indexer.ledger.schema import instances, jobs, manifest, tasks
from indexer.ledger.tenancy import TenantDatabase
from indexer.sources.opening import SourceSpec

__all__ = ["JobLedger"]

_NOT_TAKEN = (TaskState.WAITING, TaskState.QUEUED)


class JobLedger:
    """The jobs of a tenant; there are no others, as far as it can tell.

    Args:
        lapse_seconds: as in the settings of the jobs: a worker silent for this long has lost its
            task.

    Raises:
        LedgerError: the database cannot be read or written.
        JobError: there is no such job, or its state does not allow what is asked.
    """

    def __init__(
        self, database: TenantDatabase, lapse_seconds: float = JobSettings().lapse_seconds
    ) -> None:
        self._database = database
        self._lapse_seconds = lapse_seconds

    def submit(self, spec: SourceSpec, options: JobOptions, *, at: str, priority: int = 0) -> int:
        """Adds a job; returns its number. The source is not read before a worker takes the job."""
        values = {
            "kind": "index",
            "source": spec.source,
            "spec": spec.to_json(),
            "options": json.dumps({name: getattr(options, name) for name in options.__slots__}),
            "state": JobState.RUNNING,
            "priority": priority,
            "created_at": at,
            "tenant": self._database.tenant,
        }
        with self._database.begin() as connection:
            (job,) = connection.execute(jobs.insert().values(values)).inserted_primary_key or (0,)
            connection.execute(
                tasks.insert(),
                [
                    {
                        "job": job,
                        "number": DISCOVERY,
                        "kind": TaskKind.DISCOVER,
                        "state": "waiting",
                    },
                    {"job": job, "number": FINISHING, "kind": TaskKind.FINISH, "state": "waiting"},
                ],
            )
            return int(job)

    def summaries(self, now: float, limit: int = 50, before: int | None = None) -> list[JobSummary]:
        """The latest jobs and runs, the newest first. before: only those of smaller numbers."""
        query = select(jobs).where(self._database.own(jobs)).order_by(jobs.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(jobs.c.id < before)
        with self._database.begin(read=True) as connection:
            rows = connection.execute(query).all()
            return [self._summary(connection, row, now) for row in rows]

    def summary(self, job: int, now: float) -> JobSummary:
        """The progress of a job."""
        with self._database.begin(read=True) as connection:
            return self._summary(connection, self._row(connection, job), now)

    def _summary(self, connection: Connection, row: Row[Any], now: float) -> JobSummary:
        found = connection.execute(
            select(tasks).where(tasks.c.job == row.id).order_by(tasks.c.number)
        ).all()
        return summary_of(row, found, now, self._lapse_seconds)

    def pause(self, job: int) -> None:
        """Pauses a job: workers stop after the instances they are at; results are kept."""
        self._change(job, JobState.PAUSED, (JobState.RUNNING,))

    def resume(self, job: int) -> None:
        """Resumes a paused job; in a running one, tasks that wait after a failure are tried at
        once."""
        self._change(job, JobState.RUNNING, (JobState.PAUSED, JobState.RUNNING))
        with self._database.begin() as connection:
            connection.execute(
                update(tasks)
                .where(tasks.c.job == job, tasks.c.state.in_(_NOT_TAKEN))
                .values(state=TaskState.WAITING, not_before=0.0)
            )

    def cancel(self, job: int, at: str) -> None:
        """Cancels a job: indexed instances stay in the index, the others stay pending for another
        job."""
        self._change(job, JobState.CANCELLED, (JobState.RUNNING, JobState.PAUSED), at)
        with self._database.begin() as connection:
            connection.execute(
                update(tasks)
                .where(tasks.c.job == job, tasks.c.state.in_(_NOT_TAKEN))
                .values(state=TaskState.CANCELLED)
            )

    def retry(self, job: int, *, refused: bool = False) -> int:
        """Makes failed tasks wait to be done again; returns how many.

        refused: also do chunks with refused instances again; only those instances are read.
        """
        ended = (JobState.FINISHED, JobState.FAILED, JobState.RUNNING)
        again = {
            "state": TaskState.WAITING,
            "attempts": 0,
            "begun": 0,
            "not_before": 0.0,
            "error": None,
        }
        with self._database.begin() as connection:
            _check(self._row(connection, job), ended, "retried")
            mine = tasks.c.job == job
            count = connection.execute(
                update(tasks).where(mine, tasks.c.state == TaskState.FAILED).values(again)
            ).rowcount
            if refused:
                count += self._reopen_refused(connection, job, again)
            if count:
                connection.execute(
                    update(tasks).where(mine, tasks.c.kind == TaskKind.FINISH).values(again)
                )
                connection.execute(
                    update(jobs)
                    .where(self._database.own(jobs), jobs.c.id == job)
                    .values(state=JobState.RUNNING, finished_at=None)
                )
            return int(count)

    def _reopen_refused(self, connection: Connection, job: int, again: dict[str, Any]) -> int:
        were = and_(manifest.c.job == job, manifest.c.fate == "refused")
        locators = select(manifest.c.locator).where(were)
        chunks = select(manifest.c.chunk).where(were)
        own = self._database.own(instances)
        connection.execute(
            update(instances).where(own, instances.c.locator.in_(locators)).values(state="pending")
        )
        count = connection.execute(
            update(tasks)
            .where(
                tasks.c.job == job,
                tasks.c.number.in_(chunks),
                tasks.c.state.in_((TaskState.DONE, TaskState.WAITING)),
            )
            .values(again)
        ).rowcount
        connection.execute(update(manifest).where(were).values(fate=None, reason=None, detail=None))
        return int(count)

    def forget_source(self, source: str) -> None:
        """Removes the manifests of this source's jobs.

        Raises:
            JobError: one of the jobs is running or paused, and would index instances again.
        """
        own = self._database.own(jobs)
        mine = and_(own, jobs.c.source == source, jobs.c.kind == "index")
        going_on = jobs.c.state.in_((JobState.RUNNING, JobState.PAUSED))
        with self._database.begin() as connection:
            job = connection.execute(select(func.min(jobs.c.id)).where(mine, going_on)).scalar()
            if job is not None:
                raise JobError(
                    f"job {job} still indexes what source {source!r} has; wait for its end, or "
                    f"end it with `precedent jobs cancel {job}`"
                )
            theirs = select(jobs.c.id).where(mine)
            connection.execute(delete(manifest).where(manifest.c.job.in_(theirs)))

    def _change(
        self, job: int, to: JobState, among: tuple[JobState, ...], at: str | None = None
    ) -> None:
        with self._database.begin() as connection:
            _check(self._row(connection, job), among, f"made {to.value}")
            connection.execute(
                update(jobs)
                .where(self._database.own(jobs), jobs.c.id == job)
                .values(state=to, finished_at=at)
            )

    def fates(self, job: int, reason: RefusalReason | None = None) -> Iterator[Fate]:
        """The fate of every instance of a job; see :class:`indexer.jobs.records.Fate`.

        reason: only of those that were refused for it; None = all.

        First those that the job had to read, ordered by locator, then the unchanged ones. The
        latter are listed only until a later job sees them.
        """
        with self._database.begin(read=True) as connection:
            self._row(connection, job)
        c, seen, own = manifest.c, instances.c, self._database.own(instances)
        beside = manifest.outerjoin(instances, own & (c.locator == seen.locator))

        def refused(fate: Any, why: Any) -> list[Any]:
            return [] if reason is None else [fate == "refused", why == reason.value]

        for rows in self._paged(
            lambda last: (
                select(c.locator, c.fate, c.reason, c.detail, seen.partial)
                .select_from(beside)
                .where(c.job == job, c.locator > last, *refused(c.fate, c.reason))
                .order_by(c.locator)
            )
        ):
            for row in rows:
                missing = row.partial if row.fate in ("indexed", "duplicate") else None
                yield Fate(row.locator, row.fate or "open", row.reason, row.detail, missing)
        listed = select(c.locator).where(c.job == job, c.locator == seen.locator).exists()
        for rows in self._paged(
            lambda last: (
                select(seen.locator, seen.state, seen.reason, seen.detail, seen.partial)
                .where(own, seen.seen_in == job, seen.locator > last, ~listed)
                .where(*refused(seen.state, seen.reason))
                .order_by(seen.locator)
            )
        ):
            for row in rows:
                fate = "unchanged" if row.state == "done" else row.state
                missing = row.partial if row.state == "done" else None
                yield Fate(row.locator, fate, row.reason, row.detail, missing)

    def _paged(self, query: Any, size: int = 5000) -> Iterator[Sequence[Row[Any]]]:
        last = ""
        while True:
            with self._database.begin(read=True) as connection:
                rows = connection.execute(query(last).limit(size)).all()
            if not rows:
                return
            yield rows
            last = rows[-1].locator

    def _row(self, connection: Connection, job: int) -> Row[Any]:
        query = select(jobs).where(self._database.own(jobs), jobs.c.id == job)
        row = connection.execute(query).one_or_none()
        if row is None:
            raise JobNotFound(f"there is no job {job}; `precedent jobs list` names those there are")
        return row


def _check(row: Row[Any], among: tuple[JobState, ...], what: str) -> None:
    if row.kind == "run":
        raise JobError(
            f"{row.id} is a run of `precedent index`, which cannot be {what}; "
            "the same command again goes on with it"
        )
    if row.state not in among:
        raise JobError(
            f"job {row.id} is {row.state} and cannot be {what}; that takes one that is "
            + " or ".join(state.value for state in among)
        )
