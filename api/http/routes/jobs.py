"""Jobs: listed, shown, followed while they run, and controlled; as ``precedent jobs`` does."""

import csv
import io
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from api.http.bodies import Body, Fields, body_content, read_body
from api.http.head import is_head
from api.http.job_events import Events, job_events
from api.http.ledger import LedgerAtHand
from api.http.problems import problem_responses
from api.security.policy import Scope
from engine.errors import JobError, JobNotFound, QueryError
from indexer.files.locators import shown
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import Fate
from indexer.jobs.summary import JobSummary
from indexer.sources.opening import name_in_source

__all__ = [
    "AskedJobs",
    "JobDocument",
    "cancel_job",
    "list_jobs",
    "pause_job",
    "resume_job",
    "retried",
    "router",
]

router = APIRouter(tags=["jobs"])
_LOG = logging.getLogger("precedent.api")

_MOST_JOBS = 200
_EXAMPLE: dict[str, Any] = {
    "id": 7,
    "kind": "index",
    "source": "pacs",
    "state": "running",
    "status": "running",
    "priority": 2,
    "created_at": "2026-11-30T08:00:00+00:00",
    "started_at": "2026-11-30T08:00:04+00:00",
    "finished_at": None,
    "discovering": False,
    "discovered": 18211,
    "total": 12000,
    "done": 7300,
    "unchanged": 6211,
    "indexed": 7288,
    "duplicates": 3,
    "points": 9121,
    "refused": {"no-pixels": 12},
    "tasks": {"done": 8, "running": 2, "waiting": 4},
    "per_second": 61.5,
    "seconds_left": 76.4,
    "errors": None,
    "note": None,
}


_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["progress", "end", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
"""Each event: so readers of OpenAPI before 3.2 take the schema of a stream of events."""


class JobDocument(BaseModel):
    """A job, or a run of `precedent index` (`kind` is "run"); the fields are those of
    `precedent jobs show --json`.

    - `state`: "running", "paused", "cancelled", "finished" or "failed". `status`: the same, but
      "waiting" for a running job of which no worker has a task now.
    - `discovering`: the source is still being listed. `discovered`: instances found in it so far.
    - `unchanged`: of these, already in the index. `total`: to be read. `done`: of the total, those
      that are indexed or refused.
    - `indexed` (`duplicates` included), `refused` by reason: of the done. `points`: their pictures.
    - `tasks`: by state. `per_second`: over the last ten minutes; null: none.
    - `seconds_left`: at that pace; null: not known.
    - `errors`: the latest, by number of the task. `note`: what was removed, or went wrong. Both may
      name files, and are null for callers without the scope `admin`.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    kind: str
    source: str
    state: str
    status: str
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
    errors: dict[str, str] | None
    note: str | None

    @classmethod
    def of(cls, found: JobSummary, *, for_admin: bool) -> "JobDocument":
        values = asdict(found)
        values["errors"] = {str(number): text for number, text in found.errors.items()}
        if not for_admin:
            values |= {"errors": None, "note": None}
        return cls(**values)


class JobsDocument(BaseModel):
    """Jobs and runs, the newest first. `next_page`: to get those before, repeat the request with it
    as `page`; null: there are no more."""

    model_config = ConfigDict(frozen=True)

    jobs: list[JobDocument]
    next_page: str | None


class RetriedDocument(BaseModel):
    """A job whose failed tasks are done again. `tasks`: how many these are."""

    model_config = ConfigDict(frozen=True)

    tasks: int
    job: JobDocument


class RetryFields(Fields):
    refused: bool = Field(False, description="Read its refused instances again as well.")


class _Asked:
    """The jobs that the caller may see, and how much of them."""

    def __init__(self, request: Request) -> None:
        caller = request.state.caller
        ledger: LedgerAtHand = request.state.ledger
        self.settings = ledger.settings
        self.database = ledger.database()
        known = self.database
        lapse = self.settings.jobs.lapse_seconds
        self.known = None if known is None else JobLedger(known.of(caller.tenant), lapse)
        self.for_admin = Scope.ADMIN in caller.scopes

    def jobs(self, job: int) -> JobLedger:
        """The caller's jobs, to look for this one."""
        if self.known is None:
            raise JobNotFound(f"there is no job {job}; `precedent jobs list` names those there are")
        return self.known

    def show(self, job: int) -> JobDocument:
        return JobDocument.of(self.jobs(job).summary(job, time.time()), for_admin=self.for_admin)

    def dispatch(self) -> None:
        """Sends due tasks to the broker, if there is one; where that fails, workers find them in
        the ledger later."""
        if self.settings.jobs.broker is None or self.database is None:
            return
        from indexer.jobs.dispatch import Dispatcher, celery_app

        try:
            Dispatcher(self.settings, self.database, celery_app(self.settings)).dispatch()
        except JobError as error:
            _LOG.warning("tasks wait in the ledger: %s", error)


def _asked(request: Request) -> _Asked:
    return _Asked(request)


AskedJobs = Annotated[_Asked, Depends(_asked)]
_Job = Annotated[
    int, Path(alias="id", description="Number of the job.", ge=1, le=2**31 - 1, examples=[7])
]
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": _EXAMPLE}}}
}


@router.get(
    "/v1/jobs",
    operation_id="listJobs",
    summary="The latest jobs, and runs of `precedent index`",
    responses={
        200: {"content": {"application/json": {"example": {"jobs": [_EXAMPLE], "next_page": "7"}}}},
        **problem_responses(400, 422, 503),
    },
)
def list_jobs(
    asked: AskedJobs,
    limit: Annotated[
        int,
        Query(
            description="The latest so many.",
            json_schema_extra={"minimum": 1, "maximum": _MOST_JOBS},
        ),
    ] = 20,
    page: Annotated[
        str | None, Query(description="`next_page` of the answer before.", examples=["7"])
    ] = None,
) -> JobsDocument:
    """The newest first."""
    if not 1 <= limit <= _MOST_JOBS:
        raise QueryError(f"limit is {limit}; ask for 1 to {_MOST_JOBS} jobs")
    before = _before(page)
    known = asked.known
    found = [] if known is None else known.summaries(time.time(), limit + 1, before)
    shown_now = [JobDocument.of(one, for_admin=asked.for_admin) for one in found[:limit]]
    more = len(found) > limit
    return JobsDocument(jobs=shown_now, next_page=str(shown_now[-1].id) if more else None)


def _before(page: str | None) -> int | None:
    if not page:
        return None
    if not (page.isascii() and page.isdigit() and 1 <= len(page) <= 9):
        raise QueryError(
            f"page {page[:40]!r} is none; give `next_page` of the answer before, or nothing"
        )
    return int(page)


@router.get(
    "/v1/jobs/{id}",
    operation_id="getJob",
    summary="How far a job is",
    responses={**_ANSWERED, **problem_responses(404, 422, 503)},
)
def get_job(job: _Job, asked: AskedJobs) -> JobDocument:
    """Pace, time left, refusals by reason."""
    return asked.show(job)


@router.post(
    "/v1/jobs/{id}/pause",
    operation_id="pauseJob",
    summary="Let workers stop",
    responses={**_ANSWERED, **problem_responses(404, 409, 422, 503)},
)
def pause_job(job: _Job, asked: AskedJobs) -> JobDocument:
    """Workers stop after the instances that they have begun. 409: the job does not run."""
    asked.jobs(job).pause(job)
    return asked.show(job)


@router.post(
    "/v1/jobs/{id}/resume",
    operation_id="resumeJob",
    summary="Go on with a paused job",
    responses={**_ANSWERED, **problem_responses(404, 409, 422, 503)},
)
def resume_job(job: _Job, asked: AskedJobs) -> JobDocument:
    """Tasks that wait after a failure are tried again at once. 409: the job has ended."""
    asked.jobs(job).resume(job)
    asked.dispatch()
    return asked.show(job)


@router.post(
    "/v1/jobs/{id}/cancel",
    operation_id="cancelJob",
    summary="End a job for good",
    responses={**_ANSWERED, **problem_responses(404, 409, 422, 503)},
)
def cancel_job(job: _Job, asked: AskedJobs) -> JobDocument:
    """What it has indexed stays in the index. 409: the job has ended already."""
    asked.jobs(job).cancel(job, datetime.now(UTC).isoformat(timespec="seconds"))
    return asked.show(job)


async def _retry_fields(request: Request) -> AsyncIterator[Body[RetryFields]]:
    async with read_body(request, RetryFields) as body:
        yield body


@router.post(
    "/v1/jobs/{id}/retry",
    operation_id="retryJob",
    summary="Give the failed tasks of a job another chance",
    responses={
        200: {"content": {"application/json": {"example": {"tasks": 2, "job": _EXAMPLE}}}},
        **problem_responses(400, 404, 409, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": {
            **body_content(RetryFields, name="Retry", example={"refused": True}),
            "required": False,
        }
    },
)
def retry_job(
    job: _Job, asked: AskedJobs, body: Annotated[Body[RetryFields], Depends(_retry_fields)]
) -> RetriedDocument:
    """409: the job is paused or cancelled."""
    return retried(job, asked, refused=body.fields.refused)


def retried(job: int, asked: AskedJobs, *, refused: bool) -> RetriedDocument:
    """A job whose failed tasks are done again. refused: its refused instances as well.

    Raises:
        JobNotFound: there is none. JobError: it is paused or cancelled.
    """
    tasks = asked.jobs(job).retry(job, refused=refused)
    asked.dispatch()
    return RetriedDocument(tasks=tasks, job=asked.show(job))


@router.get(
    "/v1/jobs/{id}/report",
    operation_id="getJobReport",
    summary="Every instance of a job and what became of it",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "text/csv": {
                    "schema": {"type": "string"},
                    "examples": {
                        "report": {
                            "value": "instance,fate,reason,detail,missing_frames\r\n"
                            "2023/slice-7.dcm,indexed,,,\r\n"
                        }
                    },
                }
            }
        },
        **problem_responses(404, 422, 503),
    },
)
def get_report(job: _Job, asked: AskedJobs, request: Request) -> Response:
    """CSV with a line for each instance.

    `instance` is its path or address for callers with the scope `admin`; for others where it lies
    in its source, if the setting `server.show_names` allows that, and else empty: names of files
    may name patients.
    """
    asked.show(job)
    if is_head(request.scope):
        return Response(media_type="text/csv")
    return StreamingResponse(_report(job, asked), media_type="text/csv")


def _report(job: int, asked: _Asked) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("instance", "fate", "reason", "detail", "missing_frames"))
    for count, one in enumerate(asked.jobs(job).fates(job), 1):
        told = (one.reason, one.detail, one.missing_frames)
        writer.writerow((_named(one, asked), one.fate, *(part or "" for part in told)))
        if count % 500 == 0:
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()


def _named(fate: Fate, asked: _Asked) -> str:
    if asked.for_admin:
        return shown(fate.locator).encode("utf-8", "replace").decode()
    if not asked.settings.server.show_names:
        return ""
    return name_in_source(fate.locator, asked.settings).encode("utf-8", "replace").decode()


@router.get(
    "/v1/jobs/{id}/events",
    operation_id="getJobEvents",
    summary="The progress of a job, as it goes on",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "text/event-stream": {
                    "schema": _EVENT,
                    "examples": {
                        "progress": {
                            "value": {
                                "id": "5f0c3a91d27be468",
                                "event": "progress",
                                "data": '{"id": 7, "done": 7300}',
                            }
                        }
                    },
                }
            }
        },
        204: {"description": "The job has ended, and the caller knows: there is no more to come."},
        **problem_responses(404, 422, 503),
    },
)
def get_events(
    job: _Job,
    asked: AskedJobs,
    request: Request,
    last_event_id: Annotated[
        str, Header(description="Id of the last event that was got; it is not sent again.")
    ] = "",
) -> Response:
    """Server-sent events: `progress`, each with the job as getJob gives it, whenever something has
    changed; then `end` with the last state, `error` with a problem document, or, after ten minutes
    or when the service is being ended, nothing: ask again then, with `Last-Event-ID`, as browsers
    do. A line of comment every 15 seconds says that the connection lives.
    """
    first = asked.show(job)
    events: Events = request.state.events
    if events.are_known(first.model_dump(mode="json"), last_event_id):
        return Response(status_code=204)
    events.places.check(request.state.caller.tenant)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if is_head(request.scope):
        return Response(media_type="text/event-stream", headers=headers)

    def state() -> dict[str, Any]:
        request.state.still_allowed()
        return asked.show(job).model_dump(mode="json")

    return StreamingResponse(
        job_events(events, state, request, last_event_id),
        media_type="text/event-stream",
        headers=headers,
    )
