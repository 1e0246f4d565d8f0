"""The page of API keys: the tenant's, with what makes and revokes them."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.http.routes.keys import (
    CreatedKeyDocument,
    KeyRequest,
    create_key,
    list_keys,
    revoke_key,
)
from api.portal.catalogues import later
from api.portal.page_route import PageRoute, page
from api.portal.sessions import OwnForm
from api.security.policy import Scope
from engine.errors import AccessError, KeyNotFound

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_MEANINGS = {
    Scope.SEARCH: later("search, and see images"),
    Scope.INDEX: later("bring images in, and delete them"),
    Scope.ADMIN: later("make and revoke keys; see where files lie"),
    Scope.AUDIT: later("read the audit log"),
    Scope.METRICS: later("read figures of the whole service"),
    Scope.SEND: later("documents that name patients, and sending them"),
}
_STATES = {"valid": later("valid"), "expired": later("expired"), "revoked": later("revoked")}


@router.get("/keys")
def show_keys(request: Request, revoke: Annotated[str, Query(max_length=40)] = "") -> HTMLResponse:
    """The keys of the tenant.

    Args:
        revoke: id of the key that is about to be revoked, which is asked for once more.

    Raises:
        KeyNotFound: there is none of this id.
    """
    return _page(request, revoke=revoke)


@router.post("/keys", response_model=None, dependencies=[OwnForm])
def change_keys(
    request: Request,
    action: Annotated[Literal["create", "revoke"], Form()],
    key_id: Annotated[str, Form(alias="id", max_length=40)] = "",
    name: Annotated[str, Form(max_length=200)] = "",
    scopes: Annotated[list[Scope] | None, Form(max_length=len(Scope))] = None,
    expires: Annotated[Literal["30d", "90d", "365d", ""], Form()] = "90d",
) -> Response:
    """Makes a key and shows it, this once; or revokes one, after which the keys are shown.

    Raises:
        AccessError: the key has no name or no scope. NotAllowed: it would have one that the caller
            lacks. KeyNotFound: there is none of this id.
    """
    if action == "revoke":
        revoke_key(key_id, request)
        return RedirectResponse(f"keys#key-{key_id}", HTTPStatus.SEE_OTHER)
    if not name.strip() or not scopes:
        raise AccessError("a key needs a name and at least one scope; go back and choose them")
    asked = KeyRequest(name=name, scopes=scopes, expires=expires or None)
    return _page(request, made=create_key(asked, request))


def _page(
    request: Request, *, revoke: str = "", made: CreatedKeyDocument | None = None
) -> HTMLResponse:
    known = list_keys(request).keys
    leaving = next((key for key in known if key.id == revoke), None)
    if revoke and leaving is None:
        raise KeyNotFound(f"there is no key {revoke!r}; the list of keys has their ids")
    caller = request.state.caller
    values = {
        "keys": known[::-1],
        "made": made,
        "leaving": leaving,
        "own": caller.key,
        "states": _STATES,
        "scopes": [(one.value, _MEANINGS[one]) for one in Scope if one in caller.scopes],
    }
    return page(request, "keys.html", values)
