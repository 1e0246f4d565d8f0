"""Who may ask what: every route with every kind of credential, keys, and the open service."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import jwt
import pytest
from commands import run
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from oidc_site import PROGRAMS, bearer, by_public_key, settings_of
from services.identity_provider import AUDIENCE, OTHER_AUDIENCE, IdentityProvider, SigningKey
from services.loopback import LoopbackClient
from sqlalchemy import text
from starlette.routing import Mount, Route

from api.cli.serve import serve_until_stopped
from api.security.access import Access, Request
from api.security.keys import REMEMBERED_SECONDS, Keys
from api.security.policy import OPENED, PAGES, POLICY, Scope
from api.service import create_service
from engine.errors import AccessError, NotAuthenticated, SettingsError, StoreLocked
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database
from indexer.sources.pushed.inbox import Inbox

NOWHERE = "00000000-0000-4000-8000-000000000000"


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of everything that the application serves."""
    found: set[tuple[str, str]] = set()
    for route in app.routes:
        inner = getattr(getattr(route, "original_router", None), "routes", [route])
        for one in inner:
            if isinstance(one, Mount):
                found.add(("GET", one.path + "/{path:path}"))
            else:
                assert isinstance(one, APIRoute | Route), f"a route of an unknown kind: {one!r}"
                found |= {(method, one.path) for method in (one.methods or ()) if method != "HEAD"}
    return found


def test_every_route_says_what_it_asks_for(archive) -> None:
    assert routes_of(create_service(archive=archive)) == set(POLICY)


def test_a_route_that_says_nothing_is_not_served(archive) -> None:
    app = create_service(archive=archive)

    @app.get("/v1/new")
    def new() -> str:
        return "of anybody's images"

    with LoopbackClient(app) as client:
        assert client.get("/v1/new").status_code == 404
        assert client.get("/v1/images/../new").status_code == 404


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Site:
    """A service with keys. sent: by kind of credential, the headers."""

    client: TestClient
    sent: dict[str, dict[str, str]]
    settings: Settings


@pytest.fixture(scope="module")
def site(indexed, store_root: Path) -> Iterator[Site]:
    settings = indexed.copy(store_root / "data")
    clock = Clock()
    with Database(f"sqlite:///{store_root / 'data' / 'ledger.sqlite'}") as database:
        keys = Keys(database, clock)
        every = list(Scope)
        _, right = keys.create("right", every)
        _, other = keys.create("other", every, tenant="elsewhere")
        wrong = {one: keys.create("w", [s for s in every if s != one])[1] for one in every}
        _, expired = keys.create("late", every, expires_at=clock.now + timedelta(days=1))
        gone, revoked = keys.create("gone", every)
        keys.revoke(gone.id)
        with database.begin() as connection:
            past = (clock.now - timedelta(seconds=1)).isoformat()
            connection.execute(
                text("UPDATE keys SET expires_at = :t WHERE name = 'late'"), {"t": past}
            )
    bad = {
        "malformed": {"Authorization": "Bearer x"},
        "no-scheme": {"Authorization": right},
        "basic": {"Authorization": "Basic " + right},
        "empty": {"Authorization": ""},
        "other-secret": bearer(f"{right[:20]}_{other[21:]}"),
        "longer": bearer(right + "A"),
        "not-ascii": {"Authorization": b"Bearer \xff\xfe"},
        "expired": bearer(expired),
        "revoked": bearer(revoked),
    }
    sent = {"right": bearer(right), "other": bearer(other), **bad}
    sent |= {f"without {one}": bearer(written) for one, written in wrong.items()}
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield Site(client, sent, settings)


BAD = [
    *("malformed", "no-scheme", "basic", "empty", "other-secret", "longer", "not-ascii"),
    *("expired", "revoked"),
]


def asked(route: tuple[str, str], image: str = NOWHERE, study: str = "1.2.4.0") -> tuple[str, str]:
    method, path = route
    if path.startswith("/v1/jobs/"):
        image = "1"
    parts = {"{id}": image, "{uid}": study, "{study}": study, "{path:path}": "style.css"}
    for name, value in parts.items():
        path = path.replace(name, value)
    return method, path


@pytest.mark.parametrize("route", POLICY, ids=" ".join)
def test_every_route_with_every_credential(site: Site, route: tuple[str, str]) -> None:
    method, path = asked(route)
    needed = POLICY[route]
    told = 'Bearer realm="precedent", error="invalid_token"'
    for kind in BAD:
        refused = site.client.request(method, path, headers=site.sent[kind])
        assert refused.status_code == 401, kind
        assert refused.json()["code"] == "not-authenticated"
        assert refused.headers["www-authenticate"] == told
    none = site.client.request(method, path)
    right = site.client.request(method, path, headers=site.sent["right"])
    if needed is None:
        # Signing in without a key in the form fails, whatever the header says; and so it does by
        # an identity provider, of which this service has none.
        expected = {
            ("POST", "/login"): 401,
            ("POST", "/logout"): 303,
            ("GET", "/login/oidc"): 403,
            ("GET", "/login/oidc/callback"): 401,
            # Of no EHR, and no launch.
            ("GET", "/smart/launch"): 401,
            ("GET", "/smart/callback"): 401,
            ("GET", "/embed"): 400,
            ("POST", "/embed"): 401,
        }.get(route, 200)
        # Any key may ask whose it is; nobody without one.
        assert none.status_code == (401 if path == "/v1/whoami" else expected)
        assert right.status_code == (303 if route == ("GET", "/login") else expected)
        return
    wrong = site.client.request(method, path, headers=site.sent[f"without {needed}"])
    assert (wrong.status_code, wrong.json()["code"]) == (403, "not-allowed")
    assert right.status_code not in (401, 403, 500)
    if route[1] in (*OPENED, *PAGES):
        root, _, back = none.headers["location"].partition("login")
        assert (none.status_code, root) == (303, "../" * (path.count("/") - 1))
        leads_back = method == "GET" and path != "/"
        assert unquote(back) == (f"?to={path[1:]}" if leads_back else "")
        return
    assert (none.status_code, none.json()["code"]) == (401, "not-authenticated")
    assert none.headers["www-authenticate"] == 'Bearer realm="precedent"'
    assert none.headers["content-type"] == "application/problem+json"


@pytest.fixture(scope="module")
def provided(indexed, store_root: Path) -> Iterator[Site]:
    """A service that takes tokens of an identity provider. sent: as of :func:`site`."""
    with IdentityProvider(PROGRAMS) as provider:
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": provider.issuer, "aud": AUDIENCE, "sub": "right", "iat": now - 60}
        claims |= {"exp": now + 600, **PROGRAMS["right"]}
        sent = {
            "right": provider.token("right"),
            "other": provider.token("other"),
            **{f"without {one}": provider.token(f"without-{one}") for one in Scope},
            "no scope": provider.token("nothing"),
            "no tenant": provider.token("nowhere"),
            "expired": provider.key.signed({**claims, "exp": now - 1}),
            "forged none": jwt.encode(claims, None, "none"),
            "forged HS256": by_public_key(provider.key, claims),
            "forged key": SigningKey(provider.key.id).signed(claims),
            "wrong audience": provider.token("right", OTHER_AUDIENCE),
            "wrong issuer": provider.key.signed({**claims, "iss": "https://login.example"}),
        }
        settings = indexed.copy(store_root / "provided")
        settings = settings.model_copy(update={"oidc": settings_of(provider)})
        with LoopbackClient(create_service(settings), follow_redirects=False) as client:
            yield Site(client, {kind: bearer(one) for kind, one in sent.items()}, settings)


BAD_TOKENS = (
    *("expired", "forged none", "forged HS256", "forged key", "wrong audience", "wrong issuer"),
)


@pytest.mark.parametrize("route", POLICY, ids=" ".join)
def test_every_route_with_every_token(provided: Site, route: tuple[str, str]) -> None:
    method, path = asked(route)
    needed = POLICY[route]
    for kind in BAD_TOKENS:
        refused = provided.client.request(method, path, headers=provided.sent[kind])
        assert (refused.status_code, refused.json()["code"]) == (401, "not-authenticated"), kind
        assert refused.headers["www-authenticate"].endswith('error="invalid_token"')
    for kind in ("no scope", "no tenant"):
        refused = provided.client.request(method, path, headers=provided.sent[kind])
        assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed"), kind
    none = provided.client.request(method, path)
    right = provided.client.request(method, path, headers=provided.sent["right"])
    if needed is None:
        public = {200, 303}
        # What asks for more than a token: the form of a key, a sign-in, a token for a frame.
        asks = path.startswith(("/login", "/smart")) or path == "/embed"
        public |= {401, 403} if asks else set()
        # The address of a frame has to say in whose page it is.
        public |= {400} if route == ("GET", "/embed") else set()
        if path == "/v1/whoami":
            assert (none.status_code, right.json()["id"]) == (401, "right")
            return
        assert {none.status_code, right.status_code} <= public
        return
    wrong = provided.client.request(method, path, headers=provided.sent[f"without {needed}"])
    assert (wrong.status_code, wrong.json()["code"]) == (403, "not-allowed")
    # Tokens for embedded pages end with the API key that asked for them, so only a key may.
    allowed = {403} if path == "/v1/embed-tokens" else set()
    assert right.status_code not in {401, 403, 500} - allowed
    assert none.status_code == (303 if route[1] in (*OPENED, *PAGES) else 401)


def test_a_token_of_another_tenant_sees_none_of_the_images(provided: Site) -> None:
    mine, theirs = provided.sent["right"], provided.sent["other"]
    data = {"study": "1.2.4.0"}
    hits = provided.client.post("/v1/recommend", headers=mine, data=data).json()["hits"]
    for path in (f"/v1/images/{hits[0]['id']}", f"/v1/images/{hits[0]['id']}/thumbnail"):
        assert provided.client.get(path, headers=mine).status_code == 200
        sent = {**theirs, "X-Request-Id": "one"}
        hidden = provided.client.get(path, headers=sent)
        never = provided.client.get(path.replace(hits[0]["id"], NOWHERE), headers=sent)
        assert hidden.status_code == never.status_code == 404
        assert hidden.text.replace(hits[0]["id"], NOWHERE) == never.text
    assert provided.client.get("/v1/facets", headers=theirs).json()["count"] == 0


def test_two_keys_at_once_are_none(site: Site) -> None:
    twice = [("Authorization", site.sent["right"]["Authorization"])] * 2
    assert site.client.get("/v1/facets", headers=twice).status_code == 401


def test_another_tenant_sees_none_of_the_images(site: Site) -> None:
    mine, theirs = ({**site.sent[one], "X-Request-Id": "1"} for one in ("right", "other"))
    hits = site.client.post("/v1/recommend", headers=mine, data={"study": "1.2.4.0"}).json()["hits"]
    image = hits[0]["id"]
    for kind in ("", "/thumbnail", "/preview"):
        address = f"/v1/images/{image}{kind}"
        assert site.client.get(address, headers=mine).status_code == 200
        hidden = site.client.get(address, headers=theirs)
        never = site.client.get(address.replace(image, NOWHERE), headers=theirs)
        assert hidden.status_code == never.status_code == 404
        assert hidden.text.replace(image, NOWHERE) == never.text
    assert site.client.get("/healthz", headers=theirs).json()["points"] == 0
    assert site.client.get("/healthz", headers=mine).json()["points"] == 35
    assert site.client.get("/healthz").json() == {"status": "ok", "points": None, "model": None}
    assert site.client.get("/v1/facets", headers=theirs).json()["count"] == 0
    for name, mine_is, is_none in (("images", image, NOWHERE), ("studies", "1.2.4.0", "9.9")):
        assert site.client.get(f"/{name}/{mine_is}", headers=mine).status_code == 200
        hidden = site.client.get(f"/{name}/{mine_is}", headers=theirs)
        never = site.client.get(f"/{name}/{is_none}", headers=theirs)
        assert hidden.status_code == never.status_code == 404
        assert hidden.text.replace(mine_is, is_none) == never.text
    page = site.client.get("/", headers=theirs)
    assert "The index is empty" in page.text
    for data in ({"id": image}, {"id": NOWHERE}):
        assert site.client.post("/v1/search", headers=theirs, data=data).status_code == 404
    for name, uid in (("sop", "1.2.3.0"), ("series", "1.2.5.0"), ("study", "1.2.4.0")):
        assert site.client.post("/v1/search", headers=mine, json={name: uid}).status_code == 200
        hidden = site.client.post("/v1/search", headers=theirs, json={name: uid})
        never = site.client.post("/v1/search", headers=theirs, json={name: "9.9"})
        assert hidden.status_code == never.status_code == 404
        assert hidden.text.replace(uid, "9.9") == never.text
    etag = site.client.get(f"/v1/images/{image}/preview", headers=mine).headers["etag"]
    known = {**theirs, "If-None-Match": etag}
    assert site.client.get(f"/v1/images/{image}/preview", headers=known).status_code == 404
    assert site.client.get("/v1/stats", headers=theirs).json()["points"] == 0
    assert site.client.get("/v1/duplicates", headers=theirs).json()["compared"] == 0


def test_a_key_is_nowhere_but_with_its_holder(site: Site) -> None:
    written = site.sent["right"]["Authorization"].removeprefix("Bearer ")
    for path in site.settings.data_dir.rglob("*"):
        if path.is_file():
            assert written[21:].encode() not in path.read_bytes(), path


@pytest.fixture
def keys(ledger_url: str) -> Iterator[Keys]:
    with Database(ledger_url) as database:
        yield Keys(database, Clock())


def test_keys_are_made_listed_and_revoked(keys: Keys) -> None:
    assert not keys.exist()
    key, written = keys.create("ward 3", [Scope.SEARCH], tenant="north")
    assert keys.exist()
    assert len(written) == 4 + 16 + 1 + 43
    assert keys.authenticated(written) == key == keys.all()[0]
    assert (key.name, key.tenant, key.scopes) == ("ward 3", "north", {Scope.SEARCH})
    assert keys.revoke(key.id) == keys.revoke(key.id)
    with pytest.raises(NotAuthenticated):
        keys.authenticated(written)
    assert keys.exist()
    with pytest.raises(AccessError, match="no key 'x'"):
        keys.revoke("x")


def test_a_key_ends_when_it_was_to_end(ledger_url: str) -> None:
    clock = Clock()
    with Database(ledger_url) as database:
        keys = Keys(database, clock)
        key, written = keys.create("k", [Scope.INDEX], expires_at=clock.now + timedelta(hours=1))
        clock.now += timedelta(minutes=59)
        assert keys.authenticated(written) == key
        clock.now += timedelta(minutes=1)
        with pytest.raises(NotAuthenticated):
            keys.authenticated(written)


def test_a_key_is_remembered_for_a_moment_and_no_longer(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    DataDir(settings.data_dir).make()
    now = 100.0
    with (
        closing(Access(settings, lambda: now)) as access,
        Database(f"sqlite:///{DataDir(settings.data_dir).ledger}") as database,
    ):
        keys = Keys(database)
        key, written = keys.create("k", [Scope.SEARCH])
        ends = datetime.now(UTC) + timedelta(milliseconds=200)
        short = keys.create("short", [Scope.SEARCH], expires_at=ends)[1]
        asked, wrong, briefly = (
            Request([("authorization", f"Bearer {one}")], "127.0.0.1")
            for one in (written, written[:-1] + "_", short)
        )
        assert access.at_hand(asked) is None
        assert access.identified(asked) == access.at_hand(asked)
        assert access.at_hand(wrong) is None
        assert access.at_hand(Request([*asked.headers, *asked.headers], "127.0.0.1")) is None
        assert access.identified(briefly) == access.at_hand(briefly)
        keys.revoke(key.id)
        now += REMEMBERED_SECONDS
        assert access.at_hand(asked) is None
        with pytest.raises(NotAuthenticated):
            access.identified(asked)
        # One that expires meanwhile is not remembered beyond that.
        now -= REMEMBERED_SECONDS
        time.sleep(max(0, (ends - datetime.now(UTC)).total_seconds()))
        assert access.at_hand(briefly) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": " "}, "needs a name"),
        ({"name": "a\nb"}, "needs a name"),
        ({"scopes": []}, "needs a scope"),
        ({"tenant": ""}, "no tenant"),
        ({"tenant": "a b"}, "no tenant"),
        ({"expires_at": datetime(2001, 1, 1, tzinfo=UTC)}, "has passed"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(keys: Keys, change, said) -> None:
    with pytest.raises(AccessError, match=said):
        keys.create(**{"name": "k", "scopes": [Scope.SEARCH], **change})
    assert keys.all() == []


CHECK = """
import sys
from api.security.keys import Keys
from engine.errors import NotAuthenticated
from indexer.ledger.database import Database
with Database(sys.argv[1]) as database:
    keys = Keys(database)
    for line in sys.stdin:
        try:
            print(keys.authenticated(line.strip()).name, flush=True)
        except NotAuthenticated:
            print("refused", flush=True)
"""


def test_a_revocation_holds_in_another_process_at_once(ledger_url: str) -> None:
    command = [sys.executable, "-c", CHECK, ledger_url]
    with Database(ledger_url) as database:
        keys = Keys(database)
        key, written = keys.create("mine", [Scope.SEARCH])
        other = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

        def answer() -> str:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(written + "\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert answer() == "mine"
        keys.revoke(key.id)
        assert answer() == "refused"
        other.communicate(timeout=60)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "archive.example"},
        {"Host": "localhost.archive.example"},
        {"Host": "10.0.0.7:8000"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Forwarded": "for=10.0.0.7"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Origin": "null"},
        {"Origin": "https://archive.example"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "https://localhost"},
    ],
    ids=str,
)
def test_an_open_service_answers_its_own_machine_alone(client, headers) -> None:
    for address in ("/", "/healthz", "/v1/facets"):
        refused = client.get(address, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")
        assert "precedent keys create" in refused.json()["detail"]
    assert client.post("/v1/search", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_an_open_service_knows_the_names_of_its_machine(client, host) -> None:
    own = {"Host": host, "Origin": f"http://{host.lower()}"}
    assert client.get("/v1/facets", headers=own).status_code == 200


def test_an_open_service_takes_no_connection_from_elsewhere(archive) -> None:
    app = create_service(archive=archive)
    with TestClient(app, base_url="http://localhost", client=("10.0.0.7", 5)) as far:
        assert far.get("/healthz").status_code == 403


def test_the_first_key_closes_an_open_service_and_the_end_of_the_last_does_not_open_it(
    indexed, tmp_path: Path
) -> None:
    settings = indexed.copy(tmp_path / "data")
    place = ("--data-dir", settings.data_dir)
    with LoopbackClient(create_service(settings)) as client:
        assert client.get("/v1/facets").status_code == 200
        made = json.loads(run("keys", "create", "ward", "--expires", "90d", *place, "--json"))
        written = made["key"]
        assert client.get("/v1/facets").status_code == 401
        assert client.get("/v1/facets", headers=bearer(written)).status_code == 200
        assert "ward" in run("keys", "list", *place)
        run("keys", "revoke", made["id"], *place)
        assert "revoked" in run("keys", "list", *place)
        assert client.get("/v1/facets", headers=bearer(written)).status_code == 401
        assert client.get("/v1/facets").status_code == 401


def test_a_service_that_others_could_reach_does_not_start_without_a_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    server = settings.server.model_copy(update={"host": "0.0.0.0", "port": 0})
    with pytest.raises(SettingsError, match="precedent keys create"):
        serve_until_stopped(settings.model_copy(update={"server": server}))
    assert not settings.data_dir.exists()


@pytest.mark.slow
def test_a_service_that_cannot_start_says_why_in_a_line(indexed, tmp_path: Path) -> None:
    """Not by the traceback that the server logs."""
    settings = indexed.copy(tmp_path / "data")
    place = ["--data-dir", str(settings.data_dir), "--model", str(tmp_path / "none")]
    ended = subprocess.run(
        [sys.executable, "-m", "api", "serve", "--port", "0", *place],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert "\nprecedent: no model in" in f"\n{ended.stderr}"
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_service_that_cannot_receive_does_not_say_that_it_is_there(
    indexed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = indexed.copy(tmp_path / "data")
    scp = {"allowed_ae_titles": ("PACS",), "port": 0}
    server = settings.server.model_copy(update={"port": 0, "receive": True})
    receiving = settings.receive.model_copy(update=scp)
    settings = settings.model_copy(update={"server": server, "receive": receiving})
    received = DataDir(settings.data_dir).received
    with (
        Inbox(received, settings.receive, settings.limits.max_file_bytes),
        pytest.raises(StoreLocked, match="another process that receives"),
    ):
        serve_until_stopped(settings)
    assert "Precedent is at" not in capsys.readouterr().out


def test_the_commands_of_the_page_on_security_do_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("precedent keys ")]
    assert [line.split()[2] for line in lines] == ["create", "list", "revoke"]
    made = {}
    for line in lines:
        words = shlex.split(line.replace("/srv/precedent", str(tmp_path / "data")))[1:]
        words = [made.get("id", word) if word == "ID" else word for word in words]
        said = json.loads(run(*words, "--json"))
        made = said if "key" in said else made
    assert made["scopes"] == ["search"]
    assert said["id"] == made["id"]
    assert said["revoked_at"] is not None
