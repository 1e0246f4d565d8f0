"""Figures of the service in the format of Prometheus.

Each process has its own; what they read from the ledger and the index is the same in all. Labels
take few values: templates of routes, statuses, stages, states, never an id, a path or a tenant.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy import func, select

import engine
from api.http.observing import Observation
from api.http.serving import Serving
from api.http.slots import Load
from engine.errors import PrecedentError, SettingsError
from engine.settings import ServerSettings
from indexer.ledger.database import Database
from indexer.ledger.schema import jobs, tasks

__all__ = ["MEDIA_TYPE", "Head", "Metrics"]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ASKED_EVERY_SECONDS = 10.0


class Head(Protocol):
    """The last row of a chain of the audit log. seq: its number. hash: hex."""

    @property
    def chain(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def hash(self) -> str: ...


class Metrics:
    """The figures of one service. It observes requests (:class:`api.http.observing.Observer`).

    Args:
        load: how many requests are at work and wait.
        database: gives the ledger's database; None = there is none yet.
    """

    def __init__(self, load: Load, database: Callable[[], Database | None]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "precedent_requests",
            "Requests answered.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "precedent_request_seconds",
            "Time from the headers of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "precedent_stage_seconds",
            "Time that a stage of a search took.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "precedent_refusals", "Problems answered.", ["status", "code"], registry=self.registry
        )
        self._verdicts = Counter(
            "precedent_verdicts", "Verdicts of the OOD gate.", ["verdict"], registry=self.registry
        )
        self._filters = Counter(
            "precedent_filters",
            "Coarse filters taken by searches.",
            ["filter"],
            registry=self.registry,
        )
        self._lost = Counter(
            "precedent_clients_gone",
            "Requests whose client left first.",
            ["route"],
            registry=self.registry,
        )
        self._unheard = Counter(
            "precedent_connections_refused",
            "Connections refused before they had asked anything.",
            ["status"],
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "precedent_requests_in_flight", "Requests begun.", registry=self.registry
        )
        for name, what, read in (
            ("precedent_requests_at_work", "Requests being worked on.", lambda: load.at_work),
            ("precedent_requests_waiting", "Requests that wait for room.", lambda: load.waiting),
            ("precedent_uploads", "Uploads being received.", lambda: load.uploading),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)
        self.archive = _OfTheArchive(database)
        self.registry.register(self.archive)

    def began(self, _: Observation) -> None:
        self._in_flight.inc()

    def ended(self, seen: Observation) -> None:
        self._in_flight.dec()
        if seen.status is None:
            self._lost.labels(seen.route).inc()
            return
        self._requests.labels(seen.route, seen.method, seen.status).inc()
        self._seconds.labels(seen.route).observe(seen.seconds)
        if seen.code is not None:
            self._refusals.labels(seen.status, seen.code).inc()
        if seen.verdict is not None:
            self._verdicts.labels(seen.verdict).inc()
        for name in seen.filters:
            self._filters.labels(name).inc()
        for name, seconds in seen.stages.items():
            self._stages.labels(name).observe(seconds)

    def refused(self, status: int) -> None:
        """Counts an answer that the application never saw."""
        self._unheard.labels(status).inc()

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)

    def listen(self, server: ServerSettings) -> Callable[[], None]:
        """Answers /metrics on the port of the settings, if they name one; returns what ends it.

        Raises:
            SettingsError: the port cannot be listened on.
        """
        if server.metrics_port is None:
            return lambda: None
        try:
            listener, thread = start_http_server(
                server.metrics_port, server.metrics_host, self.registry
            )
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {server.metrics_host}:{server.metrics_port} "
                f"({error.strerror}); choose another server.metrics_port"
            ) from None

        def end() -> None:
            listener.shutdown()
            listener.server_close()
            thread.join()

        return end


class _OfTheArchive:
    """What the ledger and the index are asked for, at most every ten seconds.

    serving: the archive that is served. heads: gives the ends of the audit log's chains, of those
    alone that were written to lately: each process that ever was has one.
    """

    def __init__(self, database: Callable[[], Database | None]) -> None:
        self.serving: Serving | None = None
        self.heads: Callable[[], Iterable[Head]] = tuple
        self._database = database
        self._lock = threading.Lock()
        self._found: list[Metric] = []
        self._asked = -_ASKED_EVERY_SECONDS

    def describe(self) -> list[Metric]:
        """Nothing: it would ask the database before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            now = time.monotonic()
            if now - self._asked >= _ASKED_EVERY_SECONDS:
                self._found = [*self._of_index(), *self._of_ledger(), *self._of_audit()]
                self._asked = now
            found = self._found
        yield from found

    def _of_index(self) -> Iterator[Metric]:
        if self.serving is None:
            return
        up = GaugeMetricFamily("precedent_index_up", "Whether the index can be searched.")
        try:
            with self.serving.request() as (archive, _):
                points = archive.count_all()
                told = {
                    "fingerprint": archive.manifest.fingerprint,
                    "bits": str(archive.manifest.bits),
                    "precision": archive.encoder.precision,
                    "version": engine.__version__,
                }
        except PrecedentError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield GaugeMetricFamily("precedent_points", "Images in the index.", points)
        yield InfoMetricFamily("precedent_model", "The model of the index in force.", told)

    def _of_ledger(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("precedent_ledger_up", "Whether the ledger can be asked.")
        t = tasks.c
        try:
            database = self._database()
            if database is None:
                return
            with database.begin(read=True) as connection:
                by_job = connection.execute(
                    select(jobs.c.kind, jobs.c.state, func.count()).group_by(
                        jobs.c.kind, jobs.c.state
                    )
                ).all()
                by_task = connection.execute(
                    select(
                        t.state,
                        func.count(),
                        func.sum(t.total),
                        func.sum(t.done),
                        func.sum(t.points),
                    ).group_by(t.state)
                ).all()
        except PrecedentError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        found = GaugeMetricFamily("precedent_jobs", "Jobs.", labels=["kind", "state"])
        for kind, state, count in by_job:
            found.add_metric([kind, state], count)
        yield found
        chunks = GaugeMetricFamily("precedent_job_chunks", "Chunks of jobs.", labels=["state"])
        for state, count, *_ in by_task:
            chunks.add_metric([state], count)
        yield chunks
        for name, what, column in (
            ("precedent_job_instances_planned", "Instances that jobs are to read.", 2),
            ("precedent_job_instances", "Instances that jobs have read.", 3),
            ("precedent_job_points", "Images that jobs have brought into the index.", 4),
        ):
            yield CounterMetricFamily(name, what, sum(int(row[column] or 0) for row in by_task))

    def _of_audit(self) -> Iterator[Metric]:
        sequence = GaugeMetricFamily(
            "precedent_audit_sequence", "Last number of a chain of the audit log.", labels=["chain"]
        )
        # A label would make a new series of every line that is written.
        digest = GaugeMetricFamily(
            "precedent_audit_digest",
            "The first 48 bits of the hash of a chain's last line.",
            labels=["chain"],
        )
        try:
            for head in self.heads():
                sequence.add_metric([head.chain], head.seq)
                digest.add_metric([head.chain], int(head.hash[:12], 16))
        except PrecedentError:
            return
        yield sequence
        yield digest
