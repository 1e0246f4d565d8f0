"""Keys and the audit log: what administrators and data protection officers ask, and the answers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from .answers import Answer
from .call import Call, get, nothing, part, post

__all__ = [
    "ApiKey",
    "AuditFlaw",
    "AuditHead",
    "AuditRow",
    "AuditRows",
    "AuditWho",
    "CreatedKey",
    "Forgotten",
    "Keys",
    "VerifiedAudit",
    "audit",
    "audit_export",
    "create_key",
    "keys",
    "revoke_key",
    "verify_audit",
]


class ApiKey(Answer):
    """An API key without its secret. ``state``: "valid", "expired" or "revoked". ``last_used_at``:
    None: the latest rows of the audit log do not name it."""

    id: str
    name: str
    tenant: str
    scopes: list[str]
    state: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class CreatedKey(ApiKey):
    """A key that was made. ``key`` is itself, which is told this once; it is not in the repr."""

    key: str = Field(repr=False)


class Keys(Answer):
    """The keys of the tenant, the oldest first."""

    keys: list[ApiKey]


class AuditWho(Answer):
    """Who had access. ``kind``: of credential: "key", "session" or "token"."""

    kind: str
    id: str | None
    name: str | None
    tenant: str | None


class AuditRow(Answer):
    """An access. ``chain``, ``seq`` and ``hash``: its place in the log. ``action``: method and
    template of the route. ``outcome``: "ok", "refused" or "failed"."""

    at: datetime
    chain: str
    seq: int
    hash: str
    who: AuditWho
    action: str
    status: int
    outcome: str
    address: str | None
    request: str | None
    studies: list[str]
    studies_in_all: int
    images: list[str]
    images_in_all: int
    results: int | None
    verdict: str | None
    about: dict[str, str]


class AuditRows(Answer):
    """Rows of the audit log, the latest first."""

    rows: list[AuditRow]
    next_page: str | None


class AuditHead(Answer):
    """The last row of a chain."""

    seq: int
    hash: str
    whole: bool


class AuditFlaw(Answer):
    """A place where the log is not whole."""

    chain: str
    row: int
    what: str


class Forgotten(Answer):
    """That rows of ``before`` a time were removed for good."""

    at: datetime
    before: datetime
    who: str


class VerifiedAudit(Answer):
    """Whether the audit log is ``whole``. ``flaws``: the first 1,000, of ``flaws_in_all``."""

    at: datetime
    whole: bool
    rows: int
    heads: dict[str, AuditHead]
    flaws: list[AuditFlaw]
    flaws_in_all: int
    forgotten: list[Forgotten]


def keys() -> Call[Keys]:
    """The API keys of the tenant, also revoked and expired ones."""
    return get("listKeys", "/v1/keys", Keys)


def create_key(
    name: str, *, scopes: Sequence[str] = (), expires: str | None = None
) -> Call[CreatedKey]:
    """Make an API key of the tenant.

    Args:
        scopes: what it allows: "search" unless given; none that this client's own key lacks.
        expires: as in "90d" from now, or a date (UTC); None = when it is revoked.
    """
    fields = {"name": name, "scopes": list(scopes), "expires": expires}
    return post("createKey", "/v1/keys", CreatedKey, fields, repeatable=False)


def revoke_key(key_id: str) -> Call[ApiKey]:
    """End an API key of the tenant; when this returns, every process of the service refuses it."""
    return post("revokeKey", f"/v1/keys/{part(key_id)}/revoke", ApiKey)


def audit(
    *,
    who: str | None = None,
    route: str | None = None,
    study: str | None = None,
    image: str | None = None,
    outcome: str | None = None,
    verdict: str | None = None,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    limit: int | None = None,
    page: str | None = None,
) -> Call[AuditRows]:
    """Who had access to what: the accesses of the tenant that match all that is given, the latest
    first.

    Args:
        who: id or name of a key or a person. route: part of method and route.
        study, image: UID and id of what was shown, or asked for. outcome: "ok", "refused" or
            "failed". verdict: "known", "unfamiliar" or "foreign".
        since, until: from this time on, and before this one; UTC unless they say otherwise.
        page: ``next_page`` of the answer before.
    """
    options = {
        "who": who,
        "route": route,
        "study": study,
        "image": image,
        "outcome": outcome,
        "verdict": verdict,
        "since": _time(since),
        "until": _time(until),
        "limit": limit,
        "page": page,
    }
    return get("searchAudit", "/v1/audit", AuditRows, options)


def audit_export(
    *, since: datetime | str | None = None, until: datetime | str | None = None
) -> Call[None]:
    """The accesses of the tenant as FHIR AuditEvents, one a line."""
    given = {"since": _time(since), "until": _time(until)}
    options = tuple((name, one) for name, one in given.items() if one is not None)
    return Call("exportAudit", "GET", "/v1/audit/export", nothing, options)


def verify_audit(heads: Mapping[str, Any] | None = None) -> Call[VerifiedAudit]:
    """Whether no row of the audit log was changed, removed or added.

    Args:
        heads: the last row of each chain as they were once, with ``seq`` and ``hash``: ``heads`` of
            an earlier answer.
    """
    known = {
        chain: one.model_dump(include={"seq", "hash"}) if isinstance(one, AuditHead) else one
        for chain, one in (heads or {}).items()
    }
    return post("verifyAudit", "/v1/audit/verify", VerifiedAudit, {"heads": known})


def _time(given: datetime | str | None) -> str | None:
    return given.isoformat() if isinstance(given, datetime) else given
