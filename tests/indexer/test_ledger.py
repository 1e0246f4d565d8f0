"""The ledger remembers what became of each instance, and what has to be done again."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, strategies as st
from multiplied import analyse, multiply
from sqlalchemy import select

from engine.errors import LedgerError, RefusalReason
from indexer.files.locators import file_locator, file_path
from indexer.ledger.database import Database
from indexer.ledger.instances import Done, Ledger, Owner, Pending, Refused
from indexer.ledger.schema import instances, jobs, manifest, points, stale
from indexer.sources.base import Discovered

AT = "2024-05-01T12:00:00+00:00"
LATER = "2024-05-01T13:00:00+00:00"
TRANSIENT = {
    RefusalReason.UNREADABLE,
    RefusalReason.TOO_SLOW,
    RefusalReason.READER_DIED,
    RefusalReason.CONFLICTING_UID,
}


@pytest.fixture
def database(made_ledger_url: str) -> Iterator[Database]:
    """SQLite, then PostgreSQL."""
    with Database(made_ledger_url) as opened:
        yield opened


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database.of("default"))


def found(name: str, size: int = 10, modified: int = 1, label: str | None = None) -> Discovered:
    return Discovered(f"file:///{name}", size, modified, label)


def done(name: str, *ids: str, content: str = "c0ffee", **uids: str) -> Done:
    return Done(f"file:///{name}", content, tuple((i, n) for n, i in enumerate(ids)), **uids)


def refused(name: str, reason: RefusalReason, detail: str = "a sentence") -> Refused:
    return Refused(f"file:///{name}", reason, detail)


def names(ledger: Ledger, run: int) -> list[str]:
    return [pending.locator.removeprefix("file:///") for pending in ledger.pending(run)]


def a_run(ledger: Ledger, *items: Discovered, source: str = "folder", **options: bool) -> int:
    run = ledger.begin_run(source, AT)
    assert ledger.discover(run, source, items, **options) == len(items)
    return run


def short(locators: list[str]) -> list[str]:
    return [locator.removeprefix("file:///") for locator in locators]


def test_what_is_new_is_pending_until_it_is_finished(ledger: Ledger) -> None:
    run = a_run(ledger, found("b"), found("a", label="ct"), found("c"))
    assert list(ledger.pending(run)) == [
        Pending("file:///a", "ct"),
        Pending("file:///b", None),
        Pending("file:///c", None),
    ]
    ledger.finish(run, [done("a", "p1"), refused("b", RefusalReason.DAMAGED)], AT)
    assert names(ledger, run) == ["c"]
    assert ledger.pending_count(run) == 1
    assert ledger.counts() == {"done": 1, "refused": 1, "pending": 1}
    assert ledger.run_counts(run) == (1, 0, {"damaged": 1})
    assert ledger.refusals(10) == [refused("b", RefusalReason.DAMAGED)]


def test_a_later_run_counts_apart_what_it_found_done(ledger: Ledger) -> None:
    first = a_run(ledger, found("a"), found("b"), found("bad"))
    ledger.finish(
        first, [done("a", "p1"), done("b", "p2"), refused("bad", RefusalReason.DAMAGED)], AT
    )
    second = a_run(ledger, found("a"), found("new"), found("bad"))
    assert second != first
    assert names(ledger, second) == ["new"]
    ledger.finish(second, [done("new", "p3")], AT)
    # b was not seen again: it stays, and is no part of this run.
    assert ledger.run_counts(second) == (1, 1, {"damaged": 1})
    assert ledger.counts() == {"done": 3, "refused": 1}


@pytest.mark.parametrize(
    ("now", "read_again"),
    [
        (found("a", 10, 1, "x"), False),
        (found("a", 11, 1, "x"), True),
        (found("a", 10, 2, "x"), True),
        (found("a", 10, 0, "x"), True),
        (found("a", 10, 1, "y"), True),
        (found("a", 10, 1, None), True),
    ],
    ids=["same", "size", "newer", "older", "label", "no label"],
)
@pytest.mark.parametrize("outcome", [done("a", "p1"), refused("a", RefusalReason.DAMAGED)])
def test_what_changed_is_read_again(
    ledger: Ledger, outcome: Done | Refused, now: Discovered, read_again: bool
) -> None:
    ledger.finish(a_run(ledger, found("a", 10, 1, "x")), [outcome], AT)
    run = a_run(ledger, now)
    assert list(ledger.pending(run)) == ([Pending("file:///a", now.label)] if read_again else [])
    assert ledger.pending_count(run) == read_again


@pytest.mark.parametrize("reason", list(RefusalReason))
def test_only_what_may_pass_is_tried_again(ledger: Ledger, reason: RefusalReason) -> None:
    ledger.finish(a_run(ledger, found("a")), [refused("a", reason)], AT)
    again = a_run(ledger, found("a"))
    assert names(ledger, again) == (["a"] if reason in TRANSIENT else [])
    # Counted as refused in this run, unless it waits to be read.
    assert ledger.run_counts(again) == (0, 0, {} if reason in TRANSIENT else {reason.value: 1})
    assert names(ledger, a_run(ledger, found("a"), retry_refused=True)) == ["a"]


def test_an_interrupted_run_is_taken_up_by_the_next(ledger: Ledger) -> None:
    a_run(ledger, found("a"), found("b"))
    run = a_run(ledger, found("a"), found("b"))
    assert names(ledger, run) == ["a", "b"]
    assert ledger.run_counts(run) == (0, 0, {})


def test_an_outcome_replaces_the_one_before(ledger: Ledger) -> None:
    first = a_run(ledger, found("a"))
    ledger.finish(first, [done("a", "p1", "p2", study="1.2", sop="1.2.3", patient="k")], AT)
    assert ledger.points_of(["file:///a"]) == {"file:///a": ["p1", "p2"]}
    ledger.finish(a_run(ledger, found("a", 11)), [done("a", "p3", study="1.9")], AT)
    assert ledger.points_of(["file:///a"]) == {"file:///a": ["p3"]}
    assert ledger.owners(["p1", "p2", "p3"]) == {"p3": [Owner("file:///a", "c0ffee")]}
    assert ledger.find(study="1.2") == []
    assert ledger.find(study="1.9") == ["file:///a"]
    ledger.finish(a_run(ledger, found("a", 12)), [refused("a", RefusalReason.DAMAGED)], AT)
    assert ledger.points_of(["file:///a"]) == {}
    assert ledger.find(study="1.9") == []
    last = a_run(ledger, found("a", 13))
    ledger.finish(last, [done("a", "p4")], AT)
    assert ledger.refusals(10) == []
    assert ledger.run_counts(last) == (1, 0, {})


def test_a_point_may_have_several_owners(ledger: Ledger) -> None:
    run = a_run(ledger, found("b"), found("a"), found("c"))
    ledger.finish(run, [done("b", "p1"), done("a", "p1"), done("c", "p2", content="other")], AT)
    assert ledger.owners(["p1", "p2", "unknown"]) == {
        "p1": [Owner("file:///a", "c0ffee"), Owner("file:///b", "c0ffee")],
        "p2": [Owner("file:///c", "other")],
    }
    ledger.forget(["file:///a"])
    assert ledger.owners(["p1"]) == {"p1": [Owner("file:///b", "c0ffee")]}
    assert ledger.counts() == {"done": 2}


def test_find_needs_all_that_was_asked(ledger: Ledger) -> None:
    run = a_run(ledger, *(found(name) for name in "abc"))
    ledger.finish(
        run,
        [
            done("a", "p1", study="1.1", sop="1.1.1", patient="k1"),
            done("b", "p2", study="1.1", sop="1.1.2", patient="k1"),
            done("c", "p3", study="1.2", sop="1.2.1", patient="k1"),
        ],
        AT,
    )
    assert ledger.find(study="1.1") == ["file:///a", "file:///b"]
    assert ledger.find(study="1.1", sop="1.1.2") == ["file:///b"]
    assert ledger.find(patient="k1") == ["file:///a", "file:///b", "file:///c"]
    assert ledger.find(study="1.2", sop="1.1.1") == []


def test_forgotten_and_cleared_instances_are_new_again(ledger: Ledger) -> None:
    items = [found(name) for name in "abc"]
    ledger.finish(a_run(ledger, *items), [done(name, f"p{name}") for name in "abc"], AT)
    ledger.forget(["file:///b", "file:///never seen"])
    assert names(ledger, a_run(ledger, *items)) == ["b"]
    ledger.clear()
    assert ledger.counts() == {}
    assert ledger.owners(["pa", "pb", "pc"]) == {}
    assert names(ledger, a_run(ledger, *items)) == ["a", "b", "c"]


def test_refusals_come_by_reason_and_only_as_many_as_asked(ledger: Ledger) -> None:
    run = a_run(ledger, *(found(name) for name in "abcd"))
    outcomes = [
        refused("d", RefusalReason.DAMAGED),
        refused("a", RefusalReason.TRUNCATED),
        refused("b", RefusalReason.DAMAGED),
        refused("c", RefusalReason.EMPTY_FILE),
    ]
    ledger.finish(run, outcomes, AT)
    assert [one.locator[-1] for one in ledger.refusals(100)] == ["b", "d", "c", "a"]
    assert [one.locator[-1] for one in ledger.refusals(3)] == ["b", "d", "c"]
    assert ledger.run_counts(run)[2] == {"damaged": 2, "empty-file": 1, "truncated": 1}


def test_nothing_is_lost_where_one_page_ends_and_the_next_begins(ledger: Ledger) -> None:
    items = [found(f"{number:04}") for number in range(1000)]
    run = ledger.begin_run("folder", AT)
    assert ledger.discover(run, "folder", reversed(items)) == 1000
    pending = list(ledger.pending(run))
    assert [one.locator for one in pending] == [item.locator for item in items]
    assert ledger.pending_count(run) == 1000
    outcomes = [done(f"{number:04}", f"p{number}", f"q{number}") for number in range(1000)]
    ledger.finish(run, outcomes, AT)
    assert ledger.run_counts(run) == (1000, 0, {})
    locators = [item.locator for item in items]
    assert len(ledger.points_of(locators)) == 1000
    ids = [point_id for outcome in outcomes for point_id, _ in outcome.points]
    assert len(ledger.owners(ids)) == 2000
    later = ledger.begin_run("folder", AT)
    assert ledger.discover(later, "folder", items) == 1000
    assert ledger.run_counts(later) == (0, 1000, {})
    ledger.forget(locators[:999])
    assert ledger.counts() == {"done": 1}
    assert ledger.owners(ids) == {
        "p999": [Owner("file:///0999", "c0ffee")],
        "q999": [Owner("file:///0999", "c0ffee")],
    }


@pytest.mark.slow
def test_pages_go_on_while_what_was_read_is_finished(ledger: Ledger) -> None:
    """As the pipeline does it: outcomes are recorded between two pages."""
    items = [found(f"{number:04}") for number in range(1000)]
    run = a_run(ledger, *items)
    read = []
    for pending in ledger.pending(run):
        read.append(pending.locator)
        ledger.finish(run, [Done(pending.locator, "c0ffee", ())], AT)
    assert read == [item.locator for item in items]
    assert ledger.pending_count(run) == 0


def test_all_of_an_outcome_is_recorded_or_nothing(ledger: Ledger) -> None:
    run = a_run(ledger, found("a"), found("b"))
    twice = Done("file:///b", "c0ffee", (("p2", 0), ("p2", 1)))
    with pytest.raises(LedgerError):
        ledger.finish(run, [done("a", "p1"), twice], AT)
    assert names(ledger, run) == ["a", "b"]
    assert ledger.owners(["p1"]) == {}


file_names = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name)


@given(st.lists(file_names, min_size=1, max_size=4))
def test_any_name_a_file_can_have_comes_back(parts: list[bytes]) -> None:
    assume(not any(b"\0" in part or part in (b".", b"..") for part in parts))
    path = Path(os.fsdecode(b"/" + b"/".join(parts)))
    locator = file_locator(path)
    assert os.fsencode(file_path(locator)) == os.fsencode(path)
    # An URI, which every database and log takes: printable ASCII without spaces.
    assert locator.startswith("file:///")
    assert locator.isascii()
    assert locator.isprintable()
    assert " " not in locator


@given(file_names, file_names)
def test_two_names_are_never_one_instance(one: bytes, other: bytes) -> None:
    paths = [Path(os.fsdecode(b"/" + name)) for name in (one, other)]
    assume(paths[0] != paths[1])
    assert file_locator(paths[0]) != file_locator(paths[1])


def test_a_name_that_is_no_text_goes_through_the_database(ledger: Ledger) -> None:
    path = Path(os.fsdecode(b"/archive/caf\xe9 #1?.dcm"))
    run = a_run(ledger, Discovered(file_locator(path), 1, 1))
    (pending,) = ledger.pending(run)
    assert file_path(pending.locator) == path
    ledger.finish(run, [Refused(pending.locator, RefusalReason.DAMAGED, "bad")], AT)
    assert [file_path(one.locator) for one in ledger.refusals(1)] == [path]


def test_damage_in_the_middle_is_told_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Database(f"sqlite:///{path}") as database:
        a_run(Ledger(database.of("default")), *(found(f"{number:04}") for number in range(1000)))
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)
    # Opening may succeed, for the first pages are whole; using it must not.
    with pytest.raises(LedgerError) as caught, Database(f"sqlite:///{path}") as database:
        list(Ledger(database.of("default")).pending(1))
    assert "\n" not in str(caught.value)


def test_a_reader_sees_whole_transactions_while_another_writes(made_ledger_url: str) -> None:
    batches, size = 40, 25
    items = [found(f"{number:04}") for number in range(batches * size)]
    errors: list[BaseException] = []
    with Database(made_ledger_url) as one, Database(made_ledger_url) as other:
        writer, reader = Ledger(one.of("default")), Ledger(other.of("default"))
        run = a_run(writer, *items)

        def write() -> None:
            try:
                for batch in range(batches):
                    chunk = items[batch * size : (batch + 1) * size]
                    outcomes = [Done(item.locator, "c0ffee", ()) for item in chunk]
                    writer.finish(run, outcomes, AT)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        seen = [reader.counts()]
        while thread.is_alive():
            seen.append(reader.counts())
        thread.join()
        seen.append(reader.counts())
    assert errors == []
    finished = [counts.get("done", 0) for counts in seen]
    assert {count % size for count in finished} == {0}
    assert finished == sorted(finished)
    assert finished[-1] == batches * size
    assert {sum(counts.values()) for counts in seen} == {len(items)}


def test_two_writers_wait_for_each_other(made_ledger_url: str, ledger: Ledger) -> None:
    errors: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with Database(made_ledger_url) as database:
                mine = Ledger(database.of("default"))
                run = mine.begin_run("folder", AT)
                for number in range(20):
                    mine.discover(run, "folder", [found(f"{name}{number}")])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert ledger.counts() == {"pending": 40}


WRITING = """
import random, sys
from indexer.ledger.database import Database
from engine.settings import Settings
from indexer.ledger.database import Database, open_database
from indexer.ledger.instances import Done, Ledger
from indexer.sources.base import Discovered
url, seed = sys.argv[1], int(sys.argv[2])
order = random.Random(seed)
with Database(url) as database:
    ledger = Ledger(database.of("default"))
    for _ in range(8):
        items = [Discovered(f"file:///{number:03}", 1, seed) for number in range(300)]
        order.shuffle(items)
        run = ledger.begin_run("folder", "")
        ledger.discover(run, "folder", items)
        outcomes = [Done(item.locator, "c", ((f"{item.locator} {seed}", 0),)) for item in items]
        order.shuffle(outcomes)
        ledger.finish(run, outcomes[:200], "")
"""


@pytest.mark.slow
def test_processes_that_write_the_same_instances_do_not_collide(
    made_ledger_url: str, ledger: Ledger
) -> None:
    """Each in another order: who locks rows as they come waits for ever, or is told to stop."""
    writing = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, made_ledger_url, seed], stderr=subprocess.PIPE
        )
        for seed in "12"
    ]
    assert [process.communicate(timeout=120)[1].decode() for process in writing] == ["", ""]
    locators = [f"file:///{number:03}" for number in range(300)]
    held = ledger.points_of(locators)
    assert set(held) <= set(locators)
    # Of each instance the points of one content, never of two.
    assert {len(ids) for ids in held.values()} == {1}
    dead = set(ledger.stale(1000))
    assert dead.isdisjoint(ledger.owners(sorted(dead), done_only=True))


def test_what_was_recorded_is_there_after_reopening(made_ledger_url: str) -> None:
    with Database(made_ledger_url) as database:
        ledger = Ledger(database.of("default"))
        run = a_run(ledger, found("a"), found("b"))
        ledger.finish(run, [done("a", "p1")], AT)
    with Database(made_ledger_url) as database:
        ledger = Ledger(database.of("default"))
        assert ledger.counts() == {"done": 1, "pending": 1}
        assert ledger.begin_run("folder", AT) > run


def test_runs_are_kept_with_their_times(database: Database, ledger: Ledger) -> None:
    first = ledger.begin_run("folder", AT)
    second = ledger.begin_run("pacs", AT)
    ledger.end_run(first, LATER)
    c = jobs.c
    columns = (c.id, c.kind, c.source, c.state, c.created_at, c.started_at, c.finished_at)
    with database.begin(read=True) as connection:
        rows = connection.execute(select(*columns).order_by(c.id)).all()
    assert rows == [
        (first, "run", "folder", "finished", AT, AT, LATER),
        (second, "run", "pacs", "running", AT, AT, None),
    ]


def test_read_again_means_everything(ledger: Ledger) -> None:
    items = [found(name) for name in "abc"]
    outcomes = [done("a", "p1"), refused("b", RefusalReason.DAMAGED), done("c", "p2")]
    ledger.finish(a_run(ledger, *items), outcomes, AT)
    run = a_run(ledger, *items[:2], again=True)
    assert names(ledger, run) == ["a", "b"]
    assert ledger.counts() == {"pending": 2, "done": 1}


def test_noting_tells_what_is_pending(database: Database, ledger: Ledger) -> None:
    items = [found(f"{number:04}") for number in range(1000)]
    first = a_run(ledger, *items)
    ledger.finish(first, [Done(item.locator, "c0ffee", ()) for item in items[:900]], AT)
    run = ledger.begin_run("folder", AT)
    changed = [*items[:5], *(found(f"{number:04}", 11) for number in range(5, 8)), *items[8:]]
    with database.begin() as connection:
        pending = ledger.note(connection, run, "folder", [*changed, changed[-1]])
    assert pending == [*changed[5:8], *items[900:]]
    assert names(ledger, run) == [item.locator[-4:] for item in pending]


def test_noting_is_part_of_the_caller_s_transaction(database: Database, ledger: Ledger) -> None:
    run = ledger.begin_run("folder", AT)
    with pytest.raises(ValueError, match="changed its mind"), database.begin() as connection:
        assert ledger.note(connection, run, "folder", [found("a")]) == [found("a")]
        raise ValueError("changed its mind")
    assert ledger.counts() == {}


def test_instances_know_their_source(ledger: Ledger) -> None:
    run = a_run(ledger, found("a"), found("b"))
    ledger.finish(run, [done("a", "p1", study="1.2"), done("b", "p2", study="1.2")], AT)
    a_run(ledger, found("c"), source="pacs")
    assert short(ledger.find(source="folder")) == ["a", "b"]
    assert short(ledger.find(source="pacs")) == ["c"]
    # Of whichever source saw it last, also when it was not read again.
    a_run(ledger, found("b"), source="pacs")
    assert short(ledger.find(source="pacs")) == ["b", "c"]
    assert short(ledger.find(source="pacs", study="1.2")) == ["b"]


def test_the_uid_of_a_refused_instance_is_kept(ledger: Ledger) -> None:
    run = a_run(ledger, found("a"), found("b"))
    conflict = Refused("file:///b", RefusalReason.CONFLICTING_UID, "which is right?", "1.2.3")
    ledger.finish(run, [done("a", "p1", sop="1.2.3"), conflict], AT)
    assert short(ledger.find(sop="1.2.3")) == ["a", "b"]
    assert ledger.refusals(10) == [conflict]
    ledger.finish(a_run(ledger, found("b")), [refused("b", RefusalReason.DAMAGED)], AT)
    assert short(ledger.find(sop="1.2.3")) == ["a"]


def test_points_that_a_file_no_longer_has_are_stale(ledger: Ledger) -> None:
    run = a_run(ledger, *(found(name) for name in "abc"))
    ledger.finish(run, [done("a", "p1", "p2"), done("b", "p2"), done("c", "p3")], AT)
    assert ledger.stale(10) == []
    run = a_run(ledger, found("a", 11), found("b"), found("c", 11))
    ledger.finish(run, [done("a", "p4"), refused("c", RefusalReason.DAMAGED)], AT)
    # p2 is b's too.
    assert ledger.stale(10) == ["p1", "p3"]
    assert ledger.stale(1) == ["p1"]
    ledger.forget_stale(["p1", "unknown"])
    assert ledger.stale(10) == ["p3"]


def test_what_is_the_same_as_before_is_not_stale(ledger: Ledger) -> None:
    ledger.finish(a_run(ledger, found("a")), [done("a", "p1", "p2")], AT)
    ledger.finish(a_run(ledger, found("a"), again=True), [done("a", "p2", "p1")], AT)
    assert ledger.stale(10) == []


def test_what_an_instance_has_again_is_stale_no_more(database: Database, ledger: Ledger) -> None:
    ledger.finish(a_run(ledger, found("a")), [done("a", "p1")], AT)
    ledger.finish(a_run(ledger, found("a", 11)), [done("a", "p2")], AT)
    ledger.finish(a_run(ledger, found("b")), [done("b", "p1")], AT)
    assert ledger.stale(10) == []
    with database.begin(read=True) as connection:
        assert connection.execute(select(stale)).all() == []
    # Only an instance that is in the index has points: one that waits may get others.
    ledger.finish(a_run(ledger, found("a", 12)), [done("a", "p3")], AT)
    ledger.finish(a_run(ledger, found("c")), [done("c", "p2")], AT)
    a_run(ledger, found("c", 11))
    assert ledger.stale(10) == ["p2"]


def test_many_stale_points_are_told_in_portions(ledger: Ledger) -> None:
    ids = [f"p{number:04}" for number in range(1500)]
    ledger.finish(a_run(ledger, found("a")), [done("a", *ids)], AT)
    ledger.finish(a_run(ledger, found("b")), [done("b", *ids[:900])], AT)
    ledger.finish(a_run(ledger, found("a", 11)), [done("a", *ids[1400:])], AT)
    seen = []
    while portion := ledger.stale(150):
        assert len(portion) <= 150
        seen += portion
        ledger.forget_stale(portion)
    assert seen == ids[900:1400]


def test_outcomes_of_a_forgotten_instance_leave_nothing_behind(ledger: Ledger) -> None:
    """It was deleted while it was read: its points are on their way, and have to go."""
    run = a_run(ledger, found("a"), found("b"))
    ledger.forget(["file:///a"])
    ledger.finish(run, [done("a", "p1", "p2"), done("b", "p2", "p3")], AT)
    assert ledger.counts() == {"done": 1}
    assert ledger.points_of(["file:///a"]) == {}
    assert ledger.stale(10) == ["p1"]


def test_clearing_forgets_stale_points_too(ledger: Ledger) -> None:
    ledger.finish(a_run(ledger, found("a")), [done("a", "p1")], AT)
    ledger.finish(a_run(ledger, found("a", 11)), [done("a", "p2")], AT)
    ledger.clear()
    assert ledger.stale(10) == []


def test_a_manifest_says_what_became_of_each(database: Database, ledger: Ledger) -> None:
    run = a_run(ledger, *(found(name) for name in "abcd"))
    rows = [{"job": run, "locator": f"file:///{name}", "chunk": 0} for name in "abcd"]
    with database.begin() as connection:
        connection.execute(manifest.insert(), rows)
    duplicate = Done("file:///b", "c0ffee", (("p1", 0),), duplicate=True)
    outcomes = [done("a", "p1"), duplicate, refused("c", RefusalReason.DAMAGED, "cut short")]
    ledger.finish(run, outcomes, AT, manifest=True)
    c = manifest.c
    with database.begin(read=True) as connection:
        query = select(c.locator, c.fate, c.reason, c.detail).order_by(c.locator)
        assert connection.execute(query).all() == [
            ("file:///a", "indexed", None, None),
            ("file:///b", "duplicate", None, None),
            ("file:///c", "refused", "damaged", "cut short"),
            ("file:///d", None, None, None),
        ]
    # Without a manifest, the outcomes are the instances' alone.
    ledger.finish(run, [done("d", "p4")], AT)
    with database.begin(read=True) as connection:
        query = select(c.fate).where(c.locator == "file:///d")
        assert connection.execute(query).scalar_one() is None
    assert ledger.counts() == {"done": 3, "refused": 1}


ORDERED = ["a-b", "aB", "a_b", "ab", "b", "~", "\N{LATIN CAPITAL LETTER A WITH DIAERESIS}", "日"]


def test_locators_are_ordered_by_their_bytes(database: Database, ledger: Ledger) -> None:
    """As people sort them, "a_b" comes first, "aB" after "ab", and "Ä" beside "a"."""
    assert sorted(ORDERED, key=str.encode) == ORDERED
    run = a_run(ledger, *(found(name) for name in reversed(ORDERED)))
    assert names(ledger, run) == ORDERED
    rows = [{"job": run, "locator": f"file:///{name}", "chunk": 0} for name in ORDERED]
    with database.begin() as connection:
        connection.execute(manifest.insert(), rows)
        query = select(manifest.c.locator).order_by(manifest.c.locator)
        assert short(list(connection.execute(query).scalars())) == ORDERED
    outcomes = [refused(name, RefusalReason.DAMAGED) for name in ORDERED[:4]]
    ledger.finish(run, [*outcomes, *(done(name, "p") for name in ORDERED[4:])], AT)
    assert short([one.locator for one in ledger.refusals(10)]) == ORDERED[:4]
    assert short([one.locator for one in ledger.owners(["p"])["p"]]) == ORDERED[4:]
    assert short(ledger.find(source="folder")) == ORDERED


def test_no_page_leaves_out_a_name_or_repeats_one(ledger: Ledger) -> None:
    letters = random.Random(5)
    many = {"".join(letters.choices("aAbB_-./äÄé", k=letters.randint(1, 6))) for _ in range(1500)}
    run = a_run(ledger, *(found(name) for name in many))
    assert names(ledger, run) == sorted(many, key=str.encode)


def test_what_a_database_cannot_hold_is_replaced(ledger: Ledger) -> None:
    odd = found("a", label="cut\0here \ud800 Röntgen")
    run = a_run(ledger, odd, found("b"))
    assert [one.label for one in ledger.pending(run)] == ["cut\ufffdhere \ufffd Röntgen", None]
    why = refused("b", RefusalReason.DAMAGED, "value '\0\udcff' of a tag")
    ledger.finish(run, [done("a", "p1", study="1.2\0"), why], AT)
    assert [one.detail for one in ledger.refusals(1)] == ["value '\ufffd\ufffd' of a tag"]
    assert short(ledger.find(study="1.2\0")) == ["a"]
    # And it is the same label the next time.
    assert names(ledger, a_run(ledger, odd)) == []


def gone(ledger: Ledger, run: int, *prefixes: str, source: str = "folder") -> list[str]:
    starts = [f"file:///{prefix}" for prefix in prefixes]
    pages = list(ledger.vanished(run, source, starts))
    assert all(pages)
    return sorted(short([locator for page in pages for locator in page]))


def test_what_a_source_no_longer_has_is_found(ledger: Ledger) -> None:
    first = a_run(ledger, *(found(name) for name in ("x/1", "x/2", "y/1", "y/2", "xx/1")))
    ledger.finish(first, [done("x/1", "p1"), refused("x/2", RefusalReason.DAMAGED)], AT)
    a_run(ledger, found("x/9"), source="pacs")
    second = a_run(ledger, found("y/1"))
    assert gone(ledger, second) == ["x/1", "x/2", "xx/1", "y/2"]
    assert gone(ledger, second, "x/") == ["x/1", "x/2"]
    assert gone(ledger, second, "x") == ["x/1", "x/2", "xx/1"]
    assert gone(ledger, second, "y/", "x/2", "z") == ["x/2", "y/2"]
    assert gone(ledger, second, "X/", "x/_") == []
    assert gone(ledger, second, source="pacs") == ["x/9"]
    assert gone(ledger, second, source="other") == []
    assert gone(ledger, first) == []


def test_pages_of_vanished_instances_may_be_deleted_one_by_one(ledger: Ledger) -> None:
    for part in range(3):
        a_run(ledger, *(found(f"{number:04}") for number in range(part * 700, part * 700 + 700)))
    run = a_run(ledger, found("0000"), found("2099"))
    seen = 0
    for page in ledger.vanished(run, "folder", []):
        ledger.forget(page)
        seen += len(page)
    assert seen == 2098
    assert short(ledger.find(source="folder")) == ["0000", "2099"]


def test_any_prefixes_find_what_starts_with_them(ledger: Ledger) -> None:
    letters = random.Random(7)

    def word(most: int) -> str:
        return "".join(letters.choices("aAb_/ä", k=letters.randint(1, most)))

    known = sorted({word(7) for _ in range(2500)})
    for part in range(3):
        a_run(ledger, *(found(name) for name in known[part::3]))
    run = a_run(ledger, *(found(name) for name in known[::5]))
    left = [name for number, name in enumerate(known) if number % 5]
    for count in (1, 2, 5, 20, 100):
        prefixes = [word(4) for _ in range(count)]
        expected = [name for name in left if name.startswith(tuple(prefixes))]
        assert gone(ledger, run, *prefixes) == expected


@pytest.mark.slow
@pytest.mark.alone
def test_a_large_ledger_is_as_quick_as_a_small_one(database: Database, ledger: Ledger) -> None:
    part = 10_000

    def write(name: str) -> dict[str, float]:
        """The seconds that it takes."""
        # As files come: by folder, in order.
        items = [
            found(f"archive/{name}/{number // 500:03}/{number:06}", 500_000, 1_700_000_000 + number)
            for number in range(part)
        ]
        run = ledger.begin_run("folder", AT)
        started = time.perf_counter()
        ledger.discover(run, "folder", items)
        discovered = time.perf_counter()
        outcomes = [
            Done(
                item.locator,
                f"{number:064x}",
                ((f"{name}-{number:034}", 0),),
                f"1.2.{number // 100}",
                f"1.2.{number // 50}",
                f"1.2.{len(name)}.{number}",
                f"{number // 200:032x}",
            )
            for number, item in enumerate(items)
        ]
        handed_in = time.perf_counter()
        for first in range(0, part, 1000):
            ledger.finish(run, outcomes[first : first + 1000], AT)
        ended = time.perf_counter()
        return {"discover": discovered - started, "finish": ended - handed_in}

    def multiply_first(times: int, name: str) -> None:
        of_first = "locator LIKE '%/first/%'"
        another = {"locator": f"replace(locator, '/first/', '/{name}-' || x || '/')"}
        sop = {"sop": f"replace(sop, '1.2.5.', '1.2.{len(name)}' || x || '.')"}
        multiply(database, instances, times, another | sop, of_first)
        identity = {"id": f"'{name}-' || x || substr(id, 6)"}
        multiply(database, points, times, another | identity, of_first)
        analyse(database)

    write("first")
    multiply_first(5, "more")
    small = write("small")
    multiply_first(15, "much")
    large = write("large")
    for stage in small:
        before, after = small[stage], large[stage]
        print(f"{stage}: {part / before:,.0f} rows/s, then {part / after:,.0f} rows/s")
        assert after / before < 2
    assert ledger.counts() == {"done": 21 * part}
