"""Summarises the progress of a job from its tasks."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from indexer.jobs.records import TaskKind, TaskState

__all__ = ["JobSummary", "summary_of"]

_RECENT_SECONDS = 600.0
_ERRORS = 5


@dataclass(frozen=True, slots=True)
class JobSummary:
    """The progress of a job, or of a run of ``precedent index``, which has no tasks.

    state: "running", "paused", "cancelled", "finished" or "failed".
    status: the same, but "waiting" for a running job of which no worker has a task now.
    discovering: whether the source is still being listed.
    discovered: instances found in the source so far.
    unchanged: of the discovered, those already in the index, which are not read.
    total: of the discovered, those to be read.
    done: of the total, those that are indexed or refused.
    indexed (duplicates included), duplicates, refused (by reason): of the done, how many.
    points: pictures in the index of the indexed instances that are no duplicates.
    tasks: how many, by state.
    per_second: instances done per second over the last ten minutes; None while none are.
    seconds_left: at that pace; None when it is not known.
    errors: the latest errors by number of the task.
    """

    id: int
    kind: str
    source: str
    state: str
    priority: int
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    discovering: bool
    discovered: int
    total: int
    done: int
    unchanged: int
    indexed: int
    duplicates: int
    points: int
    refused: dict[str, int]
    tasks: dict[str, int]
    per_second: float | None
    seconds_left: float | None
    errors: dict[int, str]
    note: str | None
    status: str


def summary_of(
    job: Row[Any], tasks: Sequence[Row[Any]], now: float, lapse_seconds: float
) -> JobSummary:
    """The summary of a row of ``jobs`` and its rows of ``tasks``.

    Args:
        now: seconds since the epoch.
        lapse_seconds: a worker that has sent no heartbeat for this long has lost its task.
    """
    is_run = job.kind == "run"
    discovery = [task for task in tasks if task.kind == TaskKind.DISCOVER]
    chunks = [task for task in tasks if task.kind == TaskKind.INDEX]
    refused: Counter[str] = Counter()
    for chunk in chunks:
        refused.update(json.loads(chunk.refused))
    total, done = sum(c.total for c in chunks), sum(c.done for c in chunks)
    discovering = any(task.state != TaskState.DONE for task in discovery)
    per_second = _pace(job, chunks, now) if job.state == "running" else None
    known = per_second is not None and not discovering
    unchanged = sum(task.unchanged for task in tasks)
    waiting = (
        job.state == "running"
        and not is_run
        and not any(
            task.state == TaskState.RUNNING and task.beat_at >= now - lapse_seconds
            for task in tasks
        )
    )
    return JobSummary(
        id=job.id,
        kind=job.kind,
        source=job.source,
        state=job.state,
        priority=job.priority,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        discovering=discovering,
        discovered=total + unchanged if is_run else sum(task.total for task in discovery),
        total=total,
        done=done,
        unchanged=unchanged,
        indexed=sum(c.indexed for c in chunks),
        duplicates=sum(c.duplicates for c in chunks),
        points=sum(c.points for c in chunks),
        refused=dict(sorted(refused.items())),
        tasks={} if is_run else dict(sorted(Counter(task.state for task in tasks).items())),
        per_second=None if per_second is None else round(per_second, 2),
        seconds_left=round((total - done) / per_second, 1) if known and per_second else None,
        errors=dict([(task.number, task.error) for task in tasks if task.error][-_ERRORS:]),
        note=job.note,
        status="waiting" if waiting else job.state,
    )


def _pace(job: Row[Any], chunks: Sequence[Row[Any]], now: float) -> float | None:
    """Instances done per second over the last ten minutes, estimated from the tasks that ran then;
    None when there were none."""
    if job.started_at is None:
        return None
    started = datetime.fromisoformat(job.started_at).timestamp()
    since = max(started, now - _RECENT_SECONDS)
    done = 0.0
    for chunk in chunks:
        if chunk.beat_at is None or chunk.beat_at < since:
            continue
        # Of a task that began before that span, count only the share that falls into it.
        length = max(chunk.seconds, now - since if chunk.state == TaskState.RUNNING else 0.0, 1e-9)
        done += chunk.done * min(1.0, (chunk.beat_at - since) / length)
    return done / (now - since) if done and now > since else None
