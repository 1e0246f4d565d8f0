"""Keys over HTTP and on their page: made, listed, revoked, by administrators of one tenant."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient
from services.running import served
from test_api_page import Page

from api.audit.export import audit_event
from api.audit.log import AuditLog, open_log
from api.security.access import Access, Request
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import NotAuthenticated
from engine.settings import Settings
from indexer.ledger.database import Database

COOKIE = "__Host-precedent"
SECRET = re.compile(r"prc_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Site:
    """A service with keys. admin: the headers of an administrator who may search as well."""

    client: TestClient
    settings: Settings
    keys: Keys
    log: AuditLog
    admin: dict[str, str]

    def rows(self, action: str) -> list[dict[str, Any]]:
        found = [row.document for row in self.log.between()]
        return [row for row in found if row["action"] == action]


def bearer(written: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {written}"}


def signed_in(client: TestClient, written: str, home: str) -> dict[str, str]:
    """The headers of a session, as of a browser."""
    answer = client.post("/login", data={"key": written})
    assert (answer.status_code, answer.headers["location"]) == (303, f"./{home}")
    cookie = answer.cookies[COOKIE]
    client.cookies.clear()
    return {"Cookie": f"{COOKIE}={cookie}", "Accept": "text/html,*/*"}


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', page)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def site(indexed, store_root: Path) -> Iterator[Site]:
    settings = indexed.copy(store_root / "data")
    with (
        Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database,
        open_log(settings) as log,
        LoopbackClient(create_service(settings), follow_redirects=False) as client,
    ):
        keys = Keys(database)
        _, written = keys.create("admin", [Scope.ADMIN, Scope.SEARCH])
        yield Site(client, settings, keys, log, bearer(written))


def test_a_key_is_made_told_once_and_listed_without_its_secret(site: Site) -> None:
    asked = {"name": "ward 3", "scopes": ["search", "search"], "expires": "90d"}
    answer = site.client.post("/v1/keys", headers=site.admin, json=asked)
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    made = answer.json()
    assert SECRET.fullmatch(made.pop("key"))
    assert (made["name"], made["scopes"], made["tenant"]) == ("ward 3", ["search"], "default")
    ends = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < ends <= timedelta(days=90)
    listed = site.client.get("/v1/keys", headers=site.admin)
    assert not SECRET.search(listed.text)
    assert listed.json()["keys"][-1] == made
    (begun, done) = [
        row for row in site.rows("POST /v1/keys") if row["about"].get("key") == made["id"]
    ]
    assert (begun["status"], done["status"]) == (102, 201)
    assert done["about"]["scopes"] == ["search"]
    assert done["who"]["name"] == "admin"


def test_what_was_used_last_is_told(site: Site) -> None:
    key, written = site.keys.create('sly "who":{"id":"x"}}', [Scope.SEARCH])
    _, elsewhere = site.keys.create("elsewhere", [Scope.SEARCH, Scope.ADMIN], tenant="north")

    def last_used(headers: dict[str, str], key_id: str) -> datetime | None:
        listed = site.client.get("/v1/keys", headers=headers).json()["keys"]
        (at,) = [one["last_used_at"] for one in listed if one["id"] == key_id]
        return None if at is None else datetime.fromisoformat(at)

    assert last_used(site.admin, key.id) is None
    before = datetime.now(UTC)
    assert site.client.get("/v1/facets", headers=bearer(written)).status_code == 200
    used = last_used(site.admin, key.id)
    assert used is not None
    assert before - timedelta(seconds=1) < used < datetime.now(UTC)
    assert last_used(bearer(elsewhere), elsewhere[4:20]) is None


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({}, 422, "invalid-request"),
        ({"name": " "}, 400, "access"),
        ({"name": "a\nb"}, 400, "access"),
        ({"name": "a\u202eb"}, 400, "access"),
        ({"name": "a\x00"}, 400, "access"),
        ({"name": "a" * 201}, 422, "invalid-request"),
        ({"name": "a", "scopes": []}, 422, "invalid-request"),
        ({"name": "a", "scopes": ["all"]}, 422, "invalid-request"),
        ({"name": "a", "tenant": "north"}, 422, "invalid-request"),
        ({"name": "a", "expires": "soon"}, 400, "access"),
        ({"name": "a", "expires": "2001-01-01"}, 400, "access"),
        ({"name": "a", "expires": "0001-01-01T00:00:00+14:00"}, 400, "access"),
        ({"name": "a", "expires": "9999-12-31T23:59:59-14:00"}, 400, "access"),
        # No credential makes one that may do more than itself.
        ({"name": "a", "scopes": ["send"]}, 403, "not-allowed"),
        ({"name": "a", "scopes": ["admin", "metrics"]}, 403, "not-allowed"),
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_not_made(site: Site, asked, status, code) -> None:
    before = len(site.keys.all())
    answer = site.client.post("/v1/keys", headers=site.admin, json=asked)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert len(site.keys.all()) == before


def test_administrators_see_and_change_the_keys_of_their_tenant_alone(site: Site) -> None:
    mine, _ = site.keys.create("mine", [Scope.SEARCH])
    _, written = site.keys.create("theirs", [Scope.ADMIN], tenant="north")
    north = {**bearer(written), "X-Request-Id": "1"}
    listed = site.client.get("/v1/keys", headers=north).json()["keys"]
    assert {one["tenant"] for one in listed} == {"north"}
    made = site.client.post("/v1/keys", headers=north, json={"name": "n", "scopes": ["admin"]})
    assert made.json()["tenant"] == "north"
    never = "0123456789abcdef"
    answers = [
        site.client.post(f"/v1/keys/{one}/revoke", headers=north) for one in (mine.id, never)
    ]
    assert [one.status_code for one in answers] == [404, 404]
    assert answers[0].text.replace(mine.id, never) == answers[1].text
    assert site.keys.named(mine.id).revoked_at is None
    # Who tried is told, and which key.
    row = site.rows("POST /v1/keys/{id}/revoke")[-2]
    assert (row["about"], row["outcome"]) == ({"key": mine.id}, "refused")


def test_a_revoked_key_is_refused_within_a_second_everywhere(site: Site) -> None:
    key, written = site.keys.create("leaving", [Scope.SEARCH])
    asked = Request([("authorization", f"Bearer {written}")], "127.0.0.1")
    with closing(Access(site.settings)) as elsewhere:
        assert elsewhere.identified(asked)
        assert elsewhere.at_hand(asked)
        assert site.client.get("/v1/facets", headers=bearer(written)).status_code == 200
        start = time.monotonic()
        first = site.client.post(f"/v1/keys/{key.id}/revoke", headers=site.admin)
        assert elsewhere.at_hand(asked) is None
        with pytest.raises(NotAuthenticated):
            elsewhere.identified(asked)
    assert site.client.get("/v1/facets", headers=bearer(written)).status_code == 401
    assert first.json()["state"] == "revoked"
    assert time.monotonic() - start < 60
    again = site.client.post(f"/v1/keys/{key.id}/revoke", headers=site.admin)
    used = ("last_used_at",)
    assert {**again.json(), **dict.fromkeys(used)} == {**first.json(), **dict.fromkeys(used)}
    events = [
        audit_event(row)
        for row in site.log.between()
        if row.document["action"] == "POST /v1/keys/{id}/revoke"
        and row.document["about"] == {"key": key.id, "scopes": ["search"]}
    ]
    assert [one["outcomeDesc"] for one in events] == ["ok (102)", "ok (200)"] * 2
    assert {one["subtype"][0]["code"] for one in events} == {"110137"}


def test_without_the_scope_and_without_keys_nothing_is_told(site: Site, client) -> None:
    _, search = site.keys.create("search", [Scope.SEARCH, Scope.AUDIT, Scope.INDEX])
    for method, path in (
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("POST", "/v1/keys/0123456789abcdef/revoke"),
        ("GET", "/keys"),
        ("POST", "/keys"),
    ):
        refused = site.client.request(method, path, headers=bearer(search))
        assert refused.status_code == 403
        # One who needs no key is not given what needs one.
        refused = client.request(method, path)
        assert refused.status_code == 403
        assert "only a key gives" in refused.json()["detail"]


def test_the_page_makes_a_key_and_shows_it_once(site: Site, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    session = signed_in(site.client, site.admin["Authorization"][7:], "")
    front = site.client.get("/keys", headers=session)
    assert (front.status_code, front.headers["cache-control"]) == (200, "no-store")
    assert Page(front.text).all("a", href="keys")
    offered = {one["value"] for one in Page(front.text).all("input", name="scopes")}
    assert offered == {"search", "admin"}
    form = {"action": "create", "name": "<b>w</b>", "scopes": ["search"], "expires": "30d"}
    for token in ({}, {"csrf": "0" * 64}):
        assert site.client.post("/keys", headers=session, data=form | token).status_code == 403
    form["csrf"] = csrf(front.text)
    stranger = {**session, "Origin": "https://other.example"}
    assert site.client.post("/keys", headers=stranger, data=form).status_code == 403
    made = site.client.post("/keys", headers={**session, "Accept-Encoding": "gzip"}, data=form)
    assert (made.status_code, made.headers["cache-control"]) == (200, "no-store")
    assert "content-encoding" not in made.headers
    (written,) = SECRET.findall(made.text)
    assert not Page(made.text).all("b")
    assert "<b>w</b>" in Page(made.text).text
    assert site.client.get("/v1/facets", headers=bearer(written)).status_code == 200
    # And nowhere else: not on the page again, not in the log, not on the disk.
    assert not SECRET.search(site.client.get("/keys", headers=session).text)
    assert written[21:] not in caplog.text
    # In another process: one that opens a file of SQLite's and closes it loses its locks on it.
    looked = ["grep", "-raqF", "-e", written[21:], str(site.settings.data_dir)]
    assert subprocess.run(looked).returncode == 1
    for wrong in ({"scopes": ["send"]}, {"name": ""}, {"scopes": []}, {"expires": "1d"}):
        refused = site.client.post("/keys", headers=session, data=form | wrong)
        assert refused.status_code in (400, 403, 422)
        assert "<h1>" in refused.text


def test_the_page_asks_before_it_revokes(site: Site) -> None:
    key, written = site.keys.create("old", [Scope.SEARCH])
    session = signed_in(site.client, site.admin["Authorization"][7:], "")
    asks = site.client.get("/keys", headers=session, params={"revoke": key.id})
    assert "Revoke key “old”?" in asks.text
    assert site.client.get("/v1/facets", headers=bearer(written)).status_code == 200
    form = {"action": "revoke", "id": key.id}
    assert site.client.post("/keys", headers=session, data=form).status_code == 403
    form["csrf"] = csrf(asks.text)
    done = site.client.post("/keys", headers=session, data=form)
    assert (done.status_code, done.headers["location"]) == (303, f"keys#key-{key.id}")
    assert site.client.get("/v1/facets", headers=bearer(written)).status_code == 401
    assert site.rows("POST /keys")[-1]["about"]["key"] == key.id
    for unknown in ("0123456789abcdef", "<script>"):
        page = site.client.get("/keys", headers=session, params={"revoke": unknown})
        assert page.status_code == 404
        assert not Page(page.text).all("script", src=None)
        gone = site.client.post("/keys", headers=session, data={**form, "id": unknown})
        assert gone.status_code == 404


def test_administrators_need_not_see_images(site: Site) -> None:
    _, written = site.keys.create("keeper", [Scope.ADMIN])
    session = signed_in(site.client, written, "keys")
    page = Page(site.client.get("/keys", headers=session).text)
    assert [one["href"] for one in page.all("a") if one["href"] in ("jobs", "keys", "audit")] == [
        "keys"
    ]
    for address in ("/", "/audit", "/jobs", "/studies/1.2.4.0"):
        refused = site.client.get(address, headers=session)
        assert (refused.status_code, refused.headers["content-type"][:9]) == (403, "text/html")
        assert "asks for the scope" in Page(refused.text).text
        assert Page(refused.text).all("a", href=f"./{'../' * (address.count('/') - 1)}keys")
    # A program is told by a document, as ever.
    plain = site.client.get("/audit", headers={**session, "Accept": "*/*"})
    assert (plain.status_code, plain.json()["code"]) == (403, "not-allowed")
    _, reader = site.keys.create("reader", [Scope.SEARCH])
    page = Page(site.client.get("/", headers=signed_in(site.client, reader, "")).text)
    assert not page.all("a", href="keys")
    assert not page.all("a", href="audit")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_revocation_by_one_service_holds_in_another_process(site: Site) -> None:
    key, written = site.keys.create("leaving", [Scope.SEARCH])
    place = ["--data-dir", str(site.settings.data_dir), "--model", str(site.settings.model)]
    other = subprocess.Popen(
        [sys.executable, "-m", "api", "serve", "--port", "0", *place],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert other.stdout is not None
        address = next(
            found[0]
            for line in other.stdout
            if (found := re.search(r"http://127\.0\.0\.1:\d+", line)) is not None
        )
        with httpx2.Client(base_url=address, headers=bearer(written), timeout=60) as client:
            assert client.get("/v1/whoami").status_code == 200
            done = site.client.post(f"/v1/keys/{key.id}/revoke", headers=site.admin)
            assert (done.status_code, done.json().get("state")) == (200, "revoked"), done.text
            assert client.get("/v1/whoami").status_code == 401
    finally:
        other.terminate()
        other.communicate(timeout=60)


def test_the_lines_of_the_page_on_security_are_answered(indexed, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    begin = page.index("## Keys and the audit log over HTTP")
    lines = [line for line in page[begin:].splitlines() if line.startswith("curl ")]
    assert len(lines) == 7
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, written = Keys(database).create("both", [Scope.ADMIN, Scope.AUDIT, Scope.SEARCH])
    made: dict[str, Any] = {}
    with served(create_service(settings)) as address:
        for line in lines:
            asked = line.replace("http://127.0.0.1:8000", address).replace(
                "/ID/", f"/{made.get('id')}/"
            )
            done = subprocess.run(
                ["bash", "-c", asked.replace("curl ", "curl -sS --fail-with-body -m 60 ", 1)],
                cwd=tmp_path,
                env={**os.environ, "KEY": written},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            if "ward 4" in line:
                made = json.loads(done.stdout)
            elif "/revoke" in line:
                ended = json.loads(done.stdout)
                assert (ended["id"], ended["state"]) == (made["id"], "revoked")
    assert json.loads((tmp_path / "heads.json").read_text())["whole"]
    assert '"AuditEvent"' in (tmp_path / "accesses.ndjson").read_text()
