"""Checks of the ledger: it can be read, is whole and of this version, and its jobs go on."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select

from engine.errors import LedgerError
from engine.locks import is_held
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted
from indexer.jobs.records import JobState, TaskState
from indexer.ledger.database import Database
from indexer.ledger.migrations import HEAD
from indexer.ledger.schema import State, instances, jobs, tasks

__all__ = ["check_jobs", "check_ledger", "check_pending", "damage_of", "of_revision"]

_QUICKLY_READ_BYTES = 256 * 1024**2
_RECENT_DAYS = 7
_SILENT = 3
"""So many times the time after which a worker is taken for dead."""


def check_ledger(examined: Examined) -> Iterator[Finding]:
    """Whether the ledger can be read, and is whole."""
    file = examined.ledger_file
    thing = "ledger" if file is None else f"ledger {file}"
    if file is not None and not file.is_file():
        if examined.data_dir.exists:
            yield Finding(
                "ledger", "error", thing, "it is missing", "restore it from the backup: without it "
                "no image has a file, and nothing that was deleted stays so",
            )  # fmt: skip
        return
    try:
        damage = damage_of(examined.ledger, file)
        revision = examined.ledger.revision()
    except LedgerError as error:
        yield Finding("ledger", "error", thing, *parted(error, "restore it from the backup"))
        return
    if damage is not None:
        yield Finding("ledger", "error", thing, damage, "restore it from the backup")
        return
    if (found := of_revision("ledger", thing, revision, HEAD)) is not None:
        yield found
        return
    with examined.ledger.begin(read=True) as connection:
        by_state = select(instances.c.state, func.count()).group_by(instances.c.state)
        rows = connection.execute(by_state).all()
    told = ", ".join(
        f"{count:,} {state}" for state, count in sorted((row.state, row[1]) for row in rows)
    )
    yield Finding("ledger", "ok", thing, f"revision {revision}; instances: {told or 'none'}")


def damage_of(database: Database, file: Path | None) -> str | None:
    """What SQLite finds damaged in a file that is soon read; None = nothing, or no such file.

    Raises:
        LedgerError: it cannot be read.
    """
    if file is None or file.stat().st_size > _QUICKLY_READ_BYTES:
        return None
    with database.begin(read=True) as connection:
        said = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
    return None if said == "ok" else f"it is damaged ({' '.join(said.split())[:200]})"


def of_revision(check: str, thing: str, found: str | None, newest: str) -> Finding | None:
    """What is wrong with the version of a database; None = nothing."""
    if found == newest:
        return None
    if found is None or found < newest:
        return Finding(
            check,
            "warning",
            thing,
            f"it is of an earlier version (revision {found}, this one has {newest})",
            "back it up, and run `precedent upgrade --apply`",
        )
    return Finding(
        check,
        "error",
        thing,
        f"it was made by a later version of Precedent (revision {found}, this one knows up to "
        f"{newest})",
        "install that version or a later one",
    )


def check_pending(examined: Examined) -> Iterator[Finding]:
    """Whether a run was cut short, and nobody is at it."""
    runs = examined.data_dir.root / "runs"
    try:
        if any(is_held(lock) for lock in runs.glob("*.lock")):
            return
        with examined.ledger.begin(read=True) as connection:
            waiting = connection.execute(
                select(func.count()).where(instances.c.state == State.PENDING)
            ).scalar_one()
            open_jobs = connection.execute(
                select(func.count()).where(jobs.c.state == JobState.RUNNING, jobs.c.kind != "run")
            ).scalar_one()
    except LedgerError:
        return  # told by the check of the ledger
    if waiting and not open_jobs:
        yield Finding(
            "pending",
            "warning",
            "instances",
            f"{waiting:,} are still to be read, and no run is at them: one was stopped or killed",
            "the same `precedent index` again goes on where it stopped",
        )


def check_jobs(examined: Examined) -> Iterator[Finding]:
    """Whether jobs failed lately, and whether workers take their tasks."""
    now = time.time()
    since = examined.clock() - timedelta(days=_RECENT_DAYS)
    try:
        with examined.ledger.begin(read=True) as connection:
            failed = connection.execute(
                select(func.count()).where(
                    jobs.c.state == JobState.FAILED,
                    jobs.c.finished_at >= since.isoformat(timespec="seconds"),
                )
            ).scalar_one()
            rows = connection.execute(
                select(tasks.c.state, tasks.c.not_before, tasks.c.beat_at, tasks.c.queued_at)
                .join(jobs)
                .where(
                    jobs.c.state == JobState.RUNNING,
                    tasks.c.state.in_((TaskState.WAITING, TaskState.QUEUED, TaskState.RUNNING)),
                )
                .limit(10_000)
            ).all()
    except LedgerError:
        return
    if failed:
        yield Finding(
            "jobs.failed",
            "warning",
            "jobs",
            f"{failed} failed within {_RECENT_DAYS} days",
            "`precedent jobs list` names them, `jobs show` their errors; then `jobs retry`",
        )
    silent = _SILENT * examined.settings.jobs.lapse_seconds
    alive = any(row.beat_at is not None and now - row.beat_at < silent for row in rows)
    due = [row for row in rows if row.not_before < now - silent]
    if due and not alive:
        yield Finding(
            "jobs.workers",
            "warning",
            "jobs",
            f"{len(due):,} tasks wait, and no worker has sent a sign of life for {silent:.0f} s",
            "start `precedent worker`, or look into the logs of those that run",
        )
    elif rows:
        yield Finding("jobs.workers", "ok", "jobs", f"{len(rows):,} tasks open, workers at them")
