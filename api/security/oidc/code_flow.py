"""Signs somebody in by the authorization code flow with PKCE (RFC 7636, RFC 9700 2.1).

The browser has one short-lived secret in a cookie. State, nonce and code verifier are derived from
it, so that an answer fits the browser that asked and no other, and nothing is stored for somebody
who is not known yet.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

from api.security.oidc.outbound import Outbound
from api.security.oidc.provider import Configuration, Provider
from api.security.oidc.tokens import id_token_claims
from engine.errors import NotAuthenticated, ProviderUnavailable
from engine.oidc_settings import OidcSettings

__all__ = ["MOST_SECONDS", "CodeFlow", "Started", "challenge_of", "derived"]

MOST_SECONDS = 600
"""From the start of a sign-in to its end."""
_WRITTEN = re.compile(r"(\d{1,12})\.[A-Za-z0-9_-]{43}", re.ASCII)
_CODES = re.compile(r"[a-z_]{1,60}", re.ASCII)
_CALLBACK = "/login/oidc/callback"


@dataclass(frozen=True, slots=True)
class Started:
    """A sign-in that has begun. url: where the browser goes. cookie: what it keeps meanwhile."""

    url: str
    cookie: str = field(repr=False)


class CodeFlow:
    """The page as a client of the provider.

    Args:
        settings: with a client.
        secret: the client's; None = a public client.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: OidcSettings,
        provider: Provider,
        outbound: Outbound,
        secret: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._outbound = outbound
        self._secret = secret
        self._clock = clock
        self._callback = (settings.page_url or "").rstrip("/") + _CALLBACK

    def start(self) -> Started:
        """Begins a sign-in. Raises ProviderUnavailable."""
        place = self._provider.configuration().authorization
        if place is None:
            raise ProviderUnavailable("the provider's configuration has no authorization_endpoint")
        cookie = f"{int(self._clock())}.{secrets.token_urlsafe(32)}"
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id or "",
            "redirect_uri": self._callback,
            "scope": self._settings.request_scope,
            "state": derived(cookie, "state"),
            "nonce": derived(cookie, "nonce"),
            "code_challenge": challenge_of(derived(cookie, "verifier")),
            "code_challenge_method": "S256",
        }
        return Started(place + ("&" if urlsplit(place).query else "?") + urlencode(query), cookie)

    def finish(self, cookie: str | None, answer: Mapping[str, str]) -> dict[str, Any]:
        """The claims of whoever has signed in.

        Args:
            cookie: of the browser. answer: what the provider has it bring, by name.

        Raises:
            NotAuthenticated: the answer is not to this browser's question, or says no.
            ProviderUnavailable: the provider does not tell who it is.
        """
        begun = _WRITTEN.fullmatch(cookie or "")
        if cookie is None or begun is None:
            raise NotAuthenticated("this sign-in was not begun in this browser; begin it again")
        age = self._clock() - int(begun[1])
        if not -self._settings.skew_seconds <= age <= MOST_SECONDS:
            raise NotAuthenticated("this sign-in has taken too long; begin it again")
        wanted = derived(cookie, "state")
        if not hmac.compare_digest(wanted.encode(), answer.get("state", "").encode()):
            raise NotAuthenticated("this sign-in was not begun in this browser; begin it again")
        configuration = self._provider.configuration()
        if answer.get("iss", None if configuration.names_itself else self._settings.issuer) != (
            self._settings.issuer
        ):
            raise NotAuthenticated("this answer is of another identity provider; begin again")
        if "error" in answer or not answer.get("code"):
            code = answer.get("error", "")
            said = f" ({code})" if _CODES.fullmatch(code) else ""
            raise NotAuthenticated(f"the identity provider has signed nobody in{said}")
        token = self._token(configuration, answer["code"], derived(cookie, "verifier"))
        nonce = derived(cookie, "nonce")
        return id_token_claims(token, self._settings, self._provider, nonce)

    def _token(self, configuration: Configuration, code: str, verifier: str) -> str:
        """The ID token for a code (RFC 6749 4.1.3)."""
        place = configuration.token
        if place is None:
            raise ProviderUnavailable("the provider's configuration has no token_endpoint")
        client = self._settings.client_id or ""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": verifier,
        }
        login = None
        if self._secret is None:
            form["client_id"] = client
        elif configuration.secret_in_form:
            form |= {"client_id": client, "client_secret": self._secret}
        else:
            login = (quote_plus(client), quote_plus(self._secret))
        status, found = self._outbound.post(place, form, login)
        token = found.get("id_token")
        if status == 200 and isinstance(token, str):
            return token
        said = str(found.get("error", status))
        said = said if _CODES.fullmatch(said) else str(status)
        if said == "invalid_grant":
            raise NotAuthenticated("this sign-in is over; begin it again")
        raise ProviderUnavailable(
            f"{place} gave no ID token ({said}); compare oidc.client_id, the client's secret and "
            "oidc.page_url with the provider's registration"
        )


def derived(cookie: str, what: str) -> str:
    """One of the values of a sign-in: 256 bits, which tell nothing of the others."""
    made = hmac.new(cookie.encode(), what.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


def challenge_of(verifier: str) -> str:
    """The code challenge of a verifier, by S256 (RFC 7636 4.2)."""
    made = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(made).rstrip(b"=").decode()
