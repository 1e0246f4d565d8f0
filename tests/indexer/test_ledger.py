"""The ledger remembers what became of each instance, and what has to be done again."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, strategies as st

from engine.errors import LedgerError, RefusalReason
from indexer.ledger import Done, Ledger, Owner, Pending, Refused
from indexer.sources.base import Discovered, file_locator, file_path

AT = "2024-05-01T12:00:00+00:00"
TRANSIENT = {
    RefusalReason.UNREADABLE,
    RefusalReason.TOO_SLOW,
    RefusalReason.READER_DIED,
    RefusalReason.CONFLICTING_UID,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def found(name: str, size: int = 10, modified: int = 1, label: str | None = None) -> Discovered:
    return Discovered(f"file:///{name}", size, modified, label)


def done(name: str, *ids: str, content: str = "c0ffee", **uids: str) -> Done:
    return Done(f"file:///{name}", content, tuple((i, n) for n, i in enumerate(ids)), **uids)


def refused(name: str, reason: RefusalReason, detail: str = "a sentence") -> Refused:
    return Refused(f"file:///{name}", reason, detail)


def names(ledger: Ledger, run: int) -> list[str]:
    return [pending.locator.removeprefix("file:///") for pending in ledger.pending(run)]


def a_run(ledger: Ledger, *items: Discovered, retry_refused: bool = False) -> int:
    run = ledger.begin_run()
    assert ledger.discover(run, items, retry_refused=retry_refused) == len(items)
    return run


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
    run = ledger.begin_run()
    assert ledger.discover(run, reversed(items)) == 1000
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
    later = ledger.begin_run()
    assert ledger.discover(later, items) == 1000
    assert ledger.run_counts(later) == (0, 1000, {})
    ledger.forget(locators[:999])
    assert ledger.counts() == {"done": 1}
    assert ledger.owners(ids) == {
        "p999": [Owner("file:///0999", "c0ffee")],
        "q999": [Owner("file:///0999", "c0ffee")],
    }


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


@pytest.mark.parametrize(
    "content",
    [b"this is no database, but it is longer than a header of one " * 40, b"SQLite format 3\0junk"],
    ids=["text", "cut"],
)
def test_a_damaged_file_is_one_line_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError) as caught:
        Ledger(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "check the disk" in message
    # It was not "repaired" by making a new one over it.
    assert path.read_bytes() == content


def test_damage_in_the_middle_is_told_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        a_run(ledger, *(found(f"{number:04}") for number in range(1000)))
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)
    # Opening may succeed, for the first pages are whole; using it must not.
    with pytest.raises(LedgerError) as caught, Ledger(path) as ledger:
        list(ledger.pending(1))
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match=r"--data-dir"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_reader_sees_whole_transactions_while_another_writes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    batches, size = 40, 25
    items = [found(f"{number:04}") for number in range(batches * size)]
    errors: list[BaseException] = []
    with Ledger(path) as writer, Ledger(path) as reader:
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


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    errors: list[BaseException] = []
    with Ledger(path):

        def write(name: str) -> None:
            try:
                with Ledger(path) as mine:
                    run = mine.begin_run()
                    for number in range(20):
                        mine.discover(run, [found(f"{name}{number}")])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT count(*) FROM instances").fetchone()
    connection.close()
    assert count == 40


def test_what_was_recorded_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.sqlite"
    with Ledger(path) as ledger:
        run = a_run(ledger, found("a"), found("b"))
        ledger.finish(run, [done("a", "p1")], AT)
    with Ledger(path) as ledger:
        assert ledger.counts() == {"done": 1, "pending": 1}
        assert ledger.begin_run() > run
