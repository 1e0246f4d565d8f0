"""The documents of CDS Hooks (HL7, 2.0): what a client asks, and cards.

Cards are checked here, as the specification words it: most clients and libraries check none of it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.http.bodies import Fields

__all__ = [
    "Card",
    "CardLink",
    "CardSource",
    "CardsDocument",
    "HookRequest",
    "ServiceDocument",
    "ServicesDocument",
    "studies_named",
]

LONGEST_SUMMARY = 139
"""A summary has fewer than 140 characters."""
_STUDY_UID = re.compile(r"(?:urn:oid:)?([0-9]+(?:\.[0-9]+)+)", re.ASCII)
_LONGEST_UID = 64
_MOST_ENTRIES, _MOST_IDENTIFIERS, _MOST_STUDIES = 100, 10, 20


def _absolute(written: str) -> str:
    parts = urlsplit(written)
    if not parts.scheme or not parts.netloc:
        raise ValueError(f"{written[:80]!r} is no absolute address")
    return written


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class HookRequest(Fields):
    """A call of the service by a CDS client.

    - `hook`: the one that was triggered. `hookInstance`: id of this call.
    - `context`: what the client is showing: `studyInstanceUID`, or `imagingStudy`, an ImagingStudy
      of FHIR R4 or a Bundle of them.
    - `prefetch`: `study`, the same resource, as the service's description asks for it.

    Other members, `fhirServer` and `fhirAuthorization` among them, are not looked at: the service
    asks no server that a request names.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    hook: str = Field(examples=["imaging-study"], max_length=200)
    hook_instance: str = Field(
        alias="hookInstance",
        examples=["d1577c69-dfbe-44ad-ba6d-3e05e953b2ea"],
        min_length=1,
        max_length=200,
    )
    context: dict[str, Any] = Field(
        examples=[
            {
                "userId": "Practitioner/example",
                "patientId": "1288992",
                "studyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
            }
        ]
    )
    prefetch: dict[str, Any] | None = None


class ServiceDocument(_Document):
    """A service that a CDS client may call."""

    id: str
    hook: str
    title: str
    description: str
    prefetch: dict[str, str]


class ServicesDocument(_Document):
    """The services of this provider."""

    services: list[ServiceDocument]


class CardSource(_Document):
    """Where a card comes from. `label`: as clients show it."""

    label: Annotated[str, Field(min_length=1, max_length=80)]


class CardLink(_Document):
    """A link of a card."""

    label: Annotated[str, Field(min_length=1)]
    url: Annotated[str, AfterValidator(_absolute)]
    type: Literal["absolute"] = "absolute"


class Card(_Document):
    """A card.

    - `uuid`: its id. `summary`: one sentence of fewer than 140 characters.
    - `detail`: GitHub Flavored Markdown. `indicator`: "info", "warning" or "critical".
    """

    uuid: str
    summary: Annotated[str, Field(min_length=1, max_length=LONGEST_SUMMARY)]
    detail: str
    indicator: Literal["info", "warning", "critical"]
    source: CardSource
    links: list[CardLink]


class CardsDocument(_Document):
    """What the service has to say: one card, or none."""

    cards: list[Card]


def studies_named(asked: HookRequest) -> list[str]:
    """Study Instance UIDs that a request names, in its order, 20 at most."""
    context, prefetch = asked.context, asked.prefetch or {}
    found = [context.get("studyInstanceUID")]
    for resource in (context.get("imagingStudy"), prefetch.get("study")):
        found += [uid for one in _imaging_studies(resource) for uid in _identifiers(one)]
    uids = (_STUDY_UID.fullmatch(one) for one in found if isinstance(one, str))
    named = (uid[1] for uid in uids if uid is not None and len(uid[1]) <= _LONGEST_UID)
    return list(dict.fromkeys(named))[:_MOST_STUDIES]


def _imaging_studies(resource: object) -> Iterator[Mapping[str, Any]]:
    if not isinstance(resource, dict):
        return
    if resource.get("resourceType") == "ImagingStudy":
        yield resource
    elif resource.get("resourceType") == "Bundle" and isinstance(resource.get("entry"), list):
        for entry in resource["entry"][:_MOST_ENTRIES]:
            inner = entry.get("resource") if isinstance(entry, dict) else None
            if isinstance(inner, dict) and inner.get("resourceType") == "ImagingStudy":
                yield inner


def _identifiers(study: Mapping[str, Any]) -> Iterator[object]:
    identifiers = study.get("identifier")
    for one in identifiers[:_MOST_IDENTIFIERS] if isinstance(identifiers, list) else ():
        if isinstance(one, dict) and one.get("system") == "urn:dicom:uid":
            yield one.get("value")
