"""Checks tokens of the identity provider: signature, issuer, audience, and times."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import jwt

from api.security.oidc.provider import Provider
from engine.errors import NotAuthenticated
from engine.oidc_settings import OidcSettings

__all__ = ["Judged", "access_token_claims", "id_token_claims", "looks_like_token"]

_MOST_CHARACTERS = 16_384
_ACCESS_TYPES = ("jwt", "at+jwt", "application/at+jwt")


class Judged(Protocol):
    """By what tokens are judged. issuer: as they name it. client_id: for whom ID tokens are.
    called: what messages call the settings."""

    @property
    def issuer(self) -> str | None: ...
    @property
    def client_id(self) -> str | None: ...
    @property
    def algorithms(self) -> Collection[str]: ...
    @property
    def skew_seconds(self) -> int: ...
    @property
    def called(self) -> str: ...


def looks_like_token(written: str) -> bool:
    """Whether a credential may be a signed token, so that it is no API key."""
    return written.count(".") == 2


def access_token_claims(token: str, settings: OidcSettings, provider: Provider) -> dict[str, Any]:
    """The claims of an access token for this service (RFC 9068).

    Raises:
        NotAuthenticated: it is not valid, or of another kind.
        ProviderUnavailable: nobody can tell.
    """
    if settings.audience is None:
        raise NotAuthenticated("this service takes no tokens; send an API key")
    claims = _claims(token, settings, provider, settings.audience, _ACCESS_TYPES)
    if "cnf" in claims:
        # It is bound to a key that its holder proves to have (RFC 7800), which nobody asks for.
        raise NotAuthenticated("this token is not valid: it is bound to a key; ask for a plain one")
    return claims


def id_token_claims(token: str, settings: Judged, provider: Provider, nonce: str) -> dict[str, Any]:
    """The claims of an ID token of this sign-in (OpenID Connect Core 3.1.3.7).

    Raises:
        NotAuthenticated: it is not valid, or of another sign-in.
        ProviderUnavailable: nobody can tell.
    """
    claims = _claims(token, settings, provider, settings.client_id or "", ("jwt",))
    audience = claims["aud"]
    several = isinstance(audience, list) and len(audience) > 1
    if claims.get("azp", None if several else settings.client_id) != settings.client_id:
        raise NotAuthenticated("this token is not valid: it was made for another client")
    if claims.get("nonce") != nonce:
        raise NotAuthenticated("this token is not valid: it is of another sign-in")
    return claims


def _claims(
    token: str,
    settings: Judged,
    provider: Provider,
    audience: str,
    types: tuple[str, ...],
) -> dict[str, Any]:
    header = _header(token)
    algorithm = header.get("alg")
    # Decided before a key is looked for: "none" needs none, and HMAC would take a public key.
    if algorithm not in settings.algorithms:
        raise NotAuthenticated(
            f"this token is not valid: its algorithm is not accepted ({settings.called}.algorithms)"
        )
    if str(header.get("typ", "jwt")).lower() not in types:
        raise NotAuthenticated("this token is not valid: it is of another kind")
    key = provider.key(header)
    try:
        return jwt.decode(
            token,
            key.public,
            algorithms=[str(algorithm)],
            audience=audience,
            issuer=settings.issuer,
            leeway=settings.skew_seconds,
            options={"require": ["iss", "aud", "exp", "iat"]},
        )
    except jwt.PyJWTError as error:
        raise NotAuthenticated(f"this token is not valid: {_why(error, settings.called)}") from None
    except (ValueError, TypeError, OverflowError):
        raise NotAuthenticated("this token is not valid: it is malformed") from None


def _header(token: str) -> Mapping[str, Any]:
    if len(token) <= _MOST_CHARACTERS:
        try:
            return jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            pass
    raise NotAuthenticated("this token is not valid: it is malformed")


def _why(error: jwt.PyJWTError, called: str) -> str:
    """What is wrong with a token, without repeating any of it."""
    match error:
        case jwt.ExpiredSignatureError():
            return "it has expired; ask for a new one"
        case jwt.ImmatureSignatureError():
            return "its time is yet to come; set the clocks"
        case jwt.InvalidAudienceError():
            return f"it is for another audience than {called} has"
        case jwt.InvalidIssuerError():
            return f"it is of another issuer than {called}.issuer"
        case jwt.MissingRequiredClaimError():
            return f"it lacks the claim {error.claim!r}"
        case jwt.InvalidSignatureError():
            return "its signature is wrong"
        case _:
            return "it is malformed"
