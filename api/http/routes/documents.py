"""DICOM documents of an answer, to download: reports, and selections of key images."""

import io
import zipfile
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.http.deps import ABOUT_WHERE, EXAMPLE_ID, EXAMPLE_STUDY, ArchiveDep
from api.http.problems import problem_responses
from api.http.sender import Sender
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search.query import parse_group, parse_id, parse_where
from engine.search.representative import representative
from indexer.archive import TenantArchive
from indexer.documents.making import Document, make_document
from indexer.documents.planning import (
    MOST_HITS,
    ReportAsked,
    plan_earlier,
    plan_report,
    plan_teaching,
)
from indexer.documents.plans import Plan

__all__ = [
    "EarlierFields",
    "ReportFields",
    "TeachingFields",
    "earlier_plans",
    "made",
    "make_report",
    "report_plans",
    "router",
    "select_earlier",
    "select_for_teaching",
    "teaching_plans",
]

router = APIRouter(tags=["documents"])

_STUDY = Annotated[
    str, Path(description="Study Instance UID of an indexed study.", examples=[EXAMPLE_STUDY])
]
_Uid = Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")]
_Count = Annotated[int, Field(ge=1, le=MOST_HITS)]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_DICOM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The document.", "content": {"application/dicom": _BINARY}}
}
_ZIP: dict[int | str, dict[str, Any]] = {
    200: {"description": "The documents, one file each.", "content": {"application/zip": _BINARY}}
}


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportFields(_Fields):
    """What a report is about.

    - `format`: "sr", a structured report (Comprehensive SR), or "pdf", an encapsulated PDF.
    - `id`, or `sop` (with `frame`), or `series`: the image of the study that is the query; without
      any of them the images of the whole study are.
    - `k`, `where`, `exact`, `group_by`, `exclude_own`: as of what is related to a study.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"format": "sr", "k": 5}]})

    format: Literal["sr", "pdf"] = "sr"
    id: Annotated[str | None, Field(examples=[EXAMPLE_ID])] = None
    sop: _Uid | None = None
    frame: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    series: _Uid | None = None
    k: _Count | None = None
    where: Annotated[list[str], Field(description=ABOUT_WHERE)] = []
    exact: bool = False
    group_by: str = "study"
    exclude_own: str = "patient"


class EarlierFields(_Fields):
    """`k`: how many similar earlier images of the patient are named at most."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"k": 20}]})

    k: _Count = 20


class TeachingFields(_Fields):
    """`images`: ids of images, each of which gets a selection in its own study."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": [EXAMPLE_ID]}]})

    images: Annotated[list[str], Field(min_length=1, max_length=MOST_HITS)]


@router.post(
    "/v1/studies/{uid}/report",
    operation_id="makeReport",
    summary="A report of the cases most like a study",
    response_class=Response,
    responses={**_DICOM, **problem_responses(400, 404, 409, 422, 502, 503)},
)
def make_report(
    uid: _STUDY, request: Request, archive: ArchiveDep, fields: ReportFields
) -> Response:
    """A DICOM instance in this study. It names the study's patient, as the original does at this
    moment, and nobody else: hits of other patients stand in it as text.

    409: the original is gone or another one, or has no DICOM UIDs.
    """
    plans = report_plans(uid, fields, archive)
    (document,) = made(plans, request, archive)
    return Response(document.file, media_type="application/dicom", headers=_saved_as(document))


@router.post(
    "/v1/studies/{uid}/key-objects",
    operation_id="selectEarlierImages",
    summary="Similar earlier images of the same patient, as key objects",
    response_class=Response,
    responses={**_ZIP, **problem_responses(400, 404, 409, 422, 502, 503)},
)
def select_earlier(
    uid: _STUDY, request: Request, archive: ArchiveDep, fields: EarlierFields
) -> Response:
    """A Key Object Selection ("Of Interest") for each earlier study of the patient that has similar
    images, in that study. 404: there is none."""
    sender: Sender = request.state.sender
    plans = earlier_plans(uid, fields, archive, sender)
    return _zipped(made(plans, request, archive))


@router.post(
    "/v1/key-objects",
    operation_id="selectForTeaching",
    summary="Chosen images as key objects for a teaching collection",
    response_class=Response,
    responses={**_ZIP, **problem_responses(400, 404, 409, 422, 502, 503)},
)
def select_for_teaching(request: Request, archive: ArchiveDep, fields: TeachingFields) -> Response:
    """A Key Object Selection ("For Teaching File Export", as IHE's TCE has it) for each image, in
    the image's own study."""
    return _zipped(made(teaching_plans(fields, archive), request, archive))


def report_plans(study: str, fields: ReportFields, archive: TenantArchive) -> list[Plan]:
    """The plan of a report. Raises as ``plan_report`` does."""
    given = [name for name in ("id", "sop", "series") if getattr(fields, name) is not None]
    if len(given) > 1:
        raise QueryError(f"{' and '.join(given)} came; give one image as the query, or none")
    if fields.frame is not None and fields.sop is None:
        raise QueryError("a frame is one of an instance; give its sop as well")
    image = None
    if fields.id is not None:
        image = parse_id(fields.id)
    elif given:
        (name,) = given
        uid = str(getattr(fields, name))
        image = representative(archive.store, name, uid, fields.frame)
    asked = ReportAsked(
        study,
        fields.format,
        image,
        archive.settings.search.k if fields.k is None else fields.k,
        parse_where(fields.where),
        fields.exact,
        parse_group(fields.exclude_own),
        parse_group(fields.group_by),
    )
    return [plan_report(asked, archive, datetime.now())]


def earlier_plans(
    study: str, fields: EarlierFields, archive: TenantArchive, sender: Sender
) -> list[Plan]:
    """Plans of key objects in earlier studies. Raises as ``plan_earlier`` does."""
    return plan_earlier(study, fields.k, archive, sender.headers, datetime.now())


def teaching_plans(fields: TeachingFields, archive: TenantArchive) -> list[Plan]:
    """Plans of key objects for teaching. Raises as ``plan_teaching`` does."""
    return plan_teaching([parse_id(one) for one in fields.images], archive, datetime.now())


def made(plans: Sequence[Plan], request: Request, archive: TenantArchive) -> list[Document]:
    """The documents of plans, noted as seen."""
    sender: Sender = request.state.sender
    documents = [make_document(plan, archive, sender.headers) for plan in plans]
    images = dict.fromkeys(
        image for plan in plans for image in (plan.image, *(hit.image for hit in plan.hits))
    )
    studies = dict.fromkeys(one.study for one in documents)
    tell(request, Seen(tuple(studies), tuple(images), len(documents)))
    return documents


def _zipped(documents: Sequence[Document]) -> Response:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for one in documents:
            packed.writestr(f"{one.sop}.dcm", one.file)
    headers = {"Content-Disposition": 'attachment; filename="key-objects.zip"', **_NOT_KEPT}
    return Response(out.getvalue(), media_type="application/zip", headers=headers)


_NOT_KEPT = {"Cache-Control": "no-store"}


def _saved_as(document: Document) -> dict[str, str]:
    return {
        "Content-Disposition": f'attachment; filename="{document.sop}.dcm"',
        **_NOT_KEPT,
    }
