"""How the page tells an EHR that it is the client that was registered there."""

import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from api.security.oidc.provider import Configuration
from engine.errors import SettingsError
from engine.smart_settings import SmartSettings

__all__ = ["Client"]

_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_SECONDS = 240
"""For how long an assertion holds; five minutes are the most (SMART App Launch 2.2, 4.1)."""
_LEAST_RSA_BITS = 2048


class Client:
    """A registration with an EHR.

    Args:
        name: of the entry of the settings.
        clock: seconds since 1970.

    Raises:
        SettingsError: its secret or its key cannot be used.
    """

    def __init__(
        self, name: str, settings: SmartSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        try:
            self._secret = settings.secret()
        except ValueError as error:
            raise SettingsError(f"smart.{name}: {error}") from None
        self._key: Any = None
        self._algorithm = ""
        if settings.private_key_file is not None:
            self._key, self._algorithm = _key(f"smart.{name}.private_key_file", settings)

    def credentials(
        self, configuration: Configuration
    ) -> tuple[dict[str, str], tuple[str, str] | None]:
        """What a request for a token has in its form, and as name and password; None = neither."""
        client = self._settings.client_id
        if self._key is not None:
            return {
                "client_assertion_type": _ASSERTION,
                "client_assertion": self._assertion(configuration.token or ""),
            }, None
        if self._secret is None:
            return {"client_id": client}, None
        if configuration.secret_in_form:
            return {"client_id": client, "client_secret": self._secret}, None
        return {}, (quote_plus(client), quote_plus(self._secret))

    def _assertion(self, audience: str) -> str:
        """A signed assertion for the address of tokens (RFC 7523 2.2)."""
        now = int(self._clock())
        claims = {
            "iss": self._settings.client_id,
            "sub": self._settings.client_id,
            "aud": audience,
            "jti": secrets.token_urlsafe(24),
            "iat": now,
            "exp": now + _ASSERTION_SECONDS,
        }
        headers = {"kid": self._settings.key_id}
        return jwt.encode(claims, self._key, self._algorithm, headers=headers)


def _key(setting: str, settings: SmartSettings) -> tuple[Any, str]:
    """The private key of the file, and the algorithm by which it signs.

    Raises:
        SettingsError: it cannot be read, or is of another kind.
    """
    path = settings.private_key_file
    try:
        written = b"" if path is None else path.read_bytes()
        key = load_pem_private_key(written, None)
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no PEM key without password"
        raise SettingsError(f"{setting} {path} cannot be used ({why}); correct it") from None
    if isinstance(key, RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        return key, "RS384"
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
        return key, "ES384"
    raise SettingsError(
        f"{setting} {path} is neither RSA of {_LEAST_RSA_BITS} bits or more nor EC P-384; make one "
        "with `openssl ecparam -genkey -name secp384r1 -noout`"
    )
