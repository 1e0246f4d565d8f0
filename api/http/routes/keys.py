"""Lists, makes and revokes the API keys of the caller's tenant."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from api.audit.last_uses import last_uses
from api.http.audit import record_before
from api.http.audit_at_hand import AuditAtHand
from api.http.problems import problem_responses
from api.security.access import Access
from api.security.keys import ApiKey, end_of
from api.security.policy import Scope
from api.security.seen import Seen, tell, tell_about
from api.security.tenant_keys import TenantKeys

__all__ = [
    "CreatedKeyDocument",
    "KeyDocument",
    "KeyRequest",
    "create_key",
    "list_keys",
    "revoke_key",
    "router",
]

router = APIRouter(tags=["keys"])

_EXAMPLE_KEY = "5f0c3a91d27be468"
_EXAMPLE = {
    "id": _EXAMPLE_KEY,
    "name": "ward 3",
    "tenant": "default",
    "scopes": ["search"],
    "state": "valid",
    "created_at": "2026-03-01T09:05:00+00:00",
    "expires_at": "2026-05-30T09:05:00+00:00",
    "revoked_at": None,
    "last_used_at": "2026-03-02T07:41:12+00:00",
}
_MADE = {**_EXAMPLE, "last_used_at": None, "key": "prc_5f0c3a91d27be468_…"}
_REVOKED = {**_EXAMPLE, "state": "revoked", "revoked_at": "2026-03-04T16:20:00+00:00"}
_Id = Annotated[str, Path(alias="id", description="Public id of a key.", examples=[_EXAMPLE_KEY])]


class KeyRequest(BaseModel):
    """A key to be made.

    - `name`: whose it is, or what for. `scopes`: what it allows; none that the credential of the
      request lacks.
    - `expires`: as in "90d" from now, or a date, as in "2031-12-31" (UTC); null: it holds until it
      is revoked.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ward 3", "scopes": ["search"], "expires": "90d"}]
        },
    )

    name: Annotated[str, Field(min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))] = [Scope.SEARCH]
    expires: Annotated[str, Field(max_length=40)] | None = None


class KeyDocument(BaseModel):
    """A key without its secret.

    - `state`: "valid", "expired" or "revoked".
    - `last_used_at`: as far as the latest rows of the audit log tell; null: they do not name it.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    tenant: str
    scopes: list[str]
    state: Literal["valid", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None

    @classmethod
    def of(cls, key: ApiKey, used: datetime | None = None) -> "KeyDocument":
        """used: when it was used last; None = that is not known."""
        return cls(**_values(key, used))


class CreatedKeyDocument(KeyDocument):
    """A key that was made. `key`: itself, as requests send it; it is told this once and kept
    nowhere."""

    key: Annotated[str, Field(repr=False)]


class KeysDocument(BaseModel):
    """`keys`: those of the tenant, also revoked and expired ones, the oldest first."""

    model_config = ConfigDict(frozen=True)

    keys: list[KeyDocument]


def _values(key: ApiKey, used: datetime | None) -> dict[str, Any]:
    state = "revoked" if key.revoked_at else "valid" if key.holds(datetime.now(UTC)) else "expired"
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "state": state,
        **{
            name: None if at is None else at.isoformat()
            for name, at in {**times, "last_used_at": used}.items()
        },
    }


def _told(status: int, example: object) -> dict[int | str, dict[str, Any]]:
    return {status: {"content": {"application/json": {"example": example}}}}


@router.get(
    "/v1/keys",
    operation_id="listKeys",
    summary="The API keys of the tenant",
    responses={**_told(200, {"keys": [_EXAMPLE]}), **problem_responses(503)},
)
def list_keys(request: Request) -> KeysDocument:
    """All that were ever made, without their secrets."""
    caller = request.state.caller
    found = _keys(request).all()
    audit: AuditAtHand = request.state.audit_at_hand
    used = last_uses(audit.log(), caller.tenant) if request.state.audit is not None else {}
    tell(request, Seen(results=len(found)))
    return KeysDocument(keys=[KeyDocument.of(key, used.get(key.id)) for key in found])


@router.post(
    "/v1/keys",
    operation_id="createKey",
    summary="Make an API key",
    status_code=201,
    response_description="The key, which is told this once.",
    responses={**_told(201, _MADE), **problem_responses(400, 422, 503)},
)
def create_key(asked: KeyRequest, request: Request) -> CreatedKeyDocument:
    """The key is of the caller's tenant, and has no scope that the caller's credential lacks.
    Sent twice, this makes two keys."""
    until = None if asked.expires is None else end_of(asked.expires)
    key, written = _keys(request).create(
        asked.name,
        _once(asked.scopes),
        request.state.caller.scopes,
        expires_at=until,
        announce=lambda key: _announce(request, key),
    )
    return CreatedKeyDocument(key=written, **_values(key, None))


@router.post(
    "/v1/keys/{id}/revoke",
    operation_id="revokeKey",
    summary="End an API key",
    responses={**_told(200, _REVOKED), **problem_responses(404, 422, 503)},
)
def revoke_key(key_id: _Id, request: Request) -> KeyDocument:
    """When this is answered, every process of the service refuses the key, its sessions and its
    embed tokens. A key that was revoked before keeps its time. It may be the caller's own."""
    return KeyDocument.of(_keys(request).revoke(key_id, lambda key: _announce(request, key)))


def _keys(request: Request) -> TenantKeys:
    access: Access = request.state.access
    return access.keys_of(request.state.caller.tenant)


def _announce(request: Request, key: ApiKey) -> None:
    """Records what is about to become of the key. Raises AuditError: nothing must become of it."""
    tell_about(request, key=key.id, scopes=sorted(key.scopes))
    record_before(request)


def _once(scopes: Sequence[Scope]) -> list[Scope]:
    return list(dict.fromkeys(scopes))
