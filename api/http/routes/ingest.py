"""Instances: takes one in, and deletes those of an instance, series, study or patient."""

from typing import Annotated, Any

from fastapi import APIRouter, File, HTTPException, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict

from api.http.audit import record_before
from api.http.bodies import EXAMPLE_BYTES, FORM
from api.http.problems import problem_responses
from api.http.serving import Serving
from api.http.work import Work
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.store.base import Filter, Match
from indexer.imaging.deidentify import pseudonym

__all__ = ["DeletedDocument", "InstanceDocument", "router"]

router = APIRouter(tags=["instances"])

_EXAMPLE_ID = "9d4f5c3e-6a3b-5b0e-8f52-0c7e1f0a6d11"


class InstanceDocument(BaseModel):
    """An instance in the index.

    - `ids`: of its images, one a frame that was taken.
    - `duplicate`: its picture was in the index already, from another file.
    - `missing_frames`: which of its frames could not be read; null when none is missing.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "ids": [_EXAMPLE_ID],
                    "study": "1.2.826.0.1.3680043.8.498.1",
                    "series": "1.2.826.0.1.3680043.8.498.1.1",
                    "sop": "1.2.826.0.1.3680043.8.498.1.1.7",
                    "duplicate": False,
                    "missing_frames": "frame 3 of 12 is cut off",
                }
            ]
        },
    )

    ids: list[str]
    study: str | None
    series: str | None
    sop: str | None
    duplicate: bool
    missing_frames: str | None


class DeletedDocument(BaseModel):
    """What was removed, or would be.

    - `dry_run`: nothing was removed.
    - `points`: images in the index.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {"dry_run": False, "studies": 1, "series": 3, "instances": 240, "points": 240}
            ]
        },
    )

    dry_run: bool
    studies: int
    series: int
    instances: int
    points: int


@router.post(
    "/v1/instances",
    operation_id="addInstance",
    summary="Bring one image into the index",
    status_code=201,
    response_description="It is in the index, from now on and after a power cut.",
    responses={
        200: {"model": InstanceDocument, "description": "The same file was there before."},
        **problem_responses(413, 422, 503),
    },
    openapi_extra={
        "requestBody": {"content": {FORM: {"example": {"file": EXAMPLE_BYTES}}}},
    },
)
def add_instance(
    request: Request,
    response: Response,
    file: Annotated[
        UploadFile,
        # Makers of clients know this word of OpenAPI 3.0 better than what took its place.
        File(
            description="A DICOM, PNG, JPEG, TIFF … file.", json_schema_extra={"format": "binary"}
        ),
    ],
) -> InstanceDocument:
    """It is an image of the caller's tenant alone, whatever others have handed in. The file is on
    disk before it is indexed, so that an interruption loses nothing; sent again, it is found to be
    there. What cannot be indexed is refused with the reason, and not kept.

    A file with the SOP Instance UID of an instance that the tenant has and another picture is
    refused: delete that instance first. 429: several of the tenant's are being taken in already.
    """
    work: Work = request.state.work
    found, known = work.intake(request.state.caller.tenant).take(file.file)
    tell(request, Seen(() if found.study is None else (found.study,), found.ids))
    if known:
        response.status_code = 200
    return InstanceDocument(
        ids=list(found.ids),
        study=found.study,
        series=found.series,
        sop=found.sop,
        duplicate=found.duplicate,
        missing_frames=found.missing_frames,
    )


_UID: dict[str, Any] = {
    "pattern": r"^[0-9.]{1,64}$",
    "examples": ["1.2.826.0.1.3680043.8.498.1"],
}


@router.delete(
    "/v1/instances",
    operation_id="deleteInstances",
    summary="Remove an instance, a series, a study or a patient",
    response_description="What was removed.",
    responses=problem_responses(400, 404, 409, 422, 503),
)
def delete_instances(
    request: Request,
    sop: Annotated[str | None, Query(description="SOP Instance UID.", **_UID)] = None,
    series: Annotated[str | None, Query(description="Series Instance UID.", **_UID)] = None,
    study: Annotated[str | None, Query(description="Study Instance UID.", **_UID)] = None,
    patient: Annotated[
        str | None,
        Query(
            description="Patient ID as in the files. Proxies write addresses into their logs.",
            min_length=1,
            max_length=256,
        ),
    ] = None,
    issuer: Annotated[
        str, Query(description="Issuer of the Patient ID, if any.", max_length=256)
    ] = "",
    dry_run: Annotated[bool, Query(description="Only say what would be removed.")] = False,
) -> DeletedDocument:
    """Give one of `sop`, `series`, `study` and `patient`, or several: then what matches all of them
    is removed, from the index, its thumbnails and the ledger. Files of sources stay, but are left
    out when their source is indexed again; files that were received are deleted.

    What has begun is done to its end, also if the service is killed meanwhile.
    """
    given = {"sop": sop, "series": series, "study": study, "patient": patient}
    wanted: dict[str, str] = {name: value for name, value in given.items() if value}
    if not wanted:
        raise QueryError("say what to remove: sop, series, study or patient")
    serving: Serving = request.state.serving
    with serving.writing() as whole:
        archive = whole.of(request.state.caller.tenant)
        if "patient" in wanted:
            key = archive.data_dir.pseudonym_key(archive.settings)
            wanted["patient"] = pseudonym(issuer, wanted["patient"], key) or ""
        ledger = archive.ledger
        studies = ledger.count_distinct("study", **wanted)
        of_series = ledger.count_distinct("series", **wanted)
        instances = ledger.count(**wanted)
        points = archive.store.count(
            Filter(tuple(Match(name, (value,)) for name, value in wanted.items()))
        )
        tell(request, Seen(() if study is None else (study,), results=instances))
        if not instances and not points:
            raise HTTPException(404, "nothing in the index is of that; nothing was removed")
        if not dry_run:
            # Before anything goes: should it be cut short, the row says of what.
            tell(request, Seen(tuple(ledger.studies(**wanted))))
            record_before(request)
            instances, points = archive.delete_all(wanted)
    return DeletedDocument(
        dry_run=dry_run, studies=studies, series=of_series, instances=instances, points=points
    )
