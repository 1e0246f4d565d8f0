"""The page of jobs: how far they are, as they go on, and what stops and starts them."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.http.origins import security_headers
from api.http.routes.jobs import (
    AskedJobs,
    cancel_job,
    list_jobs,
    pause_job,
    resume_job,
    retried,
)
from api.portal import words
from api.portal.page_route import PageRoute, page
from api.portal.sessions import OwnForm
from api.security.seen import tell_about

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_JOBS = 20
_CHANGES = {"pause": pause_job, "resume": resume_job, "cancel": cancel_job}


@router.get("/jobs")
def show_jobs(
    request: Request,
    asked: AskedJobs,
    start: Annotated[str, Query(alias="page", max_length=20)] = "",
) -> HTMLResponse:
    """The latest jobs and runs, or those before.

    Raises:
        QueryError: there is no such page.
    """
    found = list_jobs(asked, limit=_JOBS, page=start or None)
    values = {"jobs": found.jobs, "next_page": found.next_page, "start": start, "words": words}
    answer = page(request, "jobs.html", values)
    # Its script follows the events of the jobs.
    policy = security_headers(asked.settings.server)["Content-Security-Policy"]
    answer.headers["Content-Security-Policy"] = f"{policy}; connect-src 'self'"
    return answer


@router.post("/jobs", response_model=None, dependencies=[OwnForm])
def change_job(
    request: Request,
    asked: AskedJobs,
    job: Annotated[int, Form(ge=1, le=2**31 - 1)],
    action: Annotated[Literal["pause", "resume", "cancel", "retry"], Form()],
) -> Response:
    """Pauses a job, or goes on with it, ends it, or tries again what failed; then the jobs are
    shown.

    Raises:
        JobNotFound: there is none. JobError: its state does not allow this.
    """
    tell_about(request, job=job)
    if action == "retry":
        retried(job, asked, refused=False)
    else:
        _CHANGES[action](job, asked)
    return RedirectResponse(f"jobs#job-{job}", HTTPStatus.SEE_OTHER)
