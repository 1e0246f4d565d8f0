"""The last task of a job, run after all its chunks have ended: makes the result deterministic.

Several workers index instances in no fixed order. The order matters where several files share
one SOP Instance UID but not their content, or one content but not their label: the first file
decides. Such files are indexed once more in the order of their locators, as a single process
would have done. So the index is the same however the chunks were spread over workers.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy import and_, func, select

from engine.settings import Settings
from indexer.archive import Archive
from indexer.jobs.manifest import Manifest
from indexer.jobs.records import DISCOVERY, Task, TaskState
from indexer.ledger.schema import instances, points, tasks
from indexer.ledger.tenancy import TenantDatabase
from indexer.pipeline.indexing import Indexer
from indexer.pipeline.removal import TooManyVanished, delete_stale_points, remove_vanished

__all__ = ["finish_job"]

_IDS_AT_ONCE = 400


def finish_job(
    task: Task, archive: Archive, indexer: Indexer, database: TenantDatabase, settings: Settings
) -> str | None:
    """Finishes a job: indexes order-dependent instances again, removes vanished instances if the
    job asks for it, deletes stale points, and optimises the index.

    Nothing else may write to the archive meanwhile. Returns what is to be noted of the job: what it
    removed, or why nothing.
    """
    job = task.job
    chunks = Manifest(database, archive.ledger)
    disputed = {
        *chunks.left_open(task),
        *_conflicting(database, job.id),
        *_with_another_label(database, archive, job.id),
    }
    if disputed:
        pending = chunks.reopen(task, disputed)
        indexer.index(job.id, job.spec.open(settings), pending, manifest=True)
    note = None
    if job.options.delete_vanished and job.spec.is_whole:
        note = _remove_vanished(task, archive, database, settings)
        # A dispute may have ended with the instance that vanished.
        if freed := archive.ledger.freed(job.id):
            pending = chunks.reopen(task, {one.locator for one in freed})
            indexer.index(job.id, job.spec.open(settings), pending, manifest=True)
    delete_stale_points(archive.ledger, archive.store, archive.data_dir, archive.thumbnails)
    archive.store.optimise()
    return note


def _remove_vanished(
    task: Task, archive: Archive, database: TenantDatabase, settings: Settings
) -> str:
    job = task.job
    c = tasks.c
    with database.begin(read=True) as connection:
        listed = connection.execute(
            select(c.state).where(c.job == job.id, c.number == DISCOVERY)
        ).scalar_one()
    if listed != TaskState.DONE:
        return "the source was not looked through to its end: nothing was removed"
    scope = job.spec.scope(settings)
    try:
        return str(
            remove_vanished(
                job.id,
                job.spec.source,
                scope,
                archive.ledger,
                archive.delete,
                at_most=job.options.at_most,
            )
        )
    except TooManyVanished as error:
        return str(error)


def _conflicting(database: TenantDatabase, job: int) -> set[str]:
    """Locators of the job's instances that share a SOP Instance UID, but not their picture."""
    c = instances.c
    own = database.own(instances)
    mine = and_(own, c.finished_in == job, c.state == "done")
    with database.begin(read=True) as connection:
        rows = connection.execute(
            select(c.locator, c.sop).where(
                own,
                c.finished_in == job,
                c.reason == "conflicting-uid",
                c.sop.is_not(None),
            )
        ).all()
        refused = {(row.locator, row.sop) for row in rows}
        uids = sorted({sop for _, sop in refused})
        held: set[tuple[str, str]] = set()
        for some in _pages(uids):
            rows = connection.execute(select(c.locator, c.sop).where(mine, c.sop.in_(some))).all()
            held |= {(row.locator, row.sop) for row in rows}
        # Two workers may both have indexed theirs as the first, so that none was refused.
        twice = (
            select(points.c.id)
            .join(instances)
            .where(mine, database.own(points))
            .group_by(points.c.id)
            .having(func.count(func.coalesce(c.pixels, c.content).distinct()) > 1)
        )
        both = set(
            connection.execute(
                select(points.c.locator)
                .join(instances)
                .where(mine, database.own(points), points.c.id.in_(twice))
            ).scalars()
        )
    disputed = {sop for _, sop in held}
    return (
        both
        | {locator for locator, _ in held}
        | {locator for locator, sop in refused if sop in disputed}
    )


def _with_another_label(database: TenantDatabase, archive: Archive, job: int) -> set[str]:
    """Locators of the job's instances that share a point whose label is not that of the first one,
    ordered by locator."""
    c = instances.c
    mine = and_(database.own(instances, points), c.finished_in == job, c.state == "done")
    shared = (
        select(points.c.id)
        .join(instances)
        .where(mine)
        .group_by(points.c.id)
        .having(func.count(func.coalesce(c.label, "").distinct()) > 1)
    )
    with database.begin(read=True) as connection:
        rows = connection.execute(
            select(points.c.id, c.locator, c.label)
            .join(instances)
            .where(mine, points.c.id.in_(shared))
            .order_by(points.c.id, c.locator)
        ).all()
    owners: dict[str, list[tuple[str, str | None]]] = {}
    for row in rows:
        owners.setdefault(row.id, []).append((row.locator, row.label))
    found: set[str] = set()
    for some in _pages(sorted(owners)):
        for point in archive.store.get(some):
            _, label = owners[point.id][0]
            if point.record.labels != (() if label is None else (label,)):
                found |= {locator for locator, _ in owners[point.id]}
    return found


def _pages(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), _IDS_AT_ONCE):
        yield items[start : start + _IDS_AT_ONCE]
