"""Instances and jobs over HTTP: taken in, refused, deleted, made."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from handed_in import picture_file, slice_file
from services.loopback import LoopbackClient

from api.audit.log import open_log
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import FolderSettings, Settings
from engine.store.base import Filter, Match
from indexer.archive import Archive
from indexer.datadir.deletions import Deletions
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database
from indexer.sources.folder import FolderSource
from indexer.sources.pushed.inbox import Inbox, ReceivedSource

PATIENCE = 60.0


@pytest.fixture(scope="module")
def settings(indexed, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Those of an archive with nothing in it yet, which names one source."""
    source = FolderSettings(kind="folder", paths=(indexed.files["stripes"][0].parent,))
    return indexed.settings.model_copy(
        update={
            "data_dir": tmp_path_factory.mktemp("fresh") / "data",
            "sources": {"shelf": source},
        }
    )


@pytest.fixture(scope="module")
def fresh(settings: Settings) -> Iterator[TestClient]:
    with LoopbackClient(create_service(settings)) as client:
        yield client


def add(client: TestClient, content: bytes, name: str = "image") -> Any:
    return client.post("/v1/instances", files={"file": (name, content)})


def kept(settings: Settings) -> list[Path]:
    return [*(settings.data_dir / "received").rglob("*.img")]


def test_an_instance_makes_the_index_and_is_found_at_once(fresh, settings):
    content = slice_file(200)
    answer = add(fresh, content)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["sop"], told["study"], told["duplicate"]) == ("1.2.7.200", "1.2.8.100", False)
    (point,) = told["ids"]
    found = fresh.post("/v1/search", files={"file": content}, data={"k": "1"}).json()["hits"]
    assert [hit["id"] for hit in found] == [point]
    assert fresh.get(f"/v1/images/{point}/thumbnail").status_code == 200
    again = add(fresh, content, "under another name")
    assert (again.status_code, again.json()) == (200, told)
    assert len(kept(settings)) == 1


@pytest.mark.parametrize("kind", ["png", "other picture of the same UID", "same picture"])
def test_what_becomes_of_others(fresh, settings, kind):
    first = slice_file(210)
    assert add(fresh, first).status_code in (200, 201)
    before = kept(settings)
    if kind == "png":
        answer = add(fresh, picture_file(215))
        assert answer.status_code == 201
        assert (answer.json()["sop"], len(answer.json()["ids"])) == (None, 1)
    elif kind == "same picture":
        same = slice_file(210, part="HAND")
        answer = add(fresh, same)
        assert (answer.status_code, answer.json()["duplicate"]) == (201, True)
    else:
        answer = add(fresh, slice_file(210, shows=211))
        assert (answer.status_code, answer.json()["code"]) == (422, "conflicting-uid")
        assert str(settings.data_dir) not in answer.text
        assert kept(settings) == before


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty-file"), (b"no picture", "not-an-image"), (b"\x89PNG\r\n\x1a\nxx", "damaged")],
)
def test_what_cannot_be_indexed_is_refused_and_not_kept(fresh, settings, content, code):
    before = kept(settings)
    answer = add(fresh, content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in (code, "unreadable", "truncated", "not-an-image")
    assert kept(settings) == before
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        from indexer.ledger.instances import Ledger

        assert not Ledger(database.of("default")).refusals(10)


def test_no_file_and_too_large_ones(fresh):
    assert fresh.post("/v1/instances").status_code == 422
    assert add(fresh, bytes(300_000)).status_code == 413


def test_a_series_goes_and_comes_back_when_it_is_sent_again(fresh, settings):
    one, other = map(slice_file, (220, 221))
    assert {add(fresh, content).status_code for content in (one, other)} == {201}
    dry = fresh.delete("/v1/instances", params={"series": "1.2.9.110", "dry_run": True})
    told = {"dry_run": True, "studies": 1, "series": 1, "instances": 2, "points": 2}
    assert (dry.status_code, dry.json()) == (200, told)
    gone = fresh.delete("/v1/instances", params={"series": "1.2.9.110"})
    assert (gone.status_code, gone.json()) == (200, {**told, "dry_run": False})
    assert fresh.delete("/v1/instances", params={"series": "1.2.9.110"}).status_code == 404
    related = fresh.get("/v1/studies/1.2.8.110/related")
    assert related.status_code == 404
    assert add(fresh, one).status_code == 201
    patient = fresh.delete("/v1/instances", params={"patient": "HANDED-IN-220"})
    assert patient.json()["instances"] == 1
    # What was received is on the disk no more: nothing names it in the files that are left.
    assert all(b"HANDED-IN-22" not in path.read_bytes() for path in kept(settings))


@pytest.mark.parametrize(
    ("asked", "status"),
    [({}, 400), ({"dry_run": True}, 400), ({"study": ""}, 422), ({"sop": "1.2*"}, 422)],
)
def test_nothing_is_removed_without_saying_what(fresh, asked, status):
    assert fresh.delete("/v1/instances", params=asked).status_code == status


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_of_a_named_source_is_worked_on(fresh, settings):
    made = fresh.post("/v1/jobs", json={"source": "shelf"})
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"/v1/jobs/{made.json()['job']}"
    with open_log(settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert row["about"] == {"job": made.json()["job"], "source": "shelf"}
    until(lambda: fresh.get("/v1/facets?where=source=shelf").json()["count"] == 14)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"source": "/etc"}, 400),
        ({"source": "other"}, 400),
        ({"source": "shelf", "paths": ["/etc"]}, 422),
        ({"source": "shelf", "since": "2020-01-01"}, 400),
        ({"source": "shelf", "study": "1.2", "delete_vanished": True}, 400),
        ({"source": "shelf", "at_most": 7}, 422),
        ({}, 422),
    ],
)
def test_no_job_of_anything_else(fresh, asked, status):
    answer = fresh.post("/v1/jobs", json=asked)
    assert answer.status_code == status, answer.text
    assert "shelf" not in answer.text.replace(str(asked), "") or "source" in asked


@pytest.mark.slow
def test_jobs_are_of_the_tenant_of_their_source(indexed, tmp_path):
    folder = indexed.files["ct"][0].parent
    sources = {
        "ours": FolderSettings(kind="folder", paths=(folder,)),
        "theirs": FolderSettings(kind="folder", paths=(folder,), tenant="north"),
    }
    settings = indexed.copy(tmp_path / "data").model_copy(update={"sources": sources})
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        keys = Keys(database)
        own, theirs = (
            {"Authorization": "Bearer " + keys.create(one, list(Scope), tenant=one)[1]}
            for one in ("default", "north")
        )
    with LoopbackClient(create_service(settings)) as client:

        def said(sent: dict[str, str], method: str, path: str, **more: Any) -> Any:
            answer = client.request(method, path, headers={**sent, "X-Request-Id": "0"}, **more)
            return answer.status_code, answer.text

        for sent, source in ((own, "theirs"), (theirs, "ours")):
            refused = said(sent, "POST", "/v1/jobs", json={"source": source})
            unknown = said(sent, "POST", "/v1/jobs", json={"source": "neither"})
            assert refused[0] == 400
            assert refused == (400, unknown[1].replace("neither", source))
            told = client.get("/v1/sources", headers=sent).text
            assert source not in told
        made = client.post("/v1/jobs", headers=theirs, json={"source": "theirs"}).json()["job"]
        until(lambda: client.get(f"/v1/jobs/{made}", headers=theirs).json()["state"] == "finished")
        assert client.get("/v1/facets", headers=theirs).json()["count"] > 0
        assert client.get("/v1/facets", headers=own).json()["count"] == 35
        assert made not in {one["id"] for one in jobs_of(client, own)}
        assert {one["id"] for one in jobs_of(client, theirs)} == {made}
        for method, more in (
            ("GET", ""),
            ("GET", "/report"),
            ("GET", "/events"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/cancel"),
            ("POST", "/retry"),
        ):
            status, text = said(own, method, f"/v1/jobs/{made}{more}")
            none = said(own, method, f"/v1/jobs/999{more}")[1]
            assert (status, text) == (404, none.replace("999", str(made)))


def test_the_path_of_a_source_is_not_told(indexed, tmp_path, caplog):
    away = FolderSettings(kind="folder", paths=(tmp_path / "HIDDEN",))
    settings = indexed.copy(tmp_path / "data").model_copy(update={"sources": {"away": away}})
    with LoopbackClient(create_service(settings)) as client:
        answer = client.post("/v1/jobs", json={"source": "away"})
        assert answer.status_code == 503
        assert "HIDDEN" not in answer.text
        assert "HIDDEN" in caplog.text
        narrowed = client.post("/v1/jobs", json={"source": "away", "modality": "CT"})
        assert narrowed.status_code == 400


def jobs_of(client: TestClient, sent: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/jobs", headers=sent).json()["jobs"]
    return found


def test_what_was_kept_before_a_kill_is_indexed_after_the_next_start(indexed, tmp_path):
    """As a kill between the disk and the index leaves it."""
    settings = indexed.copy(tmp_path / "data")
    content = picture_file(300)
    digest = hashlib.sha256(content).hexdigest()
    place = settings.data_dir / "received" / digest[:2] / digest[2:4] / f"{digest}.img"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with LoopbackClient(create_service(settings)) as client:
        answer = add(client, content)
        assert answer.status_code in (200, 201), answer.text
        hits = client.post("/v1/search", files={"file": content}, data={"k": "1"}).json()["hits"]
        assert [hit["id"] for hit in hits] == answer.json()["ids"]


def test_a_deletion_that_was_killed_is_finished_by_the_next_one_to_open(indexed, tmp_path):
    settings = indexed.copy(tmp_path / "data")
    with Archive(settings) as archive:
        study = "1.2.4.0"
        whole = archive.ledger.find(study=study)
        assert len(whole) == 2

        def killed(*_: Any) -> Any:
            raise KeyboardInterrupt

        archive._delete_all = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            archive.delete_all({"study": study})
        assert archive.ledger.find(study=study) == whole
    with Archive(settings) as archive:
        assert archive.ledger.find(study=study) == []
        assert not list((settings.data_dir / "deletions").iterdir())


@pytest.mark.parametrize("opened_by", ["default", "north", "south"])
@pytest.mark.parametrize("deleted_by", ["default", "north"])
def test_a_deletion_that_was_killed_is_finished_for_its_tenant_alone(
    indexed, tmp_path, opened_by, deleted_by
):
    settings = indexed.copy(tmp_path / "data")
    study = {"study": "1.2.4.0"}
    tenants = {"default", "north"}

    def left() -> set[str]:
        with Archive(settings, tenant=opened_by) as archive:
            return {
                one
                for one in tenants
                if archive.of(one).ledger.count(**study)
                and archive.of(one).store.count(Filter((Match("study", ("1.2.4.0",)),)))
            }

    with Archive(settings) as archive:
        archive.of("north").index(FolderSource([indexed.files["ct"][0].parent]))
        deleting = archive.of(deleted_by)

        def killed(*_: Any) -> Any:
            raise KeyboardInterrupt

        deleting._delete_all = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            deleting.delete_all(study)
    assert left() == tenants - {deleted_by}
    # An older note names no tenant, from when there was one.
    (settings.data_dir / "deletions" / "0.json").write_text(json.dumps(study))
    assert left() == tenants - {deleted_by, "default"}


@pytest.mark.slow
def test_a_deletion_that_was_killed_is_finished_by_a_service_that_runs(indexed, tmp_path):
    settings = indexed.copy(tmp_path / "data")
    with LoopbackClient(create_service(settings)) as client:
        assert client.get("/v1/studies/1.2.4.0/related", params={"k": 5}).status_code == 200
        wanted = {"study": "1.2.4.0", "tenant": "default"}
        with pytest.raises(KeyboardInterrupt), Deletions(settings.data_dir).under_way(wanted):
            raise KeyboardInterrupt
        deadline = time.monotonic() + PATIENCE
        while client.get("/v1/studies/1.2.4.0/related", params={"k": 5}).status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        deadline = time.monotonic() + PATIENCE
        while list((settings.data_dir / "deletions").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_what_a_kill_left_of_a_refused_file_goes_when_it_is_sent_again(fresh, settings):
    """As a kill between the refusal and the removal of the file leaves it."""
    before = kept(settings)
    content = b"no picture that was left"
    digest = hashlib.sha256(content).hexdigest()
    place = settings.data_dir / "received" / digest[:2] / digest[2:4] / f"{digest}.img"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with Archive(settings) as archive:
        archive.index(ReceivedSource([place]))
        assert archive.ledger.counts()["refused"] == 1
        answer = add(fresh, content)
        assert (answer.status_code, answer.json()["code"]) == (422, "not-an-image")
        assert kept(settings) == before
        assert "refused" not in archive.ledger.counts()


def test_one_that_another_request_removes_meanwhile_is_to_be_sent_again(
    fresh, settings, monkeypatch
):
    hurry = Inbox.hurry

    def removed(self: Inbox, place: Path) -> None:
        place.unlink()
        hurry(self, place)

    monkeypatch.setattr(Inbox, "hurry", removed)
    answer = add(fresh, slice_file(230))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    monkeypatch.undo()
    assert add(fresh, slice_file(230)).status_code == 201


def test_where_another_process_receives_it_says_so(indexed, tmp_path):
    settings = indexed.copy(tmp_path / "data")
    received = DataDir(settings.data_dir).received
    with LoopbackClient(create_service(settings)) as client:
        with Inbox(received, settings.receive, settings.limits.max_file_bytes):
            answer = add(client, slice_file(240))
            assert answer.status_code == 503
            assert "another process receives" in answer.json()["detail"]
        assert add(client, slice_file(240)).status_code == 201
