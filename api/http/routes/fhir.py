"""A study as a resource of FHIR: what the addresses in a Bundle of related studies lead to."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from api.http.deps import EXAMPLE_STUDY, ArchiveDep
from api.http.fhir.accept import wants_fhir
from api.http.fhir.bundle import FhirAnswer, resource_answer, study_resource
from api.http.fhir.described import RESOURCE
from api.http.fhir.imaging_study import is_study_uid
from api.http.problems import problem_responses
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound
from engine.store.base import Filter, Match

__all__ = ["router"]

router = APIRouter(tags=["fhir"])

_MOST_IMAGES = 1000


@router.get(
    "/fhir/ImagingStudy/{uid}",
    operation_id="getImagingStudy",
    summary="A study as ImagingStudy of FHIR R4",
    response_description="What the index has of the study.",
    response_class=FhirAnswer,
    responses={200: {"content": RESOURCE}, **problem_responses(404, 406, 409, 422, 503)},
)
def get_imaging_study(
    uid: Annotated[
        str, Path(description="Study Instance UID of an indexed study.", examples=[EXAMPLE_STUDY])
    ],
    request: Request,
    archive: ArchiveDep,
) -> Response:
    """The series and instances of the study that are indexed, up to 1,000 images; the study may
    have more. Of FHIR's interactions this is the only one: there is no search and no write here.

    409: the study's UIDs were replaced before it was indexed (setting `sources.NAME.uids`).
    """
    wants_fhir(request)
    where = Filter((Match("study", (uid,)),))
    found = list(islice(archive.store.scroll(where), _MOST_IMAGES)) if is_study_uid(uid) else []
    if not found:
        raise ImageNotFound(
            f"no indexed image is of study {uid[:64]!r}; studies are in the answers of a search"
        )
    tell(request, Seen.of(found, studies=[uid], listed=False))
    return resource_answer(study_resource(archive, uid, [(one.id, one.record) for one in found]))
