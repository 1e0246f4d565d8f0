"""Attributes in the DICOM JSON Model (PS3.18 F)."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fastapi import Request, Response
from pydicom.datadict import dictionary_VR, tag_for_keyword
from starlette.responses import JSONResponse

from api.http.qido.accept import MEDIA_TYPE

__all__ = ["Attributes", "QidoAnswer", "dicom_json", "qido_answer"]

Attributes = Mapping[str, Sequence[str | int]]
"""Values by keyword; an attribute without a value is there, and empty."""


class QidoAnswer(JSONResponse):
    """An answer in DICOM JSON."""

    media_type = MEDIA_TYPE


def dicom_json(attributes: Attributes) -> dict[str, Any]:
    """A data set. Names of people are not written by it: answers have none."""
    found = ((*_known(keyword), values) for keyword, values in attributes.items())
    return {
        tag: {"vr": vr, "Value": list(values)} if values else {"vr": vr}
        for tag, vr, values in sorted(found)
    }


def qido_answer(request: Request, found: Sequence[Attributes], warnings: Sequence[str]) -> Response:
    """The answer with these results: 200, or 204 without any. warnings: sentences in ASCII."""
    headers = {"Vary": "Accept"}
    if warnings:
        agent = f"{str(request.base_url).rstrip('/')}/dicomweb"
        headers["Warning"] = ", ".join(f'299 {agent} "{one}"' for one in warnings)
    if not found:
        return Response(status_code=204, headers=headers)
    return QidoAnswer([dicom_json(one) for one in found], headers=headers)


@lru_cache(maxsize=64)
def _known(keyword: str) -> tuple[str, str]:
    """Tag, as eight hexadecimal digits, and VR of an attribute."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"no attribute is called {keyword!r}")
    return f"{tag:08X}", dictionary_VR(tag)
