"""The page of the audit log: searched, verified, and where it is exported."""

from http import HTTPStatus
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response, UploadFile
from pydantic import ValidationError
from starlette.responses import HTMLResponse

from api.audit.search import OUTCOMES, VERDICTS
from api.http.routes.audit_log import (
    HeadsRequest,
    VerifiedDocument,
    search_audit,
    verify_audit,
)
from api.portal.catalogues import later
from api.portal.page_route import PageRoute, page
from api.portal.sessions import OwnForm
from engine.errors import QueryError

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_SAID = {
    "ok": later("ok"),
    "refused": later("refused"),
    "failed": later("failed"),
    "known": later("known"),
    "unfamiliar": later("unfamiliar"),
    "foreign": later("foreign"),
}
"""Outcomes and verdicts."""
_ROWS = 50
_MOST_HEADS_BYTES = 32 << 20
_FIELDS = ("who", "route", "study", "image", "outcome", "verdict", "since", "until")
_Text = Annotated[str, Query(max_length=200)]
_Time = Annotated[str, Query(max_length=40)]


@router.get("/audit")
def show_audit(
    request: Request,
    who: _Text = "",
    route: _Text = "",
    study: _Text = "",
    image: _Text = "",
    outcome: _Text = "",
    verdict: _Text = "",
    since: _Time = "",
    until: _Time = "",
    start: Annotated[str, Query(alias="page", max_length=200)] = "",
) -> HTMLResponse:
    """The latest accesses that match what is given, or those before.

    Raises:
        QueryError: a time, an outcome or a verdict is none, or there is no such page.
    """
    asked = {
        "who": who.strip(),
        "route": route.strip(),
        "study": study.strip(),
        "image": image.strip(),
        "outcome": outcome,
        "verdict": verdict,
        "since": since,
        "until": until,
    }
    found = search_audit(request, **asked, limit=_ROWS, page=start or None)
    given = {name: value for name, value in asked.items() if value}
    times = {name: value for name, value in given.items() if name in ("since", "until")}
    values = {
        "asked": asked,
        "found": found,
        "start": start,
        "first": _address("audit", given),
        "next": _address("audit", {**given, "page": found.next_page or ""}),
        "export": _address("v1/audit/export", times),
    }
    return _page(request, values)


@router.post("/audit", response_model=None, dependencies=[OwnForm])
def verify_log(
    request: Request,
    action: Annotated[Literal["verify", "heads"], Form()],
    heads: UploadFile | None = None,
) -> Response:
    """Whether the log is whole; as a page, or as a file with the heads, to be kept.

    Args:
        heads: such a file of earlier; None = there is none.

    Raises:
        QueryError: the file is none of heads.
    """
    verified = verify_audit(request, _kept(heads))
    if action == "heads":
        disposition = {"Content-Disposition": 'attachment; filename="precedent-heads.json"'}
        content = verified.model_dump_json(indent=1) + "\n"
        return Response(content, HTTPStatus.OK, disposition, "application/json")
    return _page(request, {"verified": verified, "against": bool(heads and heads.size)})


def _kept(heads: UploadFile | None) -> HeadsRequest:
    # A form without a file sends an empty one.
    if heads is None or not heads.size:
        return HeadsRequest()
    if heads.size > _MOST_HEADS_BYTES:
        raise QueryError(f"the file of heads has {heads.size:,} bytes, which none has")
    try:
        return HeadsRequest.model_validate_json(heads.file.read())
    except ValidationError:
        raise QueryError(
            "this is no file of heads; `precedent audit export --heads FILE` and this page write "
            "them"
        ) from None


def _page(request: Request, values: dict[str, object]) -> HTMLResponse:
    none: dict[str, VerifiedDocument | None] = {"verified": None, "found": None}
    shared = {
        "outcomes": OUTCOMES,
        "verdicts": VERDICTS,
        "said": _SAID,
        "asked": dict.fromkeys(_FIELDS, ""),
        "export": "v1/audit/export",
    }
    return page(request, "audit.html", {**none, **shared, **values})


def _address(path: str, query: dict[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
