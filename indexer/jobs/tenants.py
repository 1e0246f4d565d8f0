"""The jobs of one tenant: those of others do not exist for it."""

from collections.abc import Iterator

from engine.errors import JobNotFound
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import Fate
from indexer.jobs.summary import JobSummary

__all__ = ["TenantJobs"]

_OWNER = "default"
"""Whose images jobs and runs index."""


class TenantJobs:
    """What one tenant may see and change of the jobs in a ledger.

    Args:
        ledger: None = there is none yet, and so no jobs.

    Raises:
        JobNotFound: there is no such job, or it is another tenant's: in the same words.
        JobError: its state does not allow what is asked. LedgerError: the database fails.
    """

    def __init__(self, ledger: JobLedger | None, tenant: str) -> None:
        self._ledger = ledger if tenant == _OWNER else None

    def summaries(self, now: float, limit: int, before: int | None = None) -> list[JobSummary]:
        """The latest jobs and runs, the newest first. before: only those of smaller numbers."""
        return [] if self._ledger is None else self._ledger.summaries(now, limit, before)

    def summary(self, job: int, now: float) -> JobSummary:
        return self._found(job).summary(job, now)

    def pause(self, job: int) -> None:
        self._found(job).pause(job)

    def resume(self, job: int) -> None:
        self._found(job).resume(job)

    def cancel(self, job: int, at: str) -> None:
        self._found(job).cancel(job, at)

    def retry(self, job: int, *, refused: bool = False) -> int:
        """How many tasks are done again; see :meth:`JobLedger.retry`."""
        return self._found(job).retry(job, refused=refused)

    def fates(self, job: int) -> Iterator[Fate]:
        return self._found(job).fates(job)

    def _found(self, job: int) -> JobLedger:
        if self._ledger is None:
            raise JobNotFound(f"there is no job {job}; `precedent jobs list` names those there are")
        return self._ledger
