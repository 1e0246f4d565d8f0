"""Which language a browser is answered in: what its address, its cookie or its header asks for."""

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.portal.catalogues import LANGUAGES, speaking
from api.portal.cookies import set_cookie
from api.security.access import FRAMED
from api.security.policy import POLICY

__all__ = [
    "COOKIE",
    "Choice",
    "LanguageRoute",
    "choices",
    "in_language",
    "language_of",
    "preferred",
]

COOKIE = "__Host-precedent-language"
"""Cookie with the language that was chosen on a page. It has nothing of a person."""
_PARAMETER = "lang"
_KEPT_SECONDS = 365 * 24 * 60 * 60
_LONGEST = 1000
"""Characters of the header; no browser sends so many, and a longer one is not read."""
_RANGE = re.compile(
    r"([a-z]{1,8}|\*)(?:-[a-z0-9]{1,8})*"
    r"(?:[ \t]*;[ \t]*q=(1(?:\.0{0,3})?|0(?:\.[0-9]{0,3})?))?",
    re.ASCII | re.IGNORECASE,
)
"""A language range with its weight (RFC 9110, 12.5.4)."""

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class LanguageRoute(APIRoute):
    """A route of pages, which are in the language that is asked for."""

    def get_route_handler(self) -> _Handler:
        return in_language(super().get_route_handler())


def in_language(handle: _Handler) -> _Handler:
    """The same handler, which speaks the language that is asked for. One that the address asks for
    is kept in a cookie."""

    async def speak(request: Request) -> Response:
        with speaking(language_of(request)):
            answer = await handle(request)
        chosen = _by_address(request)
        if chosen is not None and chosen != request.cookies.get(COOKIE):
            # In a frame of another site browsers take such a cookie alone.
            framed = FRAMED in request.cookies
            set_cookie(answer, COOKIE, chosen, _KEPT_SECONDS, framed=framed)
        return answer

    return speak


def language_of(request: Request, *, keeps: bool = True) -> str:
    """One of :data:`LANGUAGES`: that of the address (``lang``), else of the cookie, else the one
    that the browser prefers, else that of the settings.

    Args:
        keeps: whether a cookie counts.
    """
    kept = request.cookies.get(COOKIE) if keeps else None
    chosen = _by_address(request) or (kept if kept in LANGUAGES else None)
    if chosen is not None:
        return chosen
    sent = ",".join(request.headers.getlist("accept-language"))
    return preferred(sent, request.app.state.language)


def _by_address(request: Request) -> str | None:
    """The language that the address asks for, if the pages speak it."""
    return next((one for one in request.query_params.getlist(_PARAMETER) if one in LANGUAGES), None)


def preferred(sent: str, otherwise: str) -> str:
    """The language that suits best what a browser prefers.

    Args:
        sent: ``Accept-Language``. What of it is malformed counts for nothing.
        otherwise: where it names none that the pages speak.
    """
    if len(sent) > _LONGEST:
        return otherwise
    wanted: dict[str, float] = {}
    for part in sent.split(","):
        if found := _RANGE.fullmatch(part.strip()):
            name = found[1].lower()
            wanted[name] = max(wanted.get(name, 0.0), float(found[2] or 1))
    # Of those that are wanted alike, the first: sorting keeps their order.
    for name in sorted(wanted, key=lambda one: -wanted[one]):
        if wanted[name] and name in LANGUAGES:
            return name
        if wanted[name] and name == "*":
            others = [otherwise, *LANGUAGES]
            return next((one for one in others if wanted.get(one, 1.0)), otherwise)
    return otherwise


@dataclass(frozen=True, slots=True)
class Choice:
    """A language to choose. name: what it calls itself. address: of this page in it; None = the
    page is in it."""

    code: str
    name: str
    address: str | None


def choices(request: Request, spoken: str, root: str, again: str | None = None) -> list[Choice]:
    """The languages, each with the address of this page in it.

    Args:
        root: what leads to the search page.
        again: the address that shows what the page shows, where it is not that of the page; None =
            it is, as far as there is one.
    """
    if again is not None:
        here, _, query = again.partition("?")
        before = f"{here}?{query}&" if query else f"{here}?"
    elif request.method in ("GET", "HEAD"):
        items = [item for item in request.query_params.multi_items() if item[0] != _PARAMETER]
        before = f"?{urlencode(items)}&" if items else "?"
    else:
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        before = "?" if ("GET", path) in POLICY else f"./{root}?"
    return [
        Choice(code, name, None if code == spoken else f"{before}{_PARAMETER}={code}")
        for code, name in LANGUAGES.items()
    ]
