"""Pages of other origins, frames, proxies and TLS, each only as the settings name them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from api.security.access import COOKIE
from api.security.keys import Keys
from api.security.policy import Scope
from api.security.sessions import Sessions
from api.service import create_service
from engine.settings import ServerSettings, Settings
from indexer.ledger.database import Database

PORTAL = "https://portal.example"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
Site = Callable[..., TestClient]


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    return indexed.copy(tmp_path / "data")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as opened:
        yield opened


@pytest.fixture
def bearer(database: Database) -> dict[str, str]:
    return {"Authorization": f"Bearer {Keys(database).create('k', [Scope.SEARCH])[1]}"}


@pytest.fixture
def site(settings: Settings, archive) -> Iterator[Site]:
    opened: list[TestClient] = []

    def make(peer: str = "10.0.0.7", **options: object) -> TestClient:
        server = ServerSettings(**{"max_upload_bytes": 200_000, **options})
        app = create_service(settings.model_copy(update={"server": server}), archive)
        client = TestClient(app, base_url="http://search.example", client=(peer, 5))
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def test_pages_of_named_origins_may_ask_with_a_key(site: Site, bearer) -> None:
    client = site(allowed_origins=[PORTAL])
    asked = client.options("/v1/search", headers={"Origin": PORTAL, **ASKS})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == PORTAL
    assert "POST" in asked.headers["access-control-allow-methods"]
    for name in ("Authorization", "Last-Event-ID"):
        assert name in asked.headers["access-control-allow-headers"]
    assert asked.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in asked.headers["content-security-policy"]
    assert asked.headers["cross-origin-resource-policy"] == "cross-origin"
    answer = client.get("/v1/facets", headers={"Origin": PORTAL, **bearer})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PORTAL
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    # The page can read why it was refused.
    refused = client.get("/v1/facets", headers={"Origin": PORTAL})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PORTAL


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", "null", "http://portal.example", f"{PORTAL}:8443"]
)
def test_pages_of_all_other_origins_are_told_nothing(site: Site, bearer, origin: str) -> None:
    client = site(allowed_origins=[PORTAL])
    assert client.options("/v1/search", headers={"Origin": origin, **ASKS}).status_code == 405
    answer = client.get("/v1/facets", headers={"Origin": origin, **bearer})
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    # Or a cache would give the one's answer to the other.
    assert "Origin" in answer.headers["vary"]


def test_by_default_no_other_origin_is_named(site: Site, bearer) -> None:
    client = site()
    assert client.options("/v1/search", headers={"Origin": PORTAL, **ASKS}).status_code == 405
    answer = client.get("/v1/facets", headers={"Origin": PORTAL, **bearer})
    assert "access-control-allow-origin" not in answer.headers


def test_a_session_answers_no_other_origin(site: Site, bearer, database) -> None:
    client = site(allowed_origins=[PORTAL])
    secret, _ = Sessions(database).begin(bearer["Authorization"].removeprefix("Bearer "))
    cookie = {"Cookie": f"{COOKIE}={secret}"}
    assert client.get("/v1/facets", headers=cookie).status_code == 200
    assert client.get("/v1/facets", headers={"Origin": PORTAL, **cookie}).status_code == 401


def test_an_open_service_answers_no_other_origin_even_if_named(site: Site) -> None:
    client = site("127.0.0.1", allowed_origins=[PORTAL])
    headers = {"Origin": PORTAL, "Host": "localhost"}
    assert client.get("/v1/facets", headers=headers).status_code == 403


def test_frames_of_named_origins_may_show_the_page(site: Site) -> None:
    page = site(frame_ancestors=["self", PORTAL]).get("/login")
    assert f"frame-ancestors 'self' {PORTAL}" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in site().get("/login").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("*", "every site"),
        ("https://*.example", "every site"),
        ("null", "no origin"),
        ("portal.example", "no origin"),
        (f"{PORTAL}/", "no origin"),
        (f"{PORTAL}/path", "no origin"),
        ("https://user@portal.example", "no origin"),
        ("https://portal.example; script-src *", "every site"),
        ("https://portal.example;x", "no origin"),
        ("https://a.example https://b.example", "no origin"),
        ("http://portal.example", "not https"),
        ("ftp://portal.example", "not https"),
    ],
)
@pytest.mark.parametrize("name", ["allowed_origins", "frame_ancestors"])
def test_what_is_no_safe_origin_is_refused_with_the_reason(name: str, written: str, why) -> None:
    with pytest.raises(ValidationError, match=why):
        ServerSettings(**{name: [written]})


def test_origins_are_compared_as_browsers_write_them() -> None:
    server = ServerSettings(
        allowed_origins=["HTTPS://Portal.Example:443", "http://localhost:3000", "http://[::1]:3000"]
    )
    assert server.allowed_origins == (PORTAL, "http://localhost:3000", "http://[::1]:3000")


def test_tls_is_demanded_over_tls_alone(site: Site) -> None:
    client = site("10.0.0.1", hsts_seconds=31536000, trusted_proxies=["10.0.0.1"])
    plain = client.get("/login", headers={"X-Forwarded-Proto": "http"})
    assert "strict-transport-security" not in plain.headers
    secure = client.get("/login", headers={"X-Forwarded-Proto": "https"})
    assert secure.headers["strict-transport-security"] == "max-age=31536000"
    # Whoever is no proxy cannot say so.
    other = site("10.0.0.9", hsts_seconds=31536000, trusted_proxies=["10.0.0.1"])
    claimed = other.get("/login", headers={"X-Forwarded-Proto": "https"})
    assert "strict-transport-security" not in claimed.headers


@pytest.mark.parametrize(
    ("peer", "sent", "address"),
    [
        ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
        # What a client made up comes first, and is not believed.
        ("10.0.0.1", "127.0.0.1, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5, 10.0.0.2", "203.0.113.5"),
        ("10.0.0.1", "made up, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "made up", "10.0.0.1"),
        ("10.0.0.9", "203.0.113.5", "10.0.0.9"),
    ],
)
def test_a_proxy_that_is_trusted_names_the_client(
    site: Site, bearer, caplog, peer: str, sent: str, address: str
) -> None:
    client = site(peer, trusted_proxies=["10.0.0.0/30"])
    with caplog.at_level("INFO", "precedent.requests"):
        client.get("/v1/facets", headers={"X-Forwarded-For": sent, **bearer})
    (record,) = [one for one in caplog.records if one.name == "precedent.requests"]
    assert record.address == address


def test_a_form_through_a_trusted_proxy_reaches_the_page(site: Site, bearer) -> None:
    sent = {"Origin": "https://outside.example", "X-Forwarded-Host": "outside.example"}
    near = site("10.0.0.1", trusted_proxies=["10.0.0.1"])
    key = bearer["Authorization"].removeprefix("Bearer ")
    signed_in = near.post("/login", data={"key": key}, headers=sent, follow_redirects=False)
    assert signed_in.status_code == 303
    far = site("10.0.0.9", trusted_proxies=["10.0.0.1"])
    refused = far.post("/login", data={"key": key}, headers=sent, follow_redirects=False)
    assert refused.status_code == 403


def test_an_open_service_answers_nothing_that_even_a_trusted_proxy_hands_on(site: Site) -> None:
    client = site("127.0.0.1", trusted_proxies=["127.0.0.1"])
    headers = {"X-Forwarded-For": "127.0.0.1", "Host": "localhost"}
    assert client.get("/v1/facets", headers=headers).status_code == 403


@pytest.mark.parametrize("written", ["0.0.0.0/0", "::/0", "proxy.example", "10.0.0.1/8"])
def test_what_names_no_proxy_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(trusted_proxies=[written])
