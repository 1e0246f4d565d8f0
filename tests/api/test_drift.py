"""Which share of a tenant's questions was foreign, as the audit log has it; what is remembered."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from api.audit.drift import Judged, drift
from api.audit.log import AuditLog
from api.audit.rows import Entry, Who
from api.audit.schema import AUDIT
from api.http.remembered import Remembered
from api.http.routes.judging import DriftDocument, QuestionsDocument
from api.portal.advice import about_drift
from api.security.seen import Seen
from engine.errors import QueryError
from engine.evaluation.intervals import wilson
from indexer.ledger.database import Database

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Book:
    log: AuditLog
    clock: Clock
    database: Database

    def write(
        self,
        verdicts: str,
        *,
        days_ago: int = 0,
        tenant: str | None = "default",
        outcome: str = "ok",
    ) -> None:
        """A row for each letter: known, foreign, unfamiliar, or none."""
        named = {"k": "known", "f": "foreign", "u": "unfamiliar", "-": None}
        self.clock.now = NOON - timedelta(days=days_ago)
        who = Who("key", "0123456789abcdef", "north", tenant)
        entries = []
        for one in verdicts:
            # Names that look like what is looked for.
            about = {"destination": "default", "verdict": "foreign"}
            seen = Seen(verdict=named[one])
            entries.append(Entry(who, "POST /v1/search", 200, outcome, seen, about=about))
        self.log.add(self.log.following("a" * 16, self.log.head("a" * 16), entries))


@pytest.fixture
def book(ledger_url: str) -> Iterator[Book]:
    clock = Clock()
    with Database(ledger_url, AUDIT) as database, AuditLog(database, clock) as log:
        yield Book(log, clock, database)


def told(book: Book, tenant: str = "default", **options: float) -> tuple[list[Judged], Judged, str]:
    asked = {"days": 30, "latest": 100, **options}
    found = drift(book.log, tenant, now=NOON, **asked)  # type: ignore[arg-type]
    return list(found.days), found.latest, found.since


def test_questions_are_counted_by_day_for_each_tenant_apart(book: Book) -> None:
    book.write("kkfk-", days_ago=40)
    book.write("kkf--u", days_ago=3)
    book.write("ffff", days_ago=3, tenant="north")
    book.write("ff", days_ago=2, tenant=None)
    book.write("kkkk-")
    book.write("fff", outcome="failed")
    days, latest, since = told(book)
    assert days == [Judged(4, 1, 1, "2026-11-27"), Judged(4, 0, 0, "2026-11-30")]
    assert (latest, since) == (Judged(8, 1, 1), "2026-11-01")
    # The last ones of all, not the last day.
    assert told(book, latest=5)[1] == Judged(5, 0, 1)
    assert told(book, "north")[0] == [Judged(4, 4, 0, "2026-11-27")]
    assert told(book, "nobody")[:2] == ([], Judged(0, 0))
    assert told(book, days=3)[0] == [Judged(4, 0, 0, "2026-11-30")]


def test_a_large_log_is_not_read_whole(book: Book) -> None:
    for days_ago in (2, 1, 0):
        book.write("kkk", days_ago=days_ago)
    assert told(book, most=5)[0] == [Judged(3, 0, 0, "2026-11-29"), Judged(3, 0, 0, "2026-11-30")]
    days, _, since = told(book, seconds=0)
    assert (days, since) == ([Judged(3, 0, 0, "2026-11-30")], "2026-11-30")


def test_a_row_that_somebody_changed_does_not_count(book: Book) -> None:
    book.write("kf")
    with book.database.begin() as connection:
        changed = '{"verdict":"foreign","who":"default"}'
        connection.execute(text("UPDATE audit SET body = :b WHERE seq = 1"), {"b": changed})
    assert told(book)[1] == Judged(1, 0)


@pytest.mark.parametrize("wrong", [{"days": 0}, {"days": 91}, {"latest": 0}, {"latest": 1001}])
def test_what_is_out_of_range_is_refused(book: Book, wrong: dict[str, int]) -> None:
    with pytest.raises(QueryError, match="ask for 1 to"):
        told(book, **wrong)


@pytest.mark.parametrize(
    ("foreign", "unfamiliar", "judged", "state"),
    [
        (0, 0, 0, "none"),
        (9, 0, 29, "few"),
        (0, 0, 200, "expected"),
        (6, 4, 200, "expected"),
        (10, 0, 200, "expected"),
        (2, 28, 200, "unfamiliar"),
        (14, 0, 200, "drifted"),
        (200, 0, 200, "drifted"),
    ],
)
def test_more_than_chance_allows_is_told(
    foreign: int, unfamiliar: int, judged: int, state: str
) -> None:
    low, high = wilson(foreign, judged)
    latest = QuestionsDocument(
        judged=judged,
        foreign=foreign,
        unfamiliar=unfamiliar,
        share=foreign / judged if judged else None,
        low=low,
        high=high,
    )
    found = DriftDocument(
        recorded=True, alpha=0.03, level=0.05, days=[], latest=latest, since="2026-11-01"
    )
    assert about_drift(found).state == state
    # A gate that calls nothing unfamiliar.
    plain = about_drift(found.model_copy(update={"level": None})).state
    assert plain == ("expected" if state == "unfamiliar" else state)
    for without in ({"recorded": False}, {"alpha": None}):
        assert about_drift(found.model_copy(update=without)).state == "none"


def test_what_is_remembered_is_of_one_tenant_one_state_and_not_old() -> None:
    now = [0.0]
    known = Remembered(lambda: now[0], most=3)
    asked = []

    def ask(tenant: str, name: str = "map", stamp: int = 0, seconds: float = 10) -> str:
        def compute() -> str:
            asked.append(tenant)
            return f"{tenant} {name} {stamp}"

        return known.of(tenant, name, compute, stamp=stamp, seconds=seconds)

    assert [ask("a"), ask("b"), ask("a"), ask("b")] == ["a map 0", "b map 0"] * 2
    assert asked == ["a", "b"]
    assert ask("a", stamp=1) == "a map 1"
    now[0] = 9
    ask("a", stamp=1)
    assert len(asked) == 3
    now[0] = 10
    ask("a", stamp=1)
    assert len(asked) == 4
    for name in ("x", "y", "z"):
        ask("b", name)
    before = len(asked)
    ask("a", stamp=1)
    assert len(asked) == before + 1
