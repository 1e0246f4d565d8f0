"""What became of one instance, for whoever handed it in."""

from dataclasses import dataclass

from sqlalchemy import select

from engine.errors import ImageRefused, RefusalReason
from indexer.ledger.instances import State
from indexer.ledger.schema import instances, points
from indexer.ledger.tenancy import TenantDatabase

__all__ = ["Outcome", "outcome_of"]

_NO_PATHS = {
    RefusalReason.CONFLICTING_UID: "an instance with its SOP Instance UID is in the index, and "
    "shows another picture; delete that one first, if this one is right",
}
"""What is said instead of a detail that names files of the archive."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An instance in the index. ids: of its points. duplicate: its picture was there already, from
    another file. missing_frames: which could not be read, for people; None = none."""

    ids: tuple[str, ...]
    study: str | None
    series: str | None
    sop: str | None
    missing_frames: str | None
    duplicate: bool


def outcome_of(database: TenantDatabase, locator: str) -> Outcome | None:
    """What the ledger records of the instance; None = it is not there, or not read yet.

    Raises:
        ImageRefused: it was refused. LedgerError: the database cannot be read.
    """
    c = instances.c
    with database.begin(read=True) as connection:
        row = connection.execute(
            select(c.state, c.reason, c.detail, c.study, c.series, c.sop, c.partial).where(
                database.own(instances), c.locator == locator
            )
        ).one_or_none()
        mine = (
            select(points.c.id)
            .where(database.own(points), points.c.locator == locator)
            .order_by(points.c.id)
        )
        ids = tuple(connection.execute(mine).scalars())
        shared = database.own(points) & points.c.id.in_(ids[:1]) & (points.c.locator != locator)
        others = connection.execute(select(points.c.id).where(shared).limit(1)).first()
    if row is None or row.state == State.PENDING:
        return None
    if row.state == State.REFUSED:
        reason = RefusalReason(row.reason)
        raise ImageRefused(reason, _NO_PATHS.get(reason, row.detail or ""))
    return Outcome(ids, row.study, row.series, row.sop, row.partial, others is not None)
