"""Spans of requests and their stages for OpenTelemetry, without anything of their content.

It needs the extra "traces". Nothing of it is loaded unless the settings ask for it.
"""

from typing import TYPE_CHECKING

import engine
from api.http.observing import Observation
from engine.errors import SettingsError
from engine.extras import install_command
from engine.settings import ServerSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Traces", "tracing"]


def tracing(server: ServerSettings) -> "Traces | None":
    """What sends spans to the address of the settings; None = they name none.

    Raises:
        SettingsError: the extra "traces" is not installed.
    """
    if server.traces_url is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Traces(OTLPSpanExporter(endpoint=server.traces_url))
    except ImportError:
        raise SettingsError(
            "server.traces_url asks for traces, which need OpenTelemetry; "
            + install_command("traces")
        ) from None


class Traces:
    """Makes a span of each request, and one of each stage of its search. It observes requests.

    Stages are laid end to end, with the last one at the end of the request: their durations were
    measured, not their beginnings.

    Args:
        exporter: takes the spans.
    """

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        about = {"service.name": "precedent", "service.version": engine.__version__}
        # Of this process alone: no other code's spans come here, and none of ours go elsewhere.
        self._provider = TracerProvider(resource=Resource(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("precedent")

    def began(self, _: Observation) -> None:
        """Nothing: spans are made when all is known of a request."""

    def ended(self, seen: Observation) -> None:
        from opentelemetry import trace

        attributes: dict[str, str | int] = {
            "http.request.method": seen.method,
            "http.route": seen.route,
        }
        if seen.status is not None:
            attributes["http.response.status_code"] = seen.status
        for name, value in (("precedent.request_id", seen.request_id), ("error.type", seen.code)):
            if value is not None:
                attributes[name] = value
        end = seen.began + round(seen.seconds * 1e9)
        span = self._tracer.start_span(
            f"{seen.method} {seen.route}",
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=seen.began,
        )
        if seen.status is not None and seen.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        context = trace.set_span_in_context(span)
        at = end
        for name, seconds in reversed(seen.stages.items()):
            begin = max(seen.began, at - round(seconds * 1e9))
            self._tracer.start_span(name, context, start_time=begin).end(at)
            at = begin
        span.end(end)

    def flush(self) -> None:
        """Waits until the spans that were made are sent."""
        self._provider.force_flush()

    def close(self) -> None:
        self._provider.shutdown()
