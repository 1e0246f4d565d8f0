"""The rules and the dashboard of docker/, by a real Prometheus that watches a running service."""

import io
import json
import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml
from services.prometheus import Prometheus
from services.running import served

from api.http.logs import configure_logs
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import JobSettings, ServerSettings
from engine.store.base import Filter
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.ledger.database import Database
from indexer.sources.opening import SourceSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "docker/prometheus/precedent.rules.yml").read_text())
DASHBOARD = json.loads((ROOT / "docker/grafana/precedent.json").read_text())
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
_SELECTOR = re.compile(r"(?<![\w:$\"/])((?:precedent|process)[\w:]*|up|ALERTS)\b(\{[^}]*\})?(?!\()")
_VARY = {"timestamp", "request_id", "milliseconds", "key", "places"}
_LOGGERS = ("", "api", "engine", "indexer", "precedent", "uvicorn.error")


@dataclass
class Watched:
    """A service that was asked this and that, its log, and the Prometheus that watches it."""

    prometheus: Prometheus
    log: io.StringIO
    metrics: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def expressions() -> list[str]:
    """All of the rules and of the dashboard, its variables replaced."""
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    of_panels = [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
    ]
    shown = [*of_panels, *(one["expr"] for one in DASHBOARD["annotations"]["list"])]
    replaced = [one.replace("$job", "precedent").replace("$__rate_interval", "1m") for one in shown]
    assert len(rules) > 25
    assert len(of_panels) > 40
    return [*rules, *replaced]


def fill(address: str, image: str, key: str) -> None:
    """Asks for what is counted: answers, refusals, verdicts, clients that leave."""
    bearer = {"Authorization": f"Bearer {key}"}

    def search() -> int:
        asked = httpx2.post(f"{address}/v1/search", data={"id": image}, headers=bearer, timeout=600)
        return asked.status_code

    assert search() == 200
    with (
        ThreadPoolExecutor(1) as beside,
        httpx2.Client(base_url=address, timeout=600) as client,
    ):
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/facets").status_code == 401
        assert client.get("/v1/images/nothing", headers=bearer).status_code == 404
        # One request is answered at a time, and none waits.
        refused = False
        while not refused:
            searching = beside.submit(search)
            while not searching.done() and not refused:
                refused = client.get("/v1/facets", headers=bearer).status_code == 503
            refused |= searching.result() == 503
    where = urlsplit(address)
    with socket.create_connection((where.hostname, where.port)) as gone:
        gone.sendall(
            f"POST /v1/search HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            "Content-Length: 5000\r\n\r\n--x\r\n".encode()
        )
        time.sleep(0.5)
    with (
        suppress(ConnectionError),
        socket.create_connection((where.hostname, where.port)) as unheard,
    ):
        unheard.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
        unheard.recv(1000)


@pytest.fixture(scope="module")
def watched(indexed, archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    copied = indexed.copy(folder / "data")
    settings = copied.model_copy(
        update={
            "model": calibrated(copied.model or Path(), folder / "model"),
            "jobs": JobSettings(attempts=1, backoff_seconds=0.05),
            "server": copied.server.model_copy(update={"max_at_once": 1, "max_waiting": 0}),
        }
    )
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys, jobs = Keys(database), JobLedger(database.of("default"))
        _, metrics = keys.create("prometheus", [Scope.METRICS])
        _, key = keys.create("ward", [Scope.SEARCH])
        jobs.submit(
            SourceSpec.asked([folder / "not-there"], None),
            JobOptions(),
            at="2026-01-01T00:00:00+00:00",
        )
    root, log = logging.getLogger(), io.StringIO()
    before = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    configure_logs(ServerSettings(log_format="json"), log)
    try:
        with served(create_service(settings), settings.server) as address:
            fill(address, next(archive.store.scroll(Filter())).id, key)
            with Prometheus(address, metrics) as prometheus:
                prometheus.until("precedent_jobs_failed_lately > 0")
                # Two answers make a rate, and rules go by rules.
                prometheus.until("precedent:foreign:ratio1h")
                prometheus.until('count_over_time(up{job="precedent"}[5m]) > 3')
                bearer = {"Authorization": f"Bearer {metrics}"}
                text = httpx2.get(f"{address}/metrics", headers=bearer, timeout=600).text
                yield Watched(prometheus, log, text)
    finally:
        root.handlers[:] = before
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def calibrated(model: Path, to: Path) -> Path:
    """A copy of the model with a gate to which everything is foreign."""
    import shutil

    import numpy as np

    from engine.model.manifest import read_manifest
    from engine.ood.calibration import OodGate
    from engine.ood.detectors import KnnDetector
    from engine.records import Observations

    shutil.copytree(model, to)
    reference = Observations(np.eye(64, 256, dtype=np.float32), np.zeros((64, 8), np.uint8))
    never = np.full(99, -1, dtype=np.float32)
    gate = OodGate([KnnDetector(5).fit(reference)], {"knn": never})
    gate.save(to, read_manifest(to).fingerprint)
    return to


def test_every_expression_names_metrics_and_labels_that_there_are(watched: Watched) -> None:
    prometheus = watched.prometheus
    seen: dict[str, list[dict[str, str]]] = {}
    for expression in expressions():
        prometheus.query(expression)
        selectors = ["".join(found) for found in _SELECTOR.findall(expression)]
        assert selectors, expression
        labels: set[str] = set()
        for selector in selectors:
            if selector.startswith("ALERTS"):
                continue
            if selector not in seen:
                seen[selector] = prometheus.ask("series", **{"match[]": selector})
            assert seen[selector], f"nothing is {selector}, as in {expression}"
            labels |= {name for series in seen[selector] for name in series}
        for named in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            missing = {one.strip() for one in named.split(",")} - labels
            assert not missing, f"{expression}: nothing has {missing}"


def test_a_selector_that_matches_nothing_would_be_noticed(watched: Watched) -> None:
    assert watched.prometheus.ask("series", **{"match[]": 'precedent_points{kind="x"}'}) == []
    assert _SELECTOR.findall('sum by (job) (rate(precedent_a_total{x="1"}[5m])) > precedent:b') == [
        ("precedent_a_total", '{x="1"}'),
        ("precedent:b", ""),
    ]


def test_every_panel_shows_something_and_every_rule_is_well(watched: Watched) -> None:
    prometheus = watched.prometheus
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            asked = target["expr"].replace("$job", "precedent").replace("$__rate_interval", "1m")
            found = prometheus.until(asked)
            labels = {name for one in found for name in one["metric"]}
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= labels, f"{panel['title']}: nothing has {legend - labels}"
    rules = [one for group in prometheus.ask("rules")["groups"] for one in group["rules"]]
    assert {one["health"] for one in rules} == {"ok"}, [one for one in rules if "lastError" in one]


def test_alerts_begin_where_something_is_wrong(watched: Watched) -> None:
    watched.prometheus.until('ALERTS{alertname="PrecedentJobsFailed"}')
    begun = {one["labels"]["alertname"] for one in watched.prometheus.ask("alerts")["alerts"]}
    assert not begun & {"PrecedentDown", "PrecedentLedgerAway", "PrecedentAuditAway"}


def test_nothing_of_patients_files_or_tenants_is_in_the_figures(watched: Watched, indexed) -> None:
    labels = set(re.findall(r"[{,](\w+)=", watched.metrics))
    assert labels <= {
        *("route", "method", "status", "code", "stage", "verdict", "filter", "kind", "state"),
        *("chain", "fingerprint", "bits", "precision", "version", "le", "implementation"),
        *("major", "minor", "patchlevel"),
    }
    for told in ("not-there", "ward", "default", str(indexed.settings.data_dir), "1.2.3."):
        assert told not in watched.metrics


@pytest.mark.parametrize("title", ["a healthy start", "a refused request", "a failing job"])
def test_the_runbook_shows_lines_of_the_log_as_they_are(watched: Watched, title: str) -> None:
    block = re.search(rf"{re.escape(title)}[^`]*```json\n(.*?)```", RUNBOOK, re.DOTALL)
    assert block is not None, title
    told = [shape(line) for line in watched.lines]
    shown = [json.loads(line) for line in block[1].splitlines()]
    assert shown
    for line in shown:
        assert shape(line) in told, f"{line}\n" + "\n".join(map(str, told))


def shape(line: dict[str, Any]) -> tuple[Sequence[str], str]:
    """The members of a line of the log, and what does not vary from run to run."""
    kept = {name: value for name, value in line.items() if name not in _VARY}
    event = re.sub(r"\d+(\.\d+)?|/[\w./-]+|http://\S+", "…", str(kept.pop("event")))
    return sorted(line), json.dumps([event, kept], sort_keys=True)
