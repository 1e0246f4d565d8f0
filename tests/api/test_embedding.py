"""Pages of other sites show the cases related to one study, with a token and nothing else."""

import base64
import json
import re
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from fastapi.testclient import TestClient
from oidc_site import bearer
from services.loopback import LoopbackClient

from api.audit.export import audit_event
from api.audit.log import open_log
from api.security.embedding import Embed, EmbedTokens, site_origin
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import NotAuthenticated, QueryError
from engine.settings import Settings
from indexer.ledger.database import Database

ORIGIN = "https://portal.example"
STUDY = "1.2.4.0"


@pytest.fixture(scope="module")
def settings(indexed, store_root: Path) -> Settings:
    copied: Settings = indexed.copy(store_root / "data")
    return copied


@pytest.fixture(scope="module")
def keys(settings: Settings) -> Iterator[Keys]:
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        made = Keys(database)
        made.create("first", [Scope.ADMIN])
        yield made


@pytest.fixture(scope="module")
def service(settings: Settings, keys: Keys) -> Iterator[TestClient]:
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client


def asked(**changed: Any) -> dict[str, Any]:
    usual = {"study": STUDY, "origin": ORIGIN, "acting_user": "dr.weber", "minutes": 5}
    return {**usual, **changed}


def token(service: TestClient, written: str, **changed: Any) -> str:
    answer = service.post("/v1/embed-tokens", headers=bearer(written), json=asked(**changed))
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["token"]
    return made


def shown(service: TestClient, with_token: str, origin: str | None = ORIGIN) -> httpx.Response:
    """The answer to the form that a page of the site sends into its frame."""
    headers = {} if origin is None else {"Origin": origin}
    answer: httpx.Response = service.post("/embed", data={"token": with_token}, headers=headers)
    return answer


def test_a_site_shows_the_related_cases_of_a_study(service: TestClient, keys: Keys) -> None:
    key, written = keys.create("portal", [Scope.SEARCH])
    made = token(service, written)
    page = shown(service, made)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors https://portal.example" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in page.headers
    related = service.get(f"/v1/studies/{STUDY}/related", headers=bearer(written)).json()["hits"]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.text)
    assert len(pictures) == len(related) > 1
    for picture, hit in zip(pictures, related, strict=True):
        there = service.get(f"/v1/images/{hit['id']}/thumbnail", headers=bearer(written))
        assert base64.b64decode(picture) == there.content
    # All that it loads is public, and it leads nowhere.
    assert re.findall(r'(?:href|src|action)="(?!data:)([^"]+)"', page.text) == ["static/style.css"]
    assert made not in page.text
    keys.revoke(key.id)


def test_the_page_on_security_shows_how(service: TestClient, keys: Keys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    body = re.search(r"-d '(\{.*?\})'", page)
    form = re.search(r'<form method="post" action="https://precedent.example(/\w+)"', page)
    name = re.search(r'<input type="hidden" name="(\w+)"', page)
    assert body is not None
    assert form is not None
    assert name is not None
    asks = json.loads(body[1]) | {"study": STUDY}
    _, written = keys.create("portal", [Scope.SEARCH])
    made = service.post("/v1/embed-tokens", headers=bearer(written), json=asks).json()["token"]
    sent = {name[1]: made}
    assert service.post(form[1], data=sent, headers={"Origin": asks["origin"]}).status_code == 200


def test_a_token_opens_nothing_else(service: TestClient, keys: Keys) -> None:
    _, written = keys.create("portal", [Scope.SEARCH])
    made = token(service, written)
    image = service.get(f"/v1/studies/{STUDY}/related", headers=bearer(written)).json()["hits"][0]
    for path in ("/", "/v1/facets", f"/v1/images/{image['id']}", f"/v1/studies/{STUDY}/related"):
        refused = service.get(path, headers=bearer(made))
        assert refused.status_code == 401
        assert service.get(path, params={"token": made}).status_code in (303, 401)
        cookie = {"Cookie": f"__Host-precedent={made}"}
        assert service.get(path, headers=cookie).status_code in (303, 401)
    assert service.post("/v1/embed-tokens", headers=bearer(made), json=asked()).status_code == 401
    # Not in an address either, where proxies would log it.
    said = service.get("/embed", params={"token": made, "parent": ORIGIN})
    assert said.status_code == 400
    assert "addresses are logged" in said.json()["detail"]
    refused = service.post("/embed", params={"token": made}, headers={"Origin": ORIGIN})
    assert refused.status_code == 401


def test_the_frame_of_the_component_has_nothing_yet(service: TestClient) -> None:
    empty = service.get("/embed", params={"parent": "https://Portal.example:443"})
    policy = empty.headers["content-security-policy"]
    assert policy.endswith(f"frame-ancestors {ORIGIN}")
    assert "script-src 'self'; connect-src 'self'" in policy
    assert f'data-parent="{ORIGIN}"' in empty.text
    assert "set-cookie" not in empty.headers
    for parent in ("", "*", "null", "https://a.example https://b.example", f"{ORIGIN}/"):
        assert service.get("/embed", params={"parent": parent}).status_code == 400
    # Pages of other sites load the component, and nothing else of ours.
    for name, policy in (("precedent-related", "cross-origin"), ("embed", "same-origin")):
        answer = service.get(f"/static/{name}.js")
        assert answer.headers["cross-origin-resource-policy"] == policy


OURS = {"Origin": "http://localhost"}


def test_the_frame_of_the_component_shows_what_a_token_is_for(
    service: TestClient, keys: Keys
) -> None:
    made = token(service, keys.create("portal", [Scope.SEARCH])[1])
    sent = {"token": made, "study": STUDY, "parent": ORIGIN}
    page = service.post("/embed", data=sent, headers=OURS)
    assert page.status_code == 200
    seconds = re.search(r'data-seconds="(\d+)"', page.text)
    assert seconds is not None
    assert 290 < int(seconds[1]) <= 300
    opened = re.findall(r'data-study="([^"]+)"', page.text)
    assert opened
    assert STUDY not in opened
    # The page of a form has no script, and so nothing to click.
    assert "<button" not in shown(service, made).text


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({"study": "1.2.4.1"}, OURS),
        ({"study": ""}, OURS),
        ({"parent": "https://other.example"}, OURS),
        ({"parent": "https://PORTAL.example"}, OURS),
        ({}, {}),
        ({}, {"Origin": ORIGIN}),
        ({}, {"Origin": "null"}),
        ({}, {"Origin": "http://localhost:8000"}),
        ({}, {**OURS, "Sec-Fetch-Site": "same-site"}),
        ({}, {**OURS, "Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_whoever_says_that_they_are_that_frame_and_are_not_is_refused(
    service: TestClient, keys: Keys, change: dict[str, str], headers: dict[str, str]
) -> None:
    made = token(service, keys.create("portal", [Scope.SEARCH])[1])
    sent = {"token": made, "study": STUDY, "parent": ORIGIN, **change}
    refused = service.post("/embed", data=sent, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")


@pytest.mark.parametrize(
    "origin",
    [None, "null", "https://other.example", "http://portal.example", "https://portal.example:444"],
)
def test_another_site_shows_nothing(service: TestClient, keys: Keys, origin: str | None) -> None:
    made = token(service, keys.create("portal", [Scope.SEARCH])[1])
    refused = shown(service, made, origin)
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")
    assert "frame-ancestors 'none'" in refused.headers["content-security-policy"]


def test_a_token_ends_with_its_key_at_once(service: TestClient, keys: Keys) -> None:
    key, written = keys.create("portal", [Scope.SEARCH])
    made = token(service, written)
    assert shown(service, made).status_code == 200
    keys.revoke(key.id)
    refused = shown(service, made)
    assert refused.status_code == 401
    assert "not allowed any more" in refused.text
    assert f"frame-ancestors {ORIGIN}" in refused.headers["content-security-policy"]
    assert "data:image" not in refused.text


def test_a_token_is_of_its_tenant(service: TestClient, keys: Keys) -> None:
    _, elsewhere = keys.create("portal", [Scope.SEARCH], tenant="elsewhere")
    made = token(service, elsewhere)
    hidden, never = shown(service, made), shown(service, token(service, elsewhere, study="1.2.9"))
    assert hidden.status_code == never.status_code == 404
    assert hidden.text.replace(STUDY, "1.2.9") == never.text


def test_who_may_have_one(service: TestClient, keys: Keys, archive) -> None:
    _, other = keys.create("loader", [Scope.INDEX])
    refused = service.post("/v1/embed-tokens", headers=bearer(other), json=asked())
    assert refused.status_code == 403
    assert service.post("/v1/embed-tokens", json=asked()).status_code == 401
    with LoopbackClient(create_service(archive=archive)) as opened:
        refused = opened.post("/v1/embed-tokens", json=asked())
        assert refused.status_code == 403
        assert "precedent keys create" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"minutes": 0}, 422),
        ({"minutes": 11}, 422),
        ({"study": ""}, 422),
        ({"study": "Weber^Anna"}, 422),
        ({"acting_user": ""}, 422),
        ({"acting_user": "a\nb"}, 422),
        ({"more": 1}, 422),
        ({"origin": "http://portal.example"}, 400),
        ({"origin": "https://portal.example/"}, 400),
        ({"origin": "https://*.example"}, 400),
        ({"origin": "*"}, 400),
        ({"origin": "null"}, 400),
        ({"origin": "https://a.example; script-src *"}, 400),
        ({"origin": "https://a.example https://b.example"}, 400),
        ({"origin": "https://a.example:70000"}, 400),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(service, keys: Keys, change, status) -> None:
    _, written = keys.create("portal", [Scope.SEARCH])
    refused = service.post("/v1/embed-tokens", headers=bearer(written), json=asked(**change))
    assert refused.status_code == status, refused.text


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://Portal.Example", ORIGIN),
        ("https://portal.example:443", ORIGIN),
        ("https://portal.example:08443", "https://portal.example:8443"),
        ("http://localhost:80", "http://localhost"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_an_origin_is_written_as_browsers_do(written: str, origin: str) -> None:
    assert site_origin(written) == origin


EMBED = Embed("0123456789abcdef", "default", STUDY, ORIGIN, "dr.weber")


def test_a_token_ends_in_time() -> None:
    now = 1_900_000_000.0
    tokens = EmbedTokens(b"s" * 32, lambda: now)
    made, until = tokens.make(EMBED, 10)
    assert until - datetime.fromtimestamp(now, UTC) == timedelta(minutes=10)
    assert tokens.read(made) == (EMBED, 600)
    now += 599
    assert tokens.read(made) == (EMBED, 1)
    now += 1
    assert tokens.read(made) == (EMBED, 0)
    with pytest.raises(QueryError, match="1 to 10"):
        tokens.make(EMBED, 11)


def test_an_expired_view_says_so_in_its_frame(
    service: TestClient, settings: Settings, keys: Keys
) -> None:
    key, _ = keys.create("portal", [Scope.SEARCH])
    secret = (settings.data_dir / "embedding.key").read_bytes()
    earlier = EmbedTokens(secret, lambda: time.time() - 601)
    made, _ = earlier.make(Embed(key.id, "default", STUDY, ORIGIN, "x"), 10)
    refused = shown(service, made)
    assert refused.status_code == 401
    assert "has expired" in refused.text
    assert f"frame-ancestors {ORIGIN}" in refused.headers["content-security-policy"]
    with open_log(settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert (row["who"]["kind"], row["who"]["id"]) == ("unknown", key.id)


def test_a_view_counts_as_a_request_of_its_key(settings: Settings, keys: Keys) -> None:
    _, written = keys.create("portal", [Scope.SEARCH])
    few = settings.server.model_copy(update={"requests_per_second": 0.01, "burst": 3})
    limited = settings.model_copy(update={"server": few})
    with LoopbackClient(create_service(limited)) as service:
        made = token(service, written)
        answers = [shown(service, made) for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) > 1
        assert "Retry-After" in answers[-1].text
        assert f"frame-ancestors {ORIGIN}" in answers[-1].headers["content-security-policy"]
        # What is no token of a key is counted for nobody.
        assert shown(service, "x").status_code == 401
    with open_log(settings) as log:
        rows = [row.document for row in islice(log.between(latest_first=True), 2)]
    assert [row["status"] for row in rows] == [401, 429]
    assert rows[1]["who"]["name"] == "portal"


def test_the_audit_log_says_for_whom_it_was(
    service: TestClient, settings: Settings, keys: Keys
) -> None:
    key, written = keys.create("portal", [Scope.SEARCH])
    shown(service, token(service, written, acting_user="dr.\x9bweber"))
    with open_log(settings) as log:
        rows = [*islice(log.between(latest_first=True), 2)]
    for row, action in zip(rows, ("POST /embed", "POST /v1/embed-tokens"), strict=True):
        assert row.document["action"] == action
        assert row.document["who"]["id"] == key.id
        assert row.document["about"] == {"acting": "dr.\ufffdweber"}
        assert STUDY in row.document["studies"]
        people = [one["who"].get("display") for one in audit_event(row)["agent"]]
        assert people == ["portal", "dr.\ufffdweber", "Precedent"]


@pytest.mark.filterwarnings("ignore:The HMAC key:jwt.warnings.InsecureKeyLengthWarning")
def test_a_forged_token_is_none(service: TestClient, settings: Settings, keys: Keys) -> None:
    key, written = keys.create("portal", [Scope.SEARCH])
    made = token(service, written)
    claims = jwt.decode(made, options={"verify_signature": False})
    head, body, mac = made.split(".")
    secret = (settings.data_dir / "embedding.key").read_bytes()
    typ = {"typ": "precedent-embed+jwt"}
    forged = [
        "",
        "nonsense",
        written,
        f"{head}.{body}.{mac[:-2]}AA",
        jwt.encode(claims, b"s" * 32, "HS256", headers=typ),
        jwt.encode(claims, None, "none", headers=typ),
        jwt.encode(claims, secret, "HS384", headers=typ),
        jwt.encode(claims, secret, "HS256"),
        jwt.encode({**claims, "aud": "else"}, secret, "HS256", headers=typ),
        jwt.encode({**claims, "act": "x"}, secret, "HS256", headers=typ),
    ]
    for one in forged:
        refused = shown(service, one)
        assert (refused.status_code, refused.json()["code"]) == (401, "not-authenticated"), one
    other = EmbedTokens(secret).make(Embed(key.id, "elsewhere", STUDY, ORIGIN, "x"), 5)[0]
    assert shown(service, other).status_code == 401


def test_the_secret_is_kept_for_its_owner(service: TestClient, settings: Settings, keys) -> None:
    made = token(service, keys.create("portal", [Scope.SEARCH])[1])
    path = settings.data_dir / "embedding.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    # Another process of the service reads it too.
    assert EmbedTokens(path.read_bytes()).read(made)[1]
    with pytest.raises(NotAuthenticated):
        EmbedTokens(b"t" * 32).read(made)
