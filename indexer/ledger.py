"""The ledger: what was seen, done, refused and why; one row an instance, in SQLite."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError

from engine.errors import LedgerError, RefusalReason
from indexer.ledger_schema import (
    Done,
    Owner,
    Pending,
    Refused,
    State,
    done_row,
    finish_statement,
    instances,
    metadata,
    points,
    refused_row,
    runs,
)
from indexer.sources.base import Discovered

__all__ = ["Done", "Ledger", "Owner", "Pending", "Refused", "State"]

_AT_ONCE = 400
"""Rows a statement: SQLite takes 32,766 variables, and we send some for each row."""

_TRANSIENT = (
    RefusalReason.UNREADABLE,
    RefusalReason.TOO_SLOW,
    RefusalReason.READER_DIED,
    RefusalReason.CONFLICTING_UID,
)
"""Refusals that may go away although the file stays as it is: tried again on every run."""

_T = TypeVar("_T")


class Ledger:
    """The record of an archive in one SQLite file, made when it does not exist.

    Methods that write are each one transaction: a kill leaves all of it or nothing.

    Raises:
        LedgerError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"{path.parent} cannot be made ({error.strerror}); name another --data-dir"
            ) from None
        self._engine: Engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _configure)
        with self._begin() as connection:
            metadata.create_all(connection)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        """A connection in a transaction; database errors become LedgerError."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise LedgerError(
                f"the ledger {self._path} failed: {cause}; check the disk and its permissions"
            ) from error

    def begin_run(self) -> int:
        """A number for a new run."""
        with self._begin() as connection:
            result = connection.execute(runs.insert().values())
            (run,) = result.inserted_primary_key or (0,)
            return int(run)

    def discover(
        self, run: int, found: Iterable[Discovered], *, retry_refused: bool = False
    ) -> int:
        """Notes what a source has; returns how many instances that were.

        An instance becomes pending when it is new, when its size, stamp or label changed,
        when it was pending before, or when it was refused for a reason that may pass
        (for any reason with ``retry_refused``).
        """
        count = 0
        for chunk in _chunks(found):
            with self._begin() as connection:
                self._discover(connection, run, chunk, retry_refused)
            count += len(chunk)
        return count

    def _discover(
        self, connection: Connection, run: int, chunk: list[Discovered], retry: bool
    ) -> None:
        c = instances.c
        rows = connection.execute(
            select(c.locator, c.size, c.modified, c.label, c.state, c.reason).where(
                c.locator.in_([item.locator for item in chunk])
            )
        )
        known = {row.locator: row for row in rows}
        kept = [item.locator for item in chunk if _unchanged(item, known.get(item.locator), retry)]
        fresh = [
            {
                "locator": item.locator,
                "size": item.size,
                "modified": item.modified,
                "label": item.label,
                "state": State.PENDING,
                "seen_in": run,
            }
            for item in chunk
            if item.locator not in set(kept)
        ]
        if kept:
            connection.execute(update(instances).where(c.locator.in_(kept)).values(seen_in=run))
        if fresh:
            statement = insert(instances)
            new = statement.excluded
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[c.locator],
                    set_={
                        "size": new.size,
                        "modified": new.modified,
                        "label": new.label,
                        "state": new.state,
                        "seen_in": new.seen_in,
                        "reason": None,
                        "detail": None,
                    },
                ),
                fresh,
            )

    def pending_count(self, run: int) -> int:
        """How many instances of a run wait to be read."""
        c = instances.c
        with self._begin() as connection:
            query = select(func.count()).where(c.seen_in == run, c.state == State.PENDING)
            return int(connection.execute(query).scalar_one())

    def pending(self, run: int) -> Iterator[Pending]:
        """The pending instances of a run, ordered by locator, read page by page."""
        c = instances.c
        last = ""
        while True:
            with self._begin() as connection:
                rows = connection.execute(
                    select(c.locator, c.label)
                    .where(c.seen_in == run, c.state == State.PENDING, c.locator > last)
                    .order_by(c.locator)
                    .limit(_AT_ONCE)
                ).all()
            if not rows:
                return
            for row in rows:
                yield Pending(row.locator, row.label)
            last = rows[-1].locator

    def owners(self, ids: Sequence[str], *, settled: bool = False) -> dict[str, list[Owner]]:
        """For each point id that is in the index, the instances it belongs to.

        Those seen last come first, then by locator. ``settled`` leaves out instances that
        are pending: what they have now may not be what the ledger says.
        """
        owners: dict[str, list[Owner]] = {}
        for chunk in _chunks(ids):
            with self._begin() as connection:
                query = select(points.c.id, points.c.locator, instances.c.content).join(instances)
                query = query.where(points.c.id.in_(chunk)).order_by(
                    instances.c.seen_in.desc(), points.c.locator
                )
                if settled:
                    query = query.where(instances.c.state == State.DONE)
                rows = connection.execute(query)
                for row in rows:
                    owners.setdefault(row.id, []).append(Owner(row.locator, row.content))
        return owners

    def points_of(self, locators: Sequence[str]) -> dict[str, list[str]]:
        """The point ids of each of these instances."""
        found: dict[str, list[str]] = {}
        for chunk in _chunks(locators):
            with self._begin() as connection:
                rows = connection.execute(
                    select(points.c.locator, points.c.id)
                    .where(points.c.locator.in_(chunk))
                    .order_by(points.c.locator, points.c.frame)
                )
                for row in rows:
                    found.setdefault(row.locator, []).append(row.id)
        return found

    def finish(self, run: int, outcomes: Sequence[Done | Refused], at: str) -> None:
        """Records outcomes together. at: UTC timestamp, ISO 8601."""
        with self._begin() as connection:
            for chunk in _chunks(outcomes):
                gone = [outcome.locator for outcome in chunk]
                connection.execute(delete(points).where(points.c.locator.in_(gone)))
            values = [
                done_row(outcome) if isinstance(outcome, Done) else refused_row(outcome)
                for outcome in outcomes
            ]
            if values:
                connection.execute(
                    finish_statement, [{**row, "run": run, "at": at} for row in values]
                )
            rows = [
                {"locator": outcome.locator, "id": point_id, "frame": frame}
                for outcome in outcomes
                if isinstance(outcome, Done)
                for point_id, frame in outcome.points
            ]
            if rows:
                connection.execute(insert(points), rows)

    def run_counts(self, run: int) -> tuple[int, int, dict[str, int]]:
        """Of the instances a run saw: done in it, done before it, refused by reason."""
        c = instances.c
        with self._begin() as connection:
            rows = connection.execute(
                select(c.state, c.reason, c.finished_in == run, func.count())
                .where(c.seen_in == run)
                .group_by(c.state, c.reason, c.finished_in == run)
            ).all()
        indexed = sum(row[3] for row in rows if row[0] == State.DONE and row[2])
        unchanged = sum(row[3] for row in rows if row[0] == State.DONE and not row[2])
        refused: dict[str, int] = {}
        for state, reason, _, count in rows:
            if state == State.REFUSED:
                refused[reason] = refused.get(reason, 0) + count
        return indexed, unchanged, dict(sorted(refused.items()))

    def counts(self) -> dict[str, int]:
        """Instances by state."""
        c = instances.c
        with self._begin() as connection:
            rows = connection.execute(select(c.state, func.count()).group_by(c.state)).all()
        return {row[0]: row[1] for row in rows}

    def refusals(self, limit: int) -> list[Refused]:
        """The first refused instances, ordered by reason and locator."""
        c = instances.c
        with self._begin() as connection:
            rows = connection.execute(
                select(c.locator, c.reason, c.detail)
                .where(c.state == State.REFUSED)
                .order_by(c.reason, c.locator)
                .limit(limit)
            ).all()
        return [Refused(row.locator, RefusalReason(row.reason), row.detail) for row in rows]

    def find(
        self, *, study: str | None = None, patient: str | None = None, sop: str | None = None
    ) -> list[str]:
        """Locators of the instances with these identifiers, ordered."""
        wanted = {"study": study, "patient": patient, "sop": sop}
        query = select(instances.c.locator).order_by(instances.c.locator)
        for name, value in wanted.items():
            if value is not None:
                query = query.where(instances.c[name] == value)
        with self._begin() as connection:
            return list(connection.execute(query).scalars())

    def clear(self) -> None:
        """Forgets every instance, for when the index is gone."""
        with self._begin() as connection:
            connection.execute(delete(points))
            connection.execute(delete(instances))

    def forget(self, locators: Sequence[str]) -> None:
        """Removes the rows of these instances."""
        with self._begin() as connection:
            for chunk in _chunks(locators):
                connection.execute(delete(points).where(points.c.locator.in_(chunk)))
                connection.execute(delete(instances).where(instances.c.locator.in_(chunk)))


def _unchanged(item: Discovered, row: Row[*tuple[Any, ...]] | None, retry: bool) -> bool:
    if row is None or row.state == State.PENDING:
        return False
    if row.state == State.REFUSED and (retry or row.reason in _TRANSIENT):
        return False
    return (row.size, row.modified, row.label) == (item.size, item.modified, item.label)


def _configure(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    chunk: list[_T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
