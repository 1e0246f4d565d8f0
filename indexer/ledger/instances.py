"""The ledger's instances: which were seen, indexed or refused, and why; one row per instance."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from engine.errors import RefusalReason
from indexer.imaging.rendering import VERSION
from indexer.ledger.deletions import without_deleted
from indexer.ledger.runs import Runs
from indexer.ledger.schema import (
    CURABLE,
    Done,
    Owner,
    Pending,
    Prefixes,
    Refused,
    State,
    done_row,
    finish_statement,
    instances,
    is_unchanged,
    jobs,
    manifest as manifest_rows,
    manifest_row,
    manifest_statement,
    points,
    refused_row,
    stale,
)
from indexer.ledger.tenancy import TenantDatabase
from indexer.sources.base import Discovered

__all__ = ["Done", "Ledger", "Owner", "Pending", "Refused", "State"]

_AT_ONCE = 400
"""Rows per statement: SQLite allows 32,766 variables, and each row needs several."""

_T = TypeVar("_T")


class Ledger(Runs):
    """The record of a tenant's instances and their points.

    Each writing method is one transaction, except :meth:`discover` and :meth:`stale`, which use
    one for each page, and :meth:`note`, which is part of its caller's. Rows are locked in the
    order of their locators, so that two writers do not deadlock.

    Args:
        rendering: of this process, with which instances are recorded and compared.

    Raises:
        LedgerError: the database cannot be read or written.
    """

    def __init__(self, database: TenantDatabase, rendering: str = str(VERSION)) -> None:
        super().__init__(database)
        self.rendering = rendering

    def discover(
        self,
        run: int,
        source: str,
        found: Iterable[Discovered],
        *,
        retry_refused: bool = False,
        again: bool = False,
    ) -> int:
        """Records the instances that a source has; returns how many, without those that were
        deleted. See :meth:`note`."""
        count = 0
        for chunk in _chunks(found):
            with self._database.begin() as connection:
                kept = without_deleted(self._database, connection, chunk, again=again)
                self.note(connection, run, source, kept, retry_refused=retry_refused, again=again)
            count += len(kept)
        return count

    def note(
        self,
        connection: Connection,
        run: int,
        source: str,
        items: Sequence[Discovered],
        *,
        retry_refused: bool = False,
        again: bool = False,
    ) -> list[Discovered]:
        """Records discovered instances, within the caller's transaction; returns those pending.

        An instance becomes pending if it is new; if its size, stamp or label has changed; if it
        was pending before; if it was refused for a transient reason; or if another version of the
        reader refused it for a reason that this one may cure. With ``retry_refused`` every refused
        instance becomes pending, and with ``again`` every instance.
        """
        pending: list[Discovered] = []
        for chunk in _chunks({item.locator: item for item in items}.values()):
            pending += self._note(connection, run, source, chunk, retry_refused, again)
        return pending

    def _note(
        self,
        connection: Connection,
        run: int,
        source: str,
        chunk: list[Discovered],
        retry: bool,
        again: bool,
    ) -> list[Discovered]:
        c = instances.c
        rows = connection.execute(
            select(c.locator, c.size, c.modified, c.label, c.state, c.reason, c.rendering)
            .where(self._own(instances), c.locator.in_([item.locator for item in chunk]))
            .order_by(c.locator)
            .with_for_update(key_share=True)
        )
        known = {row.locator: row for row in rows}
        fresh = [
            i
            for i in chunk
            if again
            or not is_unchanged(
                i, known.get(i.locator), retry_refused=retry, rendering=self.rendering
            )
        ]
        kept = {item.locator for item in chunk} - {item.locator for item in fresh}
        if kept:
            connection.execute(
                update(instances)
                .where(self._own(instances), c.locator.in_(sorted(kept)))
                .values(seen_in=run, source=source)
            )
        if fresh:
            statement = self._database.insert(instances)
            names = ("size", "modified", "label", "state", "seen_in", "source")
            replaced = {name: statement.excluded[name] for name in names}
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[c.locator, c.tenant],
                    set_={**replaced, "reason": None, "detail": None},
                ),
                [
                    {
                        "tenant": self.tenant,
                        "locator": item.locator,
                        "size": item.size,
                        "modified": item.modified,
                        "label": item.label,
                        "state": State.PENDING,
                        "seen_in": run,
                        "source": source,
                    }
                    for item in sorted(fresh, key=lambda item: item.locator)
                ],
            )
        return fresh

    def pending_count(self, run: int) -> int:
        """How many instances of a run are pending."""
        c = instances.c
        with self._database.begin(read=True) as connection:
            query = select(func.count()).where(self._own(instances))
            query = query.where(c.seen_in == run, c.state == State.PENDING)
            return int(connection.execute(query).scalar_one())

    def pending(self, run: int) -> Iterator[Pending]:
        """The pending instances of a run, ordered by locator, read page by page."""
        c = instances.c
        last = ""
        while True:
            with self._database.begin(read=True) as connection:
                rows = connection.execute(
                    select(c.locator, c.label)
                    .where(self._own(instances), c.seen_in == run)
                    .where(c.state == State.PENDING, c.locator > last)
                    .order_by(c.locator)
                    .limit(_AT_ONCE)
                ).all()
            if not rows:
                return
            for row in rows:
                yield Pending(row.locator, row.label)
            last = rows[-1].locator

    def owners(self, ids: Sequence[str], *, done_only: bool = False) -> dict[str, list[Owner]]:
        """For each of these point ids that is recorded, the instances that have it.

        The most recently seen come first, then by locator. done_only: leaves out instances that
        are refused or pending; the content of a pending one may not be what the ledger says.
        """
        owners: dict[str, list[Owner]] = {}
        for chunk in _chunks(ids):
            with self._database.begin(read=True) as connection:
                c = instances.c
                of_it = (c.content, c.finished_at, c.pixels, c.partial)
                query = select(points.c.id, points.c.locator, *of_it)
                query = query.join(instances).where(self._own(points), points.c.id.in_(chunk))
                query = query.order_by(c.seen_in.desc(), points.c.locator)
                if done_only:
                    query = query.where(instances.c.state == State.DONE)
                rows = connection.execute(query)
                for row in rows:
                    owner = Owner(
                        row.locator,
                        row.content,
                        row.finished_at or "",
                        pixels=row.pixels,
                        partial=row.partial,
                    )
                    owners.setdefault(row.id, []).append(owner)
        return owners

    def points_of(self, locators: Sequence[str]) -> dict[str, list[str]]:
        """The point ids of each of these instances, by locator, in the order of frames."""
        found: dict[str, list[str]] = {}
        for chunk in _chunks(locators):
            with self._database.begin(read=True) as connection:
                rows = connection.execute(
                    select(points.c.locator, points.c.id)
                    .where(self._own(points), points.c.locator.in_(chunk))
                    .order_by(points.c.locator, points.c.frame)
                )
                for row in rows:
                    found.setdefault(row.locator, []).append(row.id)
        return found

    def settled(self, locators: Sequence[str]) -> dict[str, Discovered]:
        """Which of these instances are in the index or refused, by locator, as they were then."""
        c = instances.c
        found: dict[str, Discovered] = {}
        for chunk in _chunks(locators):
            with self._database.begin(read=True) as connection:
                rows = connection.execute(
                    select(c.locator, c.size, c.modified).where(
                        self._own(instances), c.locator.in_(chunk), c.state != State.PENDING
                    )
                )
                found |= {row.locator: Discovered(*row) for row in rows}
        return found

    def finish(
        self, run: int, outcomes: Sequence[Done | Refused], at: str, *, manifest: bool = False
    ) -> None:
        """Records the outcomes of instances.

        Points that these instances had before and no longer have are recorded as stale, and so
        are those of an instance that was removed from the ledger meanwhile.

        Args:
            at: UTC timestamp, ISO 8601.
            manifest: the run is a job: also record their fates in its manifest.
        """
        with self._database.begin() as connection:
            for chunk in _chunks(sorted(outcomes, key=lambda outcome: outcome.locator)):
                self._finish(connection, run, chunk, at)
                if manifest:
                    rows = [{**manifest_row(outcome), "run": run} for outcome in chunk]
                    connection.execute(manifest_statement, rows)

    def _finish(
        self, connection: Connection, run: int, chunk: list[Done | Refused], at: str
    ) -> None:
        locators = [outcome.locator for outcome in chunk]
        c = instances.c
        there = set(
            connection.execute(
                select(c.locator)
                .where(self._own(instances), c.locator.in_(locators))
                .order_by(c.locator)
                .with_for_update(key_share=True)
            ).scalars()
        )
        theirs = self._own(points) & points.c.locator.in_(locators)
        had = connection.execute(select(points.c.locator, points.c.id).where(theirs)).all()
        if had:
            connection.execute(delete(points).where(theirs))
        connection.execute(
            finish_statement,
            [
                {
                    **(done_row(outcome) if isinstance(outcome, Done) else refused_row(outcome)),
                    "whose": self.tenant,
                    "run": run,
                    "at": at,
                    "rendered_by": self.rendering,
                }
                for outcome in chunk
            ],
        )
        has = [
            {"tenant": self.tenant, "locator": outcome.locator, "id": point_id, "frame": frame}
            for outcome in chunk
            if isinstance(outcome, Done)
            for point_id, frame in outcome.points
        ]
        recorded = [row for row in has if row["locator"] in there]
        if recorded:
            connection.execute(points.insert(), recorded)
        kept = {(row["locator"], row["id"]) for row in recorded}
        gone = {row.id for row in had if (row.locator, row.id) not in kept}
        gone |= {str(row["id"]) for row in has if row["locator"] not in there}
        if gone:
            connection.execute(
                self._database.insert(stale).on_conflict_do_nothing(),
                [{"tenant": self.tenant, "id": point_id} for point_id in sorted(gone)],
            )

    def stale(self, limit: int) -> list[str]:
        """The first ``limit`` stale point ids: points of earlier file contents, which no indexed
        instance has now.

        Those that an instance has again are no longer recorded as stale.
        """
        found: list[str] = []
        last = ""
        while len(found) < limit:
            with self._database.begin() as connection:
                page = connection.execute(
                    select(stale.c.id)
                    .where(self._own(stale), stale.c.id > last)
                    .order_by(stale.c.id)
                    .limit(_AT_ONCE)
                ).scalars()
                ids = list(page)
                if not ids:
                    break
                last = ids[-1]
                owned = set(
                    connection.execute(
                        select(points.c.id)
                        .join(instances)
                        .where(self._own(points), points.c.id.in_(ids))
                        .where(instances.c.state == State.DONE)
                    ).scalars()
                )
                if owned:
                    again = self._own(stale) & stale.c.id.in_(sorted(owned))
                    connection.execute(delete(stale).where(again))
            found += [point_id for point_id in ids if point_id not in owned]
        return found[:limit]

    def forget_stale(self, ids: Sequence[str]) -> None:
        """Removes ids from the record of stale points, after these were deleted from the index."""
        with self._database.begin() as connection:
            for chunk in _chunks(sorted(ids)):
                connection.execute(delete(stale).where(self._own(stale), stale.c.id.in_(chunk)))

    def vanished(self, run: int, source: str, prefixes: Sequence[str]) -> Iterator[list[str]]:
        """Locators of a source that no run has seen since run ``run`` began, page by page.

        The rows of a page may be deleted before the next page is taken.

        Args:
            prefixes: only locators that start with one of these; empty = all.
        """
        starts = Prefixes(prefixes)
        c = instances.c
        before: int | None = run
        while True:
            # Grouped by the run that saw them last, for which the database index is ordered by
            # locator.
            with self._database.begin(read=True) as connection:
                query = select(func.max(c.seen_in)).where(self._own(instances), c.source == source)
                query = query.where(c.seen_in < before)
                before = connection.execute(query).scalar()
            if before is None:
                return
            start: str | None = starts.first
            last = ""
            while start is not None:
                with self._database.begin(read=True) as connection:
                    rows = connection.execute(
                        select(c.locator)
                        .where(self._own(instances), c.source == source, c.seen_in == before)
                        .where(c.locator > last, c.locator >= start)
                        .order_by(c.locator)
                        .limit(_AT_ONCE)
                    ).scalars()
                    locators = list(rows)
                page = [locator for locator in locators if starts.cover(locator)]
                if page:
                    yield page
                if not locators:
                    break
                last = locators[-1]
                start = starts.following(last)

    def freed(self, run: int) -> list[Pending]:
        """Instances that the run refused for their SOP Instance UID, which no indexed instance has
        any more; ordered by locator."""
        c, other = instances.c, instances.alias()
        holder = select(other.c.locator).where(
            self._own(other), other.c.sop == c.sop, other.c.state == State.DONE
        )
        query = select(c.locator, c.label).where(
            self._own(instances),
            c.seen_in == run,
            c.state == State.REFUSED,
            c.reason == RefusalReason.CONFLICTING_UID,
            c.sop.is_not(None),
            ~holder.exists(),
        )
        with self._database.begin(read=True) as connection:
            rows = connection.execute(query.order_by(c.locator)).all()
        return [Pending(row.locator, row.label) for row in rows]

    def count_rendered_otherwise(self) -> int:
        """How many indexed instances another version of the reader rendered, or other settings."""
        c = instances.c
        other = c.rendering.is_(None) | (c.rendering != self.rendering)
        query = select(func.count()).where(self._own(instances), c.state == State.DONE, other)
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def count_curable(self, source: str) -> int:
        """How many instances of a source another version of the reader refused for a reason that
        this one may cure: the next run reads them again."""
        c = instances.c
        other = c.rendering.is_(None) | (c.rendering != self.rendering)
        mine = self._own(instances) & (c.source == source) & (c.state == State.REFUSED)
        query = select(func.count()).where(mine, other, c.reason.in_(CURABLE))
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def count_partial(self, run: int | None = None) -> int:
        """How many indexed instances have frames that are missing or broken. run: of those that
        this run saw; None = of all."""
        query = select(func.count()).where(self._own(instances), *_partial(run))
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def partial(self, limit: int) -> list[tuple[str, str]]:
        """The first indexed instances with frames that are missing or broken, ordered by locator:
        locator, and which frames."""
        c = instances.c
        query = select(c.locator, c.partial).where(self._own(instances), *_partial(None))
        query = query.order_by(c.locator)
        with self._database.begin(read=True) as connection:
            return [(row.locator, row.partial) for row in connection.execute(query.limit(limit))]

    def counts(self) -> dict[str, int]:
        """Instances by state."""
        c = instances.c
        with self._database.begin(read=True) as connection:
            query = select(c.state, func.count()).where(self._own(instances)).group_by(c.state)
            rows = connection.execute(query).all()
        return {row[0]: row[1] for row in rows}

    def refusals(self, limit: int, reason: RefusalReason | None = None) -> list[Refused]:
        """The first refused instances, ordered by reason and locator.

        reason: only those that were refused for it; None = all.
        """
        c = instances.c
        of_reason = [] if reason is None else [c.reason == reason.value]
        with self._database.begin(read=True) as connection:
            rows = connection.execute(
                select(c.locator, c.reason, c.detail, c.sop)
                .where(self._own(instances), c.state == State.REFUSED, *of_reason)
                .order_by(c.reason, c.locator)
                .limit(limit)
            ).all()
        return [
            Refused(row.locator, RefusalReason(row.reason), row.detail, row.sop) for row in rows
        ]

    def count_refused(self) -> dict[str, int]:
        """How many instances are refused, by reason."""
        c = instances.c
        query = select(c.reason, func.count()).where(self._own(instances), c.state == State.REFUSED)
        with self._database.begin(read=True) as connection:
            return {row[0]: row[1] for row in connection.execute(query.group_by(c.reason))}

    def find(self, *, limit: int | None = None, **wanted: str | None) -> list[str]:
        """Locators of the instances with these identifiers (see :meth:`count`), ordered.

        limit: the most to return; None = all.
        """
        query = select(instances.c.locator).where(self._own(instances), *_named(wanted))
        query = query.order_by(instances.c.locator)
        with self._database.begin(read=True) as connection:
            return list(connection.execute(query.limit(limit)).scalars())

    def count(self, **wanted: str | None) -> int:
        """How many instances have these values of study, patient, sop, source; None = any."""
        query = select(func.count()).where(self._own(instances), *_named(wanted))
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def studies(self, **wanted: str | None) -> list[str]:
        """The Study Instance UIDs of the instances with these identifiers, ordered."""
        study = instances.c.study
        query = select(study).where(self._own(instances), study.is_not(None), *_named(wanted))
        with self._database.begin(read=True) as connection:
            return list(connection.execute(query.distinct().order_by(study)).scalars())

    def count_distinct(self, field: str, **wanted: str | None) -> int:
        """How many studies or series these instances are of. field: "study" or "series"."""
        query = select(func.count(instances.c[field].distinct()))
        query = query.where(self._own(instances), *_named(wanted))
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def sources(self) -> list[str]:
        """The sources that instances have, ordered."""
        source = instances.c.source
        query = select(source).where(self._own(instances), source.is_not(None))
        with self._database.begin(read=True) as connection:
            return list(connection.execute(query.distinct().order_by(source)).scalars())

    def clear(self) -> None:
        """Removes all instances and points, after the index was deleted. Instances that a job has
        still to read stay, as pending."""
        c = manifest_rows.c
        own_jobs = select(jobs.c.id).where(self._own(jobs))
        wanted = select(c.locator).where(
            c.locator == instances.c.locator, c.fate.is_(None), c.job.in_(own_jobs)
        )
        own = self._own(instances)
        with self._database.begin() as connection:
            for table in (points, stale):
                connection.execute(delete(table).where(self._own(table)))
            connection.execute(delete(instances).where(own, ~wanted.exists()))
            connection.execute(update(instances).where(own).values(state=State.PENDING))

    def forget(self, locators: Sequence[str]) -> None:
        """Removes the rows of these instances."""
        with self._database.begin() as connection:
            for chunk in _chunks(sorted(locators)):
                for table in (points, instances):
                    theirs = self._own(table) & table.c.locator.in_(chunk)
                    connection.execute(delete(table).where(theirs))


def _partial(run: int | None) -> list[ColumnElement[bool]]:
    c = instances.c
    indexed = [c.state == State.DONE, c.partial.is_not(None)]
    return indexed if run is None else [c.seen_in == run, *indexed]


def _named(wanted: dict[str, str | None]) -> list[ColumnElement[bool]]:
    return [instances.c[name] == value for name, value in wanted.items() if value is not None]


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    chunk: list[_T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
