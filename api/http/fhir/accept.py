"""Which of its two forms an answer is to have, as the request's Accept header says."""

from email.message import Message

from fastapi import HTTPException, Request

__all__ = ["MEDIA_TYPE", "wants_fhir"]

MEDIA_TYPE = "application/fhir+json"
_XML = "application/fhir+xml"
_ANY = ("application/*", "*/*")
_RELEASES = (None, "4.0", "4.0.1")
_MOST_TYPES = 64


def wants_fhir(request: Request) -> bool:
    """Whether FHIR is what the request would have most of all.

    The weight decides, then whether a type is named or only covered by a wildcard, then which is
    named first (RFC 9110, 12.5.1). Who says nothing, or takes anything, gets our own JSON.

    Raises:
        HTTPException: 406, nothing else is asked for than FHIR in a form or release that is not
            spoken here.
    """
    asked = ",".join(request.headers.getlist("accept")).split(",")[:_MOST_TYPES]
    found: list[tuple[float, bool, int, bool]] = []
    not_spoken = None
    for place, part in enumerate(asked):
        media, release, weight = _parsed(part)
        if weight <= 0:
            continue
        if media == _XML or (media == MEDIA_TYPE and release not in _RELEASES):
            not_spoken = part.strip()[:80]
        elif media == MEDIA_TYPE:
            found.append((weight, True, -place, True))
        elif media == "application/json" or media in _ANY:
            found.append((weight, media not in _ANY, -place, False))
    if not found and not_spoken is not None:
        raise HTTPException(
            406,
            f"Accept is {not_spoken}; this service speaks FHIR R4 as {MEDIA_TYPE} "
            "(fhirVersion=4.0), and application/json",
        )
    return max(found)[3] if found else False


def _parsed(part: str) -> tuple[str, str | None, float]:
    """Media type, release of FHIR and weight of one part of the header."""
    read = Message()
    # No header has a line end in it, which Message would refuse.
    read["Content-Type"] = part.strip()
    try:
        weight = float(str(read.get_param("q", "1")))
    except ValueError:
        weight = 0.0
    release = read.get_param("fhirversion")
    return read.get_content_type(), None if release is None else str(release), weight
