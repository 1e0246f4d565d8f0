"""The audit log over HTTP and on its page: searched, verified, exported, of one tenant."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from fhir.resources.R4B.auditevent import AuditEvent
from services.loopback import LoopbackClient
from services.running import served
from sqlalchemy import text
from test_api_page import Page
from test_keys_over_http import bearer, csrf, signed_in

from api.audit import search
from api.audit.log import AuditLog, open_log
from api.audit.rows import Entry, Head, Who
from api.audit.schema import AUDIT
from api.audit.search import Place
from api.http.routes.audit_log import _exported
from api.security.keys import Keys
from api.security.policy import Scope
from api.security.seen import Seen
from api.service import create_service
from engine.errors import QueryError
from engine.settings import Settings
from indexer.ledger.database import Database

IMAGE = "9d4f5c3e-6a3b-5b0e-8f52-0c7e1f0a6d11"
ROUTES = ("/v1/audit", "/v1/audit/export", "/audit")


@dataclass(frozen=True)
class Site:
    """A service whose log has rows of two tenants. officer, north: headers of who reads it."""

    client: TestClient
    settings: Settings
    log: AuditLog
    officer: dict[str, str]
    written: str
    north: dict[str, str]

    def rows(self, **asked: Any) -> list[dict[str, Any]]:
        answer = self.client.get("/v1/audit", headers=self.officer, params=asked)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["rows"]
        return found


def entries(tenant: str, count: int) -> list[Entry]:
    who = Who("key", "5f0c3a91d27be468", 'wärd "3"', tenant)
    seen = Seen(("1.2.4.9",), (IMAGE,), 3, "foreign")
    kinds = [(200, "ok"), (404, "refused"), (500, "failed")]
    return [
        Entry(who, "POST /v1/search", status, outcome, seen, "192.0.2.9")
        for status, outcome in (kinds[number % 3] for number in range(count))
    ]


def add(log: AuditLog, tenant: str, count: int, chain: str, after: Head | None = None) -> Head:
    rows = log.following(chain, after, entries(tenant, count))
    log.add(rows)
    return rows[-1].head


@pytest.fixture(scope="module")
def site(indexed, store_root: Path) -> Iterator[Site]:
    settings = indexed.copy(store_root / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        _, officer = keys.create("officer", [Scope.AUDIT])
        _, north = keys.create("north", [Scope.AUDIT], tenant="north")
    with open_log(settings) as log:
        # Both in one chain, as one process writes them.
        head = add(log, "default", 6, "aaaa")
        add(log, "north", 4, "aaaa", head)
        with LoopbackClient(create_service(settings), follow_redirects=False) as client:
            yield Site(client, settings, log, bearer(officer), officer, bearer(north))


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"who": "5f0c3a91d27be468"}, 6),
        ({"who": 'wärd "3"'}, 6),
        ({"who": "wärd"}, 0),
        ({"who": "\x00"}, 0),
        ({"route": "v1/SEARCH", "who": "5f0c3a91d27be468"}, 6),
        ({"study": "1.2.4.9"}, 6),
        ({"study": "1.2.4.9", "outcome": "refused"}, 2),
        ({"image": IMAGE.upper()}, 6),
        ({"image": "%"}, 0),
        ({"verdict": "foreign"}, 6),
        ({"verdict": "known"}, 0),
        ({"study": "1.2.4.9", "since": "2020-01-01", "until": "9999-12-31T23:00+00:00"}, 6),
        ({"study": "1.2.4.9", "until": "2020-01-01"}, 0),
        ({"study": "", "verdict": "foreign", "until": ""}, 6),
    ],
    ids=str,
)
def test_rows_are_found_by_all_that_is_given_and_of_the_own_tenant(site: Site, asked, count):
    rows = [row for row in site.rows(**asked) if row["action"] == "POST /v1/search"]
    assert len(rows) == count
    assert {row["who"]["tenant"] for row in rows} <= {"default"}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"outcome": "good"}, 400),
        ({"verdict": "good"}, 400),
        ({"since": "soon"}, 400),
        ({"until": "9999-12-31T23:59-14:00"}, 400),
        ({"page": "x"}, 400),
        ({"page": "WyIiLCIiLDBd"}, 400),
        ({"page": "\x00"}, 400),
        ({"limit": 0}, 422),
        ({"limit": 10**6}, 422),
        ({"study": "x" * 201}, 422),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_said(site: Site, asked, status) -> None:
    answer = site.client.get("/v1/audit", headers=site.officer, params=asked)
    assert answer.status_code == status
    if "limit" not in asked:
        page = site.client.get("/audit", headers=site.officer, params=asked)
        assert (page.status_code, page.headers["content-type"][:9]) == (status, "text/html")


def test_places_of_other_rows_are_parsed_and_nothing_else_is() -> None:
    place = Place("2026-03-01T09:05:00.120000+00:00", "5f0c3a91d27be468", 41)
    assert Place.parse(str(place)) == place
    for wrong in ("", "x", str(place)[:-4], str(Place(place.at, "", 1)), str(Place("", "a", 1))):
        with pytest.raises(QueryError):
            Place.parse(wrong)
    for seq in (-1, 2**63, True):
        with pytest.raises(QueryError):
            Place.parse(str(Place(place.at, "aaaa", seq)))


def test_pages_have_every_row_once_the_latest_first(site: Site, monkeypatch) -> None:
    until = datetime.now(UTC).isoformat()
    whole = [(row["chain"], row["seq"]) for row in site.rows(until=until, verdict="foreign")]
    assert whole == sorted(whole, reverse=True)

    def pages(**asked: Any) -> list[int]:
        found, sizes, page = [], [], None
        while True:
            params = {**asked, "until": until} | ({"page": page} if page else {})
            answer = site.client.get("/v1/audit", headers=site.officer, params=params).json()
            found += [(row["chain"], row["seq"]) for row in answer["rows"]]
            sizes.append(len(answer["rows"]))
            if (page := answer["next_page"]) is None:
                assert found == whole
                return sizes

    assert pages(verdict="foreign", limit=4) == [4, 2]
    assert pages(verdict="foreign", limit=6) == [6]
    # Where few match, a page may end before it is full.
    monkeypatch.setattr(search, "_MOST_READ", 4)
    assert sum(pages(route="POST /v1/search", limit=50)) == 6


def test_reading_the_log_is_itself_in_it(site: Site) -> None:
    site.rows(study="1.2.4.9", image=IMAGE)
    row = site.rows(limit=1)[0]
    assert (row["action"], row["who"]["name"]) == ("GET /v1/audit", "officer")
    assert (row["studies"], row["images"], row["results"]) == (["1.2.4.9"], [IMAGE], 6)
    site.rows(study="Hidden^Somebody", image="HIDDEN-1")
    row = site.rows(limit=1)[0]
    assert (row["studies"], row["images"]) == ([], [])
    site.client.get("/v1/audit/export", headers=site.officer)
    site.client.post("/v1/audit/verify", headers=site.officer)
    last, before = site.rows(limit=2)
    assert (before["action"], last["action"]) == ("GET /v1/audit/export", "POST /v1/audit/verify")
    assert last["results"] > 10


def test_an_export_has_the_events_of_the_own_tenant_in_order(site: Site) -> None:
    answer = site.client.get("/v1/audit/export", headers=site.officer)
    assert answer.headers["content-type"] == "application/fhir+ndjson"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.endswith("\n")
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["id"] for one in events[:6]] == [f"aaaa-{number}" for number in range(6)]
    assert {one["source"]["site"] for one in events} == {"default"}
    assert [one["recorded"] for one in events] == sorted(one["recorded"] for one in events)
    for one in events[:6]:
        AuditEvent.model_validate(one)
    theirs = site.client.get("/v1/audit/export", headers=site.north).text.splitlines()
    assert {json.loads(one)["source"]["site"] for one in theirs} == {"north"}
    assert len(theirs) >= 4
    asked = {"until": "2020-01-01"}
    none = site.client.get("/v1/audit/export", headers=site.officer, params=asked)
    assert (none.status_code, none.text) == (200, "")
    head = site.client.head("/v1/audit/export", headers=site.officer)
    assert (head.status_code, head.headers["content-type"]) == (200, "application/fhir+ndjson")


def test_an_export_is_written_as_it_is_read(tmp_path: Path, indexed) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "data"})
    with open_log(settings) as log:
        for number in range(6):
            add(log, "default", 500, f"c{number}")
        parts = _exported(log, "default", None, _later())
        next(parts)
        tracemalloc.start()
        sizes = [len(part) for part in parts]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # A few hundred rows at a time, whatever there are.
    assert sum(sizes) > 3_000_000
    assert most < 3_000_000


@pytest.mark.slow
def test_an_export_ends_when_its_reader_loses_the_right_to_it(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    with open_log(settings) as log:
        for number in range(12):
            add(log, "default", 1000, f"c{number}")
    with (
        Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database,
        served(create_service(settings)) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        key, written = Keys(database).create("officer", [Scope.AUDIT])
        got = 0
        with (
            pytest.raises(httpx2.RemoteProtocolError),
            client.stream("GET", "/v1/audit/export", headers=bearer(written)) as answer,
        ):
            for number, piece in enumerate(answer.iter_raw()):
                if number == 0:
                    Keys(database).revoke(key.id)
                got += len(piece)
        assert 0 < got < 12_000_000


def _later() -> Any:
    return search.time_of("9000-01-01", "until")


def test_a_log_that_was_tampered_with_is_told_by_chain(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, written = Keys(database).create("officer", [Scope.AUDIT])
    officer = bearer(written)
    with (
        open_log(settings) as log,
        Database(f"sqlite:///{settings.data_dir / 'audit.sqlite'}", AUDIT) as database,
        LoopbackClient(create_service(settings), follow_redirects=False) as client,
    ):
        head = add(log, "default", 2, "aaaa")
        add(log, "north", 4, "bbbb")
        client.get("/v1/audit", headers=officer)
        # No chain begins after these.
        add(log, "default", 2, "aaaa", head)
        whole = client.post("/v1/audit/verify", headers=officer).json()
        assert (whole["whole"], whole["flaws"], whole["flaws_in_all"]) == (True, [], 0)
        assert {"aaaa", "bbbb"} <= set(whole["heads"])
        assert whole["heads"]["bbbb"]["seq"] == 3
        with database.begin() as connection:
            cut = "DELETE FROM audit WHERE chain = 'aaaa' AND seq = 3"
            changed = "UPDATE audit SET body = '[]' WHERE chain = 'bbbb' AND seq = 1"
            for statement in (cut, changed):
                connection.execute(text(statement))
        told = client.post("/v1/audit/verify", headers=officer).json()
        assert [(one["chain"], one["row"]) for one in told["flaws"]] == [("bbbb", 1)]
        assert (told["heads"]["aaaa"]["whole"], told["heads"]["bbbb"]["whole"]) == (True, False)
        # What was cut off shows by the answer of before alone, sent as it was got.
        told = client.post("/v1/audit/verify", headers=officer, json=whole).json()
        assert ("aaaa", 3) in [(one["chain"], one["row"]) for one in told["flaws"]]
        assert not told["heads"]["aaaa"]["whole"]
        for wrong in ([], {"heads": []}, {"heads": {"a": {"seq": -1, "hash": "x"}}}):
            refused = client.post("/v1/audit/verify", headers=officer, json=wrong)
            assert refused.status_code == 422
        # The rows that are left can still be read.
        for route in ROUTES:
            assert client.get(route, headers=officer).status_code == 200
        session = signed_in(client, written, "audit")
        form = {"action": "verify", "csrf": csrf(client.get("/audit", headers=session).text)}
        kept = {"heads": ("heads.json", json.dumps(whole).encode())}
        shown = client.post("/audit", headers=session, data=form, files=kept)
        assert "The log is not whole" in Page(shown.text).text
        assert "it is missing; the chain ends with row 2" in Page(shown.text).text


def test_the_page_searches_verifies_and_links_to_the_export(site: Site) -> None:
    session = signed_in(site.client, site.written, "audit")
    asked = {"study": "1.2.4.9", "verdict": "foreign", "since": ""}
    front = site.client.get("/audit", headers=session, params=asked)
    page = Page(front.text)
    assert len(page.all("time")) == 6
    assert 'wärd "3"' in page.text
    assert page.all("input", name="study", value="1.2.4.9")
    asked = {"since": "2020-01-01T00:00", "route": '"><script>alert(1)</script>'}
    dated = Page(site.client.get("/audit", headers=session, params=asked).text)
    assert len(dated.all("script")) == 1
    (link,) = dated.all("a", download="accesses.ndjson")
    exported = site.client.get("/" + (link["href"] or ""), headers=session)
    assert exported.headers["content-type"] == "application/fhir+ndjson"
    form = {"action": "verify"}
    assert site.client.post("/audit", headers=session, data=form).status_code == 403
    form["csrf"] = csrf(front.text)
    shown = site.client.post("/audit", headers=session, data=form)
    assert "The log is whole" in Page(shown.text).text
    assert "aaaa" in Page(shown.text).text
    form["action"] = "heads"
    saved = site.client.post("/audit", headers=session, data=form)
    assert "attachment" in saved.headers["content-disposition"]
    assert saved.json()["heads"]["aaaa"]["seq"] == 9
    wrong = {"heads": ("heads.json", b"no heads")}
    refused = site.client.post("/audit", headers=session, data=form, files=wrong)
    assert (refused.status_code, refused.headers["content-type"][:9]) == (400, "text/html")


def test_without_the_scope_and_without_keys_nothing_is_told(site: Site, client) -> None:
    with Database(f"sqlite:///{site.settings.data_dir / 'ledger.sqlite'}") as database:
        _, written = Keys(database).create("other", [Scope.SEARCH, Scope.ADMIN])
    asked = [("GET", path) for path in ROUTES]
    for method, path in [*asked, ("POST", "/v1/audit/verify"), ("POST", "/audit")]:
        assert site.client.request(method, path, headers=bearer(written)).status_code == 403
        refused = client.request(method, path)
        assert refused.status_code == 403
        assert "only a key gives" in refused.json()["detail"]
