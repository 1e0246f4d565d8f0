"""The ledger's runs: each ``precedent index``, with its counts and how it ended."""

import json
from collections.abc import Callable, Mapping

from sqlalchemy import func, insert, select, update

from indexer.ledger.schema import State, instances, jobs, tasks
from indexer.ledger.tenancy import TenantDatabase

__all__ = ["Runs"]

_COUNTS = 1
"""Number of the only task of a run, which has its counts. It is never due."""


class Runs:
    """Begins, counts and ends runs of a tenant. Times are UTC timestamps, ISO 8601.

    Raises:
        LedgerError: the database cannot be read or written.
    """

    def __init__(self, database: TenantDatabase) -> None:
        self._database = database
        self._own = database.own
        self.tenant = database.tenant

    def begin_run(
        self, source: str, at: str, *, is_alive: Callable[[int], bool] = lambda _: True
    ) -> int:
        """Starts a run over a source; returns its number.

        is_alive: whether a process is at a run. Those that have no end, and are not, were killed.
        """
        row = {"kind": "run", "source": source, "state": "running", "tenant": self.tenant}
        killed = {
            "state": "failed",
            "finished_at": at,
            "note": "it ended without a word, as one that is killed; the same command goes on",
        }
        with self._database.begin() as connection:
            endless = select(jobs.c.id).where(
                self._own(jobs), jobs.c.kind == "run", jobs.c.state == "running"
            )
            for number in connection.execute(endless).scalars().all():
                if not is_alive(number):
                    ended = update(jobs).where(self._own(jobs), jobs.c.id == number)
                    connection.execute(ended.values(killed))
            result = connection.execute(jobs.insert().values(created_at=at, started_at=at, **row))
            (run,) = result.inserted_primary_key or (0,)
            return int(run)

    def note_run(
        self,
        run: int,
        now: float,
        *,
        refused: Mapping[str, int],
        seconds: float,
        **counts: int,
    ) -> None:
        """Records how far a run is.

        Args:
            now: seconds since the epoch.
            refused: of the done, how many, by reason.
            seconds: since it began to read.
            counts: total, done, unchanged, indexed, duplicates, points; see ``JobSummary``.
        """
        values = {
            "beat_at": now,
            "seconds": seconds,
            "refused": json.dumps(dict(refused)),
            **counts,
        }
        row = {"job": run, "number": _COUNTS, "kind": "index", "state": "done"}
        with self._database.begin() as connection:
            mine = (tasks.c.job == run) & (tasks.c.number == _COUNTS)
            if not connection.execute(update(tasks).where(mine).values(values)).rowcount:
                connection.execute(insert(tasks).values(**row, **values))

    def end_run(self, run: int, at: str, state: str = "finished", note: str | None = None) -> None:
        """Records that a run has ended.

        state: "finished", "cancelled" or "failed". note: why it did not finish.
        """
        ended = {"state": state, "finished_at": at, "note": note}
        with self._database.begin() as connection:
            connection.execute(update(jobs).where(self._own(jobs), jobs.c.id == run).values(ended))

    def count_seen(self, run: int) -> int:
        """How many instances a run or job has seen, and no later one since."""
        query = select(func.count()).where(self._own(instances), instances.c.seen_in == run)
        with self._database.begin(read=True) as connection:
            return int(connection.execute(query).scalar_one())

    def run_counts(self, run: int) -> tuple[int, int, dict[str, int]]:
        """Of the instances that a run saw, how many were done in it, how many before it, and how
        many are refused, by reason."""
        c = instances.c
        with self._database.begin(read=True) as connection:
            rows = connection.execute(
                select(c.state, c.reason, c.finished_in, func.count())
                .where(self._own(instances), c.seen_in == run)
                .group_by(c.state, c.reason, c.finished_in)
            ).all()
        indexed = sum(row[3] for row in rows if row[0] == State.DONE and row[2] == run)
        unchanged = sum(row[3] for row in rows if row[0] == State.DONE and row[2] != run)
        refused: dict[str, int] = {}
        for state, reason, _, count in rows:
            if state == State.REFUSED:
                refused[reason] = refused.get(reason, 0) + count
        return indexed, unchanged, dict(sorted(refused.items()))
