"""What a job is made of."""

from dataclasses import dataclass
from enum import StrEnum

from indexer.sources.opening import SourceSpec

__all__ = [
    "DISCOVERY",
    "FINISHING",
    "Fate",
    "Job",
    "JobOptions",
    "JobState",
    "Task",
    "TaskKind",
    "TaskState",
]


DISCOVERY, FINISHING = 0, -1
"""Numbers of the two tasks that every job has; chunks count from 1."""

MOST_URGENT = 9
"""Priorities go from 0 to this."""


class JobState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    FAILED = "failed"
    """Ended, with tasks that were given up."""


class TaskKind(StrEnum):
    DISCOVER = "discover"
    INDEX = "index"
    FINISH = "settle"


class TaskState(StrEnum):
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job treats what it finds; as ``index_archive`` says.

    delete_vanished: instances that the source no longer has are removed at the end.
    """

    retry_refused: bool = False
    again: bool = False
    delete_vanished: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    id: int
    kind: str
    spec: SourceSpec
    options: JobOptions
    state: JobState


@dataclass(frozen=True, slots=True)
class Due:
    """A task that waits to be taken."""

    job: int
    number: int
    priority: int
    source: str


@dataclass(frozen=True, slots=True)
class Task:
    """A lease on a task. attempts: this one included."""

    job: Job
    number: int
    kind: TaskKind
    attempts: int
    worker: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of an instance in a job: "indexed", "duplicate", "unchanged", "refused", or
    "open" while nothing has."""

    locator: str
    fate: str
    reason: str | None
    detail: str | None
