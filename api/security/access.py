"""Decides who a request comes from, and whether the service may answer it."""

import ipaddress
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from api.security.keys import Keys
from api.security.policy import PAGES, Scope
from api.security.sessions import Sessions
from engine.errors import NotAllowed, NotAuthenticated
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database, open_database

__all__ = ["COOKIE", "OPEN", "Access", "Caller", "Request", "is_loopback"]

COOKIE = "__Host-precedent"
"""Cookie of a session: of this host alone, and sent over TLS alone. Browsers count plain HTTP to
their own machine as safe, except Safari."""
_WAY_OUT = "make keys with `precedent keys create`, and send one"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from. key: public id of the API key; None = an open service's user.
    session: the secret of the session; None = the request came without one."""

    key: str | None
    tenant: str
    scopes: frozenset[Scope]
    session: str | None = field(default=None, repr=False)


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
    """Tells callers by their keys. As long as no key was ever made, the service is open: to
    requests of this machine's own browsers and programs, and to nobody else.

    Args:
        settings: of the archive, whose ledger's database has the keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._closed = False

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    def needs_key(self) -> bool:
        """Whether a key was ever made. Once it was, it stays so until the process ends.

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
            NotAuthenticated: there is no key, more than one, or one that is not valid.
            NotAllowed: the key lacks the scope, or an open service must not answer this request.
            LedgerError: the database cannot be asked.
        """
        if not self.needs_key():
            _check_open(request)
            found: Caller | None = OPEN
        else:
            found = self._by_key(request)
        if needed is None:
            return found
        if found is None:
            raise NotAuthenticated(
                "this asks for an API key; send one as `Authorization: Bearer …`"
            )
        if needed not in found.scopes:
            raise NotAllowed(
                f"this asks for the scope {needed.value!r}, which "
                + ("only a key gives; " + _WAY_OUT if found.key is None else "the key lacks")
            )
        return found

    def _by_key(self, request: Request) -> Caller | None:
        sent = request.all("authorization")
        if not sent:
            return self._by_session(request)
        scheme, _, written = sent[0].partition(" ")
        if len(sent) > 1 or scheme.lower() != "bearer":
            raise NotAuthenticated("send one key, as `Authorization: Bearer …`")
        keys = self._keys()
        if keys is None:
            raise NotAuthenticated("the keys of this service are not there any more")
        key = keys.authenticated(written.strip(" "))
        return Caller(key.id, key.tenant, key.scopes)

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
        if Scope.SEARCH not in key.scopes:
            Sessions(database).end(secret)
            raise NotAllowed("this key lacks the scope 'search', which the page needs")
        return secret

    def sign_out(self, session: str) -> None:
        """Ends the session with this secret."""
        database = self._opened()
        if database is not None:
            Sessions(database).end(session)

    def _by_session(self, request: Request) -> Caller | None:
        # What a session may change has to come with its token, which the pages check.
        unchecked = request.method not in ("GET", "HEAD") and request.path not in PAGES
        database = self._opened()
        if request.session is None or unchecked or database is None:
            return None
        key = Sessions(database).key_of(request.session)
        return None if key is None else Caller(key.id, key.tenant, key.scopes, request.session)

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

    def _opened(self) -> Database | None:
        """The database; None = there is none yet."""
        with self._lock:
            if self._database is None:
                ledger = DataDir(self._settings.data_dir).ledger
                if self._settings.ledger.url is None and not ledger.is_file():
                    return None
                self._database = open_database(self._settings, ledger)
            return self._database


def is_loopback(host: str) -> bool:
    """Whether this name or address, without port, is one of the machine itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
