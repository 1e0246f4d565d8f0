"""Which study is open in an EHR that has launched the page."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from api.security.oidc.outbound import Outbound
from engine.errors import ImageNotFound, ProviderUnavailable

__all__ = ["study_of"]

_ID = re.compile(r"[A-Za-z0-9.-]{1,64}", re.ASCII)
_UID = re.compile(r"(?:urn:oid:)?([0-2](?:\.(?:0|[1-9][0-9]*))+)", re.ASCII)
_LONGEST_UID = 64
_SYSTEM = "urn:dicom:uid"
_TYPE = "ImagingStudy/"
_MOST_BYTES = 8 * 1024 * 1024
"""Of a resource, which may list each instance of a study."""
_REFUSED = (401, 403)


def study_of(answer: Mapping[str, Any], issuer: str, outbound: Outbound) -> str | None:
    """The Study Instance UID of the study that is open; None = the EHR names none.

    Args:
        answer: to the request for a token, with the context of the launch.
        issuer: address of the FHIR server, which alone is asked.

    Raises:
        ImageNotFound: the EHR names a study, but not by a Study Instance UID, or does not let it
            be read.
        ProviderUnavailable: it does not answer.
    """
    uid, reference = _named(answer, issuer)
    if uid is not None or reference is None:
        return uid
    token = answer.get("access_token")
    if not isinstance(token, str) or not token.isascii():
        raise ImageNotFound(
            "the EHR gave no token to read the study with; let it give user/ImagingStudy.rs to "
            "this app"
        )
    place = f"{issuer.rstrip('/')}/{_TYPE}{reference}?_elements=identifier"
    try:
        status, found = outbound.read(place, token, _MOST_BYTES)
    except ProviderUnavailable:
        # Which one it was is the patient's affair, and this is logged.
        raise ProviderUnavailable(f"{issuer} does not answer for the study that is open") from None
    if status in _REFUSED:
        raise ImageNotFound(
            "the EHR does not let this app read the study that is open; let it give "
            "user/ImagingStudy.rs to it"
        )
    if status == 200 and found.get("resourceType") == "ImagingStudy":
        uid = next(_uids(found.get("identifier")), None)
        if uid is not None:
            return uid
    raise ImageNotFound(
        "the study that is open in the EHR is not there, or has no Study Instance UID by which it "
        "could be found here"
    )


def _named(answer: Mapping[str, Any], issuer: str) -> tuple[str | None, str | None]:
    """Study Instance UID or id of the resource, as the launch context names the first study."""
    listed = answer.get("fhirContext")
    for one in listed[:100] if isinstance(listed, list) else ():
        if not isinstance(one, dict):
            continue
        if one.get("type", "ImagingStudy") == "ImagingStudy":
            uid = next(_uids([one.get("identifier")]), None)
            if uid is not None:
                return uid, None
        written = one.get("reference")
        if isinstance(written, str):
            # Of another server's resource nothing is known, and no other server is asked.
            found = written.removeprefix(issuer.rstrip("/") + "/")
            found = found.partition("/_history/")[0]
            if found.startswith(_TYPE) and _ID.fullmatch(found.removeprefix(_TYPE)):
                return None, found.removeprefix(_TYPE)
    # As servers name it for the scope launch/imagingstudy.
    written = answer.get("imagingstudy")
    named = written if isinstance(written, str) else ""
    named = named.removeprefix(_TYPE)
    return None, named if _ID.fullmatch(named) else None


def _uids(identifiers: object) -> Iterator[str]:
    """The UIDs among FHIR identifiers."""
    for one in identifiers[:100] if isinstance(identifiers, list) else ():
        if not isinstance(one, dict) or one.get("system") != _SYSTEM:
            continue
        found = _UID.fullmatch(str(one.get("value")))
        if found is not None and len(found[1]) <= _LONGEST_UID:
            yield found[1]
