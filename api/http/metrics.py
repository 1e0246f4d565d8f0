"""Figures of the service in the format of Prometheus.

Each process has its own; what they read from the ledger and the index is the same in all. Labels
take few values: templates of routes, statuses, stages, states, never an id, a path or a tenant.
"""

from collections.abc import Callable
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

from api.http.archive_figures import ArchiveFigures
from api.http.figures import counter, gauge, histogram
from api.http.observing import Observation
from api.http.slots import Load
from engine.errors import SettingsError
from engine.records import Verdict
from engine.settings import ServerSettings, Settings
from indexer.ledger.database import Database

__all__ = ["MEDIA_TYPE", "Metrics"]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FORESEEN = ((401, "not-authenticated"), (500, "internal"), (503, "service-unavailable"))
"""Refusals that alerts look for: from 0 on, or the first of them would be no increase."""


class Metrics:
    """The figures of one service. It observes requests (:class:`api.http.observing.Observer`).

    Args:
        settings: of the service.
        load: how many requests are at work and wait.
        database: gives the ledger's database; None = there is none yet.
    """

    def __init__(
        self, settings: Settings, load: Load, database: Callable[[], Database | None]
    ) -> None:
        server = settings.server
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = counter("precedent_requests", self.registry)
        self._seconds = histogram("precedent_request_seconds", self.registry)
        self._stages = histogram("precedent_stage_seconds", self.registry)
        self._refusals = counter("precedent_refusals", self.registry)
        self._verdicts = counter("precedent_verdicts", self.registry)
        self._filters = counter("precedent_filters", self.registry)
        self._lost = counter("precedent_clients_gone", self.registry)
        self._unheard = counter("precedent_connections_refused", self.registry)
        self._in_flight = gauge("precedent_requests_in_flight", self.registry)
        for name, read in (
            ("precedent_requests_at_work", lambda: load.at_work),
            ("precedent_requests_waiting", lambda: load.waiting),
            ("precedent_uploads", lambda: load.uploading),
        ):
            gauge(name, self.registry).set_function(read)
        gauge("precedent_requests_at_work_limit", self.registry).set(server.max_at_once)
        gauge("precedent_requests_waiting_limit", self.registry).set(server.max_waiting)
        for verdict in get_args(Verdict):
            self._verdicts.labels(verdict)
        for status, code in _FORESEEN:
            self._refusals.labels(status, code)
        self.archive = ArchiveFigures(settings, database)
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
