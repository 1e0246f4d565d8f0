"""What the audit log says of the service: a row of every access, or no answer."""

import asyncio
import json
import re
import sqlite3
import string
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import HOSTILE_LABEL, dicom, stripes
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings as examples, strategies as st
from services.loopback import LoopbackClient
from services.postgres import Postgres
from starlette.requests import Request

from api.audit.export import audit_event
from api.audit.log import AuditLog, open_log
from api.audit.verify import verify
from api.http.addresses import Addresses
from api.http.audit import ALWAYS, Audited, named_by
from api.security.access import COOKIE
from api.security.keys import Keys
from api.security.policy import POLICY, PUBLIC, Scope
from api.security.seen import Seen, tell
from api.service import create_service
from engine.errors import AuditError
from engine.settings import AuditSettings, LedgerSettings, ServerSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.database import Database

NOWHERE = "00000000-0000-4000-8000-000000000000"
RECORDED = [route for route, needed in POLICY.items() if needed is not PUBLIC]
FORMS = {
    ("POST", "/v1/search"): {"id": "{id}", "k": "4"},
    ("POST", "/"): {"id": "{id}"},
    ("POST", "/v1/recommend"): {"like": "{id}", "exclude": "none", "k": "3"},
}
"""What a route that takes a form is asked, so that it answers."""


@dataclass(frozen=True)
class Site:
    """A service with keys, and its audit log. image, study: of one that is indexed. named: by what
    is in the index, all ids and UIDs."""

    client: TestClient
    settings: Settings
    log: AuditLog
    right: dict[str, str]
    key: str
    image: str
    study: str
    images: frozenset[str]
    studies: frozenset[str]

    def rows(self) -> list[dict[str, Any]]:
        return [row.document for row in self.log.between()]

    def last(self) -> dict[str, Any]:
        return next(iter(self.log.between(latest_first=True))).document


def bearer(written: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {written}"}


@pytest.fixture(scope="module")
def site(indexed, store_root: Path) -> Iterator[Site]:
    settings = indexed.copy(store_root / "data")
    for left in settings.data_dir.glob("audit.sqlite*"):
        left.unlink()
    with Archive(settings) as archive:
        points = list(archive.store.scroll(Filter()))
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        key, right = Keys(database).create("ward 3", list(Scope))
    one = next(point for point in points if point.record.study is not None)
    assert one.record.study is not None
    with (
        LoopbackClient(create_service(settings), follow_redirects=False) as client,
        open_log(settings) as log,
    ):
        yield Site(
            client,
            settings,
            log,
            bearer(right),
            key.id,
            one.id,
            one.record.study,
            frozenset(point.id for point in points),
            frozenset(point.record.study for point in points if point.record.study),
        )


def asked(site: Site, route: tuple[str, str]) -> dict[str, Any]:
    """A request for the route, which it can answer as far as this test knows it."""
    method, path = route
    form = {name: value.replace("{id}", site.image) for name, value in FORMS.get(route, {}).items()}
    path = path.replace("{id}", site.image).replace("{uid}", site.study)
    made: dict[str, Any] = {"method": method, "url": re.sub(r"\{[^}]*\}", "1", path)}
    return made | ({"data": form} if form else {})


@pytest.mark.parametrize("route", RECORDED, ids=" ".join)
def test_every_route_leaves_a_row_that_names_what_it_showed(site: Site, route) -> None:
    before = len(site.rows())
    answer = site.client.request(**asked(site, route), headers=site.right)
    rows = site.rows()[before:]
    assert len(rows) == 1, "an access without a row of its own"
    (row,) = rows
    assert row["action"] == " ".join(route)
    assert row["who"] == {"kind": "key", "id": site.key, "name": "ward 3", "tenant": "default"}
    assert (row["status"], row["address"]) == (answer.status_code, "127.0.0.1")
    assert row["outcome"] == ("ok" if answer.status_code < 400 else row["outcome"])
    # Who reads the log has access to none of the images that are named there.
    if answer.status_code == 200 and "audit" not in route[1]:
        kind = answer.headers["content-type"]
        shown = answer.text if "text" in kind or "json" in kind else ""
        assert {one for one in site.images if one in shown} <= set(row["images"])
        studies = {one for one in site.studies if f'"{one}"' in shown}
        assert studies <= set(row["studies"])
    refused = site.client.request(**asked(site, route))
    row = site.last()
    assert (row["status"], row["who"]["kind"]) == (refused.status_code, "unknown")
    assert row["outcome"] == ("refused" if refused.status_code == 401 else "ok")
    assert row["images"] in ([], [site.image])


@pytest.mark.parametrize("route", FORMS, ids=" ".join)
def test_the_known_forms_are_answered(site: Site, route) -> None:
    answer = site.client.request(**asked(site, route), headers=site.right)
    assert answer.status_code in (200, 303), answer.text


def test_a_search_leaves_its_hits_and_their_number(site: Site) -> None:
    data = {"id": site.image, "k": "5"}
    hits = site.client.post("/v1/search", headers=site.right, data=data).json()["hits"]
    row = site.last()
    assert row["images"] == [site.image, *(hit["id"] for hit in hits)]
    assert (row["results"], row["images_in_all"]) == (5, 6)
    assert row["studies_in_all"] == len({hit["study"] for hit in hits if hit["study"]})


def test_the_study_that_was_asked_for_is_named(site: Site) -> None:
    # Nothing of it is shown.
    asked = {"study": site.study, "exclude_own": "study", "k": 1, "where": ["modality=PT"]}
    answer = site.client.post("/v1/search", headers=site.right, json=asked)
    assert (answer.status_code, answer.json()["hits"]) == (200, [])
    assert site.last()["studies"] == [site.study]


def test_the_verdict_is_in_the_row(foreign_client, foreign_settings: Settings) -> None:
    upload = {"file": ("a.dcm", dicom(stripes(1), 1, modality="CT", part="CHEST"))}
    assert foreign_client.post("/v1/search", files=upload).json()["ood"]["foreign"]
    with open_log(foreign_settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert row["verdict"] == "foreign"


def test_refusals_say_who_was_refused_what(site: Site) -> None:
    with Database(f"sqlite:///{site.settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        gone, revoked = keys.create("gone", [Scope.SEARCH])
        keys.revoke(gone.id)
        indexing, no_search = keys.create("indexing", [Scope.INDEX])
        other, elsewhere = keys.create("other", [Scope.SEARCH], tenant="elsewhere")
    address = f"/v1/images/{site.image}"
    cases = [
        (revoked, 401, {"kind": "unknown", "id": gone.id, "name": None, "tenant": None}),
        (revoked + "x", 401, {"kind": "unknown", "id": None, "name": None, "tenant": None}),
        (
            no_search,
            403,
            {"kind": "key", "id": indexing.id, "name": "indexing", "tenant": "default"},
        ),
        (
            elsewhere,
            404,
            {"kind": "key", "id": other.id, "name": "other", "tenant": "elsewhere"},
        ),
    ]
    for written, status, who in cases:
        assert site.client.get(address, headers=bearer(written)).status_code == status
        row = site.last()
        assert (row["status"], row["outcome"], row["who"]) == (status, "refused", who)
        # Whose image was asked for is known, although none was shown.
        assert row["images"] == [site.image]
        assert revoked[21:] not in json.dumps(row)
    # A bad key is no public matter, wherever it is tried.
    assert site.client.get("/healthz", headers=bearer(revoked)).status_code == 401
    assert site.last()["action"] == "GET /healthz"


def test_what_shows_nothing_has_no_row(site: Site) -> None:
    before = len(site.rows())
    for address in ("/healthz", "/openapi.json", "/static/style.css", "/login", "/favicon.ico"):
        for headers in ({}, site.right):
            site.client.get(address, headers=headers)
    site.client.put("/v1/facets", headers=site.right)
    assert len(site.rows()) == before
    assert {route for route, needed in POLICY.items() if needed is PUBLIC} == {
        ("GET", "/healthz"),
        ("GET", "/openapi.json"),
        ("GET", "/static/{path:path}"),
        ("GET", "/login"),
        ("GET", "/login/oidc"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        # Where an EHR sends people who have yet to sign in.
        ("GET", "/smart/launch"),
        ("GET", "/smart/callback"),
        # The empty frame; what it shows comes by POST, with a token.
        ("GET", "/embed"),
        *ALWAYS,
    }, "a new public route: does it show anything of an image?"


def test_head_leaves_a_row(site: Site) -> None:
    before = len(site.rows())
    site.client.head(f"/v1/images/{site.image}", headers=site.right)
    assert [row["action"] for row in site.rows()[before:]] == ["HEAD /v1/images/{id}"]


def test_signing_in_and_out_leave_rows(site: Site) -> None:
    written = site.right["Authorization"].removeprefix("Bearer ")
    assert site.client.post("/login", data={"key": written[:-1] + "!"}).status_code == 401
    row = site.last()
    assert (row["action"], row["outcome"], row["who"]["kind"]) == (
        "POST /login",
        "refused",
        "unknown",
    )
    entered = site.client.post("/login", data={"key": written})
    row = site.last()
    assert (row["outcome"], row["who"]["kind"], row["who"]["id"]) == ("ok", "session", site.key)
    cookie = {"Cookie": f"{COOKIE}={entered.cookies[COOKIE]}"}
    page = site.client.get("/", headers=cookie)
    assert site.last()["who"]["kind"] == "session"
    token = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert token is not None
    left = site.client.post("/logout", headers=cookie, data={"csrf": token[1]})
    assert left.status_code == 303
    row = site.last()
    assert (row["action"], row["who"]["id"]) == ("POST /logout", site.key)
    assert entered.cookies[COOKIE] not in json.dumps(site.rows())
    site.client.cookies.clear()


def test_what_a_limit_refuses_has_a_row_with_the_address_of_the_client(
    indexed, tmp_path: Path
) -> None:
    server = ServerSettings(
        max_upload_bytes=1000,
        max_header_bytes=2048,
        requests_per_second=0.01,
        burst=2,
        trusted_proxies=("127.0.0.1",),
    )
    settings = indexed.copy(tmp_path / "data").model_copy(update={"server": server})
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        key, written = Keys(database).create("ward", [Scope.SEARCH])
    sent = {**bearer(written), "X-Forwarded-For": "203.0.113.1, 192.0.2.9"}
    large = {"file": b"x" * 200_000}
    with LoopbackClient(create_service(settings)) as client, open_log(settings) as log:
        statuses = [
            client.post("/v1/search", headers={**sent, "X-Long": "x" * 3000}).status_code,
            client.post("/v1/search", headers=sent, files=large).status_code,
            client.post("/v1/search", headers=sent, json={"id": NOWHERE}).status_code,
            client.post("/v1/search", headers=sent, json={"id": NOWHERE}).status_code,
        ]
        rows = [row.document for row in log.between()]
    assert statuses == [431, 413, 404, 429] == [row["status"] for row in rows]
    assert {row["address"] for row in rows} == {"192.0.2.9"}
    assert {row["who"]["id"] for row in rows} == {key.id}
    assert [row["who"]["kind"] for row in rows] == ["unknown", "key", "key", "key"]
    assert len({row["request"] for row in rows} - {None}) == 4


@pytest.mark.parametrize("field", ["sop", "series", "study"])
def test_what_was_removed_is_named(indexed, tmp_path: Path, field: str) -> None:
    settings = indexed.copy(tmp_path / "data")
    with Archive(settings) as archive:
        records = [point.record for point in archive.store.scroll(Filter())]
    one = next(record for record in records if record.study is not None)
    with LoopbackClient(create_service(settings)) as client, open_log(settings) as log:
        asked = {field: getattr(one, field)}
        assert client.delete("/v1/instances", params=asked).json()["points"] > 0
        begun, row = log.between()
    assert [begun.document["status"], row.document["status"]] == [102, 200]
    assert begun.document["studies"] == row.document["studies"] == [one.study]
    assert row.document["results"] > 0
    event = audit_event(row)
    assert (event["type"]["code"], event["action"]) == ("110105", "D")


def test_the_job_is_named(site: Site) -> None:
    for method, path, action in (
        ("GET", "/v1/jobs/1", "R"),
        ("GET", "/v1/jobs/1/report", "R"),
        ("POST", "/v1/jobs/1/cancel", "U"),
    ):
        site.client.request(method, path, headers=site.right)
        row = next(iter(site.log.between(latest_first=True)))
        assert row.document["about"] == {"job": 1}
        event = audit_event(row)
        assert event["action"] == action
        told = [one["what"]["identifier"] for one in event["entity"] if "what" in one]
        assert {"system": "urn:precedent:job", "value": "1"} in told
    for strange in ("x", "١", "9" * 40, site.image):
        site.client.get(f"/v1/jobs/{strange}", headers=site.right)
        assert site.last()["about"] == {}


HIDDEN = ["Hidden", "Somebody", "HIDDEN-"]
TEXT = st.text(string.ascii_letters + string.digits + " =^%<>\"'\\\0é\ud800", max_size=40)


@examples(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.lists(TEXT.map(lambda value: f"patient={value}"), max_size=2),
    image=TEXT,
    path=TEXT,
    name=TEXT,
)
def test_nothing_of_a_patient_or_of_the_question_is_in_a_row(
    site: Site, where, image, path, name
) -> None:
    def typed(value: str) -> str:
        return value.encode("utf-8", "replace").decode()

    mark = "QUESTION-7731-"
    before = len(site.rows())
    upload = {"file": (mark + typed(name), dicom(stripes(51), 1, modality="CT", part="CHEST"))}
    terms = [mark + typed(one) for one in where]
    site.client.post("/v1/search", headers=site.right, files=upload, data={"where": terms})
    site.client.post("/v1/search", headers=site.right, files=upload)
    site.client.post("/v1/search", headers=site.right, data={"id": mark + typed(image)})
    site.client.post("/v1/recommend", headers=site.right, data={"study": mark + typed(image)})
    site.client.get("/v1/facets", headers=site.right, params={"where": terms})
    site.client.get(f"/v1/images/{mark}{len(path)}", headers=site.right)
    site.client.get(f"/v1/studies/{mark}{len(path)}/related", headers=site.right)
    site.client.get("/", headers=site.right, params={"like": mark + typed(image)})
    rows = site.rows()[before:]
    assert len(rows) == 8
    written = json.dumps(rows)
    for hidden in (mark, *HIDDEN, HOSTILE_LABEL):
        assert hidden not in written
    for row in rows:
        assert set(row["images"]) <= site.images
        assert set(row["studies"]) <= site.studies


def test_the_log_of_it_all_is_whole(site: Site) -> None:
    assert verify(site.log, site.log.heads()).flaws == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.audit.log._PATIENCE_S", 0.2)


def broken(file: Path, how: str) -> Any:
    """Breaks a log; returns what mends it."""
    connection = sqlite3.connect(file, isolation_level=None)
    if how == "locked":
        connection.execute("BEGIN IMMEDIATE")
    elif how == "gone":
        connection.execute("ALTER TABLE audit RENAME TO elsewhere")
    else:
        connection.execute(
            "CREATE TRIGGER no_more BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END"
        )

    def mend() -> None:
        if how == "locked":
            connection.execute("ROLLBACK")
        elif how == "gone":
            connection.execute("ALTER TABLE elsewhere RENAME TO audit")
        else:
            connection.execute("DROP TRIGGER no_more")
        connection.close()

    return mend


@pytest.mark.parametrize("how", ["locked", "gone", "refusing"])
def test_without_a_row_nothing_is_shown(indexed, tmp_path: Path, impatient, how: str) -> None:
    settings = indexed.copy(tmp_path / "data")
    with LoopbackClient(create_service(settings)) as client:
        found = client.post("/v1/recommend", data={"study": "1.2.4.0"})
        image = found.json()["hits"][0]["id"]
        mend = broken(settings.data_dir / "audit.sqlite", how)
        for method, address, data in (
            ("GET", f"/v1/images/{image}", None),
            ("GET", f"/v1/images/{image}/thumbnail", None),
            ("POST", "/v1/search", {"id": image}),
            ("GET", "/", None),
            ("GET", "/v1/images/none", None),
        ):
            refused = client.request(method, address, data=data)
            assert refused.status_code == 503
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["retry-after"] == "5"
            assert "content-security-policy" in refused.headers
            told = refused.json()
            assert (told["code"], told["instance"]) == ("audit", address)
            assert told["request_id"] == refused.headers["x-request-id"]
            assert str(settings.data_dir) not in refused.text
            assert "1.2." not in refused.text
        assert client.get("/healthz").status_code == 200
        mend()
        assert client.get(f"/v1/images/{image}").status_code == 200
    with open_log(settings) as log:
        assert verify(log).flaws == []


@pytest.mark.parametrize("how", ["locked", "gone", "refusing"])
def test_without_a_row_nothing_is_removed(indexed, tmp_path: Path, impatient, how: str) -> None:
    settings = indexed.copy(tmp_path / "data")
    with LoopbackClient(create_service(settings)) as client:
        assert client.get("/v1/facets").json()["count"] == 35
        mend = broken(settings.data_dir / "audit.sqlite", how)
        asked = {"study": "1.2.4.0"}
        assert client.delete("/v1/instances", params=asked).status_code == 503
        mend()
        assert client.get("/v1/facets").json()["count"] == 35
        assert client.delete("/v1/instances", params=asked).json()["points"] == 2


def test_without_an_audit_log_images_are_removed(indexed, tmp_path: Path) -> None:
    update = {"audit": AuditSettings(enabled=False)}
    settings = indexed.copy(tmp_path / "data").model_copy(update=update)
    with LoopbackClient(create_service(settings)) as client:
        removed = client.delete("/v1/instances", params={"study": "1.2.4.0"})
        assert removed.json()["points"] == 2
    assert not (settings.data_dir / "audit.sqlite").exists()


@pytest.mark.slow
def test_a_database_server_that_is_away_lets_nothing_out(indexed, tmp_path: Path) -> None:
    with Postgres() as server:
        url = server.create_database()
        ledger = LedgerSettings.model_validate({"url": url})
        settings = indexed.copy(tmp_path / "data").model_copy(update={"ledger": ledger})
        with LoopbackClient(create_service(settings)) as client:
            assert client.get("/v1/facets").status_code == 200
            server.kill()
            assert client.get("/v1/facets").status_code == 503
            server.start()
            assert client.get("/v1/facets").status_code == 200
        with open_log(settings) as log:
            found = verify(log)
        assert found.flaws == []
        assert found.rows >= 2


def test_requests_at_once_share_commits(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    asked = "GET /v1/images/{id}"
    with LoopbackClient(create_service(settings)) as client:
        writer = client.app_state["audit"]
        client.get("/v1/facets")
        with open_log(settings) as log:
            earlier = sum(row.document["action"] == asked for row in log.between())
        before = writer.commits
        start = threading.Barrier(32)

        def ask() -> None:
            start.wait()
            for _ in range(3):
                assert client.get(f"/v1/images/{NOWHERE}").status_code == 404

        threads = [threading.Thread(target=ask) for _ in range(32)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert writer.commits - before < 96
    with open_log(settings) as log:
        found = verify(log)
        assert found.flaws == []
        rows = [row.document["action"] for row in log.between()]
        assert rows.count(asked) - earlier == 96


def test_the_log_may_be_switched_off(indexed, tmp_path: Path) -> None:
    off = {"audit": AuditSettings(enabled=False)}
    settings = indexed.copy(tmp_path / "data").model_copy(update=off)
    before = (settings.data_dir / "audit.sqlite").exists()
    with LoopbackClient(create_service(settings)) as client:
        assert client.get("/v1/facets").status_code == 200
    if not before:
        assert not (settings.data_dir / "audit.sqlite").exists()


class Rows:
    """Stands for a writer: keeps what is written, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.entries: list[Any] = []
        self._fails = fails

    def write(self, entry: Any) -> Any:
        self.entries.append(entry)
        written: Future[None] = Future()
        if self._fails:
            written.set_exception(AuditError("no"))
        else:
            written.set_result(None)
        return written


def sent_by(app: Any, rows: Rows) -> list[dict[str, Any]]:
    """What the application sends for a request of facets, behind the log."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/facets",
        "headers": [],
        "client": ("127.0.0.1", 5),
        "state": {"audit": rows},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append({"rows before the answer": len(rows.entries)})
        sent.append(message)

    asyncio.run(Audited(app)(scope, receive, send))
    return sent


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    scope["state"]["seen"] = Seen(images=(NOWHERE,))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (b"first part", b"second"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_an_answer_that_is_streamed_has_its_row_before_it_begins() -> None:
    rows = Rows()
    sent = sent_by(streaming, rows)
    assert sent[0] == {"rows before the answer": 1}
    assert [one.get("body") for one in sent[2:]] == [b"first part", b"second", b""]
    assert rows.entries[0].seen.images == (NOWHERE,)


def test_nothing_of_a_stream_that_has_no_row_is_sent() -> None:
    sent = sent_by(streaming, Rows(fails=True))
    assert [one["status"] for one in sent if one.get("type") == "http.response.start"] == [503]
    body = b"".join(one.get("body", b"") for one in sent)
    assert b"first part" not in body
    assert json.loads(body)["code"] == "audit"


def test_a_path_names_images_and_studies_only_if_it_is_well_formed() -> None:
    found = Addresses()
    for path, named in (
        (f"/v1/images/{NOWHERE.upper()}", ((), (NOWHERE,))),
        ("/v1/images/John%20Doe", ((), ())),
        ("/v1/studies/1.2.3/related", (("1.2.3",), ())),
        ("/v1/studies/Doe^John/related", ((), ())),
        ("/v1/studies/" + "1" * 65 + "/related", ((), ())),
    ):
        address = found.find(path)
        assert address is not None
        seen = named_by(address)
        assert (seen.studies, seen.images) == named


def test_what_is_told_in_parts_is_shown_together() -> None:
    request = Request({"type": "http", "headers": []})
    tell(request, Seen(("1",), ("a",), 1, "known"))
    tell(request, Seen(("1", "2"), ("b",), None, "foreign"))
    tell(request, Seen(results=2, verdict="unfamiliar"))
    assert request.state.seen == Seen(("1", "2"), ("a", "b"), 3, "foreign")
