"""A worker that dies of one instance costs the job that instance and no other."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.postgres import sqlite_quick

from engine.errors import RefusalReason
from engine.settings import JobSettings, LedgerSettings
from indexer.jobs.leases import Leases
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import DISCOVERY, FINISHING, JobOptions
from indexer.jobs.runner import JobRunner
from indexer.ledger.database import Database
from indexer.pipeline import indexing
from indexer.sources.opening import SourceSpec

JOBS = JobSettings(
    chunk=4, attempts=8, backoff_seconds=0.05, heartbeat_seconds=0.1, lapse_seconds=0.5
)
AT = "2026-01-01T00:00:00+00:00"


class Killed(BaseException):
    """Stands for a death: whatever would run after it does not count."""


@pytest.fixture
def site(new_site: Callable[..., Any], draw: Any, made_ledger_url: str) -> Any:
    made = new_site()
    ledger = LedgerSettings(url=made_ledger_url)
    made.settings = made.settings.model_copy(update={"jobs": JOBS, "ledger": ledger})
    for number in range(4):
        made.write(f"{number}.png", draw(number))
    return made


@pytest.fixture
def database(site: Any) -> Iterator[Database]:
    with site.database() as opened:
        yield opened


def submit(database: Database, site: Any) -> int:
    return JobLedger(database.of("default")).submit(
        SourceSpec.asked([site.files], None), JobOptions(), at=AT
    )


class Crew:
    """Workers one after the other, each in this process, which die when they are told to."""

    def __init__(self, site: Any, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.database = site, database
        self.now = time.time()
        self.deaths = 0
        # The dead put nothing back.
        monkeypatch.setattr(Leases, "put_back", lambda *_, **__: None)

    def work(self) -> None:
        for _ in range(100):
            self.now += 10  # leases of the dead have lapsed, and pauses are over
            runner = JobRunner(self.site.settings, self.database, "w", clock=lambda: self.now)
            with runner:
                due = runner.due(1)
                if not due:
                    return
                try:
                    runner.run(due[0].job, due[0].number)
                except Killed:
                    self.deaths += 1
        pytest.fail("tasks are given out for ever")


def dies_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    entry = indexing.ledger_and_index_entry

    def deadly(pending: Any, *more: Any) -> Any:
        if pending.locator.endswith(names):
            raise Killed
        return entry(pending, *more)

    monkeypatch.setattr(indexing, "ledger_and_index_entry", deadly)


def test_the_deadly_instance_is_found_and_refused(site, database, monkeypatch):
    dies_of(monkeypatch, "2.png")
    job = submit(database, site)
    crew = Crew(site, database, monkeypatch)
    crew.work()
    told = JobLedger(database.of("default")).summary(job, time.time())
    assert (told.state, told.total, told.done, told.indexed) == ("finished", 4, 4, 3)
    assert told.refused == {"worker-died": 1}
    assert set(told.tasks) == {"done"}
    # Two to suspect the chunk of four, then one a halving: 2, 1.
    assert crew.deaths == 4
    (refused,) = [
        one for one in JobLedger(database.of("default")).fates(job) if one.fate == "refused"
    ]
    assert refused.locator.endswith("2.png")
    assert "died, also when it had nothing else in hand" in refused.detail
    assert len(site.points()) == 3


@sqlite_quick
def test_a_worker_that_is_killed_once_costs_nothing(site, database, monkeypatch):
    job = submit(database, site)
    crew = Crew(site, database, monkeypatch)
    with monkeypatch.context() as once:
        dies_of(once, "2.png")
        with (
            JobRunner(site.settings, database, "w", clock=lambda: crew.now) as runner,
            pytest.raises(Killed),
        ):
            runner.run(job, DISCOVERY)
            runner.run(job, 1)
    crew.work()
    told = JobLedger(database.of("default")).summary(job, time.time())
    assert (told.state, told.indexed, told.refused) == ("finished", 4, {})
    assert told.tasks == {"done": 3}


@pytest.mark.slow
def test_the_next_job_lets_it_rest_and_one_that_is_asked_reads_it(site, database, monkeypatch):
    with monkeypatch.context() as sick:
        dies_of(sick, "2.png")
        job = submit(database, site)
        Crew(site, database, sick).work()
    second = submit(database, site)
    Crew(site, database, monkeypatch).work()
    assert JobLedger(database.of("default")).summary(second, time.time()).total == 0
    assert JobLedger(database.of("default")).retry(job, refused=True) == 1
    Crew(site, database, monkeypatch).work()
    assert JobLedger(database.of("default")).summary(job, time.time()).indexed == 4


@sqlite_quick
@pytest.mark.parametrize("number", [DISCOVERY, 1, FINISHING])
def test_tries_of_workers_that_die_before_they_begin_are_counted(
    site, database, monkeypatch, number
):
    """As where the model does not fit into memory: no instance is to blame."""
    job = submit(database, site)
    crew = Crew(site, database, monkeypatch)
    do = JobRunner._do

    def dead(self: JobRunner, task: Any, lease: Any) -> None:
        if task.number == number:
            raise Killed
        do(self, task, lease)

    monkeypatch.setattr(JobRunner, "_do", dead)
    crew.work()
    assert crew.deaths == JOBS.attempts
    told = JobLedger(database.of("default")).summary(job, time.time())
    assert told.state == "failed"
    assert told.tasks["failed"] == 1
    assert "ended without a word in the last of 8 attempts" in told.errors[number]
    assert RefusalReason.WORKER_DIED not in told.refused
    monkeypatch.setattr(JobRunner, "_do", do)
    assert JobLedger(database.of("default")).retry(job) == 1
    crew.work()
    assert JobLedger(database.of("default")).summary(job, time.time()).state == "finished"
    assert len(site.points()) == 4


@pytest.mark.slow
def test_workers_that_are_killed(site, database):
    """Real processes, which the system ends at once."""
    job = submit(database, site)
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from engine.settings import LedgerSettings, Settings
        from indexer.jobs import polling
        from indexer.pipeline import indexing

        settings = Settings.model_validate_json(sys.stdin.read())
        settings = settings.model_copy(update={"ledger": LedgerSettings(url=sys.argv[1])})
        entry = indexing.ledger_and_index_entry

        def deadly(pending, *more):
            if pending.locator.endswith("2.png"):
                os.kill(os.getpid(), signal.SIGKILL)
            return entry(pending, *more)

        indexing.ledger_and_index_entry = deadly
        polling._LOOK_SECONDS = 0.1
        for deaths in range(30):
            child = os.fork()
            if child == 0:
                polling.serve(settings, until_idle=True, stopping=lambda: False)
                os._exit(0)
            if os.waitpid(child, 0)[1] == 0:
                print(deaths)
                break
    """)
    url = site.settings.ledger.url.get_secret_value()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, url],
        input=site.settings.model_dump_json(exclude={"ledger"}),
        text=True,
        capture_output=True,
        cwd=root,
        timeout=200,
        check=False,
    )
    assert done.stdout.strip() == "4", done.stderr[-2000:]
    told = JobLedger(database.of("default")).summary(job, time.time())
    assert (told.state, told.done, told.indexed) == ("finished", 4, 3)
    assert told.refused == {"worker-died": 1}
