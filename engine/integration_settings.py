"""Settings of what other systems of a hospital get: links into viewers, FHIR, CDS Hooks, QIDO-RS.

What is wrong with the address of a viewer is told when the settings are loaded, not by a link
that leads nowhere.
"""

import re
from string import Formatter
from typing import Annotated, Literal
from urllib.parse import quote_plus, unquote_plus, urlsplit

from pydantic import AfterValidator, Field, model_validator

from engine.loopback import is_loopback
from engine.settings_fields import SettingsGroup

__all__ = [
    "PLACEHOLDERS",
    "CdsHooksSettings",
    "FhirSettings",
    "QidoSettings",
    "ViewerName",
    "ViewerSettings",
]

PLACEHOLDERS = ("study", "series", "sop", "frame", "query_study")
"""What a template may name: UIDs of the hit, the number of its frame from 1, and the Study Instance
UID of what was searched for."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'<>;&|]+", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x20\x7f\"'<>\\^`|]")
_WEASIS = "weasis"


def _is_safe(address: str) -> bool:
    """Whether this is https, or http on the machine itself, without a name and password in it."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    allowed = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    return bool(host) and allowed and "@" not in parts.netloc


def _base(written: str) -> str:
    """Checks the address of a viewer.

    Raises:
        ValueError: it is none, or neither https nor http on this machine.
    """
    if _UNSAFE.search(written) or not _is_safe(written) or re.search(r"[?#{}]", written):
        raise ValueError(
            f"{written[:200]!r} is no address of a viewer; write it as in "
            "https://viewer.example/ohif (http only on this machine), without query"
        )
    return written.rstrip("/")


def _template(written: str) -> str:
    """Checks the template of a link.

    Raises:
        ValueError: it names something unknown, not the study, or leads to where it must not.
    """
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = list(Formatter().parse(written))
    except ValueError:
        raise ValueError(
            f"{written[:200]!r} has a brace without its other one; write {{{{ and }}}} for braces "
            f"that are no placeholder of {known}"
        ) from None
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in PLACEHOLDERS or form or conversion:
            raise ValueError(
                f"{written[:200]!r} has the placeholder {{{name[:40]}}}, which stands for nothing; "
                f"use {known}"
            )
        names.append(name)
    if "study" not in names:
        raise ValueError(f"{written[:200]!r} does not say which study; put {{study}} into it")
    if _UNSAFE.search(written) or not _leads_to_a_viewer(written):
        raise ValueError(
            f"{written[:200]!r} is no link that a page may carry; write https://, http:// of this "
            "machine, or weasis:// with such an address in it, and placeholders after the host"
        )
    return written


def _leads_to_a_viewer(template: str) -> bool:
    scheme, _, rest = template.partition("://")
    if scheme != _WEASIS:
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        return "{" not in authority and _is_safe(f"{scheme}://{authority}")
    # Its commands are percent-encoded, and name the server that Weasis asks.
    named = _ADDRESS.findall(unquote_plus(rest))
    return all("{" not in urlsplit(one).netloc and _is_safe(one) for one in named)


ViewerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
_Base = Annotated[str, AfterValidator(_base)]
_Template = Annotated[str, AfterValidator(_template)]
_Text = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")]

_TITLES = {
    "ohif": "OHIF",
    "weasis": "Weasis",
    "stone": "Stone",
    "orthanc-explorer-2": "Orthanc",
}


class ViewerSettings(SettingsGroup):
    """A viewer in which hits can be opened: one that is known here, or one with a template."""

    kind: Literal["ohif", "weasis", "stone", "orthanc-explorer-2"] | None = None
    """Which one, for its usual links …"""
    url: _Base | None = None
    """… and where it is: of OHIF the address that ``/viewer`` follows, of Stone and Orthanc
    Explorer 2 that of Orthanc, of Weasis the DICOMweb server that it is to ask."""
    data_source: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    """Which of its data sources OHIF is to ask; None = its first one."""
    template: _Template | None = None
    """Instead of kind and url: the link, with {study}, {series}, {sop}, {frame} in it. A hit that
    lacks one of those that it names gets no link."""
    beside: _Template | None = None
    """With a template: the link that shows hit and query together, with {query_study}."""
    title: _Text | None = None
    """What people call it."""
    sources: Annotated[tuple[_Text, ...], Field(min_length=1)]
    """The sources whose studies the viewer's server has, as answers name them in `source`. Others
    have no link: a study that the server lacks takes the whole page away."""

    @model_validator(mode="after")
    def _one_way(self) -> "ViewerSettings":
        if (self.template is None) == (self.kind is None):
            raise ValueError("a viewer has either kind (with url) or template; give one of them")
        if (self.url is None) != (self.kind is None):
            raise ValueError("kind and url belong together; give both, or a template")
        if self.data_source is not None and self.kind != "ohif":
            raise ValueError("data_source is OHIF's; leave it out for other viewers")
        if self.beside is not None and self.template is None:
            raise ValueError("beside belongs to a template; leave it out with kind")
        if self.beside is not None and "{query_study}" not in self.beside:
            raise ValueError("beside has to name {query_study}, which is shown together")
        if self.template is not None and "{query_study}" in self.template:
            raise ValueError("{query_study} belongs into beside: template opens the hit alone")
        return self

    def shown_as(self, name: str) -> str:
        """What people call it. name: in the settings."""
        return self.title or _TITLES.get(self.kind or "", name)

    @property
    def templates(self) -> tuple[str, ...]:
        """Links to a hit, the most precise one first."""
        if self.template is not None:
            return (self.template,)
        base = _literal(self.url or "")
        if self.kind == "ohif":
            opened = f"{self._ohif}?StudyInstanceUIDs={{study}}"
            return (opened + _INITIAL, opened)
        if self.kind == "stone":
            opened = f"{base}/stone-webviewer/index.html?study={{study}}"
            return (opened + "&series={series}", opened)
        if self.kind == "orthanc-explorer-2":
            return (f"{base}/ui/app/#/filtered-studies?StudyInstanceUID={{study}}&expand=study",)
        command = quote_plus(f'$dicom:rs --url "{self.url}" -r "studyUID=') + "{study}"
        # After a question mark, so that no browser takes it for the name of a host.
        return (f"{_WEASIS}://?{command}{quote_plus(chr(34))}",)

    @property
    def templates_beside(self) -> tuple[str, ...]:
        """Links that show hit and query together, the most precise one first; may be empty."""
        if self.beside is not None:
            return (self.beside,)
        if self.kind != "ohif":
            return ()
        # Which of the two is on the screen is decided by the initial instance alone.
        opened = (
            f"{self._ohif}?StudyInstanceUIDs={{query_study}},{{study}}"
            "&hangingProtocolId=@ohif/hpCompare"
        )
        return (opened + _INITIAL, opened)

    @property
    def _ohif(self) -> str:
        base = f"{_literal(self.url or '')}/viewer"
        return base if self.data_source is None else f"{base}/{self.data_source}"


_INITIAL = "&initialSeriesInstanceUID={series}&initialSOPInstanceUID={sop}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


class FhirSettings(SettingsGroup):
    """Answers in FHIR R4."""

    patients: Literal["none", "pseudonym"] = "none"
    """How the subject of an ImagingStudy is told: not at all, or by a pseudonym that is the same
    for all studies of one patient, and another one in every tenant."""
    only_r4_modalities: bool = False
    """Whether "OT" stands for modalities that the tables of R4 lack (ANN, M3D, …), since some
    servers refuse a resource with these."""
    instances: bool = True
    """Whether hits have their instance. R4 asks for its SOP class, which is read from where the
    image was indexed from, at that moment."""


class CdsHooksSettings(SettingsGroup):
    """The service for CDS Hooks."""

    hook: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$")] = "imaging-study"
    """On which hook of the client the service is to be called. HL7's library has none for an
    imaging study, so clients name their own, or call it on one as patient-view."""
    hits: Annotated[int, Field(ge=1, le=20)] = 5
    """How many cases a card tells of."""
    source_label: _Text = "Precedent"
    """What cards name as their source."""


def _server(written: str) -> str:
    """Checks the address of a DICOMweb server.

    Raises:
        ValueError: it is none, or has a name, a password or a query in it.
    """
    try:
        parts = urlsplit(written)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or _UNSAFE.search(written) or re.search(r"[?#@{}]", written):
        raise ValueError(
            f"{written[:200]!r} is no address of a DICOMweb server; write it as in "
            "https://pacs.example/dicom-web, without name, password and query"
        )
    return written.rstrip("/")


class QidoSettings(SettingsGroup):
    """Answers of QIDO-RS: a list of related studies, for viewers."""

    wado_root: Annotated[str, AfterValidator(_server)] | None = None
    """The WADO-RS server that has the studies, as viewers reach it: answers name each study's
    address there (Retrieve URL). None = answers name none."""
    sources: tuple[_Text, ...] = ()
    """The sources whose studies that server has, as answers name them in `source`; others are left
    out. Empty = it has all of them."""
    studies: Annotated[int, Field(ge=1, le=100)] = 25
    """How many studies the list of what is related to one has."""
    patients: Literal["none", "pseudonym"] = "none"
    """What answers have as Patient ID: nothing, or a pseudonym that is the same for all studies of
    one patient, another one in every tenant, by which the patient's studies can be asked for."""
