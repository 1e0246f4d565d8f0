"""Figures of the service: what they count, who may read them, and that their labels stay few."""

import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from services.loopback import LoopbackClient

from api.audit.log import AuditLog, open_log
from api.audit.rows import Entry, Who
from api.security.keys import Keys
from api.security.policy import POLICY, Scope
from api.service import create_service
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.database import Database
from indexer.ledger.schema import jobs

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def figures(text: str) -> Figures:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: Figures, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def site(
    indexed, tmp_path: Path
) -> Iterator[tuple[TestClient, Settings, dict[str, dict[str, str]]]]:
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}") as database:
        sent = {
            scope.value: {"Authorization": f"Bearer {Keys(database).create('k', [scope])[1]}"}
            for scope in (Scope.SEARCH, Scope.METRICS)
        }
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client, settings, sent


def test_what_was_asked_is_counted_by_route_stage_filter_and_verdict(site, indexed) -> None:
    client, _, sent = site
    content = indexed.files["ct"][0].read_bytes()
    for _ in range(3):
        answer = client.post("/v1/search", files={"file": content}, headers=sent["search"])
        assert answer.status_code == 200
    rung = answer.json()["evidence"]["rung"]
    assert client.get("/v1/images/nothing", headers=sent["search"]).status_code == 404
    assert client.get("/v1/facets").status_code == 401
    assert client.get("/elsewhere/HIDDEN-1").status_code == 404
    told = client.get("/metrics", headers=sent["metrics"])
    assert told.headers["content-type"].startswith("text/plain; version=")
    found = figures(told.text)
    asked = {"route": "/v1/search", "method": "POST", "status": "200"}
    assert of(found, "precedent_requests_total", **asked) == 3
    assert of(found, "precedent_request_seconds_count", route="/v1/search") == 3
    assert of(found, "precedent_filters_total", filter=rung) == 3
    for stage in ("read", "encode", "rank"):
        assert of(found, "precedent_stage_seconds_count", stage=stage) == 3
        assert 0 < of(found, "precedent_stage_seconds_sum", stage=stage) < 60
    assert of(found, "precedent_refusals_total", status="404", code="image-not-found") == 1
    assert of(found, "precedent_refusals_total", status="401", code="not-authenticated") == 1
    unmatched = {"route": "unmatched", "method": "GET", "status": "404"}
    assert of(found, "precedent_requests_total", **unmatched) == 1
    assert of(found, "precedent_points") == 35
    assert of(found, "precedent_index_up") == of(found, "precedent_ledger_up") == 1
    # This very request is in flight.
    assert of(found, "precedent_requests_in_flight") == 1
    assert of(found, "precedent_requests_at_work") == 0
    assert "HIDDEN" not in told.text


def test_images_of_all_tenants_are_counted(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    with Archive(settings) as archive:
        one = next(archive.store.scroll(Filter(), with_z=True))
        theirs = replace(one, id=str(uuid.uuid4()), record=replace(one.record, tenant="north"))
        archive.of("north").store.upsert([theirs])
        archive.store.flush()
    with LoopbackClient(create_service(settings)) as client:
        found = figures(client.app.state.metrics.text().decode())
        assert client.get("/v1/stats").json()["points"] == 35
    assert of(found, "precedent_points") == 36


def test_jobs_and_ends_of_audit_chains_are_told(site) -> None:
    client, _, sent = site
    head = SimpleNamespace(chain="0123", seq=17, hash="ff" * 32)
    client.app.state.metrics.archive.heads = lambda: [head]
    found = figures(client.get("/metrics", headers=sent["metrics"]).text)
    assert of(found, "precedent_jobs", kind="run", state="finished") == 1
    assert of(found, "precedent_audit_sequence", chain="0123") == 17
    assert of(found, "precedent_audit_digest", chain="0123") == 0xFFFFFFFFFFFF


def test_what_an_operator_has_to_see_coming_is_told(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    least = settings.indexing.min_free_bytes
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys, now = Keys(database), datetime.now(UTC)
        keys.create("soon", [Scope.SEARCH], expires_at=now + timedelta(days=5))
        keys.create("later", [Scope.SEARCH], expires_at=now + timedelta(days=50))
        gone, _ = keys.create("revoked", [Scope.SEARCH], expires_at=now + timedelta(days=5))
        keys.revoke(gone.id)
        with database.begin() as connection:
            for hours, state in ((1, "failed"), (30, "failed"), (1, "finished")):
                ended = (now - timedelta(hours=hours)).isoformat(timespec="seconds")
                row = {"kind": "job", "source": "shelf", "state": state, "finished_at": ended}
                connection.execute(jobs.insert().values(row))
    with LoopbackClient(create_service(settings)) as client:
        found = figures(client.app.state.metrics.text().decode())
    assert of(found, "precedent_keys_expiring") == 1
    assert of(found, "precedent_jobs_failed_lately") == 1
    assert of(found, "precedent_disk_least_free_bytes") == least
    size, free = (of(found, f"precedent_disk_{name}_bytes") for name in ("size", "free"))
    assert 0 < free <= size
    ledger = (settings.data_dir / "ledger.sqlite").stat().st_size
    assert of(found, "precedent_ledger_bytes") == pytest.approx(ledger, abs=200_000)
    assert of(found, "precedent_index_bytes") > 0
    # The model of this archive has no calibration.
    assert of(found, "precedent_calibration_images") == 0
    assert not any(name == "precedent_calibration_alpha" for name, _ in found)
    for state in ("due", "held", "later"):
        assert of(found, "precedent_job_queue", state=state) == 0
    assert of(found, "precedent_sendings", state="waiting") == 0
    assert of(found, "precedent_received_waiting_bytes") == 0
    # From 0 on, or their first would be no increase.
    for verdict in ("known", "unfamiliar", "foreign"):
        assert found["precedent_verdicts_total", frozenset({("verdict", verdict)})] == 0


def test_audit_chains_of_processes_long_gone_are_no_series(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    (settings.data_dir / "audit.sqlite").unlink(missing_ok=True)
    entry = Entry(Who("user", "1"), "precedent search", 0, "ok")
    with open_log(settings) as log:
        before = AuditLog(log._database, lambda: datetime.now(UTC) - timedelta(days=8))
        before.add(before.following("old", None, [entry, entry]))
        log.add(log.following("new", None, [entry, entry, entry]))
        assert set(log.heads()) == {"old", "new"}
    with LoopbackClient(create_service(settings)) as client:
        found = figures(client.app.state.metrics.text().decode())
    chains = {name: value for name, value in found.items() if name[0] == "precedent_audit_sequence"}
    assert list(chains.values()) == [2]
    assert of(found, "precedent_audit_sequence", chain="new") == 2


def test_a_verdict_is_counted(foreign_client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    assert foreign_client.post("/v1/search", files={"file": content}).json()["ood"]["foreign"]
    found = figures(foreign_client.app.state.metrics.text().decode())
    assert of(found, "precedent_verdicts_total", verdict="foreign") == 1


def test_figures_ask_for_a_scope_of_their_own(site, client) -> None:
    keyed, _, sent = site
    assert keyed.get("/metrics").status_code == 401
    assert keyed.get("/metrics", headers=sent["search"]).status_code == 403
    # An open service does not tell them either.
    assert client.get("/metrics").status_code == 403


def test_labels_take_few_values_whatever_is_asked(site) -> None:
    client, _, sent = site

    def series() -> set[str]:
        text = client.get("/metrics", headers=sent["metrics"]).text
        return set(re.findall(r"^(precedent_\S+?(?:{.*?})?) ", text, re.MULTILINE))

    def ask(number: int) -> None:
        client.get(f"/v1/images/1.2.3.{number}", headers=sent["search"])
        client.get(f"/elsewhere/{number}?q={number}", headers=sent["search"])
        client.request(f"ODD{number}", "/v1/facets", headers=sent["search"])
        client.get("/v1/facets", params={"where": f"x{number}=1"}, headers=sent["search"])

    ask(0)
    series()
    before = series()
    for number in range(1, 30):
        ask(number)
    assert series() == before
    routes = {match[1] for one in before if (match := re.search(r'route="(.*?)"', one))}
    assert routes <= {path for _, path in POLICY} | {"unmatched"}


def test_a_port_of_its_own_gives_the_same_figures(indexed, tmp_path) -> None:
    settings, port = indexed.copy(tmp_path / "data"), free_port()
    with httpx2.Client() as free:
        server = settings.server.model_copy(update={"metrics_port": port})
        with LoopbackClient(create_service(settings.model_copy(update={"server": server}))) as one:
            assert one.get("/v1/facets").status_code == 200
            text = free.get(f"http://127.0.0.1:{port}/metrics").text
            asked = {"route": "/v1/facets", "method": "GET", "status": "200"}
            assert of(figures(text), "precedent_requests_total", **asked) == 1
        with pytest.raises(httpx2.ConnectError):
            free.get(f"http://127.0.0.1:{port}/metrics")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
