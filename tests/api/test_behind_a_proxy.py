"""The service behind a real nginx with TLS, as docs/security.md has it configured."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from services.nginx import Nginx
from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import Settings
from indexer.ledger.database import Database


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    indexed.copy(tmp_path / "data")
    copied: Settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "data"})
    return copied


@pytest.fixture
def outside(settings: Settings) -> Iterator[httpx2.Client]:
    """A client on another machine, as far as the service can tell."""
    with (
        served(create_service(settings)) as address,
        Nginx(address.removeprefix("http://")) as proxy,
        httpx2.Client(base_url=proxy.url, verify=proxy.trust, timeout=30) as client,
    ):
        yield client


def test_an_open_service_answers_nothing_through_a_proxy(outside: httpx2.Client) -> None:
    for path in (
        *("/", "/login", "/healthz", "/openapi.json", "/v1/facets"),
        *("/v1/keys", "/v1/audit", "/v1/audit/export", "/keys", "/audit"),
    ):
        answer = outside.get(path)
        assert answer.status_code == 403
        assert "precedent keys create" in answer.json()["detail"]


def test_with_a_key_it_answers_through_a_proxy(
    outside: httpx2.Client, settings: Settings, indexed
) -> None:
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, written = Keys(database).create("ward", [Scope.SEARCH])
    refused = outside.get("/v1/facets")
    assert (refused.status_code, refused.headers["www-authenticate"][:6]) == (401, "Bearer")
    bearer = {"Authorization": f"Bearer {written}"}
    assert outside.get("/v1/facets", headers=bearer).status_code == 200
    for path in ("/v1/keys", "/v1/audit", "/v1/audit/export", "/keys", "/audit"):
        assert outside.get(path).status_code in (303, 401)
        assert outside.get(path, headers=bearer).status_code == 403
    content = indexed.files["ct"][0].read_bytes()
    found = outside.post(
        "/v1/search", files={"file": content}, data={"k": 3}, headers=bearer
    ).json()
    assert found["hits"][0]["sop"] == "1.2.3.0"
    # The page: signing in, a search by its form, and a form from elsewhere.
    own = {"Origin": str(outside.base_url).rstrip("/")}
    assert outside.post("/login", data={"key": written}, headers=own).status_code == 303
    page = outside.get("/")
    assert page.status_code == 200
    token = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert token is not None
    form = {"csrf": token[1]}
    assert outside.post("/", data=form, files={"file": content}, headers=own).status_code == 200
    elsewhere = {"Origin": "https://elsewhere.example"}
    answer = outside.post("/", data=form, files={"file": content}, headers=elsewhere)
    assert answer.status_code == 403
