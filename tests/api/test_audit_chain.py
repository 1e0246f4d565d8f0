"""The chains of the audit log: what tampering shows, what a kill leaves, what is forgotten."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from api.audit.log import COMMANDS, AuditLog
from api.audit.rows import Entry, Head, Who, canonical, digest
from api.audit.schema import AUDIT
from api.audit.verify import heads_document, read_heads, verify
from api.audit.writer import Writer
from api.security.seen import Seen
from engine.errors import AuditError
from indexer.ledger.database import Database
from indexer.ledger.instances import Ledger

WHO = Who("key", "0123456789abcdef", "ward 3", "default")


def entry(number: int = 0) -> Entry:
    return Entry(WHO, "GET /v1/facets", 200, "ok", Seen(results=number), "127.0.0.1")


@dataclass
class Clock:
    """Goes on by a minute each time it is asked."""

    now: datetime = field(default_factory=lambda: datetime(2031, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@dataclass(frozen=True)
class Book:
    """An audit log, and its database, to be tampered with."""

    log: AuditLog
    database: Database
    clock: Clock

    def change(self, statement: str) -> None:
        with self.database.begin() as connection:
            connection.execute(text(statement))

    def write(self, chain: str, count: int) -> Head:
        """Adds rows to a chain; returns its head."""
        for number in range(count):
            rows = self.log.following(chain, self.log.head(chain), [entry(number)])
            self.log.add(rows)
        head = self.log.head(chain)
        assert head is not None
        return head

    def flaws(self, heads: dict[str, Head] | None = None) -> list[tuple[str, int]]:
        """Chain and row of each flaw, in order."""
        return sorted({(one.chain, one.seq) for one in verify(self.log, heads).flaws})


@pytest.fixture
def book(ledger_url: str) -> Iterator[Book]:
    clock = Clock()
    with Database(ledger_url, AUDIT) as database:
        yield Book(AuditLog(database, clock), database, clock)


def test_the_log_shares_a_database_with_the_ledger_and_knows_its_own_version(
    ledger_url: str,
) -> None:
    with Database(ledger_url) as database, Database(ledger_url, AUDIT) as beside:
        Ledger(database.of("default")).begin_run("folder", "2031-01-01T00:00:00+00:00")
        AuditLog(beside).add_command(entry())
    with Database(ledger_url, AUDIT) as again:
        assert AuditLog(again).newest() is not None
        with again.begin() as connection:
            connection.execute(text("UPDATE audit_version SET version_num = 'a9999'"))
    with Database(ledger_url), pytest.raises(Exception, match=r"the audit log .*later version"):
        Database(ledger_url, AUDIT)


def test_a_whole_log_has_no_flaws(book: Book) -> None:
    assert verify(book.log).rows == 0
    for chain in ("a", "b"):
        book.write(chain, 4)
    book.log.add_command(entry())
    book.log.add_command(entry())
    found = verify(book.log, book.log.heads())
    assert (found.rows, found.flaws, set(found.heads)) == (10, [], {"a", "b", COMMANDS})


@pytest.mark.parametrize(
    ("statement", "flaws"),
    [
        ("UPDATE audit SET body = replace(body, 'ward 3', 'ward 4') WHERE seq = 2", [("a", 2)]),
        ("UPDATE audit SET at = '2031' WHERE seq = 2", [("a", 2)]),
        ("UPDATE audit SET body = '[]' WHERE seq = 2", [("a", 2)]),
        ("UPDATE audit SET body = '{' WHERE seq = 2", [("a", 2)]),
        ("DELETE FROM audit WHERE seq = 2", [("a", 2)]),
        ("DELETE FROM audit WHERE seq IN (1, 2, 3)", [("a", 1)]),
        ("DELETE FROM audit WHERE seq = 0", [("a", 0)]),
        # The end is missing, and the whole chain: only what was kept elsewhere tells.
        ("DELETE FROM audit WHERE seq >= 3", []),
        ("DELETE FROM audit", []),
        ("UPDATE audit SET chain = 'z' WHERE chain = 'a'", [("z", n) for n in range(5)]),
    ],
)
def test_tampering_shows(book: Book, statement: str, flaws: list[tuple[str, int]]) -> None:
    head = book.write("a", 5)
    book.change(statement)
    assert book.flaws() == flaws
    # With the head of before, whatever was done to the end shows as well.
    assert book.flaws({"a": head}) != []


@pytest.mark.parametrize(
    "forged",
    [
        {"about": "x"},
        {"about": {"forgotten": 5}},
        {"about": {"forgotten": {"a": [1]}}},
        {"about": {"forgotten": {"a": [1, "x"]}}},
        {"began": 5},
        {"began": {"after": "x"}},
        {"began": {"after": ["a", "b", "c"]}},
    ],
    ids=str,
)
def test_a_row_that_makes_no_sense_shows_whatever_its_hash(book: Book, forged) -> None:
    book.log.add_command(entry())
    book.log.add_command(entry())
    (_, second) = book.log.rows()
    body = canonical({**second.document, **forged})
    with book.database.begin() as connection:
        connection.execute(
            text("UPDATE audit SET body = :body, hash = :hash WHERE seq = 1"),
            {"body": body, "hash": digest(body)},
        )
    assert (COMMANDS, 1) in book.flaws()


def test_rows_that_change_places_show(book: Book) -> None:
    book.write("a", 5)
    for old, new in ((2, 99), (3, 2), (99, 3)):
        book.change(f"UPDATE audit SET seq = {new} WHERE seq = {old}")
    assert set(book.flaws()) >= {("a", 2), ("a", 3)}


def test_a_copied_chain_shows(book: Book) -> None:
    book.write("a", 3)
    book.change("INSERT INTO audit SELECT 'copy', seq, at, body, hash FROM audit")
    assert book.flaws() == [("copy", number) for number in range(3)]


def test_a_forged_row_at_the_end_shows_against_the_head_alone_once_it_is_replaced(
    book: Book,
) -> None:
    head = book.write("a", 3)
    book.change("DELETE FROM audit WHERE seq = 2")
    book.write("a", 1)
    assert book.flaws() == []
    assert book.flaws({"a": head}) == [("a", 2)]


def test_a_chain_that_was_cut_off_shows_by_the_one_that_began_after_it(book: Book) -> None:
    book.write("a", 5)
    book.write("b", 2)
    assert book.flaws() == []
    book.change("DELETE FROM audit WHERE chain = 'a' AND seq = 4")
    assert book.flaws() == [("a", 4)]
    book.change("DELETE FROM audit WHERE chain = 'a'")
    assert book.flaws() == [("a", 4)]


def test_heads_are_written_and_read(book: Book, tmp_path: Path) -> None:
    book.write("a", 2)
    file = tmp_path / "heads.json"
    file.write_text(json.dumps(heads_document(book.log.heads(), book.clock())))
    assert read_heads(file) == book.log.heads()
    for content in ("{}", "[]", "x", '{"heads": {"a": 1}}'):
        file.write_text(content)
        with pytest.raises(AuditError, match="no file of heads"):
            read_heads(file)
    with pytest.raises(AuditError, match="cannot be read"):
        read_heads(tmp_path / "nowhere")


def forgetting(book: Book, before: datetime) -> dict[str, Head]:
    return book.log.forget(before, replace(entry(), action="precedent audit forget"))


def test_what_was_forgotten_leaves_a_log_that_is_whole(book: Book) -> None:
    book.write("a", 4)
    middle = book.clock.now
    book.log.add_command(entry())
    old = book.log.heads()
    book.write("a", 2)
    book.write("b", 2)
    gone = forgetting(book, middle)
    assert gone == {"a": Head("a", 2, gone["a"].hash)}
    found = verify(book.log, old)
    assert found.flaws == []
    assert [(one.who, one.before[:10]) for one in found.forgotten] == [("ward 3", "2031-01-01")]
    assert book.log.hash_of("a", 2) is None
    assert book.log.hash_of("a", 3) is not None
    # What comes after it is guarded as before.
    book.change("DELETE FROM audit WHERE chain = 'a' AND seq = 3")
    assert book.flaws() == [("a", 3)]


def test_all_may_be_forgotten_again_and_again(book: Book) -> None:
    heads = {}
    for _ in range(3):
        book.write("a", 3)
        heads |= book.log.heads()
        forgetting(book, book.clock.now + timedelta(days=1))
        found = verify(book.log, heads)
        assert (found.rows, found.flaws) == (1, [])
    # A writer that is still at work goes on where it was.
    rows = book.log.following("a", heads["a"], [entry()])
    book.log.add(rows)
    assert book.flaws() == []
    assert rows[0].seq == heads["a"].seq + 1


def test_a_beginning_that_was_removed_by_hand_is_not_taken_for_forgotten(book: Book) -> None:
    book.write("a", 6)
    forgetting(book, datetime(2031, 1, 1, 0, 3, tzinfo=UTC))
    assert book.flaws() == []
    book.change("DELETE FROM audit WHERE chain = 'a' AND seq <= 3")
    assert book.flaws() == [("a", 2)]


def test_a_kill_while_rows_are_removed_leaves_a_whole_log(book: Book, monkeypatch) -> None:
    book.write("a", 6)
    monkeypatch.setattr("api.audit.log._PAGE", 2)
    removed = []

    def kill(log: AuditLog, chain: str, last: int, real=AuditLog._remove) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(chain)
        real(log, chain, 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AuditLog, "_remove", kill)
        with pytest.raises(KeyboardInterrupt):
            forgetting(book, datetime(2031, 1, 1, 0, 5, tzinfo=UTC))
    assert book.log.hash_of("a", 1) is None
    assert book.log.hash_of("a", 2) is not None
    assert book.flaws() == []
    forgetting(book, datetime(2031, 1, 1, 0, 5, tzinfo=UTC))
    assert book.log.hash_of("a", 3) is None
    assert book.flaws() == []


def test_rows_that_wait_share_a_commit(ledger_url: str) -> None:
    with Writer(lambda: AuditLog(Database(ledger_url, AUDIT))) as writer:
        start = threading.Barrier(32)

        def ask(number: int) -> None:
            start.wait()
            for _ in range(10):
                writer.write(entry(number)).result(60)

        threads = [threading.Thread(target=ask, args=[number]) for number in range(32)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert writer.commits < 160
        head = writer.head
    with Database(ledger_url, AUDIT) as database:
        found = verify(AuditLog(database))
    assert (found.rows, found.flaws) == (320, [])
    assert head is not None
    assert found.heads == {head.chain: head}


def test_nothing_is_written_once_the_writer_is_closed(book: Book) -> None:
    writer = Writer(lambda: book.log)
    writer.write(entry()).result(60)
    waiting = [writer.write(entry()) for _ in range(100)]
    writer.close()
    assert all(one.result(0) is None for one in waiting)
    with pytest.raises(AuditError, match="closed"):
        writer.write(entry()).result(60)


@dataclass
class Faulty:
    """Stands before a log; ``failing`` says what its next addition does."""

    log: AuditLog
    failing: str = ""

    def __getattr__(self, name: str):
        return getattr(self.log, name)

    def add(self, rows) -> None:
        failing, self.failing = self.failing, ""
        if failing == "before":
            raise AuditError("gone")
        self.log.add(rows)
        if failing == "after":
            raise AuditError("gone while it answered")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failure_leaves_the_chain_whole(book: Book, moment: str) -> None:
    faulty = Faulty(book.log)
    writer = Writer(lambda: faulty)
    writer.write(entry()).result(60)
    faulty.failing = moment
    with pytest.raises(AuditError):
        writer.write(entry()).result(60)
    writer.write(entry()).result(60)
    found = verify(book.log)
    assert found.flaws == []
    assert (found.rows, len(found.heads)) == (2 if moment == "before" else 3, 1)


def test_a_writer_whose_rows_are_gone_after_a_failure_does_not_hide_it(book: Book) -> None:
    faulty = Faulty(book.log)
    writer = Writer(lambda: faulty)
    for _ in range(4):
        writer.write(entry()).result(60)
    assert writer.head is not None
    chain = writer.head.chain
    book.change("DELETE FROM audit WHERE seq >= 2")
    faulty.failing = "before"
    with pytest.raises(AuditError):
        writer.write(entry()).result(60)
    writer.write(entry()).result(60)
    assert book.flaws() == [(chain, 3)]


WRITING = """
import sys
from api.audit.log import AuditLog
from api.audit.rows import Entry, Who
from api.audit.schema import AUDIT
from api.audit.writer import Writer
from indexer.ledger.database import Database
with Writer(lambda: AuditLog(Database(sys.argv[1], AUDIT))) as writer:
    while True:
        for one in [writer.write(Entry(Who("open"), "GET /", 200, "ok")) for _ in range(20)]:
            one.result()
        print(writer.head.chain, writer.head.seq, writer.head.hash, flush=True)
"""


def test_processes_that_write_at_once_and_die_leave_whole_chains(ledger_url: str) -> None:
    with Database(ledger_url, AUDIT) as database:
        command = [sys.executable, "-c", WRITING, ledger_url]
        root = Path(__file__).parents[2]
        writers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
        ]
        lines = []
        for one in writers:
            assert one.stdout is not None
            lines.append([one.stdout.readline() for _ in range(3)])
        writers[0].kill()
        last = writers[0].communicate()[0].splitlines()
        # The other one goes on.
        assert writers[1].stdout is not None
        for _ in range(3):
            lines[1].append(writers[1].stdout.readline())
        os.kill(writers[1].pid, signal.SIGKILL)
        rest = writers[1].communicate()[0].splitlines()
        # What was answered before the kill is there, to the last row.
        told = [[*lines[0], *last], [*lines[1], *rest]]
        heads = {}
        for one in told:
            whole = [
                words for line in one if len(words := line.split()) == 3 and len(words[2]) == 64
            ]
            chain, seq, sha256 = whole[-1]
            heads[chain] = Head(chain, int(seq), sha256)
        found = verify(AuditLog(database), heads)
        assert found.flaws == []
        assert set(found.heads) == set(heads)


def test_commands_that_run_at_once_share_one_chain(ledger_url: str) -> None:
    def command() -> None:
        with Database(ledger_url, AUDIT) as database:
            for _ in range(10):
                AuditLog(database).add_command(entry())

    running = [threading.Thread(target=command) for _ in range(4)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    with Database(ledger_url, AUDIT) as database:
        found = verify(AuditLog(database))
    assert (found.rows, found.flaws) == (40, [])
    assert set(found.heads) == {COMMANDS}
