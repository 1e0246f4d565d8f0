"""What the identity provider says of itself: its addresses and its keys, kept for a while."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from api.security.oidc.outbound import Outbound
from engine.errors import NotAuthenticated, ProviderUnavailable

__all__ = ["Configuration", "Kept", "Provider", "SigningKey", "openid_configuration"]

_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
_PATIENCE_SECONDS = 1.0
_USUAL = ("client_secret_basic",)
_PUBLIC = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""Kinds of keys, with what of each is public."""
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of the provider. kind: "RSA", or its curve. algorithm: the only one that it is
    for; None = any of its kind. public: as PyJWT takes it."""

    id: object
    kind: str
    algorithm: object
    public: Any


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a provider says of itself (OpenID Connect Discovery 1.0, SMART App Launch 2).

    issuer: as its tokens name it. Addresses: None = the provider has none. names_itself: answers
    to browsers have ``iss`` (RFC 9207). secret_in_form: clients send their secret in the form, and
    not as a password."""

    issuer: str
    keys: str
    authorization: str | None
    token: str | None
    end_session: str | None
    names_itself: bool
    secret_in_form: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """What the provider answered. at: when, by the clock."""

    configuration: Configuration
    keys: tuple[SigningKey, ...]
    at: float


class Kept(Protocol):
    """For how long what a provider says of itself is used. issuer: where it is asked."""

    @property
    def issuer(self) -> str | None: ...
    @property
    def keys_seconds(self) -> float: ...
    @property
    def outage_seconds(self) -> float: ...
    @property
    def refetch_seconds(self) -> float: ...


class Provider:
    """The provider's configuration and keys. Threads may share it.

    They are asked for when they are first needed and when they are old; keys also when a token
    names one that is not known, at most once in ``refetch_seconds``. While the provider does not
    answer, what is known serves on for ``outage_seconds``.

    Args:
        settings: with an issuer.
        outbound: asks it.
        clock: seconds that only go up.
        read: asks an issuer for its configuration.
    """

    def __init__(
        self,
        settings: Kept,
        outbound: Outbound,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[str, Outbound], Configuration] | None = None,
    ) -> None:
        self._settings = settings
        self._outbound = outbound
        self._clock = clock
        self._read = read or openid_configuration
        self._asking = threading.Lock()
        self._known: _Known | None = None
        self._asked_at: float | None = None
        self._failure = ""

    def configuration(self) -> Configuration:
        """The provider's configuration. Raises ProviderUnavailable."""
        return self._current().configuration

    @property
    def known_configuration(self) -> Configuration | None:
        """The configuration, if it is known; nobody is asked."""
        known = self._known
        return None if known is None else known.configuration

    def key(self, header: Mapping[str, Any]) -> SigningKey:
        """The key that a token with this header is signed by.

        Raises:
            NotAuthenticated: the provider has no such key.
            ProviderUnavailable: its keys are not known, or too old.
        """
        known = self._current()
        found = _chosen(known.keys, header)
        if found is None:
            found = _chosen((self._renewed(known) or known).keys, header)
        if found is None:
            raise NotAuthenticated(
                "this token is not valid: it is signed by no key of the identity provider"
            )
        return found

    def _current(self) -> _Known:
        """What is known, asked for again if it is old."""
        known, now = self._known, self._clock()
        if known is not None and now < known.at + self._settings.keys_seconds:
            return known
        if known is not None and now < self._usable_until(known):
            self._renew_beside()
            return known
        renewed = self._renewed(known)
        if renewed is None or self._clock() >= self._usable_until(renewed):
            raise ProviderUnavailable(self._failure or "the identity provider does not answer")
        return renewed

    def _usable_until(self, known: _Known) -> float:
        return known.at + self._settings.keys_seconds + self._settings.outage_seconds

    def _renewed(self, known: _Known | None) -> _Known | None:
        """What the provider says now; what is known if it is too soon to ask, or in vain."""
        if self._too_soon() and not self._asking.locked():
            return self._known
        # Who comes while it is asked waits for the answer, which may have the key that they look
        # for; but not for long: a provider that is slow must not occupy all threads.
        if self._asking.acquire(timeout=_PATIENCE_SECONDS):
            try:
                if self._known is known and not self._too_soon():
                    self._ask()
            finally:
                self._asking.release()
        return self._known

    def _renew_beside(self) -> None:
        """Asks the provider in another thread, unless that is going on or too soon: requests go on
        with what is known, and wait for nothing."""
        if self._too_soon() or not self._asking.acquire(blocking=False):
            return

        def ask() -> None:
            try:
                self._ask()
            finally:
                self._asking.release()

        threading.Thread(target=ask, name="identity provider", daemon=True).start()

    def _too_soon(self) -> bool:
        asked = self._asked_at
        return asked is not None and self._clock() < asked + self._settings.refetch_seconds

    def _ask(self) -> None:
        """Asks the provider; what went wrong is noted."""
        self._asked_at = self._clock()
        try:
            configuration = self._read(self._settings.issuer or "", self._outbound)
            keys = _keys(self._outbound.get(configuration.keys))
        except ProviderUnavailable as error:
            self._failure = str(error)
            return
        self._known = _Known(configuration, keys, self._clock())


def openid_configuration(issuer: str, outbound: Outbound) -> Configuration:
    """The configuration of an OpenID provider. Raises ProviderUnavailable."""
    found = outbound.get(issuer.rstrip("/") + "/.well-known/openid-configuration")
    if found.get("issuer") != issuer:
        raise ProviderUnavailable(
            f"the provider calls itself {str(found.get('issuer'))[:200]!r}, and oidc.issuer is "
            f"{issuer!r}; they have to be the same, to the last character"
        )

    def address(name: str) -> str | None:
        return None if found.get(name) is None else outbound.checked(found[name])

    methods = found.get("token_endpoint_auth_methods_supported", _USUAL)
    return Configuration(
        issuer,
        outbound.checked(found.get("jwks_uri")),
        address("authorization_endpoint"),
        address("token_endpoint"),
        address("end_session_endpoint"),
        found.get("authorization_response_iss_parameter_supported") is True,
        "client_secret_basic" not in (methods if isinstance(methods, list) else _USUAL),
    )


def _keys(document: Mapping[str, Any]) -> tuple[SigningKey, ...]:
    """The public keys for signatures in a set (RFC 7517 5); others are passed over."""
    listed = document.get("keys")
    found = []
    for one in listed[:_MOST_KEYS] if isinstance(listed, list) else ():
        # A shared secret is no public key, whatever publishes it.
        kind = one.get("kty") if isinstance(one, dict) else None
        if kind not in _PUBLIC or one.get("use", "sig") != "sig":
            continue
        parts = {name: one[name] for name in ("kty", *_PUBLIC[kind]) if name in one}
        try:
            key: Any = PyJWK(parts).key
        except (PyJWTError, ValueError, TypeError):
            continue
        if kind == "RSA" and key.key_size < _LEAST_RSA_BITS:
            continue
        found.append(SigningKey(one.get("kid"), one.get("crv", kind), one.get("alg"), key))
    if not found:
        raise ProviderUnavailable("the provider's set of keys has none that can be used")
    return tuple(found)


def _chosen(keys: tuple[SigningKey, ...], header: Mapping[str, Any]) -> SigningKey | None:
    """The key of a token: by its id, or the only one that fits if the token names none."""
    algorithm, named = header.get("alg"), header.get("kid")
    kind = "RSA" if str(algorithm)[:2] in ("RS", "PS") else _CURVES.get(str(algorithm))
    fit = [
        key
        for key in keys
        if key.kind == kind and key.algorithm in (None, algorithm) and named in (None, key.id)
    ]
    return fit[0] if len(fit) == 1 or (fit and named is not None) else None
