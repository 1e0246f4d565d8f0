"""Whether a request takes DICOM JSON, which is all that searches answer in."""

from email.message import Message

from fastapi import HTTPException, Request

__all__ = ["MEDIA_TYPE", "takes_dicom_json"]

MEDIA_TYPE = "application/dicom+json"
_TAKEN = (MEDIA_TYPE, "application/*", "*/*")
_MOST_TYPES = 64


def takes_dicom_json(request: Request) -> None:
    """Checks that the answer's type is among those that are taken. The parameter ``accept`` counts
    instead of the header where there is one (PS3.18 8.3.3.1); who names none takes any.

    Raises:
        HTTPException: 406, it is not.
    """
    named = request.query_params.getlist("accept") or request.headers.getlist("accept")
    parts = [one.strip() for one in ",".join(named).split(",") if one.strip()][:_MOST_TYPES]
    if parts and not any(map(_is_taken, parts)):
        raise HTTPException(
            406,
            f"Accept is {', '.join(parts)[:80]}; searches of DICOMweb are answered here as "
            f"{MEDIA_TYPE} alone",
        )


def _is_taken(part: str) -> bool:
    read = Message()
    # No header has a line end in it, which Message would refuse; a parameter may.
    read["Content-Type"] = " ".join(part.split())
    try:
        weight = float(str(read.get_param("q", "1")))
    except ValueError:
        weight = 0.0
    return weight > 0 and read.get_content_type() in _TAKEN
