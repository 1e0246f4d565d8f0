"""Leases: how workers take, keep and end the tasks of jobs.

All state of a job is in the ledger; a broker only wakes workers up, and may lose its messages. A
worker does a task under a lease, which it renews; when the lease lapses, another worker may take
the task. Tasks are idempotent: repeating one at any time does no harm.
"""

import json
from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, or_, select, update

from engine.settings import JobSettings
from indexer.jobs.records import (
    DISCOVERY,
    Backlog,
    Due,
    Job,
    JobOptions,
    JobState,
    Task,
    TaskKind,
    TaskState,
)
from indexer.ledger.database import Database
from indexer.ledger.schema import jobs, manifest, points, tasks
from indexer.sources.opening import SourceSpec

__all__ = ["Leases"]

_TAKING = 0x70726563
"""Key of the PostgreSQL advisory lock under which tasks are taken."""
_OPEN = (TaskState.WAITING, TaskState.QUEUED, TaskState.RUNNING)


class Leases:
    """The tasks that workers may take, those of all tenants. Times are seconds since the epoch, by
    the worker's clock.

    Raises:
        LedgerError: the database cannot be read or written.
    """

    def __init__(self, database: Database, settings: JobSettings) -> None:
        self._database = database
        self._settings = settings

    def due(self, now: float, limit: int) -> list[Due]:
        """Tasks that a worker could take now, ordered by priority, the most urgent first.

        These are waiting tasks whose pause after a failure is over, running tasks whose lease has
        lapsed, and queued tasks whose message seems lost.
        """
        c = tasks.c
        with self._database.begin(read=True) as connection:
            rows = connection.execute(
                select(c.job, c.number, jobs.c.priority, jobs.c.source)
                .join(jobs)
                .where(
                    jobs.c.state == JobState.RUNNING,
                    self._is_due(now, queued_is_due=False),
                    self._is_ready(),
                )
                .order_by(jobs.c.priority.desc(), c.job, c.number)
                .limit(limit)
            ).all()
        return [Due(row.job, row.number, row.priority, row.source) for row in rows]

    def queued(self) -> int:
        """How many tasks have been sent to the broker and not been taken yet."""
        with self._database.begin(read=True) as connection:
            return int(
                connection.execute(
                    select(func.count()).select_from(tasks).where(tasks.c.state == TaskState.QUEUED)
                ).scalar_one()
            )

    def mark_queued(self, job: int, number: int, now: float) -> None:
        """Records that the broker was sent a message for a task."""
        with self._database.begin() as connection:
            connection.execute(
                update(tasks)
                .where(_is(job, number), self._is_due(now, queued_is_due=False))
                .values(state=TaskState.QUEUED, queued_at=now)
            )

    def unfinished(self) -> int:
        """How many tasks of running jobs are still to be done."""
        with self._database.begin(read=True) as connection:
            return int(
                connection.execute(
                    select(func.count())
                    .select_from(tasks.join(jobs))
                    .where(jobs.c.state == JobState.RUNNING, tasks.c.state.in_(_OPEN))
                ).scalar_one()
            )

    def backlog(self, now: float, shut: Collection[str] = ()) -> Backlog:
        """How many tasks of running jobs are to be done, and for how long the oldest has waited.

        Args:
            shut: names of sources that may not be read at this hour.
        """
        c, lapse = tasks.c, self._settings.lapse_seconds
        held = and_(c.state == TaskState.RUNNING, c.beat_at >= now - lapse)
        due = and_(self._is_due(now, queued_is_due=True), self._is_ready())
        state = case((held, "held"), (due, "due"), else_="later").label("how")
        since = case(
            (c.state == TaskState.RUNNING, c.beat_at + lapse),
            (c.state == TaskState.QUEUED, c.queued_at),
            else_=c.not_before,
        )
        running = and_(jobs.c.state == JobState.RUNNING, c.state.in_(_OPEN))
        # A chunk is there once its source was listed, and the last task is ready after all others.
        listed = case((c.number == DISCOVERY, c.beat_at))
        with self._database.begin(read=True) as connection:
            rows = connection.execute(
                select(c.job, jobs.c.source, jobs.c.created_at, c.kind, state, func.count(),
                       func.min(since))
                .join(jobs)
                .where(running)
                .group_by(c.job, jobs.c.source, jobs.c.created_at, c.kind, state)
            ).all()  # fmt: skip
            worked_on = {
                job: (last or 0.0, first or 0.0)
                for job, last, first in connection.execute(
                    select(c.job, func.max(c.beat_at), func.max(listed))
                    .join(jobs)
                    .where(jobs.c.state == JobState.RUNNING)
                    .group_by(c.job)
                )
            }
        counts: Counter[str] = Counter()
        oldest = now
        for job, source, created_at, kind, how, count, begun in rows:
            if how == "due" and source in shut:
                counts["later"] += count
                continue
            counts[how] += count
            if how == "due":
                last, first = worked_on[job]
                ready = last if kind == TaskKind.FINISH else first
                made = datetime.fromisoformat(created_at).timestamp() if created_at else 0.0
                oldest = min(oldest, max(begun, ready, made))
        return Backlog(**counts, oldest_seconds=max(0.0, now - oldest))

    def source_of(self, job: int) -> str | None:
        """The name of a job's source; None when there is no such job."""
        with self._database.begin(read=True) as connection:
            return connection.execute(
                select(jobs.c.source).where(jobs.c.id == job)
            ).scalar_one_or_none()

    def take(
        self, job: int, number: int, worker: str, now: float, at: str, most: int | None = None
    ) -> Task | None:
        """Takes a task; returns the lease on it, or None when it cannot be taken now.

        A task whose worker died in its last attempt is not taken: it has failed.

        Args:
            worker: name of the worker that takes it.
            at: the same time as ``now``, ISO 8601, for the start of the job.
            most: how many tasks of the same source may run at once; None = any number.
        """
        c = tasks.c
        with self._database.begin() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_TAKING)))
            row = connection.execute(
                select(c.kind, c.attempts, c.begun, c.state.label("was"), jobs)
                .join(jobs)
                .where(
                    _is(job, number),
                    jobs.c.state == JobState.RUNNING,
                    self._is_due(now, queued_is_due=True),
                    self._is_ready(),
                )
            ).one_or_none()
            if row is None or not self._may_start(connection, row, now, most):
                return None
            if row.was == TaskState.RUNNING and row.attempts >= self._settings.attempts:
                self._give_up(connection, job, number, row, at)
                return None
            connection.execute(
                update(tasks)
                .where(_is(job, number))
                .values(
                    state=TaskState.RUNNING,
                    worker=worker,
                    beat_at=now,
                    attempts=c.attempts + 1,
                )
            )
            if row.started_at is None:
                connection.execute(update(jobs).where(jobs.c.id == job).values(started_at=at))
            kind = TaskKind(row.kind)
            return Task(_job(row), number, kind, row.attempts + 1, worker, row.begun)

    def _give_up(
        self, connection: Connection, job: int, number: int, row: Row[Any], at: str
    ) -> None:
        """Records that a task failed whose worker died in the last attempt."""
        error = (
            f"its worker ended without a word in the last of {row.attempts} attempts; look into "
            "the log of the system whether it was killed, for want of memory for example"
        )
        connection.execute(
            update(tasks)
            .where(_is(job, number))
            .values(state=TaskState.FAILED, error=error, begun=0)
        )
        if row.kind == TaskKind.FINISH:
            _close(connection, job, JobState.FAILED, at)

    def begin(self, task: Task) -> None:
        """Records that the instances of a task are about to be indexed.

        Whoever ends the task takes the record back, also after a failure. So it stays only if the
        worker dies.
        """
        with self._database.begin() as connection:
            connection.execute(
                update(tasks).where(_is_leased(task)).values(begun=tasks.c.begun + 1)
            )

    def _may_start(
        self, connection: Connection, row: Row[Any], now: float, most: int | None
    ) -> bool:
        """Whether a task that is due may start, given those that are running.

        The finishing task of a job needs the archive for itself: it waits for all running tasks
        that index or finish, and while it waits or runs no chunk starts.
        """
        alive = and_(
            tasks.c.state == TaskState.RUNNING,
            tasks.c.beat_at >= now - self._settings.lapse_seconds,
        )
        running = connection.execute(
            select(tasks.c.kind, jobs.c.source).join(jobs).where(alive)
        ).all()
        if row.kind == TaskKind.FINISH:
            return not any(one.kind in (TaskKind.INDEX, TaskKind.FINISH) for one in running)
        if row.kind == TaskKind.DISCOVER:
            return True
        waiting = connection.execute(
            select(func.count())
            .select_from(tasks.join(jobs))
            .where(
                tasks.c.kind == TaskKind.FINISH,
                jobs.c.state == JobState.RUNNING,
                or_(self._is_due(now, queued_is_due=True), alive),
                self._is_ready(),
            )
        ).scalar_one()
        busy = sum(one.kind == TaskKind.INDEX and one.source == row.source for one in running)
        return not waiting and (most is None or busy < most)

    def _is_due(self, now: float, *, queued_is_due: bool) -> ColumnElement[bool]:
        c, lapse = tasks.c, self._settings.lapse_seconds
        queued = c.state == TaskState.QUEUED
        if not queued_is_due:
            queued = and_(queued, c.queued_at < now - lapse)
        return or_(
            and_(c.state == TaskState.WAITING, c.not_before <= now),
            queued,
            and_(c.state == TaskState.RUNNING, c.beat_at < now - lapse),
        )

    def _is_ready(self) -> ColumnElement[bool]:
        """Condition: a finishing task is ready once all other tasks of its job have ended."""
        other = tasks.alias()
        open_ones = select(other.c.number).where(
            other.c.job == tasks.c.job,
            other.c.kind != TaskKind.FINISH,
            other.c.state.in_(_OPEN),
        )
        return or_(tasks.c.kind != TaskKind.FINISH, ~open_ones.exists())

    def beat(self, task: Task, now: float) -> bool:
        """Renews a lease and updates the task's counts; False when the task has to stop."""
        with self._database.begin() as connection:
            renewed = connection.execute(
                update(tasks)
                .where(_is_leased(task))
                .values(beat_at=now, **self._counts(connection, task))
            ).rowcount
            state = _state(connection, task.job.id)
        return bool(renewed) and state == JobState.RUNNING

    def end(self, task: Task, *, seconds: float) -> None:
        """Records that a task is done."""
        self._leave(task, {"state": TaskState.DONE, "error": None}, seconds)

    def put_back(self, task: Task, *, seconds: float) -> None:
        """Gives back a task that was stopped on purpose: it waits for another worker, or is
        cancelled if its job was."""
        with self._database.begin() as connection:
            cancelled = _state(connection, task.job.id) == JobState.CANCELLED
        state = TaskState.CANCELLED if cancelled else TaskState.WAITING
        self._leave(task, {"state": state, "attempts": task.attempts - 1}, seconds)

    def fail(self, task: Task, error: str, *, not_before: float, seconds: float) -> bool:
        """Records that an attempt at a task failed; returns whether it will be tried again."""
        again = task.attempts < self._settings.attempts
        state = TaskState.WAITING if again else TaskState.FAILED
        self._leave(task, {"state": state, "not_before": not_before, "error": error}, seconds)
        return again

    def _leave(self, task: Task, values: dict[str, Any], seconds: float) -> None:
        with self._database.begin() as connection:
            counts = self._counts(connection, task)
            connection.execute(
                update(tasks)
                .where(_is_leased(task))
                .values(seconds=tasks.c.seconds + seconds, begun=0, **values, **counts)
            )

    def _counts(self, connection: Connection, task: Task) -> dict[str, Any]:
        """Counts of a chunk by fate, the column of the manifest that says what became of each
        instance; see :class:`indexer.jobs.records.Fate`."""
        if task.kind is not TaskKind.INDEX:
            return {}
        c = manifest.c
        mine = and_(c.job == task.job.id, c.chunk == task.number)
        rows = connection.execute(
            select(c.fate, c.reason, func.count())
            .where(mine, c.fate.is_not(None))
            .group_by(c.fate, c.reason)
        ).all()
        by_fate: dict[str, int] = {}
        for fate, _, count in rows:
            by_fate[fate] = by_fate.get(fate, 0) + count
        written = connection.execute(
            select(func.count())
            .select_from(points.join(manifest, points.c.locator == c.locator))
            .where(mine, c.fate == "indexed", points.c.tenant == task.job.tenant)
        ).scalar_one()
        return {
            "done": sum(by_fate.values()),
            "indexed": by_fate.get("indexed", 0) + by_fate.get("duplicate", 0),
            "duplicates": by_fate.get("duplicate", 0),
            "points": written,
            "refused": json.dumps({reason: n for fate, reason, n in rows if fate == "refused"}),
        }

    def close(self, task: Task, at: str, note: str | None = None) -> JobState:
        """Ends the job of this task, its last one, with a note; returns the state that it ends
        in."""
        job = task.job.id
        with self._database.begin() as connection:
            failed = connection.execute(
                select(func.count())
                .select_from(tasks)
                .where(tasks.c.job == job, tasks.c.state == TaskState.FAILED)
            ).scalar_one()
            state = JobState.FAILED if failed else JobState.FINISHED
            _close(connection, job, state, at, note)
        return state


def _is(job: int, number: int) -> ColumnElement[bool]:
    return and_(tasks.c.job == job, tasks.c.number == number)


def _close(
    connection: Connection, job: int, state: JobState, at: str, note: str | None = None
) -> None:
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job, jobs.c.state == JobState.RUNNING)
        .values(state=state, finished_at=at, note=note)
    )


def _is_leased(task: Task) -> ColumnElement[bool]:
    return and_(
        _is(task.job.id, task.number),
        tasks.c.state == TaskState.RUNNING,
        tasks.c.worker == task.worker,
    )


def _job(row: Row[Any]) -> Job:
    return Job(
        row.id,
        row.tenant,
        row.kind,
        SourceSpec.parse(row.spec),
        JobOptions(**json.loads(row.options)),
        JobState(row.state),
    )


def _state(connection: Connection, job: int) -> str | None:
    return connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one_or_none()
