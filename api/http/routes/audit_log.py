"""The audit log of the caller's tenant: searched, verified and exported."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from api.audit.export import audit_event
from api.audit.log import AuditLog
from api.audit.rows import Head, Row
from api.audit.search import OUTCOMES, VERDICTS, Place, Wanted, newest, time_of
from api.audit.verify import Verified, verify
from api.http.addresses import Address
from api.http.audit import named_by
from api.http.audit_at_hand import AuditAtHand
from api.http.deps import EXAMPLE_ID, EXAMPLE_STUDY
from api.http.head import is_head
from api.http.problems import problem_responses
from api.security.seen import Seen, tell

__all__ = [
    "AuditDocument",
    "AuditRowDocument",
    "HeadsRequest",
    "VerifiedDocument",
    "export_audit",
    "router",
    "search_audit",
    "verify_audit",
]

router = APIRouter(tags=["audit"])

FHIR_LINES = "application/fhir+ndjson"
_MOST_ROWS = 200
_AT_ONCE = 200
"""Rows of an export that are in memory."""
_MOST_FLAWS = 1000
_MOST_HEADS = 100_000
_HASH = "8f14e45fceea167a5a36dedd4bea2543c1d8a2b2f4a6c4f2b7a5d1e3c9f0b7a6"
_ROW = {
    "at": "2026-03-01T09:05:00.120000+00:00",
    "chain": "5f0c3a91d27be468",
    "seq": 41,
    "hash": _HASH,
    "who": {"kind": "key", "id": "0b9d3c5a1f8e4d6c", "name": "ward 3", "tenant": "default"},
    "action": "GET /v1/images/{id}",
    "status": 200,
    "outcome": "ok",
    "address": "192.0.2.9",
    "request": "0b9d3c5a1f8e4d6c9a7b2e4f6a8c0d1e",
    "studies": [EXAMPLE_STUDY],
    "studies_in_all": 1,
    "images": [EXAMPLE_ID],
    "images_in_all": 1,
    "results": None,
    "verdict": None,
    "about": {},
}
_VERIFIED = {
    "at": "2026-03-01T09:05:00+00:00",
    "whole": True,
    "rows": 42,
    "heads": {"5f0c3a91d27be468": {"seq": 41, "hash": _HASH, "whole": True}},
    "flaws": [],
    "flaws_in_all": 0,
    "forgotten": [],
}
_READ = (ValueError, KeyError, TypeError, AttributeError)
"""What comes of a row that was changed; verifying tells of it."""
_Text = Annotated[str, Query(max_length=200)]
_Time = Annotated[str, Query(max_length=40, examples=["2026-03-01T08:00"])]


class AuditWhoDocument(BaseModel):
    """Who had access. `kind`: of credential: "key", "session" or "token". `id`: public id of the
    key, or of the person at the identity provider."""

    model_config = ConfigDict(frozen=True)

    kind: str
    id: str | None
    name: str | None
    tenant: str | None


class AuditRowDocument(BaseModel):
    """An access.

    - `at`: when, UTC. `chain`, `seq`, `hash`: the row's place in the log.
    - `action`: method and template of the route. `status`: of HTTP; 102: it was about to be done.
    - `outcome`: "ok", "refused" or "failed". `address`: of the client.
    - `studies`, `images`: shown, or asked for: 1,000 at most, of so many `in_all`.
    - `about`: what else it concerned, by name, such as the `key` that was made.
    """

    model_config = ConfigDict(frozen=True)

    at: str
    chain: str
    seq: int
    hash: str
    who: AuditWhoDocument
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

    @classmethod
    def of(cls, row: Row) -> "AuditRowDocument":
        """Raises what :data:`_READ` names if the row was changed."""
        told = row.document
        about = {
            str(name): " ".join(map(str, one)) if isinstance(one, list) else str(one)
            for name, one in told["about"].items()
        }
        return cls.model_validate({**told, "hash": row.hash, "about": about})


class AuditDocument(BaseModel):
    """Rows, the latest first. `next_page`: to get those before, repeat the request with it as
    `page`, also where there are fewer rows than asked for, or none; null: there are no more."""

    model_config = ConfigDict(frozen=True)

    rows: list[AuditRowDocument]
    next_page: str | None


class AuditHeadDocument(BaseModel):
    """The last row of a chain. `whole`: nothing is wrong with the chain."""

    model_config = ConfigDict(frozen=True)

    seq: int
    hash: str
    whole: bool


class AuditFlawDocument(BaseModel):
    """A place where the log is not whole. `row`: its number in the chain."""

    model_config = ConfigDict(frozen=True)

    chain: str
    row: int
    what: str


class ForgottenDocument(BaseModel):
    """That rows of `before` a time were removed for good; `at`: when; `who`: by whom."""

    model_config = ConfigDict(frozen=True)

    at: str
    before: str
    who: str


class VerifiedDocument(BaseModel):
    """What verifying found, of all chains.

    - `rows`: of all tenants. `heads`: the last row of each chain. Keep this answer where the
      service cannot write: later rows are verified against it.
    - `flaws`: the first 1,000, of `flaws_in_all`.
    """

    model_config = ConfigDict(frozen=True)

    at: str
    whole: bool
    rows: int
    heads: dict[str, AuditHeadDocument]
    flaws: list[AuditFlawDocument]
    flaws_in_all: int
    forgotten: list[ForgottenDocument]

    @classmethod
    def of(cls, found: Verified, at: datetime) -> "VerifiedDocument":
        flawed = {flaw.chain for flaw in found.flaws}
        return cls(
            at=at.isoformat(timespec="seconds"),
            whole=not found.flaws,
            rows=found.rows,
            heads={
                chain: AuditHeadDocument(seq=one.seq, hash=one.hash, whole=chain not in flawed)
                for chain, one in found.heads.items()
            },
            flaws=[
                AuditFlawDocument(chain=one.chain, row=one.seq, what=one.what)
                for one in found.flaws[:_MOST_FLAWS]
            ],
            flaws_in_all=len(found.flaws),
            forgotten=[
                ForgottenDocument(at=one.at, before=one.before, who=one.who)
                for one in found.forgotten
            ],
        )


class KeptHead(BaseModel):
    """The last row of a chain, as it was once."""

    model_config = ConfigDict(frozen=True)

    seq: Annotated[int, Field(ge=0, lt=2**63)]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class HeadsRequest(BaseModel):
    """`heads`: the last row of each chain, as they were once. An earlier answer may be sent as it
    is, and so may the file of `precedent audit export --heads`: what else is in it is not read."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [{"heads": {"5f0c3a91d27be468": {"seq": 41, "hash": _HASH}}}]
        },
    )

    heads: Annotated[dict[str, KeptHead], Field(max_length=_MOST_HEADS)] = {}


_NO_HEADS = HeadsRequest()


def _told(example: object) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


@router.get(
    "/v1/audit",
    operation_id="searchAudit",
    summary="Who had access to what",
    responses={
        **_told({"rows": [_ROW], "next_page": None}),
        **problem_responses(400, 422, 503),
    },
)
def search_audit(
    request: Request,
    who: Annotated[_Text | None, Query(description="Id or name of a key or a person.")] = None,
    route: Annotated[_Text | None, Query(description="Part of method and route.")] = None,
    study: Annotated[_Text | None, Query(description="Study Instance UID.")] = None,
    image: Annotated[_Text | None, Query(description="Id of an image.")] = None,
    outcome: Annotated[
        _Text | None,
        Query(description="How it ended.", json_schema_extra={"enum": [*OUTCOMES, None]}),
    ] = None,
    verdict: Annotated[
        _Text | None,
        Query(description="On the query.", json_schema_extra={"enum": [*VERDICTS, None]}),
    ] = None,
    since: Annotated[_Time | None, Query(description="From this time on (UTC).")] = None,
    until: Annotated[_Time | None, Query(description="Before this time.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_ROWS, description="Most rows.")] = 100,
    page: Annotated[
        str | None, Query(max_length=200, description="`next_page` of the answer before.")
    ] = None,
) -> AuditDocument:
    """The accesses of the caller's tenant that match all that is given, the latest first. What was
    refused before it was known who asks, and what was done by commands, is of no tenant and not
    among them."""
    wanted = Wanted(
        who=who or None,
        route=route or None,
        study=study or None,
        image=image or None,
        outcome=outcome or None,
        verdict=verdict or None,
        tenant=request.state.caller.tenant,
        since=time_of(since, "since") if since else None,
        until=time_of(until, "until") if until else None,
    )
    rows, after = newest(_log(request), wanted, limit, Place.parse(page) if page else None)
    shown = [told for row in rows if (told := _document(row)) is not None]
    # What is no UID and no id may be any text, and is not written down.
    tell(request, named_by(Address("", {}, {"uid": study or "", "id": image or ""})))
    tell(request, Seen(results=len(shown)))
    return AuditDocument(rows=shown, next_page=None if after is None else str(after))


@router.get(
    "/v1/audit/export",
    operation_id="exportAudit",
    summary="The audit log as FHIR AuditEvents",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                FHIR_LINES: {
                    "schema": {"type": "string"},
                    "examples": {
                        "events": {"value": '{"resourceType":"AuditEvent","action":"R"}\n'}
                    },
                }
            }
        },
        **problem_responses(400, 422, 503),
    },
)
def export_audit(
    request: Request,
    since: Annotated[_Time | None, Query(description="From this time on (UTC).")] = None,
    until: Annotated[_Time | None, Query(description="Before this time.")] = None,
) -> Response:
    """One a line (NDJSON), of the accesses of the caller's tenant until now, in the order of time.
    Each says where it stands in the log; whether that is whole, `verifyAudit` tells."""
    begin = time_of(since, "since") if since else None
    end = min(time_of(until, "until") if until else datetime.now(UTC), datetime.now(UTC))
    log = _log(request)
    places, tenant = _at_hand(request).exporting, request.state.caller.tenant
    places.check(tenant)
    headers = {
        "Content-Disposition": 'attachment; filename="accesses.ndjson"',
        "Cache-Control": "no-store",
    }
    if is_head(request.scope):
        return Response(media_type=FHIR_LINES, headers=headers)

    def lines() -> Iterator[str]:
        places.take(tenant, anyway=True)
        try:
            for part in _exported(log, tenant, begin, end):
                # Whoever lost the right to it meanwhile gets no more.
                request.state.still_allowed()
                yield part
        finally:
            places.give_back(tenant)

    return StreamingResponse(lines(), media_type=FHIR_LINES, headers=headers)


@router.post(
    "/v1/audit/verify",
    operation_id="verifyAudit",
    summary="Whether the audit log is whole",
    responses={**_told(_VERIFIED), **problem_responses(400, 422, 503)},
)
def verify_audit(
    request: Request, asked: Annotated[HeadsRequest, Body()] = _NO_HEADS
) -> VerifiedDocument:
    """Every row of every chain is looked at: none was changed, removed or added. Rows that were cut
    off at an end show only where `heads` names them. Chains have rows of all tenants; this tells
    numbers and hashes of them."""
    known = {chain: Head(chain, one.seq, one.hash) for chain, one in asked.heads.items()}
    with _at_hand(request).verifying.held(request.state.caller.tenant):
        found = verify(_log(request), known)
    tell(request, Seen(results=found.rows))
    return VerifiedDocument.of(found, datetime.now(UTC))


def _exported(log: AuditLog, tenant: str, begin: datetime | None, end: datetime) -> Iterator[str]:
    """The lines of the rows of a tenant, some hundred at a time."""
    named = [f'"tenant":{json.dumps(tenant)}']
    lines: list[str] = []
    for row in log.between(begin, end, naming=named, at_a_time=_AT_ONCE):
        try:
            if row.document["who"]["tenant"] == tenant:
                lines.append(json.dumps(audit_event(row)) + "\n")
        except _READ:
            continue
        if len(lines) == _AT_ONCE:
            yield "".join(lines)
            lines.clear()
    yield "".join(lines)


def _document(row: Row) -> AuditRowDocument | None:
    """None = the row was changed."""
    try:
        return AuditRowDocument.of(row)
    except _READ:
        return None


def _at_hand(request: Request) -> AuditAtHand:
    found: AuditAtHand = request.state.audit_at_hand
    return found


def _log(request: Request) -> AuditLog:
    return _at_hand(request).log()
