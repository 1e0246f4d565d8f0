"""What the ledger says of an archive as a whole: refusals by reason, images by day."""

from collections.abc import Iterator

import pytest

from engine.errors import RefusalReason
from indexer.ledger.database import Database
from indexer.ledger.instances import Done, Ledger, Refused
from indexer.ledger.tallies import images_by_day, refused_by_reason
from indexer.sources.base import Discovered

MONDAY, TUESDAY = "2026-11-23T23:59:59+00:00", "2026-11-24T00:00:00+00:00"


@pytest.fixture
def database(made_ledger_url: str) -> Iterator[Database]:
    """SQLite, then PostgreSQL."""
    with Database(made_ledger_url) as opened:
        yield opened


def record(database: Database, tenant: str, outcomes: list[Done | Refused], at: str) -> None:
    ledger = Ledger(database.of(tenant))
    run = ledger.begin_run("folder", at)
    found = [Discovered(one.locator, 10, 1, None) for one in outcomes]
    ledger.discover(run, "folder", found, again=True)
    ledger.finish(run, outcomes, at)


def done(name: str, *ids: str) -> Done:
    return Done(f"file:///{name}", "c0ffee", tuple((one, n) for n, one in enumerate(ids)))


def refused(name: str, reason: RefusalReason, sop: str | None = None) -> Refused:
    return Refused(f"file:///{name}", reason, f"<b>{name}</b>", sop)


def test_refusals_are_counted_by_reason_the_worst_first(database: Database) -> None:
    own = [refused(f"{n}", RefusalReason.DAMAGED) for n in range(5)]
    own += [refused("a", RefusalReason.TOO_SMALL, "1.2"), refused("b", RefusalReason.TOO_SMALL)]
    record(database, "default", [*own, done("c", "p1")], MONDAY)
    record(database, "north", [refused("z", RefusalReason.TRUNCATED)], MONDAY)
    found = refused_by_reason(database.of("default"), 3)
    assert [(one.reason, one.count) for one in found] == [("damaged", 5), ("too-small", 2)]
    assert [one.examples for one in found] == [tuple(own[:3]), tuple(own[5:])]
    none = refused_by_reason(database.of("default"), 0)
    assert [(one.count, one.examples) for one in none] == [(5, ()), (2, ())]
    (theirs,) = refused_by_reason(database.of("north"), 3)
    assert (theirs.reason, theirs.count) == (RefusalReason.TRUNCATED, 1)
    assert refused_by_reason(database.of("nobody"), 3) == []


def test_images_count_once_on_the_day_on_which_they_came(database: Database) -> None:
    record(database, "default", [done("a", "p1", "p2"), done("b", "p3")], MONDAY)
    record(database, "north", [done("a", "n1")], MONDAY)
    # A copy of an image that was there, and a new one.
    record(database, "default", [done("copy of b", "p3"), done("c", "p4")], TUESDAY)
    record(database, "default", [refused("d", RefusalReason.DAMAGED)], TUESDAY)
    assert images_by_day(database.of("default")) == {"2026-11-23": 3, "2026-11-24": 1}
    assert images_by_day(database.of("north")) == {"2026-11-23": 1}
    assert images_by_day(database.of("nobody")) == {}
    # Read again, it is of that day.
    record(database, "default", [done("a", "p1", "p2")], TUESDAY)
    assert images_by_day(database.of("default")) == {"2026-11-23": 1, "2026-11-24": 3}
