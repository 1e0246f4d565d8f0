"""An EHR on loopback: FHIR server and authorization server of SMART App Launch, which keeps to what
was registered, lets one person in without asking, and misbehaves where a test wants it to."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

import jwt

from services.identity_provider import SigningKey

__all__ = ["CLIENT", "Ehr", "Page", "ehr"]

CLIENT = "precedent"


@dataclass(frozen=True)
class Page:
    """An answer. after: seconds to wait before it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0


@dataclass
class Ehr:
    """The EHR. Everything may be changed while it runs.

    iss: address of its FHIR server. studies: Study Instance UID by id of the ImagingStudy. context:
    of a launch, by its name. claims: of ID tokens, besides the usual ones; None removes one.
    configuration: what differs in it. key: by which it signs. sign: makes ID tokens of claims; None
    = as the key does. secret: of the client; None = a public one. public: key of the client, of
    whom it asks for an assertion; None = it does not. instead: answers in place of its own, by
    path. asked: paths, as they came. tokens: that it gave.
    """

    iss: str
    page: str
    key: SigningKey = field(default_factory=lambda: SigningKey("ehr"))
    sign: Callable[[dict[str, Any]], str] | None = None
    studies: dict[str, str] = field(default_factory=dict)
    context: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    secret: str | None = None
    public: Any = None
    instead: dict[str, Callable[[], Page]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return self.iss.rpartition("/")[0]

    def launch(self, name: str | None = None) -> str:
        """The address at our page that opens it from here."""
        query = {"iss": self.iss} | ({} if name is None else {"launch": name})
        return f"{self.page}/smart/launch?{urlencode(query)}"

    def answer(self, method: str, target: str, form: dict[str, str], sent: Any) -> Page:
        path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query))
        self.asked.append(target)
        if path in self.instead:
            return self.instead[path]()
        if path == "/fhir/.well-known/smart-configuration":
            return _json(200, self._described())
        if path == "/keys":
            return _json(200, {"keys": [self.key.jwk]})
        if path == "/auth":
            return self._authorized(query)
        if path == "/token" and method == "POST":
            return self._token(form, sent)
        if path.startswith("/fhir/ImagingStudy/"):
            return self._study(path.rpartition("/")[2], sent)
        return _json(404, {})

    def _described(self) -> dict[str, Any]:
        usual = {
            "issuer": self.origin,
            "jwks_uri": f"{self.origin}/keys",
            "authorization_endpoint": f"{self.origin}/auth",
            "token_endpoint": f"{self.origin}/token",
            "code_challenge_methods_supported": ["S256"],
            "capabilities": ["launch-ehr", "launch-standalone", "sso-openid-connect"],
        }
        return usual | self.configuration

    def _authorized(self, query: dict[str, str]) -> Page:
        right = {
            "response_type": "code",
            "client_id": CLIENT,
            "redirect_uri": f"{self.page}/smart/callback",
            "aud": self.iss,
            "code_challenge_method": "S256",
        }
        launched = "launch" in query["scope"].split()
        known = query.get("launch") in self.context if launched else "launch" not in query
        if any(query.get(name) != value for name, value in right.items()) or not known:
            return _json(400, {"error": "invalid_request"})
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        back = urlencode({"code": code, "state": query["state"]})
        return Page(302, headers={"Location": f"{query['redirect_uri']}?{back}"})

    def _token(self, form: dict[str, str], sent: Any) -> Page:
        asked = self._codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if not self._is_client(form, sent.get("authorization", "")):
            return _json(401, {"error": "invalid_client"})
        if asked is None or challenge != asked["code_challenge"]:
            return _json(400, {"error": "invalid_grant"})
        now = int(time.time())
        claims = {
            "iss": self.origin,
            "aud": CLIENT,
            "sub": "ann",
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            "fhirUser": "Practitioner/ann",
            "name": "Ann Weber",
            **self.claims,
        }
        given = {name: value for name, value in claims.items() if value is not None}
        token = secrets.token_urlsafe(24)
        self.tokens.append(token)
        answer = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": 300,
            "scope": asked["scope"],
            "id_token": (self.sign or self.key.signed)(given),
            "patient": "p-hidden",
            **self.context.get(asked.get("launch", ""), {}),
        }
        return _json(200, answer)

    def _is_client(self, form: dict[str, str], authorization: str) -> bool:
        if self.public is not None:
            claims = jwt.decode(
                form["client_assertion"],
                self.public,
                algorithms=["ES384", "RS384"],
                audience=f"{self.origin}/token",
                options={"require": ["exp", "jti", "iss", "sub"]},
            )
            head = jwt.get_unverified_header(form["client_assertion"])
            return claims["iss"] == claims["sub"] == CLIENT and head["kid"] == "ours"
        if self.secret is None:
            return form.get("client_id") == CLIENT and not authorization
        named = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        return unquote_plus(named) == f"{CLIENT}:{self.secret}"

    def _study(self, name: str, sent: Any) -> Page:
        if sent.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return _json(401, {"resourceType": "OperationOutcome"})
        if name not in self.studies:
            return _json(404, {"resourceType": "OperationOutcome"})
        identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{self.studies[name]}"}
        other = {"system": "https://ehr.example/accession", "value": "A-1"}
        found = {"resourceType": "ImagingStudy", "id": name, "identifier": [other, identifier]}
        return _json(200, {**found, "subject": {"display": "Hidden Somebody"}})


def _json(status: int, body: dict[str, Any]) -> Page:
    return Page(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


@contextmanager
def ehr(page: str, html: Callable[[], str] = str) -> Iterator[Ehr]:
    """An EHR that opens our page. html: of its own page, which is at ``/``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._send(Page(200, html().encode(), {"Content-Type": "text/html"}))
                return
            self._send(running.answer("GET", self.path, {}, self.headers))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = dict(parse_qsl(body))
            self._send(running.answer("POST", self.path, form, self.headers))

        def _send(self, page: Page) -> None:
            time.sleep(page.after)
            try:
                self.send_response(page.status)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(page.body)))
                self.end_headers()
                self.wfile.write(page.body)
            except OSError:
                # Whoever asked had enough.
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Our page is at 127.0.0.1: by another name this is another site.
    running = Ehr(f"http://localhost:{server.server_port}/fhir", page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
