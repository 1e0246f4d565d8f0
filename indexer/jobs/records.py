"""Data types of jobs: a job is a discovery task, chunks to index, and a finishing task."""

from dataclasses import dataclass
from enum import StrEnum

from indexer.sources.opening import SourceSpec

__all__ = [
    "BULK",
    "DISCOVERY",
    "FINISHING",
    "INTERACTIVE",
    "MOST_URGENT",
    "Backlog",
    "Due",
    "Fate",
    "Job",
    "JobOptions",
    "JobState",
    "Task",
    "TaskKind",
    "TaskState",
]


DISCOVERY, FINISHING = 0, -1
"""Numbers of the two tasks that every job has: the first, which lists the source and cuts chunks,
and the last, which finishes the job. Chunks count from 1."""

MOST_URGENT = 9
"""The highest priority; the lowest is 0."""
INTERACTIVE, BULK = 8, 2
"""Priorities of jobs that somebody waits for, and of all others."""


class JobState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    FAILED = "failed"
    """Ended, but some tasks failed in all their attempts."""


class TaskKind(StrEnum):
    """What a task does. The values are those of the database."""

    DISCOVER = "discover"
    """List the source and cut what is to be read into chunks."""
    INDEX = "index"
    """Index one chunk."""
    FINISH = "settle"
    """Finish the job: see ``indexer.jobs.finishing.finish_job``."""


class TaskState(StrEnum):
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Which instances a job reads and removes.

    retry_refused, again: as for ``index_archive``.
    delete_vanished: instances that the source no longer has are removed at the end, if they are not
        more than the share ``at_most`` of those it had, in [0, 1].
    """

    retry_refused: bool = False
    again: bool = False
    delete_vanished: bool = False
    at_most: float = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """A job. tenant: whose instances it indexes."""

    id: int
    tenant: str
    kind: str
    spec: SourceSpec
    options: JobOptions
    state: JobState


@dataclass(frozen=True, slots=True)
class Due:
    """A task that a worker could take."""

    job: int
    number: int
    priority: int
    source: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many tasks of running jobs are still to be done.

    due: a worker could take them now. held: a worker has them, and renews its lease. later: they
    wait until a pause is over, their source may be read, or other tasks of their job have ended.
    oldest_seconds: for how long the one has been due that has been longest; 0 = none is.
    """

    due: int = 0
    held: int = 0
    later: int = 0
    oldest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Task:
    """A task that a worker holds the lease on.

    attempts: how many, this one included. begun: how many workers in a row died while they indexed
    the instances of this task.
    """

    job: Job
    number: int
    kind: TaskKind
    attempts: int
    worker: str
    begun: int = 0


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of an instance in a job.

    fate: "indexed": in the index. "duplicate": in the index already, from another file of the
        same content. "unchanged": in the index since an earlier job, and not read again.
        "refused": cannot be indexed, see ``reason``. "pending": discovered, but in no chunk yet.
        "open": still to be read by this job.
    reason, detail: of a refusal: its code, and one sentence.
    missing_frames: which frames of it are missing or broken, for people; None = none.
    """

    locator: str
    fate: str
    reason: str | None
    detail: str | None
    missing_frames: str | None = None
