"""Searches of DICOMweb as the OpenAPI document describes them: parameters, answers, examples."""

from collections.abc import Mapping
from typing import Any

from api.http.deps import EXAMPLE_STUDY
from api.http.qido.accept import MEDIA_TYPE
from api.http.qido.dicom_json import dicom_json

__all__ = ["SCHEMAS", "SERIES", "SERIES_PARAMETERS", "STUDIES", "STUDY_PARAMETERS"]

_ROOT = f"https://pacs.example/dicom-web/studies/{EXAMPLE_STUDY}"
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 0}


def _parameter(name: str, about: str, schema: Mapping[str, Any] = _TEXT) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": about, "schema": schema}


_PAGE = [
    _parameter("limit", "Most results.", _NUMBER),
    _parameter("offset", "Results before the first one.", _NUMBER),
    _parameter("includefield", "Taken and without effect: answers have all that is known."),
    _parameter(
        "fuzzymatching",
        "`true` is answered with a warning: values are matched literally.",
        {"type": "string", "enum": ["true", "false"]},
    ),
]
STUDY_PARAMETERS = [
    _parameter("StudyInstanceUID", "UIDs with commas or backslashes between them."),
    _parameter("PatientID", "As answers have it; all studies of exactly this patient."),
    _parameter("ModalitiesInStudy", "Codes with commas or backslashes between them."),
    _parameter("StudyDate", "A date, or a range of dates, of which the years count."),
    *_PAGE,
]
"""The commonest parameters of a search for studies."""
SERIES_PARAMETERS = [
    _parameter("SeriesInstanceUID", "UIDs with commas or backslashes between them."),
    _parameter("Modality", "Codes with commas or backslashes between them."),
    *_PAGE,
]
"""The commonest parameters of a search for series."""

SCHEMAS: Mapping[str, Any] = {
    "DicomJson": {
        "type": "array",
        "description": "Data sets in the DICOM JSON Model (PS3.18 F), by tag.",
        "items": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["vr"],
                "properties": {"vr": _TEXT, "Value": {"type": "array"}},
            },
        },
    }
}
"""What the OpenAPI document says of them: DICOM itself says more."""

_STUDY = dicom_json(
    {
        "StudyDate": [],
        "ModalitiesInStudy": ["CT"],
        "RetrieveURL": [_ROOT],
        "StudyDescription": ["#1 0.97 CT CHEST 2021"],
        "PatientName": [],
        "PatientID": [],
        "PatientSex": ["M"],
        "StudyInstanceUID": [EXAMPLE_STUDY],
        "NumberOfStudyRelatedSeries": [1],
        "NumberOfStudyRelatedInstances": [64],
    }
)
_SERIES = dicom_json(
    {
        "Modality": ["CT"],
        "RetrieveURL": [f"{_ROOT}/series/{EXAMPLE_STUDY}.1"],
        "BodyPartExamined": ["CHEST"],
        "StudyInstanceUID": [EXAMPLE_STUDY],
        "SeriesInstanceUID": [f"{EXAMPLE_STUDY}.1"],
        "SeriesNumber": [],
        "NumberOfSeriesRelatedInstances": [64],
    }
)


def _content(example: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/DicomJson"}
    return {MEDIA_TYPE: {"schema": schema, "example": [example]}}


STUDIES = _content(_STUDY)
"""The ``content`` of an answer with studies."""
SERIES = _content(_SERIES)
"""The ``content`` of an answer with series."""
