"""Settings of DICOM documents, and of the destinations to which they may be sent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    HttpUrl,
    SecretStr,
    model_validator,
)

from engine.errors import SettingsError
from engine.settings_fields import PathSetting, SettingsGroup, TenantSetting

__all__ = [
    "Destination",
    "DestinationSettings",
    "DicomDestination",
    "DocumentsSettings",
    "StowDestination",
    "refuse_secrets",
]


class DocumentsSettings(SettingsGroup):
    """What DICOM documents hold, and for how long they are tried to be sent."""

    identify_other_patients: bool = False
    """Whether reports name hits of other patients by their UIDs, labels and years. Off: a report
    belongs to one patient, and goes where that patient's other records go."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 12
    """How often a sending is attempted before it has failed."""
    backoff_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Pause after the first failed attempt; it doubles with each further one, up to an hour."""
    commitment_hours: Annotated[float, Field(gt=0)] = 24.0
    """How long it is awaited that a node answers a request for storage commitment, after which it
    is unanswered; an answer that comes later still counts."""
    keep_days: Annotated[float, Field(gt=0)] = 30.0
    """How long it can be asked what became of a sending that has ended."""


class DestinationSettings(SettingsGroup):
    """What all destinations have."""

    tenant: TenantSetting | None = None
    """Whose documents may be sent there; None = those of `default`."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """For how long one answer of it is waited for."""
    ca_file: PathSetting | None = None
    """Certificates to trust instead of the system's."""


class DicomDestination(DestinationSettings):
    """A node that takes documents by C-STORE."""

    kind: Literal["dicom"]
    """That this destination takes C-STORE."""
    ae_title: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")]
    """The AE title of the node."""
    host: Annotated[str, Field(min_length=1)]
    """Its name or address."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """Its port."""
    calling_ae_title: Annotated[str, Field(min_length=1, max_length=16)] = "PRECEDENT"
    """The AE title by which the node knows this service."""
    tls: bool = False
    """Whether the association is over TLS."""
    cert_file: PathSetting | None = None
    """With TLS: the certificate to show to the node, in PEM …"""
    key_file: PathSetting | None = None
    """… and its key, in PEM."""
    commitment: bool = True
    """Whether the node is asked to commit itself to what it stored, if it offers that."""
    commitment_seconds: Annotated[float, Field(ge=0, le=600)] = 10.0
    """For how long an attempt waits for its answer to that."""
    commitment_ae_titles: tuple[
        Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")], ...
    ] = ()
    """AE titles under which it answers over an association of its own, besides ``ae_title``."""

    @model_validator(mode="after")
    def _fits(self) -> "DicomDestination":
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together; give both or none")
        if not self.tls and (self.ca_file or self.cert_file):
            raise ValueError("ca_file, cert_file and key_file are for TLS; set tls = true too")
        return self


class StowDestination(DestinationSettings):
    """A DICOMweb server that takes documents by STOW-RS."""

    kind: Literal["stow"]
    """That this destination takes STOW-RS."""
    url: HttpUrl
    """Its root, below which `/studies` is."""
    username: str | None = None
    """With a password: who sends (HTTP Basic)."""
    password: SecretStr | None = None
    """Of that user, from the environment alone …"""
    password_file: PathSetting | None = None
    """… or a file that has nothing but it."""
    token: SecretStr | None = None
    """Sent as a bearer token."""
    token_file: PathSetting | None = None
    """A file that has nothing but the token."""

    @model_validator(mode="after")
    def _fits(self) -> "StowDestination":
        if self.url.username or self.url.password or self.url.query or self.url.fragment:
            raise ValueError(
                "url has more than an address; give credentials in fields of their own"
            )
        given = [
            n for n in ("password", "password_file", "token", "token_file") if getattr(self, n)
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one")
        if (self.username is not None) != bool(given and given[0].startswith("password")):
            raise ValueError("a username and a password (or password_file) belong together")
        return self


Destination = Annotated[DicomDestination | StowDestination, Field(discriminator="kind")]


def refuse_secrets(written: Mapping[str, Any], file: Path | None) -> None:
    """Refuses credentials of destinations in the settings file, which is copied and mailed.

    Raises:
        SettingsError: there is one.
    """
    destinations = written.get("destinations")
    for name, one in destinations.items() if isinstance(destinations, dict) else ():
        for field in ("password", "token"):
            if isinstance(one, dict) and field in one:
                raise SettingsError(
                    f"destinations.{name}.{field} does not belong into {file}; put it into a file "
                    f"of its own, named by destinations.{name}.{field}_file, or into "
                    f"PRECEDENT_DESTINATIONS__{name.upper()}__{field.upper()}"
                )
