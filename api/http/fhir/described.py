"""Answers in FHIR as the OpenAPI document describes them, with examples."""

from collections.abc import Mapping
from typing import Any

from api.http.fhir.accept import MEDIA_TYPE
from api.http.fhir.imaging_study import FhirStudies
from engine.integration_settings import FhirSettings
from engine.records import ImageRecord

__all__ = ["BUNDLE", "RESOURCE", "SCHEMAS"]

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


_TEXT = {"type": "string"}
_LISTS = {"type": "array", "items": {"type": "object"}}
SCHEMAS: Mapping[str, Any] = {
    "FhirBundle": {
        "type": "object",
        "description": "A Bundle of FHIR R4 (4.0.1) of type searchset, with ImagingStudy and, at "
        "times, an OperationOutcome. Without entries `entry` is absent.",
        "required": ["resourceType", "type", "total", "link"],
        "properties": {
            "resourceType": {"const": "Bundle"},
            "type": {"const": "searchset"},
            "total": {"type": "integer", "minimum": 0},
            "link": _LISTS,
            "entry": _LISTS,
        },
    },
    "FhirImagingStudy": {
        "type": "object",
        "description": "An ImagingStudy of FHIR R4 (4.0.1).",
        "required": ["resourceType", "id", "identifier", "status", "modality", "subject"],
        "properties": {
            "resourceType": {"const": "ImagingStudy"},
            "id": _TEXT,
            "identifier": _LISTS,
            "status": _TEXT,
            "modality": _LISTS,
            "subject": {"type": "object"},
            "started": _TEXT,
            "series": _LISTS,
        },
    },
}
"""What the OpenAPI document says of them: R4 itself says more."""


def _content(name: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {MEDIA_TYPE: {"schema": schema, "example": example}}


BUNDLE = _content("FhirBundle", _BUNDLE)
"""The ``content`` of an answer with a Bundle."""
RESOURCE = _content("FhirImagingStudy", _RESOURCE)
"""The ``content`` of an answer with an ImagingStudy."""
