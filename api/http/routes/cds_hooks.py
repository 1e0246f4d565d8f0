"""A service of CDS Hooks: for the imaging study that somebody looks at, a card with the cases that
look like it."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Request

from api.http.bodies import Body, body_content, read_body
from api.http.cds_hooks import (
    Card,
    CardLink,
    CardsDocument,
    CardSource,
    HookRequest,
    ServiceDocument,
    ServicesDocument,
    studies_named,
)
from api.http.deps import ArchiveDep
from api.http.observing import note_search
from api.http.problems import problem_responses
from api.http.viewers import ViewerLinks, links_from_study
from api.security.seen import Seen, tell
from engine.errors import DocumentError, ImageNotFound, QueryError
from engine.integration_settings import CdsHooksSettings
from engine.search.pool import Suggestion
from engine.search.recommend import Examples, Recommendation, Wanted
from indexer.sources.uids import why_unknown

__all__ = ["router"]

router = APIRouter(tags=["cds hooks"])

_ID = "related-studies"
_DESCRIPTION = (
    "Shows which earlier cases look like the imaging study that is being looked at. For research "
    "use; not a medical device."
)
_PREFETCH = {"study": "ImagingStudy/{{context.imagingStudyId}}"}
# uuid5(NAMESPACE_URL, "precedent-cards").
_NAMESPACE = uuid.UUID("be318f76-740a-5c15-8f78-54f4c416e36e")
_MOST_LINKS = 3

_EXAMPLE_SERVICES = {
    "services": [
        {
            "id": _ID,
            "hook": "imaging-study",
            "title": "Related cases",
            "description": _DESCRIPTION,
            "prefetch": _PREFETCH,
        }
    ]
}
_EXAMPLE_CARDS = {
    "cards": [
        {
            "uuid": "9b7a2f1c-3f5e-5d0a-8c11-5a0f9a4f2d10",
            "summary": "2 earlier cases look like this study",
            "detail": "1. CT CHEST, 2021, similarity 0.969\n2. CT CHEST, 2019, similarity 0.941",
            "indicator": "info",
            "source": {"label": "Precedent"},
            "links": [
                {
                    "label": "Show similar images",
                    "url": "https://precedent.example/?like=5f1f0d0e-6f0f-5a53-b0a5-2f5b6a1c9a10",
                    "type": "absolute",
                }
            ],
        }
    ]
}


@router.get(
    "/cds-services",
    operation_id="listCdsServices",
    summary="The services for CDS Hooks",
    responses={
        200: {"content": {"application/json": {"example": _EXAMPLE_SERVICES}}},
        **problem_responses(503),
    },
)
def list_cds_services(archive: ArchiveDep) -> ServicesDocument:
    """Discovery, as CDS Hooks has it. There is one service; the setting `cds_hooks.hook` says on
    which hook it is to be called."""
    hooks = archive.settings.cds_hooks
    return ServicesDocument(
        services=[
            ServiceDocument(
                id=_ID,
                hook=hooks.hook,
                title="Related cases",
                description=_DESCRIPTION,
                prefetch=_PREFETCH,
            )
        ]
    )


async def _by_body(request: Request) -> AsyncIterator[Body[HookRequest]]:
    async with read_body(request, HookRequest) as body:
        yield body


@router.post(
    f"/cds-services/{_ID}",
    operation_id="callCdsService",
    summary="A card with the cases most like an imaging study",
    responses={
        200: {"content": {"application/json": {"example": _EXAMPLE_CARDS}}},
        **problem_responses(400, 409, 412, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": body_content(
            HookRequest,
            name="CdsHook",
            example={
                "hook": "imaging-study",
                "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
                "context": {
                    "userId": "Practitioner/example",
                    "patientId": "1288992",
                    "studyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
                },
            },
        )
    },
)
def call_cds_service(
    request: Request,
    archive: ArchiveDep,
    body: Annotated[Body[HookRequest], Depends(_by_body)],
) -> CardsDocument:
    """The study comes in the context or as prefetched ImagingStudy. There is no card for a study
    that is not indexed, nor where nothing is like it. Cards have no identifier of a patient and no
    UID but those in links of viewers. The request's `fhirServer` is never asked.

    409: the study's UIDs were replaced before it was indexed (setting `sources.NAME.uids`).
    412: the request does not say which study.
    """
    asked, hooks = body.fields, archive.settings.cds_hooks
    if asked.hook != hooks.hook:
        raise QueryError(
            f"the hook is {asked.hook[:64]!r}; this service is called on {hooks.hook!r} (setting "
            "cds_hooks.hook)"
        )
    studies = studies_named(asked)
    if not studies:
        raise HTTPException(
            412,
            "the request does not say which study; send context.studyInstanceUID, or an "
            "ImagingStudy with an identifier of the system urn:dicom:uid as prefetch.study",
        )
    for study in studies:
        record = archive.first_of_study(study)
        if record is not None and (why := why_unknown(record, archive.settings)) is not None:
            raise DocumentError(f"no card can be about study {study}: {why}")
        try:
            answer = archive.engine.recommend(Examples(study=study), Wanted(k=hooks.hits))
        except ImageNotFound:
            tell(request, Seen((study,)))
            continue
        shown = [one.hit for one in answer.hits]
        tell(request, Seen.of(shown, studies=[study], ood=answer.ood))
        note_search(tuple(answer.evidence.rungs), answer.ood, answer.evidence.timings_ms)
        if not answer.hits:
            continue
        base = str(request.base_url).rstrip("/")
        viewers = links_from_study(archive, study)
        return CardsDocument(cards=[_card(answer, hooks, asked.hook_instance, base, viewers)])
    return CardsDocument(cards=[])


def _card(
    answer: Recommendation, hooks: CdsHooksSettings, call: str, base: str, viewers: ViewerLinks
) -> Card:
    foreign = answer.ood is not None and answer.ood.foreign
    number = len(answer.hits)
    found = "1 earlier case looks" if number == 1 else f"{number} earlier cases look"
    summary = f"{found} like this study"
    if foreign:
        summary += ", which is outside what the model knows: they may mean nothing"
    lines = [f"{place}. {_told(one)}" for place, one in enumerate(answer.hits, 1)]
    return Card(
        uuid=str(uuid.uuid5(_NAMESPACE, call)),
        summary=summary,
        detail="\n".join(lines),
        indicator="warning" if foreign else "info",
        source=CardSource(label=hooks.source_label),
        links=_links(answer.hits[0], base, viewers),
    )


def _told(suggestion: Suggestion) -> str:
    """What a line says of a hit: nothing that tells whose it is."""
    record = suggestion.hit.record
    kind = " ".join(filter(None, [record.modality, record.body_part])) or "Image"
    year = "" if record.study_year is None else f", {record.study_year}"
    return f"{kind}{year}, similarity {suggestion.hit.similarity:.3f}"


def _links(first: Suggestion, base: str, viewers: ViewerLinks) -> list[CardLink]:
    like = first.because or first.hit.id
    page = CardLink(label="Show similar images", url=f"{base}/?{urlencode({'like': like})}")
    opened = [
        CardLink(
            label=f"Open the most similar case in {one.title}"
            if one.beside is None
            else f"Open the most similar case beside this study in {one.title}",
            url=one.beside or one.url,
        )
        for one in viewers(first.hit.record)[:_MOST_LINKS]
    ]
    return [page, *opened]
