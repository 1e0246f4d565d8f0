"""What the tests with an identity provider share: who is known there, and what that gives here."""

import base64
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from services.identity_provider import AUDIENCE, IdentityProvider, SigningKey

from engine.oidc_settings import OidcSettings

__all__ = ["PAGE", "PEOPLE", "PROGRAMS", "SHORT", "bearer", "by_public_key", "part", "settings_of"]

PAGE = "http://localhost"
SHORT = AUDIENCE + "/short"
"""An audience whose tokens last three seconds."""
GIVES = {
    "search": "radiology",
    "index": "pacs",
    "admin": "it",
    "audit": "privacy",
    "metrics": "monitoring",
    "send": "reporting",
}
_EVERY = list(GIVES.values())
PROGRAMS: dict[str, dict[str, Any]] = {
    "right": {"groups": _EVERY, "site": "north"},
    "other": {"groups": _EVERY, "site": "south"},
    "nothing": {"groups": ["kitchen"], "site": "north"},
    "nowhere": {"groups": _EVERY, "site": "east"},
    "everywhere": {"groups": _EVERY, "site": ["north", "south"]},
    **{
        f"without-{scope}": {"groups": [one for one in _EVERY if one != group], "site": "north"}
        for scope, group in GIVES.items()
    },
}
PEOPLE = {
    "ann": {"preferred_username": "Ann Weber", "groups": ["radiology"], "site": "north"},
    "cook": {"preferred_username": "The cook", "groups": ["kitchen"], "site": "north"},
    "clerk": {"preferred_username": "The clerk", "groups": ["monitoring"], "site": "north"},
    "officer": {"preferred_username": "The officer", "groups": ["privacy"], "site": "north"},
}


def settings_of(provider: IdentityProvider, **changed: Any) -> OidcSettings:
    """Those of a service that believes this provider."""
    usual: dict[str, Any] = {
        "issuer": provider.issuer,
        "audience": AUDIENCE,
        "scopes": {scope: (group,) for scope, group in GIVES.items()},
        "tenant_claim": "site",
        "tenants": {"north": "default", "south": "elsewhere"},
        "skew_seconds": 0,
    }
    return OidcSettings(**{**usual, **changed})


def bearer(written: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {written}"}


def part(value: bytes | dict[str, Any]) -> str:
    """A part of a token, as it is written."""
    written = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(written).rstrip(b"=").decode()


def by_public_key(key: SigningKey, claims: dict[str, Any]) -> str:
    """A token whose HMAC has the provider's public key, which all know, as its secret."""
    public = key.private.public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{part({'alg': 'HS256', 'kid': key.id})}.{part(claims)}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256'))}"
