"""The page, opened by an EHR (SMART App Launch), for whom it knows and the study that is open."""

from http import HTTPStatus
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.http.problems import Problem, log_problem, problem_of
from api.portal.cookies import drop_cookie, set_cookie
from api.portal.page_route import PageRoute
from api.portal.sessions import with_session
from api.security.access import Access
from api.security.oidc.code_flow import MOST_SECONDS
from api.security.smart.launches import MOST_AT_ONCE, launch_id
from engine.errors import NotAllowed, NotAuthenticated, ProviderUnavailable

__all__ = ["router"]

_COOKIE = "__Host-precedent-launch-"
"""Cookies of launches that have begun, each with the id of its launch at the end."""
_ANSWERS = ("code", "state", "iss", "error")


class _LaunchRoute(PageRoute):
    """Its problems are shown on a page, and end the launch."""

    @staticmethod
    def problem_page(request: Request, problem: Problem) -> HTMLResponse:
        if problem.code == ProviderUnavailable.code:
            problem = problem.model_copy(
                update={
                    "title": "The EHR cannot be asked",
                    "detail": "the EHR does not answer as it should; open the page from it again "
                    "in a while, and tell whoever runs this service, whose log says why",
                }
            )
        answer = PageRoute.problem_page(request, problem)
        _end(request, answer)
        return answer


router = APIRouter(
    route_class=_LaunchRoute, include_in_schema=False, default_response_class=HTMLResponse
)


@router.get("/smart/launch")
def launch(request: Request) -> Response:
    """Leads the browser to the EHR's authorization server.

    Raises:
        NotAllowed: no EHR in the settings has the address ``iss``.
        NotAuthenticated: the address of the launch is malformed.
        ProviderUnavailable: the EHR does not say where to go.
    """
    access: Access = request.state.access
    issuers = request.query_params.getlist("iss")
    launches = request.query_params.getlist("launch")
    if len(issuers) != 1 or len(launches) > 1:
        raise NotAuthenticated(
            "a launch brings the address of the EHR as iss, once, and what it gives as launch, "
            "once; open the page from the EHR"
        )
    begun = access.ehrs.begin(issuers[0], launches[0] if launches else None)
    answer = RedirectResponse(begun.url, HTTPStatus.SEE_OTHER)
    # Whoever leads a browser here again and again must not fill its headers.
    others = sorted(
        (name for name in request.cookies if name.startswith(_COOKIE)),
        key=lambda name: request.cookies[name],
        reverse=True,
    )
    for name in others[MOST_AT_ONCE - 1 :]:
        drop_cookie(answer, name)
    set_cookie(answer, _COOKIE + begun.id, begun.secret, MOST_SECONDS, framed=begun.framed)
    answer.headers["Cache-Control"] = "no-store"
    # The launch is nobody else's affair.
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


@router.get("/smart/callback")
def finish(request: Request) -> Response:
    """Begins a session of whom the EHR has signed in, and leads to the study that is open there.

    Raises:
        NotAuthenticated: the answer is to no launch of this browser, or says no.
        NotAllowed: whoever it is may not use the page.
        ProviderUnavailable: the EHR does not tell who it is.
    """
    access: Access = request.state.access
    given = request.query_params
    if any(len(given.getlist(name)) > 1 for name in _ANSWERS):
        raise NotAuthenticated("this answer is malformed; open the page from the EHR again")
    brought = {name: given[name] for name in _ANSWERS if name in given}
    kept = request.cookies.get(_COOKIE + (launch_id(given.get("state", "")) or ""))
    try:
        launched = access.ehrs.finish(kept, brought)
    except NotAllowed as error:
        # For the audit log: who may do nothing here.
        request.state.refused = error
        raise
    secret = access.launched(kept or "", launched)
    request.state.caller = access.of_session(secret)
    answer: Response
    if launched.unknown is not None:
        problem = problem_of(launched.unknown, request.url.path)
        log_problem(problem, launched.unknown)
        answer = _LaunchRoute.problem_page(request, problem)
    else:
        study = launched.study
        place = "../" + ("" if study is None else f"?study={quote(study)}")
        answer = RedirectResponse(place, HTTPStatus.SEE_OTHER)
        _end(request, answer)
    answer.headers["Cache-Control"] = "no-store"
    return with_session(answer, secret, framed=launched.framed)


def _end(request: Request, answer: Response) -> None:
    """Takes from the browser what it has kept of the launch that this is the answer to."""
    name = launch_id(request.query_params.get("state", ""))
    if name is not None and _COOKIE + name in request.cookies:
        drop_cookie(answer, _COOKIE + name)
