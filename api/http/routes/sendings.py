"""Sends DICOM documents to destinations that the settings name, and says what became of them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.http.audit import record_before, who_is
from api.http.deps import EXAMPLE_STUDY, ArchiveDep
from api.http.problems import problem_responses
from api.http.routes.documents import (
    EarlierFields,
    ReportFields,
    TeachingFields,
    earlier_plans,
    made,
    report_plans,
    teaching_plans,
)
from api.http.sender import Sender
from api.security.seen import Seen, tell, tell_about
from engine.errors import DestinationUnknown, QueryError
from engine.settings import Settings
from indexer.documents.outbox import destinations_of
from indexer.documents.sendings import Sending, document_of

__all__ = ["SendingDocument", "SendingRequest", "router", "send_documents"]

router = APIRouter(tags=["documents"])

_EXAMPLE_SENDING = "0b9d3c5a1f8e4d6c9a7b2e4f6a8c0d1e"
_EXAMPLE = {
    "id": _EXAMPLE_SENDING,
    "destination": "pacs",
    "state": "sent",
    "attempts": 1,
    "made_at": "2026-03-01T09:05:00+00:00",
    "next_at": None,
    "ended_at": "2026-03-01T09:05:01+00:00",
    "why": None,
    "commitment": "committed",
    "instances": [
        {
            "kind": "sr",
            "sop": "2.25.296866306171802571153736239870500456699",
            "state": "stored",
            "status": "0x0000",
            "detail": None,
            "committed": True,
            "failure": None,
        }
    ],
}
_WAITING = {
    **_EXAMPLE,
    "state": "waiting",
    "next_at": "2026-03-01T09:05:30+00:00",
    "ended_at": None,
    "why": "destination 'pacs' cannot store now (HTTP 503)",
    "commitment": "not-asked",
    "instances": [],
}
_TOLD: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": _EXAMPLE}}}
}
_LISTED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": {"sendings": [_EXAMPLE]}}}}
}
_Id = Annotated[str, Path(alias="id", description="Id of a sending.", examples=[_EXAMPLE_SENDING])]
_Uid = Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")]
_Limit = Annotated[int, Query(description="The latest so many.", ge=1, le=1000)]
_Commitment = Literal[
    "not-asked", "not-offered", "refused", "asked", "committed", "failed", "unanswered"
]


class _ReportToSend(ReportFields):
    """A report, as of `POST /v1/studies/{uid}/report`, in the study `study`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"study": EXAMPLE_STUDY, "format": "sr", "k": 5}]}
    )

    study: _Uid


class _EarlierToSend(EarlierFields):
    """Key objects, as of `POST /v1/studies/{uid}/key-objects`, for the study `study`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"study": EXAMPLE_STUDY, "k": 20}]})

    study: _Uid


class SendingRequest(BaseModel):
    """What is to be sent where: one of `report`, `earlier` and `teaching`.

    - `destination`: its name in the service's settings.
    - `teaching`: key objects as of `POST /v1/key-objects`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"destination": "pacs", "report": {"study": EXAMPLE_STUDY}}]
        },
    )

    destination: Annotated[str, Field(min_length=1, max_length=200)]
    report: _ReportToSend | None = None
    earlier: _EarlierToSend | None = None
    teaching: TeachingFields | None = None


class SentInstanceDocument(BaseModel):
    """What became of one document.

    - `state`: "stored"; "refused" for good; "waiting" to be tried again.
    - `status`: of the destination's answer, as in "0x0000" (C-STORE), "200", or a Failure Reason.
    - `committed`: whether the destination answers for it (storage commitment); null: it did not
      say. `failure`: the Failure Reason if it does not.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["sr", "pdf", "of-interest", "teaching"]
    sop: str
    state: Literal["stored", "refused", "waiting"]
    status: str | None
    detail: str | None
    committed: bool | None
    failure: str | None


class SendingDocument(BaseModel):
    """Documents on their way to a destination.

    - `state`: "waiting" to be tried again, at `next_at`; "sent": all are stored; "failed": some
      were refused, or all attempts made; "cancelled".
    - `attempts`: how many there were. `why`: what was in the way last.
    - `commitment`: storage commitment: "not-asked", "not-offered", "refused", "asked" (the answer
      is awaited), "committed", "failed" (not of all documents), or "unanswered".
    """

    model_config = ConfigDict(frozen=True)

    id: str
    destination: str
    state: Literal["waiting", "sent", "failed", "cancelled"]
    attempts: int
    made_at: str
    next_at: str | None
    ended_at: str | None
    why: str | None
    commitment: _Commitment
    instances: list[SentInstanceDocument]

    @classmethod
    def of(cls, sending: Sending) -> "SendingDocument":
        return cls.model_validate(document_of(sending))


class SendingsDocument(BaseModel):
    """`sendings`: the newest first."""

    model_config = ConfigDict(frozen=True)

    sendings: list[SendingDocument]


class DestinationDocument(BaseModel):
    """`name`: as requests give it. `kind`: "dicom" (C-STORE) or "stow" (STOW-RS)."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"name": "pacs", "kind": "dicom"}]}
    )

    name: str
    kind: Literal["dicom", "stow"]


class DestinationsDocument(BaseModel):
    """`destinations`: where the settings let the caller's tenant send documents."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={"examples": [{"destinations": [{"name": "pacs", "kind": "dicom"}]}]},
    )

    destinations: list[DestinationDocument]


@router.get(
    "/v1/destinations",
    operation_id="listDestinations",
    summary="Where documents may be sent",
    responses=problem_responses(422, 503),
)
def list_destinations(request: Request, archive: ArchiveDep) -> DestinationsDocument:
    """The names that the settings give to destinations; their addresses are not told."""
    found = destinations_of(archive.settings, request.state.caller.tenant)
    return DestinationsDocument(
        destinations=[DestinationDocument(name=name, kind=one.kind) for name, one in found.items()]
    )


@router.post(
    "/v1/sendings",
    operation_id="sendDocuments",
    summary="Send documents to a PACS",
    status_code=201,
    response_description="All documents are stored there.",
    responses={
        201: {"content": {"application/json": {"example": _EXAMPLE}}},
        202: {
            "model": SendingDocument,
            "content": {"application/json": {"example": _WAITING}},
            "description": "Not all of them are; `state` says whether they are tried again.",
        },
        **problem_responses(400, 404, 409, 422, 502, 503),
    },
)
def send_documents(
    asked: SendingRequest, request: Request, response: Response, archive: ArchiveDep
) -> SendingDocument:
    """They are made now, and sent at once. What cannot be sent because the destination is away or
    busy is tried again, also after a restart: then the documents are made anew, with the same UIDs,
    since nothing of the patient is kept in between."""
    sender: Sender = request.state.sender
    tenant = request.state.caller.tenant
    _check_destination(asked.destination, archive.settings, tenant)
    given = [name for name in ("report", "earlier", "teaching") if getattr(asked, name)]
    if len(given) != 1:
        came = " and ".join(given) or "none of them"
        raise QueryError(f"give one of report, earlier and teaching; {came} came")
    if asked.report is not None:
        plans = report_plans(asked.report.study, asked.report, archive)
    elif asked.earlier is not None:
        plans = earlier_plans(asked.earlier.study, asked.earlier, archive, sender)
    else:
        plans = teaching_plans(asked.teaching, archive)  # type: ignore[arg-type]  # the third
    documents = made(plans, request, archive)
    tell_about(request, destination=asked.destination)
    record_before(request)
    who = who_is(request.state.caller, None)
    done = sender.send(asked.destination, plans, documents, archive, tenant, who)
    tell_about(request, sending=done.id)
    response.headers["Location"] = f"/v1/sendings/{done.id}"
    response.status_code = 201 if done.state == "sent" else 202
    return SendingDocument.of(done)


@router.get(
    "/v1/sendings",
    operation_id="listSendings",
    summary="What was sent, and what became of it",
    responses={**_LISTED, **problem_responses(422, 503)},
)
def list_sendings(request: Request, limit: _Limit = 100) -> SendingsDocument:
    """Those that ended are listed for as long as the setting `documents.keep_days` says."""
    sender: Sender = request.state.sender
    found = sender.outbox.newest(request.state.caller.tenant, limit)
    return SendingsDocument(sendings=[SendingDocument.of(one) for one in found])


@router.get(
    "/v1/sendings/{id}",
    operation_id="getSending",
    summary="What became of a sending",
    responses={**_TOLD, **problem_responses(404, 422, 503)},
)
def get_sending(request: Request, sending_id: _Id) -> SendingDocument:
    """Each of its documents, and whether and when it is tried again."""
    sender: Sender = request.state.sender
    return _told(request, sender.outbox.of(sending_id, request.state.caller.tenant))


@router.post(
    "/v1/sendings/{id}/retry",
    operation_id="retrySending",
    summary="Try a sending again",
    responses={**_TOLD, **problem_responses(404, 409, 422, 503)},
)
def retry_sending(request: Request, sending_id: _Id) -> SendingDocument:
    """What is not stored is tried again within seconds, also what was refused, and what the
    destination does not commit itself to."""
    sender: Sender = request.state.sender
    return _told(request, sender.outbox.retry(sending_id, request.state.caller.tenant))


@router.post(
    "/v1/sendings/{id}/cancel",
    operation_id="cancelSending",
    summary="End a sending",
    responses={**_TOLD, **problem_responses(404, 409, 422, 503)},
)
def cancel_sending(request: Request, sending_id: _Id) -> SendingDocument:
    """What is stored at the destination stays there."""
    sender: Sender = request.state.sender
    return _told(request, sender.outbox.cancel(sending_id, request.state.caller.tenant))


def _told(request: Request, sending: Sending) -> SendingDocument:
    tell_about(request, sending=sending.id, destination=sending.destination)
    tell(request, Seen((), tuple(dict.fromkeys(plan.image for plan in sending.plans))))
    return SendingDocument.of(sending)


def _check_destination(name: str, settings: Settings, tenant: str) -> None:
    if name not in destinations_of(settings, tenant):
        raise DestinationUnknown(
            f"there is no destination {name[:80]!r} in the settings of this service; "
            "GET /v1/destinations lists those that there are"
        )
