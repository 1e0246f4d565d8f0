"""Lists the instances that the ledger records as indexed, with their points, for re-encoding."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select, update

from engine.errors import RefusalReason
from indexer.ledger.instances import Ledger, Pending, State
from indexer.ledger.schema import instances, points
from indexer.ledger.tenancy import TenantDatabase

__all__ = ["IndexedInstance", "IndexedInstances"]

_AT_ONCE = 400
_LEFT_OUT = "it could not be read as it was indexed when the index was encoded anew"


@dataclass(frozen=True, slots=True)
class IndexedInstance(Pending):
    """An instance that has points.

    state: "done"; or "refused" if it was left out when the archive was re-encoded.
    content: sha256 hex of its file. at: when it was indexed, UTC, ISO 8601. ids: of its points.
    """

    state: str
    content: str
    at: str
    ids: tuple[str, ...]


class IndexedInstances:
    """The instances of a tenant's ledger that have points.

    Raises:
        LedgerError: the database cannot be read or written.
    """

    def __init__(self, database: TenantDatabase) -> None:
        self._database = database
        self._ledger = Ledger(database)
        self._have_points = and_(
            database.own(instances),
            select(points.c.locator)
            .where(database.own(points), points.c.locator == instances.c.locator)
            .exists(),
        )

    def count(self) -> int:
        query = select(func.count()).select_from(instances).where(self._have_points)
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def sources(self) -> list[str | None]:
        """The names of their sources; None = recorded without a source."""
        query = select(instances.c.source).where(self._have_points).distinct()
        with self._database.begin(read=True) as connection:
            found = set(connection.execute(query).scalars())
        return sorted(found, key=lambda name: name or "")

    def has_addresses(self, source: str | None) -> bool:
        """Whether any of a source's instances lies on a DICOMweb server."""
        query = select(instances.c.locator).where(
            instances.c.source == source, instances.c.locator.like("http%"), self._have_points
        )
        with self._database.begin(read=True) as connection:
            return connection.execute(query.limit(1)).first() is not None

    def pages(self, source: str | None) -> Iterator[list[IndexedInstance]]:
        """The instances of a source, ordered by locator, page by page."""
        c = instances.c
        last = ""
        while True:
            with self._database.begin(read=True) as connection:
                rows = connection.execute(
                    select(c.locator, c.label, c.state, c.content, c.finished_at)
                    .where(c.source == source, c.locator > last, self._have_points)
                    .order_by(c.locator)
                    .limit(_AT_ONCE)
                ).all()
            if not rows:
                return
            ids = self._ledger.points_of([row.locator for row in rows])
            yield [
                IndexedInstance(
                    row.locator,
                    row.label,
                    row.state,
                    row.content or "",
                    row.finished_at or "",
                    tuple(ids.get(row.locator, ())),
                )
                for row in rows
            ]
            last = rows[-1].locator

    def leave_out(self, locators: Sequence[str]) -> None:
        """Records instances as refused, because the new index lacks them; later runs try to read
        them again. Their points stay recorded: the previous index, which is kept, may have them."""
        reason = RefusalReason.UNREADABLE.value
        self._note(locators, State.DONE, State.REFUSED, reason, _LEFT_OUT)

    def take_back(self, locators: Sequence[str]) -> None:
        """Records instances that were left out as done, because the index has them again."""
        self._note(locators, State.REFUSED, State.DONE, None, None)

    def note_renderings(self, renderings: Mapping[str, str | None]) -> None:
        """Records by which version of the reader instances were rendered, by locator."""
        c = instances.c
        with self._database.begin() as connection:
            for rendering in sorted(set(renderings.values()), key=str):
                mine = sorted(name for name, found in renderings.items() if found == rendering)
                connection.execute(
                    update(instances)
                    .where(self._database.own(instances))
                    .where(c.locator.in_(mine), c.rendering.is_distinct_from(rendering))
                    .values(rendering=rendering)
                )

    def _note(
        self, locators: Sequence[str], of: State, to: State, reason: str | None, why: str | None
    ) -> None:
        if not locators:
            return
        c = instances.c
        with self._database.begin() as connection:
            connection.execute(
                update(instances)
                .where(self._database.own(instances))
                .where(c.locator.in_(sorted(locators)), c.state == of)
                .values(state=to, reason=reason, detail=why)
            )
