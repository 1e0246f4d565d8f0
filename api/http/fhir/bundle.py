"""Studies as a Bundle of FHIR R4: those found, of type searchset, or chosen, of type collection."""

import math
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request, Response
from starlette.responses import JSONResponse

from api.http.fhir.accept import MEDIA_TYPE
from api.http.fhir.imaging_study import FhirStudies, is_study_uid
from api.schemas import ViewerLink, ViewerLinksOf
from engine.errors import DocumentError
from engine.records import Hit, ImageRecord, OodVerdict
from indexer.archive import TenantArchive
from indexer.pipeline.sop_classes import sop_classes
from indexer.sources.uids import why_unknown

__all__ = [
    "STUDIES",
    "FhirAnswer",
    "collection_answer",
    "fhir_answer",
    "resource_answer",
    "study_resource",
]

STUDIES = "/fhir/ImagingStudy"
"""Where resources of studies are, below the service's own address."""
# uuid5(NAMESPACE_URL, "precedent-fhir").
_NAMESPACE = uuid.UUID("d7f84065-9c79-5ac3-9800-167c4577903d")


class FhirAnswer(JSONResponse):
    """An answer in FHIR."""

    media_type = MEDIA_TYPE


def fhir_answer(
    request: Request,
    archive: TenantArchive,
    hits: Sequence[Hit],
    ood: OodVerdict | None,
    viewers: ViewerLinksOf,
) -> Response:
    """The answer with a Bundle of the hits' studies, the most similar first.

    A study has all of its hits as series and instances, and the highest similarity of them as its
    score, in [0, 1]: below 0 is 0. Links of viewers are links of its entry. Hits without Study
    Instance UID are no ImagingStudy: an OperationOutcome says how many, and what else is to be
    known of the answer.

    Raises:
        DocumentError: no other system knows one of the images by its UIDs.
    """
    _check_known(archive, (hit.record for hit in hits))
    base = str(request.base_url).rstrip("/")
    by_study: dict[str, list[Hit]] = {}
    for hit in hits:
        if hit.record.study is not None and is_study_uid(hit.record.study):
            by_study.setdefault(hit.record.study, []).append(hit)
    named = [hit for found in by_study.values() for hit in found]
    images = [(hit.id, hit.record) for hit in named]
    classes = _classes(archive, images)
    studies = FhirStudies(archive.settings.fhir, archive.tenant, classes)
    scored = sorted(
        ((max(_score(hit) for hit in found), study) for study, found in by_study.items()),
        key=lambda one: -one[0],
    )
    entries: list[dict[str, Any]] = []
    for score, study in scored:
        found = by_study[study]
        entry: dict[str, Any] = {
            "fullUrl": f"{base}{STUDIES}/{study}",
            "resource": studies.resource(study, [(hit.id, hit.record) for hit in found]),
            "search": {"mode": "match", "score": score},
        }
        if links := _links(viewers(found[0].record)):
            entry["link"] = links
        entries.append(entry)
    lacking = (
        sum(hit.id not in classes and hit.record.sop is not None for hit in named)
        if archive.settings.fhir.instances
        else 0
    )
    entries += _told(ood, len(hits) - len(named), lacking)
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": len(scored),
        "link": [{"relation": "self", "url": str(request.url)}],
    }
    if entries:
        bundle["entry"] = entries
    return FhirAnswer(bundle, headers={"Vary": "Accept"})


def collection_answer(
    request: Request,
    archive: TenantArchive,
    images: Sequence[tuple[str, ImageRecord]],
    viewers: ViewerLinksOf,
) -> Response:
    """The answer with a Bundle of the studies of chosen images, of type collection, in their order.

    images: ids and records. Those without Study Instance UID are left out.

    Raises:
        DocumentError: no other system knows one of the images by its UIDs.
    """
    _check_known(archive, (record for _, record in images))
    base = str(request.base_url).rstrip("/")
    by_study: dict[str, list[tuple[str, ImageRecord]]] = {}
    for name, record in images:
        if record.study is not None and is_study_uid(record.study):
            by_study.setdefault(record.study, []).append((name, record))
    classes = _classes(archive, [one for found in by_study.values() for one in found])
    studies = FhirStudies(archive.settings.fhir, archive.tenant, classes)
    entries: list[dict[str, Any]] = []
    for study, found in by_study.items():
        entry: dict[str, Any] = {
            "fullUrl": f"{base}{STUDIES}/{study}",
            "resource": studies.resource(study, found),
        }
        if links := _links(viewers(found[0][1])):
            entry["link"] = links
        entries.append(entry)
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "collection"}
    if entries:
        bundle["entry"] = entries
    return FhirAnswer(bundle)


def study_resource(
    archive: TenantArchive, study: str, images: Sequence[tuple[str, ImageRecord]]
) -> dict[str, Any]:
    """The resource of one study. images: ids and records of images of it.

    Raises:
        DocumentError: no other system knows the study by its UID.
    """
    _check_known(archive, (record for _, record in images))
    classes = _classes(archive, images)
    return FhirStudies(archive.settings.fhir, archive.tenant, classes).resource(study, images)


def resource_answer(resource: dict[str, Any]) -> Response:
    """The answer with one resource."""
    return FhirAnswer(resource)


def _classes(archive: TenantArchive, images: Sequence[tuple[str, ImageRecord]]) -> dict[str, str]:
    if not archive.settings.fhir.instances or not images:
        return {}
    locators = archive.locators([image_id for image_id, _ in images])
    wanted = {one: (record, locators[one]) for one, record in images if one in locators}
    return sop_classes(wanted, archive.settings)


def _score(hit: Hit) -> float:
    if not math.isfinite(hit.similarity):
        return 0.0
    return round(min(1.0, max(0.0, float(hit.similarity))), 6)


def _check_known(archive: TenantArchive, records: Iterable[ImageRecord]) -> None:
    for record in records:
        if (why := why_unknown(record, archive.settings)) is not None:
            raise DocumentError(
                f"no answer in FHIR can name a study of it: {why}; leave the source out, as by "
                f"where=source!={record.source or 'folder'}, or ask for application/json"
            )


def _links(viewers: Sequence[ViewerLink]) -> list[dict[str, str]]:
    opened = [{"relation": "alternate", "url": one.url} for one in viewers]
    beside = [{"relation": "related", "url": one.beside} for one in viewers if one.beside]
    return [*opened, *beside]


def _told(ood: OodVerdict | None, without_uid: int, lacking: int) -> list[dict[str, Any]]:
    """An entry with what else is to be known; empty = nothing."""
    issues = []
    if ood is not None and ood.foreign:
        issues.append(
            _issue(
                "warning",
                f"what was asked about looks foreign to the model (p = {ood.p:.3g}, at or below "
                f"{ood.alpha:g}): hits may look alike and mean nothing",
            )
        )
    if without_uid:
        issues.append(
            _issue(
                "information",
                f"{without_uid} of the images found have no Study Instance UID, and are left out",
            )
        )
    if lacking:
        issues.append(
            _issue(
                "information",
                f"{lacking} of the images found are not listed as instances: their SOP class "
                "cannot be read, since the original is in an archive or not there any more, or its "
                "server does not answer (settings fhir.instances, sources)",
            )
        )
    if not issues:
        return []
    made = str(uuid.uuid5(_NAMESPACE, repr(issues)))
    return [
        {
            "fullUrl": f"urn:uuid:{made}",
            "resource": {"resourceType": "OperationOutcome", "id": made, "issue": issues},
            "search": {"mode": "outcome"},
        }
    ]


def _issue(severity: str, text: str) -> dict[str, str]:
    return {"severity": severity, "code": "informational", "diagnostics": text}
