"""What a request to store sends, and the form in which it would have its answer."""

from email.message import Message

from fastapi import HTTPException, Request

from indexer.sources.dicomweb.multipart import boundary_of, media_type

__all__ = ["JSON", "RELATED", "XML", "answer_type", "boundary_in"]

JSON, XML = "application/dicom+json", "application/dicom+xml"
RELATED = "multipart/related"
_SEND = 'send multipart/related; type="application/dicom"; boundary=…, each instance as one part'
_FORMS = {
    JSON: JSON,
    "application/json": JSON,
    "application/*": JSON,
    "*/*": JSON,
    XML: XML,
    "application/xml": XML,
    "text/xml": XML,
}
_METADATA = (JSON, XML, "application/json", "application/xml", "text/xml")
_MOST_TYPES = 64


def boundary_in(request: Request) -> bytes:
    """The boundary between the parts of the request's body.

    Raises:
        HTTPException: 415, the body is of another type; 400, it has no boundary.
    """
    header = request.headers.get("content-type", "")
    kind = media_type(header)
    if kind != RELATED:
        raise HTTPException(415, f"the Content-Type is {kind[:80] or 'not given'}; {_SEND}")
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed != "identity":
        raise HTTPException(415, f"the Content-Encoding is {packed[:80]}; send the body without")
    of_parts = _parameter(header, "type").lower()
    if of_parts in _METADATA:
        raise HTTPException(
            415,
            f"the parts are {of_parts}, metadata with bulk data in parts of its own, which is not "
            f"taken here; {_SEND} with the whole file (PS3.10), metadata and pixels",
        )
    if of_parts not in ("application/dicom", ""):
        raise HTTPException(415, f"the parts are {of_parts[:80]}; {_SEND}")
    boundary = boundary_of(header)
    if boundary is None:
        raise HTTPException(400, f"the Content-Type names no valid boundary; {_SEND}")
    return boundary


def answer_type(request: Request) -> str:
    """:data:`JSON` or :data:`XML`, as the Accept header says: its weights decide, then what it
    names first. Who says nothing gets JSON.

    Raises:
        HTTPException: 406, it asks for neither.
    """
    header = ",".join(request.headers.getlist("accept"))
    if not header.strip():
        return JSON
    found: list[tuple[float, int, str]] = []
    for place, part in enumerate(header.split(",")[:_MOST_TYPES]):
        kind = media_type(part)
        if kind == RELATED:
            kind = _parameter(part, "type").lower()
        try:
            weight = float(_parameter(part, "q") or 1)
        except ValueError:
            weight = 0.0
        if kind in _FORMS and weight > 0:
            found.append((weight, -place, _FORMS[kind]))
    if not found:
        raise HTTPException(406, f"the answer is {JSON} or {XML}; ask for one of them, or for */*")
    return max(found)[2]


def _parameter(header: str, name: str) -> str:
    """A parameter of a header, quoted or not; "" = it is not there."""
    read = Message()
    read["Content-Type"] = " ".join(header.split())
    found = read.get_param(name, "")
    return found.strip() if isinstance(found, str) else ""
