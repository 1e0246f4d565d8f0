"""Requests to store and their answers as the OpenAPI document describes them, with examples."""

from typing import Any

from api.http.bodies import EXAMPLE_BYTES
from api.http.dicomweb_store.answer import content_of, document_of
from api.http.dicomweb_store.identity import Identity
from api.http.dicomweb_store.instance import Outcome
from api.http.dicomweb_store.media import JSON, RELATED, XML
from api.http.dicomweb_store.refusals import WRONG_STUDY, Refusal
from api.http.problems import problem_responses

__all__ = ["ABOUT_STORED", "BODY", "RESPONSES"]

ABOUT_STORED = "All are stored, on disk, and will be indexed."
_STUDY = "1.2.826.0.1.3680043.8.498.1"
_PROBLEMS = problem_responses(400, 406, 413, 415, 422, 503)


def _outcome(number: int, refusal: Refusal | None = None) -> Outcome:
    sop = f"{_STUDY}.1.{number}"
    slice_of = Identity("1.2.840.10008.5.1.4.1.1.2", sop, _STUDY, "1.2.840.10008.1.2.1", 0, False)
    return Outcome(slice_of, refusal)


def _described(*outcomes: Outcome) -> dict[str, Any]:
    document = document_of(outcomes)
    return {
        JSON: {"schema": {"type": "object"}, "example": document},
        XML: {"schema": {"type": "string"}, "example": content_of(document, XML).decode()},
    }


_STORED, _FAILED = _outcome(7), _outcome(8, WRONG_STUDY)
RESPONSES: dict[int | str, dict[str, Any]] = {
    **_PROBLEMS,
    200: {"content": _described(_STORED)},
    202: {
        "description": "Some are stored, or all are and some with a warning.",
        "content": _described(_STORED, _FAILED),
    },
    409: {"description": "None is stored.", "content": _described(_FAILED)},
    503: {
        "description": "None is stored for want of room, or nothing can be; send them again later.",
        "content": {**_PROBLEMS[503]["content"], **_described(_FAILED)},
    },
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            RELATED: {
                "schema": {
                    "type": "object",
                    "description": "Each part is a DICOM file (PS3.10) as application/dicom.",
                    "properties": {"instance": {"type": "string", "format": "binary"}},
                },
                "example": {"instance": EXAMPLE_BYTES},
            }
        },
    }
}
