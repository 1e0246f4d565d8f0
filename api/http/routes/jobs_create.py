"""Makes jobs: the indexing of a source that the settings name."""

from datetime import UTC, date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.http.problems import problem_responses
from api.http.work import Work
from api.security.seen import Seen, tell, tell_about
from engine.errors import QueryError

__all__ = ["CreatedJobDocument", "JobRequest", "router"]

router = APIRouter(tags=["jobs"])


class JobRequest(BaseModel):
    """What a job is to index.

    - `source`: name of a source in the service's settings.
    - `since`, `until`: study dates, both inclusive; `modality`; `study`: a Study Instance UID. Of
      DICOMweb sources alone.
    - `again`: read everything again, also what did not change. `retry_refused`: what was refused.
    - `delete_vanished`: remove from the index what the source no longer has, if that is no more
      than the share `at_most` of it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"source": "pacs", "since": "2024-01-01"}]},
    )

    source: Annotated[str, Field(min_length=1, max_length=200)]
    since: date | None = None
    until: date | None = None
    modality: Annotated[str | None, Field(max_length=16)] = None
    study: Annotated[str | None, Field(pattern=r"^[0-9.]{1,64}$")] = None
    again: bool = False
    retry_refused: bool = False
    delete_vanished: bool = False
    at_most: Annotated[float, Field(ge=0, le=1)] = 0.2
    priority: Literal["interactive", "bulk"] = "bulk"


class CreatedJobDocument(BaseModel):
    """`job`: the number of the job."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [{"job": 7}]})

    job: int


@router.post(
    "/v1/jobs",
    operation_id="createJob",
    summary="Index a source",
    status_code=201,
    response_description="The job is made; it begins as soon as a worker is free.",
    responses=problem_responses(400, 409, 422, 503),
)
def create_job(asked: JobRequest, request: Request, response: Response) -> CreatedJobDocument:
    """Only sources that the service's settings name can be indexed this way: no request names a
    folder or an address. The job goes on after a restart of the service."""
    from indexer.jobs.records import JobOptions
    from indexer.sources.opening import SourceSpec

    spec = SourceSpec.asked(
        None,
        asked.source,
        since=None if asked.since is None else asked.since.isoformat(),
        until=None if asked.until is None else asked.until.isoformat(),
        modality=asked.modality,
        study=asked.study,
    )
    if asked.delete_vanished and not spec.is_whole:
        raise QueryError("delete_vanished would remove all that since, until … leave out")
    options = JobOptions(asked.retry_refused, asked.again, asked.delete_vanished, asked.at_most)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    work: Work = request.state.work
    job = work.submit(
        spec, options, at, request.state.caller.tenant, urgent=asked.priority == "interactive"
    )
    # By its name in the settings, now that it is known to be one.
    tell_about(request, job=job, source=asked.source)
    if asked.study is not None:
        tell(request, Seen((asked.study,)))
    response.headers["Location"] = f"/v1/jobs/{job}"
    return CreatedJobDocument(job=job)
