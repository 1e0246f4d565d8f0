"""Examples of answers in FHIR, for the OpenAPI document."""

from typing import Any

from api.http.fhir.accept import MEDIA_TYPE
from api.http.fhir.imaging_study import FhirStudies
from engine.integration_settings import FhirSettings
from engine.records import ImageRecord

__all__ = ["BUNDLE", "RESOURCE"]

_STUDY = "1.2.826.0.1.3680043.8.498.7"
_BASE = "https://precedent.example"
_VIEWER = "https://viewer.example/viewer?StudyInstanceUIDs=" + _STUDY
_IMAGE = ImageRecord(
    study=_STUDY,
    series=f"{_STUDY}.1",
    sop=f"{_STUDY}.1.12",
    modality="CT",
    study_year=2021,
    source="pacs",
)
_RESOURCE = FhirStudies(FhirSettings(), "default", {"": "1.2.840.10008.5.1.4.1.1.2"}).resource(
    _STUDY, [("", _IMAGE)]
)
_BUNDLE = {
    "resourceType": "Bundle",
    "type": "searchset",
    "total": 1,
    "link": [
        {
            "relation": "self",
            "url": f"{_BASE}/v1/studies/1.2.826.0.1.3680043.8.498.1/related?k=1",
        }
    ],
    "entry": [
        {
            "fullUrl": f"{_BASE}/fhir/ImagingStudy/{_STUDY}",
            "link": [{"relation": "alternate", "url": _VIEWER}],
            "resource": _RESOURCE,
            "search": {"mode": "match", "score": 0.9688},
        }
    ],
}


def _content(about: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "description": about,
        "required": ["resourceType"],
        "properties": {"resourceType": {"type": "string"}},
    }
    return {MEDIA_TYPE: {"schema": schema, "example": example}}


BUNDLE = _content("Bundle of FHIR R4, of ImagingStudy and, at times, OperationOutcome.", _BUNDLE)
"""The ``content`` of an answer with a Bundle."""
RESOURCE = _content("ImagingStudy of FHIR R4.", _RESOURCE)
"""The ``content`` of an answer with an ImagingStudy."""
