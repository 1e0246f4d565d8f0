"""The Python client, over a running service and over a network that misbehaves."""

import asyncio
import inspect
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from client_site import ClientSite, client_site

from api import client as precedent
from api.client import AsyncClient, Client, JobEvent, Retries
from api.client.retries import told_to_wait


@pytest.fixture(scope="module")
def site(indexed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientSite]:
    with client_site(indexed, tmp_path_factory.mktemp("client")) as found:
        yield found


@pytest.fixture
def client(site: ClientSite) -> Iterator[Client]:
    with Client(site.address, site.key, timeout=30) as opened:
        yield opened


def test_a_file_is_searched_for_whatever_it_is_given_as(client: Client, indexed) -> None:
    path = indexed.files["ct"][0]
    with path.open("rb") as opened:
        opened.read(10)
        answers = [
            client.search(image, k=3, where="modality=CT")
            for image in (path, str(path), path.read_bytes(), opened, io.BytesIO(path.read_bytes()))
        ]
    assert {tuple(hit.id for hit in one.hits) for one in answers} == {
        tuple(hit.id for hit in answers[0].hits)
    }
    first = answers[0]
    assert first.hits[0].sop == "1.2.3.0"
    assert first.hits[0].similarity == pytest.approx(1, abs=1e-4)
    assert {hit.modality for hit in first.hits} == {"CT"}
    assert first.evidence.query_id is None
    same = client.search(sop="1.2.3.0", frame=0, k=2, where=["modality=CT"], facets=False)
    assert same.evidence.query_id == first.hits[0].id
    assert same.facets == {}
    corner = [client.search(one, k=3, region="0,0,0.4,0.4") for one in (path, path.read_bytes())]
    assert corner[0].hits == corner[1].hits != client.search(path, k=3).hits
    assert client.search(sop="1.2.3.0", k=3, region="0,0,0.4,0.4").evidence.query_id is not None


def test_pages_follow_each_other(client: Client, indexed) -> None:
    whole = [hit.id for hit in client.search(sop="1.2.3.0", k=35, exact=True).hits]
    for question in ({"sop": "1.2.3.0"}, {"image": indexed.files["ct"][0]}):
        pages = list(client.search_pages(**question, k=20, exact=True))
        assert [len(page.hits) for page in pages][:1] == [20]
        assert pages[-1].next_page is None
        found = [hit.id for page in pages for hit in page.hits]
        assert [one for one in found if one in whole] == whole
        assert len(found) == len(set(found))


def test_a_batch_has_an_answer_or_a_problem_for_each(client: Client, indexed) -> None:
    images = [indexed.files["ct"][0], b"no image", indexed.files["mr"][0].read_bytes()]
    first, bad, last = client.search_batch(images, k=1).results
    assert [first.number, bad.number, last.number] == [0, 1, 2]
    assert first.answer is not None
    assert last.answer is not None
    assert (first.answer.hits[0].modality, last.answer.hits[0].modality) == ("CT", "MR")
    assert bad.problem is not None
    assert bad.problem.code == "not-an-image"


def test_cases_like_examples_are_recommended(client: Client, indexed) -> None:
    hit = client.search(sop="1.2.3.0", k=1).hits[0]
    liked = client.recommend(like=hit.id, k=3)
    assert {one.because for one in liked.hits} == {hit.id}
    sent = client.recommend(indexed.files["ct"][0], k=3, diversity=0.5)
    assert sent.evidence.diversity == 0.5
    related = client.related("1.2.4.0", k=3, where=["modality=CT"])
    assert "1.2.4.0" not in {one.study for one in related.hits}
    assert related.hits
    series = client.recommend_series(indexed.files["ct"][:2], k=3, where="modality=CT")
    assert (series.evidence.rule, series.evidence.cases) == ("series", 2)
    assert client.recommend(series="1.2.5.0", k=3).evidence.rule == "series"
    assert client.related("1.2.4.0", rule="study", k=3).evidence.rule == "study"


def test_what_the_archive_holds_is_told(client: Client) -> None:
    hit = client.search(sop="1.2.3.0", k=1, facets=False).hits[0]
    assert client.image(hit.id).sop == hit.sop
    assert client.thumbnail(hit.id)[:2] == client.preview(hit.id, size=64)[:2] == b"\xff\xd8"
    assert client.facets(where="modality=CT").count == 6
    assert client.duplicates(limit=5).compared >= 35
    assert len(client.archive_map(limit=9).points) <= 9
    assert client.archive_growth(by="day").periods[-1].in_all >= 35
    assert client.archive_refusals().instances == client.stats().instances["refused"]
    assert client.drift(days=2).days == []
    assert not client.calibration().calibrated
    assert client.model().fingerprint == client.stats().model == client.health().model
    assert [one.name for one in client.sources().sources] == ["archive", "folder"]
    assert "index" in client.whoami().scopes
    assert client.ready().status == "ready"
    token = client.create_embed_token("1.2.4.0", origin="https://portal.example", acting_user="me")
    assert token.token


def test_a_job_is_made_followed_and_reported(client: Client) -> None:
    made = client.create_job("archive", again=True, priority="interactive")
    events = list(client.follow(made.job))
    assert [one.kind for one in events][-1] == "end"
    assert events[-1].job.state == "finished"
    # Who knows the end is told that there is no more.
    assert list(client.follow(made.job, after=events[-1].id)) == []
    assert client.wait_for_job(made.job) == client.job(made.job)
    assert client.jobs(limit=1).jobs[0].id == made.job
    assert next(client.job_pages(limit=1)).jobs[0].id == made.job
    report = io.BytesIO()
    client.job_report(made.job, report)
    assert report.getvalue().startswith(b"instance,fate,")
    with pytest.raises(precedent.Conflict):
        client.cancel_job(made.job)
    assert client.retry_job(made.job).tasks == 0


def test_an_instance_is_brought_in_and_deleted(client: Client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes().replace(b"1.2.3.0", b"1.2.3.9")
    added = client.add_instance(content)
    assert (added.sop, len(added.ids)) == ("1.2.3.9", 1)
    assert client.add_instance(content).ids == added.ids
    would = client.delete_instances(sop="1.2.3.9", dry_run=True)
    assert (would.dry_run, would.points) == (True, 1)
    assert client.delete_instances(sop="1.2.3.9").points == 1
    with pytest.raises(precedent.NotFound):
        client.image(added.ids[0])


def test_keys_are_made_and_revoked_and_the_log_is_read(client: Client, site) -> None:
    made = client.create_key("ward 4", scopes=["search"], expires="30d")
    assert made.key not in repr(made)
    with Client(site.address, made.key) as other:
        assert other.whoami().name == "ward 4"
        assert client.revoke_key(made.id).state == client.revoke_key(made.id).state == "revoked"
        with pytest.raises(precedent.NotAuthenticated):
            other.whoami()
    listed = {one.id: one for one in client.keys().keys}
    assert listed[made.id].last_used_at is not None
    with pytest.raises(precedent.NotFound):
        client.revoke_key("0123456789abcdef")
    first = next(client.audit_pages(who=made.id, limit=1))
    assert first.rows[0].who.name == "ward 4"
    found = [row for page in client.audit_pages(who=made.id, limit=1) for row in page.rows]
    assert [row.action for row in found] == ["GET /v1/whoami"]
    whole = client.verify_audit()
    assert client.verify_audit(whole.heads).whole
    cut = {"heads": {**whole.heads, "gone": {"seq": 1, "hash": "0" * 64}}}
    assert client.verify_audit(cut["heads"]).flaws[0].chain == "gone"
    events = io.BytesIO()
    client.audit_export(events, since=datetime(2020, 1, 1, tzinfo=UTC))
    kinds = {json.loads(line)["resourceType"] for line in events.getvalue().splitlines()}
    assert kinds == {"AuditEvent"}


def test_problems_are_exceptions_that_carry_them(client: Client, site, tmp_path: Path) -> None:
    with pytest.raises(precedent.ImageRefused) as refused:
        client.search(b"no image")
    assert (refused.value.status, refused.value.code) == (422, "not-an-image")
    assert refused.value.problem.instance == "/v1/search"
    assert refused.value.request_id == refused.value.problem.request_id
    assert len(refused.value.request_id or "") == 32
    with pytest.raises(precedent.RequestRefused) as wrong:
        client.search(sop="1.2.3.0", k=3, where="modality")
    assert wrong.value.status == 400
    with pytest.raises(precedent.NotFound):
        list(client.follow(10**6))
    with pytest.raises(FileNotFoundError):
        client.search(tmp_path / "none.dcm")
    with pytest.raises(TypeError, match="a path, bytes or a file"):
        client.search(3)  # type: ignore[arg-type]
    with Client(site.address, site.search_key) as other, pytest.raises(precedent.NotAllowed):
        other.jobs()
    with Client(site.address, "wrong") as other, pytest.raises(precedent.NotAuthenticated):
        other.stats()


def test_the_other_client_does_the_same(site, indexed) -> None:
    async def ask() -> None:
        async with AsyncClient(site.address, site.key, timeout=30) as client:
            path = indexed.files["ct"][0]
            found = await asyncio.gather(*(client.search(path, k=2) for _ in range(3)))
            assert {one.hits[0].sop for one in found} == {"1.2.3.0"}
            pages = [page async for page in client.search_pages(path, k=20, exact=True)]
            assert sum(len(page.hits) for page in pages) >= 35
            with pytest.raises(precedent.ImageRefused):
                await client.add_instance(b"no image")

    asyncio.run(ask())


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if not name.startswith("_")
        }

    assert public(Client) == public(AsyncClient)
    assert all(inspect.getdoc(getattr(Client, name)) for name in public(Client))


# Networks and services that misbehave. What is slept is written down instead.


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("api.client.blocking.time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr("api.client.asynchronous.asyncio", SimpleNamespace(sleep=sleep))
    return waits


_Answer = httpx.Response | Exception
_STATS = {
    "points": 1,
    "instances": {},
    "facets": {},
    "facets_at_least": [],
    "model": "m",
    "index": {"profile": "hash", "quantised": False, "cells": None},
}


def asked(
    answers: list[_Answer], ask: Callable[[Client], object], **options: object
) -> tuple[object, list[httpx.Request]]:
    """What is answered or raised, and the requests that came."""
    requests: list[httpx.Request] = []
    left = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        requests.append(request)
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    transport = httpx.MockTransport(answer)
    with Client("http://localhost", transport=transport, **options) as client:  # type: ignore[arg-type]
        try:
            return ask(client), requests
        except precedent.ClientError as error:
            return error, requests


def busy(status: int = 503, code: str = "service-unavailable", **headers: str) -> httpx.Response:
    problem = {"type": "urn:x", "title": "Busy", "status": status, "detail": "", "code": code}
    return httpx.Response(status, json=problem, headers=headers)


def test_a_busy_service_is_asked_again_when_it_says(slept: list[float]) -> None:
    answers = [busy(429, **{"Retry-After": "7"}), busy(**{"Retry-After": "2"}), busy()]
    found, requests = asked([*answers, httpx.Response(200, json=_STATS)], lambda one: one.stats())
    assert found == precedent.Stats.model_validate(_STATS)
    assert len(requests) == 4
    assert 7 <= slept[0] <= 9
    assert 2 <= slept[1] <= 3
    assert 0 < slept[2] <= 2
    assert len({request.headers["X-Request-Id"] for request in requests}) == 4


def test_an_upload_is_whole_each_time(slept: list[float], tmp_path: Path) -> None:
    (tmp_path / "Doe_Jane.dcm").write_bytes(b"pixels" * 1000)
    for image in (tmp_path / "Doe_Jane.dcm", io.BytesIO(b"pixels" * 1000), b"pixels" * 1000):
        found, requests = asked(
            [busy(), busy()], lambda one, i=image: one.search(i), retries=Retries(2)
        )
        assert isinstance(found, precedent.ServiceUnavailable)
        assert [b"pixels" * 1000 in request.content for request in requests] == [True, True]
        # Names of files may name patients.
        assert b"Doe" not in requests[0].content


def test_patience_has_an_end(slept: list[float]) -> None:
    long, requests = asked([busy(429, **{"Retry-After": "600"})], lambda one: one.stats())
    assert isinstance(long, precedent.TooManyRequests)
    assert (long.retry_after, len(requests), slept) == (600, 1, [])
    ended, requests = asked([busy()] * 3, lambda one: one.stats(), retries=Retries(3))
    assert isinstance(ended, precedent.ServiceUnavailable)
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("failure", "repeated"),
    [
        (httpx.ConnectError("refused"), True),
        (busy(**{"Retry-After": "1"}), True),
        (busy(429, **{"Retry-After": "1"}), True),
        (busy(), False),
        (busy(code="audit", **{"Retry-After": "5"}), False),
        (httpx.ReadTimeout("slow"), False),
        (httpx.RemoteProtocolError("cut"), False),
    ],
    ids=str,
)
def test_no_job_is_made_twice(slept: list[float], failure: _Answer, repeated: bool) -> None:
    made = httpx.Response(201, json={"job": 7})
    found, requests = asked([failure, made], lambda one: one.create_job("pacs"))
    assert (found == precedent.CreatedJob(job=7)) is repeated
    assert len(requests) == 1 + repeated
    assert json.loads(requests[0].content) == {"source": "pacs"}


def test_a_connection_that_fails_is_told(slept: list[float]) -> None:
    found, requests = asked(
        [httpx.ReadTimeout("slow")] * 2, lambda one: one.stats(), retries=Retries(2)
    )
    assert isinstance(found, precedent.TimedOut)
    assert found.request_id == requests[1].headers["X-Request-Id"]
    assert "localhost" in str(found)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_stream_of_events_goes_on_after_it_broke(
    slept: list[float], kind: type[Client] | type[AsyncClient]
) -> None:
    state = {
        **dict.fromkeys(("id", "priority", "discovered", "total", "done", "unchanged"), 0),
        **dict.fromkeys(("indexed", "duplicates", "points"), 0),
        **dict.fromkeys(("kind", "source", "state", "status"), "x"),
        **dict.fromkeys(("created_at", "started_at", "finished_at", "per_second", "note")),
        **dict.fromkeys(("seconds_left", "errors")),
        "discovering": False,
        "refused": {},
        "tasks": {},
    }

    def event(number: str, name: str) -> bytes:
        return f"id: {number}\nevent: {name}\ndata: {json.dumps(state)}\n\n".encode()

    cut = b": alive\n\n" + event("a", "progress") + b"id: b\nevent: progress\nda"

    class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield cut
            raise httpx.ReadError("cut")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield cut
            raise httpx.ReadError("cut")

    answers = iter(
        [
            httpx.Response(200, stream=Cut()),
            busy(**{"Retry-After": "3"}),
            httpx.Response(200, content=event("c", "of a later version")),
            httpx.Response(200, content=event("d", "end")),
            httpx.Response(200, content=b"instance,fate\r\n"),
        ]
    )
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("Last-Event-ID"))
        return next(answers)

    report, transport = io.BytesIO(), httpx.MockTransport(answer)

    def ask() -> list[JobEvent]:
        with Client("http://localhost", transport=transport) as client:
            found = list(client.follow(7))
            client.job_report(7, report)
            return found

    async def ask_together() -> list[JobEvent]:
        async with AsyncClient("http://localhost", transport=transport) as client:
            found = [event async for event in client.follow(7)]
            await client.job_report(7, report)
            return found

    events = ask() if kind is Client else asyncio.run(ask_together())
    assert [(one.kind, one.id) for one in events] == [("progress", "a"), ("end", "d")]
    assert sent == [None, "a", "a", "c", None]
    assert report.getvalue() == b"instance,fate\r\n"
    assert 3 <= slept[1] <= 4


def test_a_newer_service_may_say_more() -> None:
    more = {**_STATS, "pace": 7, "index": {**_STATS["index"], "kind": "new"}}  # type: ignore[dict-item]
    found, _ = asked([httpx.Response(200, json=more)], lambda one: one.stats())
    assert isinstance(found, precedent.Stats)
    assert (found.points, found.model_extra) == (1, {"pace": 7})


def test_what_is_no_answer_of_the_service_is_said_to_be_none() -> None:
    page = httpx.Response(200, html="<p>Doe^Jane</p>", headers={"X-Request-Id": "r"})
    found, _ = asked([page], lambda one: one.stats())
    assert isinstance(found, precedent.UnexpectedAnswer)
    assert "Doe" not in str(found)
    assert found.request_id == "r"
    proxy, _ = asked([httpx.Response(502, html="<p>Bad Gateway</p>")], lambda one: one.stats())
    assert isinstance(proxy, precedent.ServiceFailed)
    assert (proxy.status, proxy.code) == (502, "http-502")


def test_keys_are_sent_to_who_may_have_them() -> None:
    for address in (
        "http://pacs.example",
        "https://me:hush@pacs.example",
        "pacs.example",
        "ftp://x",
    ):
        with pytest.raises(ValueError, match=r"https://|`key`") as refused:
            Client(address, "prc_key")
        assert "hush" not in str(refused.value)
    keys = iter(("one", "two"))
    answers: list[_Answer] = [busy(**{"Retry-After": "0"}), httpx.Response(200, json=_STATS)]
    _, requests = asked(answers, lambda one: one.stats(), key=lambda: next(keys))
    assert [one.headers["Authorization"] for one in requests] == ["Bearer one", "Bearer two"]
    Client("http://pacs.example", "prc_key", plain_http=True).close()


def test_a_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 3, 1, 9, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=90), usegmt=True)
    told = [told_to_wait(text, now) for text in (None, "5", " 7 ", date, "soon", "-1", "")]
    assert told == [None, 5, 7, 90, None, None, None]
