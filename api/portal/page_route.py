"""Routes of pages, whose errors are shown as pages as well."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

from api.http.problems import Problem, log_problem, problem_of
from api.portal.beside import home_of, pages_beside
from api.portal.catalogues import language
from api.portal.language import choices, in_language
from api.portal.pages import html_page
from api.portal.sessions import form_token
from api.security.access import Caller
from engine.errors import PrecedentError

__all__ = ["PageRoute", "page", "root_of"]


class PageRoute(APIRoute):
    """A route whose errors are shown on a page, including those of its dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_show_problem(request: Request) -> Response:
            try:
                return await handle(request)
            except (PrecedentError, HTTPException, RequestValidationError) as error:
                problem = problem_of(error, request.url.path)
                log_problem(problem, error)
                return await run_in_threadpool(self.problem_page, request, problem)

        return in_language(handle_or_show_problem)

    @staticmethod
    def problem_page(request: Request, problem: Problem) -> HTMLResponse:
        """The page that shows a problem. It repeats nothing of an address that others may have
        made: in another language there is the search page."""
        values = {"problem": problem, "again": f"./{root_of(request)}"}
        return page(request, "problem.html", values, problem.status)


def root_of(request: Request) -> str:
    """What leads from the address of this page to that of the search page; empty on that itself."""
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    return "../" * (path.count("/") - 1)


def page(
    request: Request, template: str, values: dict[str, Any], status: int = 200
) -> HTMLResponse:
    """The page of a template, with what all pages need. Among the values may be ``again``: the
    address that shows the same, where the one that was asked for does not."""
    caller: Caller | None = request.state.caller
    shared = {
        "root": root_of(request),
        "home": home_of(caller),
        "csrf": form_token(request),
        "beside": pages_beside(caller),
        "tenant": "" if caller is None else caller.tenant,
        "languages": choices(request, language(), root_of(request), values.get("again")),
    }
    return html_page(template, {**shared, **values}, status)
