"""What the ledger knows of instances that are to be erased, beside their own rows."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from engine.errors import JobError
from indexer.ledger.database import Database
from indexer.ledger.schema import State, Text, instances, jobs, manifest, metadata, points, tasks
from indexer.ledger.tenancy import TenantDatabase

__all__ = ["LedgerTraces", "has_text", "is_held"]

_AT_ONCE = 400
_UID = re.compile(r"\d+(?:\.\d+)+")
_ERASED = "erased"
_GOING_ON = ("running", "paused")
_KNOWN = {
    "patient": instances.c.patient,
    "study": instances.c.study,
    "series": instances.c.series,
    "sop": instances.c.sop,
    "content": instances.c.content,
    "pixels": instances.c.pixels,
    "locator": instances.c.locator,
    "id": points.c.id,
}
"""The columns that hold each kind of what an instance is known by."""


class LedgerTraces:
    """What a tenant's ledger has of instances.

    Raises:
        LedgerError: the database cannot be read or written.
    """

    def __init__(self, database: TenantDatabase) -> None:
        self._database = database

    def known_by(self, locators: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What each of these instances is known by, without what is not recorded."""
        c = instances.c
        query = select(c.locator, c.patient, c.study, c.series, c.sop, c.content, c.pixels)
        for some in _pages(locators):
            own = self._database.own(instances) & c.locator.in_(some)
            with self._database.begin(read=True) as connection:
                rows = connection.execute(query.where(own)).all()
            for row in rows:
                yield {name: value for name, value in row._mapping.items() if value is not None}

    def before(self, at: str, source: str | None) -> Iterator[list[str]]:
        """Locators of the instances that were done with before a time (UTC, ISO 8601), in order,
        some at a time. Those of a page may be removed before the next is asked for.

        source: only those that came from it; None = all.
        """
        c, last = instances.c, ""
        while True:
            query = select(c.locator).where(
                self._database.own(instances), c.finished_at < at, c.locator > last
            )
            query = query.where(c.state != State.PENDING)
            if source is not None:
                query = query.where(c.source == source)
            with self._database.begin(read=True) as connection:
                page = list(connection.execute(query.order_by(c.locator).limit(_AT_ONCE)).scalars())
            if not page:
                return
            yield page
            last = page[-1]

    def with_sop(self, sops: Collection[str]) -> list[str]:
        """Locators of all instances with these SOP Instance UIDs, also of refused ones."""
        c, found = instances.c, list[str]()
        for some in _pages(sorted(sops)):
            own = self._database.own(instances) & c.sop.in_(some)
            with self._database.begin(read=True) as connection:
                found += connection.execute(select(c.locator).where(own)).scalars()
        return found

    def check_jobs(self, uids: Collection[str]) -> None:
        """Raises JobError: a job that has not ended is told to index one of these studies."""
        own = self._database.own(jobs) & jobs.c.state.in_(_GOING_ON)
        query = select(jobs.c.id, jobs.c.spec).where(own, jobs.c.kind == "index")
        with self._database.begin(read=True) as connection:
            for row in connection.execute(query):
                if _named(row.spec, uids):
                    raise JobError(
                        f"job {row.id} still indexes what is to be erased; wait for its end, or "
                        f"end it with `precedent jobs cancel {row.id}`"
                    )

    def forget_mentions(self, locators: Sequence[str], uids: Collection[str]) -> int:
        """Removes what jobs noted of these instances, and these UIDs from what is said of others;
        returns how many rows were changed."""
        count = 0
        own_jobs = select(jobs.c.id).where(self._database.own(jobs))
        with self._database.begin() as connection:
            for some in _pages(sorted(locators)):
                theirs = manifest.c.job.in_(own_jobs) & manifest.c.locator.in_(some)
                count += connection.execute(delete(manifest).where(theirs)).rowcount
            if not uids:
                return count
            own_tasks = tasks.c.job.in_(own_jobs)
            own_rows = manifest.c.job.in_(own_jobs)
            of_job, of_task = [jobs.c.id], [tasks.c.job, tasks.c.number]
            of_row = [manifest.c.job, manifest.c.locator]
            of_instance = [instances.c.locator, instances.c.tenant]
            for column, own, key in (
                (jobs.c.spec, self._database.own(jobs), of_job),
                (jobs.c.note, self._database.own(jobs), of_job),
                (tasks.c.error, own_tasks, of_task),
                (manifest.c.detail, own_rows, of_row),
                (instances.c.detail, self._database.own(instances), of_instance),
            ):
                count += _reworded(connection, column, own, key, uids)
        return count

    def counts(self, locators: Sequence[str]) -> dict[str, int]:
        """How many rows these instances have, by table."""
        found = dict.fromkeys(("instances", "points", "manifest"), 0)
        own_jobs = select(jobs.c.id).where(self._database.own(jobs))
        count = select(func.count())
        with self._database.begin(read=True) as connection:
            for some in _pages(locators):
                for table in (instances, points):
                    theirs = self._database.own(table) & table.c.locator.in_(some)
                    query = count.select_from(table).where(theirs)
                    found[table.name] += int(connection.execute(query).scalar_one())
                theirs = manifest.c.job.in_(own_jobs) & manifest.c.locator.in_(some)
                query = count.select_from(manifest).where(theirs)
                found["manifest"] += int(connection.execute(query).scalar_one())
        return found


def has_text(database: Database, value: str) -> bool:
    """Whether any row of any tenant has this text, as a value or within one as a word of it: a UID
    that is the beginning of a longer one is not in it."""
    word = re.compile(rf"(?<![0-9.]){re.escape(value)}(?![0-9]|\.[0-9])")
    with database.begin(read=True) as connection:
        for table in metadata.sorted_tables:
            columns = [one for one in table.c if isinstance(one.type, Text)]
            holding = or_(*(one.contains(value, autoescape=True) for one in columns))
            for row in connection.execute(select(*columns).where(holding)):
                if any(one is not None and word.search(one) for one in row):
                    return True
    return False


def is_held(database: Database, kind: str, value: str) -> bool:
    """Whether an instance of any tenant is known by this. kind: "study", "sop", "id", …"""
    column = _KNOWN[kind]
    with database.begin(read=True) as connection:
        return (
            connection.execute(select(column).where(column == value).limit(1)).first() is not None
        )


def _named(text: str | None, uids: Collection[str]) -> list[str]:
    return [one for one in _UID.findall(text or "") if one in uids]


def _reworded(
    connection: Connection,
    column: Any,
    own: ColumnElement[bool],
    key: Sequence[Any],
    uids: Collection[str],
) -> int:
    """Replaces the UIDs in a column of text; returns how many rows had any."""
    found = []
    for row in connection.execute(select(column, *key).where(own, column.is_not(None))):
        text = _UID.sub(lambda one: _ERASED if one[0] in uids else one[0], row[0])
        if text != row[0]:
            found.append((text, row[1:]))
    for text, values in found:
        these = [one == value for one, value in zip(key, values, strict=True)]
        connection.execute(update(column.table).where(own, *these).values({column.name: text}))
    return len(found)


def _pages(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
