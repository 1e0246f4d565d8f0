"""Documents from the page of a study: downloaded, or sent to a destination of the settings."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.http.deps import ArchiveDep
from api.http.routes.documents import EarlierFields, ReportFields, make_report, select_earlier
from api.http.routes.sendings import SendingRequest, send_documents
from api.portal.page_route import PageRoute
from api.portal.sessions import OwnForm

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)


@router.post("/documents", response_model=None, dependencies=[OwnForm])
def make(
    request: Request,
    archive: ArchiveDep,
    study: Annotated[str, Form(pattern=r"^[0-9.]{1,64}$")],
    kind: Annotated[Literal["sr", "pdf", "earlier"], Form()],
    destination: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """The document of a study as a file; with a destination it is sent there, and the page of the
    study says what became of it.

    kind: a report as structured report or PDF, or key objects of the patient's earlier images.
    """
    if not destination:
        if kind == "earlier":
            return select_earlier(study, request, archive, EarlierFields())
        return make_report(study, request, archive, ReportFields(format=kind))
    wanted = {"study": study} if kind == "earlier" else {"study": study, "format": kind}
    name = "earlier" if kind == "earlier" else "report"
    asked = SendingRequest.model_validate({"destination": destination, name: wanted})
    done = send_documents(asked, request, Response(), archive)
    return RedirectResponse(f"studies/{study}?sending={done.id}#sent", HTTPStatus.SEE_OTHER)
