"""What the claims of a token say by the settings: who somebody is, and what they may."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.security.policy import Scope
from engine.errors import NotAllowed, NotAuthenticated
from engine.oidc_settings import OidcSettings

__all__ = ["Identity", "identity_of"]

_MOST_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody whom the identity provider knows. id: the provider's, which never changes. name:
    for people; the id if the provider tells none."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]


def identity_of(claims: Mapping[str, Any], settings: OidcSettings) -> Identity:
    """Who the claims are of. What the settings do not map gives nothing.

    Raises:
        NotAuthenticated: the claims do not tell who it is.
        NotAllowed: they give no scope, or not exactly one tenant. It has who it is.
    """
    who = _text(_claim(claims, settings.id_claim))
    if who is None:
        raise NotAuthenticated(
            f"this token is not valid: it lacks the claim {settings.id_claim!r}, by which people "
            "are told apart (oidc.id_claim)"
        )
    name = _text(_claim(claims, settings.name_claim)) or who
    values = _values(_claim(claims, settings.scope_claim))
    scopes = frozenset(
        Scope(scope) for scope, given_by in settings.scopes.items() if values & set(given_by)
    )
    if not scopes:
        raise NotAllowed(
            f"the claim {settings.scope_claim!r} of this account has nothing that gives a scope "
            "here; oidc.scopes says what does",
            subject=who,
            name=name,
        )
    tenants = _tenants(claims, settings)
    if len(tenants) != 1:
        raise NotAllowed(
            f"the claim {settings.tenant_claim!r} of this account names {len(tenants) or 'none'} "
            "of the tenants in oidc.tenants; it has to name one",
            subject=who,
            name=name,
        )
    return Identity(who, name, tenants.pop(), scopes)


def _tenants(claims: Mapping[str, Any], settings: OidcSettings) -> set[str]:
    """The tenants that the settings give to the account."""
    if settings.tenant is not None:
        return {settings.tenant}
    values = _values(_claim(claims, settings.tenant_claim or ""), split=False)
    return {settings.tenants[value] for value in values if value in settings.tenants}


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or, if there is none of that name, by its path."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    usable = isinstance(value, str) and value.isprintable() and value.strip()
    return str(value) if usable and len(str(value)) <= _MOST_CHARACTERS else None


def _values(value: object, *, split: bool = True) -> set[str]:
    """The values of a claim: of a list, or of one text, which may be several with blanks."""
    if isinstance(value, str):
        return {value, *value.split()} if split else {value}
    return {one for one in value if isinstance(one, str)} if isinstance(value, list) else set()
