"""Jobs over HTTP: the same ledger and names as ``precedent jobs``."""

import csv
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import run
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient
from services.running import served

from api.http import app as http_app
from api.http.job_events import Events
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import Settings
from indexer.ledger.database import Database


@dataclass(frozen=True)
class Office:
    """A service over an indexed archive, whose ledger has two jobs that no worker has begun.

    sent: headers, by whose key they have.
    """

    client: TestClient
    settings: Settings
    sent: dict[str, dict[str, str]]
    jobs: tuple[int, int]
    images: Path


def bearer(written: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {written}"}


def cli(office: Office, *words: object) -> Any:
    return json.loads(run("jobs", *words, "--data-dir", office.settings.data_dir, "--json"))


@pytest.fixture
def office(indexed, tmp_path: Path) -> Iterator[Office]:
    settings = indexed.copy(tmp_path / "data")
    images = indexed.files["stripes"][0].parent
    place = ("--data-dir", settings.data_dir, "--json")
    jobs = tuple(json.loads(run("jobs", "submit", images, *place))["job"] for _ in range(2))
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        scopes = {"worker": [Scope.INDEX], "admin": [Scope.INDEX, Scope.ADMIN]}
        sent = {name: bearer(keys.create(name, given)[1]) for name, given in scopes.items()}
        sent["elsewhere"] = bearer(keys.create("e", list(Scope), tenant="elsewhere")[1])
    with LoopbackClient(create_service(settings)) as client:
        client.headers.update(sent["worker"])
        yield Office(client, settings, sent, jobs, images)


def test_jobs_are_listed_page_by_page_under_the_names_of_the_command_line(office: Office) -> None:
    run_before, (first, second) = 1, office.jobs
    page = office.client.get("/v1/jobs", params={"limit": 2}).json()
    assert [one["id"] for one in page["jobs"]] == [second, first]
    rest = office.client.get("/v1/jobs", params={"limit": 2, "page": page["next_page"]}).json()
    assert [(one["id"], one["kind"]) for one in rest["jobs"]] == [(run_before, "run")]
    assert rest["next_page"] is None
    told = cli(office, "show", first)
    shown = office.client.get(f"/v1/jobs/{first}", headers=office.sent["admin"]).json()
    assert shown == told
    assert shown["status"] == "waiting"


@pytest.mark.parametrize(
    ("params", "status"),
    [({"limit": 0}, 400), ({"limit": 201}, 400), ({"page": "x"}, 400), ({"limit": "x"}, 422)],
)
def test_a_list_that_cannot_be_given(office: Office, params, status) -> None:
    assert office.client.get("/v1/jobs", params=params).status_code == status


def test_a_job_is_paused_resumed_cancelled_and_not_retried(office: Office) -> None:
    job, client = office.jobs[0], office.client
    assert client.post(f"/v1/jobs/{job}/pause").json()["state"] == "paused"
    twice = client.post(f"/v1/jobs/{job}/pause")
    assert (twice.status_code, twice.json()["code"]) == (409, "job")
    assert cli(office, "show", job)["state"] == "paused"
    assert client.post(f"/v1/jobs/{job}/resume").json()["state"] == "running"
    ended = client.post(f"/v1/jobs/{job}/cancel").json()
    assert (ended["state"], ended["finished_at"] is not None) == ("cancelled", True)
    refused = client.post(f"/v1/jobs/{job}/retry")
    assert refused.status_code == 409
    assert "is cancelled" in refused.json()["detail"]
    again = client.post(f"/v1/jobs/{office.jobs[1]}/retry", json={"refused": True})
    assert (again.json()["tasks"], again.json()["job"]["id"]) == (0, office.jobs[1])
    assert client.post(f"/v1/jobs/{job}/retry", json={"refuse": True}).status_code == 422


@pytest.mark.parametrize("what", ["pause", "resume", "cancel", "retry", "report", "events", ""])
def test_a_job_of_another_tenant_is_none(office: Office, what) -> None:
    method = "GET" if what in ("", "report", "events") else "POST"

    def asked(job: int) -> tuple[int, str]:
        headers = {**office.sent["elsewhere"], "X-Request-Id": "same"}
        address = f"/v1/jobs/{job}/{what}".rstrip("/")
        answer = office.client.request(method, address, headers=headers)
        return answer.status_code, answer.text.replace(str(job), "N")

    assert asked(office.jobs[0]) == asked(99999)
    assert asked(office.jobs[0])[0] == 404
    assert cli(office, "show", office.jobs[0])["state"] == "running"
    assert office.client.get("/v1/jobs", headers=office.sent["elsewhere"]).json()["jobs"] == []


def test_a_number_that_no_job_can_have(office: Office) -> None:
    for job, status in ((99999, 404), (0, 422), (2**70, 422), ("x", 422)):
        assert office.client.get(f"/v1/jobs/{job}").status_code == status


def test_a_report_names_files_to_an_administrator_alone(office: Office) -> None:
    job = office.jobs[0]
    place = ["--data-dir", str(office.settings.data_dir)]
    model = ["--model", str(office.settings.model)]
    office.client.__exit__(None, None, None)  # the index belongs to one process
    run("worker", "--until-idle", *place, *model)
    printed = run("jobs", "report", job, *place)
    with LoopbackClient(create_service(office.settings)) as client:
        for key, named in (("admin", True), ("worker", False)):
            answer = client.get(f"/v1/jobs/{job}/report", headers=office.sent[key])
            assert answer.headers["content-type"].startswith("text/csv")
            rows = list(csv.DictReader(io.StringIO(answer.text)))
            assert len(rows) == 14
            assert (str(office.images) in answer.text) == named
            if named:
                assert rows == list(csv.DictReader(io.StringIO(printed)))
        head = client.head(f"/v1/jobs/{job}/report", headers=office.sent["worker"])
        assert (head.status_code, head.text) == (200, "")
        # A job that has ended is told once; whoever knows it is told that nothing follows.
        events = client.get(f"/v1/jobs/{job}/events", headers=office.sent["worker"])
        ((number, kind, told),) = parsed(events.text)
        assert (kind, told["state"], told["done"]) == ("end", "finished", told["total"])
        last = {"Last-Event-ID": number, **office.sent["worker"]}
        assert client.get(f"/v1/jobs/{job}/events", headers=last).status_code == 204
        head = client.head(f"/v1/jobs/{job}/events", headers=office.sent["worker"])
        assert head.headers["content-type"].startswith("text/event-stream")


def parsed(text: str) -> list[tuple[str, str, Any]]:
    """Id, kind and document of each event."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines() if line[:1] != ":")
        if lines:
            found.append((lines.get("id", ""), lines["event"], json.loads(lines["data"])))
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that look, and show that they live, several times a second."""
    monkeypatch.setattr(http_app, "Events", lambda: Events(3, 0.05, 0.2, of_one=2))


def followed(address: str, headers: dict[str, str], into: list[str]) -> threading.Thread:
    def follow() -> None:
        with httpx2.stream("GET", address, headers=headers, timeout=30) as answer:
            into.extend(answer.iter_text())

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def running(office: Office, quick) -> Iterator[tuple[Office, str]]:
    """The office, and the address of a server for it."""
    office.client.__exit__(None, None, None)
    with served(create_service(office.settings)) as address:
        yield office, address


def test_the_progress_of_a_job_is_followed_to_its_end(running) -> None:
    office, address = running
    job = office.jobs[0]
    got: list[str] = []
    thread = followed(f"{address}/v1/jobs/{job}/events", office.sent["worker"], got)
    until(lambda: ": alive" in "".join(got))
    run("jobs", "pause", job, "--data-dir", office.settings.data_dir)
    until(lambda: "paused" in "".join(got))
    run("jobs", "cancel", job, "--data-dir", office.settings.data_dir)
    thread.join(20)
    assert not thread.is_alive()
    events = parsed("".join(got))
    assert [(kind, told["state"]) for _, kind, told in events] == [
        ("progress", "running"),
        ("progress", "paused"),
        ("end", "cancelled"),
    ]
    assert len({number for number, _, _ in events}) == 3


def test_a_stream_goes_on_where_it_was_left_and_ends_with_its_key(running) -> None:
    office, address = running
    job, headers = office.jobs[1], office.sent["worker"]
    first: list[str] = []
    url = f"{address}/v1/jobs/{job}/events"
    with httpx2.stream("GET", url, headers=headers, timeout=30) as answer:
        for piece in answer.iter_text():
            first.append(piece)
            break
    ((number, _, _),) = parsed("".join(first))
    got: list[str] = []
    thread = followed(url, {**headers, "Last-Event-ID": number}, got)
    until(lambda: ": alive" in "".join(got))
    with Database(f"sqlite:///{office.settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        (mine,) = (key for key in keys.all() if key.name == "worker")
        keys.revoke(mine.id)
    thread.join(20)
    assert not thread.is_alive()
    ((_, kind, problem),) = parsed("".join(got))
    assert (kind, problem["code"]) == ("error", "not-authenticated")


def test_so_many_streams_are_enough(running) -> None:
    office, address = running
    url = f"{address}/v1/jobs/{office.jobs[0]}/events"
    threads = []
    for _ in range(2):
        got: list[str] = []
        threads.append(followed(url, office.sent["worker"], got))
        until(lambda got=got: got)
    full = httpx2.get(url, headers=office.sent["worker"])
    assert (full.status_code, full.headers["retry-after"]) == (429, "30")
    # A tenant that follows as many as it may leaves room for others.
    place = ("--data-dir", office.settings.data_dir)
    other = ("--tenant", "elsewhere", *place)
    theirs = json.loads(run("jobs", "submit", office.images, *other, "--json"))["job"]
    got = []
    threads.append(
        followed(url := f"{address}/v1/jobs/{theirs}/events", office.sent["elsewhere"], got)
    )
    until(lambda: got)
    full = httpx2.get(url, headers=office.sent["elsewhere"])
    assert (full.status_code, full.headers["retry-after"]) == (503, "30")
    run("jobs", "cancel", theirs, *other)
    run("jobs", "cancel", office.jobs[0], *place)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_without_a_ledger_there_are_no_jobs(indexed, tmp_path: Path) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "none"})
    with LoopbackClient(create_service(settings)) as client:
        assert client.get("/v1/jobs").json() == {"jobs": [], "next_page": None}
        assert client.get("/v1/jobs/1").status_code == 404
        # Accesses are recorded from the first one on.
        assert [one.name for one in settings.data_dir.glob("*.sqlite")] == ["audit.sqlite"]


def test_the_page_of_jobs_shows_them_and_changes_them(office: Office) -> None:
    client, worker, (job, _) = office.client, office.sent["worker"], office.jobs
    page = client.get("/jobs", headers=worker)
    assert page.status_code == 200
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert f'data-job="{job}" data-live' in page.text
    paused = client.post("/jobs", headers=worker, data={"job": str(job), "action": "pause"})
    assert paused.history[0].headers["location"] == f"jobs#job-{job}"
    assert f'data-job="{job}">' in paused.text
    assert client.get(f"/v1/jobs/{job}", headers=worker).json()["state"] == "paused"
    for action, status in (("resume", 200), ("cancel", 200), ("pause", 409), ("burn", 422)):
        answer = client.post("/jobs", headers=worker, data={"job": str(job), "action": action})
        assert (answer.status_code, answer.headers["content-type"][:9]) == (status, "text/html")
    assert client.get("/jobs?page=x", headers=worker).status_code == 400
