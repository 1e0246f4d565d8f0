"""STOW-RS (PS3.18, 10.5): stores instances as a PACS sends them, to be indexed as they come."""

import logging
from functools import partial
from typing import Annotated

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Path, Request, Response

from api.http.deps import EXAMPLE_STUDY
from api.http.dicomweb_store.answer import content_of, document_of, status_of
from api.http.dicomweb_store.described import ABOUT_STORED, BODY, RESPONSES
from api.http.dicomweb_store.instance import Instance, Outcome, Terms
from api.http.dicomweb_store.media import answer_type, boundary_in
from api.http.dicomweb_store.reception import Reception
from api.http.work import Work
from api.security.seen import Seen, tell
from indexer.sources.pushed.turned_away import TurnedAway

__all__ = ["router"]

router = APIRouter(tags=["dicomweb"])

_AT_ONCE = 256 * 1024
"""Bytes that are collected before a thread writes them."""
_LATER = {"Retry-After": "30"}

_log = logging.getLogger(__name__)


@router.post(
    "/dicomweb/studies",
    operation_id="storeInstances",
    summary="Store instances of any studies",
    response_description=ABOUT_STORED,
    response_class=Response,
    responses=RESPONSES,
    openapi_extra=BODY,
)
async def store_instances(request: Request) -> Response:
    """STOW-RS. The answer comes when the instances outlast a power cut. They are indexed soon
    after, and a refusal then is in the ledger, as of what comes by C-STORE. The answer has
    `FailureReason` and, in words, `ErrorComment` for each that is not stored. Of a body that breaks
    off nothing is.
    """
    return await _store(request, None)


@router.post(
    "/dicomweb/studies/{uid}",
    operation_id="storeInstancesOfStudy",
    summary="Store instances of one study",
    response_description=ABOUT_STORED,
    response_class=Response,
    responses=RESPONSES,
    openapi_extra=BODY,
)
async def store_instances_of_study(
    request: Request,
    uid: Annotated[
        str,
        Path(
            description="Study Instance UID.", pattern=r"^[0-9.]{1,64}$", examples=[EXAMPLE_STUDY]
        ),
    ],
) -> Response:
    """As `POST /dicomweb/studies`; instances of other studies are refused (`FailureReason` 272)."""
    return await _store(request, uid)


async def _store(request: Request, study: str | None) -> Response:
    kind = answer_type(request)
    boundary = boundary_in(request)
    work: Work = request.state.work
    run = partial(to_thread.run_sync, limiter=work.receivers)
    terms = await run(_terms, work, request.state.caller.tenant, study)
    reception = Reception(boundary, partial(Instance, terms))
    try:
        held = bytearray()
        async for piece in request.stream():
            held += piece
            if len(held) >= _AT_ONCE:
                await run(reception.feed, bytes(held))
                held.clear()
        outcomes = await run(_kept, reception, bytes(held))
    finally:
        if not reception.is_kept:
            with CancelScope(shield=True):
                await run(reception.discard)
    tell(request, _seen(outcomes))
    _note(outcomes)
    status = status_of(outcomes)
    content = content_of(document_of(outcomes), kind)
    return Response(content, status, _LATER if status == 503 else None, media_type=kind)


def _terms(work: Work, tenant: str, study: str | None) -> Terms:
    return work.intake(tenant).terms(study)


def _kept(reception: Reception, rest: bytes) -> list[Outcome]:
    """What became of the instances, once they are durable. rest: the last bytes of the body."""
    reception.feed(rest)
    reception.end()
    return reception.keep()


def _seen(outcomes: list[Outcome]) -> Seen:
    named = (
        one.identity.study
        for one in outcomes
        if one.refusal is None and one.identity is not None and one.identity.study
    )
    return Seen(tuple(dict.fromkeys(named)), results=len(outcomes))


def _note(outcomes: list[Outcome]) -> None:
    """Logs what was turned away: not every sender tells."""
    turned_away = TurnedAway()
    for one in outcomes:
        if one.refusal is not None:
            sop_class = "" if one.identity is None else one.identity.sop_class
            turned_away.note(one.refusal.reason, one.refusal.comment, sop_class)
    if turned_away:
        stored = sum(one.refusal is None for one in outcomes)
        _log.warning("of a request to store: %s instances taken, %s", stored, turned_away)
