"""Settings of OpenID Connect: whose tokens are believed, and what they allow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from engine.loopback import is_loopback
from engine.settings_fields import PathSetting, SettingsGroup, TenantSetting

__all__ = ["Algorithm", "OidcSettings", "read_secret"]

_PLACEHOLDERS = frozenset(
    {
        *("changeme", "changeit", "secret", "clientsecret", "mysecret", "yoursecret", "password"),
        *("example", "placeholder", "replaceme", "todo", "test", "none", "null", "default"),
        *("insertsecrethere", "yourclientsecret", "supersecret", "secretsecret", "dummy"),
    }
)


def _address(written: str) -> str:
    """Checks an address of a service: https, or http on this machine.

    Raises:
        ValueError: it is none, or of another kind.
    """
    parts = urlsplit(written)
    host = parts.hostname or ""
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    if not host or not safe or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"{written[:200]!r} is no address that can be used; write it as in "
            "https://login.example/realms/hospital (http only on this machine)"
        )
    return written


Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
_Address = Annotated[str, AfterValidator(_address)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]


class OidcSettings(SettingsGroup):
    """OpenID Connect; off without ``issuer``."""

    issuer: _Address | None = None
    """The identity provider, exactly as its tokens name it; its configuration is read from
    ``/.well-known/openid-configuration`` below it."""
    name: _Text = "your account"
    """What the button of the page calls the provider, as in "your hospital account"."""
    audience: _Text | None = None
    """What access tokens for this service name as their audience; None = no token is taken as a
    credential of a request."""
    client_id: _Text | None = None
    """The page's registration with the provider; None = nobody signs in to the page by it."""
    client_secret: SecretStr | None = None
    """Of that registration, from the environment alone; None = a public client, or the file."""
    client_secret_file: PathSetting | None = None
    """A file that has nothing but the secret."""
    page_url: _Address | None = None
    """The page's address as browsers see it. ``/login/oidc/callback`` below it has to be among the
    addresses to which the provider may send them back."""
    request_scope: _Text = "openid profile"
    """What the page asks the provider for."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = (
        "RS256",
        "PS256",
        "ES256",
    )
    """Signatures that are accepted. None with a shared secret is ever."""
    id_claim: _Text = "sub"
    """The claim by which the audit log tells people apart; it must never change or be reused."""
    name_claim: _Text = "preferred_username"
    """The claim that says what they are called."""
    scope_claim: _Text = "groups"
    """The claim whose values give scopes: a list, or text with blanks between. Dots lead into
    nested claims, as in "realm_access.roles"."""
    scopes: Mapping[
        Literal["search", "index", "admin", "audit", "metrics", "send"], tuple[_Text, ...]
    ] = {}
    """For each scope of ours the values of ``scope_claim`` that give it; others give nothing."""
    tenant: TenantSetting | None = None
    """The tenant of everybody, where there is but one …"""
    tenant_claim: _Text | None = None
    """… or else the claim that decides on it, by a value of …"""
    tenants: Mapping[str, TenantSetting] = {}
    """… these, each with its tenant."""
    skew_seconds: Annotated[int, Field(ge=0, le=300)] = 60
    """By how much clocks may differ."""
    keys_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """For how long the provider's keys and configuration are used before they are asked for
    again …"""
    outage_seconds: Annotated[float, Field(ge=0, le=604_800)] = 4 * 3600.0
    """… and for how much longer they are while the provider does not answer."""
    refetch_seconds: Annotated[float, Field(ge=1, le=3600)] = 10.0
    """Least time between two requests for the keys, whether a token names one that is not known or
    the provider has not answered."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Timeout of one request to the provider."""
    allowed_hosts: tuple[_Text, ...] = ()
    """Other hosts that the provider's configuration may name, as in "keys.example" or
    "keys.example:8443". Nothing else than these and the issuer's is ever asked."""
    ca_file: PathSetting | None = None
    """Certificates to trust instead of the usual ones."""

    @model_validator(mode="after")
    def _complete(self) -> "OidcSettings":
        if self.issuer is None:
            usual = {
                name: field.get_default(call_default_factory=True)
                for name, field in type(self).model_fields.items()
            }
            # A setting that is written with its usual value, as by another process, is no mistake.
            given = sorted(n for n in self.model_fields_set if getattr(self, n) != usual[n])
            if given:
                raise ValueError(f"oidc.{given[0]} is of no use without oidc.issuer; give that too")
            return self
        if self.audience is None and self.client_id is None:
            raise ValueError(
                "oidc.issuer needs oidc.audience (for programs), oidc.client_id (for "
                "the page) or both"
            )
        if self.audience == self.client_id:
            raise ValueError(
                "oidc.audience is oidc.client_id, so that what tells the page who somebody is "
                "would be a credential of requests; register the service as one of its own"
            )
        if self.client_id is not None and self.page_url is None:
            raise ValueError("oidc.client_id needs oidc.page_url, to which browsers come back")
        if not any(self.scopes.values()):
            raise ValueError(
                "oidc.scopes is empty, so that nobody may do anything; name who may, as in "
                'oidc.scopes = {search = ["radiology"]}'
            )
        by_claim = self.tenant_claim is not None and bool(self.tenants)
        if by_claim == (self.tenant is not None) or by_claim != (
            self.tenant_claim is not None or bool(self.tenants)
        ):
            raise ValueError(
                "oidc needs either oidc.tenant, or oidc.tenant_claim together with oidc.tenants"
            )
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError(
                "oidc.client_secret and oidc.client_secret_file are both set; keep one"
            )
        if self.client_secret is not None:
            _check_secret(self.client_secret.get_secret_value())
        return self

    @property
    def called(self) -> str:
        """What messages call these settings."""
        return "oidc"

    def secret(self) -> str | None:
        """The client's secret; None = a public client.

        Raises:
            ValueError: the file cannot be read, or what it has is no secret.
        """
        if self.client_secret is not None:
            return self.client_secret.get_secret_value()
        if self.client_secret_file is None:
            return None
        return read_secret(self.client_secret_file, "oidc.client_secret_file")


def read_secret(path: Path, setting: str) -> str:
    """The client's secret that a file has. setting: that names the file.

    Raises:
        ValueError: the file cannot be read, or what it has is no secret.
    """
    try:
        found = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(
            f"{setting} {path} cannot be read ({why}); correct the path, or let the service's "
            "user read it"
        ) from None
    _check_secret(found)
    return found


def _check_secret(secret: str) -> None:
    """Raises ValueError if this is no secret, without repeating it."""
    plain = "".join(one for one in secret.lower() if one.isalnum())
    if plain in _PLACEHOLDERS or len(set(secret)) < 4 or secret.startswith(("<", "${", "{{")):
        raise ValueError(
            "the client secret is empty or a placeholder; take the one that the provider made"
        )
