"""Decides who a request comes from, and whether the service may answer it."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, overload
from urllib.parse import urlsplit

from api.security.embedding import Embed, EmbedTokens
from api.security.keys import REMEMBERED_SECONDS, ApiKey, Keys
from api.security.oidc.identity import Identity
from api.security.oidc.relying_party import RelyingParty
from api.security.oidc.sessions import OidcSessions
from api.security.oidc.tokens import looks_like_token
from api.security.policy import PAGES, SIGNS_IN, Scope
from api.security.sessions import Sessions
from api.security.smart.launches import Ehrs, Launched
from api.security.tenant_keys import TenantKeys
from engine.errors import NotAllowed, NotAuthenticated, SettingsError
from engine.loopback import is_loopback
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database, open_database

__all__ = ["COOKIE", "FRAMED", "OPEN", "Access", "Caller", "Request", "check_scope"]

COOKIE = "__Host-precedent"
"""Cookie of a session: of this host alone, and sent over TLS alone. Browsers count plain HTTP to
their own machine as safe, except Safari."""
FRAMED = "__Host-precedent-framed"
"""Cookie of a session in a frame of an EHR's page, which counts before the other one: it is sent in
frames of that site alone."""
_MOST_REMEMBERED = 1000
_SIGNS_IN = "the scopes " + ", ".join(repr(one.value) for one in sorted(SIGNS_IN))
_WAY_OUT = "make keys with `precedent keys create`, and send one"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from.

    key: public id of the API key; None = an open service's user, or one of the identity provider.
    session: the secret of the session; None = the request came without one. subject: the identity
    provider's id of the person or program, which never changes; None = it was not asked. name:
    of key, person or program, for people. acting: for whom the holder of a key says to ask.
    """

    key: str | None
    tenant: str
    scopes: frozenset[Scope]
    session: str | None = field(default=None, repr=False)
    name: str | None = None
    subject: str | None = None
    acting: str | None = None


OPEN = Caller(None, "default", frozenset({Scope.SEARCH, Scope.INDEX}))
"""The one person whom an open service answers. ``admin`` and ``audit`` always ask for a key."""


@dataclass(frozen=True, slots=True)
class Request:
    """What decides about access. headers: names in lower case, and values, as they were sent.
    peer: address that the connection comes from; None = unknown. version: of HTTP, as in "1.1".
    method, path: of the route. session: the value of the cookie; None = none was sent."""

    headers: Sequence[tuple[str, str]]
    peer: str | None
    version: str = "1.1"
    method: str = "GET"
    path: str = "/"
    session: str | None = field(default=None, repr=False)

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]


class Access:
    """Tells callers by their keys, or by an identity provider or an EHR. As long as there is none
    and no key was ever made, the service is open: to requests of this machine's own browsers and
    programs, and to nobody else.

    Args:
        settings: of the archive, whose ledger's database has the keys.
        clock: seconds from any start.

    Raises:
        SettingsError: what is needed to ask the identity provider or an EHR cannot be read.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lately: dict[bytes, tuple[float, ApiKey]] = {}
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._closed = settings.oidc.issuer is not None or bool(settings.smart)
        framed = [name for name, one in settings.smart.items() if one.framed]
        if framed and not settings.server.frame_ancestors:
            raise SettingsError(
                f"smart.{framed[0]}.framed is set, and server.frame_ancestors is empty, so that no "
                "site may show the page in a frame; name the origin of the EHR there"
            )
        self._ehrs = Ehrs(settings.smart)
        self._party = None if settings.oidc.issuer is None else RelyingParty(settings.oidc)

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None
        if self._party is not None:
            self._party.close()
        self._ehrs.close()

    def needs_key(self) -> bool:
        """Whether a key was ever made, or there is an identity provider or an EHR. Once it was, it
        stays so until the process ends.

        Raises:
            LedgerError: the database cannot be asked.
        """
        if not self._closed:
            keys = self._keys()
            self._closed = keys is not None and keys.exist()
        return self._closed

    def caller(self, request: Request, needed: Scope | None) -> Caller | None:
        """Who asks; None = somebody unknown, who may have what needs no scope.

        Args:
            needed: the scope of the route; None = it needs none.

        Raises:
            NotAuthenticated: there is no key or token, more than one, or one that is not valid.
            NotAllowed: it lacks the scope, or an open service must not answer this request.
            ProviderUnavailable: it is a token that nobody can check now.
            LedgerError: the database cannot be asked.
        """
        found = self.identified(request)
        check_scope(found, needed)
        return found

    def at_hand(self, request: Request) -> Caller | None:
        """Who asks, if their key was looked up a moment ago; None = :meth:`identified` has to tell.
        This asks no database, so that it does not need a thread."""
        sent = request.all("authorization")
        if len(sent) != 1:
            return None
        until, key = self._lately.get(_digest(sent[0]), (0.0, None))
        if key is None or self._clock() >= until or not key.holds(datetime.now(UTC)):
            return None
        return _holder_of(key)

    def identified(self, request: Request) -> Caller | None:
        """Who asks, whatever for; None = somebody unknown, who sent no key.

        Raises:
            NotAuthenticated: there is more than one key, or one that is not valid.
            NotAllowed: an open service must not answer this request.
            LedgerError: the database cannot be asked.
        """
        if not self.needs_key():
            _check_open(request)
            return OPEN
        return self._by_key(request)

    def _by_key(self, request: Request) -> Caller | None:
        sent = request.all("authorization")
        if not sent:
            return self._by_session(request)
        scheme, _, written = sent[0].partition(" ")
        if len(sent) > 1 or scheme.lower() != "bearer":
            raise NotAuthenticated("send one key, as `Authorization: Bearer …`")
        written = written.strip(" ")
        if self._party is not None and looks_like_token(written):
            return _known(self._party.by_token(written))
        keys = self._keys()
        if keys is None:
            raise NotAuthenticated("this key is not valid: this service has no keys")
        asked = self._clock()
        key = keys.authenticated(written)
        if len(self._lately) >= _MOST_REMEMBERED:
            self._lately.clear()
        self._lately[_digest(sent[0])] = (asked + REMEMBERED_SECONDS, key)
        return _holder_of(key)

    def sign_in(self, written: str) -> str:
        """The secret of a new session of this key.

        Raises:
            NotAuthenticated: the key is not valid.
            NotAllowed: it does not allow what the page is for.
        """
        database = self._opened()
        if database is None:
            raise NotAuthenticated("this service has no keys")
        secret, key = Sessions(database).begin(written)
        if not key.scopes & SIGNS_IN:
            Sessions(database).end(secret)
            raise NotAllowed(f"this key lacks {_SIGNS_IN}, one of which the pages need")
        return secret

    def sign_out(self, session: str) -> None:
        """Ends the session with this secret."""
        database = self._opened()
        if database is not None and OidcSessions.has(session):
            OidcSessions(database, self._believed).end(session)
        elif database is not None:
            Sessions(database).end(session)

    def of_session(self, session: str) -> Caller | None:
        """Whose session this is; None = there is none with this secret, or it is over."""
        database = self._opened()
        if database is None:
            return None
        if OidcSessions.has(session):
            identity = OidcSessions(database, self._believed).identity_of(session)
            return None if identity is None else _known(identity, session)
        key = Sessions(database).key_of(session)
        return None if key is None else Caller(key.id, key.tenant, key.scopes, session, key.name)

    @property
    def has_keys(self) -> bool:
        """Whether a key was ever made."""
        keys = self._keys()
        return keys is not None and keys.exist()

    @property
    def provider(self) -> RelyingParty | None:
        """The identity provider's side of the service; None = there is no such provider."""
        return self._party

    def sign_in_by_provider(self, cookie: str | None, answer: dict[str, str]) -> str:
        """The secret of a new session of whom the identity provider has signed in.

        Args:
            cookie: that of the sign-in. answer: what the browser brings from the provider.

        Raises:
            NotAuthenticated: it is no answer to this browser's question, or an old one.
            NotAllowed: whoever it is may not use the page.
            ProviderUnavailable: the provider does not tell who it is.
        """
        if self._party is None or cookie is None:
            raise NotAuthenticated("this sign-in was not begun in this browser; begin it again")
        identity = self._party.finish(cookie, answer)
        if not identity.scopes & SIGNS_IN:
            raise NotAllowed(
                f"this account lacks {_SIGNS_IN}, one of which the pages need",
                subject=identity.id,
                name=identity.name,
            )
        database = self._opened(create=True)
        return OidcSessions(database, self._believed).begin(identity, cookie, self._party.issuer)

    @property
    def ehrs(self) -> Ehrs:
        """The EHRs that may launch the page; perhaps none."""
        return self._ehrs

    def launched(self, secret: str, launch: Launched) -> str:
        """The secret of a new session of whom an EHR has brought.

        Args:
            secret: of the launch, which begins one session alone.

        Raises:
            NotAuthenticated: it has begun one before.
        """
        database = self._opened(create=True)
        return OidcSessions(database, self._believed).begin(launch.identity, secret, launch.issuer)

    @property
    def _believed(self) -> frozenset[str]:
        """By whom people may have been told apart whose sessions hold."""
        if self._party is None:
            return self._ehrs.issuers
        return self._ehrs.issuers | {self._party.issuer}

    def embed_tokens(self) -> EmbedTokens:
        """Tokens for the pages of other sites.

        Raises:
            SettingsError: the key by which they are signed cannot be read or made.
        """
        return EmbedTokens(DataDir(self._settings.data_dir).embedding_key())

    def embedded(self, embed: Embed) -> Caller:
        """Who asks for the page of a token: its key's holder, for the person whom they named. No
        scope comes with it.

        Raises:
            NotAuthenticated: the key does not hold any more, or is another than it was.
            LedgerError: the database cannot be asked.
        """
        keys = self._keys()
        key = None if keys is None else keys.holding(embed.key)
        if key is None or Scope.SEARCH not in key.scopes or key.tenant != embed.tenant:
            raise NotAuthenticated("this view is not allowed any more; load the page around it")
        return Caller(key.id, key.tenant, frozenset(), name=key.name, acting=embed.acting)

    def _by_session(self, request: Request) -> Caller | None:
        # What a session may change has to come with its token, which the pages check.
        unchecked = request.method not in ("GET", "HEAD") and request.path not in PAGES
        return None if request.session is None or unchecked else self.of_session(request.session)

    def keys_of(self, tenant: str) -> TenantKeys:
        """The keys of a tenant, for its administrators.

        Raises:
            LedgerError: the database cannot be opened.
        """
        return TenantKeys(Keys(self._opened(create=True)), tenant)

    def database(self) -> Database | None:
        """The ledger's database, open as long as this is; None = there is none yet.

        Raises:
            LedgerError: it cannot be opened.
        """
        return self._opened()

    def _keys(self) -> Keys | None:
        """The keys; None = there is no database yet, and so no key."""
        database = self._opened()
        return None if database is None else Keys(database)

    @overload
    def _opened(self, *, create: Literal[True]) -> Database: ...

    @overload
    def _opened(self) -> Database | None: ...

    def _opened(self, *, create: bool = False) -> Database | None:
        """The database; None = there is none yet."""
        with self._lock:
            if self._database is None:
                data = DataDir(self._settings.data_dir)
                ledger = data.ledger
                if self._settings.ledger.url is None and not ledger.is_file():
                    if not create:
                        return None
                    data.make()
                self._database = open_database(self._settings, ledger)
            return self._database


def check_scope(caller: Caller | None, needed: Scope | None) -> None:
    """Checks that the caller may have what needs this scope; None = what needs none.

    Raises:
        NotAuthenticated: it is not known who asks. NotAllowed: the scope is lacking.
    """
    if needed is None:
        return
    if caller is None:
        raise NotAuthenticated("this asks for an API key; send one as `Authorization: Bearer …`")
    if needed not in caller.scopes:
        raise NotAllowed(
            f"this asks for the scope {needed.value!r}, which "
            + ("only a key gives; " + _WAY_OUT if caller is OPEN else "this credential lacks")
        )


def _holder_of(key: ApiKey) -> Caller:
    """The caller that this key is of."""
    return Caller(key.id, key.tenant, key.scopes, name=key.name)


def _digest(sent: str) -> bytes:
    """What is remembered in place of a secret."""
    return hashlib.sha256(sent.encode()).digest()


def _known(identity: Identity, session: str | None = None) -> Caller:
    """The caller that an identity provider knows."""
    return Caller(
        None,
        identity.tenant,
        identity.scopes,
        session,
        subject=identity.id,
        name=identity.name,
    )


def _check_open(request: Request) -> None:
    """Checks that the request was sent on this machine, to this service, and not handed on.

    Raises:
        NotAllowed: it was not, or may not have been.
    """
    for name, _ in request.headers:
        if name in ("forwarded", "via", "x-real-ip") or name.startswith("x-forwarded-"):
            raise NotAllowed(
                f"a service without keys answers this machine alone, and the header {name} says "
                f"that a proxy handed this request on; {_WAY_OUT}"
            )
    hosts = request.all("host")
    # What many proxies speak, and name as host where they hand a request on, unless told otherwise.
    proxied = request.version == "1.0"
    if proxied or request.peer is None or not is_loopback(request.peer) or len(hosts) != 1:
        raise NotAllowed(f"a service without keys answers this machine alone; {_WAY_OUT}")
    if not is_loopback(_host_of("//" + hosts[0]) or ""):
        raise NotAllowed(
            "a service without keys answers under a loopback name alone, such as localhost; "
            + _WAY_OUT
        )
    for origin in request.all("origin"):
        if origin.lower() != f"http://{hosts[0].lower()}":
            raise NotAllowed(
                f"a service without keys answers no pages of other origins; {_WAY_OUT}"
            )


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
