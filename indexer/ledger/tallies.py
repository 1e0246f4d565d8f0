"""Counts a tenant's instances: what was refused and why, and when images were indexed."""

from dataclasses import dataclass

from sqlalchemy import and_, func, select

from engine.errors import RefusalReason
from indexer.ledger.schema import Refused, State, instances, points
from indexer.ledger.tenancy import TenantDatabase

__all__ = ["RefusedFor", "images_by_day", "refused_by_reason"]

_DAY = 10
"""Characters of a time in ISO 8601 that are its day."""


@dataclass(frozen=True, slots=True)
class RefusedFor:
    """The instances that are refused for one reason: how many, and the first of them."""

    reason: RefusalReason
    count: int
    examples: tuple[Refused, ...]


def refused_by_reason(database: TenantDatabase, examples: int) -> list[RefusedFor]:
    """The refused instances by reason, the most frequent one first.

    Args:
        examples: the most that are named of each, ordered by locator.

    Raises:
        LedgerError: the database cannot be read.
    """
    c = instances.c
    numbered = (
        select(
            c.locator,
            c.reason,
            c.detail,
            c.sop,
            func.row_number().over(partition_by=c.reason, order_by=c.locator).label("place"),
            func.count().over(partition_by=c.reason).label("count_of"),
        )
        .where(database.own(instances), c.state == State.REFUSED)
        .subquery()
    )
    found = numbered.c
    query = (
        select(numbered)
        # The first one tells the count, whether or not it is named.
        .where(found.place <= max(1, examples))
        .order_by(found.count_of.desc(), found.reason, found.place)
    )
    with database.begin(read=True) as connection:
        rows = connection.execute(query).all()
    named: dict[str, list[Refused]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.reason] = row.count_of
        one = Refused(row.locator, RefusalReason(row.reason), row.detail or "", row.sop)
        named.setdefault(row.reason, []).append(one)
    return [
        RefusedFor(RefusalReason(reason), count, tuple(named[reason][:examples]))
        for reason, count in counts.items()
    ]


def images_by_day(database: TenantDatabase) -> dict[str | None, int]:
    """How many of the images that are in the index were read for it on each day, in its order.

    Days are UTC, as in "2026-11-30"; None = no time was recorded. An image that several files have
    counts once, on the first of their days. A file that is read again is of that day alone.

    Raises:
        LedgerError: the database cannot be read.
    """
    first = (
        select(func.min(func.substr(instances.c.finished_at, 1, _DAY)).label("day"))
        .select_from(
            points.join(
                instances,
                and_(
                    points.c.locator == instances.c.locator, points.c.tenant == instances.c.tenant
                ),
            )
        )
        .where(database.own(points, instances), instances.c.state == State.DONE)
        .group_by(points.c.id)
        .subquery()
    )
    query = select(first.c.day, func.count()).group_by(first.c.day)
    with database.begin(read=True) as connection:
        rows = connection.execute(query).all()
    found: dict[str | None, int] = {(day or None): int(count) for day, count in rows}
    return dict(sorted(found.items(), key=lambda one: one[0] or ""))
