"""Signing in to the page with a key: the cookie, its forms, its end."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient

from api.security.keys import Keys
from api.security.policy import Scope
from api.security.sessions import ABSOLUTE, IDLE, Sessions
from api.service import create_service
from indexer.ledger.database import Database

COOKIE = "__Host-precedent"


@pytest.fixture(scope="module")
def keys(indexed, store_root: Path) -> Iterator[Keys]:
    indexed.copy(store_root / "data")
    with Database(f"sqlite:///{store_root / 'data' / 'ledger.sqlite'}") as database:
        made = Keys(database)
        made.create("first", [Scope.ADMIN])
        yield made


@pytest.fixture
def page(indexed, keys: Keys, store_root: Path) -> Iterator[TestClient]:
    settings = indexed.settings.model_copy(update={"data_dir": store_root / "data"})
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client


def signed_in(page: TestClient, written: str) -> dict[str, str]:
    """The headers of a session."""
    answer = page.post("/login", data={"key": written})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers.get_list("set-cookie")[0]
    for part in ("HttpOnly", "Secure", "Path=/", "SameSite=lax"):
        assert part in cookie.split("; ")
    assert "Domain" not in cookie
    found = re.match(rf"{COOKIE}=([\w-]+);", cookie)
    assert found is not None
    assert written not in cookie
    page.cookies.clear()
    return {"Cookie": f"{COOKIE}={found[1]}"}


def test_a_session_shows_the_page_and_its_pictures(page: TestClient, keys: Keys, indexed) -> None:
    assert page.get("/").headers["location"] == "login"
    assert "API key" in page.get("/login").text
    key, written = keys.create("ward", [Scope.SEARCH])
    session = signed_in(page, written)
    shown = page.get("/", headers=session)
    assert shown.status_code == 200
    assert written not in shown.text
    assert session["Cookie"].partition("=")[2] not in shown.text
    picture = re.search(r'src="(v1/images/[^"]+)"', shown.text)
    assert picture is not None
    assert page.get("/" + picture[1], headers=session).status_code == 200
    token = re.search(r'name="csrf" value="(\w+)"', shown.text)
    assert token is not None
    file = {"file": indexed.files["ct"][0].read_bytes()}
    sent = page.post("/", headers=session, files=file, data={"k": "3", "csrf": token[1]})
    assert sent.status_code == 200
    for data in ({"k": "3"}, {"k": "3", "csrf": "0" * 64}):
        assert page.post("/", headers=session, files=file, data=data).status_code == 403
    for origin in ("https://other.example", "null"):
        refused = page.post(
            "/", headers={**session, "Origin": origin}, files=file, data={"csrf": token[1]}
        )
        assert refused.status_code == 403
    keys.revoke(key.id)
    assert page.get("/", headers=session).headers["location"] == "login"
    assert page.get("/" + picture[1], headers=session).status_code == 401


def test_a_session_changes_nothing_outside_the_page(page: TestClient, keys: Keys) -> None:
    session = signed_in(page, keys.create("ward", [Scope.SEARCH])[1])
    assert page.get("/v1/facets", headers=session).status_code == 200
    assert page.post("/v1/search", headers=session, data={"id": "x"}).status_code == 401


def test_signing_out_ends_the_session(page: TestClient, keys: Keys) -> None:
    session = signed_in(page, keys.create("ward", [Scope.SEARCH])[1])
    assert page.post("/logout", headers=session).status_code == 403
    token = re.search(r'name="csrf" value="(\w+)"', page.get("/", headers=session).text)
    assert token is not None
    left = page.post("/logout", headers=session, data={"csrf": token[1]})
    assert (left.status_code, left.headers["location"]) == (303, "login")
    assert page.get("/", headers=session).status_code == 303


def test_only_a_key_that_may_use_a_page_signs_in(page: TestClient, keys: Keys) -> None:
    for written in ("", "nonsense", keys.create("r", [Scope.INDEX, Scope.METRICS])[1]):
        refused = page.post("/login", data={"key": written})
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
    _, written = keys.create("ward", [Scope.SEARCH])
    stranger = {"Origin": "https://other.example"}
    assert page.post("/login", data={"key": written}, headers=stranger).status_code == 403


@pytest.mark.parametrize("every", [IDLE, timedelta(minutes=20)], ids=["idle", "used"])
def test_a_session_ends(ledger_url: str, every: timedelta) -> None:
    now = start = datetime(2031, 1, 1, tzinfo=UTC)
    with Database(ledger_url) as database:
        kept = Sessions(database, lambda: now)
        key, written = Keys(database, lambda: now).create("k", [Scope.SEARCH])
        secret, _ = kept.begin(written)
        with Database(ledger_url) as other:
            assert Sessions(other, lambda: now).key_of(secret) == key
        while kept.key_of(secret) is not None:
            now += every
        assert now - start == (IDLE if every == IDLE else ABSOLUTE)
        assert kept.key_of("nonsense") is None
