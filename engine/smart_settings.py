"""Settings of SMART App Launch: which records (EHRs) may open the page, and what that allows."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from engine.loopback import is_loopback
from engine.oidc_settings import Algorithm, read_secret
from engine.settings_fields import PathSetting, SettingsGroup, TenantSetting

__all__ = ["SmartName", "SmartSettings"]


def _address(written: str) -> str:
    """Checks an address of a server: https, or http on this machine.

    Raises:
        ValueError: it is none, or of another kind.
    """
    try:
        parts = urlsplit(written)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    plain = written.isascii() and written.isprintable() and not set(written) & set(" ?#@\\\"'<>")
    if not host or not safe or not plain:
        raise ValueError(
            f"{written[:200]!r} is no address that can be used; write it as in "
            "https://ehr.example/fhir (http only on this machine)"
        )
    return written


SmartName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
_Address = Annotated[str, AfterValidator(_address)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Scopes = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[!-~]+( [!-~]+)*$")]
_Resource = Literal["Practitioner", "PractitionerRole", "Person", "RelatedPerson", "Patient"]


class SmartSettings(SettingsGroup):
    """An EHR that opens the page by SMART App Launch. No other one does."""

    issuer: _Address
    """The address of its FHIR server, exactly as it sends it as ``iss``, to the last character."""
    title: _Text | None = None
    """What people call it; None = its name here."""
    client_id: _Text
    """The page's registration with it."""
    client_secret_file: PathSetting | None = None
    """A file that has nothing but the secret of that registration …"""
    private_key_file: PathSetting | None = None
    """… or a private key (PEM: RSA of 2048 bits or more, or EC P-384), with which the page says
    who it is (private_key_jwt). None of the two = a public client."""
    key_id: _Text | None = None
    """The id (``kid``) under which the EHR knows the key."""
    page_url: _Address
    """The page's address as browsers see it. ``/smart/callback`` below it has to be the redirect
    address of the registration, ``/smart/launch`` the launch address."""
    request_scope: _Scopes = "openid fhirUser launch user/ImagingStudy.rs"
    """What a launch from within the EHR asks for."""
    standalone_scope: _Scopes | None = None
    """What a launch from our page asks for, as "openid fhirUser launch/imagingstudy
    user/ImagingStudy.rs"; None = our page offers none."""
    tenant: TenantSetting
    """Whose images they see who come from there."""
    scopes: tuple[Literal["search", "index", "admin", "audit", "metrics", "send"], ...] = (
        "search",
    )
    """What they may do here."""
    users: Annotated[tuple[_Resource, ...], Field(min_length=1)] = (
        "Practitioner",
        "PractitionerRole",
    )
    """Who may come, as the kind of resource that ``fhirUser`` names: patients see no archive."""
    framed: bool = False
    """Whether the EHR shows the page in a frame of its own page, which ``server.frame_ancestors``
    has to name; cookies are then such that browsers send them there."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = (
        "RS256",
        "RS384",
        "ES256",
        "ES384",
    )
    """Signatures of ID tokens that are accepted. None with a shared secret is ever."""
    skew_seconds: Annotated[int, Field(ge=0, le=300)] = 60
    """By how much clocks may differ."""
    keys_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """For how long the EHR's keys and addresses are used before they are asked for again …"""
    outage_seconds: Annotated[float, Field(ge=0, le=604_800)] = 0.0
    """… and for how much longer they are while it does not answer."""
    refetch_seconds: Annotated[float, Field(ge=1, le=3600)] = 10.0
    """Least time between two requests for them."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Timeout of one request to it."""
    allowed_hosts: tuple[_Text, ...] = ()
    """Other hosts that its configuration may name, as in "login.ehr.example". Nothing else than
    these and the issuer's is ever asked."""
    ca_file: PathSetting | None = None
    """Certificates to trust instead of the usual ones."""

    @property
    def called(self) -> str:
        """What messages call these settings."""
        return "smart.NAME"

    @model_validator(mode="after")
    def _complete(self) -> "SmartSettings":
        if self.client_secret_file is not None and self.private_key_file is not None:
            raise ValueError("client_secret_file and private_key_file exclude each other; give one")
        if (self.private_key_file is None) != (self.key_id is None):
            raise ValueError("private_key_file and key_id belong together; give both or none")
        if "search" not in self.scopes:
            raise ValueError("scopes lacks search, which the page needs; add it")
        for name in ("request_scope", "standalone_scope"):
            asked = (getattr(self, name) or "openid fhirUser").split()
            if not {"openid", "fhirUser"} <= set(asked):
                raise ValueError(
                    f"{name} lacks openid or fhirUser, by which the EHR says who it is; add them"
                )
        return self

    def secret(self) -> str | None:
        """The client's secret; None = it has none.

        Raises:
            ValueError: the file cannot be read, or what it has is no secret.
        """
        if self.client_secret_file is None:
            return None
        return read_secret(self.client_secret_file, "client_secret_file")
