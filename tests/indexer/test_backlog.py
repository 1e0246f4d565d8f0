"""How many tasks wait for workers, as it is told to whoever watches or scales them."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from engine.settings import JobSettings
from indexer.jobs.leases import Leases
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import DISCOVERY, FINISHING, Backlog, JobOptions, Task
from indexer.ledger.database import Database
from indexer.sources.opening import SourceSpec

BEGUN = 1_800_000_000.0
SETTINGS = JobSettings(attempts=3, lapse_seconds=60.0)


@pytest.fixture
def database(made_ledger_url: str) -> Iterator[Database]:
    with Database(made_ledger_url) as opened:
        yield opened


@pytest.fixture
def jobs(database: Database) -> JobLedger:
    return JobLedger(database.of("default"))


@pytest.fixture
def leases(database: Database) -> Leases:
    return Leases(database, SETTINGS)


@pytest.fixture
def job(jobs: JobLedger, tmp_path) -> int:
    at = datetime.fromtimestamp(BEGUN, UTC).isoformat()
    return jobs.submit(SourceSpec.asked([tmp_path], None), JobOptions(), at=at)


def take(leases: Leases, job: int, number: int, now: float) -> Task:
    found = leases.take(job, number, "a worker", now, "2027-01-15T08:00:00+00:00")
    assert found is not None
    return found


def test_nothing_waits_where_there_is_no_job(leases: Leases) -> None:
    assert leases.backlog(BEGUN) == Backlog(0, 0, 0, 0.0)


def test_a_task_is_due_then_held_and_due_again_when_its_worker_is_gone(leases, job) -> None:
    assert leases.backlog(BEGUN + 90) == Backlog(due=1, later=1, oldest_seconds=90)
    take(leases, job, DISCOVERY, BEGUN + 100)
    assert leases.backlog(BEGUN + 150) == Backlog(held=1, later=1)
    # Its lease lapses 60 seconds after its last sign of life.
    assert leases.backlog(BEGUN + 200) == Backlog(due=1, later=1, oldest_seconds=40)


def test_a_task_that_failed_waits_until_its_pause_is_over(leases, job) -> None:
    task = take(leases, job, DISCOVERY, BEGUN)
    leases.fail(task, "away", not_before=BEGUN + 30, seconds=1)
    assert leases.backlog(BEGUN + 20) == Backlog(later=2)
    assert leases.backlog(BEGUN + 35) == Backlog(due=1, later=1, oldest_seconds=5)


def test_the_last_task_has_waited_since_the_others_ended(leases, job) -> None:
    task = take(leases, job, DISCOVERY, BEGUN + 1000)
    assert leases.beat(task, BEGUN + 1040)
    leases.end(task, seconds=50)
    assert leases.backlog(BEGUN + 1050) == Backlog(due=1, oldest_seconds=10)
    take(leases, job, FINISHING, BEGUN + 1060)
    assert leases.backlog(BEGUN + 1070) == Backlog(held=1)


def test_what_the_broker_was_told_waits_as_well(leases, job) -> None:
    leases.mark_queued(job, DISCOVERY, BEGUN + 10)
    assert leases.backlog(BEGUN + 15) == Backlog(due=1, later=1, oldest_seconds=5)


def test_what_nobody_is_to_work_on_now_does_not_wait(leases, jobs, job) -> None:
    name = leases.source_of(job)
    assert leases.backlog(BEGUN + 15, {name}) == Backlog(later=2)
    jobs.pause(job)
    assert leases.backlog(BEGUN + 15) == Backlog()
