"""Launches of the page by an EHR: authorization code flow with PKCE, for what is open there.

The browser has one short-lived secret for each launch, from which state, nonce and code verifier
are derived as for a sign-in: an answer fits the launch and the browser in which it was begun.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from api.security.oidc.code_flow import MOST_SECONDS, challenge_of, derived
from api.security.oidc.identity import Identity
from api.security.oidc.outbound import Outbound
from api.security.oidc.provider import Configuration, Provider
from api.security.oidc.tokens import id_token_claims
from api.security.smart.client import Client
from api.security.smart.configuration import smart_configuration
from api.security.smart.context import study_of
from api.security.smart.identity import user_of
from engine.errors import (
    ImageNotFound,
    NotAllowed,
    NotAuthenticated,
    PrecedentError,
    ProviderUnavailable,
    SettingsError,
)
from engine.smart_settings import SmartSettings

__all__ = ["MOST_AT_ONCE", "Begun", "Ehr", "Ehrs", "Launched", "launch_id"]

MOST_AT_ONCE = 4
"""Launches of one browser that may be going on side by side."""
_WRITTEN = re.compile(r"(\d{1,12})\.([a-z0-9_-]{1,32})\.([A-Za-z0-9_-]{43})", re.ASCII)
_LAUNCH = re.compile(r"[!-~]{1,2000}", re.ASCII)
_STATE = re.compile(r"([0-9a-z]{16})\.[A-Za-z0-9_-]{43}", re.ASCII)
_CODES = re.compile(r"[a-z_]{1,60}", re.ASCII)
_CALLBACK = "/smart/callback"
_AGAIN = "open the page from the EHR again"


@dataclass(frozen=True, slots=True)
class Begun:
    """A launch that has begun. url: where the browser goes. id: which launch it is. secret: what
    the browser keeps meanwhile. framed: see the settings."""

    url: str
    id: str
    secret: str = field(repr=False)
    framed: bool = False


@dataclass(frozen=True, slots=True)
class Launched:
    """A launch that has come to its end. study: Study Instance UID of what is open in the EHR;
    None = nothing is. unknown: why nobody can tell which study it is; None = it is known, or there
    is none. issuer: of the EHR."""

    identity: Identity
    issuer: str
    study: str | None
    unknown: PrecedentError | None
    framed: bool


@dataclass(frozen=True, slots=True)
class _Expected:
    """By what the ID tokens of an EHR are judged."""

    issuer: str
    client_id: str
    algorithms: tuple[str, ...]
    skew_seconds: int
    called: str


def launch_id(state: str) -> str | None:
    """Which launch an answer says to be of; None = none."""
    found = _STATE.fullmatch(state)
    return None if found is None else found[1]


class Ehrs:
    """The EHRs of the settings, which may launch the page. Close it.

    Args:
        settings: by name.
        clock: seconds since 1970.

    Raises:
        SettingsError: a secret, a key or certificates cannot be used.
    """

    def __init__(
        self, settings: Mapping[str, SmartSettings], clock: Callable[[], float] = time.time
    ) -> None:
        self._ehrs = {name: Ehr(name, one, clock) for name, one in settings.items()}
        known: dict[str, str] = {}
        for name, one in settings.items():
            if one.issuer in known:
                raise SettingsError(
                    f"smart.{name}.issuer is that of smart.{known[one.issuer]} too; a launch could "
                    "be of either, so keep one of them"
                )
            known[one.issuer] = name

    def close(self) -> None:
        for one in self._ehrs.values():
            one.close()

    @property
    def issuers(self) -> frozenset[str]:
        """What sessions of theirs have as issuer."""
        return frozenset(one.session_issuer for one in self._ehrs.values())

    @property
    def standalone(self) -> tuple[tuple[str, str], ...]:
        """Title and FHIR server of those by which somebody may begin on our page."""
        return tuple(
            (one.settings.title or name, one.settings.issuer)
            for name, one in self._ehrs.items()
            if one.settings.standalone_scope is not None
        )

    def begin(self, issuer: str, launch: str | None) -> Begun:
        """Begins a launch.

        Args:
            issuer: what the browser brings as ``iss``. launch: and as ``launch``; None = it was
                begun on our page.

        Raises:
            NotAllowed: no EHR in the settings has this address, or it may not launch so.
            NotAuthenticated: the launch is malformed.
            ProviderUnavailable: the EHR does not say where to go.
        """
        for one in self._ehrs.values():
            if one.settings.issuer == issuer:
                return one.begin(launch)
        raise NotAllowed(
            "this EHR may not open the page: the settings (smart) name others, each with its "
            "exact address"
        )

    def finish(self, secret: str | None, answer: Mapping[str, str]) -> Launched:
        """Who has come, and for which study.

        Args:
            secret: that the browser has kept of this launch. answer: what it brings, by name.

        Raises:
            NotAuthenticated: the answer is not to this browser's launch, or says no.
            NotAllowed: whoever it is may not use the page.
            ProviderUnavailable: the EHR does not tell who it is.
        """
        begun = _WRITTEN.fullmatch(secret or "")
        ehr = None if begun is None else self._ehrs.get(begun[2])
        if secret is None or begun is None or ehr is None:
            raise NotAuthenticated(f"this launch was not begun in this browser; {_AGAIN}")
        return ehr.finish(secret, int(begun[1]), answer)


class Ehr:
    """An EHR. settings: those by which it is known. Other arguments as of :class:`Ehrs`."""

    def __init__(
        self, name: str, settings: SmartSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self._name = name
        self._clock = clock
        self._client = Client(name, settings, clock)
        self._outbound = Outbound(settings)
        self._provider = Provider(settings, self._outbound, read=smart_configuration)
        self._callback = settings.page_url.rstrip("/") + _CALLBACK

    def close(self) -> None:
        self._outbound.close()

    @property
    def session_issuer(self) -> str:
        """What its sessions have as issuer: of an identity provider they are none."""
        return f"smart {self.settings.issuer}"

    def begin(self, launch: str | None) -> Begun:
        """Begins a launch; see :meth:`Ehrs.begin`."""
        settings = self.settings
        scope = settings.standalone_scope if launch is None else settings.request_scope
        if scope is None:
            raise NotAllowed(
                "this EHR opens the page itself: this address lacks the launch that it gives "
                "(smart.NAME.standalone_scope lets people begin here)"
            )
        if launch is not None and _LAUNCH.fullmatch(launch) is None:
            raise NotAuthenticated(f"this launch is malformed; {_AGAIN}")
        place = self._provider.configuration().authorization or ""
        secret = f"{int(self._clock())}.{self._name}.{secrets.token_urlsafe(32)}"
        query = {
            "response_type": "code",
            "client_id": settings.client_id,
            "redirect_uri": self._callback,
            "scope": scope,
            "state": _state(secret),
            "nonce": derived(secret, "nonce"),
            "aud": settings.issuer,
            "code_challenge": challenge_of(derived(secret, "verifier")),
            "code_challenge_method": "S256",
        }
        if launch is not None:
            query["launch"] = launch
        url = place + ("&" if urlsplit(place).query else "?") + urlencode(query)
        return Begun(url, _id(secret), secret, settings.framed)

    def finish(self, secret: str, begun: int, answer: Mapping[str, str]) -> Launched:
        """Who has come; see :meth:`Ehrs.finish`. begun: when, seconds since 1970."""
        settings = self.settings
        if not hmac.compare_digest(_state(secret).encode(), answer.get("state", "").encode()):
            raise NotAuthenticated(f"this launch was not begun in this browser; {_AGAIN}")
        if not -settings.skew_seconds <= self._clock() - begun <= MOST_SECONDS:
            raise NotAuthenticated(f"this launch has taken too long; {_AGAIN}")
        configuration = self._provider.configuration()
        usual = None if configuration.names_itself else configuration.issuer
        if answer.get("iss", usual) != configuration.issuer:
            raise NotAuthenticated(f"this answer is of another EHR; {_AGAIN}")
        if "error" in answer or not answer.get("code"):
            code = answer.get("error", "")
            said = f" ({code})" if _CODES.fullmatch(code) else ""
            raise NotAuthenticated(f"the EHR has let nobody in{said}; {_AGAIN}")
        found = self._token(configuration, answer["code"], derived(secret, "verifier"))
        expected = _Expected(
            configuration.issuer,
            settings.client_id,
            settings.algorithms,
            settings.skew_seconds,
            settings.called,
        )
        nonce = derived(secret, "nonce")
        claims = id_token_claims(str(found["id_token"]), expected, self._provider, nonce)
        identity = user_of(claims, settings)
        study: str | None = None
        unknown: PrecedentError | None = None
        try:
            study = study_of(found, settings.issuer, self._outbound)
        except (ImageNotFound, ProviderUnavailable) as error:
            unknown = error
        return Launched(identity, self.session_issuer, study, unknown, settings.framed)

    def _token(self, configuration: Configuration, code: str, verifier: str) -> dict[str, Any]:
        """The answer for a code, which has an ID token (RFC 6749 4.1.3)."""
        place = configuration.token or ""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": verifier,
        }
        more, login = self._client.credentials(configuration)
        status, found = self._outbound.post(place, form | more, login)
        if status == 200 and isinstance(found.get("id_token"), str):
            return found
        said = str(found.get("error", status))
        said = said if _CODES.fullmatch(said) else str(status)
        if said == "invalid_grant":
            raise NotAuthenticated(f"this launch is over; {_AGAIN}")
        raise ProviderUnavailable(
            f"{place} gave no ID token ({said}); compare smart.{self._name} with the registration "
            "at the EHR: client_id, secret or key, redirect address, scopes openid and fhirUser"
        )


def _id(secret: str) -> str:
    return derived(secret, "id").replace("_", "0").replace("-", "1")[:16].lower()


def _state(secret: str) -> str:
    """What the browser brings back: which launch it is of, and that it is."""
    return f"{_id(secret)}.{derived(secret, 'state')}"
