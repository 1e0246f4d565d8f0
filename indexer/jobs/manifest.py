"""The manifest of a job: the instances that it has to read, each with its chunk and its fate."""

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from indexer.jobs.records import DISCOVERY, Task, TaskKind, TaskState
from indexer.ledger.deletions import without_deleted
from indexer.ledger.instances import Ledger, Pending
from indexer.ledger.schema import instances, jobs, manifest, tasks
from indexer.ledger.tenancy import TenantDatabase
from indexer.sources.base import Discovered

__all__ = ["Manifest"]

_LOCATORS_AT_ONCE = 400


class Manifest:
    """Builds and reads the manifests of a tenant's jobs. A chunk is the instances of one task.

    Args:
        ledger: of the same tenant.

    Raises:
        LedgerError: the database cannot be read or written.
    """

    def __init__(self, database: TenantDatabase, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    def begin(self, task: Task) -> None:
        """Resets the counts of an earlier attempt, before discovery starts."""
        with self._database.begin() as connection:
            connection.execute(update(tasks).where(_discovery(task)).values(total=0, unchanged=0))

    def add(self, task: Task, items: Sequence[Discovered]) -> list[Discovered]:
        """Records discovered instances in the ledger; returns those that have to be read and are
        in no chunk yet."""
        job = task.job
        with self._database.begin() as connection:
            listed: set[str] = set()
            for start in range(0, len(items), _LOCATORS_AT_ONCE):
                some = [item.locator for item in items[start : start + _LOCATORS_AT_ONCE]]
                listed |= set(
                    connection.execute(
                        select(manifest.c.locator).where(
                            manifest.c.job == job.id, manifest.c.locator.in_(some)
                        )
                    ).scalars()
                )
            new = without_deleted(
                self._database,
                connection,
                [item for item in items if item.locator not in listed],
                again=job.options.again,
            )
            pending = self._ledger.note(
                connection,
                job.id,
                job.spec.source,
                new,
                retry_refused=job.options.retry_refused,
                again=job.options.again,
            )
            connection.execute(
                update(tasks)
                .where(_discovery(task))
                .values(
                    total=tasks.c.total + len(items),
                    unchanged=tasks.c.unchanged + len(new) - len(pending),
                )
            )
        return pending

    def add_chunk(self, task: Task, items: Sequence[Discovered]) -> None:
        """Adds a task that indexes these instances."""
        job = task.job.id
        with self._database.begin() as connection:
            number = self._next_number(connection, job)
            connection.execute(
                manifest.insert(),
                [
                    {"job": job, "locator": item.locator, "chunk": number, "label": item.label}
                    for item in items
                ],
            )
            _add_chunk(connection, job, number, total=len(items))

    def halve(self, task: Task, pending: Sequence[Pending]) -> list[Pending]:
        """Cuts a chunk in two whose workers died of an instance in it; returns the first half of
        ``pending``, which stays in the chunk. The second one becomes a task of its own.

        Both count as begun once, so that the death of another worker cuts them again.
        """
        middle = len(pending) // 2
        moved = [one.locator for one in pending[middle:]]
        job = task.job.id
        begun = {"begun": 1, "attempts": 0}
        with self._database.begin() as connection:
            number = self._next_number(connection, job)
            for start in range(0, len(moved), _LOCATORS_AT_ONCE):
                some = moved[start : start + _LOCATORS_AT_ONCE]
                connection.execute(
                    update(manifest)
                    .where(manifest.c.job == job, manifest.c.locator.in_(some))
                    .values(chunk=number)
                )
            connection.execute(
                update(tasks)
                .where(tasks.c.job == job, tasks.c.number == task.number)
                .values(total=tasks.c.total - len(moved), **begun)
            )
            _add_chunk(connection, job, number, total=len(moved), **begun)
        return list(pending[:middle])

    def pending(self, task: Task) -> list[Pending]:
        """The instances of a chunk that are still to be read, ordered by locator."""
        c = manifest.c
        with self._database.begin(read=True) as connection:
            rows = connection.execute(
                select(c.locator, c.label)
                .where(c.job == task.job.id, c.chunk == task.number, c.fate.is_(None))
                .order_by(c.locator)
            ).all()
        return [Pending(row.locator, row.label) for row in rows]

    def left_open(self, task: Task) -> list[str]:
        """Locators of instances in finished chunks that have no fate: an attempt to finish the job
        reopened them and was cut short."""
        c = manifest.c
        ended = (tasks.c.job == c.job) & (tasks.c.number == c.chunk)
        with self._database.begin(read=True) as connection:
            return list(
                connection.execute(
                    select(c.locator)
                    .join(tasks, ended)
                    .where(
                        c.job == task.job.id,
                        c.fate.is_(None),
                        tasks.c.state == TaskState.DONE,
                    )
                ).scalars()
            )

    def reopen(self, task: Task, locators: Iterable[str]) -> list[Pending]:
        """Makes these instances of the job pending again; returns them ordered by locator."""
        wanted = sorted(set(locators))
        with self._database.begin() as connection:
            labels: dict[str, str | None] = {}
            for start in range(0, len(wanted), _LOCATORS_AT_ONCE):
                some = wanted[start : start + _LOCATORS_AT_ONCE]
                where = and_(manifest.c.job == task.job.id, manifest.c.locator.in_(some))
                rows = connection.execute(
                    select(manifest.c.locator, manifest.c.label).where(where)
                ).all()
                labels.update({row.locator: row.label for row in rows})
                connection.execute(
                    update(instances)
                    .where(self._database.own(instances))
                    .where(instances.c.locator.in_(list(labels)))
                    .values(state="pending")
                )
                connection.execute(
                    update(manifest).where(where).values(fate=None, reason=None, detail=None)
                )
        return [Pending(locator, labels[locator]) for locator in wanted if locator in labels]

    def _next_number(self, connection: Connection, job: int) -> int:
        """The number of the next chunk of a job, whose row stays locked until the transaction
        ends: one worker may still list the source while another cuts a chunk in two."""
        mine = self._database.own(jobs) & (jobs.c.id == job)
        connection.execute(select(jobs.c.id).where(mine).with_for_update())
        last = connection.execute(select(func.max(tasks.c.number)).where(tasks.c.job == job))
        return int(last.scalar_one()) + 1


def _add_chunk(connection: Connection, job: int, number: int, **values: int) -> None:
    """Adds a task that indexes the instances of this chunk. values: of its further columns."""
    row = {"job": job, "number": number, "kind": TaskKind.INDEX, "state": TaskState.WAITING}
    connection.execute(tasks.insert().values(**row, **values))


def _discovery(task: Task) -> ColumnElement[bool]:
    return and_(tasks.c.job == task.job.id, tasks.c.number == DISCOVERY)
