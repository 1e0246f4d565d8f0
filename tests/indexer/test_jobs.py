"""Jobs: submitted, cut up, worked on under leases, steered, ended and accounted for."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from dicom_files import dataset, encode
from services.postgres import sqlite_quick
from sites import drawn

from engine.errors import JobError, SourceError, StoreError
from engine.settings import FolderSettings, JobSettings, LedgerSettings
from indexer.files.locators import shown
from indexer.jobs.leases import Leases
from indexer.jobs.ledger import JobLedger
from indexer.jobs.polling import serve
from indexer.jobs.records import DISCOVERY, FINISHING, JobOptions
from indexer.jobs.runner import JobRunner
from indexer.jobs.windows import is_open
from indexer.ledger.database import Database
from indexer.ledger.instances import Ledger
from indexer.sources.folder import FolderSource
from indexer.sources.opening import SourceSpec

JOBS = JobSettings(
    chunk=4, attempts=3, backoff_seconds=0.05, heartbeat_seconds=0.2, lapse_seconds=5.0
)
AT = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def site(new_site: Callable[..., Any], draw: Any, made_ledger_url: str) -> Any:
    """Its ledger is in SQLite, then in PostgreSQL."""
    made = new_site()
    ledger = LedgerSettings(url=made_ledger_url)
    made.settings = made.settings.model_copy(update={"jobs": JOBS, "ledger": ledger})
    for number in range(10):
        made.write(f"a/{number:02}.png", draw(number))
    made.write("b/notes.txt", b"no image")
    return made


@pytest.fixture
def database(site: Any) -> Iterator[Database]:
    with site.database() as opened:
        yield opened


@pytest.fixture
def jobs(database: Database) -> JobLedger:
    return JobLedger(database.of("default"))


def submit(jobs: JobLedger, site: Any, **options: Any) -> int:
    spec = SourceSpec.asked([site.files], None)
    return jobs.submit(spec, JobOptions(**options), at=AT)


def work(site: Any) -> None:
    serve(site.settings, until_idle=True, stopping=lambda: False)


def fates(jobs: JobLedger, job: int) -> Counter[str]:
    return Counter(one.fate for one in jobs.fates(job))


def test_a_job_gives_the_same_index_as_a_run_in_one_process(site, jobs, new_site, draw):
    job = submit(jobs, site)
    work(site)
    told = jobs.summary(job, time.time())
    assert told.state == "finished"
    assert (told.discovered, told.total, told.done, told.indexed) == (11, 11, 11, 10)
    assert told.refused == {"not-an-image": 1}
    assert told.points == 10
    # Discovery, three chunks of four, four and three, and the last task.
    assert told.tasks == {"done": 5}
    assert fates(jobs, job) == {"indexed": 10, "refused": 1}
    alone = new_site()
    for number in range(10):
        alone.write(f"a/{number:02}.png", draw(number))
    alone.index()
    assert without_time(site.contents()) == without_time(alone.contents())


def without_time(contents: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {key: (value[0], *value[2:]) for key, value in contents.items()}


@pytest.mark.slow
def test_a_second_job_reads_only_what_is_new(site, jobs, draw):
    submit(jobs, site)
    work(site)
    site.write("a/new.png", draw(77))
    job = submit(jobs, site)
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.discovered, told.unchanged, told.total, told.indexed) == (12, 11, 1, 1)
    assert fates(jobs, job) == {"indexed": 1, "unchanged": 10, "refused": 1}
    again = submit(jobs, site, again=True)
    work(site)
    assert jobs.summary(again, time.time()).total == 12


@pytest.mark.slow
def test_what_vanished_goes_when_asked(site, jobs):
    submit(jobs, site)
    work(site)
    (site.files / "a/03.png").unlink()
    submit(jobs, site)
    work(site)
    assert len(site.points()) == 10
    submit(jobs, site, delete_vanished=True)
    work(site)
    assert len(site.points()) == 9
    assert len(site.thumbnails()) == 9


@sqlite_quick
def test_a_paused_job_waits_and_goes_on(site, jobs):
    job = submit(jobs, site)
    jobs.pause(job)
    work(site)
    assert jobs.summary(job, time.time()).discovered == 0
    jobs.resume(job)
    work(site)
    assert jobs.summary(job, time.time()).state == "finished"


@pytest.mark.slow
def test_a_cancelled_job_leaves_the_rest_for_the_next(site, jobs, database):
    job = submit(jobs, site)
    with JobRunner(site.settings, database, "one") as runner:
        assert runner.run(job, DISCOVERY)
        assert runner.run(job, 1)
    jobs.cancel(job, AT)
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.state, told.done, told.tasks) == ("cancelled", 4, {"cancelled": 3, "done": 2})
    assert fates(jobs, job) == {"indexed": 4, "open": 7}
    job = submit(jobs, site)
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.unchanged, told.indexed) == (4, 6)
    with pytest.raises(JobError, match=r"job \d+ is finished and cannot be made cancelled"):
        jobs.cancel(job, AT)


def test_a_job_that_does_not_exist_is_named(jobs):
    with pytest.raises(JobError, match="no job 77"):
        jobs.summary(77, time.time())
    with pytest.raises(JobError, match="no job 77"):
        jobs.pause(77)


@sqlite_quick
def test_a_run_of_precedent_index_is_listed_but_cannot_be_steered(site, jobs):
    site.index()
    (told,) = jobs.summaries(time.time())
    assert (told.kind, told.state, told.source) == ("run", "finished", "folder")
    with pytest.raises(JobError, match="run of `precedent index`"):
        jobs.pause(told.id)


@pytest.mark.slow
def test_a_source_that_fails_is_tried_again_and_then_given_up(site, jobs, monkeypatch):
    failing = True
    images = FolderSource.images

    def broken(self: FolderSource, locators: Any) -> Any:
        for number, image in enumerate(images(self, locators)):
            if failing and number == 2:
                raise SourceError("the shelf is away; bring it back")
            yield image

    monkeypatch.setattr(FolderSource, "images", broken)
    job = submit(jobs, site)
    work(site)
    told = jobs.summary(job, time.time())
    assert told.state == "failed"
    assert told.tasks["failed"] == 3
    assert set(told.errors.values()) == {"the shelf is away; bring it back"}
    failing = False
    assert jobs.retry(job) == 3
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.state, told.indexed, told.tasks) == ("finished", 10, {"done": 5})
    assert not told.errors


@pytest.mark.slow
def test_pauses_after_failures_double_and_are_bounded(site, jobs, database, monkeypatch):
    def broken(_: FolderSource) -> Any:
        raise SourceError("the shelf is away; bring it back")

    monkeypatch.setattr(FolderSource, "instances", broken)
    patient = JOBS.model_copy(update={"attempts": 9, "backoff_seconds": 10.0})
    settings = site.settings.model_copy(update={"jobs": patient})
    job = submit(jobs, site)
    now, pauses = time.time(), []
    with JobRunner(settings, database, "one", clock=lambda: now) as runner:
        while runner.run(job, DISCOVERY):
            tried = now
            while not runner.due(1) and now < tried + 2000:
                now += 5
            pauses.append(now - tried)
    assert pauses[:-1] == [10, 20, 40, 80, 160, 320, 640, 900]
    # The ninth try was the last one.
    assert jobs.summary(job, now).tasks == {"failed": 1, "waiting": 1}


@pytest.mark.slow
def test_progress_tells_the_pace_and_the_time_that_is_left(site, jobs, database):
    job = submit(jobs, site)
    now = datetime.fromisoformat(AT).timestamp()
    with JobRunner(site.settings, database, "one", clock=lambda: now) as runner:
        runner.run(job, DISCOVERY)
        assert jobs.summary(job, now + 1).seconds_left is None
        now += 50
        runner.run(job, 1)
    told = jobs.summary(job, now)
    # Four of eleven in fifty seconds, as the workers' clock has it.
    with database.begin() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET started_at = '{AT}' WHERE id = {job}")
    told = jobs.summary(job, now)
    assert (told.done, told.total) == (4, 11)
    assert told.per_second == pytest.approx(4 / 50, rel=0.2)
    assert told.seconds_left == pytest.approx(7 / told.per_second, rel=0.1)


@sqlite_quick
def test_refused_instances_can_be_read_again(site, jobs, draw):
    job = submit(jobs, site)
    work(site)
    # The size stays, and the time too, so that no discovery would see it.
    assert jobs.retry(job) == 0
    site.write("b/notes.txt", draw(5))
    assert jobs.retry(job, refused=True) == 1
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.state, told.indexed, told.refused) == ("finished", 11, {})


def test_a_lapsed_lease_is_taken_over_and_a_live_one_is_not(site, jobs, database):
    job = submit(jobs, site)
    leases = Leases(database, JOBS)
    now = time.time()
    lost = leases.take(job, DISCOVERY, "dead", now, AT)
    assert lost is not None
    assert leases.take(job, DISCOVERY, "other", now + 4, AT) is None
    assert leases.due(now + 4, 10) == []
    assert [(one.job, one.number) for one in leases.due(now + 6, 10)] == [(job, DISCOVERY)]
    taken = leases.take(job, DISCOVERY, "other", now + 6, AT)
    assert taken is not None
    assert taken.attempts == 2
    # Whoever was thought dead learns that the task is no longer theirs, and changes nothing.
    assert not leases.beat(lost, now + 7)
    leases.end(lost, seconds=1.0)
    assert leases.beat(taken, now + 7)


def test_finishing_waits_for_all_tasks_and_holds_others_off(site, jobs, database):
    first, second = submit(jobs, site), submit(jobs, site)
    leases = Leases(database, JOBS)
    with JobRunner(site.settings, database, "one") as runner:
        assert runner.run(first, DISCOVERY)
        assert not runner.run(first, FINISHING)
        assert runner.run(second, DISCOVERY)
        for chunk in (1, 2, 3):
            assert runner.run(first, chunk)
        # Now the first could be finished; until it is, no chunk of the second begins.
        assert not runner.run(second, 1)
        busy = time.time()
        with database.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE tasks SET state = 'running', worker = 'x', "
                f"beat_at = {busy} WHERE job = {second} AND number = 1"
            )
        assert leases.take(first, FINISHING, "one", busy, AT) is None
        later = busy + JOBS.lapse_seconds + 1
        assert leases.take(first, FINISHING, "one", later, AT) is not None


def test_no_more_workers_than_a_source_allows(site, jobs, database):
    job = submit(jobs, site)
    leases = Leases(database, JOBS)
    with JobRunner(site.settings, database, "one") as runner:
        runner.run(job, DISCOVERY)
    now = time.time()
    assert leases.take(job, 1, "one", now, AT, most=1) is not None
    assert leases.take(job, 2, "two", now, AT, most=1) is None
    assert leases.take(job, 2, "two", now, AT, most=2) is not None


def test_a_source_is_left_alone_outside_its_hours(site, jobs, database):
    night = FolderSettings(kind="folder", paths=(site.files,), window="20:00-06:00")
    settings = site.settings.model_copy(update={"sources": {"shelf": night}})
    job = jobs.submit(SourceSpec(name="shelf"), JobOptions(), at=AT)
    noon = datetime(2026, 3, 1, 12).astimezone().timestamp()
    with JobRunner(settings, database, "one", clock=lambda: noon) as runner:
        assert runner.due(10) == []
        assert not runner.run(job, DISCOVERY)
    with JobRunner(settings, database, "one", clock=lambda: noon + 12 * 3600) as runner:
        assert [one.number for one in runner.due(10)] == [DISCOVERY]
        assert runner.run(job, DISCOVERY)
    assert jobs.summary(job, noon).source == "shelf"


@pytest.mark.parametrize(
    ("window", "hour", "is_it"),
    [
        (None, 3, True),
        ("20:00-06:00", 19, False),
        ("20:00-06:00", 20, True),
        ("20:00-06:00", 5, True),
        ("20:00-06:00", 6, False),
        ("08:00-17:00", 12, True),
        ("08:00-17:00", 17, False),
        ("08:00-08:00", 3, True),
    ],
)
def test_windows(window, hour, is_it):
    assert is_open(window, datetime(2026, 1, 1, hour)) is is_it


def test_the_urgent_go_first(site, jobs, database):
    spec = SourceSpec.asked([site.files], None)
    bulk = jobs.submit(spec, JobOptions(), at=AT, priority=2)
    urgent = jobs.submit(spec, JobOptions(), at=AT, priority=8)
    due = Leases(database, JOBS).due(time.time(), 10)
    assert [one.job for one in due] == [urgent, bulk]


@pytest.mark.slow
def test_a_worker_that_is_stopped_puts_its_chunk_back(site, jobs, database):
    job = submit(jobs, site)
    asked = itertools.count()
    with JobRunner(site.settings, database, "one") as runner:
        runner.run(job, DISCOVERY)
    # From the third question on, in the middle of the first chunk.
    with JobRunner(site.settings, database, "one", stopping=lambda: next(asked) > 2) as runner:
        assert runner.run(job, 1)
    told = jobs.summary(job, time.time())
    assert 0 < told.done < 4
    assert told.tasks == {"done": 1, "waiting": 4}
    work(site)
    assert jobs.summary(job, time.time()).indexed == 10


@pytest.mark.slow
def test_discovery_that_was_cut_short_loses_and_doubles_nothing(site, jobs, monkeypatch):
    instances = FolderSource.instances
    tries = itertools.count()

    def cut(self: FolderSource) -> Any:
        first = next(tries) == 0
        for number, found in enumerate(instances(self)):
            if first and number == 9:
                raise SourceError("the line is cut; try again")
            yield found

    monkeypatch.setattr("indexer.jobs.runner._DISCOVERED_AT_ONCE", 3)
    monkeypatch.setattr(FolderSource, "instances", cut)
    job = submit(jobs, site)
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.state, told.discovered, told.total, told.indexed) == ("finished", 11, 11, 10)
    assert told.unchanged == 0
    assert sum(fates(jobs, job).values()) == 11


@pytest.mark.slow
def test_files_of_one_uid_are_settled_as_one_process_would(new_site):
    """The later chunk is done first, as another worker may; the first file by name wins."""
    sites = []
    for _ in ("alone", "shared"):
        site = new_site()
        site.settings = site.settings.model_copy(update={"jobs": replace_chunk(2)})
        for number, uid in enumerate(("1.2.3", "1.2.4", "1.2.5", "1.2.3")):
            site.write(f"{number}.dcm", encode(dataset(drawn(number), SOPInstanceUID=uid)))
        sites.append(site)
    alone, shared = sites
    alone.index()
    with shared.database() as database:
        jobs = JobLedger(database.of("default"))
        job = submit(jobs, shared)
        with JobRunner(shared.settings, database, "one") as runner:
            for number in (DISCOVERY, 2, 1, FINISHING):
                assert runner.run(job, number)
        told = jobs.summary(job, time.time())
        assert (told.state, told.indexed) == ("finished", 3)
        assert told.refused == {"conflicting-uid": 1}
        (refused,) = (one for one in jobs.fates(job) if one.fate == "refused")
        assert refused.locator.endswith("3.dcm")
    assert without_time(shared.contents()) == without_time(alone.contents())


def test_one_picture_under_two_labels_has_the_label_of_the_first(new_site, draw):
    site = new_site()
    site.settings = site.settings.model_copy(update={"jobs": replace_chunk(1)})
    for label in ("first", "second"):
        site.write(f"{label}/x.png", draw(1))
    with site.database() as database:
        jobs = JobLedger(database.of("default"))
        spec = SourceSpec.asked([site.files], None, "folder")
        job = jobs.submit(spec, JobOptions(), at=AT)
        with JobRunner(site.settings, database, "one") as runner:
            for number in (DISCOVERY, 2, 1, FINISHING):
                assert runner.run(job, number)
        assert Counter(one.fate for one in jobs.fates(job)) == {"indexed": 1, "duplicate": 1}
    (point,) = site.points().values()
    assert point.record.labels == ("first",)


def replace_chunk(size: int) -> JobSettings:
    return JOBS.model_copy(update={"chunk": size})


@pytest.mark.slow
def test_a_store_that_failed_is_opened_anew(site, jobs, monkeypatch):
    from engine.store.edge import EdgeStore

    upsert = EdgeStore.upsert
    calls = itertools.count()

    def sick(self: EdgeStore, points: Any) -> None:
        if next(calls) == 1:
            raise StoreError("no space left; make room")
        upsert(self, points)

    monkeypatch.setattr(EdgeStore, "upsert", sick)
    job = submit(jobs, site)
    work(site)
    told = jobs.summary(job, time.time())
    assert (told.state, told.indexed) == ("finished", 10)


@pytest.mark.slow
def test_a_long_instance_does_not_cost_the_lease(site, jobs, database, monkeypatch):
    job = submit(jobs, site)
    images = FolderSource.images

    def slow(self: FolderSource, locators: Any) -> Any:
        time.sleep(1.5)
        yield from images(self, locators)

    monkeypatch.setattr(FolderSource, "images", slow)
    short = site.settings.jobs.model_copy(update={"lapse_seconds": 1.0})
    settings = site.settings.model_copy(update={"jobs": short})
    taken: list[bool] = []
    with (
        JobRunner(settings, database, "one") as one,
        JobRunner(settings, database, "two") as two,
    ):
        assert one.run(job, DISCOVERY)
        thread = threading.Thread(target=one.run, args=(job, 1))
        thread.start()
        while jobs.summary(job, time.time()).tasks.get("running") != 1:
            time.sleep(0.01)
        ends = time.monotonic() + 1.4
        while time.monotonic() < ends:
            taken.append(two.leases.take(job, 1, "two", time.time(), AT) is not None)
            time.sleep(0.1)
        thread.join()
    assert len(taken) > 3
    assert not any(taken)


def deep(site: Any, name: str, count: int) -> Path:
    """A folder whose path goes through ``count`` folders of this name."""
    folder = site.files.joinpath(*[name] * count)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_paths_of_any_length_are_indexed_or_accounted_for(site, jobs, draw):
    """PostgreSQL's indices hold 2,704 bytes; Linux has paths of 4,096."""
    chance = random.Random(5)
    # Nothing that a database could make shorter.
    name = "".join(chr(chance.randrange(0x4E00, 0x9F00)) for _ in range(80))
    readable = deep(site, name, 7) / "picture.png"
    assert len(readable.as_uri()) > 5000
    readable.write_bytes(draw(100))
    hexadecimal = "".join(chance.choices("0123456789abcdef", k=240))
    longest = deep(site, hexadecimal, 14) / "picture.png"
    longest.write_bytes(draw(101))
    with zipfile.ZipFile(readable.parent / "packed.zip", "w") as packed:
        packed.writestr("inside/picture.png", draw(102))

    job = submit(jobs, site, delete_vanished=True, at_most=1.0)
    work(site)
    told = jobs.summary(job, time.time())
    assert told.state == "finished"
    assert (told.discovered, told.done, told.indexed) == (14, 14, 12)
    assert told.refused == {"not-an-image": 1, "unreadable": 1}
    (refused,) = [one for one in jobs.fates(job) if one.reason == "unreadable"]
    assert refused.detail == (
        "its path is longer than the 2,400 bytes that the ledger keeps of one; give its folders "
        "shorter names"
    )
    assert hexadecimal in shown(refused.locator)
    assert str(readable) in {shown(one.locator) for one in jobs.fates(job)}

    # Nothing of it is new the next time; and what goes is noticed.
    again = submit(jobs, site, delete_vanished=True, at_most=1.0)
    work(site)
    assert jobs.summary(again, time.time()).unchanged == 13
    readable.unlink()
    longest.unlink()
    last = submit(jobs, site, delete_vanished=True, at_most=1.0)
    work(site)
    assert jobs.summary(last, time.time()).discovered == 12
    with site.database() as database:
        assert Ledger(database.of("default")).counts() == {"done": 11, "refused": 1}


def test_what_is_listed_tells_whether_anybody_works_on_it(site, jobs, database):
    job = submit(jobs, site)
    now = time.time()
    assert jobs.summary(job, now).status == "waiting"
    assert Leases(database, JOBS).take(job, DISCOVERY, "one", now, AT) is not None
    assert jobs.summary(job, now).status == "running"
    # A worker that died is none.
    assert jobs.summary(job, now + 61).status == "waiting"
    assert jobs.summary(job, now + 61).state == "running"
    jobs.pause(job)
    assert jobs.summary(job, now).status == "paused"


@sqlite_quick
def test_a_run_of_precedent_index_has_counts(site, jobs, draw):
    site.index()
    site.write("a/new.png", draw(77))
    site.index()
    second, first = jobs.summaries(time.time())
    counts = (first.discovered, first.total, first.done, first.indexed, first.points)
    assert counts == (11, 11, 11, 10, 10)
    assert first.refused == {"not-an-image": 1}
    assert (second.discovered, second.unchanged, second.total, second.done) == (12, 11, 1, 1)
    # Workers take nothing of it.
    work(site)
    assert jobs.summary(first.id, time.time()) == first


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (SourceError("the shelf is away; bring it back"), "failed", "the shelf is away"),
        (KeyboardInterrupt(), "cancelled", "stopped; the same command goes on"),
    ],
)
def test_a_run_that_does_not_finish_says_why(site, jobs, monkeypatch, error, status, note):
    instances = FolderSource.instances

    def broken(self: FolderSource) -> Any:
        yield from itertools.islice(instances(self), 3)
        raise error

    monkeypatch.setattr(FolderSource, "instances", broken)
    with pytest.raises(type(error)):
        site.index()
    (told,) = jobs.summaries(time.time())
    assert told.status == told.state == status
    assert note in str(told.note)
    assert told.finished_at is not None


@sqlite_quick
def test_a_run_that_was_killed_is_found_out_by_the_next_one(site, jobs, database):
    run = Ledger(database.of("default")).begin_run("folder", AT)
    site.index()
    told = jobs.summary(run, time.time())
    assert told.status == "failed"
    assert "without a word" in str(told.note)


@sqlite_quick
@pytest.mark.parametrize("how", ["job", "run"])
def test_a_source_that_is_suddenly_empty_does_not_empty_the_index(site, jobs, how):
    site.index()
    (site.files / "a").rename(site.root / "away")
    said = r"10 of 11 instances of source 'folder' have vanished, .*more than 20%.*--at-most 100%"
    if how == "job":
        job = submit(jobs, site, delete_vanished=True)
        work(site)
        assert re.search(said, str(jobs.summary(job, time.time()).note))
    else:
        with pytest.raises(SourceError, match=said):
            site.index(vanished_from=[], at_most=0.2)
    assert len(site.points()) == 10
    if how == "job":
        job = submit(jobs, site, delete_vanished=True, at_most=1.0)
        work(site)
        note = str(jobs.summary(job, time.time()).note)
        assert note.startswith(f"10 removed that the source no longer has: {site.files}/a/00.png")
    else:
        report = site.index(vanished_from=[], at_most=1.0)
        assert report.removed == len(report.removed_first) == 10
    assert site.points() == {}


@sqlite_quick
@pytest.mark.slow
def test_nothing_goes_for_a_source_that_was_not_looked_through(site, jobs, monkeypatch):
    site.index()

    def away(_: FolderSource) -> Any:
        raise SourceError("the shelf is away; bring it back")

    monkeypatch.setattr(FolderSource, "instances", away)
    job = submit(jobs, site, delete_vanished=True, at_most=1.0)
    work(site)
    told = jobs.summary(job, time.time())
    assert told.state == "failed"
    assert "nothing was removed" in str(told.note)
    assert len(site.points()) == 10
